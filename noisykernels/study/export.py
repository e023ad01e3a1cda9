"""Records in files for other programs."""

from __future__ import annotations

import csv
import importlib
import io
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from noisykernels._util.optional import optional
from noisykernels.stats.records import Record
from noisykernels.stats.views import StudyLike

__all__ = ["exporter"]


def exporter(path: Path) -> Callable[[StudyLike], bytes]:
    """What makes of a study the content of a file with this suffix.

    Raises:
        ValueError: an unknown suffix.
        ModuleNotFoundError: .parquet without pandas or pyarrow.

    Example:
        >>> exporter(Path("records.xls"))
        Traceback (most recent call last):
        ValueError: export: path must end in .csv, .json or .parquet, got 'records.xls'
    """
    suffix = path.suffix.lower()
    if suffix not in (known := {".csv": _csv, ".json": _json, ".parquet": _parquet}):
        raise ValueError(f"export: path must end in .csv, .json or .parquet, got {str(path)!r}")
    if suffix == ".parquet":
        optional("pandas", "table")
        try:
            importlib.import_module("pyarrow")
        except ModuleNotFoundError as error:
            text = "export: .parquet needs pyarrow, which is not installed; try: pip install pyarrow"
            raise ModuleNotFoundError(text, name="pyarrow") from error
    return known[suffix]


def _csv(study: StudyLike) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([Record._fields, *study.records])
    return text.getvalue().encode()


def _json(study: StudyLike) -> bytes:
    content = {"meta": asdict(study.meta), "records": [r._asdict() for r in study.records]}
    return json.dumps(content, indent=1, allow_nan=False).encode() + b"\n"


def _parquet(study: StudyLike) -> bytes:
    frame = study.to_pandas()
    frame.attrs = {"meta": json.loads(json.dumps(asdict(study.meta)))}  # tuples as lists, as they will be read
    content: bytes = frame.to_parquet(engine="pyarrow", index=False)
    return content

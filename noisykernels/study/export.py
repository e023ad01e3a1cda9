"""Records in files for other programs."""

from __future__ import annotations

import csv
import importlib
import io
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from noisykernels._util.optional import optional

__all__ = ["exporter", "finite"]

# names of the columns, rows, and what else there is to say of them: the content of a file
Write = Callable[[Sequence[str], Sequence[Sequence[Any]], Mapping[str, Any]], bytes]

# Where a spreadsheet would begin a formula: at the start of a cell, or behind what other countries' settings take for
# the end of one; also behind spaces, which it may leave out.
_FORMULA = re.compile("(^|[;,\\t\\r\\n|])(?=[\\t\\r\\n]|\\s*[=+\\-@\uff1d\uff0b\uff0d\uff20])")


def exporter(path: Path, spreadsheet: bool = False) -> Write:
    """What makes of records the content of a file with this suffix.

    Args:
        path: of the file.
        spreadsheet: in .csv, text never begins as a formula does.

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
    return _csv_for_spreadsheets if spreadsheet and suffix == ".csv" else known[suffix]


def finite(value: Any) -> Any:
    """The value with None for every number that JSON cannot hold."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _csv(names: Sequence[str], rows: Sequence[Sequence[Any]], about: Mapping[str, Any]) -> bytes:
    text = io.StringIO()
    lines = [names, *rows]
    # A "\r" alone ends a line for many readers, but csv does not quote it.
    quoted = any("\r" in cell for line in lines for cell in line if isinstance(cell, str))
    write = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC if quoted else csv.QUOTE_MINIMAL)
    write.writerows(lines)
    return text.getvalue().encode(errors="backslashreplace")


def _csv_for_spreadsheets(names: Sequence[str], rows: Sequence[Sequence[Any]], about: Mapping[str, Any]) -> bytes:
    names, *rows = [[_FORMULA.sub(r"\1'", v) if isinstance(v, str) else v for v in line] for line in [names, *rows]]
    return _csv(names, rows, about)


def _json(names: Sequence[str], rows: Sequence[Sequence[Any]], about: Mapping[str, Any]) -> bytes:
    content = {"meta": about, "records": [dict(zip(names, row, strict=True)) for row in rows]}
    return json.dumps(finite(content), indent=1, allow_nan=False).encode() + b"\n"


def _parquet(names: Sequence[str], rows: Sequence[Sequence[Any]], about: Mapping[str, Any]) -> bytes:
    frame = optional("pandas", "table").DataFrame.from_records(rows, columns=list(names))
    frame.attrs = {"meta": finite(dict(about))}  # tuples as lists, as they will be read
    content: bytes = frame.to_parquet(engine="pyarrow", index=False)
    return content

"""What all results of studies share: a table, a picture, records, a page, and a file that reads back equal.

A result is a frozen dataclass, and its fields are all there is to it: files, equality and pages follow from them. What
is its own are its text, its picture and its records. This file must not know torch, nor any of the results.
"""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

from noisykernels._util.arguments import check_arguments
from noisykernels._util.files import replacing
from noisykernels._util.optional import optional
from noisykernels._util.text import printable
from noisykernels.study.encoding import Codecs, codec_of
from noisykernels.study.export import exporter
from noisykernels.study.html_page import picture, shown, table, text, versions, write_page

__all__ = ["Result", "ResultFileError"]


VERSION = 2  # of formats: the newest
FORMATS: dict[str, type[Result]] = {}  # "format" of a file: what it holds
HOMES = ("noisykernels.walking", "noisykernels.experiments")  # packages of results beside this one

R = TypeVar("R", bound="Result")


class ResultFileError(ValueError):
    """A file is not a result, or is damaged; the message names the file and what is wrong."""


class Result(ABC):
    """Base of what studies give back; ``Result.load`` opens the file of any of them.

    A new result is a frozen dataclass ``class Mine(Result, kind="my study")`` with `table`, `plot`, `_rows` and
    `_brief`; where a field is of a type that `encoding.codec_of` has no word for, `_codecs` says how it is written.

    Example:
        >>> import tempfile
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True, eq=False, repr=False)
        ... class Flips(Result, kind="flip"):
        ...     heads: tuple[int, ...]
        ...     def table(self):
        ...         return f"heads {self.heads}"
        ...     def plot(self, ax=None):
        ...         ...
        ...     def _rows(self):
        ...         return ["heads"], [[n] for n in self.heads]
        ...     def _brief(self):
        ...         return f"{len(self.heads)} flips"
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     back = Result.load(Flips((1, 0, 1)).save(folder + "/flips.json"))
        >>> back, back == Flips((1, 0, 1))
        (<Flips: 3 flips>, True)
    """

    _kind: ClassVar[str] = "result"  # what it is, in messages and headings
    _codecs: ClassVar[Codecs] = {}

    def __init_subclass__(cls, kind: str = "", **options: Any) -> None:
        """Makes the class known to `load`, by the format of its files: ``noisykernels.<kind>``."""
        super().__init_subclass__(**options)
        if kind:
            cls._kind = kind
            FORMATS[_format(kind)] = cls

    @abstractmethod
    def table(self) -> str:
        """The result as aligned text."""

    @abstractmethod
    def plot(self, ax: Any = None) -> Any:
        """Picture of the result on the caller's axes or a new figure; the Figure."""

    @abstractmethod
    def _rows(self) -> tuple[Sequence[str], Sequence[Sequence[Any]]]:
        """The records: names of the columns, and the rows."""

    @abstractmethod
    def _brief(self) -> str:
        """The result in a line."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {printable(self._brief())}>"

    def __eq__(self, other: object) -> bool:
        """Same class, same content: arrays value by value, NaN is NaN. (A `Study`: records and meta.)"""
        if not isinstance(other, Result):
            return NotImplemented
        return type(self) is type(other) and json.dumps(self._body()) == json.dumps(other._body())

    def to_pandas(self) -> Any:
        """The records as a pandas DataFrame."""
        names, rows = self._rows()
        return optional("pandas", "table").DataFrame.from_records(rows, columns=list(names))

    def export(self, path: str | os.PathLike[str], *, spreadsheet: bool = False) -> Path:
        """Write the records for other programs; the file's suffix says how. An existing file is replaced.

        ``.csv``: a line of names and a line for each record, numbers with all their digits. ``.json``:
        ``{"meta": {...}, "records": [{"site": ..., ...}, ...]}``, numbers that JSON cannot hold as null. ``.parquet``:
        the table of `to_pandas`; pandas reads the meta back as ``frame.attrs["meta"]``. None of them can be loaded as a
        result again: `save` is for that.

        Args:
            path: ends in .csv, .json or .parquet.
            spreadsheet: a .csv that a spreadsheet will open: an apostrophe goes before text that it would run as a
                formula, as a name that begins with ``=``, ``+``, ``-`` or ``@``. Numbers stay numbers.

        Returns:
            The path.

        Raises:
            ValueError: another suffix.
            ModuleNotFoundError: .parquet without pandas or pyarrow.

        Example:
            >>> import tempfile
            >>> from noisykernels.stats import Meta, Record
            >>> from noisykernels.study import Study
            >>> meta = Meta(seed=0, noise={"add": 1.0}, levels=(0.5,), draws=(0,), rows=100, clean_correct=90,
            ...             classes=10, sites=("input",), stream_version=1)
            >>> study = Study([Record.counted("input", 0, 0.5, 0, 100, 70)], meta)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     print(study.export(folder + "/records.csv").read_text()[:72])
            site,site_index,level,draw,rows,correct,accuracy,status,low,high
            input,0
        """
        check_arguments(Result.export, locals())
        path = Path(path)
        content = exporter(path, spreadsheet)(*self._rows(), self._about())
        with replacing(path) as file:
            file.write(content)
        return path

    def report(self, path: str | os.PathLike[str], title: str | None = None) -> Path:
        """Write one HTML file that shows the result; an existing file is replaced whole or not at all.

        Args:
            path: of the file.
            title: None says what kind of result it is.

        Returns:
            The path.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
        """
        check_arguments(Result.report, locals())
        parts = [
            f'<p class="summary">{text(self._brief())}</p>',
            "<h2>What was asked, and found on the whole</h2>",
            table([], [[name, shown(_short(value))] for name, value in self._about().items()]),
            "<h2>Table</h2>",
            f'<pre style="white-space: pre; overflow-x: auto">{text(self.table())}</pre>',
            "<h2>Picture</h2>",
            picture(self._draw, self._size(), f"picture of the {self._kind}"),
            "<h2>Versions</h2>",
            table([], versions()),
        ]
        return write_page(path, title if title is not None else self._kind.capitalize(), parts)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the result as JSON; an existing file is replaced whole or not at all. Numbers are exact.

        Returns:
            The path.
        """
        check_arguments(Result.save, locals())
        body = self._body()
        head = {"format": _format(self._kind), "version": self._version, "sha256": digest(body)}
        path = Path(path)
        with replacing(path) as file:
            file.write(json.dumps({**head, **body}, allow_nan=False).encode() + b"\n")
        return path

    @classmethod
    def load(cls: type[R], path: str | os.PathLike[str]) -> R:
        """Read what `save` wrote; equal to the result saved. ``Result.load``: of any class.

        Raises:
            ResultFileError: not such a result, from a newer release, damaged or edited.
            OSError: no such file, ...
        """
        check_arguments(Result.load, locals())
        path = Path(path)
        if path.is_dir():
            raise ResultFileError(f"{path}: a folder: `Mixed.load` reads the one that `Mixed.save` wrote")
        try:
            content = json.loads(path.read_bytes())
        except ValueError as error:
            raise ResultFileError(f"{path}: not a {cls._kind} file, or cut off: {error}") from error
        found = content.get("format") if isinstance(content, dict) else None
        made = cls if found == _format(cls._kind) else _class_of(found) if cls is Result else None
        if made is None:
            wanted = '"format" of a result' if cls is Result else f'"format": "{_format(cls._kind)}"'
            raise ResultFileError(f"{path}: not a {cls._kind} file (no {wanted})")
        version = content.get("version")
        if type(version) is not int or not 1 <= version <= VERSION:
            raise ResultFileError(f"{path}: format version {version!r}; this release reads version {VERSION}")
        body = {k: v for k, v in content.items() if k not in ("format", "version", "sha256")}
        if content.get("sha256") != digest(body):
            raise ResultFileError(f"{path}: damaged or edited: its SHA-256 does not fit its content")
        try:
            result = cast(R, made._of(body))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ResultFileError(f"{path}: not a valid {made._kind}: {error}") from error
        if result._version != version:
            raise ResultFileError(f"{path}: format version {version}, but what it holds is of {result._version}")
        return result

    @property
    def _version(self) -> int:
        """Of its file: the first that can hold it."""
        return 1

    def _body(self) -> dict[str, Any]:
        """What is in a file, and equal where results are."""
        return cast(dict[str, Any], codec_of(type(self), self._codecs).write(self))

    @classmethod
    def _of(cls: type[R], body: Mapping[str, Any]) -> R:
        """The result of what is in a file."""
        return cast(R, codec_of(cls, cls._codecs).read(body))

    def _about(self) -> dict[str, Any]:
        """What there is to say beside the records: the fields that hold numbers and text."""
        return {name: value for name, value in vars(self).items() if _plain(value)}

    def _draw(self, figure: Any) -> None:
        """The picture on an empty figure of this `_size`, in inches."""
        self.plot(figure.subplots())

    def _size(self) -> tuple[float, float]:
        return 9.5, 4.8


def digest(body: Mapping[str, Any]) -> str:
    """SHA-256 of the content, whatever the order of keys and the white space."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _format(kind: str) -> str:
    return "noisykernels." + kind.replace(" ", "_")


def _class_of(name: object) -> type[Result] | None:
    """The class of a format; packages above this one are asked for by name, and only when a file may need them."""
    if isinstance(name, str) and name not in FORMATS and name.startswith("noisykernels."):
        for home in HOMES:
            try:
                import_module(home)
            except ModuleNotFoundError as error:  # a study opens without torch, these do not
                raise ResultFileError(
                    f"{name}: to open such a file needs {error.name}, which is not installed"
                ) from error
    return FORMATS.get(name) if isinstance(name, str) else None


def _plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_plain, value.values()))
    return all(map(_plain, value)) if type(value) in (list, tuple) else isinstance(value, int | float | str)


def _short(value: Any) -> Any:
    """A value as text, a number with its digits alone, as one types it; a long list by its length and its ends."""
    if isinstance(value, list | tuple):
        many = f"{len(value)}: {value[0]} .. {value[-1]}" if len(value) > 8 else ", ".join(map(str, value))
        return many or "none"
    return value if isinstance(value, dict) else str(value)

"""What commands write and print: where files can go, tables, JSON, pictures."""

from __future__ import annotations

import argparse
import io
import json
import shlex
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from noisykernels._engine.store_file import BESIDE, check_place
from noisykernels._util.files import check_writable, real, replacing
from noisykernels._util.optional import optional
from noisykernels._util.text import one_line, printable, printable_lines
from noisykernels.study.export import exporter, finite

__all__ = ["ERRORS", "File", "check_files", "draw_picture", "print_json", "say", "tell", "told", "typed"]

ERRORS = (ValueError, TypeError, RuntimeError, OSError, ImportError, MemoryError)  # of the input or the machine


class File(NamedTuple):
    """A file to be written, if there is a path: what it is called when it is there, "" for nothing; what writes it."""

    what: str
    path: Path | None
    write: Callable[[Path], Any]


def check_files(args: argparse.Namespace, read: Sequence[Path] = ()) -> None:
    """Before any work: whatever is to be written has a place to go, of its own, and a known form.

    Args:
        args: of the command.
        read: files that the command reads, and must not write.
    """
    picture, report, store = (getattr(args, name, None) for name in ("picture", "report", "store"))
    exports = getattr(args, "export", [])
    folder = args.out is not None and args.command == "mixed"
    taken = {real(file) for file in read}
    for path in (store, args.out, picture, *exports, report):
        if path is None:
            continue
        if folder and path == args.out:
            _check_folder(path)
        else:
            check_writable(path)
        if path.is_file() or not path.exists():
            if (file := real(path)) in taken:
                raise ValueError(f"{path}: is asked for twice, expected a file of its own")
            taken.add(file)
            if path == store:
                taken |= {file.with_name(file.name + end) for end in BESIDE}
    if store is not None:
        check_place(store, real(store))
    if picture is not None:
        _format_of_picture(picture)
    for path in exports:
        exporter(path)
    if report is not None:
        optional("matplotlib", "plot")


def _check_folder(path: Path) -> None:
    """Files can be written to this folder, which need not be there yet."""
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{path}: is a file, expected a folder")
    check_writable(path / "file" if path.exists() else path)


def tell(
    args: argparse.Namespace, data: Callable[[], Any], text: Callable[[], str], files: Iterable[File] = ()
) -> None:
    """Prints a result, as JSON or as text, then writes its files.

    Raises:
        RuntimeError: some of it could not be done; the message names each and says why. The rest was.
    """
    failed = []
    try:
        if args.json:
            print_json(data())
        else:
            say(text())
    except ERRORS as error:
        failed.append(told(error))
    for what, path, write in files:
        if path is None:
            continue
        try:
            made = write(path)
        except ERRORS as error:
            why = told(error)
            failed.append(why if why.startswith(f"{path}: ") else f"{path}: {why}")
            continue
        if what and not args.json:
            for name in made if isinstance(made, list) else [path]:
                say(f"{what}: {name}")
    if failed:
        raise RuntimeError("; ".join(failed))


def told(error: BaseException) -> str:
    """What an error says, in one line; one of the system is told by its file, without its number."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror.lower()
        text = text if error.filename is None else f"{error.filename}: {text}"
    return printable(one_line(text)) or type(error).__name__


def typed(*words: str) -> str:
    """A command as one types it."""
    return shlex.join(["python", "-m", "noisykernels", *words])


def _format_of_picture(path: Path) -> str:
    """matplotlib's name for a picture's format, by the suffix of its file."""
    known = optional("matplotlib.backend_bases", "plot").FigureCanvasBase.get_supported_filetypes()
    chosen = path.suffix.removeprefix(".").lower() or "png"
    if chosen not in known:
        raise ValueError(f"{path}: expected a picture ending in {', '.join(sorted(known))}, got {path.suffix!r}")
    return chosen


def draw_picture(result: Any, path: Path) -> None:
    """The picture of something that can plot itself."""
    content = io.BytesIO()
    result.plot().savefig(content, dpi=110, format=_format_of_picture(path))
    with replacing(path) as file:
        file.write(content.getbuffer())


def say(text: str) -> None:
    """Prints text, which may hold names of any origin: nothing in it does anything to the terminal."""
    print(printable_lines(text))


def print_json(value: Any) -> None:
    """Prints a value as strict JSON: what is not a finite number is null."""
    print(json.dumps(finite(value), indent=1, allow_nan=False))

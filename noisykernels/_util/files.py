"""Files that are written whole or not at all, wherever a path leads. No torch here.

A regular file is replaced at once, with its mode and owner; a symbolic link is followed. Whatever else a path means (a
device, a pipe, ``/dev/fd/1``, ``>(command)``) is written to, and stays what it is.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import re
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

__all__ = ["check_writable", "noting_written", "real", "replacing"]

_noting: list[list[Path]] = []  # of the blocks that run, what has been written in each


class _Place(NamedTuple):
    """Where a path leads: an open file of this process, else a file; and what is there."""

    number: int | None
    file: Path
    found: os.stat_result | None

    @property
    def stream(self) -> bool:
        return self.number is not None or (self.found is not None and not stat.S_ISREG(self.found.st_mode))


def real(path: Path) -> Path:
    """An absolute path without symbolic links.

    Raises:
        OSError: the links lead to each other.
    """
    found = Path(os.path.realpath(path))
    if any(place.is_symlink() for place in (found, *found.parents)):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    return found


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a new file that takes the place of `path` if the block ends well, else vanishes.

    Raises:
        OSError: nothing can be written there; the message names the path and says why.
    """
    place = _place(path)
    if place.stream:
        content = io.BytesIO()
        yield content
        sys.stdout.flush()  # which may be the same open file
        with os.fdopen(os.open(path, os.O_WRONLY) if place.number is None else os.dup(place.number), "wb") as file:
            file.write(content.getbuffer())
    else:
        place.file.parent.mkdir(parents=True, exist_ok=True)
        with _part(path, place) as part:
            yield part
            part.flush()
            os.fsync(part.fileno())
            Path(part.name).replace(place.file)
    for written in _noting:
        written.append(path)


@contextmanager
def noting_written() -> Iterator[list[Path]]:
    """The files that this process writes through `replacing` within the block, in order."""
    written: list[Path] = []
    _noting.append(written)
    try:
        yield written
    finally:
        _noting[:] = [other for other in _noting if other is not written]


def check_writable(path: Path) -> None:
    """Before any work: that a file can be written to `path`. Nothing is left behind, and nothing is waited for.

    Raises:
        OSError: it cannot; the message names the path and says why.
    """
    place = _place(path)
    if not place.stream:
        if not place.file.parent.exists():
            raise FileNotFoundError(f"{path}: the folder does not exist")
        with _part(path, place):
            pass


@contextmanager
def _part(path: Path, place: _Place) -> Iterator[BinaryIO]:
    """A new file in the folder of another one, with its mode and owner; gone at the end, if it is still there."""
    part = place.file.with_name(f".{secrets.token_hex(8)}.part")  # a name of its own could be too long by the ending
    old = place.found
    mode = 0o666 if old is None else stat.S_IMODE(old.st_mode) & 0o777
    try:
        with _named(path):
            file = open(part, "xb", opener=lambda name, flags: os.open(name, flags, mode))  # noqa: SIM115
        with file:
            if old is not None:
                with suppress(PermissionError):  # another's file, which this user may write
                    os.fchown(file.fileno(), old.st_uid, old.st_gid)
                os.fchmod(file.fileno(), mode)  # the umask took bits away
            yield file
    finally:
        part.unlink(missing_ok=True)


def _place(path: Path) -> _Place:
    """Where a path leads.

    Raises:
        OSError: nothing can ever be written there.
    """
    with _named(path):
        number = _descriptor(path)
        try:
            found = path.stat() if number is None else os.fstat(number)
        except FileNotFoundError:  # also where a link leads
            return _Place(None, Path(os.path.realpath(path)), None)
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(f"{path}: is a folder, expected a file")
    if number is not None:
        writable = fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
    else:
        writable = os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids)
    if not writable:
        raise PermissionError(f"{path}: cannot be written: no permission")
    if number is None and stat.S_ISSOCK(found.st_mode):
        raise OSError(f"{path}: is a socket, expected a file")
    return _Place(number, Path(os.path.realpath(path)), found)


def _descriptor(path: Path) -> int | None:
    """The number of the open file that a path such as ``/dev/fd/1`` or ``/dev/stdout`` means, through links."""
    for _ in range(40):  # as many as Linux follows
        if path.name.isdecimal() and re.fullmatch(
            rf"/dev/fd|/proc/(self|thread-self|{os.getpid()})/fd", os.path.realpath(path.parent)
        ):
            return int(path.name)
        if not path.is_symlink():
            return None
        path = path.parent / path.readlink()
    return None


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors of the system in words that name the path asked for."""
    try:
        yield
    except OSError as error:
        raise type(error)(f"{path}: cannot be written: {(error.strerror or '').lower()}") from error

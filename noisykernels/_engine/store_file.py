"""The file of a results store: where it may lie, what tells it from others, and how it is made. No torch here."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from noisykernels._util.files import real

__all__ = [
    "BESIDE",
    "SCHEMA",
    "StoreError",
    "check_kind",
    "check_place",
    "connect",
    "errors",
    "made",
    "network_file_system",
]


APPLICATION_ID, FORMAT_VERSION = 0x6E6B5253, 1  # "nkRS", at byte 68 of the file; the version is its user_version
BESIDE = ("-wal", "-shm", "-journal")  # what SQLite may keep beside a file, by the ends of their names
_BUSY_SECONDS = 30.0
_MOUNTS = Path("/proc/self/mountinfo")
_NETWORK = re.compile(
    r"nfs\d*|cifs|smb\w*|9p|afs|ceph|glusterfs|lustre|gpfs|beegfs\w*|panfs|wekafs|davfs"
    r"|fuse\.(sshfs|ceph|ceph-fuse|glusterfs|s3fs|rclone|gcsfuse|juicefs|smbnetfs|davfs2?)"
)
SCHEMA = (
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE tasks (task TEXT PRIMARY KEY, result TEXT NOT NULL, crc INTEGER NOT NULL, "
    "owner TEXT NOT NULL, finished INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE claims (task TEXT PRIMARY KEY, owner TEXT NOT NULL, lease_until INTEGER NOT NULL, "
    "heartbeat INTEGER NOT NULL) WITHOUT ROWID",
)  # times are microseconds since 1970


class StoreError(ValueError):
    """A results store cannot be used, or a result cannot be right; the message names the file and what is wrong."""


def network_file_system(path: str | os.PathLike[str], mountinfo: str) -> str | None:
    """Type of the network file system that a path lies on, None for a local one.

    Args:
        path: absolute, without symbolic links.
        mountinfo: text of `/proc/self/mountinfo`.

    Example:
        >>> network_file_system("/home/me/study.db", "36 25 0:31 / /home rw shared:9 - nfs4 server:/home rw")
        'nfs4'
    """
    depth, found = 0, ""
    for line in mountinfo.splitlines():
        head, dash, tail = line.partition(" - ")
        if not dash or len(head.split()) < 5 or not tail.split():
            continue
        point = PurePosixPath(re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), head.split()[4]))
        if PurePosixPath(path).is_relative_to(point) and len(point.parts) >= depth:  # of equal ones the last is on top
            depth, found = len(point.parts), tail.split()[0]
    return found if _NETWORK.fullmatch(found) else None


@contextlib.contextmanager
def errors(path: Path) -> Iterator[None]:
    """Errors of SQLite and of the system as `StoreError`."""
    try:
        yield
    except sqlite3.OperationalError as error:
        locked = f": another process kept it locked for {_BUSY_SECONDS:g} s" if "locked" in str(error) else ""
        raise StoreError(f"{path}: cannot be read or written: {error}{locked or _refusal(path)}") from error
    except (sqlite3.DatabaseError, json.JSONDecodeError) as error:
        raise StoreError(f"{path}: damaged: {error}") from error
    except OSError as error:
        raise StoreError(f"{path}: cannot be used: {error.strerror or error}") from error


def _refusal(path: Path) -> str:
    """What the system says to a small new file beside this one: SQLite does not tell why it could not write."""
    try:
        with tempfile.TemporaryFile(dir=real(path).parent) as probe:
            probe.write(bytes(1 << 16))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        return f": {error.strerror}"
    return ""


def connect(file: Path, options: str) -> sqlite3.Connection:
    """A connection to an absolute path, which begins and ends no transactions of its own."""
    uri = f"{file.as_uri()}?{options}"
    return sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)


def check_kind(path: Path, file: Path) -> None:
    """Look at the first page only and change nothing, not even a log left beside another program's file.

    Never with `open`: closing a file drops all locks that this process has on it.
    """
    with contextlib.closing(connect(file, "mode=ro&immutable=1")) as db:
        # Who was killed while the log was written into the file leaves it shorter than its first page says, and whole
        # with its log. Without this, SQLite calls it damaged.
        db.execute("PRAGMA writable_schema = ON")
        try:
            (application,), (version,) = (
                db.execute(f"PRAGMA {name}").fetchone() for name in ("application_id", "user_version")
            )
        except sqlite3.DatabaseError as error:
            if "not a database" in str(error):
                raise StoreError(f"{path}: not an SQLite file") from error
            raise
    if application != APPLICATION_ID:
        what = "an SQLite file of something else" if file.stat().st_size else "an empty file"
        raise StoreError(f"{path}: not a results store, but {what}")
    if version > FORMAT_VERSION:
        raise StoreError(f"{path}: format version {version}; this release reads version {FORMAT_VERSION}")


def check_place(path: Path, file: Path) -> None:
    """Refuse where a store cannot be."""
    mounts = _MOUNTS.read_text(errors="surrogateescape") if _MOUNTS.exists() else ""
    if kind := network_file_system(file, mounts):
        raise StoreError(
            f"{path}: lies on a network file system ({kind}), where locks and shared memory cannot be relied "
            "on and results could be lost; put it on a local disk and copy it when the study is done"
        )
    if file.is_dir() or not file.parent.is_dir():
        raise StoreError(f"{path}: {'is a folder' if file.is_dir() else 'its folder does not exist'}")
    if file.exists() and not file.is_file():  # SQLite would wait for the other end of a pipe for ever
        raise StoreError(f"{path}: is a device, a pipe or a socket, expected a regular file")
    for place in (file.parent, file):
        if place.exists() and not os.access(place, os.W_OK):
            raise StoreError(f"{path}: cannot be written: {place} is read-only")


def made(path: Path, file: Path, meta: Mapping[str, str]) -> None:
    """A store where there is none: made under another name and linked into place, so that no half of one is ever seen.

    Its name is on the disk when this returns, whoever made it: what is confirmed later must be found after a power cut.
    """
    beside = [p for p in (file.with_name(file.name + end) for end in ("-wal", "-journal")) if p.exists()]
    if not file.exists():  # looked at last: another process may be making it
        if beside:  # SQLite would play it into the new file
            raise StoreError(f"{path}: the file is gone, but {beside[0].name} of it is there: restore or delete")
        part = file.with_name(f".{secrets.token_hex(8)}.part")  # with the file's name it could be too long
        try:
            _fill(part, meta)
            with contextlib.suppress(FileExistsError):  # another process was first
                os.link(part, file)
        finally:
            for end in ("", *BESIDE):
                part.with_name(part.name + end).unlink(missing_ok=True)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot do this with folders
            raise
    finally:
        os.close(folder)


def _fill(part: Path, meta: Mapping[str, str]) -> None:
    """An empty store, by a rollback journal: the end of that transaction says whether all of it could be written."""
    with contextlib.closing(connect(part, "mode=rwc")) as db:
        for statement in ("PRAGMA synchronous = FULL", "BEGIN", f"PRAGMA application_id = {APPLICATION_ID}",
                          f"PRAGMA user_version = {FORMAT_VERSION}", *SCHEMA):  # fmt: skip
            db.execute(statement)
        db.executemany("INSERT INTO meta VALUES (?, ?)", [
            ("format", "noisykernels.results"), ("version", str(FORMAT_VERSION)), *meta.items(),
        ])  # fmt: skip
        db.execute("COMMIT")
        db.execute("PRAGMA journal_mode = WAL")  # from now on

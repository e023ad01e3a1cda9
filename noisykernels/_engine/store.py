"""The results store: what a study has found so far, in one SQLite file that survives being killed.

A study is a list of tasks; a task is done once and its result never changes. Coordinators, and only they, open the
file: they claim tasks for a while, hand them to workers, and put in what comes back. Keys and file are one
module, which can be loaded without torch and without the rest of the package.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import secrets
import sqlite3
import sys
import threading
import time
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

from noisykernels._engine.store_keys import canonical

__all__ = ["Store", "StoreError", "network_file_system", "note_of", "noting"]


APPLICATION_ID, FORMAT_VERSION = 0x6E6B5253, 1  # "nkRS", at byte 68 of the file; the version is its user_version
_BUSY_SECONDS = 30.0
_MOUNTS = Path("/proc/self/mountinfo")
_NETWORK = re.compile(
    r"nfs\d*|cifs|smb\w*|9p|afs|ceph|glusterfs|lustre|gpfs|beegfs\w*|panfs|wekafs|davfs"
    r"|fuse\.(sshfs|ceph|ceph-fuse|glusterfs|s3fs|rclone|gcsfuse|juicefs|smbnetfs|davfs2?)"
)
_SCHEMA = (
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE tasks (task TEXT PRIMARY KEY, result TEXT NOT NULL, crc INTEGER NOT NULL, "
    "owner TEXT NOT NULL, finished INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE claims (task TEXT PRIMARY KEY, owner TEXT NOT NULL, lease_until INTEGER NOT NULL, "
    "heartbeat INTEGER NOT NULL) WITHOUT ROWID",
)  # times are microseconds since 1970
# A heartbeat from the future was written before the clock was set back: such a lease counts as expired.
_CLAIM = """
INSERT INTO claims SELECT :task, :owner, :now + :lease, :now WHERE NOT EXISTS (SELECT 1 FROM tasks WHERE task = :task)
ON CONFLICT (task) DO UPDATE SET owner = excluded.owner, lease_until = excluded.lease_until, heartbeat = :now
WHERE claims.lease_until <= :now OR claims.heartbeat > :now + 60000000"""
_PIECES = {
    "layers": "the model's layers differ", "weights": "the model's weights differ", "inputs": "the inputs differ",
    "labels": "the labels differ", "rows": "the row ids differ", "stream": "the version of the noise stream differs",
    "plan": "the contraction plan differs",
}  # fmt: skip


class StoreError(ValueError):
    """A results store cannot be used, or a result cannot be right; the message names the file and what is wrong."""


# -------------------------------------------------------------------------------------------- store


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


def _now() -> int:
    return time.time_ns() // 1000


@contextlib.contextmanager
def _errors(path: Path) -> Iterator[None]:
    """Errors of SQLite and of the system as `StoreError`."""
    try:
        yield
    except sqlite3.OperationalError as error:
        busy = f": another process kept it locked for {_BUSY_SECONDS:g} s" if "locked" in str(error) else ""
        raise StoreError(f"{path}: cannot be read or written: {error}{busy}") from error
    except (sqlite3.DatabaseError, json.JSONDecodeError) as error:
        raise StoreError(f"{path}: damaged: {error}") from error
    except OSError as error:
        raise StoreError(f"{path}: cannot be used: {error}") from error


def _connect(file: Path, options: str) -> sqlite3.Connection:
    uri = f"{file.as_uri()}?{options}"
    return sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)


_NOTES: ContextVar[Mapping[str, str]] = ContextVar("notes of a store", default=MappingProxyType({}))


@contextlib.contextmanager
def noting(name: str, text: str) -> Iterator[None]:
    """Each store opened within the block, by whomever, keeps this text under this name, in place of an older one."""
    before = _NOTES.set({**_NOTES.get(), name: text})
    try:
        yield
    finally:
        _NOTES.reset(before)


def note_of(path: str | os.PathLike[str], name: str) -> str | None:
    """The text of this name that a store keeps (see `noting`), whatever study it belongs to; None if there is none.

    Raises:
        StoreError: no such file, not a results store, a newer format, or damaged. The file is as it was.

    Example:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> with noting("author", "me"), Store(folder.name + "/study.db", {"seed": 7}):
        ...     note_of(folder.name + "/study.db", "author")
        'me'
    """
    path = Path(path)
    with _errors(path):
        file = path.resolve()
        if not file.is_file():
            raise StoreError(f"{path}: there is no such file")
        _check_kind(path, file)
        with contextlib.closing(_connect(file, "mode=rw")) as db:  # a killed process may have left a log to be read
            found = db.execute("SELECT value FROM meta WHERE name = ?", (f"note {name}",)).fetchone()
    return None if found is None else found[0]


def _check_kind(path: Path, file: Path) -> None:
    """Look at the first page only and change nothing, not even a log left beside another program's file.

    Never with `open`: closing a file drops all locks that this process has on it.
    """
    for patience in (True, True, True, False):
        try:
            with contextlib.closing(_connect(file, "mode=ro&immutable=1")) as db:
                (application,), (version,) = (
                    db.execute(f"PRAGMA {name}").fetchone() for name in ("application_id", "user_version")
                )
            break
        except sqlite3.DatabaseError as error:
            if "not a database" in str(error):
                raise StoreError(f"{path}: not an SQLite file") from error
            if not patience:
                raise
            time.sleep(0.05)  # the file may be growing under our eyes
    if application != APPLICATION_ID:
        what = "an SQLite file of something else" if file.stat().st_size else "an empty file"
        raise StoreError(f"{path}: not a results store, but {what}")
    if version > FORMAT_VERSION:
        raise StoreError(f"{path}: format version {version}; this release reads version {FORMAT_VERSION}")


class Store:
    """The results of one study in a file; opens it, or makes it where there is none.

    Any number of processes of one machine may have it open; each opens its own. What `finish` took stays, whenever
    a process is killed; if the machine loses power, the last few results may have to be found again. The file and its
    neighbour ``-wal`` belong together. Threads may share a Store. It is a context manager. Each method raises
    StoreError where the file is damaged or kept locked for 30 s, the Store is closed, or the process is a forked child.

    Args:
        path: the file, on a local disk.
        key: what `study_key` gave.

    Raises:
        StoreError: not a results store, a newer format, another study (names what differs), damaged, on a network file
            system, or not writable. The file is as it was.

    Example:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> with Store(folder.name + "/study.db", {"seed": 7}) as store:
        ...     for task in store.claim(["a", "b", "c"], "me", lease_seconds=60, at_most=2):
        ...         store.finish(task, {"correct": 90}, "me")
        ...     store.done(), store.missing(["a", "b", "c"])
        ({'a': {'correct': 90}, 'b': {'correct': 90}}, ['c'])
        >>> Store(folder.name + "/study.db", {"seed": 8})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        noisykernels._engine.store.StoreError: ...: results of another study: the seed differs (7 in the file, 8 here)
    """

    def __init__(self, path: str | os.PathLike[str], key: Mapping[str, Any]) -> None:
        self.path, self.key = Path(path), json.loads(canonical(dict(key)))
        self._pid, self._lock = os.getpid(), threading.RLock()
        self._db: sqlite3.Connection | None = None
        with _errors(self.path), contextlib.ExitStack() as undo:
            file = self.path.resolve()
            self._check_place(file)
            self._make(file)
            _check_kind(self.path, file)
            self._db = _connect(file, "mode=rw")
            undo.callback(self.close)
            if self._db.execute("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
                raise StoreError(f"{self.path}: SQLite cannot keep a write-ahead log on this file system")
            self._db.execute("PRAGMA synchronous = NORMAL")
            if (found := self._db.execute("PRAGMA quick_check(1)").fetchone()) != ("ok",):
                raise StoreError(f"{self.path}: damaged: {found[0]}")
            (text,) = self._db.execute("SELECT value FROM meta WHERE name = 'key'").fetchone() or ("{}",)
            self._check_key(json.loads(text))
            notes = [(f"note {name}", text) for name, text in _NOTES.get().items()]
            self._db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", notes)
            undo.pop_all()

    def _check_place(self, file: Path) -> None:
        mounts = _MOUNTS.read_text(errors="surrogateescape") if _MOUNTS.exists() else ""
        if kind := network_file_system(file, mounts):
            raise StoreError(
                f"{self.path}: lies on a network file system ({kind}), where locks and shared memory cannot be relied "
                "on and results could be lost; put it on a local disk and copy it when the study is done"
            )
        if file.is_dir() or not file.parent.is_dir():
            raise StoreError(f"{self.path}: {'is a folder' if file.is_dir() else 'its folder does not exist'}")
        for place in (file.parent, file):
            if place.exists() and not os.access(place, os.W_OK):
                raise StoreError(f"{self.path}: cannot be written: {place} is read-only")

    def _make(self, file: Path) -> None:
        """Make the store under another name and link it into place, so that no half of one is ever seen."""
        beside = [p for p in (file.with_name(file.name + end) for end in ("-wal", "-journal")) if p.exists()]
        if file.exists():  # looked at last: another process may be making it
            return
        if beside:  # SQLite would play it into the new file
            raise StoreError(f"{self.path}: the file is gone, but {beside[0].name} of it is there: restore or delete")
        part = file.with_name(f".{file.name}.{secrets.token_hex(6)}.part")
        version = getattr(sys.modules.get("noisykernels"), "__version__", "unknown")
        try:
            with contextlib.closing(_connect(part, "mode=rwc")) as db:
                db.execute("PRAGMA journal_mode = WAL")
                for statement in ("BEGIN", f"PRAGMA application_id = {APPLICATION_ID}",
                                  f"PRAGMA user_version = {FORMAT_VERSION}", *_SCHEMA):  # fmt: skip
                    db.execute(statement)
                db.executemany("INSERT INTO meta VALUES (?, ?)", [
                    ("format", "noisykernels.results"), ("version", str(FORMAT_VERSION)),
                    ("key", canonical(self.key)), ("created by", version),
                ])  # fmt: skip
                db.execute("COMMIT")
            with contextlib.suppress(FileExistsError):  # another process was first
                os.link(part, file)
        finally:
            for end in ("", "-wal", "-shm"):
                part.with_name(part.name + end).unlink(missing_ok=True)

    def _check_key(self, theirs: dict[str, Any]) -> None:
        said = []
        for name in {**_PIECES, **theirs, **self.key}:
            a, b = theirs.get(name), self.key.get(name)
            if a != b and name != "sha256":
                pairs: Any = [("", a, b)]
                if isinstance(a, dict) and isinstance(b, dict):
                    pairs = [(f"{n}: ", a.get(n), b.get(n)) for n in sorted({**a, **b})]
                shown = [f"{n}{x} in the file, {y} here" for n, x, y in pairs if x != y and len(f"{x}{y}") < 120]
                said.append(_PIECES.get(name, f"the {name} differs") + (f" ({'; '.join(shown)})" if shown else ""))
        if said:
            raise StoreError(f"{self.path}: results of another study: {', '.join(said)}")

    @contextlib.contextmanager
    def _use(self, write: bool = False) -> Iterator[sqlite3.Connection]:
        """The connection, within a transaction of its own if something is to be written."""
        if os.getpid() != self._pid:
            raise StoreError(f"{self.path}: was opened by process {self._pid}; a forked child must open its own Store")
        with self._lock, _errors(self.path):
            if self._db is None:
                raise StoreError(f"{self.path}: the Store is closed")
            if not write:
                yield self._db
                return
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def done(self, known: Collection[str] = ()) -> dict[str, Any]:
        """The result of each finished task, in order of the task keys; without those that are known already."""
        with self._use() as db:
            new = [task for (task,) in db.execute("SELECT task FROM tasks ORDER BY task") if task not in known]
            get = "SELECT task, result, crc FROM tasks WHERE task = ?"
            rows = [db.execute(get, (task,)).fetchone() for task in new]
        for task, result, crc in rows:
            if crc != _crc(task, result):
                raise StoreError(f"{self.path}: damaged: the checksum of task {task} does not fit")
        return {task: json.loads(result) for task, result, _ in rows}

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Those of the tasks that are not finished, in their order, each once."""
        with self._use() as db:
            finished = {task for (task,) in db.execute("SELECT task FROM tasks")}
        return [task for task in dict.fromkeys(keys) if task not in finished]

    def claim(self, keys: Iterable[str], owner: str, lease_seconds: float, at_most: int) -> list[str]:
        """Take tasks to work on: neither finished nor under a live lease, be it the owner's own.

        Args:
            keys: tasks to choose from, the first ones first.
            owner: a name that no other process uses.
            lease_seconds: how long others keep off, from now or from the last `heartbeat`.
            at_most: how many.

        Returns:
            The tasks taken; none where all are finished or taken.

        Raises:
            ValueError: a lease that is not positive and finite, or less than no tasks.
        """
        if not (lease_seconds > 0 and math.isfinite(lease_seconds)) or at_most < 0:
            raise ValueError(f"claim: bad lease_seconds or at_most: {lease_seconds}, {at_most}")
        candidates = self.missing(keys)
        taken: list[str] = []
        with self._use(write=True) as db:
            how = {"owner": owner, "now": _now(), "lease": int(lease_seconds * 1e6)}
            for task in candidates:
                if len(taken) >= at_most:
                    break
                if db.execute(_CLAIM, {**how, "task": task}).rowcount == 1:
                    taken.append(task)
        return taken

    def heartbeat(self, owner: str) -> int:
        """Begin all leases of an owner anew; returns how many it has (leases that ran out may be others' by now)."""
        with self._use(write=True) as db:
            return db.execute(
                "UPDATE claims SET lease_until = :now + lease_until - heartbeat, heartbeat = :now WHERE owner = :owner",
                {"now": _now(), "owner": owner},
            ).rowcount

    def finish(self, task: str, result: Any, owner: str) -> None:
        """Put in the result of a task, whoever holds its lease; the same result again changes nothing.

        Args:
            task: its key.
            result: what JSON can hold; `done` gives it back as JSON does (tuples as lists).
            owner: who found it.

        Raises:
            TypeError, ValueError: JSON cannot hold the result (NaN, infinite, an object).
            StoreError: the task has a different result already.
        """
        text = canonical(result)
        with self._use(write=True) as db:
            found = db.execute("SELECT result, owner FROM tasks WHERE task = ?", (task,)).fetchone()
            if found is None:
                db.execute("INSERT INTO tasks VALUES (?, ?, ?, ?, ?)", (task, text, _crc(task, text), owner, _now()))
            elif found[0] != text:
                raise StoreError(
                    f"{self.path}: determinism violated: task {task} has the result {found[0]} from {found[1]}, and "
                    f"{owner} now finds {text}; the first one stays"
                )
            db.execute("DELETE FROM claims WHERE task = ?", (task,))

    def release(self, owner: str) -> int:
        """Give up all tasks that an owner holds, so that others may take them at once; returns how many."""
        with self._use(write=True) as db:
            return db.execute("DELETE FROM claims WHERE owner = ?", (owner,)).rowcount

    def close(self) -> None:
        """Close the file; again does nothing, nor does a forked child's."""
        if os.getpid() == self._pid:
            with self._lock:
                db, self._db = self._db, None
                if db is not None:
                    db.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _crc(task: str, result: str) -> int:
    """SQLite finds damage of its structures, not of the values in them."""
    return zlib.crc32(f"{task}\n{result}".encode())

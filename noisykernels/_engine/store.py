"""The results store: what a study has found so far, in one SQLite file that survives being killed.

A study is a list of tasks; a task is done once and its result never changes. Coordinators, and only they, open the
file: they claim tasks for a while, hand them to workers, and put in what comes back. No torch here.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sqlite3
import sys
import threading
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from noisykernels._engine.store_file import StoreError, check_place, errors, made
from noisykernels._engine.store_trust import opened
from noisykernels._util.files import real

__all__ = ["Store", "StoreError", "canonical", "note_of", "noting"]


T = TypeVar("T")
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


def canonical(value: Any) -> str:
    """The one text of a value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _now() -> int:
    return time.time_ns() // 1000


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
    with errors(path):
        file = real(path)
        if not file.is_file():
            raise StoreError(f"{path}: there is no such file")
        with contextlib.closing(opened(path, file)) as db:
            found = db.execute("SELECT value FROM meta WHERE name = ?", (f"note {name}",)).fetchone()
    return None if found is None else found[0]


class Store:
    """The results of one study in a file; opens it, or makes it where there is none.

    Any number of processes of one machine may have it open; each opens its own. What `finish` took stays, whenever
    a process is killed or the machine loses power. The file and its neighbour ``-wal`` belong together. Threads may
    share a Store. It is a context manager. Each method raises StoreError where the file is damaged, removed, cannot be
    written or is kept locked for 30 s, the Store is closed, or the process is a forked child.

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
        ...         store.finish({task: {"correct": 90}}, "me")
        ...     store.done(), store.missing(["a", "b", "c"])
        ({'a': {'correct': 90}, 'b': {'correct': 90}}, ['c'])
        >>> Store(folder.name + "/study.db", {"seed": 8})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        noisykernels._engine.store_file.StoreError: ...: results of another study: the seed differs (7 in the file, ...)
    """

    def __init__(self, path: str | os.PathLike[str], key: Mapping[str, Any]) -> None:
        self.path, self.key = Path(path), json.loads(canonical(dict(key)))
        self._pid, self._lock = os.getpid(), threading.RLock()
        self._db: sqlite3.Connection | None = None
        notes = {f"note {name}": text for name, text in _NOTES.get().items()}
        version = getattr(sys.modules.get("noisykernels"), "__version__", "unknown")
        with errors(self.path), contextlib.ExitStack() as undo:
            self._file = real(self.path)
            check_place(self.path, self._file)
            made(self.path, self._file, {"key": canonical(self.key), "created by": version, **notes})
            self._db = opened(self.path, self._file)
            undo.callback(self.close)
            self._identity = self._found()
            if self._db.execute("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
                raise StoreError(f"{self.path}: SQLite cannot keep a write-ahead log on this file system")
            self._db.execute("PRAGMA synchronous = FULL")  # a transaction that has ended is on the disk
            if (found := self._db.execute("PRAGMA quick_check(1)").fetchone()) != ("ok",):
                raise StoreError(f"{self.path}: damaged: {found[0]}")
            held = dict(self._db.execute("SELECT name, value FROM meta"))
            try:
                self._check_key(json.loads(held.get("key", "{}")))
            except StoreError:
                raise
            except (TypeError, ValueError, RecursionError) as error:  # no object of JSON, or one of absurd size
                raise StoreError(f"{self.path}: damaged: what it belongs to cannot be read") from error
            if new := notes.items() - held.items():
                self._write(lambda db: db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", new))
            undo.pop_all()

    def _check_key(self, theirs: dict[str, Any]) -> None:
        said = []
        for name in {**_PIECES, **theirs, **self.key}:
            a, b = theirs.get(name), self.key.get(name)
            if a != b and name != "sha256":
                pairs: Any = [("", a, b)]
                if isinstance(a, dict) and isinstance(b, dict):
                    pairs = [(f"{n}: ", a.get(n), b.get(n)) for n in sorted({**a, **b})]
                shown = [f"{n}{x} in the file, {y} here" for n, x, y in pairs if x != y and len(f"{x}{y}") < 240]
                said.append(_PIECES.get(name, f"the {name} differs") + (f" ({'; '.join(shown)})" if shown else ""))
        if said:
            raise StoreError(f"{self.path}: results of another study: {', '.join(said)}")

    def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What a function makes of the connection, while no other thread has it."""
        if os.getpid() != self._pid:
            raise StoreError(f"{self.path}: was opened by process {self._pid}; a forked child must open its own Store")
        with self._lock, errors(self.path):
            if self._db is None:
                raise StoreError(f"{self.path}: the Store is closed")
            self._db.rollback()  # of a transaction that Ctrl-C kept from its end
            return work(self._db)

    def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """The same in a transaction; when this returns, what was written is on the disk and under the store's name."""

        def whole(db: sqlite3.Connection) -> T:
            try:
                db.execute("BEGIN IMMEDIATE")
                result = work(db)
                db.execute("COMMIT")
            finally:
                db.rollback()  # does nothing after COMMIT
            if self._found() != self._identity or not self._file.with_name(f"{self._file.name}-wal").exists():
                raise StoreError(f"{self.path}: was removed or replaced while it was open; what was put in is lost")
            return result

        return self._read(whole)

    def _found(self) -> tuple[int, int] | None:
        """Which file has the store's name now."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            found = self._file.stat()
            return found.st_dev, found.st_ino
        return None

    def done(self, known: Collection[str] = ()) -> dict[str, Any]:
        """The result of each finished task, in order of the task keys; without those that are known already."""

        def rows(db: sqlite3.Connection) -> list[tuple[str, str, int]]:
            new = [task for (task,) in db.execute("SELECT task FROM tasks ORDER BY task") if task not in known]
            get = "SELECT task, result, crc FROM tasks WHERE task = ?"
            return [db.execute(get, (task,)).fetchone() for task in new]

        found = self._read(rows)
        for task, result, crc in found:
            if crc != _crc(task, result):
                raise StoreError(f"{self.path}: damaged: the checksum of task {task} does not fit")
        return {task: self._result(task, result) for task, result, _ in found}

    def _result(self, task: str, text: str) -> Any:
        """A result, of which only the checksum is known to fit."""
        try:
            return json.loads(text)
        except (TypeError, ValueError, RecursionError) as error:
            raise self.damage(task, error) from error

    def damage(self, task: str, why: object) -> StoreError:
        """What to raise where the result of a task is not of its form: it may have been put in by anyone."""
        return StoreError(f"{self.path}: damaged: the result of task {task!s:.200}: {why!s:.200}")

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Those of the tasks that are not finished, in their order, each once."""
        finished = self._read(lambda db: {task for (task,) in db.execute("SELECT task FROM tasks")})
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

        def take(db: sqlite3.Connection) -> list[str]:
            taken: list[str] = []
            how = {"owner": owner, "now": _now(), "lease": int(lease_seconds * 1e6)}
            for task in candidates:
                if len(taken) >= at_most:
                    break
                if db.execute(_CLAIM, {**how, "task": task}).rowcount == 1:
                    taken.append(task)
            return taken

        return self._write(take)

    def heartbeat(self, owner: str) -> int:
        """Begin all leases of an owner anew; returns how many it has (leases that ran out may be others' by now)."""
        update = "lease_until = :now + lease_until - heartbeat, heartbeat = :now"
        which = {"now": _now(), "owner": owner}
        return self._write(lambda db: db.execute(f"UPDATE claims SET {update} WHERE owner = :owner", which).rowcount)

    def finish(self, results: Mapping[str, Any], owner: str) -> None:
        """Put in the results of tasks, all or none, whoever holds their leases; the same ones again change nothing.

        Args:
            results: of each task's key, what JSON can hold; `done` gives it back as JSON does (tuples as lists).
            owner: who found them.

        Raises:
            TypeError, ValueError: JSON cannot hold a result (NaN, infinite, an object).
            StoreError: a task has a different result already.
        """
        texts = {task: canonical(result) for task, result in results.items()}

        def put(db: sqlite3.Connection) -> None:
            for task, text in texts.items():
                found = db.execute("SELECT result, owner FROM tasks WHERE task = ?", (task,)).fetchone()
                if found is None:
                    row = (task, text, _crc(task, text), owner, _now())
                    db.execute("INSERT INTO tasks VALUES (?, ?, ?, ?, ?)", row)
                elif found[0] != text:
                    raise StoreError(
                        f"{self.path}: determinism violated: task {task} has the result {found[0]} from {found[1]}, "
                        f"and {owner} now finds {text}; the first one stays"
                    )
                db.execute("DELETE FROM claims WHERE task = ?", (task,))

        self._write(put)

    def release(self, owner: str) -> int:
        """Give up all tasks that an owner holds, so that others may take them at once; returns how many."""
        return self._write(lambda db: db.execute("DELETE FROM claims WHERE owner = ?", (owner,)).rowcount)

    def close(self) -> None:
        """Close the file; again does nothing, nor does a forked child's."""
        if os.getpid() == self._pid:
            with self._lock, errors(self.path):
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

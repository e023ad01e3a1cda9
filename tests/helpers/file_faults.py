"""Builds and drives file_faults.c: what this process does to a folder is counted, cut short, refused, written down."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

KINDS = ("open", "create", "write", "truncate", "sync", "unlink", "link", "rename", "map", "lock", "close")
MET, SAID = "met", "said"  # written down before each operation that is counted, done or not; by `say`
COUNT, KILL, TEAR, FAIL, FAIL_FROM = range(5)  # what happens at the n-th operation

_HEAD = struct.Struct("=iiiiqq")


@dataclass(frozen=True)
class Record:
    """An operation that was done: its kind, the descriptor or paths, where, how much, and what was written."""

    kind: str
    descriptor: int
    path: str
    second: str
    offset: int
    size: int
    data: bytes


def preloaded() -> None:
    """Starts this program again with the faults in front of libc, unless they are there."""
    if "file_faults" in os.environ.get("LD_PRELOAD", ""):
        return
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "file_faults.so"
        source = Path(__file__).with_name("file_faults.c")
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
        again = subprocess.run([sys.executable, *sys.argv], env={**os.environ, "LD_PRELOAD": str(library)})
    sys.exit(again.returncode)


def begin(
    folder: Path, n: int = 0, action: int = COUNT, *, kinds: Collection[str] = KINDS, error: int = 0, log: int = -1
) -> None:
    """From now on the n-th operation (from 1) of these kinds on files of the folder is met by an action.

    Args:
        folder: absolute, without symbolic links.
        error: the errno of `FAIL` and `FAIL_FROM`.
        log: a descriptor that all operations are written to; -1: none.
    """
    mask = sum(1 << KINDS.index(kind) for kind in kinds)
    ctypes.CDLL(None).shim_begin(os.fsencode(folder), mask, ctypes.c_long(n), action, error, log)


def end() -> int:
    """Leaves the folder alone again; how many operations there were."""
    count: int = ctypes.CDLL(None).shim_end()
    return count


def say(text: str) -> None:
    """A note among the operations that are written down."""
    ctypes.CDLL(None).shim_note(text.encode())


def records(log: Path) -> Iterator[Record]:
    """What was written down."""
    content, at = log.read_bytes(), 0

    def taken(size: int) -> bytes:
        nonlocal at
        at += size
        return content[at - size : at]

    while at < len(content):
        kind, descriptor, first, second, offset, size = _HEAD.unpack(taken(_HEAD.size))
        path, other = taken(first).decode(), taken(second).decode()
        data = taken(size) if kind == KINDS.index("write") else b""
        yield Record((*KINDS, MET, SAID)[kind], descriptor, path, other, offset, size, data)

"""Files that the package keeps: cache folder, writing without halves, checked downloads, progress.

Shared by `data` (data sets) and `train` (checkpoints). No torch here.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

WRITTEN: list[Path] = []  # by this process through `replacing`, in order: an interrupted command names its files


class DataError(RuntimeError):
    """A data set could not be read."""


class DataNotFound(DataError):
    """A data set is in none of the places looked at; the message names each."""


class CorruptData(DataError):
    """A file of a data set is not what it should be; the message names it."""


class ChecksumError(CorruptData):
    """A download had another SHA-256 than the published file; nothing of it is kept."""


def cache_folder(root: str | os.PathLike[str] | None = None) -> Path:
    """Folder for downloads and checkpoints: `root`, else $NOISYKERNELS_DATA, else the user's cache.

    The user's cache is `$XDG_CACHE_HOME/noisykernels`, or `~/.cache/noisykernels`. Nothing is made.

    Example:
        >>> cache_folder("here").name
        'here'
    """
    if root is not None:
        return Path(root)
    if chosen := os.environ.get("NOISYKERNELS_DATA"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "noisykernels"


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a new file that takes the place of `path` if the block ends well, else vanishes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
    try:
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        WRITTEN.append(path)
    finally:
        part.unlink(missing_ok=True)


def progress_bar(total: int | None, text: str, **options: Any) -> Any:
    """A tqdm bar on standard error, or None where tqdm is not installed."""
    try:
        from tqdm import tqdm  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        return None
    pause = 0.1 if sys.stderr.isatty() else 10.0  # seconds between updates; a log wants few lines
    return tqdm(total=total, desc=text, mininterval=pause, **options)


def download_file(url: str, path: Path, sha256: str | None) -> Path:
    """Download `url` to `path`; whatever goes wrong leaves nothing behind. None: the caller checks what came.

    Raises:
        ChecksumError: the file that came is not the one expected.
        OSError: no network, no such page, connection lost, no room, ...
    """
    request = urllib.request.Request(url, headers={"User-Agent": "noisykernels"})
    digest, received = hashlib.sha256(), 0
    with urllib.request.urlopen(request, timeout=30) as reply, replacing(path) as file:
        size = int(reply.headers.get("Content-Length") or 0)
        bar = progress_bar(size or None, path.name, unit="B", unit_scale=True)
        try:
            while block := reply.read(1 << 20):
                received += len(block)
                digest.update(block)
                file.write(block)
                if bar is not None:
                    bar.update(len(block))
        finally:
            if bar is not None:
                bar.close()
        if size and received != size:
            raise OSError(f"connection lost after {received} of {size} bytes")
        if sha256 is not None and digest.hexdigest() != sha256:
            raise ChecksumError(f"{url}: expected SHA-256 {sha256}, got {digest.hexdigest()}; nothing was kept")
    return path


@contextlib.contextmanager
def progress_of(
    name: str, wanted: bool | Callable[[int, int], object], total: int
) -> Iterator[Callable[[float], object]]:
    """A function to call with the work done since: nothing, a caller's (done, total), or a bar."""
    told, done = 0, 0.0
    bar = progress_bar(total, name, unit="step") if wanted is True else None

    def advance(more: float) -> None:
        nonlocal told, done
        done += more
        while told < min(total, int(done + 1e-6)):
            told += 1
            if callable(wanted):
                wanted(told, total)
            elif bar is not None:
                bar.update()

    try:
        yield advance
    finally:
        if bar is not None:
            bar.close()

"""Files from elsewhere: the cache folder, checked downloads, and errors that say what to do."""

from __future__ import annotations

import hashlib
import os
import stat
import urllib.request
from pathlib import Path

from noisykernels._util.files import replacing
from noisykernels._util.progress import progress_bar

__all__ = [
    "ChecksumError",
    "CorruptData",
    "DataNotFound",
    "cache_folder",
    "check_private",
    "check_sha256",
    "download_file",
    "make_private",
]


class DataError(RuntimeError):
    """A data set could not be read."""


class DataNotFound(DataError):
    """A data set is in none of the places looked at; the message names each."""


class CorruptData(DataError):
    """A file of a data set is not what it should be; the message names it."""


class ChecksumError(CorruptData):
    """A file has another SHA-256 than the published one; of a download nothing is kept."""


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


def make_private(folder: Path) -> None:
    """Make a cache folder where it is missing, for its user alone; what is there stays as it is."""
    for missing in reversed([place for place in (folder, *folder.parents) if not place.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)


def check_private(error: type[Exception], *places: Path) -> None:
    """Refuses files and folders of a cache that others can write: they could put data or weights of their own there.

    Args:
        error: what is raised.
        places: a folder, and perhaps a file in it; what is not there yet is nobody's.

    Raises:
        Exception: the error; it names the place, says who can write to it, and what to do.
    """
    for place in places:
        try:
            found = place.stat()
        except FileNotFoundError:
            continue
        why = f"belongs to user {found.st_uid}" if found.st_uid not in (0, os.geteuid()) else ""
        if found.st_mode & stat.S_IWOTH:
            why = "every user of this machine may write to it"
        if why:
            raise error(f"{place}: {why}, so nothing is read from there; chmod o-w it, chown it, or use another cache")


def check_sha256(path: Path, sha256: str) -> None:
    """That a file is the published one.

    Raises:
        ChecksumError: it is another one.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != sha256:
        raise ChecksumError(f"{path}: expected SHA-256 {sha256}, got {digest.hexdigest()}; delete it")


def download_file(url: str, path: Path, sha256: str | None) -> Path:
    """Download `url` to `path`; whatever goes wrong leaves nothing behind. None: the caller checks what came.

    Raises:
        ChecksumError: the file that came is not the one expected.
        OSError: no network, no such page, connection lost, no room, ...
    """
    request = urllib.request.Request(url, headers={"User-Agent": "noisykernels"})
    digest, received = hashlib.sha256(), 0
    make_private(path.parent)
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

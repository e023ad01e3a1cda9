"""Data sets as plain tensors: Fashion-MNIST, MNIST, CIFAR-10 and scikit-learn's digits.

Files are looked for in the system's data package, then in a cache folder, then downloaded; those of the
cache and downloads must be the published ones. Nothing here unpickles, and nothing here knows about
models or noise. scikit-learn is imported only for "digits".
"""

from __future__ import annotations

import gzip
import math
import os
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from noisykernels._util.arguments import check_arguments
from noisykernels._util.checks import one_of
from noisykernels.datasets.download import (
    CorruptData,
    DataError,
    DataNotFound,
    cache_folder,
    check_private,
    check_sha256,
    download_file,
)

__all__ = ["DATASETS", "DataInfo", "info", "load"]


Bytes = npt.NDArray[np.uint8]
SYSTEM_FOLDER = Path("/usr/share/datasets")  # where Debian's dataset-* packages put their files


@dataclass(frozen=True)
class DataInfo:
    """What a training script must know about a data set.

    `shape` is that of one item (C, H, W); `load` returns `(pixel / scale - mean) / std`,
    mean and std per channel; `augment` is the published augmentation of the training set.
    """

    name: str
    shape: tuple[int, int, int]
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 255.0
    augment: Literal["crop-flip"] | None = None

    @property
    def chance(self) -> float:
        """Accuracy of a guess."""
        return 1.0 / self.classes

    @property
    def black(self) -> tuple[float, ...]:
        """Normalised value of a black pixel, per channel: what a crop beyond the border shows."""
        return tuple(-m / s for m, s in zip(self.mean, self.std, strict=True))


@dataclass(frozen=True)
class _Source:
    """Where files come from: addresses in order, SHA-256 of each file, the system's package."""

    urls: tuple[str, ...]
    files: Mapping[str, str]
    package: str | None = None


_CIFAR_MEAN, _CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)

#: Every data set that `load` knows, by name.
DATASETS: Mapping[str, DataInfo] = MappingProxyType(
    {
        "fashion-mnist": DataInfo("fashion-mnist", (1, 28, 28), 10, (0.5,), (0.5,), augment="crop-flip"),
        "mnist": DataInfo("mnist", (1, 28, 28), 10, (0.0,), (1.0,)),
        "cifar10": DataInfo("cifar10", (3, 32, 32), 10, _CIFAR_MEAN, _CIFAR_STD, augment="crop-flip"),
        "digits": DataInfo("digits", (1, 8, 8), 10, (0.0,), (1.0,), scale=16.0),
    }
)

_CIFAR_ARCHIVE = "cifar-10-binary.tar.gz"
_IDX_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
_FASHION_MNIST_SHA256 = (  # files whose MD5 are those that the authors publish
    "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
)
_MNIST_SHA256 = (
    "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
)
_SOURCES: dict[str, _Source] = {
    "fashion-mnist": _Source(
        (
            "https://fashion-mnist.s3.eu-central-1.amazonaws.com/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
        dict(zip(_IDX_FILES, _FASHION_MNIST_SHA256, strict=True)),
        package="dataset-fashion-mnist",
    ),
    "mnist": _Source(
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        dict(zip(_IDX_FILES, _MNIST_SHA256, strict=True)),
    ),
    "cifar10": _Source(
        ("https://www.cs.toronto.edu/~kriz/",),
        {_CIFAR_ARCHIVE: "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"},
    ),
}


def info(name: str) -> DataInfo:
    """The record of a data set.

    Raises:
        ValueError: unknown name.

    Example:
        >>> info("mnist").shape, info("mnist").chance
        ((1, 28, 28), 0.1)
    """
    check_arguments(info, locals())
    one_of("info", "name", name, list(DATASETS))
    return DATASETS[name]


def load(
    name: str,
    split: str = "train",
    *,
    root: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    download: bool = True,
) -> tuple[Tensor, Tensor]:
    """Read a data set into memory.

    Looked for, file by file: the system's data package, the cache folder (see `cache_folder`), the
    published address. "digits" comes with scikit-learn; every fifth image of each class is its test
    set.

    Args:
        name: one of `DATASETS`.
        split: "train" or "test".
        root: cache folder; the files of a data set lie in `root/name`.
        limit: keep only the first `limit` items: item i is row i of the split, limited or not.
        download: allow the download.

    Returns:
        inputs (N, C, H, W), float32, normalised as `info(name)` says; labels (N,), int64.

    Raises:
        DataNotFound: the data is nowhere; says where it was looked for and what to do.
        CorruptData: a file is damaged, or (`ChecksumError`) not the published one.
        ValueError: unknown name or split, or a limit below 1.

    Example:
        >>> inputs, labels = load("digits", "test", limit=5)
        >>> inputs.shape, labels.tolist()
        (torch.Size([5, 1, 8, 8]), [5, 0, 9, 8, 7])
    """
    check_arguments(load, locals())
    about = info(name)
    one_of("load", "split", split, ("train", "test"))
    if name == "digits":
        pixels, labels = _digits(split)
    else:
        folder = cache_folder(root) / name
        paths = [_find(name, file, folder, download) for file in _files(name, split)]
        read = _cifar10(paths[0], split) if name == "cifar10" else _idx_pair(about, *paths)
        pixels, labels = read
    inputs = torch.from_numpy(pixels[:limit].astype(np.float32)).div_(about.scale)
    mean, std = (torch.tensor(value).view(-1, 1, 1) for value in (about.mean, about.std))
    return inputs.sub_(mean).div_(std), torch.from_numpy(labels[:limit].astype(np.int64))


# --- finding files -------------------------------------------------------------------------------


def _files(name: str, split: str) -> list[str]:
    """Names of the files that a split needs, images before labels."""
    if name == "cifar10":
        return [_CIFAR_ARCHIVE]
    stem = "train" if split == "train" else "t10k"
    return [f"{stem}-images-idx3-ubyte.gz", f"{stem}-labels-idx1-ubyte.gz"]


def _find(name: str, file: str, folder: Path, download: bool) -> Path:
    """Path of a file of a data set, downloaded where it is missing."""
    source = _SOURCES[name]
    if (place := place_of(name, folder, file)) is not None:
        if place == folder:
            check_private(DataError, place, place / file)
            check_sha256(place / file, source.files[file])
        return place / file
    tried = [f"{place / file}: no such file" for place in (SYSTEM_FOLDER / name, folder)]
    check_private(DataError, folder)
    for url in source.urls if download else ():
        try:
            return download_file(url + file, folder / file, source.files[file])
        except (OSError, HTTPException) as error:  # no network, no such page, no room, ...
            tried.append(f"{url + file}: {error}")
    if not download:
        tried.append("download: not allowed (download=False)")
    advice = f"put {file} into {folder} (or set NOISYKERNELS_DATA or root=)"
    if source.package:
        advice = f"install the system's package (apt-get install {source.package}), or {advice}"
    places = "\n  ".join(tried)
    raise DataNotFound(f"{name}: {file} not found; tried\n  {places}\nTo mend this: {advice}.")


def is_here(name: str, split: str, root: str | os.PathLike[str] | None = None) -> bool:
    """Whether `load` would find the files of a split without a download."""
    folder = cache_folder(root) / name
    files = () if name == "digits" else _files(name, split)
    return all(place_of(name, folder, file) is not None for file in files)


def place_of(name: str, folder: Path, file: str) -> Path | None:
    """The folder that holds a file of a data set."""
    return next((place for place in (SYSTEM_FOLDER / name, folder) if (place / file).is_file()), None)


# --- reading formats -----------------------------------------------------------------------------


def _idx(path: Path, dimensions: int) -> Bytes:
    """Read a gzipped idx file: two zero bytes, type 8 (bytes), rank, sizes (big-endian), values."""
    packed = path.read_bytes()
    try:
        raw = gzip.decompress(packed)
    except (OSError, EOFError, zlib.error) as error:
        raise CorruptData(f"{path}: not a whole gzip file ({error}); delete it") from error
    head = 4 + 4 * dimensions
    if len(raw) < head or raw[:4] != bytes((0, 0, 8, dimensions)):
        raise CorruptData(f"{path}: expected an idx file of bytes of rank {dimensions}, got {raw[:4].hex()!r}")
    shape = [int(n) for n in np.frombuffer(raw, ">u4", dimensions, 4)]
    if (size := len(raw) - head) != math.prod(shape):
        raise CorruptData(f"{path}: expected {math.prod(shape)} values for {shape}, got {size}")
    return np.frombuffer(raw, np.uint8, offset=head).reshape(shape)


def _idx_pair(about: DataInfo, images: Path, labels: Path) -> tuple[Bytes, Bytes]:
    """Images (N, 1, H, W) and labels (N,) from two idx files that must fit together."""
    x, y = _idx(images, 3), _idx(labels, 1)
    if x.shape[1:] != about.shape[1:]:
        raise CorruptData(f"{images}: expected images {about.shape[1:]}, got {x.shape[1:]}")
    if len(x) != len(y):
        raise CorruptData(f"{labels}: expected {len(x)} labels as in {images}, got {len(y)}")
    if len(y) and y.max() >= about.classes:
        raise CorruptData(f"{labels}: expected labels below {about.classes}, got {y.max()}")
    return x[:, None], y


def _cifar10(path: Path, split: str) -> tuple[Bytes, Bytes]:
    """Images (N, 3, 32, 32) and labels (N,) from the archive: records of label, 3072 pixels."""
    batches = [f"data_batch_{i}" for i in range(1, 6)] if split == "train" else ["test_batch"]
    wanted = [f"cifar-10-batches-bin/{batch}.bin" for batch in batches]
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                if member.name in wanted and (content := archive.extractfile(member)):
                    found[member.name] = content.read()
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise CorruptData(f"{path}: not a whole tar.gz file ({error}); delete it") from error
    record = 1 + 3 * 32 * 32
    for name in wanted:
        size = len(found.get(name, b""))
        if size == 0 or size % record:
            raise CorruptData(f"{path}: {name}: expected records of {record} bytes, got {size}")
    rows = np.frombuffer(b"".join(found[name] for name in wanted), np.uint8).reshape(-1, record)
    if rows[:, 0].max() >= 10:
        raise CorruptData(f"{path}: expected labels below 10, got {rows[:, 0].max()}")
    return rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0]


def _digits(split: str) -> tuple[Bytes, Bytes]:
    """Images (N, 1, 8, 8), values 0 to 16, and labels (N,); a fifth of each class is for tests."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataNotFound("digits: comes with scikit-learn: pip install scikit-learn") from error
    everything = load_digits()
    labels = everything.target.astype(np.uint8)
    test = np.zeros(len(labels), bool)
    for label in range(10):
        test[np.flatnonzero(labels == label)[4::5]] = True
    keep = test if split == "test" else ~test
    return everything.images.astype(np.uint8)[keep][:, None], labels[keep]

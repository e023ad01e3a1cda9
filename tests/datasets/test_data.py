"""Data sets: where files are looked for, what is refused, what comes out. No network needed."""

from __future__ import annotations

import doctest
import functools
import gzip
import hashlib
import http.server
import io
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from noisykernels._util import files as _files
from noisykernels.datasets import ChecksumError, CorruptData, DataNotFound, download
from noisykernels.datasets import vision as data

RNG = np.random.default_rng(1)
IMAGES = RNG.integers(0, 256, (5, 28, 28), np.uint8)
LABELS = np.array([3, 0, 9, 1, 7], np.uint8)
X, Y = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"


def idx(values: np.ndarray) -> bytes:
    """The gzipped idx file of an array of bytes."""
    sizes = b"".join(n.to_bytes(4, "big") for n in values.shape)
    return gzip.compress(bytes((0, 0, 8, values.ndim)) + sizes + values.tobytes())


def names(folder: Path) -> list[str]:
    """What lies in a folder."""
    return sorted(path.name for path in folder.iterdir())


def published(folder: Path) -> None:
    """Let the files in the folder of a data set be those that its authors publish, until the end of the test."""
    if (old := data._SOURCES.get(folder.name)) is not None:
        sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
        data._SOURCES[folder.name] = data._Source(old.urls, {**old.files, **sums}, old.package)


def put(folder: Path, **changed: bytes) -> Path:
    """A folder with a tiny training set; `images` and `labels` replace a file's bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / X).write_bytes(changed.get("images", idx(IMAGES)))
    (folder / Y).write_bytes(changed.get("labels", idx(LABELS)))
    published(folder)
    return folder


def cifar(folder: Path, *, drop: str = "", short: int = 0, label: int = 4) -> tuple[Path, np.ndarray]:
    """A tiny CIFAR-10 archive of two records a batch, and its records."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = RNG.integers(0, 256, (6, 2, 3073), np.uint8)
    rows[:, :, 0] = label
    with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as archive:
        for i, name in enumerate([f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]):
            content = rows[i].tobytes()[: 2 * 3073 - short]
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            member.size = len(content)
            if name != drop:
                archive.addfile(member, io.BytesIO(content))
    published(folder)
    return folder, rows


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of this machine: an empty system folder, an empty cache, unreachable addresses."""
    monkeypatch.setattr(data, "SYSTEM_FOLDER", tmp_path / "system")
    monkeypatch.setenv("NOISYKERNELS_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    for name in ("fashion-mnist", "mnist", "cifar10"):
        serve_from(monkeypatch, name, f"{(tmp_path / 'nowhere').as_uri()}/")


def serve_from(monkeypatch: pytest.MonkeyPatch, name: str, *urls: str, **sums: str) -> None:
    """Let a data set be downloaded from `urls`, with the SHA-256 of `images` and `labels`."""
    old = data._SOURCES[name]
    files = {**old.files, **{{"images": X, "labels": Y}[k]: v for k, v in sums.items()}}
    monkeypatch.setitem(data._SOURCES, name, data._Source(urls, files, old.package))


def right_sums(folder: Path) -> dict[str, str]:
    """SHA-256 of the two files in a folder."""
    sums = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (X, Y)]
    return {"images": sums[0], "labels": sums[1]}


# --- what comes out ------------------------------------------------------------------------------


def test_normalisation_is_the_published_one(tmp_path: Path) -> None:
    pixels = torch.from_numpy(IMAGES)[:, None].double() / 255
    for name, expected in (("fashion-mnist", (pixels - 0.5) / 0.5), ("mnist", pixels)):
        put(tmp_path / "cache" / name)
        x, y = data.load(name)
        assert x.dtype == torch.float32 and y.dtype == torch.int64
        # Three float32 roundings of values of at most 1, the last result doubled by 1/std.
        torch.testing.assert_close(x.double(), expected, rtol=0, atol=4 * 2**-24)
        assert y.tolist() == LABELS.tolist()


def test_cifar10_records(tmp_path: Path) -> None:
    _, rows = cifar(tmp_path / "cache" / "cifar10")
    for split, batches in (("train", rows[:5]), ("test", rows[5:])):
        x, y = data.load("cifar10", split)
        planes = torch.from_numpy(batches.reshape(-1, 3073)[:, 1:].reshape(-1, 3, 32, 32).copy())
        mean = torch.tensor((0.4914, 0.4822, 0.4465)).view(3, 1, 1)
        std = torch.tensor((0.2023, 0.1994, 0.2010)).view(3, 1, 1)
        # Values of at most 2.8: a few float32 roundings of numbers below 4.
        torch.testing.assert_close(x, (planes.float() / 255 - mean) / std, rtol=0, atol=4 * 2**-22)
        assert y.tolist() == [4] * len(x) and len(x) == 2 * len(batches)


def test_digits_are_split_without_overlap_and_evenly() -> None:
    train, test = data.load("digits"), data.load("digits", "test")
    assert train[0].shape == (1442, 1, 8, 8) and test[0].shape == (355, 1, 8, 8)
    assert float(train[0].min()) == 0.0 and float(train[0].max()) == 1.0
    for label in range(10):  # a fifth of each class, rounded down
        count = [int((y == label).sum()) for _, y in (train, test)]
        assert count[1] == sum(count) // 5
    everything = torch.cat((train[0], test[0])).flatten(1).unique(dim=0)
    assert len(everything) == 1797  # all images of the original, none twice
    assert torch.equal(data.load("digits", "test")[0], test[0])


def test_limit_keeps_the_first_rows() -> None:
    x, y = data.load("digits")
    few, labels = data.load("digits", limit=7)
    assert torch.equal(few, x[:7]) and torch.equal(labels, y[:7])
    assert len(data.load("digits", limit=10**6)[1]) == len(y)


def test_records() -> None:
    assert [about.chance for about in data.DATASETS.values()] == [0.1] * 4
    assert data.info("fashion-mnist").black == (-1.0,)
    assert data.info("mnist").augment is None and data.info("cifar10").augment == "crop-flip"


# --- where it is looked for ----------------------------------------------------------------------


def test_order_of_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Address, cache and system package, each overruled by the next, told apart by a label."""
    served = put(tmp_path / "served", labels=idx(LABELS[::-1]))
    serve_from(monkeypatch, "fashion-mnist", f"{served.as_uri()}/", **right_sums(served))
    root = tmp_path / "root"
    with pytest.raises(DataNotFound, match="not allowed"):
        data.load("fashion-mnist", root=root, download=False)
    assert data.load("fashion-mnist", root=root)[1][0] == 7
    assert names(root / "fashion-mnist") == [X, Y]
    (served / X).unlink()
    assert data.load("fashion-mnist", root=root, download=False)[1][0] == 7  # from the cache
    put(tmp_path / "system" / "fashion-mnist")
    assert data.load("fashion-mnist", root=root)[1][0] == 3


def test_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert data.cache_folder("a") == Path("a")
    assert data.cache_folder() == tmp_path / "cache"
    monkeypatch.setenv("NOISYKERNELS_DATA", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert data.cache_folder() == Path("/xdg/noisykernels")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert data.cache_folder() == Path.home() / ".cache" / "noisykernels"


def test_missing_data_names_every_place_and_the_cure(tmp_path: Path) -> None:
    with pytest.raises(DataNotFound) as caught:
        data.load("fashion-mnist")
    for part in ("system", "cache", "nowhere", "apt-get install dataset-fashion-mnist", X):
        assert part in str(caught.value)
    with pytest.raises(DataNotFound, match="download=False"):
        data.load("mnist", "test", download=False)
    assert not (tmp_path / "cache" / "fashion-mnist" / X).exists()


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataNotFound, match="pip install scikit-learn"):
        data.load("digits")


# --- downloads -----------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Address of a web server that serves a tiny data set, and `cut/` cut short."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if not self.path.startswith("/cut/"):
                super().do_GET()
                return
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(b"only this")

        def log_message(self, *_: object) -> None:
            pass

    folder = put(tmp_path / "web")
    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        thread = threading.Thread(target=web.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{web.server_port}/"
        web.shutdown()
        thread.join()


def test_download_goes_to_the_next_address(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost connection and a missing page are passed over; no trace of them stays."""
    sums = right_sums(tmp_path / "web")
    serve_from(monkeypatch, "mnist", f"{server}cut/", f"{server}not/", server, **sums)
    assert data.load("mnist")[1].tolist() == LABELS.tolist()
    assert names(tmp_path / "cache" / "mnist") == [X, Y]


def test_wrong_checksum_leaves_nothing(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    serve_from(monkeypatch, "mnist", server, **{**right_sums(tmp_path / "web"), "labels": "0" * 64})
    with pytest.raises(ChecksumError, match=f"{Y}: expected SHA-256 0000"):
        data.load("mnist")
    assert names(tmp_path / "cache" / "mnist") == [X]


def test_interrupt_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), _files.replacing(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and names(tmp_path) == ["file"]


def test_download_without_tqdm(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    serve_from(monkeypatch, "mnist", server, **right_sums(tmp_path / "web"))
    assert len(data.load("mnist")[1]) == 5


# --- damaged files and bad arguments -------------------------------------------------------------

RAW = gzip.decompress(idx(IMAGES))
DAMAGED = {
    "empty": ({"images": b""}, "expected an idx file"),
    "no gzip": ({"images": b"<html>"}, "not a whole gzip"),
    "cut gzip": ({"images": idx(IMAGES)[:-40]}, "not a whole gzip"),
    "flipped bit": ({"images": idx(IMAGES)[:-6] + b"\0" + idx(IMAGES)[-5:]}, "not a whole gzip"),
    "cut values": ({"images": gzip.compress(RAW[:-1])}, "expected 3920 values"),
    "more values": ({"images": gzip.compress(RAW + b"\0")}, "got 3921"),
    "type": ({"images": gzip.compress(b"\0\0\r\3" + RAW[4:])}, "expected an idx file"),
    "rank": ({"images": idx(LABELS)}, "of rank 3"),
    "image size": ({"images": idx(IMAGES[:, 1:])}, r"images \(28, 28\), got \(27, 28\)"),
    "fewer labels": ({"labels": idx(LABELS[1:])}, "expected 5 labels"),
    "label 10": ({"labels": idx(LABELS + 1)}, "labels below 10, got 10"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_idx_file_is_named(tmp_path: Path, case: str) -> None:
    changed, message = DAMAGED[case]
    folder = put(tmp_path / "cache" / "mnist", **changed)
    with pytest.raises(CorruptData, match=message) as caught:
        data.load("mnist")
    assert str(folder / (X if "images" in changed else Y)) in str(caught.value)


def test_damaged_cifar10_archive_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "cifar10"
    for change, message in (
        ({"drop": "data_batch_3"}, "data_batch_3.bin: expected records of 3073 bytes, got 0"),
        ({"short": 1}, "data_batch_1.bin: expected records"),
        ({"label": 10}, "labels below 10"),
    ):
        cifar(folder, **change)  # type: ignore[arg-type]
        with pytest.raises(CorruptData, match=message):
            data.load("cifar10")
    archive = folder / "cifar-10-binary.tar.gz"
    for content in (b"<html>", archive.read_bytes()[:-3000]):
        archive.write_bytes(content)
        published(folder)
        with pytest.raises(CorruptData, match=r"not a whole tar\.gz") as caught:
            data.load("cifar10")
        assert str(archive) in str(caught.value)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="one of fashion-mnist, mnist, cifar10, digits, got 'svhn'"):
        data.load("svhn")
    with pytest.raises(ValueError, match="'train' or 'test', got 'val'"):
        data.load("digits", "val")
    with pytest.raises(ValueError, match="limit"):
        data.load("digits", limit=0)


def test_import_needs_no_optional_package() -> None:
    optional = {"sklearn", "pandas", "matplotlib"}
    code = f"import sys, noisykernels.training, noisykernels.datasets; print(*{optional} & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == ""


# The uncompressed test set as the authors publish it (their gzip files, unpacked).
PUBLISHED_TEST_SET = {
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
SYSTEM = Path("/usr/share/datasets/fashion-mnist")


@pytest.mark.skipif(not SYSTEM.exists(), reason="the package dataset-fashion-mnist is not installed")
def test_the_systems_package_holds_the_published_data(monkeypatch: pytest.MonkeyPatch) -> None:
    for file, expected in PUBLISHED_TEST_SET.items():
        content = gzip.decompress((SYSTEM / file).read_bytes())
        assert hashlib.sha256(content).hexdigest() == expected
    monkeypatch.setattr(data, "SYSTEM_FOLDER", SYSTEM.parent)
    x, y = data.load("fashion-mnist", "test", download=False)
    assert x.shape == (10_000, 1, 28, 28) and torch.bincount(y).tolist() == [1000] * 10


def test_examples() -> None:
    assert doctest.testmod(data) == (0, 3)
    assert doctest.testmod(download) == (0, 1)

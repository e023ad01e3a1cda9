"""Caches of checkpoints and of data: made for their user alone, and what is in them is what was put there."""

from __future__ import annotations

import gzip
import os
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from noisykernels.datasets import ChecksumError, DataError, download, spoken_digits, vision
from noisykernels.zoo.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from noisykernels.zoo.pretrained import trained

SETTINGS = {"model": "m", "data": "d", "seed": 0}


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def loaded(path: Path) -> list[str]:
    """What is warned of when a checkpoint is read."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_checkpoint(path, net(), SETTINGS)
    return [str(w.message) for w in caught]


@pytest.fixture(params=[0o022, 0o000, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_folders_are_made_for_their_user_alone(umask: None, tmp_path: Path) -> None:
    before = mode(tmp_path)
    save_checkpoint(tmp_path / "a" / "b" / "c.pt", net(), SETTINGS)
    assert mode(tmp_path / "a") == mode(tmp_path / "a" / "b") == 0o700 and mode(tmp_path) == before
    (tmp_path / "page").write_bytes(b"data")
    download.download_file((tmp_path / "page").as_uri(), tmp_path / "data" / "mnist" / "page", None)
    assert mode(tmp_path / "data") == mode(tmp_path / "data" / "mnist") == 0o700


def refused(error: type[Exception], read: Callable[[], object], *places: Path) -> None:
    """What each place that others can write is refused with, whoever they are; and nothing else is."""
    for place in places:
        read()
        before = mode(place)
        place.chmod(before | 0o002)
        with pytest.raises(error, match=f"^{re.escape(str(place))}: every user of this machine may write to it.*chmod"):
            read()
        place.chmod(before)
        if os.geteuid() == 0:
            os.chown(place, 12345, -1)
            with pytest.raises(error, match=f"^{re.escape(str(place))}: belongs to user 12345"):
                read()
            os.chown(place, 0, -1)
    read()


def test_a_checkpoint_that_others_can_write_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    save_checkpoint(folder / "c.pt", net(), SETTINGS)
    refused(CheckpointError, lambda: load_checkpoint(folder / "c.pt", net(), SETTINGS), folder, folder / "c.pt")


def test_nothing_is_trained_for_a_folder_that_others_can_write(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(CheckpointError, match="every user of this machine"):
        trained("mlp", "digits", epochs=1, cache=tmp_path)
    assert not [*tmp_path.iterdir()]


CHANGES = {
    "a weight": lambda c: c["state_dict"]["0.weight"].view(-1)[0].mul_(1.0000002),
    "the sign of a zero": lambda c: c["state_dict"]["1.running_mean"].neg_(),
    "a buffer": lambda c: c["state_dict"]["1.num_batches_tracked"].add_(1),
    "a type": lambda c: c["state_dict"].update({"0.bias": c["state_dict"]["0.bias"].double()}),
    "a name": lambda c: c["state_dict"].update({"0.more": c["state_dict"].pop("0.bias")}),
    "a record": lambda c: c["history"][0].update(loss=0.0),
    "weights that are none": lambda c: c.update(state_dict=[1, 2]),
    "the checksum": lambda c: c.update(sha256="0" * 64),
    "no checksum but a number": lambda c: c.update(sha256=0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_checkpoint_that_was_changed_is_refused(change: str, tmp_path: Path) -> None:
    path, model = tmp_path / "c.pt", net()
    save_checkpoint(path, model, SETTINGS, [{"loss": 0.5}])
    content: dict[str, Any] = torch.load(path, weights_only=True)
    CHANGES[change](content)
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"c\.pt: damaged: .*; delete it to train again"):
        load_checkpoint(path, model, SETTINGS)


def test_a_checkpoint_without_a_checksum_is_warned_of(tmp_path: Path) -> None:
    """The first ones had none; nothing tells whether this is one of them."""
    path = tmp_path / "c.pt"
    save_checkpoint(path, net(), SETTINGS)
    content = torch.load(path, weights_only=True)
    del content["sha256"]
    torch.save(content, path)
    (said,) = loaded(path)
    assert said.startswith(f"{path}: holds no checksum") and said.endswith("delete it to train again")


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    model = net().to(torch.bfloat16)
    save_checkpoint(tmp_path / "c.pt", model, SETTINGS, [{"loss": 0.5}])
    other = net().to(torch.bfloat16)
    assert load_checkpoint(tmp_path / "c.pt", other, SETTINGS) == [{"loss": 0.5}]
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def idx_files() -> Iterator[tuple[str, bytes]]:
    """Name and content of the files of a test set of one black image."""
    for name, head in (("images-idx3", [3, 1, 28, 28]), ("labels-idx1", [1, 1])):
        sizes = b"".join(n.to_bytes(4, "big") for n in head[1:])
        values = bytes(784 if len(head) > 2 else 1)
        yield f"t10k-{name}-ubyte.gz", gzip.compress(bytes([0, 0, 8, head[0]]) + sizes + values)


def test_data_in_a_cache_are_the_published_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the system are its administrator's."""
    monkeypatch.setattr(vision, "SYSTEM_FOLDER", tmp_path / "system")
    for place in ("system", "cache"):
        folder = tmp_path / place / "mnist"
        folder.mkdir(parents=True)
        for name, content in idx_files():
            (folder / name).write_bytes(content)
    assert vision.load("mnist", "test", root=tmp_path / "cache")[1].tolist() == [0]
    monkeypatch.setattr(vision, "SYSTEM_FOLDER", tmp_path / "nothing")
    with pytest.raises(
        ChecksumError, match=r"t10k-images-idx3-ubyte.gz: expected SHA-256 8d422c7b\w+, got \w+; delete"
    ):
        vision.load("mnist", "test", root=tmp_path / "cache")


def test_data_that_others_can_write_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where they are the published ones: others could change them after the look."""
    monkeypatch.setattr(vision, "SYSTEM_FOLDER", tmp_path / "nothing")
    monkeypatch.setattr(vision, "check_sha256", lambda *_: None)
    folder = tmp_path / "cache" / "mnist"
    folder.mkdir(parents=True)
    for name, content in idx_files():
        (folder / name).write_bytes(content)
    places = (folder, *sorted(folder.iterdir()))
    refused(DataError, lambda: vision.load("mnist", "test", root=tmp_path / "cache"), *places)


def test_nothing_is_downloaded_to_a_folder_that_others_can_write(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(vision, "SYSTEM_FOLDER", tmp_path / "nothing")
    for name, load in (("mnist", lambda: vision.load("mnist", "test", root=tmp_path)), ("spoken-digits", spoken)):
        folder = tmp_path / name
        folder.mkdir()
        folder.chmod(0o777)
        monkeypatch.setenv("NOISYKERNELS_DATA", str(tmp_path))
        with pytest.raises(DataError, match="every user of this machine"):
            load()
        assert not [*folder.iterdir()]


def spoken() -> object:
    return spoken_digits("test")

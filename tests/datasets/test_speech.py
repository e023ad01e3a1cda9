"""Spoken digits: files, the split, features, what is refused; with made-up words and without a network."""

from __future__ import annotations

import wave
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from noisykernels.datasets import (
    ChecksumError,
    CorruptData,
    DataNotFound,
    Recordings,
    log_mel,
    read_recordings,
    speech,
    spoken_digits,
    synthetic_recordings,
)
from noisykernels.datasets.speech import RATE

MADE = synthetic_recordings(takes=7)
ARCHIVE = speech._FILE


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache and an unreachable address."""
    monkeypatch.setenv("NOISYKERNELS_DATA", str(tmp_path / "cache"))
    monkeypatch.setattr(speech, "_URLS", ((tmp_path / "nowhere.zip").as_uri(),))


def folder_of(made: Recordings, folder: Path, rate: int = RATE) -> Path:
    """The recordings as wav files."""
    folder.mkdir(parents=True)
    ends = np.cumsum(made.length)
    for i, end in enumerate(ends):
        with wave.open(str(folder / f"{made.label[i]}_{made.speaker[i]}_{made.take[i]}.wav"), "wb") as sound:
            sound.setparams((1, 2, rate, 0, "NONE", ""))
            sound.writeframes(made.audio[end - made.length[i] : end].astype("<i2").tobytes())
    return folder


def zipped(folder: Path, path: Path) -> Path:
    """An archive like the published one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data-1.0/README.md", "words")
        for file in folder.iterdir():
            archive.write(file, f"data-1.0/recordings/{file.name}")
    return path


def test_all_ways_to_hold_recordings_are_equal(tmp_path: Path) -> None:
    folder = folder_of(MADE, tmp_path / "wavs")
    np.savez(tmp_path / "made.npz", **MADE._asdict())
    (folder / "notes.wav").write_bytes(b"no recording by its name")
    archive = zipped(folder, tmp_path / "made.zip")
    for split, rows in (("test", 100), ("train", 40)):
        x, y = spoken_digits(split, MADE)
        assert x.shape == (rows, 1, 64, 40) and x.dtype == torch.float32 and y.dtype == torch.int64
        for source in (folder, archive, str(tmp_path / "made.npz")):
            again, labels = spoken_digits(split, source)
            assert torch.equal(again, x) and torch.equal(labels, y)
    assert speech.digest_of(read_recordings(archive)) == speech.digest_of(MADE)
    assert speech.digest_of(MADE._replace(audio=MADE.audio + 1)) != speech.digest_of(MADE)


def test_split_is_by_the_number_of_the_recording() -> None:
    """Each word in both, none twice, and the order of items does not depend on the order of files."""
    shuffled = np.random.default_rng(1).permutation(len(MADE.label))
    ends = np.cumsum(MADE.length)
    audio = np.concatenate([MADE.audio[ends[i] - MADE.length[i] : ends[i]] for i in shuffled])
    other = Recordings(audio, *(part[shuffled] for part in MADE[1:]))
    both = [spoken_digits(split, MADE, frames=16, bands=8) for split in ("train", "test")]
    for split, (x, y) in zip(("train", "test"), both, strict=True):
        again, labels = spoken_digits(split, other, frames=16, bands=8)
        assert torch.equal(again, x) and torch.equal(labels, y)
        assert y.bincount().tolist() == [len(y) // 10] * 10
    assert len(torch.cat([x.flatten(1) for x, _ in both]).unique(dim=0)) == len(MADE.label)
    few, labels = spoken_digits("test", MADE, frames=16, bands=8, limit=13)
    assert torch.equal(few, both[1][0][:13]) and labels[:10].tolist() == list(range(10))


def test_published_recordings_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = zipped(folder_of(MADE, tmp_path / "wavs"), tmp_path / "server" / "v1.zip")
    kept = tmp_path / "cache" / "spoken-digits" / ARCHIVE
    with pytest.raises(DataNotFound, match=r"(?s)no such file.*nowhere.zip.*To mend this"):
        spoken_digits("test")
    with pytest.raises(DataNotFound, match="not allowed"):
        spoken_digits("test", download=False)
    monkeypatch.setattr(speech, "_URLS", (*speech._URLS, archive.as_uri()))
    with pytest.raises(ChecksumError, match=f"{speech._DIGEST}.*{speech.digest_of(MADE)}"):
        spoken_digits("test")
    assert not kept.exists()  # the wrong download is not kept
    monkeypatch.setattr(speech, "_DIGEST", speech.digest_of(MADE))
    x, _ = spoken_digits("test")
    assert kept.exists() and torch.equal(x, spoken_digits("test", MADE)[0])
    archive.unlink()
    assert torch.equal(spoken_digits("test", root=tmp_path / "cache")[0], x)  # from the cache
    kept.write_bytes(kept.read_bytes()[:-40])
    with pytest.raises(CorruptData, match="not readable recordings"):
        spoken_digits("test")
    assert kept.exists()  # the user's file is left alone


def test_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(DataNotFound, match="no such file"):
        spoken_digits("test", tmp_path / "none.npz")
    arrays = MADE._asdict()
    wrong = {
        "length": MADE.length + 1,
        "label": MADE.label + 1,
        "audio": MADE.audio.astype(np.int32),
        "take": MADE.take[:-1],
        "speaker": np.array([{}], dtype=object),  # would have to be unpickled
    }
    for name, value in wrong.items():
        np.savez(tmp_path / "bad.npz", **(arrays | {name: value}))
        with pytest.raises(CorruptData, match="recordings"):
            read_recordings(tmp_path / "bad.npz")
    np.savez(tmp_path / "few.npz", audio=MADE.audio)
    (tmp_path / "text.npz").write_text("text")
    (tmp_path / "text.zip").write_text("text")
    (tmp_path / "empty").mkdir()
    for name in ("few.npz", "text.npz", "text.zip", "empty"):
        with pytest.raises(CorruptData):
            read_recordings(tmp_path / name)
    np.savez(
        tmp_path / "less.npz", **(arrays | {"length": np.r_[-1, MADE.length[1:-1], MADE.length[[0, -1]].sum() + 1]})
    )
    with pytest.raises(CorruptData):
        read_recordings(tmp_path / "less.npz")
    folder_of(MADE, tmp_path / "whole")
    with zipfile.ZipFile(tmp_path / "whole.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((tmp_path / "whole").rglob("*.wav"))[:2]:
            archive.write(path, path.name)
    content = (tmp_path / "whole.zip").read_bytes()
    entry = content.find(b"PK\x01\x02")
    for at in (8, 10, 60 - entry):  # encrypted; an unknown method; damaged content
        broken = bytearray(content)
        broken[entry + at] ^= 0xFF if at < 0 else 1
        (tmp_path / "broken.zip").write_bytes(broken)
        with pytest.raises(CorruptData, match="not readable recordings"):
            read_recordings(tmp_path / "broken.zip")
    one = Recordings(MADE.audio[: MADE.length[0]], *(part[:1] for part in MADE[1:]))
    with pytest.raises(CorruptData, match="8000 Hz"):
        read_recordings(folder_of(one, tmp_path / "fast", rate=16000))


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="split"):
        spoken_digits("validation", MADE)
    with pytest.raises(ValueError, match="limit"):
        spoken_digits("test", MADE, limit=0)
    for frames, bands in ((4, 10), (300, 10), (32, 0), (32, 65)):
        with pytest.raises(ValueError, match="frames must be" if bands == 10 else "bands must be"):
            log_mel([], frames, bands)


def test_features_are_energies_on_the_mel_scale() -> None:
    """Against the definition in float64, a window at a time."""
    random = np.random.default_rng(3)
    words = [random.normal(0, 3000, n).astype(np.int16) for n in (3000, 8192, 20000)]
    frames, bands = 64, 40
    found = log_mel(words, frames, bands)
    hop, bins = 128, 512
    mel = np.linspace(0, 2595 * np.log10(1 + 4000 / 700), bands + 2)
    edges = 700 * (10 ** (mel / 2595) - 1)
    f = np.arange(bins // 2 + 1) * RATE / bins
    weight = np.stack([np.interp(f, edges[b : b + 3], [0, 1, 0], 0, 0) for b in range(bands)], 1)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(2 * hop) / (2 * hop))
    for word, features in zip(words, found, strict=True):
        size = hop * (frames + 1)
        first = max(0, (len(word) - size) // 2)
        part = word[first : first + size].astype(np.float64)
        sound = np.zeros(size)
        before = (size - len(part)) // 2
        sound[before : before + len(part)] = part
        pieces = np.stack([sound[i * hop : (i + 2) * hop] * window for i in range(frames)])
        power = np.abs(np.fft.rfft(pieces, bins)) ** 2 @ weight
        decibel = 10 * np.log10(np.maximum(power, 1e-3))
        expected = np.maximum(0, 1 + (decibel - decibel.max()) / 60)
        # float32: a power to some 1e-6 of the largest of its window, 60 dB above what counts: 1e-6 * 1e6 at worst, but
        # white noise has no such bands; 1e-3 dB is far more than is seen.
        np.testing.assert_allclose(features.numpy(), expected, atol=2e-5)
        assert features.max() == 1 and features.min() >= 0
    assert (found[0, :10] == 0).all() and (found[2] > 0).all()  # silence before a short word, none about a long one


def test_loudness_does_not_count() -> None:
    word = synthetic_recordings(takes=1).audio[:4000] // 4
    a, b = log_mel([word, 4 * word])
    torch.testing.assert_close(a, b)
    assert torch.equal(log_mel([np.zeros(3000, np.int16)]), torch.zeros(1, 64, 40))
    assert log_mel([]).shape == (0, 64, 40)


def test_made_words_can_be_told_apart() -> None:
    """The nearest of the training words is the same digit."""
    x, y = spoken_digits("train", MADE, frames=32, bands=20)
    test, labels = spoken_digits("test", MADE, frames=32, bands=20)
    nearest = torch.cdist(test.flatten(1), x.flatten(1)).argmin(1)
    assert float((y[nearest] == labels).float().mean()) > 0.8
    assert np.array_equal(MADE.audio, synthetic_recordings(takes=7).audio)

"""Spoken digits as a small keyword-spotting task: the Free Spoken Digit Dataset, as log-mel features.

Files are looked for as in `data`: a path that is given, the cache folder, the published address. The recordings are not
part of this package. Nothing here unpickles, and nothing here knows about models or noise.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
import wave
import zipfile
import zlib
from collections.abc import Iterable
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from noisykernels._util.arguments import check_arguments
from noisykernels._util.checks import in_range, one_of, shown, whole
from noisykernels.datasets.download import (
    ChecksumError,
    CorruptData,
    DataError,
    DataNotFound,
    cache_folder,
    check_private,
    download_file,
)

__all__ = ["RATE", "Recordings", "log_mel", "read_recordings", "spoken_digits", "synthetic_recordings"]


RATE = 8000  # samples a second
WORD = 8192  # samples that features are about: 1.02 s; 99 of 100 recordings are shorter
TEST_TAKES = 5  # recordings 0 to 4 of each digit and speaker, as the data set's authors say
DECIBELS = 60.0  # below the loudest of a recording is nothing

_NAME = "spoken-digits"
_FILE = "free-spoken-digit-dataset-1.0.10.zip"
_URLS = ("https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/v1.0.10.zip",)
# Of the recordings themselves (`digest_of`): an archive may be packed anew.
_DIGEST = "fbf77c5e2e80e5dacab77db4063117dc77b573a60babb054408d7d40fc993eb4"


class Recordings(NamedTuple):
    """N recordings one after the other; also the arrays of an ``.npz`` file.

    Fields: audio int16 (samples of all), length (N) in samples, label (N) 0 to 9, speaker (N) names, take (N).
    """

    audio: npt.NDArray[np.int16]
    length: npt.NDArray[np.int64]
    label: npt.NDArray[np.int64]
    speaker: npt.NDArray[np.str_]
    take: npt.NDArray[np.int64]


def spoken_digits(
    split: str = "train",
    source: str | os.PathLike[str] | Recordings | None = None,
    *,
    frames: int = 64,
    bands: int = 40,
    root: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    download: bool = True,
) -> tuple[Tensor, Tensor]:
    """Read the spoken digits into memory: ten words, six speakers, 50 recordings of each, 8 kHz.

    Recordings 0 to 4 of each word and speaker are the test set (300), the others the training set (2,700), as the
    authors of the data set have it.

    Args:
        split: "train" or "test".
        source: an ``.npz`` file with the arrays of `Recordings`; a ``.zip`` archive, or a folder, with files named
            ``7_jackson_32.wav``; or the recordings: whatever is in it is taken. None: the archive of version 1.0.10 in
            the cache folder (see `datasets.cache_folder`), downloaded where it is missing, and its recordings checked.
        frames, bands: size of the features, see `log_mel`.
        root: cache folder; the archive lies in ``root/spoken-digits``.
        limit: keep only the first items: item i is row i of the split, limited or not. Items are in the order of
            recording, speaker, word.
        download: allow the download.

    Returns:
        features (N, 1, frames, bands), float32, from 0 to 1; labels (N), int64.

    Raises:
        DataNotFound: the data is nowhere; says where it was looked for and what to do.
        CorruptData: a file (or, `ChecksumError`, a download) is damaged.
        ValueError: unknown split, bad sizes, or a limit below 1.

    Source: Free Spoken Digit Dataset (Z. Jackson and others, github.com/Jakobovski/free-spoken-digit-dataset), licensed
    CC BY-SA 4.0: name it where you show what comes from it.

    Example:
        >>> features, labels = spoken_digits("test", synthetic_recordings(takes=7), frames=32, bands=20)
        >>> features.shape, labels[:12].tolist()
        (torch.Size([100, 1, 32, 20]), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1])
    """
    check_arguments(spoken_digits, locals())
    one_of("spoken_digits", "split", split, ("train", "test"))
    _check_sizes("spoken_digits", frames, bands)
    if isinstance(source, Recordings):
        found = source
    else:
        found = _published(cache_folder(root) / _NAME, download) if source is None else read_recordings(source)
    order = np.lexsort((found.label, found.speaker, found.take))
    order = order[(found.take[order] < TEST_TAKES) == (split == "test")][:limit]
    ends = np.cumsum(found.length)
    words = [found.audio[ends[i] - found.length[i] : ends[i]] for i in order]
    return log_mel(words, frames, bands).unsqueeze(1), torch.from_numpy(found.label[order].astype(np.int64))


# --------------------------------------------------------------------------------------------------------- features


def log_mel(words: Iterable[npt.NDArray[np.int16]], frames: int = 64, bands: int = 40) -> Tensor:
    r"""Log-mel features of words of 8 kHz, of one size: the energies of bands over time, in a range of 60 dB.

    Each word is cut to, or padded with silence to, its middle 1.02 s and half a window, and cut into windows (Hann,
    half of each in the next). Bands are triangles of equal width on the mel scale, 0 to 4 kHz.

    .. math:: \max(0,\; 1 + (10 \log_{10} E - \max 10 \log_{10} E) / 60)

    Args:
        words: samples of each, int16.
        frames, bands: number of windows and of bands.

    Returns:
        (N, frames, bands), float32, from 0 to 1; silence is 0.

    Raises:
        ValueError: fewer than 8 or more than 256 frames, fewer than 1 or more than 64 bands.

    Source: the mel scale as 2595 log10(1 + f / 700).

    Example:
        >>> tone = (10000 * np.sin(2 * np.pi * 1000 * np.arange(8000) / RATE)).astype(np.int16)
        >>> features = log_mel([tone], frames=32, bands=20)
        >>> features.shape, int(features[0, 16].argmax())  # the band about 1 kHz
        (torch.Size([1, 32, 20]), 9)
    """
    check_arguments(log_mel, locals())
    _check_sizes("log_mel", frames, bands)
    hop = WORD // frames
    size, bins = hop * (frames + 1), max(512, 2 * hop)
    fixed = [np.zeros((0, size), np.float32)]
    for word in words:
        if not isinstance(word, np.ndarray) or word.ndim != 1 or word.dtype.kind not in "iu":
            raise TypeError(f"log_mel: each item of words must be a vector of int16, got {shown(word)}")
        first = max(0, (len(word) - size) // 2)
        part = word[first : first + size].astype(np.float32)
        before = (size - len(part)) // 2
        fixed.append(np.pad(part, (before, size - len(part) - before))[None])
    audio = torch.from_numpy(np.concatenate(fixed))
    window = torch.hann_window(2 * hop)
    mel = _triangles(bands, bins)
    features = [torch.zeros(0, frames, bands)]
    for part in audio.split(256) if len(audio) else ():
        power = torch.fft.rfft(part.unfold(1, 2 * hop, hop) * window, bins).abs().square()
        decibel = 10 * (power @ mel).clamp(min=1e-3).log10()
        loudest = decibel.amax((1, 2), keepdim=True)
        # What is silent throughout stays so: one count of int16 is a power beyond 1.
        features.append((1 + (decibel - loudest) / DECIBELS).clamp(min=0) * (loudest > 0))
    return torch.cat(features)


def _check_sizes(op: str, frames: int, bands: int) -> None:
    in_range(op, "frames", frames, whole(8, 256))
    in_range(op, "bands", bands, whole(1, 64))


def _triangles(bands: int, bins: int) -> Tensor:
    """Weights of the frequencies of a transform in each band: (bins / 2 + 1, bands)."""
    top = 2595 * math.log10(1 + RATE / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, bands + 2, dtype=torch.float64) / 2595) - 1)
    f = torch.linspace(0, RATE / 2, bins // 2 + 1, dtype=torch.float64)[:, None]
    rising, falling = (f - edges[:-2]) / (edges[1:-1] - edges[:-2]), (edges[2:] - f) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp(min=0).float()


# ------------------------------------------------------------------------------------------------------------ files


def read_recordings(path: str | os.PathLike[str]) -> Recordings:
    """The recordings of an ``.npz`` file, or of a ``.zip`` archive or folder of ``.wav`` files; see `spoken_digits`.

    Raises:
        DataNotFound: no such file or folder.
        CorruptData: not what its name says, or no recordings in it.
    """
    check_arguments(read_recordings, locals())
    path = Path(path)
    if not path.exists():
        raise DataNotFound(f"spoken digits: {path}: no such file or folder")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                found = Recordings(*(file[name] for name in Recordings._fields))
            found = found._replace(**{n: getattr(found, n).astype(np.int64) for n in ("length", "label", "take")})
        elif path.is_dir():
            found = _together((p.name, p.read_bytes()) for p in sorted(path.rglob("*.wav")))
        else:
            with zipfile.ZipFile(path) as archive:
                found = _together((name.rpartition("/")[2], archive.read(name)) for name in sorted(archive.namelist()))
    except (KeyError, ValueError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, wave.Error) as error:
        raise CorruptData(f"{path}: not readable recordings ({type(error).__name__}: {error})") from error
    sizes = {len(part) for part in found[1:]}
    if (
        sizes in (set(), {0})
        or len(sizes) > 1
        or found.audio.dtype != np.int16
        or found.length.min() < 0
        or found.length.sum() != len(found.audio)
        or found.label.min() < 0
        or found.label.max() > 9
    ):
        raise CorruptData(f"{path}: expected recordings of the digits 0 to 9 in int16, each with all its fields")
    return found


def _together(files: Iterable[tuple[str, bytes]]) -> Recordings:
    """The recordings of wav files; others are left out."""
    parts, about = [], []
    for name, content in files:
        named = re.fullmatch(r"(\d)_([^_]+)_(\d+)\.wav", name)
        if named is None:
            continue
        with wave.open(io.BytesIO(content)) as sound:
            if (sound.getnchannels(), sound.getsampwidth(), sound.getframerate()) != (1, 2, RATE):
                raise ValueError(f"{name}: expected one channel of 16 bits at {RATE} Hz")
            parts.append(np.frombuffer(sound.readframes(sound.getnframes()), "<i2").astype(np.int16))
        about.append((len(parts[-1]), int(named[1]), named[2], int(named[3])))
    if not parts:
        raise ValueError("no recordings")
    length, label, speaker, take = (np.array(column) for column in zip(*about, strict=True))
    return Recordings(np.concatenate(parts), length, label, speaker, take)


def _published(folder: Path, download: bool) -> Recordings:
    """The recordings of version 1.0.10, downloaded where they are missing."""
    path, tried = folder / _FILE, []
    check_private(DataError, folder)
    if not path.is_file():
        tried.append(f"{path}: no such file")
        for url in _URLS if download else ():
            try:
                download_file(url, path, None)
                break
            except (OSError, HTTPException) as error:  # no network, no such page, no room, ...
                tried.append(f"{url}: {error}")
        else:
            if not download:
                tried.append("download: not allowed (download=False)")
            places = "\n  ".join(tried)
            raise DataNotFound(
                f"spoken digits: {_FILE} not found; tried\n  {places}\n"
                f"To mend this: put it into {folder} (or set NOISYKERNELS_DATA or root=), or give a source"
            )
    check_private(DataError, folder, path)
    try:
        found = read_recordings(path)
        digest = digest_of(found)
        if digest != _DIGEST:
            raise ChecksumError(f"{path}: expected recordings of SHA-256 {_DIGEST}, got {digest}; delete it")
    except CorruptData:
        if tried:  # it has just come
            path.unlink(missing_ok=True)
        raise
    return found


def digest_of(found: Recordings) -> str:
    """SHA-256 of names and samples, in the order of the names; the same however they are packed."""
    ends, digest = np.cumsum(found.length), hashlib.sha256()
    names = [f"{d}_{s}_{t}" for d, s, t in zip(found.label, found.speaker, found.take, strict=True)]
    for i in sorted(range(len(names)), key=names.__getitem__):
        digest.update(f"{names[i]} {found.length[i]}\n".encode())
        digest.update(found.audio[ends[i] - found.length[i] : ends[i]].astype("<i2").tobytes())
    return digest.hexdigest()


def synthetic_recordings(takes: int = 10, speakers: int = 2, seed: int = 0) -> Recordings:
    """Made-up words to try things out without the data set: two tones after each other for each digit, and noise.

    Args:
        takes: recordings of each digit and speaker; the first 5 are the test set.
        speakers: number of speakers, who differ in pitch.
        seed: of lengths, pitches and noise.

    Example:
        >>> made = synthetic_recordings(takes=6)
        >>> len(made.label), made.audio.dtype
        (120, dtype('int16'))
    """
    check_arguments(synthetic_recordings, locals())
    random = np.random.default_rng(seed)
    parts, about = [], []
    for take in range(takes):
        for speaker in range(speakers):
            for digit in range(10):
                length = int(random.integers(2000, 5000))
                t = np.arange(length) / RATE
                first, second = 300 + 280 * np.array([digit, (3 * digit + 4) % 10])
                pitch = (1 + 0.05 * speaker) * random.normal(1, 0.02)
                phase = 2 * np.pi * pitch * np.where(t < t[-1] / 2, first, second) * t
                sound = 8000 * np.sin(phase) + random.normal(0, 500, length)
                parts.append(np.clip(sound, -32768, 32767).astype(np.int16))
                about.append((length, digit, f"made{speaker}", take))
    length_of, label, speaker_of, take_of = (np.array(column) for column in zip(*about, strict=True))
    return Recordings(np.concatenate(parts), length_of, label, speaker_of, take_of)

"""Data sets that are read, downloaded or made, as tensors; knows of no noise."""

from noisykernels.datasets.augment import Augment, augmentation, crop_flip
from noisykernels.datasets.byte_pairs import BytePairs
from noisykernels.datasets.download import ChecksumError, CorruptData, DataError, DataNotFound
from noisykernels.datasets.row_ids import numbered
from noisykernels.datasets.speech import Recordings, log_mel, read_recordings, spoken_digits, synthetic_recordings
from noisykernels.datasets.text import kjv
from noisykernels.datasets.vision import DATASETS, DataInfo, info, load
from noisykernels.datasets.windows import Tokens, tokens

__all__ = [
    "DATASETS",
    "Augment",
    "BytePairs",
    "ChecksumError",
    "CorruptData",
    "DataError",
    "DataInfo",
    "DataNotFound",
    "Recordings",
    "Tokens",
    "augmentation",
    "crop_flip",
    "info",
    "kjv",
    "load",
    "log_mel",
    "numbered",
    "read_recordings",
    "spoken_digits",
    "synthetic_recordings",
    "tokens",
]

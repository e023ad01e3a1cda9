"""Data sets that are read, downloaded or made, as tensors; knows of no noise."""

from noisykernels.datasets.augment import Augment, augmentation, crop_flip
from noisykernels.datasets.download import ChecksumError, CorruptData, DataError, DataNotFound
from noisykernels.datasets.speech import Recordings, log_mel, read_recordings, spoken_digits, synthetic_recordings
from noisykernels.datasets.vision import DATASETS, DataInfo, info, load

__all__ = [
    "DATASETS",
    "Augment",
    "ChecksumError",
    "CorruptData",
    "DataError",
    "DataInfo",
    "DataNotFound",
    "Recordings",
    "augmentation",
    "crop_flip",
    "info",
    "load",
    "log_mel",
    "read_recordings",
    "spoken_digits",
    "synthetic_recordings",
]

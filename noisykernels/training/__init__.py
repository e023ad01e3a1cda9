"""Training that makes networks robust, and what to watch meanwhile; knows of no study."""

from noisykernels.training.denoising import DenoisingBlock, denoising_sites, insert_denoising
from noisykernels.training.flatness import m_sharpness
from noisykernels.training.gradients import gradient_norms
from noisykernels.training.log import MetricLog
from noisykernels.training.loop import accuracy, clamp_weights, train
from noisykernels.training.recalibration import recalibrate_bn
from noisykernels.training.sam import ASAM, SAM, SAMSON
from noisykernels.training.schedules import Schedule, VarianceAware, noisy_steps
from noisykernels.training.statistics import site_statistics
from noisykernels.training.weights import bimodality, two_means, weight_statistics

__all__ = [
    "ASAM",
    "SAM",
    "SAMSON",
    "DenoisingBlock",
    "MetricLog",
    "Schedule",
    "VarianceAware",
    "accuracy",
    "bimodality",
    "clamp_weights",
    "denoising_sites",
    "gradient_norms",
    "insert_denoising",
    "m_sharpness",
    "noisy_steps",
    "recalibrate_bn",
    "site_statistics",
    "train",
    "two_means",
    "weight_statistics",
]

"""Noise in a model that exists already: sites, placement, the running mode; knows of no study."""

from noisykernels.injection.api import inject, remove, sites
from noisykernels.injection.calibration import calibrate
from noisykernels.injection.chip import programmed
from noisykernels.injection.reach import Coverage, Reach, coverage
from noisykernels.injection.setting import noise_state
from noisykernels.injection.site import Site
from noisykernels.injection.state import NoiseState
from noisykernels.injection.values import SiteDraw

__all__ = [
    "Coverage",
    "NoiseState",
    "Reach",
    "Site",
    "SiteDraw",
    "calibrate",
    "coverage",
    "inject",
    "noise_state",
    "programmed",
    "remove",
    "sites",
]

"""A mock of BrainScaleS-2: its device, layers and calibration; knows of no injection and no study."""

from noisykernels.brainscales.calibration import bss2_calibration
from noisykernels.brainscales.device import BrainScaleS2
from noisykernels.brainscales.layers import BSS2Conv2d, BSS2Linear, BSS2ReLU, ConvertingReLU

__all__ = ["BSS2Conv2d", "BSS2Linear", "BSS2ReLU", "BrainScaleS2", "ConvertingReLU", "bss2_calibration"]

"""What may be inside a contraction: devices, their draws, and how a list of them is run; knows of no model."""

from noisykernels.hardware import autograd as autograd  # registers gradients, vmap, autocast of the operators
from noisykernels.hardware.device import Arithmetic, Device, Draw
from noisykernels.hardware.macs import MacNoise
from noisykernels.hardware.memory import PCM, DifferentialPair
from noisykernels.hardware.noises import InputNoise, WeightNoise
from noisykernels.hardware.periphery import ADC, DAC, ColumnGain, ColumnOffset

__all__ = [
    "ADC",
    "DAC",
    "PCM",
    "Arithmetic",
    "ColumnGain",
    "ColumnOffset",
    "Device",
    "DifferentialPair",
    "Draw",
    "InputNoise",
    "MacNoise",
    "WeightNoise",
]

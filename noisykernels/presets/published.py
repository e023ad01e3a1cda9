"""Published settings of noise in and on weights, with the constants of their sources.

Only what the devices here do exactly as published: a setting of which a part has no device says which part that is.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from noisykernels._util.arguments import check_arguments
from noisykernels._util.checks import flag, one_of
from noisykernels.hardware.device import Device
from noisykernels.hardware.memory import PCM, DifferentialPair
from noisykernels.hardware.noises import WeightNoise

__all__ = ["afm", "aihwkit_pcm", "joshi", "memse"]

AFM: dict[str, Any] = {"training": 0.03, "evaluation": 0.05}  # of max|W|


def afm(stage: str = "evaluation", *, tiles: bool = False) -> list[Device]:
    """Additive weight noise of Analog Foundation Models: 5 % of max|W| of each output channel, in training 3 %.

    Args:
        stage: ``"training"`` or ``"evaluation"``.
        tiles: the maximum is that of a tile's part of the channel, with at most 512 inputs on each of as few tiles of
            even size as there must be.

    The recipe's clipping of weights, learned input ranges and converters are not part of it.

    Raises:
        ValueError: an unknown stage.

    Source: Analog Foundation Models (arXiv 2505.09663), IBM/analog-foundation-models: ``modifier_std_dev`` and
    ``add_gauss_channel`` of its training; ``additive_std_multiplier``, ``per_column``, ``per_tile`` of its evaluation.

    Example:
        >>> afm(), afm("training", tiles=True)
        ([WeightNoise(add=0.05, relative='channel')], [WeightNoise(add=0.03, relative='tile:512')])
    """
    one_of("afm", "stage", stage, tuple(AFM))
    return [WeightNoise(add=AFM[stage], relative="tile:512" if flag("afm", "tiles", tiles) else "channel")]


def aihwkit_pcm(time: float | Tensor = 0.0) -> list[Device]:
    """The phase-change memory that aihwkit programs by default: two devices to a weight, max|W| of the layer at 25 uS.

    Args:
        time: seconds since the first reading, 20 s after programming.

    Programming, drift and 1/f noise of reading. aihwkit's converters, its noise of outputs and the compensation of
    drift by a measured output are not part of it; ``PCM(time, compensate=True)`` compensates by what devices conduct.

    Source: ``PCMLikeNoiseModel`` of IBM's aihwkit, after Nandakumar et al. 2019 and Joshi et al. 2020.

    Example:
        >>> aihwkit_pcm(3600.0)[0].time
        tensor(3600., dtype=torch.float64)
    """
    return [PCM(time)]


def joshi(eta: float | Tensor) -> list[Device]:
    """Weight noise relative to the largest weight of each layer, as hardware-aware training adds it: eta max|W|.

    Args:
        eta: the share; the source walks it, with 100 draws for each.

    Source: Joshi et al. 2020 (Nature Communications 11, 2473).

    Example:
        >>> joshi(0.05)
        [WeightNoise(add=0.05, relative='layer')]
    """
    check_arguments(joshi, locals())
    return [WeightNoise(add=eta, relative="layer")]


def memse(sigma: float | Tensor = 0.01) -> list[Device]:
    """Pairs of conductances up to 0.1, on 128 levels, each with noise; what SAMSON's group simulates.

    Args:
        sigma: standard deviation of a conductance; its studies go from 0.001 to 0.1.

    Source: MemSE (Kern et al. 2022, arXiv 2205.01707), by the group of SAMSON (arXiv 2211.11561).

    Example:
        >>> memse()[0].levels, float(memse()[0].g_max)
        (128, 0.1)
    """
    check_arguments(memse, locals())
    return [DifferentialPair(sigma, g_max=0.1, levels=128)]

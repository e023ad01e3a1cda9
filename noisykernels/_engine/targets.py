"""Walking over what is inside contractions: noise of the weight, and hardware of which a parameter is walked.

The noise of a weight is a direction at the output of its contraction, ``(W + A dW) x = W x + A (dW x)``: levels part
there, as those of noise on the output do. Hardware is not linear in its parameter: the contraction is run for each
value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from noisykernels.hardware.device import Device
from noisykernels.hardware.execute import checked
from noisykernels.hardware.noises import WeightNoise
from noisykernels.injection.kinds import CONTRACTION_KINDS
from noisykernels.injection.site import Site
from noisykernels.noise.description import Noise

__all__ = ["Varied", "Walked", "as_weight_noise", "has_weight"]


@dataclass(frozen=True, eq=False)
class Varied:
    """Hardware of a contraction that depends on a parameter.

    Args:
        make: the list of devices for a value of the parameter.
        name: of the parameter, with its unit.
        larger: ``"better"``: more of it is closer to the exact contraction; ``"worse"``.
    """

    make: Callable[[float], Sequence[Device] | Device]
    name: str
    larger: str

    def scaled(self, value: float) -> tuple[Device, ...]:
        """The devices for a value."""
        return checked("walk_parameter", self.make(value))  # type: ignore[arg-type]


Walked = Noise | WeightNoise | Varied  # what a walk is over


def as_weight_noise(op: str, noise: Noise | WeightNoise) -> WeightNoise:
    """Noise for weights from what a walk is given; levels must be numbers, as they serve weights of any shape."""
    if not isinstance(noise, WeightNoise):
        noise = WeightNoise.of(noise)
    if any(level is not None and level.dim() > 0 for level in (noise.noise.add, noise.noise.mul)):
        raise ValueError(f"{op}: levels of noise on weights must be numbers, got {noise!r}")
    return noise


def has_weight(site: Site) -> bool:
    """Whether a site is that of a contraction with a weight."""
    return site.kind in CONTRACTION_KINDS

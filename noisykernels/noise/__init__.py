"""What noise is: `Noise`, its streams and numbers, and the operators that draw it; knows of no layer and no model."""

from noisykernels.noise import autograd as autograd  # registers gradients, vmap, autocast of the operators
from noisykernels.noise.description import Noise, per_channel, per_draw, per_row
from noisykernels.noise.functional import eps, perturb, perturb_relu_max_pool2d
from noisykernels.noise.include import get_include
from noisykernels.noise.ranges import Ranges
from noisykernels.noise.tokens import TokenRows
from noisykernels.noise.units import row_scale

__all__ = [
    "Noise",
    "Ranges",
    "TokenRows",
    "eps",
    "get_include",
    "per_channel",
    "per_draw",
    "per_row",
    "perturb",
    "perturb_relu_max_pool2d",
    "row_scale",
]

"""Number formats, sums in a defined order, and what they cost; knows of no model."""

from noisykernels.arithmetic import autograd as autograd  # registers gradients, vmap, autocast of the operators
from noisykernels.arithmetic.cost import CostModel
from noisykernels.arithmetic.formats import FORMATS, USUAL, FixedFormat, FloatFormat, Format, as_format, quantize
from noisykernels.arithmetic.order import ORDERS, random_order
from noisykernels.arithmetic.serial import Serial

__all__ = [
    "FORMATS",
    "ORDERS",
    "USUAL",
    "CostModel",
    "FixedFormat",
    "FloatFormat",
    "Format",
    "Serial",
    "as_format",
    "quantize",
    "random_order",
]

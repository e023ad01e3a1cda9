"""Walking noise: one site noisy at a time, over a grid or by a search; knows of no command line."""

from noisykernels.walking.mixed import Mixed, walk_mixed
from noisykernels.walking.parameter import PARAMETERS, walk_parameter

__all__ = ["PARAMETERS", "Mixed", "walk_mixed", "walk_parameter"]

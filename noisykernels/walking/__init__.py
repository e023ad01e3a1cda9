"""Walking noise: one site noisy at a time, over a grid or by a search; knows of no command line."""

from noisykernels._engine.compute import Compute
from noisykernels._engine.store import StoreError
from noisykernels._engine.workers import RayExecutor
from noisykernels.walking.mixed import Mixed, walk_mixed
from noisykernels.walking.parameter import PARAMETERS, walk_parameter
from noisykernels.walking.strategies import Search
from noisykernels.walking.walks import walk

__all__ = [
    "PARAMETERS",
    "Compute",
    "Mixed",
    "RayExecutor",
    "Search",
    "StoreError",
    "walk",
    "walk_mixed",
    "walk_parameter",
]

"""Sites, the places of a forward pass at which noise can enter: what they are called and which are meant.

A site is one call of an operation. Its name, and so its noise, depends on nothing but the module that calls and how
often that module has called the same operation before.
"""

from __future__ import annotations

import fnmatch
import functools
from dataclasses import dataclass

__all__ = ["Site", "is_input", "kind_of", "matches"]


@dataclass(frozen=True)
class Site:
    """One site of a model: `name` is `module.path:kind#k`, or `input`; `index` counts in order.

    `row_dim` is the dimension that counts rows; None: there is no such dimension.
    """

    name: str
    index: int
    id: int
    kind: str
    shape: tuple[int, ...]
    row_dim: int | None


def is_input(name: str) -> bool:
    """Whether a site is an argument of the model: `input`, or `input#1` and so on."""
    return name.partition("#")[0] == "input"


def kind_of(name: str) -> str:
    """Kind of the operation at a site.

    Example:
        >>> kind_of("block.conv1:conv2d#0")
        'conv2d'
    """
    return "input" if is_input(name) else name.rpartition(":")[2].rpartition("#")[0]


@functools.lru_cache(maxsize=2**16)
def matches(name: str, pattern: str) -> bool:
    """Whether a site's name, its name without the number of the call, or its module's path fits.

    Example:
        >>> [matches("conv1:conv2d#0", p) for p in ("conv1", "*:conv2d", "conv1:conv2d#0", "conv2")]
        [True, True, True, False]
    """
    without_number = name.rpartition("#")[0] or name
    path = without_number.rpartition(":")[0]
    names = (name, without_number, path)
    return any(n and (n == pattern or fnmatch.fnmatchcase(n, pattern)) for n in names)


# As torch.compiler.assume_constant_result does it, which would import the whole compiler.
matches._dynamo_marked_constant = True  # type: ignore[attr-defined]

"""Sites, the places of a forward pass at which noise can enter: names, numbers, which are chosen.

A site is one call of an operation. Its name, and so its noise, depends on nothing but the module
that calls and how often that module has called the same operation before.
"""

from __future__ import annotations

import fnmatch
import functools
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from noisykernels.contraction import Device
from noisykernels.noise import Noise

__all__ = ["Placement", "Site", "hashed_id", "matches", "site_ids"]

SITE_LIMIT = 2**24


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


def hashed_id(name: str) -> int:
    """24 bits of BLAKE2b of a site's name."""
    digest = hashlib.blake2b(name.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") % SITE_LIMIT


# As torch.compiler.assume_constant_result does it, which would import the whole compiler.
hashed_id._dynamo_marked_constant = True  # type: ignore[attr-defined]


def site_ids(names: Iterable[str]) -> dict[str, int]:
    """Numbers of a model's sites: the hashed name; of two equal ones the later name moves up.

    Example:
        >>> site_ids(["input", "conv1:conv2d#0"])
        {'conv1:conv2d#0': 4577211, 'input': 11703183}
    """
    ids: dict[str, int] = {}
    taken: set[int] = set()
    for name in sorted(names):
        number = hashed_id(name)
        while number in taken:
            number = (number + 1) % SITE_LIMIT
        taken.add(number)
        ids[name] = number
    return ids


@dataclass(frozen=True)
class Placement:
    """Which noise enters where: what `inject` was asked for, and whether layers use their own."""

    noise: Noise | dict[str, Noise] | None = None
    where: Any = None
    normalize_to_input_size: bool = False
    repeats: int | dict[str, int] = 1
    in_training: bool = True
    in_eval: bool = True
    row_dims: dict[str, int] = field(default_factory=dict)
    layers_own: bool = True  # False: noisy layers are sites like any other
    hardware: Any = None  # devices, a dict of them, or a function: what is inside contractions

    def at(self, name: str, module: nn.Module) -> Noise | None:
        """The noise of the site with this name, whose innermost module is `module`."""
        if self.noise is None or not self._on(module):
            return None
        if isinstance(self.noise, dict):
            return next((n for pattern, n in self.noise.items() if matches(name, pattern)), None)
        where = self.where
        if callable(where) and not isinstance(where, type):
            return where(name, module)
        if where is None:
            return self.noise
        choices = where if isinstance(where, list | tuple) else (where,)
        for choice in choices:
            if isinstance(choice, str):
                if matches(name, choice):
                    return self.noise
            elif isinstance(module, choice) and not is_input(name):
                return self.noise
        return None

    def hardware_at(self, name: str, module: nn.Module) -> Sequence[Device] | None:
        """The devices of the contraction with this name, whose innermost module is `module`."""
        if self.hardware is None or not self._on(module):
            return None
        if isinstance(self.hardware, dict):
            return next((h for pattern, h in self.hardware.items() if matches(name, pattern)), None)
        return self.hardware(name, module) if callable(self.hardware) else self.hardware

    def _on(self, module: nn.Module) -> bool:
        return self.in_training if module.training else self.in_eval

    def repeats_at(self, name: str) -> int:
        """How often the noisy operation at a site is repeated and averaged."""
        if isinstance(self.repeats, int):
            return self.repeats
        return next((r for pattern, r in self.repeats.items() if matches(name, pattern)), 1)

    def row_dim_at(self, name: str) -> int | None:
        """The dimension that counts rows at a site, where the caller has said so."""
        return next((d for pattern, d in self.row_dims.items() if matches(name, pattern)), None)

    def patterns(self) -> list[str]:
        """All name patterns in use."""
        choices = self.where if isinstance(self.where, list | tuple) else (self.where,)
        tables = (t for t in (self.noise, self.repeats, self.row_dims, self.hardware) if isinstance(t, dict))
        return [*(c for c in choices if isinstance(c, str)), *(name for t in tables for name in t)]

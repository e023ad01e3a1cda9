"""Which noise and which hardware enter where: what `inject` was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from noisykernels.hardware.device import Device
from noisykernels.injection.site import is_input, matches
from noisykernels.noise.description import Noise

__all__ = ["SILENT", "Placement"]


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
            found: Noise | None = where(name, module)
            return found
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
        found: Sequence[Device] | None = self.hardware(name, module) if callable(self.hardware) else self.hardware
        return found

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


SILENT = Placement(layers_own=False)  # no noise anywhere, of a model's own noisy layers neither

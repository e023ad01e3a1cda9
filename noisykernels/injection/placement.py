"""Which noise and which hardware enter where: what `inject` was asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from noisykernels.hardware.device import Device
from noisykernels.injection.site import Choice, Names, is_input, meets
from noisykernels.noise.description import Noise

__all__ = ["SILENT", "Placement"]


@dataclass(frozen=True)
class Placement:
    """Which noise enters where: what `inject` was asked for, and whether layers use their own.

    Sites are said by a `Choice`: by the engine as exact names, by users as words that `understood` has looked up.
    """

    noise: Noise | dict[Choice, Noise] | None = None
    where: Any = None  # None, a choice, a type, a list of these, or a function
    normalize_to_input_size: bool = False
    repeats: int | dict[Choice, int] = 1
    in_training: bool = True
    in_eval: bool = True
    row_dims: dict[Choice, int] = field(default_factory=dict)
    layers_own: bool = True  # False: noisy layers are sites like any other
    hardware: Any = None  # devices, a dict of them, or a function: what is inside contractions
    input_dim: int = 0  # that counts the rows of the model's arguments

    def understood(self, names: Names) -> Placement:
        """The placement with every word of a user's as what it means in a model of these names."""

        def meant(value: Any) -> Any:
            if isinstance(value, dict):
                return names.table(value)
            if isinstance(value, list | tuple) and not isinstance(value, Choice):
                return tuple(meant(v) for v in value)
            text = value.text if isinstance(value, Choice) else value
            return names.meant(text) if isinstance(text, str) else value

        hardware = meant(self.hardware) if isinstance(self.hardware, dict) else self.hardware
        return replace(
            self, noise=meant(self.noise), where=meant(self.where), repeats=meant(self.repeats),
            row_dims=meant(self.row_dims), hardware=hardware,
        )  # fmt: skip

    @property
    def silent(self) -> bool:
        """Whether nothing enters anywhere, but for what layers have of their own."""
        return self.noise is None and self.hardware is None

    def at(self, name: str, module: nn.Module) -> Noise | None:
        """The noise of the site with this name, whose innermost module is `module`, where it is on."""
        if self.noise is None:
            return None
        if isinstance(self.noise, dict):
            noise: Noise | None = _found(self.noise, name, None)
            return noise
        where = self.where
        if callable(where) and not isinstance(where, type):
            found: Noise | None = where(name, module)
            return found
        if where is None:
            return self.noise
        for choice in _each(where):
            if isinstance(choice, Choice):
                if meets(name, *choice):
                    return self.noise
            elif isinstance(module, choice) and not is_input(name):
                return self.noise
        return None

    def hardware_at(self, name: str, module: nn.Module) -> Sequence[Device] | None:
        """The devices of the contraction with this name, whose innermost module is `module`, where they are on."""
        if self.hardware is None:
            return None
        if isinstance(self.hardware, dict):
            found: Sequence[Device] | None = _found(self.hardware, name, None)
        else:
            found = self.hardware(name, module) if callable(self.hardware) else self.hardware
        return found

    def on(self, module: nn.Module) -> bool:
        """Whether noise and hardware enter in the mode that a module is in."""
        return self.in_training if module.training else self.in_eval

    def repeats_at(self, name: str) -> int:
        """How often the noisy operation at a site is repeated and averaged."""
        return self.repeats if isinstance(self.repeats, int) else int(_found(self.repeats, name, 1))

    def row_dim_at(self, name: str) -> int | None:
        """The dimension that counts rows at a site, where the caller has said so."""
        dim: int | None = _found(self.row_dims, name, None)
        return dim

    def choices(self) -> list[Choice]:
        """All sites in use by name or pattern."""
        tables = (t for t in (self.noise, self.repeats, self.row_dims, self.hardware) if isinstance(t, dict))
        return [*(c for c in _each(self.where) if isinstance(c, Choice)), *(choice for t in tables for choice in t)]


def _each(where: Any) -> Iterator[Any]:
    """A choice alone as one of several."""
    if isinstance(where, list | tuple) and not isinstance(where, Choice):
        yield from where
    else:
        yield where


def _found(table: dict[Choice, Any], name: str, otherwise: Any) -> Any:
    """Of a table, the value of the first choice that means a site."""
    for choice, value in table.items():
        if meets(name, *choice):
            return value
    return otherwise


SILENT = Placement(layers_own=False)  # no noise anywhere, of a model's own noisy layers neither

"""Which noise and which hardware enter where: what `inject` was asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from noisykernels._util.checks import shown
from noisykernels.hardware.device import Device
from noisykernels.hardware.execute import checked
from noisykernels.injection.kinds import LEAVES
from noisykernels.injection.site import (
    CACHE,
    PARTS,
    Choice,
    Names,
    closeness,
    kind_of,
    meets,
    path_of,
    picked,
    whole_of,
)
from noisykernels.injection.values import Change, is_noise
from noisykernels.noise.description import Noise

__all__ = ["SILENT", "Asked", "Placement"]


class Asked:
    """A user's function ``(name, module) -> what enters, or None``, which is asked once for each site."""

    def __init__(self, function: Callable[[str, nn.Module], Any], check: Callable[[str, Any], None]) -> None:
        self.function, self.check = function, check
        self.answers: dict[str, Any] = {}

    def __call__(self, name: str, module: nn.Module) -> Any:
        """The answer for a site whose innermost module this is."""
        if torch.compiler.is_compiling():  # a graph would be guarded on the table
            return self.function(name, module)
        if name not in self.answers:
            answer = self.function(name, module)
            if answer is not None:
                self.check(name, answer)
            self.answers[name] = answer
        return self.answers[name]


def _check_noise(name: str, answer: Any) -> None:
    if not is_noise(answer):
        raise TypeError(
            f"inject: where must give a Noise, a function (x, draw) -> x or None, got {shown(answer)} for {name!r}"
        )


def _check_devices(_: str, answer: Any) -> None:
    checked("inject", answer)


@dataclass(frozen=True)
class Placement:
    """Which noise enters where: what `inject` was asked for, and whether layers use their own.

    Sites are said by a `Choice`: by the engine as exact names, by users as words that `understood` has looked up.
    """

    noise: Noise | Change | dict[Choice, Noise | Change] | None = None
    where: Any = None  # None, a choice, a list of these, or a function
    normalize_to_input_size: bool = False
    repeats: int | dict[Choice, int] = 1
    in_training: bool = True
    in_eval: bool = True
    row_dims: dict[Choice, int] = field(default_factory=dict)
    layers_own: bool = True  # False: noisy layers are sites like any other
    hardware: Any = None  # devices, a dict of them, or a function: what is inside contractions
    input_dim: int = 0  # that counts the rows of the model's arguments
    column: bool = False  # whether a bias is one more column of its array
    detail: bool = False  # whether scores, softmax and weighted sum of attention are sites
    outputs: frozenset[str] = frozenset()  # paths of modules whose results are asked for
    pairs: dict[str, tuple[tuple[Choice, Any], ...]] = field(init=False, repr=False, compare=False)  # of all tables

    def __post_init__(self) -> None:
        """Keeps tables as pairs beside them: compiled code cannot look into a dict whose keys are choices."""
        tables = {"noise": self.noise, "hardware": self.hardware, "repeats": self.repeats, "row_dims": self.row_dims}
        pairs = {name: tuple(table.items()) for name, table in tables.items() if isinstance(table, dict) and table}
        object.__setattr__(self, "pairs", pairs)

    def understood(self, names: Names) -> Placement:
        """The placement with every word of a user's as what it means in a model of these names."""

        def meant(value: Any) -> Any:
            if isinstance(value, dict):
                return names.table(value)
            if isinstance(value, list | tuple):
                return tuple(meant(v) for v in value)
            word = value.word if isinstance(value, Choice) else value
            return names.meant(word) if isinstance(word, str | type) else value

        where, hardware = meant(self.where), self.hardware
        if callable(where) and not isinstance(where, Asked):
            where = Asked(where, _check_noise)
        if isinstance(hardware, dict):
            hardware = meant(hardware)
        elif callable(hardware) and not isinstance(hardware, Asked | Device):
            hardware = Asked(hardware, _check_devices)
        made = replace(
            self, noise=meant(self.noise), where=where, repeats=meant(self.repeats), row_dims=meant(self.row_dims),
            hardware=hardware,
        )  # fmt: skip
        return replace(made, outputs=made.asked_outputs(names.modules))

    def asked_outputs(self, modules: Mapping[str, Any]) -> frozenset[str]:
        """Paths of the modules that were asked for, but for those layers whose result is that of their own site."""
        found = set()
        for argument, choice in self.choices():
            if argument not in ("where", "noise"):
                continue
            if choice.form in ("path", "type"):
                found |= {path for path, depth in choice.inside.items() if depth == 0}
            elif ":module" in choice.text:
                path, _, last = choice.text.rpartition(":")
                exact = path if last.partition("#")[0] == "module" else None  # with or without its number
                found |= {p for p in modules if p == exact or closeness(f"{p}:module#0", choice) is not None}
            if choice.text == CACHE or choice.text.startswith(f"{CACHE}:"):
                found.add(CACHE)
        return frozenset(p for p in found if p not in modules or LEAVES.get(type(modules[p])) is None)

    @property
    def silent(self) -> bool:
        """Whether nothing enters anywhere, but for what layers have of their own."""
        return not ("noise" in self.pairs or "hardware" in self.pairs) and self.noise is None and self.hardware is None

    def at(self, name: str, module: nn.Module) -> Noise | Change | None:
        """The noise of the site with this name, whose innermost module is `module`, where it is on."""
        if not self.detail and kind_of(name) in PARTS:  # which are no sites
            return None
        if "noise" in self.pairs:
            noise: Noise | Change | None = picked(self.pairs["noise"], name, None)
            return noise
        if self.noise is None or isinstance(self.noise, dict):
            return None
        where = self.where
        by_name = kind_of(name) == "module" or path_of(name) == CACHE
        if (where is None or callable(where)) and by_name:  # only meant by its name
            return None
        if callable(where):
            found: Noise | Change | None = where(name, module)
            return found
        return self.noise if where is None or any(meets(name, choice) for choice in _each(where)) else None

    def hardware_at(self, name: str, module: nn.Module) -> Sequence[Device] | None:
        """The devices of the contraction with this name, whose innermost module is `module`, where they are on: of a
        product of attention, those of its own name or of the attention's."""
        whole = whole_of(name)
        if "hardware" in self.pairs:
            found: Sequence[Device] | None = picked(self.pairs["hardware"], name, None, whole)
            return found
        if self.hardware is None or isinstance(self.hardware, dict):
            return None
        if callable(self.hardware):
            asked: Sequence[Device] | None = self.hardware(name, module)
            return self.hardware(whole, module) if asked is None and whole is not None else asked
        devices: Sequence[Device] = self.hardware
        return devices

    def on(self, module: nn.Module) -> bool:
        """Whether noise and hardware enter in the mode that a module is in."""
        return self.in_training if module.training else self.in_eval

    def repeats_at(self, name: str) -> int:
        """How often the noisy operation at a site is repeated and averaged."""
        if "repeats" in self.pairs:
            return int(picked(self.pairs["repeats"], name, 1))
        return self.repeats if isinstance(self.repeats, int) else 1

    def row_dim_at(self, name: str) -> int | None:
        """The dimension that counts rows at a site, where the caller has said so."""
        dim: int | None = picked(self.pairs.get("row_dims", ()), name, None)
        return dim

    def means(self, name: str) -> bool:
        """Whether this very site was asked for by its name, with or without its number."""
        return any(choice.form in ("name", "stem") and meets(name, choice) for _, choice in self.choices())

    def choices(self) -> Iterator[tuple[str, Choice]]:
        """All words in use, and the argument of `inject` that each stands in."""
        if self.where is not None and not callable(self.where):
            yield from (("where", choice) for choice in _each(self.where))
        tables = {"noise": self.noise, "repeats": self.repeats, "row_dims": self.row_dims, "hardware": self.hardware}
        for argument, table in tables.items():
            if isinstance(table, dict):
                yield from ((argument, choice) for choice in table)


def _each(where: Any) -> Iterator[Choice]:
    """A choice alone as one of several."""
    yield from where if isinstance(where, list | tuple) else (where,)


SILENT = Placement(layers_own=False)  # no noise anywhere, of a model's own noisy layers neither

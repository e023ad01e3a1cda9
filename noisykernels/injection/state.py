"""An injected model: its state, and where it is found. Knows nothing of how sites are chosen, found or run."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from noisykernels._util.warning import warn_user
from noisykernels.injection.block import Block
from noisykernels.injection.doors import (
    Door,
    door_of,
)
from noisykernels.injection.memory import Array
from noisykernels.injection.placement import Placement
from noisykernels.injection.rows import Rows
from noisykernels.injection.shards import Whole
from noisykernels.injection.site import Site
from noisykernels.injection.spot import Spot
from noisykernels.injection.tokens import Place
from noisykernels.injection.written_out import Role
from noisykernels.nn.modules import NoisyLayer
from noisykernels.noise.tokens import TokenRows

__all__ = [
    "KEY",
    "NoiseState",
    "has_noise",
    "injected_in",
    "is_injected",
    "state_of",
    "tell_idle",
]

KEY = "_noise_state"
FindPlaces = Callable[[nn.Module, Any, Any, dict[str, Any]], dict[str, Place | str]]


class NoiseState(nn.Module):
    """Seed, draws, rows and level of an injected model, and its placement of noise.

    The tensors are non-persistent buffers: they may change between compiled calls without a recompilation. Held beside
    the model's submodules, not among them, so that the model's length, children and keys stay as they were.
    """

    seed: Tensor | None
    draws: Tensor | None
    rows: Tensor | None
    next_row: Tensor | None
    level: Tensor | None
    calls: Tensor | None

    def __init__(
        self,
        placement: Placement,
        arrays: str,
        parameters: tuple[str, ...],
        draws_noise: bool,
        for_rows: bool,
        root: str = "",
    ) -> None:
        super().__init__()
        self.detail = placement.detail  # of whatever is placed later, and so are the results that are sites
        self.outputs = placement.outputs
        self.token_places: dict[str, dict[str, Place | str]] = {}  # by the path that is called: where sites hold tokens
        self.wholes: dict[Any, Whole] = {}  # by the shapes of arguments: the whole of a model that is shared out
        self.without_rows: list[tuple[str, nn.Module, bool]] = []  # traced sites; whether they are alone, not mixed
        self.placement = placement
        self.arrays = arrays  # what an array is
        self.root = root  # the part at which names begin; empty: the model
        self.parameters_of_forward = parameters
        self.draws_noise = draws_noise  # False: nothing in the model can draw
        self.for_rows = for_rows  # False: chips alone, the same for all rows, as far as is known
        self.needs_mode = False  # layers draw, or attention is taken apart, wherever noise is placed
        self.gone = False  # the noise is out again, of what was taken out of the model in between too
        self.told_of_part = False  # that it was called by itself
        self.others = False  # have put a forward of theirs on a part of the model
        self.announced = False  # submodules tell the running mode of themselves
        self.site_ids: dict[str, int] = {}
        self.places: dict[str, Rows | None] = {}  # where the traced sites hold their rows
        self.operands: dict[str, Array | None] = {}  # which one of traced products is an array
        self.roles: dict[str, Role] = {}  # which calls are parts of attentions that the model writes out
        self.left: set[str] = set()  # sites that are left out
        self.told_of_ranks = False  # whether a warning has told that all processes number their rows from 0
        self.traced: list[Site] = []
        self.carriers: dict[str | int, bool] | None = None  # which arguments carry the rows, if traced
        self.unchecked = True  # no forward has shown yet whether all that was asked for meets a site
        self.tokens: TokenRows | None = None  # where the rows of the block are tokens
        self.find_places: FindPlaces | None = None  # which runs the model
        self.find_whole: Callable[..., Whole] | None = None
        self.met_in_parts: dict[str, None] = {}  # sites of parts that were called before the model was
        self.block: Block | None = None  # the block of `noise_state` that is entered
        self.instead: Callable[..., Any] | None = None  # what the next call of the model runs in place of its forward
        self.holder: weakref.ref[nn.Module] | None = None  # the model; of a copy it is not known
        self.parts: dict[str, Tensor] = {}  # next_row of parts that are called by themselves
        # next_row: where rows count on from call to call; calls: the number of the next call, where each has its noise
        for name in ("seed", "draws", "rows", "next_row", "level", "calls"):
            self.register_buffer(name, None, persistent=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "holder": None}  # type: ignore[no-untyped-call]

    @property
    def is_alive(self) -> bool:
        """Whether the model that was injected is known to be, and to be it still."""
        return not self.gone and self.holder is not None and self.holder() is not None

    @property
    def placement(self) -> Placement:
        """What `inject` was asked for."""
        return self._placement

    @placement.setter
    def placement(self, placement: Placement) -> None:
        if not placement.outputs <= self.outputs:
            self.token_places, self.wholes = {}, {}  # in which these are not looked for
        self.outputs |= placement.outputs
        if placement.detail is not self.detail or placement.outputs != self.outputs:
            placement = replace(placement, detail=self.detail, outputs=self.outputs)
        self._placement = placement
        self.spots: dict[str, Spot] = {}  # what is known of sites under it
        self.follows: dict[str, bool] = {}  # by the path that is called: whether noise enters where tokens are followed
        # Whether several draws cannot run as one batch, since what enters at a value without rows differs between them.
        self.each_draw = any(
            (alone and placement.at(name, module) is not None) or placement.hardware_at(name, module) is not None
            for name, module, alone in self.without_rows
        )

    def look(self, model: nn.Module) -> None:
        """Takes note of the layers of a model that need the mode also where nothing is placed."""
        self.needs_mode = any(
            isinstance(m, NoisyLayer | nn.MultiheadAttention) or getattr(type(m), "noiseless", False)
            for m in model.modules()
        )

    def set_block(self, told: dict[str, Any]) -> dict[str, Any]:
        """Begins or ends a block of `noise_state`, which says this by name; gives back what was said before."""
        before = {name: getattr(self, name) for name in told}
        for name, value in told.items():
            setattr(self, name, value)
        return before

    def tell_of_part(self, door: Door | None) -> None:
        """Warns once that a part is called by itself, where not all of the noise can enter."""
        if self.told_of_part or door is None or torch.compiler.is_compiling():
            return
        self.told_of_part = True
        path = door.path or self.root
        warn_user(
            f"an injected model's part {path!r} is called outside of the model's forward, as by encode() or "
            "generate(): noise enters in its modules, but not at operations that no module runs, nor on the model's "
            "input"
        )

    @property
    def quiet(self) -> bool:
        """Whether the forward is that of the original class: nothing is placed, drawn or repeated."""
        buffers = self._buffers  # read at every forward, of models that may be small
        return (
            self._placement.silent
            and not self.needs_mode
            and buffers["draws"] is None
            and buffers["level"] is None
            and buffers["next_row"] is None  # rows are counted
        )


def is_injected(model: Any) -> bool:
    """Whether noise was injected into a model, of which it may be a copy."""
    return isinstance(model, nn.Module) and KEY in model.__dict__


def has_noise(model: nn.Module) -> bool:
    """Whether noise may enter in a model or in parts of it: by injection, or by layers that draw."""
    return any(is_injected(m) or isinstance(m, NoisyLayer) for m in model.modules())


def tell_idle(op: str, model: nn.Module, **options: Any) -> None:
    """Warns of options of noise that a model without noise was given beside it."""
    if (given := [f"{name}=" for name, value in options.items() if value is not None]) and not has_noise(model):
        warn_user(f"{op}: {' and '.join(given)} changes nothing: the model has no noise; inject() it first")


def state_of(model: nn.Module) -> NoiseState:
    """The state of an injected model, or of that which a module is a part of."""
    door = door_of(model)
    assert door is not None
    state: NoiseState = door.state
    return state


def injected_in(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The injected models in a module (itself, what it wraps, parts that were injected each by itself), or that which
    it is a part of, of each of which this is the name and one module."""
    found: dict[int, tuple[str, nn.Module]] = {}
    for path, module in model.named_modules():
        if (door := door_of(module)) is not None:
            found.setdefault(id(door.state), (path, module))
    return list(found.values())

"""An injected model: the class that it gets, its state, and how its forward begins.

Knows nothing of how sites are chosen or found.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from noisykernels.injection.arrays import Arrays
from noisykernels.injection.block import Block
from noisykernels.injection.leaves import LEAVES, Leaf, Swapped, is_leaf, leaf_class
from noisykernels.injection.met import check_met, warn_of_parameters, warn_of_values
from noisykernels.injection.mode import ForwardKey, Record, SiteMode
from noisykernels.injection.parameters import Parameters
from noisykernels.injection.placement import Placement
from noisykernels.injection.site import Site, path_of
from noisykernels.injection.spot import Spot
from noisykernels.nn.modules import NoisyLayer
from noisykernels.nn.signals import enter_model, enter_module, leave_module, run_quietly
from noisykernels.noise.arguments import seed_tensor

__all__ = [
    "Enter",
    "Injected",
    "NoiseState",
    "announce",
    "begin",
    "check_asked",
    "following",
    "hear",
    "injected_class",
    "is_part",
    "mark",
    "original_class",
    "silence",
    "state_of",
    "unmark",
]


class NoiseState(nn.Module):
    """Seed, draws, rows and level of an injected model, and its placement of noise.

    The tensors are non-persistent buffers: they follow the model to its device, never enter its
    state dict, and may change between compiled calls without a recompilation. Held beside the
    model's submodules, not among them, so that the model's length, children and keys stay as they
    were.
    """

    seed: Tensor | None
    draws: Tensor | None
    rows: Tensor | None
    next_row: Tensor | None
    level: Tensor | None

    def __init__(
        self, placement: Placement, arrays: str, parameters: tuple[str, ...], draws_noise: bool, for_rows: bool
    ) -> None:
        super().__init__()
        self.placement = placement
        self.arrays = arrays  # what an array is
        self.parameters_of_forward = parameters
        self.draws_noise = draws_noise  # False: nothing in the model can draw
        self.for_rows = for_rows  # False: chips alone, the same for all rows, as far as is known
        self.needs_mode = False  # layers draw, or attention is taken apart, wherever noise is placed
        self.announced = False  # submodules tell the running mode of themselves
        self.site_ids: dict[str, int] = {}
        self.row_dims: dict[str, int | None] = {}  # of the traced sites
        self.traced: list[Site] = []
        self.carriers: dict[str | int, bool] | None = None  # which arguments carry the rows, if traced
        self.unchecked = True  # no forward has shown yet whether all that was asked for meets a site
        self.block: Block | None = None  # the block of `noise_state` that is entered
        for name in ("seed", "draws", "rows", "next_row", "level"):  # next_row: where rows count on from call to call
            self.register_buffer(name, None, persistent=False)

    @property
    def placement(self) -> Placement:
        """What `inject` was asked for."""
        return self._placement

    @placement.setter
    def placement(self, placement: Placement) -> None:
        self._placement = placement
        self.spots: dict[str, Spot] = {}  # what is known of sites under it

    def look(self, model: nn.Module) -> None:
        """Takes note of the layers of a model that need the mode also where nothing is placed."""
        self.needs_mode = any(
            isinstance(m, NoisyLayer | nn.MultiheadAttention) or getattr(type(m), "noiseless", False)
            for m in model.modules()
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

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        level = self.level
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if level is not None and self.level is not None:  # moved, but not rounded to a half type
            self.level = level.to(self.level.device)
        return self


class Injected(Swapped):
    """What the class of an injected model adds to the original one."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """A new object, such as a slice of an nn.Sequential, is of the original class."""
        return original_class(cls)(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The original class's, inside the mode that injects."""
        model: Any = self
        state = state_of(model)
        if state.quiet:
            if state.announced:
                hear(model, state, False)
            return run_quietly(super().forward, args, kwargs)  # type: ignore[misc]
        mode, args, kwargs = begin(model, state, args, kwargs)
        if mode.compiled or not state.unchecked:
            with mode:
                return super().forward(*args, **kwargs)  # type: ignore[misc]
        with mode, following(model, state, mode):
            out = super().forward(*args, **kwargs)  # type: ignore[misc]
        check_first(model, state, mode)
        return out

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        model: Any = self
        state_of(model)._apply(fn)
        return super()._apply(fn, recurse)  # type: ignore[misc]

    @staticmethod
    def _stand_in(original: type) -> type:
        return injected_class(original)


_CLASSES: dict[type, type] = {}


def injected_class(original: type) -> type:
    """The class of an injected model that was of class `original`: the same one every time."""
    if original not in _CLASSES:
        names = {"__module__": original.__module__, "__doc__": original.__doc__}
        _CLASSES[original] = type(original.__name__, (Injected, original), names)
    return _CLASSES[original]


def original_class(injected: type) -> type:
    """The counterpart of `injected_class`."""
    original: type = injected.__bases__[1]
    return original


class Enter:
    """Forward pre-hook of a submodule: its path becomes the name of the sites that follow."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, module: nn.Module, args: Any) -> None:
        """Tells the running mode."""
        enter_module(self.path, module)


class Leave:
    """Forward hook of a submodule: back to its parent."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        """Tells the running mode."""
        leave_module(self.path)


def mark(model: nn.Module) -> None:
    """Tells every submodule its path, by which others see that it is part of an injected model."""
    for path, module in model.named_modules():
        if path:
            module.__dict__["_noise_path"] = path


def unmark(model: nn.Module) -> None:
    """The counterpart of `mark`."""
    for module in model.modules():
        module.__dict__.pop("_noise_path", None)


def is_part(module: nn.Module) -> bool:
    """Whether a module is part of an injected model."""
    return "_noise_path" in module.__dict__


def announce(model: nn.Module) -> None:
    """Makes every submodule tell the running mode when it begins and ends."""
    for module in model.modules():
        path = module.__dict__.get("_noise_path")
        if path is None:
            continue
        if is_leaf(module):
            own: Any = type(module)
            kind = LEAVES[own]
            module.__dict__["_noise_leaf"] = path, kind, f"{path}:{kind}", f"{path}:{kind}#0"
            module.__class__ = leaf_class(own)
        else:
            module.register_forward_pre_hook(Enter(path))
            module.register_forward_hook(Leave(path), always_call=True)


def silence(model: nn.Module) -> None:
    """The counterpart of `announce`."""
    for module in model.modules():
        # A class of somebody else's on top of the leaf's stays: without the note, the leaf's does nothing.
        if module.__dict__.pop("_noise_leaf", None) is not None and type(module).__bases__[0] is Leaf:
            module.__class__ = original_class(type(module))
        for hooks, ours in ((module._forward_pre_hooks, Enter), (module._forward_hooks, Leave)):
            for number in [n for n, hook in hooks.items() if isinstance(hook, ours)]:
                del hooks[number]
                module._forward_hooks_always_called.pop(number, None)


def hear(model: nn.Module, state: NoiseState, wanted: bool) -> None:
    """Announces a model's submodules, or silences them, where that is not so yet; compiled code leaves them alone."""
    if state.announced is not wanted and not torch.compiler.is_compiling():
        (announce if wanted else silence)(model)
        state.announced = wanted


def state_of(model: nn.Module) -> NoiseState:
    """The state of an injected model."""
    state: NoiseState = model.__dict__["_noise_state"]
    return state


def following(model: nn.Module, state: NoiseState, mode: SiteMode) -> contextlib.AbstractContextManager[Any]:
    """Where hardware is placed: has a mode note of which parameters the weights of its forward are made."""
    if state.placement.hardware is None or torch._C._functorch.peek_interpreter_stack() is not None:
        return contextlib.nullcontext()
    mode.chip.parameters = Parameters(model)
    return mode.chip.parameters


def check_first(model: nn.Module, state: NoiseState, mode: SiteMode) -> None:
    """After the first forward in which noise is on: what was asked for has met a site, and values that take noise."""
    if not state.placement.on(model):
        return
    if not state.traced:
        check_asked(model, state.placement, mode.names(), mode)
    warn_of_values(mode.valueless)
    state.unchecked = False


def check_asked(model: nn.Module, placement: Placement, names: Sequence[str], mode: SiteMode) -> None:
    """Refuses words and functions that met nothing in a forward, of which these are the sites, and tells of parameters
    that hardware did not meet."""
    modules = {m.__dict__["_noise_path"]: m for m in model.modules() if is_part(m)} | {"": model}
    own = {n for n in names if placement.layers_own and isinstance(modules.get(path_of(n)), NoisyLayer)}
    placed = []  # hardware
    for name in names:
        if name not in own and (module := modules.get(path_of(name))) is not None:
            placement.at(name, module)
            if name in mode.arrays and placement.hardware_at(name, module):
                placed.append(name)
    check_met(placement, names, mode.arrays, own.__contains__)
    if mode.chip.parameters is not None:
        large = [name for name, p in model.named_parameters() if p.dim() > 1]
        warn_of_parameters(placement, large, mode.chip.read, placed)


def begin(
    model: nn.Module,
    state: NoiseState,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    record: Record | None = None,
    make: Callable[..., SiteMode] = SiteMode,
) -> tuple[SiteMode, tuple[Any, ...], dict[str, Any]]:
    """Repeats the input for every draw, puts noise on it, and makes the mode of this forward, of class `make`."""
    enter_model()
    hear(model, state, True)
    placement = state.placement
    names = state.parameters_of_forward
    positional = [names[i] if i < len(names) else i for i in range(len(args))]
    given: dict[Any, Any] = {**dict(zip(positional, args, strict=True)), **kwargs}
    dim = placement.input_dim
    tensors = {n: a for n, a in given.items() if isinstance(a, Tensor) and a.dim() > dim}
    carriers = state.carriers if record is None else None
    carrying = {n: a for n, a in tensors.items() if carriers is None or carriers.get(n, False)}
    if not carrying:
        raise RuntimeError(
            f"an injected model needs a tensor argument whose dimension {dim} counts the rows, got "
            f"{', '.join(type(a).__name__ for a in given.values()) or 'nothing'}"
        )
    data = next(iter(carrying.values()))
    draws = state.draws if record is None else None
    count = 1 if draws is None else draws.shape[0]
    if count != 1:
        if len(tensors) > 1 and (carriers is None or any(n not in carriers for n in tensors)):
            raise RuntimeError(
                f"the model takes {len(tensors)} tensors, and which of them carry the rows is not "
                "known: give inject() an example_input with all of them to run several draws"
            )
        carrying = {n: torch.cat([a] * count, dim) for n, a in carrying.items()}
    first = next(iter(carrying.values()))
    seed = state.seed
    if seed is None and record is None and (state.draws_noise or not placement.silent):
        seed = seed_tensor("noise_state", None, first.device)
    level = state.level
    if level is not None and level.dim() == 1 and level.shape[0] * count != first.shape[dim]:
        raise RuntimeError(
            f"noise_state: level must be 0-d or one for each of the {first.shape[dim] // count} rows, "
            f"got {level.shape[0]}"
        )
    rows = None if record is not None else _rows(state, data, dim)
    key = ForwardKey(seed, draws, rows, first.shape[dim], level)
    mode = make(placement, key, model, state.site_ids, state.row_dims, record)
    mode.chip = Arrays(state.arrays)
    if record is None and not mode.compiled:  # a graph would be guarded on the table
        mode.spots = state.spots
    floats = [n for n, a in tensors.items() if a.is_floating_point()]
    in_order = [n for n in names if n in floats] + [n for n in floats if n not in names]
    for number, n in enumerate(in_order):
        if n in carrying:
            name = "input" if number == 0 else f"input#{number}"
            mode.inputs.append(name)
            carrying[n] = mode.at(name, mode.noise_at(name), carrying[n], row_dim=dim)
    given.update(carrying)
    kwargs = {n: a for n, a in given.items() if n in kwargs}
    return mode, tuple(given[n] for n in positional), kwargs


def _rows(state: NoiseState, data: Tensor, dim: int) -> Tensor | None:
    """The ids of the rows of a call, which are along a dimension of the data; None: their places in the batch."""
    compiled = torch.compiler.is_compiling()
    if not compiled and state.block is not None:
        state.block.check_thread()
    if state.next_row is not None:
        if not compiled and torch._C._current_graph_task_id() != -1:
            raise RuntimeError(
                "noise_state: rows='advance' would count a forward twice that a checkpoint computes again; give rows"
            )
        count = data.shape[dim]
        rows = state.next_row + torch.arange(count, device=state.next_row.device)
        state.next_row.add_(count)
        return rows
    repeating = state.rows is None and state.seed is not None and state.for_rows
    if repeating and not compiled and state.block is not None:
        state.block.see(data)
    return state.rows

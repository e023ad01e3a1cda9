"""How an injected model runs: what its modules tell the mode, and how a forward of the model or of a part begins."""

from __future__ import annotations

import contextlib
import functools
import inspect
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.utils import _pytree as pytree

from noisykernels.injection.arrays import Arrays
from noisykernels.injection.caches import check_cache, with_cache, without
from noisykernels.injection.descent import Descent
from noisykernels.injection.doors import (
    ABOVE,
    Door,
    door_of,
    give_back,
    keep_path,
    original,
    parameters_of,
    paths_of,
    settle,
    stand_in,
    standing_in,
)
from noisykernels.injection.drawing import ForwardKey
from noisykernels.injection.eagerly import eagerly, whole
from noisykernels.injection.first_forward import check_first, warn_of_written_out
from noisykernels.injection.keys import holds_draws, key_of
from noisykernels.injection.leaves import LEAVES, is_leaf, leaf_forward
from noisykernels.injection.mode import SiteMode
from noisykernels.injection.parameters import Parameters
from noisykernels.injection.record import Record
from noisykernels.injection.routed import follow_tokens
from noisykernels.injection.shards import in_group, parallel_of
from noisykernels.injection.site import CACHE, path_of
from noisykernels.injection.state import KEY, NoiseState, is_injected, state_of
from noisykernels.injection.tokens import ROUTED, encodes, tokens_of
from noisykernels.nn.signals import (
    enter_model,
    enter_module,
    give_output,
    is_quiet,
    leave_module,
    refuse_another,
    run_quietly,
    running,
    within_model,
)
from noisykernels.noise.arguments import seed_tensor

__all__ = [
    "announce",
    "begin",
    "called",
    "following",
    "hear",
    "hold",
    "instead",
    "mark",
    "result_of",
    "set_up",
    "silence",
    "take_down",
]


def set_up(model: nn.Module, state: NoiseState) -> None:
    """Makes a model an injected one, which tells of its submodules as soon as something is placed."""
    model.__dict__[KEY] = state
    state.holder = weakref.ref(model)
    mark(model, state, ABOVE if state.root else "")
    stand_in(model, _told_forward)


def take_down(model: nn.Module) -> None:
    """The counterpart of `set_up`; of a copied part of an injected model, too."""
    if (state := model.__dict__.pop(KEY, None)) is not None:
        state.gone = True
    for module in model.modules():
        give_back(module, for_good=True)
        unhook(module)


def mark(model: nn.Module, state: NoiseState, prefix: str) -> None:
    """Tells every submodule its path, by which others see that it is part of an injected model."""
    state.gone = False
    whole = prefix == (ABOVE if state.root else "")
    for path, module in paths_of(model, root=state.root) if whole else paths_of(model, prefix):
        settle(module, path, state)


def _taken_apart(module: nn.Module, args: Any) -> None:
    """Forward pre-hook of an encoder layer, which without any runs as one fused operation where compiled."""


def unhook(module: nn.Module) -> None:
    """Takes the hooks of `_taken_apart` away."""
    hooks = module._forward_pre_hooks
    for number in [n for n, hook in hooks.items() if hook is _taken_apart]:
        del hooks[number]


def announce(model: nn.Module) -> None:
    """Makes every submodule tell the running mode when it begins and ends."""
    # What makes a weight is asked for it from outside too, by optimizers and whoever looks at it.
    makers = {id(m) for p in model.modules() if isinstance(p, ParametrizationList) for m in p.modules()}
    for module in model.modules():
        door = door_of(module)
        if door is None or is_injected(module):
            continue
        if is_leaf(module):
            own: Any = type(module)
            kind = LEAVES[own]
            door.leaf = door.path, kind, f"{door.path}:{kind}", f"{door.path}:{kind}#0"
            stand_in(module, _leaf_forward)
        else:
            stand_in(module, _told_forward)
        door.parameters, door.opens = parameters_of(module), id(module) not in makers
        door.state.others |= door.own is not None
        if isinstance(module, nn.TransformerEncoderLayer) and _taken_apart not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_taken_apart)


def silence(model: nn.Module) -> None:
    """The counterpart of `announce`."""
    for module in model.modules():
        if not is_injected(module):
            give_back(module, for_good=False)
        unhook(module)


def hold(model: nn.Module, state: NoiseState) -> None:
    """Puts back what others have taken away with a forward of theirs that was there before the noise, and lets parts be
    called by themselves in a model that is silent but for draws."""
    stand_in(model, _told_forward)
    if state.announced and state.others:
        announce(model)
    if not state.quiet:
        hear(model, state, True)


def hear(model: nn.Module, state: NoiseState, wanted: bool) -> None:
    """Announces a model's submodules, or silences them, where that is not so yet; compiled code leaves them alone."""
    if state.announced is not wanted and not torch.compiler.is_compiling():
        (announce if wanted else silence)(model)
        state.announced = wanted


def _kept(made: Callable[..., Any]) -> Callable[..., Any]:
    """Remembers the methods of classes, so that compiled code knows them again; what is on an object has its own."""
    kept = functools.cache(made)

    @functools.wraps(made)
    def make(plain: Callable[..., Any]) -> Callable[..., Any]:
        return kept(plain) if inspect.isfunction(plain) else made(plain)  # type: ignore[no-any-return]

    return make


@_kept
def _told_forward(plain: Callable[..., Any]) -> Callable[..., Any]:
    """The forward of a module while its model is injected, in the place of `plain`."""

    @standing_in(plain)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        door = door_of(self)
        if door is None:  # the noise is out, and others have brought this back
            return original(self)(*args, **kwargs)
        if torch.compiler.is_dynamo_compiling():
            keep_path()
        within = not is_injected(self)
        if within and not torch.compiler.is_compiling() and (mode := running()) is not None:  # asked once
            mode.enter(door.path, self)
            try:
                out = type(self).forward(self, *args, **kwargs) if door.own is None else door.own(*args, **kwargs)
                return give_output(door.path, out) if door.path in door.state.placement.outputs else out
            finally:
                mode.leave(door.path)
        if not within or not within_model():
            return _outermost(self, door, args, kwargs)
        if is_quiet() and not door.state.quiet:
            refuse_another()
        enter_module(door.path, self)
        try:
            out = original(self)(*args, **kwargs)
            return give_output(door.path, out) if door.path in door.state.placement.outputs else out
        finally:
            leave_module(door.path)

    return forward


@_kept
def _leaf_forward(plain: Callable[..., Any]) -> Callable[..., Any]:
    """The same of a layer of torch's."""
    return leaf_forward(plain, _told_forward(plain))


def _outermost(module: nn.Module, door: Door, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The forward of a model, or of a part of it that is called by itself, inside the mode that injects."""
    state = door.state
    if state.instead is not None and is_injected(module):
        run, state.instead = state.instead, None
        return run(*args, **kwargs)
    if state.quiet:
        if state.announced and is_injected(module):
            hear(module, state, False)
        return run_quietly(original(module), args, kwargs)
    given = (*args, *kwargs.values())
    if torch.compiler.is_dynamo_compiling():
        from torch._dynamo.comptime import comptime  # noqa: PLC0415  # loading the compiler takes a second

        comptime(_WHOLE)
    if not door.opens or any(isinstance(a, fx.Proxy) for a in given):  # which is traced: there are no values
        return original(module)(*args, **kwargs)
    if not is_injected(module) and not any(
        isinstance(a, Tensor) and a.dim() > state.placement.input_dim for a in given
    ):
        return original(module)(*args, **kwargs)  # it has no rows; what it calls may have
    if state.each_draw and state.draws is not None and state.draws.shape[0] > 1:
        return _each_draw(module, state, args, kwargs)
    if torch.compiler.is_compiling():
        mode, args, kwargs = begin(module, state, args, kwargs)
        with mode:
            return result_of(mode, module, args, kwargs)
    with eagerly():
        mode, args, kwargs = begin(module, state, args, kwargs)
        below = mode.belonging or contextlib.nullcontext()
        if not state.unchecked or not is_injected(module):
            with below, mode:
                out = result_of(mode, module, args, kwargs)
            if state.unchecked:  # of a part, before the model is called: its sites may be met in no whole call
                state.met_in_parts |= dict.fromkeys(mode.names())
        else:
            descent = Descent() if state.detail and not state.traced else None
            with below, mode, following(module, state, mode), descent or contextlib.nullcontext():
                out = result_of(mode, module, args, kwargs)
            if descent is not None:
                warn_of_written_out(descent)
            check_first(module, state, mode)
        mode.tell_left_out()
        return out


_WHOLE = whole(_outermost.__code__)


def _find_places(module: nn.Module, state: NoiseState, path: str, args: Any, kwargs: dict[str, Any]) -> None:
    """Finds where the values of a model, or of a part with this path, hold tokens, where that is not known yet."""
    if path in state.token_places:
        return
    if torch.compiler.is_compiling():
        raise RuntimeError("noise_state: where values hold tokens is found by a call of the model uncompiled: make one")
    assert state.find_places is not None
    with eagerly():
        state.token_places[path] = state.find_places(module, state, args, kwargs)


def _follows(module: nn.Module, state: NoiseState, path: str) -> bool:
    """Whether noise enters where tokens are followed, in a call of the model or of a part with this path."""
    if path not in state.follows:
        modules = {door.path: m for m in module.modules() if (door := door_of(m)) is not None} | {path: module}
        routed = [name for name, place in state.token_places[path].items() if place == ROUTED]
        state.follows[path] = any(state.placement.at(n, modules[path_of(n)]) is not None for n in routed)
    if state.follows[path] and torch.compiler.is_compiling():
        raise RuntimeError(
            "noise_state: tokens that a model picks out, as those of its experts, are not followed in compiled code: "
            "leave their sites out with where=..., or run the model uncompiled"
        )
    return state.follows[path]


@contextlib.contextmanager
def instead(model: nn.Module, run: Callable[..., Any]) -> Iterator[None]:
    """Has `run` take the place of an injected model's forward when it is called next within the block: with all that
    others have around it, such as hooks that gather weights."""
    state = state_of(model)
    state.instead = run
    try:
        with eagerly():
            yield
    finally:
        state.instead = None


def called(model: nn.Module, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A call of an injected model in which `run` takes the place of its forward."""
    with instead(model, run):
        return model(*args, **kwargs)


def result_of(mode: SiteMode, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What the outermost forward gives within its mode, with noise where the module's result was asked for."""
    out, path = original(module)(*args, **kwargs), mode.modules[-1][0]
    if mode.lent is not None:
        out = without(out, mode.lent)
    return mode.give(path, out) if path in mode.placement.outputs else out


def _each_draw(model: Any, state: NoiseState, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The forward of every draw by itself, their results one after the other along the rows."""
    draws, seed = state.draws, state.seed
    assert draws is not None
    if state.tokens is not None:
        raise RuntimeError(
            "noise_state: something enters at a value that is the same for all rows, of which draws cannot run as one "
            "batch: give draws one by one where rows are TokenRows"
        )
    # Every draw is of the same call.
    counts = [(t, t.clone()) for t in (state.next_row, state.calls, *state.parts.values()) if t is not None]
    dim, found = state.placement.input_dim, []
    try:
        if seed is None:
            state.seed = seed_tensor("noise_state", None, draws.device)
        for number in range(draws.shape[0]):
            state.draws = draws.narrow(0, number, 1)
            for t, first in counts:
                t.copy_(first)
            found.append(model.forward(*args, **kwargs))
    finally:
        state.draws, state.seed = draws, seed

    def joined(*parts: Any) -> Any:
        if not isinstance(parts[0], Tensor) or parts[0].dim() == 0:
            return parts[0]
        return torch.cat(parts, min(dim, parts[0].dim() - 1))

    return pytree.tree_map(joined, *found)


def following(model: nn.Module, state: NoiseState, mode: SiteMode) -> contextlib.AbstractContextManager[Any]:
    """Where hardware is placed: has a mode note of which parameters the weights of its forward are made."""
    if state.placement.hardware is None or torch._C._functorch.peek_interpreter_stack() is not None:
        return contextlib.nullcontext()
    mode.chip.parameters = Parameters(model)
    return mode.chip.parameters


def begin(
    model: nn.Module,
    state: NoiseState,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    record: Record | None = None,
    make: Callable[..., SiteMode] = SiteMode,
    follow: bool = False,
) -> tuple[SiteMode, tuple[Any, ...], dict[str, Any]]:
    """Repeats the input for every draw, puts noise on it, and makes the mode of this forward, of class `make`. `follow`
    has tokens followed, as they are where noise needs it.

    `model` may be a part that is called by itself: its sites have the names that they have in the whole.
    """
    enter_model()
    door, part = door_of(model), not is_injected(model)
    if state.tokens is not None and record is None:
        called = door.path if part and door is not None else ""
        _find_places(model, state, called, args, kwargs)
        follow = make is SiteMode and _follows(model, state, called)
    if part:
        state.tell_of_part(door)
    else:
        hear(model, state, True)
    placement, dim = state.placement, state.placement.input_dim
    names = door.parameters if part and door is not None else state.parameters_of_forward
    positional = [names[i] if i < len(names) else i for i in range(len(args))]
    given: dict[Any, Any] = {**dict(zip(positional, args, strict=True)), **kwargs}
    tensors = {n: a for n, a in given.items() if isinstance(a, Tensor) and a.dim() > dim}
    carriers = state.carriers if record is None and not part else None
    carrying = {n: a for n, a in tensors.items() if carriers is None or carriers.get(n, False)}
    if not carrying:  # as where other arguments are given than in the example
        carrying = {n: a for n, a in tensors.items() if carriers is None or n not in carriers}
    if not carrying:
        raise RuntimeError(
            f"an injected model needs a tensor argument whose dimension {dim} counts the rows, got "
            f"{', '.join(type(a).__name__ for a in given.values()) or 'nothing'}"
        )
    data = next(iter(carrying.values()))
    draws = state.draws if record is None else None
    count = 1 if draws is None else draws.shape[0]
    if count != 1 and not holds_draws(state, data.shape[dim], count, part):
        if len(tensors) > 1 and (carriers is None or any(n not in carriers for n in tensors)):
            raise RuntimeError(
                f"the model takes {len(tensors)} tensors, and which of them carry the rows is not "
                "known: give inject() an example_input with all of them to run several draws"
            )
        carrying = {n: torch.cat([a] * count, dim) for n, a in carrying.items()}
    first = next(iter(carrying.values()))
    check_cache(given, first.shape[dim], state.draws if record is None else None)
    lent = with_cache(model, given, names) if CACHE in placement.outputs and not part else {}
    given, kwargs = given | lent, kwargs | lent
    path = door.path if part and door is not None else None
    key = key_of(state, data, first, dim, path) if record is None else ForwardKey(None, None, None, first.shape[dim])
    mode = make(placement, key, model, state.site_ids, state.places, record)
    if record is None and in_group():
        every = given | carrying
        mode.share(parallel_of(model, state, tuple(every[n] for n in positional), {n: every[n] for n in kwargs}))
    if state.tokens is not None and record is None:
        of_draw = first.shape[dim] // count
        mode.tokens = tokens_of(state.tokens, given, encodes(model), of_draw, count, first.device)
        mode.token_places = state.token_places[path or ""]
        mode.begin_tokens()
    follow_tokens(mode, follow, given | carrying, encodes(model))
    mode.lent = next(iter(lent.values()), None)
    mode.chip = Arrays(state.arrays)
    mode.owner, mode.operands, mode.left, mode.roles = state, state.operands, state.left, state.roles
    if record is None and not mode.compiled:  # a graph would be guarded on the table
        mode.spots = state.spots
    if part and door is not None:
        mode.modules = []
        mode.enter(door.path, model)
    else:
        if state.root:
            mode.modules = [(ABOVE, model)]
        _noise_on_inputs(mode, names, tensors, carrying, dim)
    given.update(carrying)
    kwargs = {n: a for n, a in given.items() if n in kwargs}
    return mode, tuple(given[n] for n in positional), kwargs


def _noise_on_inputs(
    mode: SiteMode, names: tuple[str, ...], tensors: dict[Any, Tensor], carrying: dict[Any, Tensor], dim: int
) -> None:
    """Puts noise on those arguments of the model that are sites."""
    floats = [n for n, a in tensors.items() if a.is_floating_point() and not str(n).endswith("attention_mask")]
    in_order = [n for n in names if n in floats] + [n for n in floats if n not in names]
    for number, n in enumerate(in_order):
        if n in carrying:
            name = "input" if number == 0 else f"input#{number}"
            mode.inputs[name] = n
            carrying[n] = mode.at(name, mode.noise_at(name), carrying[n], row_dim=dim)

"""Noise in any existing model: `inject` and `remove`, the list of its `sites`, and `noise_state`, which sets seed, draws, rows.

The model's class is replaced by a subclass that runs the forward under a `SiteMode`; nothing else about the model changes, and
`remove` puts the class back.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.utils.checkpoint as torch_checkpoint
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode

from noisykernels.noise import Noise, ids_tensor, seed_tensor
from noisykernels.sites import KINDS, Key, Placement, Site, SiteMode, enter_module, leave_module, site_ids, without_draws

__all__ = ["NoiseState", "inject", "noise_state", "remove", "sites"]


class NoiseState(nn.Module):
    """Seed, draws and rows of an injected model, and its placement of noise.

    The tensors are non-persistent buffers: they follow the model to its device, never enter its state dict, and may change
    between compiled calls without a recompilation. Held beside the model's submodules, not among them, so that the length,
    the children and the keys of the model stay as they were.
    """

    seed: Tensor | None
    draws: Tensor | None
    rows: Tensor | None

    def __init__(self, placement: Placement) -> None:
        super().__init__()
        self.placement = placement
        self.site_ids: dict[str, int] = {}
        self.traced: list[Site] = []
        self.expanded: tuple[int | str, ...] | None = None  # arguments of the forward that carry the batch, if traced
        for name in ("seed", "draws", "rows"):
            self.register_buffer(name, None, persistent=False)


class _Injected:
    """What the class of an injected model adds to the original one."""

    _noise_state: NoiseState

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        state = self.__dict__["_noise_state"]
        mode, args, kwargs = _begin(self, state, args, kwargs)  # type: ignore[arg-type]
        with mode:
            return super().forward(*args, **kwargs)  # type: ignore[misc]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self.__dict__["_noise_state"]._apply(fn)
        return super()._apply(fn, recurse)  # type: ignore[misc]

    def __reduce_ex__(self, protocol: Any) -> Any:  # the class is made at run time, so pickling names the original one
        reduced = super().__reduce_ex__(protocol)
        return (_rebuild, (type(self).__bases__[1],), *reduced[2:])


@functools.cache
def _injected_class(original: type) -> type:
    return type(original.__name__, (_Injected, original), {"__module__": original.__module__})


def _rebuild(original: type) -> Any:
    cls = _injected_class(original)
    return cls.__new__(cls)


class _Enter:
    """Forward pre-hook of a submodule: its path becomes the name of the sites that follow."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, module: nn.Module, args: Any) -> None:
        enter_module(self.path, module)


class _Leave:
    """Forward hook of a submodule: back to its parent."""

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        leave_module()


# ---------------------------------------------------------------------------------------------------------- forward


def _begin(
    model: nn.Module, state: NoiseState, args: tuple[Any, ...], kwargs: dict[str, Any], record: list[Any] | None = None
) -> tuple[SiteMode, tuple[Any, ...], dict[str, Any]]:
    """Repeats the input for every draw, puts the noise of the site `input` on it, and makes the mode of this forward."""
    tensors = [(i, a) for i, a in (*enumerate(args), *kwargs.items()) if isinstance(a, Tensor) and a.dim() > 0]
    if not tensors:
        raise RuntimeError("an injected model needs a tensor argument whose dimension 0 counts the rows")
    device = tensors[0][1].device
    dim = state.placement.row_dims.get("input", 0)
    draws = None if record is not None else state.draws
    count = 1 if draws is None else draws.shape[0]
    if count != 1:
        carriers = state.expanded if state.expanded is not None else tuple(i for i, _ in tensors)
        if state.expanded is None and len(tensors) > 1:
            raise RuntimeError(
                f"the model takes {len(tensors)} tensors and which of them carry the batch is not known: "
                "give inject() an example_input before running several draws"
            )
        repeated = {i: torch.cat([a] * count, dim) if i in carriers else a for i, a in tensors}
        args = tuple(repeated.get(i, a) for i, a in enumerate(args))
        kwargs = {k: repeated.get(k, a) for k, a in kwargs.items()}
        tensors = [(i, repeated[i]) for i, _ in tensors]
    seed = seed_tensor("noise_state", None, device) if state.seed is None else state.seed
    key = Key(seed, draws, state.rows, tensors[0][1].shape[dim])
    mode = SiteMode(state.placement, key, model, state.site_ids, record)
    number = 0
    for i, a in tensors:
        if not a.is_floating_point():
            continue
        name = "input" if number == 0 else f"input#{number}"
        number += 1
        noisy = mode.at(name, state.placement.at(name, model), a)
        if isinstance(i, int):
            args = (*args[:i], noisy, *args[i + 1 :])
        else:
            kwargs = {**kwargs, i: noisy}
    return mode, args, kwargs


def _resumable(function: Callable[..., Any]) -> Callable[..., Any]:
    """A checkpointed function that, when it is run again in the backward pass, goes on with the noise of the forward."""
    mode = _get_current_function_mode()
    if not isinstance(mode, SiteMode):
        return function
    resumed = mode.resumed()

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if isinstance(_get_current_function_mode(), SiteMode):  # the forward itself
            return function(*args, **kwargs)
        with resumed.resumed():
            return function(*args, **kwargs)

    return run


def _patch_checkpoint() -> None:
    """Makes torch's two checkpoint implementations keep the noise: they re-run a function outside of the model's forward."""
    original = torch_checkpoint._checkpoint_without_reentrant_generator
    reentrant = torch_checkpoint.CheckpointFunction.apply
    if getattr(original, "_keeps_noise", False):
        return

    @functools.wraps(original)
    def generator(function: Any, *args: Any, **kwargs: Any) -> Any:
        return original(_resumable(function), *args, **kwargs)

    generator._keeps_noise = True  # type: ignore[attr-defined]
    torch_checkpoint._checkpoint_without_reentrant_generator = generator
    torch_checkpoint.CheckpointFunction.apply = staticmethod(  # type: ignore[method-assign]
        lambda function, *args: reentrant(_resumable(function), *args)
    )


# ------------------------------------------------------------------------------------------------- public functions


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside DataParallel-style and compiled wrappers, so that names do not depend on the wrapping."""
    while True:
        if isinstance(model, nn.parallel.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod
        else:
            return model


def is_injected(model: nn.Module) -> bool:
    """Whether `inject` has been called on this model."""
    return isinstance(unwrap(model), _Injected)


class inject:
    """Puts noise into an existing model, in place; as a context manager, for the length of a block.

    Args:
        model: any model. Its class becomes a subclass until `remove`; parameters, buffers, keys, hooks and sharing stay.
            Wrappers (DataParallel, DistributedDataParallel, torch.compile) are looked through.
        noise: the noise of every chosen site; or a dict from name patterns to noises (the first match counts); or None for
            no noise yet (noisy layers of the model then share seed, draws and rows).
        where: which sites: None for all; a name pattern or a list of them (``"conv*"``, ``"fc1:linear"``, ``"input"``); a
            module type or several (the sites directly inside such modules); or a function ``(name, module) -> Noise | None``.
        example_input: an input (or tuple of inputs) with at least one row. The model is run on it twice, with different
            numbers of rows, to find the sites, the row dimension of each and the arguments that carry the batch.
        row_dims: dict from name patterns to the dimension that counts rows, where it is not 0; ``"input"`` is that of the
            model's own arguments.
        normalize_to_input_size: divide levels by the number of elements of one row at the site (published option).
        repeats: repeat the noise at a site R times and average, a number or a dict from name patterns: levels are divided by
            sqrt(R), except for order ``"add_mul"``, which is drawn R times.
        in_training, in_eval: whether noise enters while the module at the site is in training, in evaluation mode.

    Raises:
        ValueError: the model or a part of it is injected already, or a pattern matches no site of the example.
        TypeError: not a model, or not a noise.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
        >>> with inject(model, Noise(add=0.1)), noise_state(model, seed=1):
        ...     y = model(torch.ones(2, 4))
        >>> [site.name for site in sites(model, torch.ones(2, 4))]
        ['input', '0:linear#0', '1:relu#0']
    """

    def __init__(
        self,
        model: nn.Module,
        noise: Noise | dict[str, Noise] | None,
        where: Any = None,
        *,
        example_input: Any = None,
        row_dims: dict[str, int] | None = None,
        normalize_to_input_size: bool = False,
        repeats: int | dict[str, int] = 1,
        in_training: bool = True,
        in_eval: bool = True,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"inject: model must be a torch.nn.Module, got {type(model).__name__}")
        for n in noise.values() if isinstance(noise, dict) else [noise]:
            if n is not None and not isinstance(n, Noise):
                raise TypeError(f"inject: noise must be a Noise, a dict of them or None, got {type(n).__name__}")
        for r in repeats.values() if isinstance(repeats, dict) else [repeats]:
            if not isinstance(r, int) or r < 1:
                raise ValueError(f"inject: repeats must be whole numbers of at least 1, got {r!r}")
        self.model = unwrap(model)
        for path, module in self.model.named_modules():
            if isinstance(module, _Injected):
                raise ValueError(f"inject: {'the model' if path == '' else f'its part {path!r}'} is injected already; remove() it first")
        placement = Placement(noise, where, normalize_to_input_size, repeats, in_training, in_eval, dict(row_dims or {}))
        state = NoiseState(placement)
        device = next((t.device for t in (*self.model.parameters(), *self.model.buffers())), None)
        if device is not None:
            state.to(device)
        _patch_checkpoint()
        self.model.__dict__["_noise_state"] = state
        for path, module in self.model.named_modules():
            if path:
                module.register_forward_pre_hook(_Enter(path))
                module.register_forward_hook(_Leave(), always_call=True)
        self.model.__class__ = _injected_class(type(self.model))
        try:
            if example_input is not None:
                _trace(self.model, example_input)
            else:
                _refuse_hidden_rows(self.model, placement)
        except BaseException:
            remove(self.model)
            raise

    def __enter__(self) -> nn.Module:
        return self.model

    def __exit__(self, *exception: object) -> None:
        remove(self.model)


def remove(model: nn.Module) -> nn.Module:
    """Takes the noise out again and returns the model as it was; a model without noise is left alone.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> _ = inject(model, Noise(add=0.1))
        >>> type(remove(model)) is nn.Linear
        True
    """
    model = unwrap(model)
    if isinstance(model, _Injected):
        model.__class__ = type(model).__bases__[1]
        del model.__dict__["_noise_state"]
        for module in model.modules():
            for hooks, ours in ((module._forward_pre_hooks, _Enter), (module._forward_hooks, _Leave)):
                for number in [n for n, hook in hooks.items() if isinstance(hook, ours)]:
                    del hooks[number]
                    module._forward_hooks_always_called.pop(number, None)
    return model


@contextlib.contextmanager
def noise_state(
    model: nn.Module,
    *,
    seed: int | Tensor | None = None,
    draws: Tensor | Sequence[int] | None = None,
    rows: Tensor | Sequence[int] | None = None,
) -> Iterator[NoiseState]:
    """Sets seed, draws and rows of a model for the length of a block.

    Works for injected models and for models that contain noisy layers. With D draws the model's input is repeated D times, and
    its output holds D * B rows, draw by draw.

    Args:
        model: a model that `inject` was called on, or one that contains noisy layers.
        seed: 64-bit seed; None draws a fresh one from torch's default generator for every forward.
        draws: int64 vector (D) of draw ids; None is the one draw 0.
        rows: int64 vector (B), the data-set index of each row; None numbers them by their place in the batch.

    Raises:
        ValueError: an id or seed out of range, or a model in which nothing draws noise.

    Example:
        >>> model = nn.Linear(4, 2)
        >>> with inject(model, Noise(add=1.0)), noise_state(model, seed=1, draws=[0, 1, 2]):
        ...     model(torch.ones(5, 4)).shape
        torch.Size([15, 2])
    """
    target = unwrap(model)
    temporary = not isinstance(target, _Injected)
    if temporary:
        from noisykernels.nn import NoisyLayer

        if not any(isinstance(m, NoisyLayer) for m in target.modules()):
            raise ValueError("noise_state: the model is not injected and contains no noisy layer")
        inject(target, None)
    state: NoiseState = target.__dict__["_noise_state"]
    device = next((t.device for t in (*target.parameters(), *target.buffers())), torch.device("cpu"))
    before = (state.seed, state.draws, state.rows)
    try:
        state.seed = None if seed is None else seed_tensor("noise_state", seed, device)
        state.draws = ids_tensor("noise_state", "draws", draws, device)
        state.rows = ids_tensor("noise_state", "rows", rows, device)
        yield state
    finally:
        state.seed, state.draws, state.rows = before
        if temporary:
            remove(target)


def sites(model: nn.Module, example_input: Any = None) -> list[Site]:
    """The sites of a model in execution order: ``input``, then one for every call of an operation after which noise can enter.

    These are convolutions, linear layers, norms, activations, pools, recurrent layers and attention, whether called as modules or
    as functions, and noisy layers.

    Args:
        model: any model; it is run in evaluation mode without gradients, and left as it was.
        example_input: a tensor (or a tuple of positional arguments) with at least one row; may be left out for an injected model
            that was given one.

    Returns:
        A list of `Site` (name, index, id, kind, shape of the example's value, row dimension).

    Raises:
        ValueError: no example input is known.

    Example:
        >>> [s.name for s in sites(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), torch.ones(1, 1, 5, 5))]
        ['input', '0:conv2d#0', '1:relu#0']
    """
    target = unwrap(model)
    if example_input is None:
        known = target.__dict__["_noise_state"].traced if isinstance(target, _Injected) else []
        if not known:
            raise ValueError("sites: the sites are found by running the model: give an example_input")
        return list(known)
    if isinstance(target, _Injected):
        return _trace(target, example_input)
    with inject(target, None, example_input=example_input):
        return list(target.__dict__["_noise_state"].traced)


# ---------------------------------------------------------------------------------------------------------- tracing


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients for the length of a block; each module's own mode comes back."""
    training = [m for m in model.modules() if m.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def _record(model: nn.Module, args: tuple[Any, ...]) -> list[tuple[str, str, Tensor]]:
    state: NoiseState = model.__dict__["_noise_state"]
    record: list[tuple[str, str, Tensor]] = []
    mode, args, _ = _begin(model, state, args, {}, record)
    mode.placement = without_draws(state.placement)
    with mode:
        type(model).__bases__[1].forward(model, *args)  # type: ignore[attr-defined]
    return record


def _one_row_more(a: Any, rows: int, dim: int) -> Any:
    if isinstance(a, Tensor) and a.dim() > dim and a.shape[dim] == rows:
        return torch.cat([a, a.narrow(dim, 0, 1)], dim)
    return a


def _trace(model: nn.Module, example_input: Any) -> list[Site]:
    """Runs the model with B and B + 1 rows; what grows carries the rows."""
    args = example_input if isinstance(example_input, tuple) else (example_input,)
    state: NoiseState = model.__dict__["_noise_state"]
    dim = state.placement.row_dims.get("input", 0)
    first = next((a for a in args if isinstance(a, Tensor) and a.dim() > dim), None)
    if first is None or first.shape[dim] == 0:
        raise ValueError("sites: example_input must hold a tensor with at least one row")
    rows = first.shape[dim]
    more = tuple(_one_row_more(a, rows, dim) for a in args)
    with evaluating(model):
        small, large = _record(model, args), _record(model, more)
    if [name for name, *_ in small] != [name for name, *_ in large]:
        raise ValueError("sites: the model calls other operations for another number of rows, so its sites have no fixed names")
    ids = site_ids(name for name, *_ in small)
    found = []
    for index, ((name, _, a), (_, _, b)) in enumerate(zip(small, large, strict=True)):
        grown = [d for d in range(a.dim()) if b.shape[d] != a.shape[d]] if a.dim() == b.dim() else []
        row_dim = grown[0] if len(grown) == 1 and a.shape[grown[0]] == rows and b.shape[grown[0]] == rows + 1 else None
        kind = "input" if name.startswith("input") else name.rpartition(":")[2].rpartition("#")[0]
        found.append(Site(name, index, ids[name], kind, tuple(a.shape), row_dim))
    state.site_ids = dict(ids)
    state.expanded = tuple(i for i, (a, b) in enumerate(zip(args, more, strict=True)) if a is not b)
    state.traced = found
    dims = {site.name: site.row_dim for site in found if site.row_dim is not None and site.row_dim != 0}
    placement = state.placement
    placement.row_dims.update({k: v for k, v in dims.items() if k not in placement.row_dims})
    _refuse_unmatched(placement, [site.name for site in found])
    return list(found)


def _refuse_unmatched(placement: Placement, names: list[str]) -> None:
    from noisykernels.sites import matches

    where = placement.where
    patterns = [*(placement.noise if isinstance(placement.noise, dict) else [])]
    patterns += [where] if isinstance(where, str) else [w for w in where if isinstance(w, str)] if isinstance(where, list | tuple) else []
    for pattern in patterns:
        if not any(matches(name, pattern) for name in names):
            raise ValueError(f"inject: {pattern!r} matches no site; the model has {', '.join(names)}")


def _refuse_hidden_rows(model: nn.Module, placement: Placement) -> None:
    """A model with a (length, batch, features) layer has operations whose dimension 0 only looks like rows."""
    for path, module in model.named_modules():
        hidden = isinstance(module, nn.RNNBase | nn.MultiheadAttention) and not module.batch_first
        if hidden and placement.noise is not None and not placement.row_dims:
            warnings.warn(
                f"inject: {path!r} has batch_first=False, so dimension 0 of the values near it may not count rows; "
                "give example_input=... (or row_dims=...) to have the row dimension of each site found",
                stacklevel=3,
            )
            return


__all__ += ["KINDS"]

"""Noise in any existing model: `inject` and `remove`, its `sites`, and `noise_state`.

The forward of the model, and of its modules, is one that runs under a `SiteMode`; classes, parameters and hooks stay,
and `remove` puts the forwards back.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from noisykernels._util.arguments import check_arguments
from noisykernels._util.checks import in_range, shown, whole
from noisykernels._util.runtime import place_of, unwrap
from noisykernels.hardware.device import Arithmetic, Device
from noisykernels.hardware.execute import checked, draws_for_rows, with_arithmetic
from noisykernels.injection.block import Block
from noisykernels.injection.doors import door_of, parameters_of
from noisykernels.injection.placement import Placement
from noisykernels.injection.site import Choice, Site
from noisykernels.injection.state import NoiseState, hear, hold, is_injected, set_up, state_of, take_down
from noisykernels.injection.torch_patches import keep_noise
from noisykernels.injection.trace import names_of, place, refuse_hidden_rows, refuse_unknown, trace
from noisykernels.nn.modules import NoisyLayer
from noisykernels.noise.arguments import factor_tensor, ids_tensor, seed_tensor
from noisykernels.noise.description import Noise

__all__ = ["inject", "noise_state", "remove", "sites"]

DIMENSIONS = whole(-64, 63)  # of a tensor, from its end too


class inject:
    """Puts noise into an existing model, in place; as a context manager, for the length of a block.

    Args:
        model: any model. Until `remove` its forward is another one, of the same signature; class, parameters,
            buffers, keys, hooks and sharing stay. Wrappers (of torch.compile, DataParallel, DistributedDataParallel,
            FSDP, AveragedModel, checkpoints) are looked through, around the model and inside of it.
        noise: the noise of every chosen site; or a dict from words as in ``where`` to noises (a name
            counts before a block, an inner block before an outer one, both before a pattern; then the
            first match); or None for no noise yet. Noisy layers of the model keep their own noise and
            switches.
        where: which sites: None for all; a name, a pattern or a list of them: a site's name with or
            without its number (``"input"``, ``"fc1:linear#0"``, ``"fc1:linear"``), a module's path
            (``"fc1"``, ``"layer1"``: everything in it), or a pattern of these (``"conv*"``), which is
            only what is no name of this model; a module type or several (everything in such modules);
            or a function ``(name, module) -> Noise | None``, which is asked once for each site.
        example_input: an input with at least one row: a tensor, a tuple of positional arguments or
            a dict of keyword arguments. The model is run on it twice, with B and with B + 1 rows,
            to find its sites, the dimension of each that counts rows, and the arguments that carry
            rows. Without it, every site is taken to have its rows along dimension 0, which is wrong, and
            seen only if the size differs, where a model moves them or makes its weights by such operations.
        row_dims: dict from words as in ``where`` to the dimension that counts rows, where it is not 0;
            ``"input"`` is that of the model's arguments.
        normalize_to_input_size: divide levels by the number of elements of one row at the site
            (published option).
        repeats: repeat the noise at a site R times and average, a number or a dict from words as in
            ``where``: the levels of Gaussian noise are divided by sqrt(R); other kinds, and order
            ``"add_mul"``, are drawn R times.
        in_training, in_eval: whether noise enters where the module at the site is in training mode,
            in evaluation mode.
        hardware: what is inside linear layers and convolutions, such as ``[WeightNoise(add=0.05, relative="layer")]``:
            a list of devices for all of them; a dict from words as in ``where`` to lists; or a function ``(name,
            module) -> list | None``. It comes before the noise of the site, which ``repeats`` and ``where`` are about.
        arithmetic: how linear layers and convolutions add up their products: `Serial`; the same as at the end of the
            list ``hardware``.
        arrays: which calls share what belongs to the chip (weights, conductances, programming, drift, columns):
            ``"module"``: those of one module with the same weight, however often it is called; ``"parameter"``: those
            with the same parameter, whichever module calls; ``"call"``: none, each call has an array of its own. Noise
            that is fresh (of inputs, readings, products, outputs) is each call's own in any case.

        bias: of contractions on hardware: ``"digital"``: added after the outputs have passed the devices;
            ``"column"``: one more column of the array, driven by an input of 1, noisy and converted like the others.

    Raises:
        ValueError: the model or a part of it is injected already, cannot be looked into, or has
            layers with rows along dimension 1 and neither example_input nor row_dims is given; or a
            word, a type or a function meets no site. Without example_input some of that is seen only by the
            first forward in which noise is on, which then raises it.
        TypeError: not a model, not a noise, not a choice of sites, or another argument of a wrong type.

    Note:
        Operations that a forward runs in threads of its own, or while torch functions are disabled, are not seen.

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
        hardware: Any = None,
        arithmetic: Arithmetic | None = None,
        arrays: Literal["module", "call", "parameter"] = "module",
        bias: Literal["digital", "column"] = "digital",
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"inject: model must be a torch.nn.Module, got {type(model).__name__}")
        _check_choice(noise, where, repeats)
        check_arguments(inject.__init__, locals())
        _check_tables(noise=noise, repeats=repeats, row_dims=row_dims, hardware=hardware)
        hardware = with_arithmetic("inject", hardware, arithmetic)
        self.model = target = unwrap(model)
        _check_model(target)
        dims, names, devices = dict(row_dims or {}), names_of(target), _checked_hardware(hardware)
        asked: Any = dict(noise=noise, where=where, repeats=repeats, row_dims=dims, hardware=devices)
        switches: Any = dict(
            in_training=in_training, in_eval=in_eval, normalize_to_input_size=normalize_to_input_size,
            input_dim=dims.get("input", 0), column=bias == "column",
        )  # fmt: skip
        placement = Placement(**asked, **switches).understood(names)
        layers = [m for m in target.modules() if isinstance(m, NoisyLayer)]
        state = NoiseState(
            placement,
            arrays,
            parameters_of(target),
            draws_noise=noise is not None or hardware is not None or bool(layers),
            for_rows=noise is not None
            or any(m.noise is not None or draws_for_rows(m.hardware or ()) for m in layers)
            or any(draws_for_rows(devices or ()) for devices in _lists(placement.hardware)),
        )
        state.look(target)
        keep_noise()
        set_up(target, state)
        try:
            if example_input is None:
                refuse_hidden_rows(target, placement)
                refuse_unknown(target, placement, names)
            else:
                place(target, example_input)
            hear(target, state, not state.quiet)
        except BaseException:
            remove(target)
            raise

    def __enter__(self) -> nn.Module:
        return self.model

    def __exit__(self, *exception: object) -> None:
        remove(self.model)


def _check_choice(noise: Any, where: Any, repeats: Any) -> None:
    for n in noise.values() if isinstance(noise, dict) else (noise,):
        if n is not None and not isinstance(n, Noise):
            raise TypeError(f"inject: noise must be a Noise, a dict of them or None, got {type(n).__name__}")
    if isinstance(noise, dict) and where is not None:
        raise ValueError("inject: a dict of noises says where they enter; leave out where=")
    for w in where if isinstance(where, list | tuple) else (where,):
        if not (w is None or isinstance(w, str | type) or (callable(w) and w is where)):
            raise TypeError(
                "inject: where must be a name pattern, a module type, a list of these, or a "
                f"function (name, module) -> Noise | None, got {w!r}"
            )
    for r in repeats.values() if isinstance(repeats, dict) else (repeats,):
        in_range("inject", "repeats", r)


def _check_tables(**tables: Any) -> None:
    """Refuses dicts whose keys are no names or patterns, and rows along what is no dimension."""
    for name, table in tables.items():
        for key in table if isinstance(table, dict) else ():
            if not (isinstance(key, str | Choice) or (isinstance(key, type) and issubclass(key, nn.Module))):
                raise TypeError(f"inject: {name} must have names, patterns or module types as keys, got {shown(key)}")
    for dim in (tables["row_dims"] or {}).values():
        in_range("inject", "row_dims", dim, DIMENSIONS)


def _checked_hardware(hardware: Any) -> Any:
    """Hardware as `inject` takes it, its lists checked."""
    if hardware is None or (callable(hardware) and not isinstance(hardware, Device)):
        return hardware
    if isinstance(hardware, dict):
        return {pattern: checked("inject", devices) for pattern, devices in hardware.items()}
    return checked("inject", hardware)


def _lists(hardware: Any) -> Iterable[Sequence[Device]]:
    """The lists of devices in hardware as `inject` keeps it; of a function they are not known."""
    if hardware is None or callable(hardware):
        return ()
    return hardware.values() if isinstance(hardware, dict) else (hardware,)


def _check_model(model: nn.Module) -> None:
    """Refuses what is injected already, and what would run without showing its operations."""
    for path, module in model.named_modules():
        part = f"its part {path!r}" if path else "the model"
        if is_injected(module) or door_of(module) is not None:
            raise ValueError(f"inject: {part} is injected already; remove() it first")
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(f"inject: {part} is TorchScript, whose operations cannot be seen")


def remove(model: nn.Module) -> nn.Module:
    """Takes the noise out and returns the model as it was; one without noise is left alone.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> _ = inject(model, Noise(add=0.1))
        >>> type(remove(model)) is nn.Linear
        True
    """
    check_arguments(remove, locals())
    target = unwrap(model)
    if is_injected(target):
        take_down(target)
    return model


_CHANGING = threading.Lock()  # held while a block of `noise_state` begins or ends


@contextlib.contextmanager
def noise_state(
    model: nn.Module,
    *,
    seed: int | Tensor | None = None,
    draws: Tensor | Sequence[int] | None = None,
    rows: Tensor | Sequence[int] | str | None = None,
    level: float | Tensor | Sequence[float] | None = None,
) -> Iterator[NoiseState]:
    """Sets seed, draws, rows and level of a model for the length of a block.

    **A row's noise belongs to its id, and without** ``rows`` **ids are places in the batch**: under one ``seed`` all
    calls of a block have the same noise, in a loop over batches for other data each time, of which a warning tells once
    in a block. Give ``rows``, or ``rows="advance"``.

    Under `torch.func.vmap` over samples, as for gradients of each sample, each has ids of its own, as if all were one
    batch, or those of ``rows``, one for each sample; with ``chunk_size`` take ``rows="advance"``.

    Works for injected models and for models that contain noisy layers. With D draws the model's
    input is repeated D times, and its output holds D * B rows, draw by draw.

    Args:
        model: a model that `inject` was called on, or one that contains noisy layers.
        seed: 64-bit seed; None draws a fresh one from torch's default generator for every forward.
        draws: int64 vector (D) of draw ids; None is the one draw 0.
        rows: int64 vector (B), the data-set index of each row; ``"advance"``: the first call of the block has the rows
            from 0 on, each later one those that follow, as if all were one batch; None numbers them by their place in
            the batch.
        level: factor by which all noise of the model is multiplied, at every site: a number, or a vector (B) with one
            for each row (image), whatever the draw; None is 1. A compiled model sees its value change without a
            recompilation.

    Raises:
        ValueError: an id or seed out of range, a negative or NaN level, no draw, or a model in which nothing draws
            noise.
        TypeError: a level that is neither a number nor a floating-point tensor.
        RuntimeError: another thread is within such a block of the same model, or a thread calls it that is not within
            the block; give each its own copy. (A compiled call does not see whose thread it is.)

    Note:
        ``"advance"`` counts calls of the model; one that as a whole is checkpointed is computed twice, which is refused
        (compiled, it is not seen).

    Example:
        >>> model = nn.Linear(4, 2)
        >>> with inject(model, Noise(add=1.0)), noise_state(model, seed=1, draws=[0, 1, 2]):
        ...     model(torch.ones(5, 4)).shape
        torch.Size([15, 2])
        >>> x = torch.ones(6, 4)
        >>> with inject(model, Noise(add=1.0)):
        ...     with noise_state(model, seed=1, rows="advance"):
        ...         parts = [model(part) for part in x.split(2)]
        ...     with noise_state(model, seed=1):
        ...         torch.equal(torch.cat(parts), model(x))
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"noise_state: model must be a torch.nn.Module, got {shown(model)}")
    target = unwrap(model)
    place = place_of(target)
    new_seed = None if seed is None else seed_tensor("noise_state", seed, place).to(place)  # a graph reads it anew
    new_draws = ids_tensor("noise_state", "draws", draws, place)
    new_rows = next_row = None
    if isinstance(rows, str):
        if rows != "advance":
            raise ValueError(f"noise_state: rows must be a vector of ids or 'advance', got {rows!r}")
        with torch.inference_mode(False):  # counted on inside and outside of inference mode
            next_row = torch.zeros((), dtype=torch.int64, device=place)
    else:
        new_rows = ids_tensor("noise_state", "rows", rows, place)
    new_level = factor_tensor("noise_state", level, place)
    if new_draws is not None and len(new_draws) == 0:
        raise ValueError("noise_state: draws must hold at least one id")
    me = threading.get_ident()
    with _CHANGING:
        temporary = not is_injected(target)
        if temporary:
            if not any(isinstance(m, NoisyLayer) for m in target.modules()):
                raise ValueError("noise_state: the model is not injected and contains no noisy layer")
            inject(target, None)
        state = state_of(target)
        hold(target, state)
        if state.block is not None and state.block.thread not in (None, me):
            raise RuntimeError(
                "noise_state: another thread is within a noise_state block of this model; give each thread a copy of it"
            )
        before = (state.seed, state.draws, state.rows, state.next_row, state.level, state.block)
        state.seed, state.draws, state.rows, state.next_row = new_seed, new_draws, new_rows, next_row
        state.level, state.block = new_level, Block(me)
    try:
        yield state
    finally:
        with _CHANGING:
            state.seed, state.draws, state.rows, state.next_row, state.level, state.block = before
            if temporary:
                remove(target)


def sites(model: nn.Module, example_input: Any = None) -> list[Site]:
    """The sites of a model in execution order: ``input``, then one for every call of an operation
    after which noise can enter.

    These are convolutions, linear layers, norms, activations, pools, recurrent layers and
    attention, whether called as modules or as functions, and noisy layers.

    Args:
        model: any model; it is run in evaluation mode without gradients, and left as it was.
        example_input: as for `inject`; may be left out for an injected model that was given one.

    Returns:
        A list of `Site` (name, index, id, kind, shape of the example's value, row dimension).

    Raises:
        ValueError: no example input is known.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
        >>> [s.name for s in sites(model, torch.ones(1, 1, 5, 5))]
        ['input', '0:conv2d#0', '1:relu#0']
    """
    check_arguments(sites, locals())
    target = unwrap(model)
    if example_input is None:
        known = state_of(target).traced if is_injected(target) else []
        if not known:
            raise ValueError("sites: the sites are found by running the model: give an example_input")
        return list(known)
    if is_injected(target):
        return trace(target, example_input)
    with inject(target, None, example_input=example_input):
        return list(state_of(target).traced)

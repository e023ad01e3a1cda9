"""Noise in any existing model: `inject` and `remove`, and its `sites`.

The forward of the model, and of its modules, is one that runs under a `SiteMode`; classes, parameters and hooks stay,
and `remove` puts the forwards back.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import nn

from noisykernels._util.arguments import check_arguments
from noisykernels._util.checks import in_range, shown, whole
from noisykernels._util.runtime import unwrap
from noisykernels.hardware.device import Arithmetic, Device
from noisykernels.hardware.execute import checked, draws_for_rows, with_arithmetic
from noisykernels.injection.doors import door_of, parameters_of, paths_of
from noisykernels.injection.placement import Placement
from noisykernels.injection.running import hear, set_up, take_down
from noisykernels.injection.site import Choice, Site, near
from noisykernels.injection.state import NoiseState, injected_in, is_injected, state_of
from noisykernels.injection.torch_patches import keep_noise
from noisykernels.injection.trace import names_of, open_results, place, refuse_hidden_rows, refuse_unknown, trace
from noisykernels.injection.values import Change, is_noise
from noisykernels.nn.modules import NoisyLayer
from noisykernels.noise.description import Noise

__all__ = ["inject", "of_root", "remove", "sites", "sites_with_results"]

DIMENSIONS = whole(-64, 63)  # of a tensor, from its end too


class inject:
    """Puts noise into an existing model, in place; as a context manager, for the length of a block.

    Args:
        model: any model. Until `remove` its forward is another one, of the same signature; class, parameters,
            buffers, keys, hooks and sharing stay. Wrappers (of torch.compile, DataParallel, DistributedDataParallel,
            FSDP, AveragedModel, checkpoints) are looked through, around the model and inside of it.
        noise: the noise of every chosen site; or a dict from words as in ``where`` to noises (a name
            counts before a block, an inner block before an outer one, both before a pattern; then the
            first match); or None for no noise yet. In place of a `Noise` a function ``f(x, draw) -> x`` of the value at
            the site, such as of dead neurons: x, a copy, holds the rows of one draw along dimension 0, and ``draw`` is
            a `SiteDraw`, of whose ``fixed`` and ``fresh`` values all randomness comes.
            Noisy layers of the model keep their own noise and switches.
        where: which sites: None for all; a name, a pattern or a list of them: a site's name with or
            without its number (``"input"``, ``"fc1:linear#0"``, ``"fc1:linear"``), a module's path
            (``"fc1"``, ``"layer1"``: everything in it), or a pattern of these (``"conv*"``), which is
            only what is no name of this model; a module type or several (everything in such modules);
            the result of a block asked for in one of these ways is a site too, ``path:module#0``, if no
            site inside makes it: the first floating-point tensor of a tuple, list, dict or dataclass;
            or a function ``(name, module) -> noise | None``, which is asked once for each site and gives what
            enters there, a `Noise` or a function of the value, whatever ``noise`` is.
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
            Attention's own products are ``path:scores#k`` and ``path:weighted_sum#k``, or both ``path:attention#k``.
        arithmetic: how linear layers and convolutions add up their products: `Serial`; the same as in the list
            ``hardware``, before the devices of outputs.
        arrays: which calls share what belongs to the chip (weights, conductances, programming, drift, columns):
            ``"module"``: those of one module with the same weight, however often it is called; ``"parameter"``: those
            with the same parameter, whichever module calls; ``"call"``: none, each call has an array of its own. Noise
            that is fresh (of inputs, readings, products, outputs) is each call's own in any case.

        bias: of contractions on hardware: ``"digital"``: added after the outputs have passed the devices;
            ``"column"``: one more column of the array, driven by an input of 1, noisy and converted like the others.
        root: the path of the part at which names begin, where the model is a wrapper by hand around it (``"net"``,
            ``"a.net"``; ``""``: the model itself). What is in it has the names, and so the noise, that it has without
            the wrapper; what is beside it keeps its path, and operations of the wrapper's own forward are
            ``..:relu#0``. Parameters keep their names.
        detail: ``"attention"``: steps inside of attention are sites, too: ``path:scores#k`` (the first product, before
            scale and mask), ``path:softmax#k`` and ``path:weighted_sum#k``, before ``path:attention#k``; in torch's
            kernels and layer, which then run written out, and, if example_input is given, in attention that the
            model writes out. A warning names products of two values that are no part of one.

    Raises:
        ValueError: the model or a part of it is injected already, cannot be looked into, or has
            layers with rows along dimension 1 and neither example_input nor row_dims is given; root names
            no part, or one with names that parts beside it have too; or a
            word, a type or a function meets no site, or where= has no noise. Without example_input some
            of that is seen only by the first forward in which noise is on, which then raises it.
        TypeError: not a model, not a noise, not a choice of sites, or another argument of a wrong type.

    Note:
        Operations that a forward runs in threads of its own, or while torch functions are disabled, are not seen.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
        >>> with inject(model, Noise(add=0.1)), nk.noise_state(model, seed=1):
        ...     y = model(torch.ones(2, 4))
        >>> [site.name for site in sites(model, torch.ones(2, 4))]
        ['input', '0:linear#0', '1:relu#0']
    """

    def __init__(
        self,
        model: nn.Module,
        noise: Noise | Change | dict[str, Noise | Change] | None,
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
        root: str = "",
        detail: Literal["attention"] | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"inject: model must be a torch.nn.Module, got {type(model).__name__}")
        _check_choice(noise, where, repeats)
        check_arguments(inject.__init__, locals())
        _check_tables(noise=noise, repeats=repeats, row_dims=row_dims, hardware=hardware)
        hardware = with_arithmetic("inject", hardware, arithmetic)
        self.model = target = unwrap(model)
        _check_model(target)
        _check_root(target, root)
        dims, names, devices = dict(row_dims or {}), names_of(target, root=root), _checked_hardware(hardware)
        asked: Any = dict(noise=noise, where=where, repeats=repeats, row_dims=dims, hardware=devices)
        switches: Any = dict(
            in_training=in_training, in_eval=in_eval, normalize_to_input_size=normalize_to_input_size,
            input_dim=dims.get("input", 0), column=bias == "column", detail=detail is not None,
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
            root=root,
        )
        state.look(target)
        keep_noise()
        set_up(target, state)
        try:
            if example_input is None:
                refuse_hidden_rows(target, placement)
                refuse_unknown(placement, names)
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
        if not (n is None or is_noise(n)):
            raise TypeError(
                f"inject: noise must be a Noise, a function (x, draw) -> x, a dict of them or None, got {shown(n)}"
            )
    if isinstance(noise, dict) and where is not None:
        raise ValueError("inject: a dict of noises says where they enter; leave out where=")
    if noise is None and where is not None:
        raise ValueError("inject: where says where the noise enters, and noise is None: give a noise")
    if where is not None and isinstance(where, list | tuple) and not where:
        raise ValueError("inject: where must choose at least one site, got an empty list: None means all sites")
    for w in where if isinstance(where, list | tuple) else (where,):
        if not (w is None or isinstance(w, str | type) or (callable(w) and w is where)):
            raise TypeError(
                "inject: where must be a name pattern, a module type, a list of these, or a "
                f"function (name, module) -> noise | None, got {w!r}"
            )
    for r in repeats.values() if isinstance(repeats, dict) else (repeats,):
        in_range("inject", "repeats", r)


def _check_tables(**tables: Any) -> None:
    """Refuses dicts whose keys are no names or patterns, and rows along what is no dimension."""
    for name, table in tables.items():
        if name in ("noise", "hardware") and isinstance(table, dict) and not table:
            raise ValueError(f"inject: {name} must hold at least one entry, got an empty dict: None means no {name}")
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


def _check_root(model: nn.Module, root: str) -> None:
    """Refuses names that begin at no part of a model, or that mean two parts."""
    if not root:
        return
    known = [path for path, _ in paths_of(model, every=True) if path]
    if root not in known:
        close = ", ".join(near(root, known))
        raise ValueError(
            f"inject: root must be the path of a part of the model, got {root!r}; "
            + (f"near it are {close}" if close else f"the model has {', '.join(known[:12]) or 'no parts'}")
        )
    found: dict[str, nn.Module] = {}
    for path, module in paths_of(model, every=True, root=root):
        if found.setdefault(path, module) is not module:
            raise ValueError(f"inject: with root={root!r} a part in it and one beside it are both called {path!r}")


def of_root(op: str, model: nn.Module, root: str) -> None:
    """Refuses a root other than that of an injected model, whose sites have their names already."""
    if root and root != (own := state_of(model).root):
        raise ValueError(f"{op}: the model is injected with root={own!r}, got root={root!r}")


def remove(model: nn.Module) -> nn.Module:
    """Takes the noise out and returns the model as it was; one without noise is left alone.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> _ = inject(model, Noise(add=0.1))
        >>> type(remove(model)) is nn.Linear
        True
    """
    check_arguments(remove, locals())
    found = injected_in(model)
    for path, module in found:
        if not is_injected(module) and state_of(module).is_alive:
            raise ValueError(f"remove: {path or 'the model'!r} is a part of an injected model; remove() that")
    for _, module in found:
        take_down(module if is_injected(module) else model)
    return model


def sites(
    model: nn.Module, example_input: Any = None, *, root: str = "", detail: Literal["attention"] | None = None
) -> list[Site]:
    """The sites of a model in execution order: ``input``, then one for every call of an operation
    after which noise can enter.

    These are convolutions, linear layers, norms, activations, pools, recurrent layers and
    attention, whether called as modules or as functions, and noisy layers.

    Args:
        model: any model; it is run in evaluation mode without gradients, and left as it was.
        example_input: as for `inject`; may be left out for an injected model that was given one.
        root: as for `inject`; of an injected model that of the injection.
        detail: as for `inject`, of a model that is not injected; an injected one has those that it was given.

    Returns:
        A list of `Site` (name, index, id, kind, shape of the example's value, row dimension).

    Raises:
        ValueError: no example input is known; an injected model has another root.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
        >>> [s.name for s in sites(model, torch.ones(1, 1, 5, 5))]
        ['input', '0:conv2d#0', '1:relu#0']
    """
    check_arguments(sites, locals())
    target = unwrap(model)
    if is_injected(target):
        of_root("sites", target, root)
    if example_input is None:
        known = state_of(target).traced if is_injected(target) else []
        if not known:
            raise ValueError("sites: the sites are found by running the model: give an example_input")
        return list(known)
    if is_injected(target):
        return trace(target, example_input)
    return sites_with_results(target, example_input, (), root, detail)


def sites_with_results(
    model: nn.Module, example_input: Any, words: Sequence[str | type], root: str = "", detail: Any = None
) -> list[Site]:
    """The sites of a model that is not injected, among them the results of modules that the words mean."""
    with inject(model, None, example_input=example_input, root=root, detail=detail) as target:
        return list(open_results(target, words, example_input))

"""The sites of an injected model, found by running it with B and with B + 1 rows: rows grow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from noisykernels._util.runtime import evaluating
from noisykernels.injection.doors import original, paths_of
from noisykernels.injection.kinds import KINDS
from noisykernels.injection.met import no_site
from noisykernels.injection.mode import Record, SiteMode
from noisykernels.injection.placement import Placement
from noisykernels.injection.site import Choice, Names, Site, kind_of
from noisykernels.injection.state import begin, check_asked, following, state_of
from noisykernels.noise.contract import site_ids

__all__ = ["arguments_of", "names_of", "place", "refuse_hidden_rows", "refuse_unknown", "trace"]


def trace(model: nn.Module, example_input: Any) -> list[Site]:
    """The sites of an injected model; its state learns their numbers and where rows lie."""
    return _traced(model, example_input)[0]


def place(model: nn.Module, example_input: Any) -> None:
    """Traces a model that was just injected and looks up among its sites what was asked for."""
    state = state_of(model)
    found, mode = _traced(model, example_input)
    state.placement = state.placement.understood(names_of(model, found))
    check_asked(model, state.placement, [site.name for site in found], mode)


def _traced(model: nn.Module, example_input: Any) -> tuple[list[Site], SiteMode]:
    """See `trace`; and the mode of the forward that has found them."""
    state = state_of(model)
    args, kwargs = arguments_of(example_input)
    dim = state.placement.input_dim
    candidates = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and a.dim() > dim]
    if not candidates or candidates[0].shape[dim] == 0:
        raise ValueError("sites: example_input must hold a tensor with at least one row")
    rows = candidates[0].shape[dim]
    more = tuple(_one_row_more(a, rows, dim) for a in args)
    more_kwargs = {n: _one_row_more(a, rows, dim) for n, a in kwargs.items()}
    with evaluating(model):
        (small, mode), (large, _) = _record(model, args, kwargs), _record(model, more, more_kwargs)
    if [name for name, _ in small] != [name for name, _ in large]:
        raise ValueError(
            "sites: the model calls other operations for another number of rows, so its sites have no fixed names"
        )
    ids = site_ids(name for name, _ in small)
    found: list[Site] = []
    calls: dict[str, tuple[str, ...]] = {}
    for call, first in mode.chip.of.items():
        calls[first] = (*calls.get(first, ()), call)
    for (name, a), (_, b) in zip(small, large, strict=True):
        kind, row_dim = kind_of(name), _grown(a, b, rows)
        if kind != "input" or row_dim is not None:  # an argument without rows is no site
            found.append(Site(name, len(found), ids[name], kind, a, row_dim, calls.get(name, ())))
    names = state.parameters_of_forward
    given = {names[i] if i < len(names) else i: (a, b) for i, (a, b) in enumerate(zip(args, more, strict=True))}
    given |= {n: (a, more_kwargs[n]) for n, a in kwargs.items()}
    state.carriers = {n: a is not b for n, (a, b) in given.items()}
    state.site_ids = {site.name: site.id for site in found}
    state.row_dims = {site.name: site.row_dim for site in found}
    state.traced, state.spots = found, {}
    return list(found), mode


def arguments_of(example_input: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments: a tuple holds the former, a dict the latter."""
    if isinstance(example_input, Mapping):
        return (), dict(example_input)
    return (example_input if isinstance(example_input, tuple) else (example_input,)), {}


def _record(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Record, SiteMode]:
    """The sites of a noiseless forward, and the mode that has found them."""
    record: Record = []
    args, kwargs = pytree.tree_map_only(Tensor, torch.clone, (args, kwargs))  # a model may write into them
    mode, args, kwargs = begin(model, state_of(model), args, kwargs, record)
    mode.placement = replace(mode.placement, noise=None, hardware=None)
    with mode, following(model, state_of(model), mode):
        original(model)(*args, **kwargs)
    return record, mode


def _one_row_more(a: Any, rows: int, dim: int) -> Any:
    if isinstance(a, Tensor) and a.dim() > dim and a.shape[dim] == rows:
        return torch.cat([a, a.narrow(dim, 0, 1)], dim)
    return a


def _grown(a: tuple[int, ...], b: tuple[int, ...], rows: int) -> int | None:
    """The one dimension that has `rows` in one run and one more in the other, all else equal."""
    if len(a) != len(b):
        return None
    dims = [d for d in range(len(a)) if a[d] != b[d]]
    return dims[0] if len(dims) == 1 and (a[dims[0]], b[dims[0]]) == (rows, rows + 1) else None


def names_of(model: nn.Module, traced: list[Site] | None = None) -> Names:
    """What the sites of a model are called; untraced, any module may call any operation."""
    modules = list(paths_of(model, every=True))
    if traced is not None:
        return Names([site.name for site in traced], modules)
    kinds = dict.fromkeys((*KINDS.values(), "noise"))
    return Names(["input", *(f"{path}:{kind}#0" for path, _ in paths_of(model) for kind in kinds)], modules)


def refuse_unknown(model: nn.Module, placement: Placement, names: Names) -> None:
    """A word that can choose no site is a mistake, which is seen before anything runs; of untraced models."""
    for _, choice in placement.choices():
        stem, _, number = choice.text.rpartition("#")  # a pattern of later calls, of which untraced models show none
        form = "stem" if choice.form == "name" else choice.form
        if names.unmet(choice) and not (number.isdecimal() and not names.unmet(Choice(stem, form))):
            raise ValueError(no_site("inject", choice, ["input", *(p for p, _ in paths_of(model) if p)]))


def refuse_hidden_rows(model: nn.Module, placement: Placement) -> None:
    """Around a (length, batch, features) layer, dimension 0 only looks like rows."""
    if (placement.noise is None and placement.hardware is None) or placement.row_dims:
        return
    for path, module in paths_of(model):
        if isinstance(module, nn.RNNBase | nn.MultiheadAttention) and not module.batch_first:
            raise ValueError(
                f"inject: {path or 'the model'!r} has batch_first=False, so rows may not lie along "
                "dimension 0 of the values around it; give example_input=... (or row_dims=...)"
            )

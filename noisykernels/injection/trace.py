"""The sites of an injected model, found by running it with B and with B + 1 rows: rows grow."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from noisykernels._util.checks import shown
from noisykernels._util.keeping import keeping_state
from noisykernels._util.runtime import evaluating
from noisykernels._util.warning import warn_user
from noisykernels.injection.descent import Descent, names_without, roles_of, values_with_rows
from noisykernels.injection.doors import paths_of
from noisykernels.injection.drawing import LEFT_OUT
from noisykernels.injection.first_forward import check_asked
from noisykernels.injection.kinds import KINDS, PREPARING
from noisykernels.injection.memory import Array
from noisykernels.injection.met import no_site, warn_of_results
from noisykernels.injection.mode import SiteMode
from noisykernels.injection.placement import Placement
from noisykernels.injection.record import Entry, Record
from noisykernels.injection.rows import ALONE, Rows, apart, close
from noisykernels.injection.running import begin, called, following, result_of
from noisykernels.injection.site import CACHED, PARTS, Choice, Names, Site, kind_of, path_of, whole_of
from noisykernels.injection.state import NoiseState, state_of
from noisykernels.noise.contract import site_ids

__all__ = [
    "arguments_of",
    "checked_example",
    "names_of",
    "open_results",
    "place",
    "recorded",
    "refuse_hidden_rows",
    "refuse_unknown",
    "trace",
]


Arguments = tuple[tuple[Any, ...], dict[str, Any]]
_NOTHING = contextlib.nullcontext()


def trace(model: nn.Module, example_input: Any) -> list[Site]:
    """The sites of an injected model; its state learns their numbers and where rows lie."""
    return _traced(model, example_input)[0]


def place(model: nn.Module, example_input: Any) -> None:
    """Traces a model that was just injected and looks up among its sites what was asked for."""
    state = state_of(model)
    found, mode = _traced(model, example_input)
    prepared = {site.name for site in found if site.alone and site.kind in PREPARING}
    mode.arrays = [name for name in mode.arrays if name not in prepared]
    state.placement = state.placement.understood(names_of(model, found, state.root))
    check_asked(model, state.placement, [site.name for site in found], mode)
    _tell_left_out(state)


def open_results(model: nn.Module, words: Sequence[str | type], example_input: Any) -> list[Site]:
    """The sites of a traced model, after it has been traced again if the words mean results of modules that are no
    sites yet, so that something can enter there later."""
    state = state_of(model)
    meant = Placement(where=tuple(words)).understood(names_of(model, state.traced, state.root))
    if meant.outputs <= state.outputs:
        return state.traced
    state.placement = replace(state.placement, outputs=meant.outputs)
    found, mode = _traced(model, example_input)
    warn_of_results(mode.closed)
    return found


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
    with keeping_state(model, forwards=True), evaluating(model):
        if state.detail:
            _find_written_out(model, (args, kwargs), (more, more_kwargs))
        (small, mode), (large, again) = _record(model, args, kwargs), _record(model, more, more_kwargs)
        places = _places([*small, *mode.lookups], [*large, *again.lookups], rows)
        unsure = {name for name, where in places.items() if where is UNSURE}
        if unsure:
            equal = pytree.tree_map(lambda a: _rows_like_the_first(a, rows, dim), (args, kwargs))
            runs = [_record(model, a, k, unsure) for a, k in ((args, kwargs), (more, more_kwargs), equal)]
            first, other, alike = ({e.name: e.value for e in (*run, *m.lookups)} for run, m in runs)
            for name in unsure:
                places[name] = _place_of_values(first.get(name), other.get(name), alike.get(name), rows)
        if mode.chooses:
            _refuse_coincidences(model, places, {e.name: e.shape for e in (*small, *mode.lookups)}, (args, kwargs), dim)
        others = {entry.name: entry for entry in large}
        entries = others | {entry.name: entry for entry in small}
        for name, (operands, array) in mode.noted.items():  # of attention's own products, which are no sites
            other = again.noted.get(name, (operands, None))[0]
            others[name], entries[name] = (Entry(name, (), shapes, array) for shapes in (other, operands))
            places[name] = ALONE if operands == other else places.get(whole_of(name) or name)
        state.operands = {n: _array(entry, others.get(n, entry)) for n, entry in entries.items() if entry.operands}
        if any(array is not None and entries[n].array is None for n, array in state.operands.items()):
            _, mode = _record(model, args, kwargs)  # in which they are known to be arrays
    order = [entry.name for entry in small] + [entry.name for entry in large if entry.name not in places]
    order.sort(key=lambda name: kind_of(name) == "module")  # asked for: the others keep their numbers
    ids = site_ids(order)
    calls: dict[str, tuple[str, ...]] = {}
    for call, first_call in mode.chip.of.items():
        calls[first_call] = (*calls.get(first_call, ()), call)
    found: list[Site] = []
    for name in order:
        kind, place, entry = kind_of(name), places.get(name), entries[name]
        if kind != "input" or (place is not None and place.outer > 0):  # an argument without rows is no site
            alone = place is not None and place.outer == 0
            row_dim, outer = (None, 1) if place is None or alone else (place.dim, place.outer)
            of_array = () if alone and kind in PREPARING else calls.get(name, ())
            found.append(Site(name, len(found), ids[name], kind, entry.shape, row_dim, of_array, outer, alone))
    names = state.parameters_of_forward
    given = {names[i] if i < len(names) else i: (a, b) for i, (a, b) in enumerate(zip(args, more, strict=True))}
    given |= {n: (a, more_kwargs[n]) for n, a in kwargs.items()}
    state.carriers = {n: a is not b for n, (a, b) in given.items()}
    state.site_ids = {site.name: site.id for site in found}
    state.places = dict.fromkeys(order) | places
    state.traced = found
    lost = [(name, where) for name, where in state.places.items() if where is None or where.outer == 0]
    modules = dict(paths_of(model, root=state.root))
    state.without_rows = [
        (name, modules.get(path_of(name), model), where is not None and name in ids)
        for name, where in lost
        if ":" in name
    ]
    state.placement = state.placement  # of which more is known now
    return list(found), mode


def _find_written_out(model: nn.Module, given: Arguments, more: Arguments) -> None:
    """Finds the attentions that a model writes out, and tells of products of values that are parts of none."""
    state, descent = state_of(model), Descent()
    state.roles = {}
    small, large = _record(model, *given, above=descent)[0], _record(model, *more)[0]
    values = values_with_rows(small, large)
    state.roles = roles_of(descent, values)
    kinds = {kind_of(entry.name) for entry in small}
    others = names_without(descent.products, state.roles)
    if lost := [others[name] for name in values if name in others]:
        warn_user(
            f"inject: detail='attention': {', '.join(map(repr, lost))}: products of two values that are no scores and "
            "no weighted sum of an attention, as far as can be told: no softmax of one alone is an operand of another"
        )
    elif not state.roles and "attention" not in kinds:
        warn_user("inject: detail='attention': the model runs no attention")


def arguments_of(example_input: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments: a tuple holds the former, a dict the latter."""
    if isinstance(example_input, Mapping):
        return (), dict(example_input)
    return (example_input if isinstance(example_input, tuple) else (example_input,)), {}


def checked_example(op: str, example_input: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of an example that is run as it is, with at least one row."""
    args, kwargs = arguments_of(example_input)
    if not any(isinstance(a, Tensor) and a.dim() and len(a) for a in (*args, *kwargs.values())):
        raise ValueError(f"{op}: example_input must hold a tensor with at least one row, got {shown(example_input)}")
    return args, kwargs


class Tracing(SiteMode):
    """Takes note of whether anything has a shape that follows values."""

    chooses = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in ("__getitem__", "index"):
            places = pytree.tree_leaves(args[1:])
            self.chooses |= any(isinstance(a, Tensor) and a.dtype is torch.bool and a.dim() > 0 for a in places)
        else:
            self.chooses |= name in ("nonzero", "argwhere", "masked_select", "unique") or (
                name == "where" and len(args) == 1 and not kwargs
            )
        return super().__torch_function__(func, types, args, kwargs)


def _refuse_coincidences(
    model: nn.Module, places: dict[str, Rows | None], shapes: dict[str, tuple[int, ...]], given: Any, dim: int
) -> None:
    """Values of as many entries as values say may have as many for each row by chance: not so for other data."""
    changes = (_negated, lambda a: _turned(a, dim), lambda a: _negated(_turned(a, dim)))
    for change in changes:
        args, kwargs = pytree.tree_map_only(Tensor, change, given)
        try:
            record, mode = _record(model, args, kwargs)
        except Exception:
            continue  # data that the model does not take tell nothing
        for name, shape, *_ in (*record, *mode.lookups):
            place = places.get(name)
            if place is None or place.outer == 0 or name not in shapes:
                continue
            if len(shape) != len(shapes[name]) or shape[place.dim] != shapes[name][place.dim]:
                places[name] = None


def _negated(a: Tensor) -> Tensor:
    return -a if a.is_floating_point() else a


def _turned(a: Tensor, dim: int) -> Tensor:
    return a.flip([d for d in range(a.dim()) if d != dim])


def _record(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], wanted: Collection[str] = (),
    above: contextlib.AbstractContextManager[Any] = _NOTHING,
) -> tuple[Record, Tracing]:  # fmt: skip
    """The sites of a noiseless forward, some with their values, and the mode that has found them; within `above`."""
    found: list[tuple[Record, Tracing]] = []

    def run(*args: Any, **kwargs: Any) -> Any:
        out, record, mode = _run_of_trace(model, state_of(model), args, kwargs, wanted, above)
        found.append((record, mode))
        return out

    args, kwargs = pytree.tree_map_only(Tensor, torch.clone, (args, kwargs))  # a model may write into them
    called(model, run, args, kwargs)
    if not found:
        raise RuntimeError("sites: a forward that was put on the model since does not call the model's own")
    return found[0]


def recorded(
    module: nn.Module, state: NoiseState, args: tuple[Any, ...], kwargs: dict[str, Any], wanted: Collection[str] = ()
) -> tuple[Record, Tracing]:
    """The same of a model or of a part that is called by itself, without what others have around their calls; tokens
    are followed."""
    args, kwargs = pytree.tree_map_only(Tensor, torch.clone, (args, kwargs))
    _, record, mode = _run_of_trace(module, state, args, kwargs, wanted, _NOTHING, follow=True)
    return record, mode


def _run_of_trace(
    module: nn.Module, state: NoiseState, args: Any, kwargs: dict[str, Any], wanted: Collection[str],
    above: contextlib.AbstractContextManager[Any], follow: bool = False,
) -> tuple[Any, Record, Tracing]:  # fmt: skip
    record: Record = []
    mode, args, kwargs = begin(module, state, args, kwargs, record, Tracing, follow)
    assert isinstance(mode, Tracing)
    mode.placement, mode.wanted = replace(mode.placement, noise=None, hardware=None), wanted
    with mode.belonging or _NOTHING, mode, following(module, state, mode), above:
        return result_of(mode, module, args, kwargs), record, mode


def _one_row_more(a: Any, rows: int, dim: int) -> Any:
    if isinstance(a, Tensor) and a.dim() > dim and a.shape[dim] == rows:
        return torch.cat([a, a.narrow(dim, 0, 1)], dim)
    return a


def _rows_like_the_first(a: Any, rows: int, dim: int) -> Any:
    if isinstance(a, Tensor) and a.dim() > dim and a.shape[dim] == rows:
        return a.index_select(dim, torch.zeros(rows, dtype=torch.int64, device=a.device))
    return a


UNSURE = Rows(-1, -1)  # shapes do not tell


def _places(small: Record, large: Record, rows: int) -> dict[str, Rows | None]:
    """Where values hold their rows, as far as shapes tell; None: they mix them, or other operations run for other
    numbers of rows, so that names do not mean the same."""
    counts: list[dict[str, int]] = []
    for record in (small, large):
        stems = [name.rpartition("#")[0] or name for name, *_ in record]
        counts.append({stem: stems.count(stem) for stem in stems})
    others = {entry.name: entry.shape for entry in large}
    found: dict[str, Rows | None] = {}
    for name, shape, *_ in small:
        stem = name.rpartition("#")[0] or name
        same = counts[0].get(stem) == counts[1].get(stem) and name in others
        found[name] = _place(shape, others[name], rows) if same else None
    return found


def _place(a: tuple[int, ...], b: tuple[int, ...], rows: int) -> Rows | None:
    """Of a value with these shapes for `rows` and for one more."""
    if len(a) != len(b):
        return None
    dims = [d for d in range(len(a)) if a[d] != b[d]]
    if not dims:
        return UNSURE
    dim = dims[0]
    if len(dims) > 1 or a[dim] % rows or a[dim] // rows * (rows + 1) != b[dim]:
        return None
    return Rows(dim) if a[dim] == rows else UNSURE


def _place_of_values(a: Tensor | None, b: Tensor | None, equal: Tensor | None, rows: int) -> Rows | None:
    """Of a value that is the same for all rows, or that holds them beside others in one dimension.

    Args:
        a, b: it for `rows` and for one more.
        equal: it where all rows are like the first: what only some rows come to differs then, or is not there.
    """
    if a is None or b is None or a.dim() != b.dim():
        return None
    if a.shape == b.shape:
        same = equal is not None and a.shape == equal.shape and close(a, b) and close(a, equal)
        return ALONE if same else None
    if equal is None or equal.shape != a.shape:  # as many entries as values say
        return None
    dim = next(d for d in range(a.dim()) if a.shape[d] != b.shape[d])
    several = a.shape[dim] // rows
    for outer in (n for n in range(1, several + 1) if several % n == 0):
        place = Rows(dim, outer, folded=True)
        of_a, of_b = apart(a, place, rows), apart(b, place, rows + 1)
        if of_a is not None and of_b is not None and close(of_a, of_b[:rows]):
            return place
    return None


def _array(a: Entry, b: Entry) -> Array | None:
    """Which operand of a product is an array: one in the model's memory, or one without rows beside one with them."""
    if a.array is not None:
        return a.array
    same = [x == y for x, y in zip(a.operands, b.operands, strict=True)]
    if same in ([True, False], [False, True]):
        number = same.index(True)
        return Array(number, tuple(range(len(a.operands[number]))))
    return None


def names_of(model: nn.Module, traced: list[Site] | None = None, root: str = "") -> Names:
    """What the sites of a model are called; untraced, any module may call any operation."""
    modules = list(paths_of(model, every=True, root=root))
    if traced is not None:
        return Names([site.name for site in traced], modules)
    kinds = dict.fromkeys((*KINDS.values(), *PARTS, "softmax", "noise", "module"))
    stems = (f"{path}:{kind}" for path, _ in paths_of(model, root=root) for kind in kinds)
    return Names(["input", *(f"{stem}#0" for stem in (*CACHED, *stems))], modules)


def refuse_unknown(placement: Placement, names: Names) -> None:
    """A word that can choose no site is a mistake, which is seen before anything runs; of untraced models."""
    for _, choice in placement.choices():
        stem, _, number = choice.text.rpartition("#")  # a pattern of later calls, of which untraced models show none
        form = "stem" if choice.form == "name" else choice.form
        if names.unmet(choice) and not (number.isdecimal() and not names.unmet(Choice(stem, form))):
            raise ValueError(no_site("inject", choice, ["input", *filter(None, names.modules)]))


def _tell_left_out(state: NoiseState) -> None:
    """One warning that names the sites that noise was meant for among others, and cannot enter."""
    for name, module, alone in state.without_rows:
        if not alone and not state.placement.means(name) and state.placement.at(name, module) is not None:
            state.left.add(name)
    if state.left:
        warn_user(f"inject: {LEFT_OUT} {', '.join(map(repr, sorted(state.left)))}")


def refuse_hidden_rows(model: nn.Module, placement: Placement) -> None:
    """Around a (length, batch, features) layer, dimension 0 only looks like rows."""
    if (placement.noise is None and placement.hardware is None) or placement.row_dims:
        return
    for path, module in paths_of(model, root=state_of(model).root):
        if isinstance(module, nn.RNNBase | nn.MultiheadAttention) and not module.batch_first:
            raise ValueError(
                f"inject: {path or 'the model'!r} has batch_first=False, so rows may not lie along "
                "dimension 0 of the values around it; give example_input=... (or row_dims=...)"
            )

"""Where the values at the sites of a model hold tokens: found by running it with one sequence more, and one token more.

The runs are small: of two sequences of three tokens, made of those of the call that asks.
"""

from __future__ import annotations

import linecache
import math
import traceback
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from noisykernels._util.keeping import keeping_state
from noisykernels._util.runtime import evaluating
from noisykernels.injection.belonging import Followed
from noisykernels.injection.doors import door_of
from noisykernels.injection.record import Entry
from noisykernels.injection.routed import elements_of, stem_of
from noisykernels.injection.rows import Rows, close
from noisykernels.injection.rows import apart as rows_apart
from noisykernels.injection.shards import in_group, is_tensor_parallel, tensors_of
from noisykernels.injection.site import kind_of
from noisykernels.injection.state import NoiseState, is_injected
from noisykernels.injection.tokens import CACHES, ROUTED, Place, apart, encodes, held_by, names_of_streams
from noisykernels.injection.trace import recorded
from noisykernels.injection.whole import find_whole

__all__ = ["find_places"]

_SIZES = (2, 3, 4)  # sequences, tokens, tokens of the encoder
_PACKAGE = str(Path(__file__).parents[1])
_KEYED = ("scores", "softmax", "attention", "matmul", "bmm", "baddbmm", "einsum")  # what may have a row of keys


def find_places(module: nn.Module, state: NoiseState, args: Any, kwargs: dict[str, Any]) -> dict[str, Place | str]:
    """Where the values of a model, or of a part that is called by itself, hold tokens; of others, why it is not known.

    Args:
        args, kwargs: of the call that asks.
    """
    door = door_of(module)
    names = state.parameters_of_forward if is_injected(module) or door is None else door.parameters
    given: dict[Any, Any] = {(names[i] if i < len(names) else i): a for i, a in enumerate(args)} | kwargs
    main, other = names_of_streams(given, encodes(module))
    steps = {"": (0, 0, 0), "b": (1, 0, 0), **({"t": (0, 1, 0)} if main else {}), **({"e": (0, 0, 1)} if other else {})}

    def run(step: tuple[int, int, int], wanted: Collection[str] = ()) -> dict[str, Entry]:
        sizes = tuple(n + more for n, more in zip(_SIZES, step, strict=True))
        small = _sized(given, main, other, sizes)
        positional = tuple(small[names[i] if i < len(names) else i] for i in range(len(args)))
        named = {n: a for n, a in small.items() if n in kwargs}
        if in_group() and is_tensor_parallel(module, (positional, named)):
            whole = find_whole(module, positional, named, tensors_of(module))
            if whole.unknown:
                raise RuntimeError(whole.unknown)
            return {name: Entry(name, shape) for name, shape in whole.shapes.items()}
        found, mode = recorded(module, state, positional, named, wanted)
        return {entry.name: entry for entry in (*found, *mode.lookups)}

    with keeping_state(module), evaluating(module):
        try:
            runs = {which: run(step) for which, step in steps.items()}
        except Exception as error:
            raise RuntimeError(
                f"noise_state: the tokens of the model cannot be told: it does not run on {_SIZES[0]} sequences of "
                f"{_SIZES[1]} tokens, or on one more of either: {error} ({_where(error)})"
            ) from error
        shapes = {which: {name: entry.shape for name, entry in entries.items()} for which, entries in runs.items()}
        places = {name: _place(name, shapes) for name in shapes[""]}
        unsure = {n for n, p in places.items() if isinstance(p, Place) and (p.outer or p.merged or p.token is None)}
        held = {name: entry.held for name, entry in runs[""].items()}
        may = {stem_of(n) for n, p in places.items() if _is_routed(p, held[n]) or (n in unsure and _is_chosen(held[n]))}
        wanted = unsure | {name for entries in runs.values() for name in entries if stem_of(name) in may}
        if wanted:
            values = {which: run(step, wanted) for which, step in steps.items()}
            alike = [v for which, v in values.items() if which != "e"]
            for name in unsure:
                places[name] = _by_values(places[name], [v[name].value if name in v else None for v in alike])
            for stem in may & {stem_of(name) for name, place in places.items() if _is_routed(place, held[name])}:
                if _is_of_tokens_alone([[e for n, e in v.items() if stem_of(n) == stem] for v in alike]):
                    places |= {n: ROUTED for v in values.values() for n in v if stem_of(n) == stem}
    return {
        name: _with_loss(place, [run[name] for run in runs.values() if name in run]) for name, place in places.items()
    }


def _where(error: Exception) -> str:
    """The line of code that has failed, and the module that it is in."""
    path, line = "", ""
    for frame, number in traceback.walk_tb(error.__traceback__):
        own = frame.f_locals.get("self")
        code, door = frame.f_code, door_of(own) if isinstance(own, nn.Module) else None
        if door is not None and code.co_name == "forward" and not code.co_filename.startswith(_PACKAGE):
            path, line = door.path, linecache.getline(code.co_filename, number).strip()
    return f"module {path!r}: {line}" if path else f"in the model itself: {line}"


def _is_routed(place: Place | str, held: Followed | None) -> bool:
    """Whether following tokens may tell more of a value than shapes, which may grow with tokens by chance."""
    if isinstance(place, str):
        return held is not None and not held.lost
    return place.token is None and _is_chosen(held)


def _is_chosen(held: Followed | None) -> bool:
    return held is not None and not held.lost and held.chosen


def _is_of_tokens_alone(runs: list[list[Entry]]) -> bool:
    """Whether what belongs to a token at the calls of an operation is the same whatever other sequences there are, and
    as much whatever other tokens: in forwards of two sequences, of one more, and of one more token."""
    found = [_by_token(run, _SIZES[1] + (number == 2)) for number, run in enumerate(runs)]
    base, more = found[0], found[1:]
    if not base:
        return False
    for number, other in enumerate(more):
        for token, parts in base.items():
            others = () if other is None else other.get(token, ())
            if [a.shape for a in parts] != [a.shape for a in others]:
                return False
            if number == 0 and not all(map(close, parts, others)):
                return False
    return True


def _by_token(entries: list[Entry], count: int) -> dict[tuple[int, ...], list[Tensor]] | None:
    """What each token of a forward with so many of them has at the calls of an operation."""
    found: dict[tuple[int, ...], list[Tensor]] = {}
    for entry in entries:
        if entry.value is None or entry.held is None or entry.held.lost:
            return None
        value, tokens = elements_of(entry.held, entry.value)
        for token in tokens.unique().tolist():
            if token >= 0:
                found.setdefault(divmod(token, count), []).append(value[tokens == token].flatten())
    return found


def _with_loss(place: Place | str, entries: list[Entry]) -> Place | str:
    """A place with the operation that took tokens together, as far as they were followed, in several runs."""
    held = [entry.held for entry in entries if entry.held is not None]
    which = next((known.lost for known in held if known.lost), "")
    if isinstance(place, Place):
        return place._replace(lost=which) if place.token is None and place != ROUTED else place
    if not held:
        return f"{place}: nothing that goes into it belongs to a token"
    return f"{place}: {which} lost them" if which else f"{place}, and what is a token's depends on others"


def _sized(given: Mapping[Any, Any], main: Any, other: Any, sizes: tuple[int, ...]) -> dict[Any, Any]:
    """The arguments for so many sequences and tokens, without a cache."""
    batch, *counts = sizes
    of_main = held_by(given, main) if main is not None else next(a for a in given.values() if isinstance(a, Tensor))
    of_other = None if other is None else held_by(given, other)
    decoder = other is not None or str(main).startswith(("decoder_", "labels"))

    def small(name: Any, a: Any) -> Any:
        if hasattr(a, "get_seq_length") or name in CACHES:
            return None
        if name == "use_cache":
            return False
        if name == "logits_to_keep":
            return 0
        if name == "encoder_outputs":
            return pytree.tree_map_only(Tensor, lambda t: _taken(t, of_other, batch, counts[1]), a)
        if not isinstance(a, Tensor):
            return None if "attention_mask" in str(name) else a
        mine = main is not None and (name == main or not decoder or str(name).startswith(("decoder_", "labels")))
        like, count = (of_main, counts[0]) if mine else (of_other, counts[1])
        if name == main and a.shape[0] and a.shape[1]:
            return _various(a, batch, count)
        if "attention_mask" in str(name):
            return a.new_ones(batch, count) if a.dim() == 2 else None
        if "position_ids" in str(name) and a.dim() == 2:
            return torch.arange(count, device=a.device).expand(batch, -1)
        if name == "cache_position":
            return torch.arange(count, device=a.device)
        return _taken(a, like if like is not None else of_main, batch, count if like is not None else None)

    return {name: small(name, a) for name, a in given.items()}


def _various(a: Tensor, batch: int, count: int) -> Tensor:
    """Tokens (sequences, tokens, ...) of which no two are alike, as far as those that are given allow."""
    number = 5 * torch.arange(batch, device=a.device).unsqueeze(1) + torch.arange(count, device=a.device)
    if not a.is_floating_point():
        return (number % (int(a.max()) + 1 if a.numel() else 1)).to(a.dtype)
    first = a.select(0, 0).select(0, 0).expand(batch, count, *a.shape[2:])
    return first * (1 + 0.1 * number.reshape(batch, count, *[1] * (a.dim() - 2))).to(a.dtype)


def _taken(a: Tensor, like: Tensor | None, batch: int, count: int | None) -> Tensor:
    """A tensor with as many sequences and tokens as are asked for, where it has those of another."""
    if like is None:
        return a
    if a.dim() > 0 and a.shape[0] == like.shape[0]:
        a = a.index_select(0, torch.arange(batch, device=a.device) % max(1, a.shape[0]))
    elif a.dim() > 2 and a.shape[1] == like.shape[0]:  # positions of several kinds
        a = a.index_select(1, torch.arange(batch, device=a.device) % max(1, a.shape[1]))
        return _counted(a, 2, like, count)
    return _counted(a, 1, like, count)


def _counted(a: Tensor, dim: int, like: Tensor, count: int | None) -> Tensor:
    if count is None or a.dim() <= dim or a.shape[dim] != like.shape[1]:
        return a
    return a.index_select(dim, torch.arange(count, device=a.device) % max(1, a.shape[dim]))


def _place(name: str, shapes: Mapping[str, Mapping[str, tuple[int, ...]]]) -> Place | str:
    """Where a value holds tokens, as far as shapes tell; or why that is not known."""
    base = shapes[""][name]
    grown: dict[str, list[int]] = {}
    for which in shapes.keys() - {""}:
        shape = shapes[which].get(name)
        if shape is None or len(shape) != len(base):
            return "other operations run for other numbers of tokens"
        grown[which] = [d for d, (a, b) in enumerate(zip(base, shape, strict=True)) if a != b]
    b, t, e = (grown.get(which, []) for which in "bte")
    if not b:
        return "no dimension of it counts sequences"
    if len(b) > 1:
        return f"sequences lie along its dimensions {b[0]} and {b[1]}"
    dim, outer = b[0], int(base[b[0]] != _SIZES[0])
    if not t and not e:
        return Place(dim, None, outer)
    size = math.prod(base) // (_SIZES[0] * _SIZES[1 + (not t)])
    stream, mine, others = (0, t, e) if t else (1, e, [])
    count = _SIZES[1 + stream]
    last = len(base) - 1
    if mine == [dim] and not others:
        if base[dim] != _SIZES[0] * count:
            return "several values of each token are folded together with sequences and tokens"
        return Place(dim, dim, merged=True, stream=stream, size=size)
    if mine[0] == dim or dim in others or len(mine) > 2 or len(others) > 1:
        return "tokens are folded together with sequences"
    if base[mine[0]] != count:
        return "several values of each token are folded together with tokens"
    keys = 1 if others else stream if len(mine) == 2 else None
    if keys is None:
        return Place(dim, mine[0], outer, stream=stream, size=size)
    if (others or mine[1:]) != [last] or kind_of(name) not in _KEYED or base[last] != _SIZES[1 + keys]:
        return "tokens lie along several of its dimensions, and it is no score of an attention"
    return Place(dim, mine[0], outer, keys=keys, stream=stream, size=size // base[last])


def _by_values(place: Place | str, values: list[Tensor | None]) -> Place | str:
    """What only values tell: in which order sequences are folded, and whether tokens change what a sequence has."""
    assert isinstance(place, Place)
    base, more, *longer = values
    if base is None or more is None:
        return "its values could not be seen"
    batch = _SIZES[0]
    if place.merged:
        a, b = apart(base, place, batch), apart(more, place, batch + 1)
        known = a is not None and b is not None and close(a, b[:batch])
        return place if known else "tokens are folded together with sequences in an order of its own"
    if place.outer:
        several = base.shape[place.batch] // batch
        for outer in (n for n in range(1, several + 1) if several % n == 0):
            rows = Rows(place.batch, outer, folded=True)
            a, b = rows_apart(base, rows, batch), rows_apart(more, rows, batch + 1)
            if a is not None and b is not None and close(a, b[:batch]):
                place = place._replace(outer=outer)
                break
        else:
            return "other values are folded together with sequences"
    if place.token is None:
        free = not longer or (longer[0] is not None and longer[0].shape == base.shape and close(base, longer[0]))
        place = place._replace(free=free)
    return place

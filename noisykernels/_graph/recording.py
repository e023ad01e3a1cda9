"""Records a model's forward as steps: every operation on tensors, in order, without noise.

What an operation does inside is seen too, below torch's functions: which memory it writes into, and whether it turns
values into numbers. Writing in place becomes an operation that gives a new value; where other values share the memory,
they are made anew from it. What cannot be understood in this way ends the recording with a reason. No value is kept:
what the model lets go is free.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from noisykernels._graph.in_place import HERE, Output, View, memory_of, out_of_place, seen, write_through
from noisykernels._graph.inside import Inside
from noisykernels._graph.operations import METADATA, SIZES, is_trusted, name_of
from noisykernels._graph.tape import Asked, NotTraceable, Step, Value, is_symbol
from noisykernels._util.inputs import Call, Inputs
from noisykernels.injection.attention import multi_head_attention_forward
from noisykernels.injection.eagerly import eagerly
from noisykernels.injection.kinds import KINDS, RECURRENT, SEVERAL
from noisykernels.injection.mode import SiteMode
from noisykernels.injection.placement import Placement
from noisykernels.injection.products import Pair, pairs_of
from noisykernels.injection.recurrent import with_noise
from noisykernels.injection.running import begin, result_of
from noisykernels.injection.site import kind_of, whole_of
from noisykernels.injection.state import state_of
from noisykernels.injection.values import Change
from noisykernels.nn.signals import cached, draw_layer
from noisykernels.noise.description import Noise

__all__ = ["Recording", "recorded"]

_LIKE_FIRST = frozenset("index_add index_put index_copy __setitem__".split())  # whose results have the first's shape
_OF_SHAPE = frozenset("squeeze_ unsqueeze_ t_ transpose_ swapaxes_ swapdims_ detach_".split())
_CHOOSE = ("__getitem__", "index")  # whose boolean indices say how many entries there are
_AS = {"expand_as": Tensor.expand, "view_as": Tensor.view, "reshape_as": Tensor.reshape}  # which take a shape
# What makes values of a tensor's shape and type alone, and of empty memory: whatever lies there must not be read.
_MAKERS = {"empty": torch.zeros} | {
    f"{before}{name}{after}": torch.zeros if name == "empty" else getattr(torch, name)
    for name in ("zeros", "ones", "full", "empty") for before, after in (("new_", ""), ("", "_like"))
}  # fmt: skip


class Recording(NamedTuple):
    """What a forward did: its steps (the inputs are the first values), what its code asked in between, the number of
    its result, and the result."""

    steps: list[Step]
    asked: list[Asked]
    result: int
    scores: Tensor
    given: int  # how many inputs there are
    inputs: dict[str, int]  # those of them that are sites
    of_input: list[weakref.ref[Tensor]]  # tensors that depend on the inputs

    def alive(self) -> list[Tensor]:
        """Tensors that depend on the inputs and that something keeps."""
        return [t for ref in self.of_input if (t := ref()) is not None]

    def constants(self) -> list[Tensor]:
        """Tensors that come from outside."""
        leaves = (pytree.tree_leaves((s.args, s.kwargs), is_leaf=is_symbol) for s in self.steps)
        return [a for some in leaves for a in some if isinstance(a, Tensor)]


_Lineage = tuple[int, tuple[View, ...]]  # the value that memory was made for, and how this one looks at it


class _Recorder(SiteMode):
    """Runs a forward without noise and writes down every operation on tensors."""

    def start(self, inputs: Sequence[Tensor], inside: Inside) -> None:
        self.inside = inside
        self.steps: list[Step] = []
        self.count = 0
        self.known: dict[int, tuple[weakref.ref[Tensor], int]] = {}  # by identity: the value that a tensor is
        self.sharing: dict[int, dict[int, weakref.ref[Tensor]]] = {}  # by memory: tensors
        self.lineage: dict[int, _Lineage] = {}
        self.depends = {self._allocate() for _ in inputs}  # values that depend on the inputs
        self.sized: set[int] = set()  # and those whose shape may as well
        self.in_parts = False
        self.asked: list[Asked] = []
        self.floating = {n for n, t in enumerate(inputs) if not _is_whole(t)}
        self.autocast = _autocast(inputs[0])
        for number, t in enumerate(inputs):
            self._becomes(t, number)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        assert self.record is not None
        if (by_parts := self._by_parts(func, args, kwargs)) is not None:
            with self:
                self.in_parts = True
                try:
                    return by_parts()
                finally:
                    self.in_parts = False
        tensors = [a for a in pytree.tree_leaves((args, kwargs)) if isinstance(a, Tensor)]
        numbers = [n for t in tensors if (n := self.number(t)) is not None]
        before = len(self.record)
        if tensors and _autocast(tensors[0]) != self.autocast:
            raise NotTraceable("it switches autocast on or off by itself")
        if any(torch._C._functorch.is_functorch_wrapped_tensor(t) for t in tensors):
            raise NotTraceable(f"{name_of(func)} runs inside a transform of torch.func")
        self.inside.written, self.inside.numbers = set(), False
        if self.in_parts:  # only its own sites count, which come by `site` and `at`
            out = func(*args, **kwargs)
        else:
            out = super().__torch_function__(func, types, args, kwargs)
        if func is cached and len(self.record) == before:  # no sites were asked for: keys and values as they are
            return out
        leaves = pytree.tree_leaves(out)
        given = [t for t in leaves if isinstance(t, Tensor)]
        if name_of(func) == "one_hot" and kwargs.get("num_classes", args[1] if len(args) > 1 else -1) >= 0:
            self.inside.numbers = False  # to check their range
        if self._tells_numbers(func, numbers, [a for a in leaves if a is not None and not isinstance(a, Tensor)]):
            self._ask(func, args, kwargs, numbers, out, given)
        if func is draw_layer:  # without its noise
            _, kind, _, *args = args
            func = torch.Tensor.view_as if kind == "noise" else getattr(F, kind)
            args = (args[0], args[0]) if kind == "noise" else tuple(args)
            kwargs = {name: a for name, a in kwargs.items() if name != "hardware"}
        if given or self.inside.written:
            names = tuple(name for name, *_ in self.record[before:])
            if len(names) == 2 and whole_of(names[0]) == names[1] and isinstance(out, Tensor):
                self._write(func, tuple(args), dict(kwargs), given, tensors, names[:1])
                func, args, kwargs, tensors, names = Tensor.view_as, (out, out), {}, [out], names[1:]
                out = out.view_as(out)  # the result of an attention, which is that of its weighted sum
                given, self.inside.written = [out], set()
            self._write(func, tuple(args), dict(kwargs), given, tensors, names)
        return out

    def _by_parts(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Callable[[], Any] | None:
        """How to run one call of which each part becomes a step; None: it is a step."""
        if func is F.multi_head_attention_forward:
            return partial(multi_head_attention_forward, self, *args, **kwargs)
        kind = KINDS.get(func, "")
        if self.in_parts or self.muted:
            return None
        if kind == "attention" and self.placement.detail:
            return partial(self._kernel, args, kwargs)
        if kind in RECURRENT:
            return partial(self._layer_of_steps, kind, func, args, kwargs)
        pairs = pairs_of(kind, args, kwargs) if kind in SEVERAL and "out" not in kwargs else None
        return partial(self._products, kind, pairs) if pairs is not None and len(pairs) > 1 else None

    def _products(self, kind: str, pairs: list[Pair]) -> Tensor:
        """A product of several, of which each is a site."""
        value: Tensor | None = None
        for name, pair in zip([self.name(kind) for _ in pairs], pairs, strict=True):
            value = self.at(name, None, pair(value).plainly())
        assert value is not None
        return value

    def _layer_of_steps(self, kind: str, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """A recurrent layer, whose noisy output is the last state as well."""
        return with_noise(self, self.name(kind), None, args, func(*args, **kwargs))

    def part(self, name: str, part: str, a: Tensor, b: Tensor, row_dim: int | None = None) -> Tensor:
        """See `Attending`: a product of an attention that is recorded call by call."""
        product = torch.matmul(a, b)
        return self.at(self.name(part), None, product, row_dim) if self.placement.detail else product

    def _kernel(self, args: Any, kwargs: dict[str, Any]) -> Tensor:
        """torch's attention, written out."""
        name = self.name("attention")
        made = self.attended(name, args, kwargs, None)
        if made is None:
            raise NotTraceable(f"{name} cannot be written out")
        return self.at(name, None, made)

    def site(self, kind: str, func: Any, args: Any, kwargs: dict[str, Any], row_dim: int | None = None) -> Any:
        """A call of an operation that makes a site; of a part, it comes back to this mode as it is."""
        if not self.in_parts:
            return super().site(kind, func, args, kwargs, row_dim)
        name = self.name(kind)
        return self.at(name, None, func(*args, **kwargs), row_dim)

    def at(self, name: str, noise: Noise | Change | None, clean: Tensor, row_dim: int | None = None) -> Tensor:
        """The value at a site; among parts, that of the last step."""
        other = kind_of(name) in ("module", *RECURRENT)  # which may be that of another site, or not of the last step
        if self.in_parts or other:
            clean = clean.view_as(clean) if other or self.steps[-1].names else clean
            self.steps[-1].names = (name,)
        return super().at(name, noise, clean, row_dim)

    def is_place(self, name: str, value: Tensor) -> bool:
        """See `SiteMode`: what the trace has found."""
        return name in self.places

    def number(self, t: Tensor) -> int | None:
        """The value that a tensor is; None: a parameter, or anything else from outside."""
        held, number = self.known.get(id(t), (None, None))
        return number if held is not None and held() is t else None

    def _allocate(self, lineage: _Lineage | None = None) -> int:
        """The number of a new value."""
        number, self.count = self.count, self.count + 1
        self.lineage[number] = lineage or (number, ())
        return number

    def _becomes(self, t: Tensor, number: int) -> None:
        """A tensor is this value from now on."""
        held = weakref.ref(t)
        self.known[id(t)] = held, number
        self.sharing.setdefault(memory_of(t), {})[id(t)] = held

    def _tells_numbers(self, func: Any, numbers: Sequence[int], others: Sequence[Any]) -> bool:
        """Whether code learns something of values: what it decides by that, no list of operations shows."""
        if getattr(func, "__name__", "") == "__set__":
            raise NotTraceable(f"{name_of(func)} is assigned to a tensor")
        known = name_of(func) in METADATA and (name_of(func) not in SIZES or self.sized.isdisjoint(numbers))
        return (self.inside.numbers or (bool(others) and not known)) and not self.depends.isdisjoint(numbers)

    def _ask(self, func: Any, args: Any, kwargs: Any, numbers: Sequence[int], answer: Any, given: list[Tensor]) -> None:
        """Writes down what is learnt of values that noise does not reach, which stays the same with it; of others, it
        is decided anew."""
        if given or name_of(func) in SIZES or self._may_be_noisy(numbers):
            raise NotTraceable(f"{name_of(func)} turns values into numbers")
        args, kwargs = self._symbols((tuple(args), dict(kwargs)))
        self.asked.append(Asked(Step(func, args, kwargs, ()), answer))

    def _may_be_noisy(self, numbers: Sequence[int]) -> bool:
        """Whether noise may reach one of these values: of a site, an input, or a parameter."""
        wanted = set(numbers)
        for step in reversed(self.steps):
            if wanted.isdisjoint(step.outputs):
                continue
            leaves = pytree.tree_leaves((step.args, step.kwargs), is_leaf=is_symbol)
            if step.names or not all(_is_whole(a) for a in leaves if isinstance(a, Tensor)):
                return True
            wanted |= set(step.inputs)
        return not wanted.isdisjoint(self.floating)

    def _symbols(self, tree: Any, here: Tensor | None = None) -> Any:
        """Arguments with symbols for the values among them."""

        def symbol(a: Any) -> Any:
            if here is not None and a is here:
                return HERE
            number = self.number(a) if isinstance(a, Tensor) else None
            return a if number is None else Value(number)

        return pytree.tree_map(symbol, tree)

    def _append(
        self, func: Any, args: Any, kwargs: Any, leaves: Sequence[Tensor], parent: Tensor | None = None,
        calls: tuple[Any, ...] = (),
    ) -> Step:  # fmt: skip
        """Writes down a step, whose tensors are new values; those in the memory of `parent` are views of it."""
        step = Step(func, args, kwargs, (), calls)
        lineages: list[_Lineage | None] = []
        for i, leaf in enumerate(leaves):
            of_it = None
            if parent is not None and memory_of(leaf) == memory_of(parent):
                root, views = self._lineage(parent)
                view = View(func, *self._looked_through(args, kwargs, parent), i)
                of_it = (root, views if leaf is parent and not calls else (*views, view))
            lineages.append(of_it)
        step.outputs = tuple(map(self._allocate, lineages))
        for leaf, number in zip(leaves, step.outputs, strict=True):
            self._becomes(leaf, number)
        self._written_down(step)
        return step

    def _written_down(self, step: Step) -> None:
        if not self.depends.isdisjoint(step.inputs):
            self.depends |= set(step.outputs)
            first = step.args[0] if step.args else None
            by_first = name_of(step.function) in _LIKE_FIRST and isinstance(first, Value)
            read = {first.number} if by_first else set(step.inputs)  # type: ignore[union-attr]
            if not self.sized.isdisjoint(read) or not is_trusted(step.calls) or _counts(step):
                self.sized |= set(step.outputs)
        self.steps.append(step)

    def _lineage(self, t: Tensor) -> _Lineage:
        number = self.number(t)
        return (-1, ()) if number is None else self.lineage[number]  # -1: memory from outside

    def _looked_through(self, args: Any, kwargs: Any, parent: Tensor) -> tuple[Any, Any]:
        symbol = self.number(parent)

        def here(a: Any) -> Any:
            return HERE if a is parent or (isinstance(a, Value) and a.number == symbol) else a

        found: tuple[Any, Any] = pytree.tree_map(here, (args, kwargs))
        return found

    def _write(
        self, func: Any, args: Any, kwargs: Any, leaves: list[Tensor], tensors: list[Tensor], names: tuple[str, ...]
    ) -> None:
        written = self.inside.written
        targets = [t for t in tensors if t.numel() and memory_of(t) in written]
        if targets:
            self._write_into(func, args, kwargs, leaves, targets, names)
            return
        if any(self._alive(memory) for memory in written):
            raise NotTraceable(f"{name_of(func)} writes into a tensor that it is not given")
        if not leaves:
            return
        if (made := _MAKERS.get(name_of(func))) is not None:
            named = {"full_like": 1, "new_full": 2}.get(name_of(func))
            fill = () if named is None else (args[named] if len(args) > named else kwargs["fill_value"],)
            func, args = made, (list(leaves[0].shape), *fill)
            kwargs = {"dtype": leaves[0].dtype, "device": leaves[0].device}
        elif name_of(func) == "new_tensor" and not isinstance(args[1], Tensor):
            func, args, kwargs = torch.tensor, args[1:2], {"dtype": leaves[0].dtype, "device": leaves[0].device}
        elif name_of(func) in _AS and len(args) == 2 and not kwargs and self.number(args[1]) not in self.sized:
            func, args = _AS[name_of(func)], (args[0], list(leaves[0].shape))
        parent = next((t for t in tensors if t.numel() and any(memory_of(t) == memory_of(x) for x in leaves)), None)
        chooses = _masks(args[1:]) if name_of(func) in _CHOOSE else []
        args, kwargs = self._symbols((args, kwargs))
        step = self._append(func, args, kwargs, leaves, parent)
        step.names = names
        if any(self.number(t) in self.depends for t in chooses):
            self.sized |= set(step.outputs)

    def _alive(self, memory: int) -> list[Tensor]:
        """The values that lie in some memory."""
        held = ((ref(), key) for key, ref in self.sharing.get(memory, {}).items())
        return [t for t, key in held if t is not None and self.number(t) is not None and id(t) == key]

    def _write_into(
        self, func: Any, args: Any, kwargs: Any, leaves: list[Tensor], targets: list[Tensor], names: tuple[str, ...]
    ) -> None:
        """What writes into its first argument, or into `out`, as an operation that gives a new value."""
        main = kwargs.get("out") if isinstance(kwargs.get("out"), Tensor) else targets[0]
        name = name_of(func)
        if any(memory_of(t) != memory_of(main) for t in targets) or any(leaf is not main for leaf in leaves):
            raise NotTraceable(f"{name} writes into several tensors")
        if (number := self.number(main)) is None or self.lineage[number][0] < 0:
            raise NotTraceable(f"{name} writes into a tensor that is no value of this forward")
        others = [t for t in self._alive(memory_of(main)) if t is not main]
        alone = not others or name in _OF_SHAPE
        if alone or names:  # the noise of a site comes before the value is written
            plain, plain_args, plain_kwargs = out_of_place(func, args, kwargs, main)
            plain_args, plain_kwargs = self._symbols((plain_args, plain_kwargs))
            number, parent = self.number(main), main if name in _OF_SHAPE else None
            step = self._append(plain, plain_args, plain_kwargs, [main], parent, (func,))
            step.names = names
            if alone:
                return
            assert number is not None
            self.lineage[step.outputs[0]] = self.lineage[number]
            func, args, kwargs = Tensor.copy_, (main, Value(step.outputs[0])), {}
        root, views = self._lineage(main)
        looks = [(t, self._lineage(t)[1]) for t in (main, *others)]
        steps = [[v.function, v.args, v.kwargs, v.output] for v in views]
        written = (Value(root), steps, func, *self._symbols((args, kwargs), main))
        step = Step(write_through, written, {}, (self._allocate(),), (*(v.function for v in views), func))
        self._written_down(step)
        for t, chain in looks:
            self._look_again(t, chain, step.outputs[0])

    def _look_again(self, t: Tensor, chain: tuple[View, ...], base: int) -> None:
        """The value of a view of memory that has been written into."""
        number = base
        for i, view in enumerate(chain):
            args, kwargs = seen(Value(number), view)
            number = self._allocate((base, chain[: i + 1]))
            self._written_down(Step(Output(view.function, view.output), args, kwargs, (number,), (view.function,)))
        self._becomes(t, number)


def _masks(indices: Any) -> list[Tensor]:
    """Those that say by their values how many entries there are."""
    return [t for t in pytree.tree_leaves(indices) if isinstance(t, Tensor) and t.dtype in (torch.bool, torch.uint8)]


def _is_whole(t: Tensor) -> bool:
    """Whether its values are whole numbers or bits, which take no noise."""
    return not (t.is_floating_point() or t.is_complex())


def _counts(step: Step) -> bool:
    """Whether a step gives as many places as values say."""
    return name_of(step.function) == "where" and len(step.args) + len(step.kwargs) < 2


def recorded(model: nn.Module, inputs: Inputs, call: Call) -> Recording:
    """Runs an injected model without noise.

    Raises:
        NotTraceable: with the reason.
    """
    state = state_of(model)
    mode, args, kwargs = begin(model, state, *inputs.arguments, [])
    keys = [*state.parameters_of_forward[: len(args)], *range(len(state.parameters_of_forward), len(args)), *kwargs]
    silent = Placement(layers_own=False, detail=state.detail, outputs=state.outputs)
    recorder = _Recorder(silent, mode.key, model, state.site_ids, state.places, mode.record)
    inside = Inside()
    recorder.owner, recorder.roles = state, state.roles
    recorder.start([*args, *kwargs.values()], inside)
    before = _generators(inputs.device)
    with eagerly(), inside, recorder:
        out = call.picked(result_of(recorder, model, args, kwargs))
    if any(not torch.equal(a, b) for a, b in zip(before, _generators(inputs.device), strict=True)):
        raise NotTraceable("it draws random numbers of its own")
    result = recorder.number(out) if isinstance(out, Tensor) else None
    if result is None:
        raise NotTraceable("the model's result is not the value of one of its operations")
    sites = {name: keys.index(key) for name, key in mode.inputs.items()}
    of_input = [ref for ref, number in recorder.known.values() if number in recorder.depends]
    return Recording(recorder.steps, recorder.asked, result, out, len(keys), sites, of_input)


def _generators(device: torch.device) -> list[Tensor]:
    """States of torch's own random numbers."""
    return [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])


def _autocast(x: Tensor) -> torch.dtype | None:
    """The type that autocast computes in where a tensor is."""
    kind = x.device.type
    on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if on else None

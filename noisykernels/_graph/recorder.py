"""Records a model's forward as a tape, from three runs with B, B + 1 and B + 2 rows.

What grows with the rows is thereby known, never guessed: which dimension of a value counts rows, and which whole
numbers among the arguments (``x.view(B * T, -1)``) must follow them. Operations in place become ones that give a new
value.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from noisykernels._graph.tape import NotTraceable, Rows, Step, Tape, Value, is_symbol, repeated
from noisykernels._util.runtime import evaluating
from noisykernels.injection.attention import multi_head_attention_forward
from noisykernels.injection.kinds import INPLACE_AT, RECURRENT
from noisykernels.injection.mode import SiteMode
from noisykernels.injection.placement import Placement
from noisykernels.injection.site import kind_of
from noisykernels.injection.state import begin, original_class, state_of
from noisykernels.nn.signals import draw_layer
from noisykernels.noise.description import Noise

__all__ = ["record_tape"]


# ---------------------------------------------------------------------------------------- recording


class _Recorder(SiteMode):
    """Runs a forward without noise and writes down every operation on tensors."""

    def start(self, inputs: Tensor) -> None:
        self.steps: list[Step] = []
        self.numbers: dict[int, int] = {id(inputs): 0}
        self.tensors: list[Tensor] = [inputs]  # kept, so that no identity is used twice
        self.known: dict[int, Tensor] = {0: inputs}
        self.count = 1
        self.in_attention = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        assert self.record is not None
        if func is F.multi_head_attention_forward:  # one call, of which each part becomes a step
            with self:
                self.in_attention = True
                try:
                    return multi_head_attention_forward(self, *args, **kwargs)
                finally:
                    self.in_attention = False
        tensors = [a for a in pytree.tree_leaves((args, kwargs)) if isinstance(a, Tensor)]
        versions = [_version(t) for t in tensors]
        before = len(self.record)
        if self.in_attention:  # only its own sites count, which come by `site` and `at`
            out = func(*args, **kwargs)
        else:
            out = super().__torch_function__(func, types, args, kwargs)
        leaves = [t for t in pytree.tree_leaves(out) if isinstance(t, Tensor)]
        changed = [t for t, v in zip(tensors, versions, strict=True) if _version(t) != v]
        if func is draw_layer:  # without its noise
            _, kind, _, *args = args
            func = torch.Tensor.view_as if kind == "noise" else getattr(F, kind)
            args = (args[0], args[0]) if kind == "noise" else tuple(args)
            kwargs = {name: a for name, a in kwargs.items() if name != "hardware"}
        if leaves or changed:
            names = [name for name, _ in self.record[before:]]
            self._write(func, args, kwargs, leaves, changed, names)
        return out

    def site(self, kind: str, func: Any, args: Any, kwargs: dict[str, Any], row_dim: int | None = None) -> Any:
        """A call of an operation that makes a site; within attention, it comes back to this mode as it is."""
        if not self.in_attention:
            return super().site(kind, func, args, kwargs, row_dim)
        name = self.name(kind)
        return self.at(name, None, func(*args, **kwargs), row_dim)

    def at(self, name: str, noise: Noise | None, clean: Tensor, row_dim: int | None = None) -> Tensor:
        """The value at a site; within attention, that of the last step."""
        if self.in_attention:
            self.steps[-1].names = (name,)
        return super().at(name, noise, clean, row_dim)

    def _write(
        self,
        func: Any,
        args: Any,
        kwargs: dict[str, Any],
        leaves: list[Tensor],
        changed: list[Tensor],
        names: list[str],
    ) -> None:

        def symbol(a: Any) -> Any:
            number = self.numbers.get(id(a)) if isinstance(a, Tensor) else None
            return a if number is None else Value(number)  # else a parameter, or a constant

        args, kwargs = pytree.tree_map(symbol, (tuple(args), dict(kwargs)))
        if changed:
            if len(changed) > 1 or len(leaves) > 1 or id(changed[0]) not in self.numbers:
                raise NotTraceable(f"{_name(func)} writes into a tensor that is no value of this forward")
            self._refuse_shared(func, changed[0])
            func, args, kwargs = _out_of_place(func, args, kwargs)
            leaves = [changed[0]]
        outputs = []
        for leaf in leaves:
            self.numbers[id(leaf)] = self.count  # also of one known before: written to, or given back as it was
            self.known[self.count] = leaf.clone() if changed else leaf
            self.tensors.append(leaf)
            outputs.append(self.count)
            self.count += 1
        step = Step(func, args, kwargs, tuple(outputs))
        step.names = tuple(names)
        self.steps.append(step)

    def _refuse_shared(self, func: Any, target: Tensor) -> None:
        """Writing in place is kept as a new value, which is wrong if another value shares the memory."""
        for other in self.tensors:
            if other is not target and other.untyped_storage().data_ptr() == target.untyped_storage().data_ptr():
                raise NotTraceable(f"{_name(func)} writes into memory that several values share")


def _version(t: Tensor) -> int:
    """How often a tensor has been written to; those of an inference mode (parameters) do not tell."""
    return 0 if t.is_inference() else t._version


def _name(func: Any) -> str:
    return getattr(func, "__name__", str(func))


def _out_of_place(func: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """A function that writes into its first argument, as one that gives a new value."""
    if (position := INPLACE_AT.get(func)) is not None:
        if len(args) > position:
            return func, (*args[:position], False, *args[position + 1 :]), kwargs
        return func, args, {**kwargs, "inplace": False}
    name = _name(func)
    plain = f"__{name[3:]}" if name.startswith("__i") else name.removesuffix("_")  # __iadd__, add_
    if plain != name and (other := getattr(Tensor, plain, getattr(torch, plain, None))) is not None:
        return other, args, kwargs

    def on_a_copy(x: Tensor, *rest: Any, **more: Any) -> Tensor:
        x = x.clone()
        func(x, *rest, **more)
        return x

    on_a_copy.__name__ = name
    return on_a_copy, args, kwargs


def _recorded(model: nn.Module, inputs: Tensor) -> tuple[_Recorder, Tensor]:
    state = state_of(model)
    mode, (x, *rest), kwargs = begin(model, state, (inputs,), {}, [])
    recorder = _Recorder(Placement(layers_own=False), mode.key, model, state.site_ids, state.row_dims, mode.record)
    recorder.start(x)
    forward: Any = original_class(type(model))
    with recorder:
        out = forward.forward(model, x, *rest, **kwargs)
    if not isinstance(out, Tensor) or id(out) not in recorder.numbers:
        raise NotTraceable("the model's result is not the value of one of its operations")
    return recorder, out


def record_tape(model: nn.Module, inputs: Tensor) -> Tape:
    """The tape of an injected model's noiseless forward.

    Args:
        model: an injected model (`inject(model, None)` will do), in evaluation mode meanwhile.
        inputs: at least four rows of data; the tape is checked against the model on them.

    Raises:
        NotTraceable: with the reason.
    """
    if len(inputs) < 4:
        inputs = torch.cat([inputs] * 4)[:4]
    with torch.inference_mode(False), evaluating(model):  # inference tensors do not tell when they are written to
        inputs = inputs.clone()
        runs = [_recorded(model, inputs[:n]) for n in (2, 3, 4)]
        outs = [run[1] for run in runs]
        tape = _merged([run[0] for run in runs], outs, (2, 3, 4))
        _verify(tape, model, inputs[:2])  # of large models this is most of the time
        if not all(_close(out[:2], outs[0]) for out in outs):
            tape.refused |= dict.fromkeys(tape.sites, "the scores of a row depend on the other rows")
            tape.sites.clear()
    return tape


def _merged(recorders: list[_Recorder], outs: list[Tensor], sizes: tuple[int, int, int]) -> Tape:
    a, b, c = recorders
    if not len(a.steps) == len(b.steps) == len(c.steps):
        raise NotTraceable("the model runs other operations for another number of rows")
    depends = {0}
    steps: list[Step] = []
    constants: dict[int, Tensor] = {}
    for s, t, u in zip(a.steps, b.steps, c.steps, strict=True):
        trees = [pytree.tree_flatten((x.args, x.kwargs), is_leaf=is_symbol) for x in (s, t, u)]
        same = s.name == t.name == u.name and s.outputs == t.outputs == u.outputs
        if not same or not trees[0][1] == trees[1][1] == trees[2][1]:
            raise NotTraceable("the model runs other operations for another number of rows")
        leaves = [_merged_leaf(s, x, sizes) for x in zip(*(tree[0] for tree in trees), strict=True)]
        if not any(n in depends for n in s.inputs) and not any(isinstance(x, Rows) for x in leaves):
            constants |= {n: a.known[n] for n in s.outputs}  # the same whatever the input is
            continue
        leaves = [constants.get(x.number, x) if isinstance(x, Value) else x for x in leaves]
        args, kwargs = pytree.tree_unflatten(leaves, trees[0][1])
        steps.append(Step(s.function, args, kwargs, s.outputs))
        steps[-1].names = s.names
        depends |= set(s.outputs)
    result = a.numbers[id(outs[0])]
    names = [name for s in steps for name in s.names]
    steps = _leading_to(result, steps)
    depends = {0} | {n for s in steps for n in s.outputs}
    shapes = {n: [tuple(r.known[n].shape) for r in recorders] for n in depends}
    row_dims = {n: _row_dim(found, sizes) for n, found in shapes.items()}
    tape = Tape(steps, result, row_dims, {n: found[0] for n, found in shapes.items()}, sizes[0])
    if row_dims.get(tape.result) != 0:
        raise NotTraceable("the model's result has no rows along dimension 0")
    _find_sites(tape)
    tape.idle = set(names) - {name for s in steps for name in s.names}
    return tape


def _leading_to(result: int, steps: list[Step]) -> list[Step]:
    """The steps without those that the result does not depend on."""
    wanted, found = {result}, []
    for step in reversed(steps):
        if any(n in wanted for n in step.outputs):
            wanted |= set(step.inputs)
            found.append(step)
    return found[::-1]


def _find_sites(tape: Tape) -> None:
    """The value at each site, or why the site cannot be reached alone."""
    tape.sites["input"] = 0
    for step in tape.steps:
        if len(step.names) > 1:
            tape.refused |= dict.fromkeys(step.names, f"{step.name} holds several sites")
        elif step.names and kind_of(step.names[0]) in RECURRENT:
            tape.refused[step.names[0]] = f"{step.name} gives its noisy output in its state as well"
        elif step.names and tape.shapes[step.outputs[0]][tape.row_dims[step.outputs[0]] or 0] != tape.rows:
            tape.refused[step.names[0]] = "its rows are folded into another dimension"
        elif step.names:
            tape.sites[step.names[0]] = step.outputs[0]
    # Before a site too: its clean value must not depend on how rows are cut into chunks.
    bad = next((s for s in tape.steps if any(tape.row_dims[n] is None for n in s.outputs)), None)
    if bad is not None:
        tape.refused |= dict.fromkeys(tape.sites, f"{bad.name} mixes rows")
        tape.sites.clear()


def _merged_leaf(step: Step, leaves: tuple[Any, Any, Any], sizes: tuple[int, int, int]) -> Any:
    first = leaves[0]
    if all(x is first for x in leaves) or isinstance(first, Tensor):
        return first
    try:
        if all(bool(x == first) for x in leaves):
            return first
    except (TypeError, ValueError, RuntimeError):
        pass
    whole = all(type(x) is int for x in leaves) and first % sizes[0] == 0
    if whole and all(x * sizes[0] == first * n for x, n in zip(leaves, sizes, strict=True)):
        return Rows(first // sizes[0])
    raise NotTraceable(f"{step.name} has an argument that follows the number of rows: {leaves}")


def _row_dim(shapes: list[tuple[int, ...]], sizes: tuple[int, int, int]) -> int | None:
    """The one dimension that is a multiple of the number of rows in every run, all else equal."""
    if len({len(s) for s in shapes}) != 1:
        return None
    moving = [d for d in range(len(shapes[0])) if len({s[d] for s in shapes}) > 1]
    if len(moving) != 1:
        return None
    d = moving[0]
    return d if all(s[d] * sizes[0] == shapes[0][d] * n for s, n in zip(shapes, sizes, strict=True)) else None


def _verify(tape: Tape, model: nn.Module, inputs: Tensor) -> None:
    """The tape gives the model's own scores, and each suffix, run on two copies of its value, gives them twice."""
    _, expected = _recorded(model, inputs)
    values = tape.run(inputs)
    rows = len(inputs)
    again = values[tape.result]
    if not torch.equal(again, expected) and not torch.allclose(again, expected, rtol=1e-4, atol=1e-5):
        raise NotTraceable("running its operations again gives other scores")
    for name, number in list(tape.sites.items()):
        try:
            good = _keeps_copies_apart(tape, number, values, rows)
        except (RuntimeError, ValueError, IndexError):
            good = False
        if not good:
            tape.refused[name] = "what follows it does not keep copies of the rows apart"
            del tape.sites[name]


def _keeps_copies_apart(tape: Tape, number: int, clean: dict[int, Any], rows: int) -> bool:
    """Whether two copies of a value give two copies of the scores, and of values that hold rows folded
    with something else: clean values are repeated copy by copy, so such a value must be too.
    """
    values: dict[int, Any] = {number: repeated(tape, number, clean[number], 2)}
    for step in tape.suffix(number):
        for n in step.inputs:
            if n not in values:
                values[n] = repeated(tape, n, clean[n], 2)
        step.run(values, 2 * rows)
        for n in step.outputs:
            dim = tape.row_dims[n]
            assert dim is not None
            folded = tape.shapes[n][dim] != tape.rows
            if (folded or n == tape.result) and not _close(values[n], repeated(tape, n, clean[n], 2)):
                return False
    return True


def _close(a: Tensor, b: Tensor) -> bool:
    """Equal but for what another size of the batch may change in a contraction."""
    if a.shape != b.shape or not b.is_floating_point():
        return torch.equal(a, b)
    size = float(b.abs().max()) if b.numel() else 0.0
    return torch.allclose(a, b, rtol=1e-3, atol=1e-4 * size, equal_nan=True)

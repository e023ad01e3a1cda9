"""Records a model's forward as a tape, from three runs with 2, 3 and 4 rows.

Which whole numbers among the arguments (``x.view(B * T, -1)``) follow the rows is thereby known, never guessed. What
depends on neither rows nor input is computed once and kept as a constant; `rows` finds out where values hold rows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from noisykernels._graph.recording import Recording, recorded
from noisykernels._graph.rows import are_close, find_rows
from noisykernels._graph.tape import Asked, Cut, NotTraceable, Rows, Step, Tape, Value, is_symbol
from noisykernels._util.inputs import Call, Inputs
from noisykernels._util.runtime import evaluating
from noisykernels.injection.rows import FIRST
from noisykernels.injection.rows import Rows as Place
from noisykernels.injection.state import state_of

__all__ = ["SIZES", "record_tape"]

SIZES = (2, 3, 4)
OTHERS = "the model runs other operations for another number of rows"


class Undecided(NotTraceable):
    """More rows tell the model's code something else, and it goes another way."""


def record_tape(model: nn.Module, inputs: Inputs | Tensor, call: Call | None = None) -> Tape:
    """The tape of an injected model's noiseless forward.

    Args:
        model: an injected model (`inject(model, None)` will do), in evaluation mode meanwhile.
        inputs: at least four rows of data; the tape is checked against the model on them.
        call: says which tensor of what the model gives is its result.

    Raises:
        NotTraceable: with the reason.
    """
    inputs, call = Inputs.of(inputs), call or Call("record_tape")
    if len(inputs) < SIZES[-1]:
        inputs = Inputs.joined([inputs] * SIZES[-1])[: SIZES[-1]]
    with torch.inference_mode(False), evaluating(model):
        inputs = inputs.clone()  # a model may write into it
        try:
            inputs, (tape, names, runs) = _decided(model, inputs, call)
            why = find_rows(tape, inputs[: tape.rows], runs[0].scores)
        except NotTraceable:
            raise
        except Exception as error:  # a model's own, or of what does not run apart from it: the whole model may run
            said = str(error).partition("\n")[0]
            raise NotTraceable(f"it fails while it is recorded: {type(error).__name__}: {said}") from error
        if why is None and not all(are_close(run.scores[: tape.rows], runs[0].scores) for run in runs):
            why = "the scores of a row depend on the other rows"
        for number, value in tape.fixed.items():
            tape.shapes[number] = tuple(value.shape)
        tape.infinite |= {s.names[0] for s in tape.before if s.names and not _is_finite(tape.fixed[s.outputs[0]])}
        _find_sites(tape, runs[0].inputs, state_of(model).places, why)
        tape.idle = set(names) - tape.refused.keys() - {n for s in (*tape.before, *tape.steps) for n in s.names}
        for name in [name for name, number in runs[0].inputs.items() if number not in (*tape.last, tape.result)]:
            tape.idle.add(name)
            tape.sites.pop(name, None)
    return tape


def _decided(model: nn.Module, inputs: Inputs, call: Call) -> tuple[Inputs, tuple[Tape, list[str], list[Recording]]]:
    """See `_recorded`, with the rows in an order in which the first ones tell the model's code what all of them do:
    whether a row of a mask is padded is seen as soon as such a row is there."""
    for first in range(SIZES[-1]):
        order = [first, *(row for row in range(SIZES[-1]) if row != first)]
        some = inputs if first == 0 else inputs[torch.tensor(order, device=inputs.device)]
        try:
            return some, _recorded(model, some, call)
        except Undecided as error:
            undecided = error
    raise undecided


def _recorded(model: nn.Module, inputs: Inputs, call: Call) -> tuple[Tape, list[str], list[Recording]]:
    """See `_merged`. What a model keeps of its first forward, such as a grid, is there in the second round."""
    runs = [recorded(model, inputs[:n].clone(), call) for n in SIZES]
    try:
        return *_merged(runs), runs
    except Undecided:
        raise
    except NotTraceable as reason:
        again = [recorded(model, inputs[:n].clone(), call) for n in SIZES]
        if [len(run.steps) for run in again] == [len(run.steps) for run in runs]:
            raise
        stale = {id(t): t for run in runs for t in run.alive()}
        if any(stale.get(id(leaf)) is leaf for run in again for leaf in run.constants()):
            raise NotTraceable("it keeps a value of the forward before") from reason
        return *_merged(again), again


def _merged(runs: list[Recording]) -> tuple[Tape, list[str]]:
    """A tape without rows and sites, and the names of all sites that there are."""
    a, b, c = runs
    tape = Tape([], a.result, SIZES[0])
    if not [x.answer for x in a.asked] == [x.answer for x in b.asked] == [x.answer for x in c.asked]:
        raise Undecided("it asks of several rows what each answers otherwise")
    if not len(a.steps) == len(b.steps) == len(c.steps):
        raise NotTraceable(OTHERS)
    follows = set(range(a.given))  # values that depend on the input or on the number of rows
    constants: dict[int, Any] = {}
    wanted = _leading_to({a.result}, a.steps)
    asking = _leading_to({n for x in a.asked for n in x.step.inputs}, a.steps)
    for i, (s, t, u) in enumerate(zip(a.steps, b.steps, c.steps, strict=True)):
        leaves, tree = _merged_leaves(s, t, u, needed=i in wanted or i in asking)
        if i not in wanted and i not in asking:
            continue
        step = _step(s, _closed(leaves, constants), tree)
        read = {x.number for x in leaves if isinstance(x, Value)} & tape.fixed.keys()
        opened = _step(s, _closed(leaves, constants, but=read), tree) if read else step
        if step.inputs or any(isinstance(x, Rows | Cut) for x in leaves):
            if i in asking:
                tape.asking.append(step)
            if i not in wanted:
                continue
            tape.steps.append(step)
            follows |= set(step.outputs)
            if opened is not step:
                tape.opened[step.outputs[0]] = opened
            continue
        step.run(constants, 0)  # the same whatever the input is
        if s.names or opened is not step:  # but for noise of its own
            tape.before.append(opened)
            tape.fixed |= {n: constants[n] for n in s.outputs}
    for x, y, z in zip(a.asked, b.asked, c.asked, strict=True):
        leaves, tree = _merged_leaves(x.step, y.step, z.step)
        tape.asked.append(Asked(_step(x.step, _closed(leaves, constants), tree), x.answer))
    if a.result not in follows:
        raise NotTraceable("the model's result does not depend on its input")
    return tape, [name for s in a.steps for name in s.names]


def _merged_leaves(s: Step, t: Step, u: Step, needed: bool = True) -> tuple[list[Any], Any]:
    """The arguments of three recordings of a step, as leaves of a tree; none of a step that is not needed."""
    trees = [pytree.tree_flatten((x.args, x.kwargs), is_leaf=is_symbol) for x in (s, t, u)]
    same = s.name == t.name == u.name and s.outputs == t.outputs == u.outputs
    if not same or not trees[0][1] == trees[1][1] == trees[2][1]:
        raise NotTraceable(OTHERS)
    merged = zip(*(tree[0] for tree in trees), strict=True) if needed else ()
    return [_merged_leaf(s, x) for x in merged], trees[0][1]


def _closed(leaves: list[Any], constants: dict[int, Any], but: Collection[int] = ()) -> list[Any]:
    """With constants in the place of their values, but for some."""
    return [constants.get(x.number, x) if isinstance(x, Value) and x.number not in but else x for x in leaves]


def _step(recorded: Step, leaves: list[Any], tree: Any) -> Step:
    args, kwargs = pytree.tree_unflatten(leaves, tree)
    step = Step(recorded.function, args, kwargs, recorded.outputs, recorded.calls)
    step.names = recorded.names
    return step


def _leading_to(results: set[int], steps: list[Step]) -> set[int]:
    """Indices of the steps that results depend on."""
    wanted, found = set(results), set()
    for i, step in reversed(list(enumerate(steps))):
        if any(n in wanted for n in step.outputs):
            wanted |= set(step.inputs)
            found.add(i)
    return found


def _merged_leaf(step: Step, leaves: tuple[Any, Any, Any]) -> Any:
    first = leaves[0]
    if all(x is first for x in leaves):
        return first
    if any(isinstance(x, Tensor) for x in leaves):  # from outside, and another one each time
        if all(isinstance(x, Tensor) and x.dtype == first.dtype and torch.equal(x, first) for x in leaves):
            return first
        raise NotTraceable(f"{step.name} takes a tensor that was made where it cannot be seen")
    try:
        if all(type(x) is type(first) and bool(x == first) for x in leaves):
            return first
    except (TypeError, ValueError, RuntimeError):
        pass
    if all(type(x) is slice for x in leaves):
        start, stop, stride = zip(*((x.start, x.stop, x.step) for x in leaves), strict=True)
        return Cut((_merged_leaf(step, start), _merged_leaf(step, stop), _merged_leaf(step, stride)))
    whole = all(type(x) is int for x in leaves) and first % SIZES[0] == 0
    if whole and all(x * SIZES[0] == first * n for x, n in zip(leaves, SIZES, strict=True)):
        return Rows(first // SIZES[0])
    raise NotTraceable(f"{step.name} has an argument that follows the number of rows: {leaves}")


def _is_finite(value: Tensor) -> bool:
    return bool(value.isfinite().all())


def _find_sites(tape: Tape, inputs: dict[str, int], places: Mapping[str, Place | None], why: str | None) -> None:
    """The value at each site, or why the site cannot be reached alone: the reason given, for all of them.

    Args:
        inputs: those that are sites.
        places: where noise finds the rows of values.
    """
    found = dict(inputs)
    for step in (*tape.before, *tape.steps):
        number = step.outputs[0]
        if len(step.names) > 1:
            tape.refused |= dict.fromkeys(step.names, f"{step.name} holds several sites")
        elif step.names and step.names[0] in tape.infinite:
            tape.refused[step.names[0]] = "its values are not all finite"
        elif step.names and why is None and not _lies_at(tape, number, places.get(step.names[0], FIRST)):
            tape.refused[step.names[0]] = "its rows lie elsewhere than noise finds them"
        elif step.names:
            found[step.names[0]] = number
    if why is None:
        tape.sites |= found
    else:
        tape.refused |= dict.fromkeys(found, why)


def _lies_at(tape: Tape, number: int, place: Place | None) -> bool:
    """Whether a value holds its rows at a place."""
    if place is None or number in tape.fixed:
        return place is not None and place.outer == 0
    dim, shape = tape.row_dims.get(number), tape.shapes[number]
    if dim is None or number in tape.counted or place.dim % max(1, len(shape)) != dim:
        return False
    inner = shape[dim] // (tape.outer.get(number, 1) * tape.rows)
    return tape.outer.get(number, 1) == place.outer and (inner == 1 or place.folded)

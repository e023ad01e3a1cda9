"""What follows some sites, run again with the noise or hardware that the plain engine places there, by its own code.

Where several sites are noisy together, or hardware is what a level changes, nothing is linear in the level from the
first of them on. What comes before runs once; the steps that follow run for every level and draw.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from noisykernels._graph.suffix import row_bytes
from noisykernels._graph.tape import Step, Tape, repeated
from noisykernels.injection.arrays import Arrays
from noisykernels.injection.kinds import KINDS, RECURRENT, SEVERAL
from noisykernels.injection.mode import SiteMode
from noisykernels.injection.products import pairs_of
from noisykernels.injection.site import kind_of

__all__ = ["Replay", "Replaying", "call_of"]


class _Traced(Arrays):
    """Arrays whose calls are known beforehand: a replay does not see all of them.

    Args:
        first: the first call with the array of each call.
    """

    def __init__(self, first: Mapping[str, str]) -> None:
        super().__init__("call")
        self.first_of = first

    def first(self, name: str, modules: list[tuple[str, nn.Module]], weight: Tensor) -> str:
        """See `Arrays`."""
        self.of[name] = self.first_of.get(name, name)
        return self.of[name]


class Replaying(SiteMode):
    """The mode of a replay, which is told which call each step is; it is asked, and never entered."""

    def share_arrays(self, first: Mapping[str, str]) -> None:
        """Tells which calls share an array."""
        self.chip = _Traced(first)

    def noisy_value(self, name: str, clean: Tensor) -> Tensor:
        """A value with the noise of its site."""
        return self.at(name, self.noise_at(name), clean)

    def run_call(self, name: str, function: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        """A call as its hardware makes it."""
        kind = kind_of(name)
        if kind in RECURRENT:  # the noise of its site comes after, as that of a view
            made = self.contracted(name, kind, function, args, kwargs, None, None)
            return function(*args, **kwargs) if made is None else made
        pairs = pairs_of(kind, args, kwargs) if kind in SEVERAL else None
        return self._site(name, kind, function, args, kwargs, None, None if pairs is None else pairs[0](None))


def call_of(tape: Tape, name: str) -> Step | None:
    """The step that is the call of a site, which hardware can make alone; None: there is no such step."""
    kind, step = kind_of(name), tape.makers.get(tape.sites[name])
    if kind in RECURRENT and step is not None:
        step = tape.makers.get(step.inputs[0])
    return step if step is not None and KINDS.get(step.function) == kind and len(step.calls) == 1 else None


class Replay:
    """The steps that follow some sites, prepared once.

    Args:
        tape: of the model.
        names: of the sites.
        calls: hardware makes their calls, which then run again; else noise enters at their values.
    """

    def __init__(self, tape: Tape, names: Sequence[str], calls: bool) -> None:
        self.tape, self.calls = tape, calls
        made_by = {name: call_of(tape, name) if calls else None for name in names}
        self.names = {tape.sites[name] if step is None else step.outputs[0]: name for name, step in made_by.items()}
        self.steps = tape.suffix(*self.names, redone=calls)
        self.last: dict[int, int] = {n: i for i, step in enumerate(self.steps) for n in step.inputs}
        made = {n for step in self.steps for n in step.outputs}
        self.first = [n for n in self.names if n not in made]  # noisy by themselves, in the order of the model
        self.values = ({n for step in self.steps for n in step.inputs} | set(self.first) | {tape.result}) - made
        self.alone = any(n in tape.fixed for n in self.names)  # a value is another one for every level and draw
        sizes = (sum(row_bytes(tape, n) for n in (*s.inputs, *s.outputs)) for s in self.steps)
        self.peak = max(sizes, default=row_bytes(tape, tape.result))  # bytes of a row in one operation

    def run(self, mode: Replaying, given: Sequence[Tensor], clean: Mapping[int, Any], copies: int, rows: int) -> Tensor:
        """Scores of so many copies of the rows, copy by copy.

        Args:
            mode: with what is placed, and the key of all copies.
            given: the model's arguments, of all copies and with their noise.
            clean: the values of the rows that these steps need.
        """
        values: dict[int, Any] = {}

        def read(n: int) -> Any:
            if n not in values:
                fixed = self.tape.fixed.get(n)
                values[n] = repeated(self.tape, n, clean[n], copies, rows) if fixed is None else fixed
            return values[n]

        for n in self.first:
            values[n] = given[n] if n < len(given) else mode.noisy_value(self.names[n], read(n))
        for i, step in enumerate(self.steps):
            for n in step.inputs:
                read(n)
            self._step(mode, step, values, copies * rows)
            for n in (*step.inputs, *step.outputs):
                if self.last.get(n, -1) <= i and n != self.tape.result:
                    values.pop(n, None)
        scores: Tensor = read(self.tape.result)
        return scores

    def _step(self, mode: Replaying, step: Step, values: dict[int, Any], rows: int) -> None:
        name = self.names.get(step.outputs[0])
        if name is not None and self.calls:
            args, kwargs = step.arguments(values, rows)
            step.put(values, mode.run_call(name, step.function, args, kwargs))
            return
        step.run(values, rows)
        if name is not None:
            values[step.outputs[0]] = mode.noisy_value(name, values[step.outputs[0]])

"""Places of a walk that are no direction of one value: sites that are noisy together, and hardware of contractions that
are no linear layer or convolution of their own.

They share what comes before them; what follows runs for every level and draw with the plain engine's own noise, many of
them in one batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from noisykernels._engine.idle import is_silent
from noisykernels._engine.recorded import elsewhere
from noisykernels._engine.session import Session
from noisykernels._engine.targets import Pass, Target
from noisykernels._graph.replay import Replay, Replaying, call_of
from noisykernels._graph.tape import Tape
from noisykernels._util.inputs import Inputs
from noisykernels.injection.eagerly import eagerly
from noisykernels.injection.running import begin
from noisykernels.injection.site import Site

__all__ = ["Together"]

SPREADS = ("expand", "expand_as", "broadcast_to")


class Together:
    """Such places of a recorded model.

    Args:
        session: with the model.
        tape: of it.
    """

    def __init__(self, session: Session, tape: Tape) -> None:
        self.session, self.tape = session, tape
        self.inputs = set(range(len(session.inputs[:1].tensors)))  # which the key of a pass is made of
        self._replays: dict[tuple[tuple[str, ...], bool], Replay] = {}
        self._told: dict[tuple[tuple[str, ...], bool], str] = {}
        self._silent: dict[str, bool] = {}

    @cached_property
    def _first(self) -> dict[str, str]:
        """The first call with the array of each call."""
        return {call: site.name for site in self.session.sites for call in site.calls}

    def why_not(self, site: Site, target: Target) -> str:
        """Why a place runs whole; empty: it need not."""
        key = target.enters(site), target.of_calls
        if key not in self._told:
            self._told[key] = self._why_not(site, target)
        return self._told[key]

    def _why_not(self, site: Site, target: Target) -> str:
        tape, told = self.tape, ""
        for name in target.enters(site):
            if name in tape.refused:
                told = tape.refused[name]
            elif name in tape.idle and not self._is_silent(name):
                told = "the scores depend on it in a way that is not recorded"
            elif name in tape.sites and target.of_calls and call_of(tape, name) is None:
                told = "it is recorded in parts"
            elif name in tape.sites and target.of_calls and self._is_spread(name):
                told = "an array is spread over the rows"
            elif name not in tape.sites and name not in tape.idle:
                told = "it is not recorded"
            if told:
                return told if name == site.name else f"{name}: {told}"
        return "" if self._names(site, target) else "nothing of it is recorded"

    def values(self, site: Site, target: Target) -> set[int]:
        """The values without noise that passes read."""
        return self.replay(site, target).values | self.inputs

    def inputs_of(self, clean: dict[int, Any]) -> Inputs:
        """The model's, among the values without noise."""
        return replace(self.session.inputs[:1], tensors=tuple(clean[n] for n in sorted(self.inputs)))

    def replay(self, site: Site, target: Target) -> Replay:
        """What follows a place."""
        key = self._names(site, target), target.of_calls
        if key not in self._replays:
            self._replays[key] = Replay(self.tape, *key)
        return self._replays[key]

    def passes(
        self, site: Site, targets: Sequence[Target], levels: Sequence[tuple[float, ...]], draws: Sequence[int],
        clean: dict[int, Any], rows: Tensor, room: int,
    ) -> Iterator[Pass]:  # fmt: skip
        """Scores under some targets, each at its levels.

        Args:
            clean: the values without noise that are read.
            rows: ids.
            room: bytes that a pass may take in one operation.
        """
        for k, target in enumerate(targets):
            replay = self.replay(site, target)
            copies = 1 if replay.alone else max(1, room // (replay.peak * len(rows)))  # draws x levels of a pass
            some = min(len(draws), copies)
            for first in range(0, len(draws), some):
                part = draws[first : first + some]
                most = max(1, copies // len(part)) if target.by_row else 1
                for low in range(0, len(levels[k]), most):
                    few = levels[k][low : low + most]
                    scores = self._scores(site, target, few, part, clean, rows)
                    yield Pass(k, low, first, scores.unflatten(0, (len(part), len(few), len(rows))).transpose(0, 1))

    def _scores(
        self, site: Site, target: Target, levels: Sequence[float], draws: Sequence[int], clean: dict[int, Any],
        rows: Tensor,
    ) -> Tensor:  # fmt: skip
        """Scores of (draws x levels x rows)."""
        session, count = self.session, len(levels)
        inputs = Inputs.joined([self.inputs_of(clean)] * count)
        placement, level = target.placement(site, levels[0]), None
        if count > 1:  # each row has its level
            placement = target.placement(site, 1.0)
            level = torch.tensor(levels, dtype=torch.float64, device=rows.device).repeat_interleave(len(rows))
        with session.placing(placement), session.drawing(rows.repeat(count), draws, level):
            mode, args, kwargs = begin(session.model, session.state, *inputs.arguments, make=Replaying)
            assert isinstance(mode, Replaying)
            mode.share_arrays(self._first)
            with eagerly():
                given = [*args, *kwargs.values()]
                return self.replay(site, target).run(mode, given, clean, len(draws) * count, len(rows))

    def _names(self, site: Site, target: Target) -> tuple[str, ...]:
        """The sites of a place on which the scores depend."""
        return tuple(name for name in target.enters(site) if name in self.tape.sites)

    def _is_spread(self, name: str) -> bool:
        """Whether one operand is as many rows as there are of one thing: several copies of the rows are none such."""
        step = call_of(self.tape, name)
        makers = [] if step is None else [self.tape.makers.get(n) for n in step.inputs]
        return any(maker is not None and maker.name in SPREADS for maker in makers)

    def _is_silent(self, name: str) -> bool:
        if name not in self._silent:  # where another way may lead from it to the scores, it is not
            self._silent[name] = not elsewhere(self.session, self.tape) and is_silent(self.session, name)
        return self._silent[name]

"""Evaluates requests, chunk of rows by chunk of rows, each by the engine that can.

What is found does not depend on how requests are cut by rows: an engine always computes a whole chunk's clean values,
and passes of a chunk are cut in the same way whoever asks. So any worker may evaluate any part.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from noisykernels._C import cpu_level, cuda_multiplier
from noisykernels._engine.idle import idle_sites
from noisykernels._engine.judging import put
from noisykernels._engine.plain import PlainEngine
from noisykernels._engine.plan import ROWS, Plan, choose_plan, why_whole
from noisykernels._engine.proofs import proved_up_to
from noisykernels._engine.recorded import elsewhere, tape_of
from noisykernels._engine.request import Advance, Answer, Request, begun, unheard, unlike
from noisykernels._engine.session import Session
from noisykernels._engine.shared import Failed, SharedEngine
from noisykernels._engine.together import Together
from noisykernels._engine.verification import Check, Verification
from noisykernels._graph.rows import are_close
from noisykernels._graph.tape import NotTraceable, Tape
from noisykernels._util.inputs import Inputs
from noisykernels._util.runtime import gpu_precision
from noisykernels._util.warning import warn_user
from noisykernels.injection.site import CACHE, Site, path_of
from noisykernels.injection.tokens import ROUTED
from noisykernels.metrics.law import ALL

__all__ = ["Engine", "Evaluator"]

WHOLE = "every pass runs the whole model"
SITES_WHOLE = f"for these sites {WHOLE}"
TOKENS = "rows are tokens, by which only whole passes have hardware"
PICKED = "tokens that the model picks out are followed in whole passes only"
CACHED = "what is cached is noisy when it is written, which only whole passes do"
ELSEWHERE = "the model's code goes another way, by what it asks of its inputs, for some rows, which run whole"
IDLE = "the scores do not depend on these sites, whose counts are the clean ones"


class Engine(Protocol):
    """What evaluates requests on a chunk of rows."""

    rows: int  # of a chunk

    def chunk(
        self, requests: Sequence[Request], first: int, data: tuple[Inputs, Tensor, Tensor]
    ) -> Iterator[tuple[int, Answer]]:
        """Answers to requests that lie within a chunk, as (place in `requests`, answer), in any order.

        Args:
            first: number of the chunk's first row.
            data: inputs, labels and ids of the chunk's rows.
        """


class Evaluator:
    """Both engines on the problem of a session.

    Args:
        session: its model is run.
        plan: of the engine that shares work; None: there is none.
        tape: of the model; None records it if there is a plan.
        idle: sites on which the scores do not depend.
        why: there is no plan, though work could be shared.

    Attributes:
        verifications: of each target, what came of holding the engines against each other; sites that differ run whole.
    """

    def __init__(
        self, session: Session, plan: Plan | None, tape: Tape | None = None, idle: Collection[str] = (), why: str = ""
    ) -> None:
        self.session, self.problem, self.plan, self.idle, self.why = session, session.problem, plan, idle, why
        self.verifications = [Verification() for _ in self.problem.targets]
        self.plain = PlainEngine(session)
        self.shared: SharedEngine | None = None
        if plan is not None:
            tape = tape or tape_of(session)
            self.shared = SharedEngine(session, tape, plan, elsewhere(session, tape, plan.rows))

    @classmethod
    def of(
        cls, session: Session, chosen: Sequence[Site], levels: Sequence[float], draws: int | None = None
    ) -> Evaluator:
        """The engines that a session's `Compute` asks for, at the sites chosen, for the levels of a grid; with a
        warning where work cannot be shared, and where the engines differ.

        Args:
            session: with the model.
            chosen: the sites that are walked.
            levels: of a grid; empty for a search.
            draws: of a grid that is evaluated in full, and not kept, by whose size ``"auto"`` chooses; None: it
                shares work.
        """
        asked, metric = session.compute, session.problem.metric
        if metric.law.block == ALL:
            return cls(session, None, why=f"{metric.name} is of a whole pass: all rows of a draw are needed at once")
        if whole := _whole(session, chosen):
            if asked.engine == "shared":
                _tell(session, WHOLE, [whole])
            return cls(session, None, why=whole)
        places = session.token_places()  # which refuses positions before they could be a recording's fault
        if any(places.get(name) == ROUTED for site in chosen for name in site.names):
            if asked.engine == "shared":
                _tell(session, WHOLE, [PICKED])
            return cls(session, None, why=PICKED)
        if asked.engine == "auto" and asked.verify == "sample" and draws is not None:
            grids, count = len(chosen) * len(session.problem.targets), len(session.inputs)
            if why := why_whole(session.sites, grids, len(levels), draws, count, session.passes):
                return cls(session, None, why=why)
        if session.compute.engine == "plain" or (tape := _tape(session)) is None:
            return cls(session, None)
        idle = idle_sites(session, tape, chosen)
        _tell(session, SITES_WHOLE, _unreached(session, tape, chosen, idle))
        _tell(session, IDLE, idle)
        if session.mixed or not tape.sites:
            return cls(session, None, idle=idle)
        device = session.problem.device
        plan = choose_plan(tape, session.compute.memory_on(device), session.passes.rows, device)
        here = cls(session, plan, tape, idle)
        assert here.shared is not None
        count, apart = len(session.inputs), sorted(here.shared.elsewhere)
        _tell(session, ELSEWHERE, [f"{first} to {min(first + plan.rows, count) - 1}" for first in apart])
        if not (held := here.shared.chunks):
            return cls(session, None, idle=idle)
        if not _holds_for_a_chunk(session, here.shared, held[0]):
            rows = min(plan.rows, count - held[0])
            reason = f"it gives other scores for {rows} rows than for the few that were recorded"
            _tell(session, WHOLE, [reason])
            return cls(session, None, idle=idle)
        with torch.inference_mode():
            check = Check(session, here.shared, levels)
            here.verifications = [check.through(chosen, which) for which in range(len(session.problem.targets))]
        _tell(session, SITES_WHOLE, _reasons({k: v for one in here.verifications for k, v in one.differing.items()}))
        return here

    def described(self) -> dict[str, Any]:
        """The contraction plan: all that fixes how contractions round, as a study's JSON can hold it."""
        session, device = self.session, self.problem.device
        found: dict[str, Any] = {
            "batch_rows": session.passes.rows,
            "draws_per_pass": session.passes.draws,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "cpu_level": cpu_level(),
            "device": device.type,
        }
        if device.type == "cuda":
            found |= {
                "gpu": torch.cuda.get_device_name(device),
                "precision": list(gpu_precision()),
                "multiplier": cuda_multiplier(),
            }
        if self.plan is not None:
            found |= {"chunk_rows": self.plan.rows, "pass_bytes": self.plan.bytes}
        return found

    def shares(self, request: Request) -> bool:
        """Whether the engine that shares work can evaluate a request."""
        site, target = request.site, self.problem.targets[request.which]
        trusted = site.name not in self.verifications[request.which].differing
        return self.shared is not None and trusted and self.shared.reaches(site, target)

    def distrust(self, failed: Failed, requests: Sequence[Request]) -> None:
        """From now on a site runs whole whose recording failed: of all of these requests, if it failed before any."""
        mine = [r for r in requests if self.shares(r) and failed.site in ("", r.site.name)]
        for r in mine:
            self.verifications[r.which].differing[r.site.name] = failed.reason
        _tell(self.session, SITES_WHOLE, _reasons({r.site.name: failed.reason for r in mine}))

    def engine_of(self, request: Request) -> str:
        """By what a store tells answers of the engines from each other: empty, or that a site of a model whose work is
        shared runs whole."""
        return "" if self.shared is None or self.shares(request) else "whole"

    def rows_of_task(self, request: Request) -> int:
        """Some hundred rows, at whose multiples a request may be cut without changing its answer."""
        chunk = self.shared.rows if self.shared is not None and self.shares(request) else self.plain.rows
        block = self.problem.metric.law.block
        return math.lcm(chunk, block) if block > 1 else chunk * -(-ROWS // chunk)

    def engines(self, requests: Sequence[Request]) -> list[tuple[Engine, list[int]]]:
        """Each engine with the places of the requests that it evaluates."""
        mine = [self.shares(r) for r in requests]
        found: list[tuple[Engine | None, bool]] = [(self.shared, True), (self.plain, False)]
        return [(e, [i for i, s in enumerate(mine) if s == shares]) for e, shares in found if e and shares in mine]

    def answers(self, requests: Sequence[Request], advance: Advance = unheard) -> list[Answer]:
        """The answers to requests.

        Args:
            advance: called with the levels done since, in parts.

        Raises:
            Failed: an operation of the recording.
        """
        found = [begun(self.problem.metric.law, r) for r in requests]
        with torch.inference_mode():
            for engine, places in self.engines(requests):
                self._run(engine, {i: requests[i] for i in places}, found, advance)
        return found

    def compared(self, requests: Sequence[Request], answers: Sequence[Answer]) -> list[Answer]:
        """The answers to requests, after those of the engine that shares work have been held against the plain one's;
        the plain one's where rounding does not explain all that differs."""
        found, differing = list(answers), dict[str, str]()
        for i in (i for i, r in enumerate(requests) if self.shares(r)):
            r, verification = requests[i], self.verifications[requests[i].which]
            plain = [begun(self.problem.metric.law, r)]
            assert self.shared is not None
            with torch.inference_mode():
                self._run(self.plain, {0: r}, plain, unheard)
                reason = Check(self.session, self.shared).why_not(r, answers[i], plain[0])
            verification.cells += r.cells
            if reason is None:
                verification.verdicts += int(unlike(answers[i], plain[0]).sum())
            else:
                verification.differing[r.site.name] = differing[r.site.name] = reason
                found[i] = plain[0]
        _tell(self.session, SITES_WHOLE, _reasons(differing))
        return found

    def _run(self, engine: Engine, requests: dict[int, Request], found: list[Answer], advance: Advance) -> None:
        low, high = min(r.start for r in requests.values()), max(r.end for r in requests.values())
        for first in range(low // engine.rows * engine.rows, high, engine.rows):
            parts = {i: p for i, r in requests.items() if (p := r.within(first, first + engine.rows)) is not None}
            if not parts:
                continue
            places = list(parts)
            inputs, labels, rows = self.problem.data
            some = slice(first, first + engine.rows)
            able = self.plain if engine is self.shared and first in self.shared.elsewhere else engine
            for k, answer in able.chunk(list(parts.values()), first, (inputs[some], labels[some], rows[some])):
                part, whole = parts[places[k]], requests[places[k]]
                put(self.problem.metric.law, found[places[k]], whole.start, part.start, answer)
                advance(len(part.levels) * part.rows / whole.rows)

    @torch.inference_mode()
    def scales(self, sites: Sequence[Site], which: int) -> dict[str, float]:
        """Where to begin to look for the levels of a target, at the sites of which that is known."""
        if self.shared is None:
            return {}
        asked = [Request(s, (), (), 0, which=which) for s in sites]
        mine = [r for r in asked if self.shares(r)]
        try:
            return self.shared.scales([r.site for r in mine], self.problem.targets[which])
        except Failed as failed:
            self.distrust(failed, mine)
            return {}

    @property
    def positions(self) -> int:
        """Of a row, whose mean its number is: tokens, pixels."""
        return self.session.positions

    def shares_rows(self, which: int) -> bool:
        """Whether the rows of a draw share what is random under a target."""
        return self.problem.targets[which].shares_rows

    @torch.inference_mode()
    def proved(self, requests: Sequence[Request]) -> list[float]:
        """For each request on all rows, the level up to which no prediction can flip."""
        limits = dict.fromkeys(range(len(requests)), 0.0)
        mine = [i for i, r in enumerate(requests) if self.shares(r)]
        if self.shared is not None:
            asked = [requests[i] for i in mine]
            try:
                limits |= zip(mine, proved_up_to(self.shared, asked), strict=True)
            except Failed as failed:
                self.distrust(failed, asked)
            check = Check(self.session, self.shared)
            for i, r in zip(mine, asked, strict=True):
                level = max((v for v in r.levels if v <= limits[i]), default=0.0)
                if level > 0 and not check.holds(r, level):
                    self.distrust(Failed(r.site.name, f"at level {level:g} predictions flip, which none can"), [r])
                    limits[i] = 0.0
        return list(limits.values())


def _whole(session: Session, chosen: Sequence[Site]) -> str:
    """Why every pass runs the whole model, as is known without a recording; empty: none need to."""
    if any(path_of(name) == CACHE for site in chosen for name in site.names):
        return CACHED
    return TOKENS if session.problem.length and not all(t.by_token for t in session.problem.targets) else ""


def _tape(session: Session) -> Tape | None:
    """The model recorded; None, with a warning, if it cannot be."""
    try:
        return tape_of(session)
    except NotTraceable as reason:
        _tell(session, WHOLE, [str(reason)])
        return None


@torch.inference_mode()
def _holds_for_a_chunk(session: Session, shared: SharedEngine, first: int) -> bool:
    """Whether what was recorded from a few rows gives the model's scores for a whole chunk: code may differ there."""
    inputs = session.inputs[first : first + shared.rows]
    try:
        return are_close(shared.clean(inputs, set())[shared.tape.result], session.scores(inputs))
    except Failed:
        return True  # the check of each site says what fails


def _unreached(session: Session, tape: Tape, chosen: Sequence[Site], idle: Collection[str]) -> list[str]:
    """The sites at which work cannot be shared, and why."""
    target, together = session.problem.targets[0], Together(session, tape)
    mine = [s for s in chosen if s.name not in idle and not target.reaches(tape, s)]
    return _reasons({s.name: reason for s in mine if (reason := together.why_not(s, target))})


def _reasons(why: dict[str, str]) -> list[str]:
    return [f"{site} ({reason})" for site, reason in why.items()]


def _tell(session: Session, what: str, told: Collection[str]) -> None:
    """Warns of what is told, if there is anything."""
    if told:
        warn_user(f"{session.op}: {what}: {', '.join(told)}")

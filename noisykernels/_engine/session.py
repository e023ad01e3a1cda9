"""One set-up for all studies: data checked and moved, a model injected and silent, passes cut, clean values known.

Every study asks a `Problem` and works inside a `Session`. Neither knows what is noisy, how often, or why.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from noisykernels._engine.arguments import check_processes, chosen_sites, listed
from noisykernels._engine.clean import FEW, Clean, Remembered, clean_run, first_reading
from noisykernels._engine.company import COMPANY, looks_at_others, passes_of_all
from noisykernels._engine.compute import Compute
from noisykernels._engine.judging import Tally
from noisykernels._engine.plan import Passes, choose_passes
from noisykernels._engine.targets import Target
from noisykernels._util.data import Batch, Data, needed
from noisykernels._util.inputs import Call, Called, Inputs
from noisykernels._util.keeping import keeping_state
from noisykernels._util.randomness import keeping_random
from noisykernels._util.runtime import evaluation_mode, place_of, torch_threads
from noisykernels._util.streams import StreamedInputs, StreamedLabels, loaded
from noisykernels._util.warning import warn_user
from noisykernels.injection.api import inject, sites_with_results
from noisykernels.injection.eagerly import eagerly
from noisykernels.injection.placement import SILENT, Placement
from noisykernels.injection.reach import coverage
from noisykernels.injection.running import begin
from noisykernels.injection.setting import noise_state
from noisykernels.injection.site import Site
from noisykernels.injection.state import state_of
from noisykernels.injection.tokens import Held, Place
from noisykernels.injection.trace import open_results
from noisykernels.metrics.accuracy import ACCURACY
from noisykernels.metrics.base import Metric
from noisykernels.metrics.chance import Chance
from noisykernels.metrics.functions import found_out, is_early
from noisykernels.metrics.names import MetricLike, named
from noisykernels.metrics.rows import PerRow
from noisykernels.metrics.weighted import Weighted, joined_targets, weighed
from noisykernels.noise.arguments import ids_tensor, seed_tensor
from noisykernels.noise.contract import ID_LIMIT
from noisykernels.noise.tokens import TokenRows

__all__ = ["Data", "Problem", "Rows", "Session", "places_of"]

Rows = Tensor | Sequence[int] | TokenRows | None


@dataclass(frozen=True)
class Problem:
    """All that answers depend on, as it can be sent to a worker.

    Args:
        model: not injected.
        data: inputs, labels, ids of rows.
        seed: of the study.
        targets: what is walked, at level 1; none for studies that walk nothing.
        metric: what is measured.
        arrays: what an array is, see `inject`.
        root: the part at which names begin, see `inject`.
        detail: what else is a site, see `inject`.
        asked: words that choose sites, among which may be results of modules.
        call: which tensor of what the model gives is measured.
        labelled: whether the data had labels.
        length: of `TokenRows`, whose sequences the rows are; 0: rows are no tokens.
        chance: why what is measured cannot be told from chance, told once outputs have been looked at; None: it can.
        remembered: clean values that were found while data were counted; None: none were.
        order: of the rows, in parts of that which they were given in; None: it is that.
        given: of an order of their own, inputs and labels of a stream as they come; None: data are in memory.
    """

    model: nn.Module
    data: tuple[Inputs | StreamedInputs, Tensor | StreamedLabels, Tensor]
    seed: int
    targets: tuple[Target, ...] = ()
    metric: Metric = ACCURACY
    arrays: str = "module"
    root: str = ""
    detail: str | None = None
    asked: tuple[str | type, ...] = ()
    call: Call = field(default_factory=lambda: Call("walk"))
    labelled: bool = True
    length: int = 0
    chance: Chance | None = None
    remembered: Remembered | None = None
    order: Tensor | None = None
    given: tuple[Inputs | StreamedInputs, Tensor | StreamedLabels] | None = None

    @classmethod
    def of(
        cls, call: Call, model: nn.Module, data: Data, *, seed: int, rows: Rows = None,
        metric: MetricLike = ACCURACY, sites: Sequence[str | int | type] | str | type | None = None,
        alone: bool = False, compute: Compute | None = None, **injected: str | None,
    ) -> Problem:  # fmt: skip
        """A problem from what a study is given: checked, and where the model is.

        Args:
            call: how the model is called; its op is the study, for errors.
            sites: that are asked for, by words or indices.
            alone: inputs may come without labels, as they may where a metric needs none.
            compute: how much memory there is: larger data are streamed.
            injected: `arrays`, `root` and `detail`.
        """
        op, forward = call.op, call.forward
        measure = named(op, metric)
        weights = measure.key if isinstance(measure, Weighted) else None
        check_processes(op, model)
        device = place_of(model)
        if seed is None:  # which operators take for a seed drawn now: no study could be repeated
            raise TypeError(f"{op}: seed must be an int, got None")
        seed_tensor(op, seed, device)
        with keeping_random():  # from which loaders draw
            memory = Compute.of(op, compute).memory_on(device)
            inputs, given = loaded(op, data, memory, call.takes(model, weights), count=False)
        free = given is None and (alone or getattr(measure, "against_clean", False))
        hint = ""
        if getattr(measure, "against", "") == "labels":
            hint = f'nk.metrics.{type(measure).__name__}("clean")'
        labels: Tensor | StreamedLabels = _unread(len(inputs)) if free else needed(op, data, given, hint)
        some = slice(None if isinstance(inputs, Inputs) else inputs.stream.at_once)  # others as they are read
        if known := hasattr(measure, "check_data"):  # else a plain function
            measure.check_data(op, inputs[some].tensors[0], weighed(labels[some], inputs[some].weights))
        length = rows.length if isinstance(rows, TokenRows) else 0
        call.check(model, inputs[:2])
        if not known:
            measure = _of_function(call, measure, model, inputs[:FEW].to(device), labels[:FEW].to(device))
        if forward is not None:  # whose names begin at the model that is called
            model = Called(model, forward, inputs[:2])
            injected["root"] = ".".join(filter(None, (Called.ROOT, injected.get("root"))))
            inputs = inputs.by_position()
        inputs = inputs.to(device)
        words = tuple(word for word in listed(sites) if isinstance(word, str | type))
        told: Any = injected | {"asked": words, "call": replace(call, forward=None), "labelled": given is not None}
        remembered = None
        if isinstance(inputs, StreamedInputs):
            few = slice(2 * COMPANY)
            some_ids = torch.arange(len(inputs), device=device)[few]
            begun = cls(model, (inputs[few].clone(), labels[few].to(device), some_ids), seed, (), measure, **told)
            asks = not alone or not (free or measure.by_argmax)  # else a study may do without clean values
            remembered = _read_first(begun, inputs, compute, asks and is_early(measure))
            labels = _unread(len(inputs)) if free else needed(op, data, inputs.stream.labels)
        ids = _ids(op, rows, len(labels))
        labels = labels.beside(inputs) if isinstance(labels, StreamedLabels) else labels.to(device)
        chance: Chance | None = None
        if given is not None or weights is not None:
            before = measure
            try:
                measure = measure.prepared(op, _of_all(inputs, labels))
            except Chance as error:  # of which outputs may say more
                chance = error
            remembered = _kept(remembered, before, measure)
        parts = inputs, labels, ids.to(device)
        told |= {"length": length, "chance": chance, "remembered": remembered}
        return cls(model, parts, seed, (), measure, **told)

    @property
    def name(self) -> str:
        """What the model is called."""
        return type(self.model.model if isinstance(self.model, Called) else self.model).__name__

    def shuffled(self) -> Problem:
        """With the rows in an order of their own, fixed by the seed: the first ones are a random part of all."""
        generator = torch.Generator().manual_seed(self.seed % 2**63)
        inputs, labels, ids = self.data
        order = torch.randperm(len(inputs), generator=generator)
        inputs, ids = inputs.permuted(order), ids[order.to(self.device)]
        mixed = labels.beside(inputs) if isinstance(labels, StreamedLabels) else labels[order.to(self.device)]
        given = self.data[:2] if isinstance(inputs, StreamedInputs) else None
        return replace(self, data=(inputs, mixed, ids), order=order, given=given)

    def as_given(self, size: int) -> Iterator[tuple[Inputs, Tensor]]:
        """Inputs and labels in the order that they came in before they were shuffled, so many rows at once."""
        assert self.order is not None
        if self.given is not None:
            inputs, labels = self.given
            for first in range(0, len(inputs), size):
                yield inputs[first : first + size], labels[first : first + size]
            return
        for rows in self.order.argsort().split(size):
            yield self.some(rows)[:2]

    def first(self, rows: int) -> tuple[Inputs, Tensor, Tensor]:
        """So many rows, or all there are."""
        inputs, labels, ids = self.data
        return inputs[:rows], labels[:rows], ids[:rows]

    def some(self, rows: Tensor) -> tuple[Inputs, Tensor, Tensor]:
        """The rows with these numbers."""
        inputs, labels, ids = self.data
        rows = rows.to(self.device)
        return inputs[rows], labels[rows], ids[rows]

    @property
    def device(self) -> torch.device:
        """Where it is computed."""
        return self.data[0].device


def places_of(
    op: str, problem: Problem, noise: Any, sites: Sequence[str | int | type] | str | type | None
) -> list[str] | None:  # fmt: skip
    """The names of the sites that a study is asked to make noisy; None: all, or those of its dict of noises."""
    if sites is None:
        return None
    if isinstance(noise, dict):
        raise ValueError(f"{op}: a dict of noises says where they enter; leave out sites=")
    few = problem.data[0][:2]
    with problem.call.explaining(problem.model, few, shapes=True):
        known = sites_with_results(problem.model, few.given, problem.asked, problem.root, problem.detail)
    return [site.name for site in chosen_sites(op, problem.model, known, sites, root=problem.root)]


def _ids(op: str, rows: Rows, count: int) -> Tensor:
    """Ids of so many rows, or sequences, checked."""
    if isinstance(rows, TokenRows):
        if rows.position is not None or (rows.sequence is not None and rows.sequence.dim() != 1):
            raise ValueError(f"{op}: rows of tokens must say their sequences (N) alone, got {rows!r}")
        if (most := ID_LIMIT // rows.length) < count and rows.sequence is None:
            raise ValueError(f"{op}: rows: of length {rows.length} there are {most} sequences, got {count}")
        rows = rows.sequence
    ids = ids_tensor(op, "rows", rows, torch.device("cpu"))
    ids = torch.arange(count) if ids is None else ids
    if len(ids) != count:
        raise ValueError(f"{op}: rows must hold one id for each of {count} rows, got {len(ids)}")
    return ids


def _unread(rows: int) -> Tensor:
    """Labels that nothing reads."""
    return torch.zeros(rows, dtype=torch.int64)


def _read_first(begun: Problem, inputs: StreamedInputs, compute: Compute | None, judges: bool) -> Remembered | None:
    """Counts the rows of a stream; clean values are found on the way.

    Args:
        begun: the problem of its first rows.
        inputs: of the stream.
        judges: clean values are looked for.
    """

    def made(part: Batch) -> tuple[Inputs, Tensor]:
        x = part.inputs.by_position() if inputs.positional else part.inputs
        y = _unread(len(x)) if part.labels is None else part.labels
        return x.to(inputs.device), y.to(inputs.device)

    session = Session(begun.call.op, begun, compute)
    with keeping_random(), contextlib.ExitStack() as stack:
        if judges:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # which the study's own session gives
                stack.enter_context(session)
            if not session.mixed:  # else a pass is of all rows
                return first_reading(session, inputs.stream, made)
        for _ in inputs.stream.counting():
            pass
    return None


def _kept(found: Remembered | None, before: Metric, metric: Metric) -> Remembered | None:
    """Clean values by a measure as those of the same one, prepared for the targets of all rows; None: these may have
    other numbers."""
    if found is None or metric is before:
        return found
    if not (isinstance(metric, PerRow) and metric.counts_as(before)):
        return None
    clean = found.clean
    shares = None if metric.scale is None else np.ones(len(clean.numbers))
    return found._replace(clean=clean._replace(metric=metric, shares=shares))


def _of_all(inputs: Inputs | StreamedInputs, labels: Tensor | StreamedLabels) -> Any:
    """The targets of all rows, with their weights; of a stream in its own order."""
    if isinstance(inputs, Inputs):
        return weighed(labels, inputs.weights)
    stream = inputs.stream
    if stream.first.inputs.weights is None and isinstance(labels, Tensor):
        return labels
    if isinstance(stream.labels, Tensor) and stream.weights is not None:
        return weighed(stream.labels, stream.weights)
    parts = []
    for _, batch in stream.everything():
        given = _unread(len(batch.inputs)) if batch.labels is None else batch.labels
        parts.append(weighed(given, batch.inputs.weights))
    return joined_targets(parts)


@torch.inference_mode()
def _of_function(call: Call, function: Any, model: nn.Module, inputs: Inputs, labels: Tensor) -> Metric:
    """A plain function as a metric: what kind it is shows on some rows without noise."""
    with keeping_state(model, forwards=True), evaluation_mode(model):
        outputs = call(model, inputs.clone())
    return found_out(call.op, function, outputs, labels)


class Session:
    """A problem's model, injected and silent for the length of a block; it is left as it was.

    Args:
        op: name of the study, for errors.
        problem: what is asked.
        compute: how it is computed.
        passes: sizes of passes; None: chosen.
        own: the model is nobody else's, so nothing is put back; random numbers neither, which belong to whoever has
            this session's thread when it ends.
        placed: arguments of `inject`: the noise and hardware of `noisy`.
    """

    def __init__(
        self, op: str, problem: Problem, compute: Compute | None = None, passes: Passes | None = None,
        own: bool = False, **placed: Any,
    ) -> None:  # fmt: skip
        self.op, self.problem, self._passes, self._own, self._placed = op, problem, passes, own, placed
        self.compute = Compute.of(op, compute)
        self.inputs, self.labels, self.rows = problem.data
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Session:
        compute, device = self.compute, self.problem.device
        placed = {
            "noise": None, "arrays": self.problem.arrays, "root": self.problem.root, "detail": self.problem.detail,
        } | self._placed  # fmt: skip
        with self._stack as stack:  # taken back if something fails
            stack.enter_context(torch_threads(compute.threads))
            if not self._own:
                stack.enter_context(keeping_state(self.problem.model))
            stack.enter_context(evaluation_mode(self.problem.model))
            some = self.inputs[: 2 * COMPANY]
            few = some[:2].clone()
            with self.problem.call.explaining(self.problem.model, few, shapes=True):
                given = inject(self.problem.model, example_input=few.given, **placed)
            self.model: nn.Module = stack.enter_context(given)
            self.state = state_of(self.model)
            open_results(self.model, self.problem.asked, some[:2].clone().given)
            self.noisy, self.state.placement = self.state.placement, SILENT
            self.sites: list[Site] = self.state.traced
            self.passes = self._passes or choose_passes(
                self.sites, compute.memory_on(device), compute.rows_on(device), int(compute.draws_per_pass)
            )
            fit = max(2, self.passes.rows * self.passes.draws)  # rows in the memory of a pass
            self.mixed = self._passes is None and looks_at_others(self.problem.call, self.model, some[:fit])
            if self.mixed:
                self.passes = passes_of_all(self.op, self.sites, compute, len(self.inputs), device)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def placing(self, placement: Placement) -> Iterator[None]:
        """Noise and hardware for the length of a block, in which a `SILENT` model has neither."""
        before, self.state.placement = self.state.placement, placement
        try:
            yield
        finally:
            self.state.placement = before

    def covered(self, placement: Placement, tell: bool = False) -> dict[str, float]:
        """The shares of the model's multiply-adds that noise, hardware and arithmetic reach where so much is placed.

        Args:
            tell: warn of parameters of two or more dimensions that hardware does not meet; `inject` does where it
                places the hardware itself.
        """
        with self.placing(placement):
            found = coverage(self.model, self.inputs[:2].given)
        if tell and placement.hardware is not None:
            met = [row.hardware or row.arithmetic or len(row.shape) < 2 for row in found.parameters]
            if lost := [row.name for row, fine in zip(found.parameters, met, strict=True) if not fine]:
                warn_user(
                    f"{self.op}: hardware does not reach {', '.join(lost)}: of no contraction the weight; "
                    "nk.coverage(model, example_input) says why"
                )
        kinds = [] if placement.noise is None else ["noise"]
        if placement.hardware is not None:
            kinds += [
                what for what in ("hardware", "arithmetic") if any(getattr(row, what) for row in found.operations)
            ]
        return {what: round(found.share(what), 6) for what in kinds}

    @torch.inference_mode()
    def scores(self, inputs: Inputs, rows: Tensor | None = None, draws: Sequence[int] | None = None) -> Tensor:
        """The model's scores, checked: (rows, ...), or (draws x rows, ...).

        Args:
            rows, draws: ids, under which the placement that there is draws its noise; without rows it draws none.
        """
        if rows is not None and draws is not None and len(draws) > 1 and self.runs_draws_apart:
            return torch.cat([self.scores(inputs, rows, [draw]) for draw in draws])
        count = len(inputs) * (1 if draws is None else len(draws))
        with contextlib.nullcontext() if rows is None else self.drawing(rows, draws):
            scores = self.problem.call(self.model, inputs.clone())  # which it may write into
            return self.problem.metric.check_scores(self.op, scores, count)

    @property
    def runs_draws_apart(self) -> bool:
        """Whether noise enters at a value that is the same for all rows, so that draws cannot be folded into them."""
        placement = self.state.placement
        return any(alone and placement.at(name, module) is not None for name, module, alone in self.state.without_rows)

    @contextlib.contextmanager
    def drawing(self, rows: Tensor, draws: Sequence[int] | None = None, level: Tensor | None = None) -> Iterator[None]:
        """The key of what is drawn for the length of a block, in which errors name the study."""
        ids = TokenRows(self.problem.length, rows) if self.problem.length else rows
        some = None if draws is None else list(draws)
        try:
            with noise_state(self.model, seed=self.problem.seed, rows=ids, draws=some, level=level):
                yield
        except (RuntimeError, ValueError) as error:
            if not (said := str(error)).startswith("noise_state: "):
                raise
            raise type(error)(said.replace("noise_state", self.problem.call.op, 1)) from error

    def tokens(self, inputs: Inputs, rows: Tensor) -> Held | None:
        """Which tokens some rows are, and where values hold them; None: rows are no tokens."""
        if not self.problem.length:
            return None
        with self.drawing(rows), eagerly():
            mode, _, _ = begin(self.model, self.state, *inputs.arguments)
        assert mode.tokens is not None
        return mode.tokens, mode.token_places

    def token_places(self) -> Mapping[str, Place | str]:
        """Where values hold tokens, or why not; positions that cannot be are refused here. Nothing: rows are none."""
        found = self.tokens(*self.problem.first(self.passes.rows)[::2]) if self.problem.length else None
        return found[1] if found is not None else {}

    def batches(self, rows: int | None = None) -> Iterator[tuple[Inputs, Tensor, Tensor]]:
        """Inputs, labels and ids, so many rows at once; None: those of a pass."""
        size = rows or self.passes.rows
        for first in range(0, len(self.inputs), size):
            part = slice(first, first + size)
            yield self.inputs[part], self.labels[part], self.rows[part]

    @property
    def _clean_as_given(self) -> bool:
        """Whether rows in an order of their own run in the one they were given in without noise, which changes nothing
        but for rounding: of a stream that takes one pass. Blocks of rows are those of the study's order."""
        return self.problem.order is not None and self.problem.metric.law.block == 1

    def clean_batches(self) -> Iterator[tuple[Inputs, Tensor]]:
        """Inputs and labels in the order in which they run without noise."""
        if self._clean_as_given:
            yield from self.problem.as_given(self.passes.rows)
        else:
            yield from ((x, y) for x, y, _ in self.batches())

    def noisy_scores(self, draws: Sequence[int]) -> Iterator[tuple[slice, slice, Tensor]]:
        """Scores of all rows under what is placed, pass by pass: (rows, places of draws, scores [draws, rows, ...]);
        all draws of a batch of rows before the next batch."""
        done, size = 0, self.passes.draws
        for x, _, ids in self.batches():
            for first in range(0, len(draws), size):
                some = draws[first : first + size]
                with self.placing(self.noisy):
                    scores = self.scores(x, ids, some)
                yield (
                    slice(done, done + len(x)),
                    slice(first, first + len(some)),
                    scores.unflatten(0, (len(some), len(x))),
                )
            done += len(x)

    def noisy_passes(self, draws: Sequence[int]) -> int:
        """How many passes `noisy_scores` takes."""
        return -(-len(self.inputs) // self.passes.rows) * -(-len(draws) // self.passes.draws)

    @cached_property
    def clean(self) -> NDArray[Any]:
        """The number of each row without noise."""
        return self._clean_run.numbers

    @property
    def shares(self) -> NDArray[np.float64] | None:
        """Of each row in all weights, in parts of their mean; None: all count alike."""
        return self._clean_run.shares

    @cached_property
    def leads(self) -> NDArray[Any] | None:
        """By how much the largest score of each row leads without noise; None where it is not that which decides."""
        return self._clean_run.leads if self.problem.metric.by_argmax and self.outputs > 1 else None

    def targets(self, inputs: Inputs, labels: Tensor) -> Any:
        """What the scores of some rows are held against: their labels, or their scores without noise; with weights,
        where there are any."""
        if not self.problem.metric.against_clean:
            return weighed(labels, inputs.weights)
        with self.placing(SILENT):
            clean = torch.cat([self.scores(part) for part in inputs.split(self.passes.rows)])
        return weighed(clean, inputs.weights)

    @property
    def floor(self) -> float | None:
        """What is measured of a model that knows nothing of the input; None: it is not known."""
        shape, metric = self.shape, self.problem.metric
        return metric.floor(shape, self.labels[:1] if metric.by_argmax else _of_all(self.inputs, self.labels))

    @property
    def positions(self) -> int:
        """How many places with classes a row has, whose mean its number is."""
        metric = self.problem.metric
        return metric.positions(self.shape, self.labels[:1]) if isinstance(metric, PerRow) else 1

    def tally(self, copies: int = 1) -> Tally:
        """An empty one of all rows."""
        return Tally(self.problem.metric, len(self.inputs), copies)

    @property
    def clean_value(self) -> float:
        """What is measured without noise."""
        clean, metric = self.clean, self.problem.metric  # which is ready once there are those
        return float(metric.value(metric.law.pooled(clean)))

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Of the scores that the model gives for a row."""
        return self._clean_run.shape

    @property
    def outputs(self) -> int:
        """Scores of a row, or of a position of it: classes."""
        return self.shape[-1] if self.shape else 1

    @cached_property
    def _clean_run(self) -> Clean:
        known, chance = self.problem.remembered, self.problem.chance
        if known is not None and chance is not None:
            raise chance
        as_given = self._clean_as_given or self.problem.order is None
        if as_given and known is not None and known.rows == self.passes.rows:
            found = known.clean.checked(self.op, len(self.inputs))
        else:
            found = clean_run(self)
        if self._clean_as_given:
            assert self.problem.order is not None
            found = found.permuted(self.problem.order.numpy())
        self.problem = replace(self.problem, metric=found.metric)
        return found

"""A look-alike walked by both engines, whatever shape its outputs have: which sites are reached, and what is found."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from differential import watched
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import noisykernels as nk
from models import MODELS, ORIGINALS, made
from models.inputs import Given
from noisykernels._graph.recorder import record_tape
from noisykernels._graph.tape import NotTraceable
from noisykernels._util.inputs import Call, Inputs
from noisykernels.injection.placement import SILENT
from noisykernels.injection.state import state_of
from noisykernels.metrics.accuracy import Accuracy

__all__ = ["Parity", "Walked", "call_of", "clean_products", "idle_of", "reached", "some_of", "walked"]

IDLE = "nothing leads from it to the scores"
LEVELS, DRAWS = (0.5, 4.0), (3, 0)
NOISES = (nk.Noise(add=0.3), nk.Noise(add=0.2, mul=0.3, order="add_mul"))


class Parity(Accuracy):
    """A measure that sees all outputs of a row: is the whole part of their weighted sum, in steps of a size, odd?"""

    name = "parity"
    by_argmax = False

    def __init__(self, outputs: Tensor) -> None:
        self.rank = outputs.dim() - 1
        self.step = max(1e-3, 0.3 * float(self.sums(outputs.double()).std()))

    def identity(self) -> str:
        return f"parity {self.rank} {self.step}"

    def check_scores(self, op: str, scores: object, rows: int) -> Tensor:
        assert isinstance(scores, Tensor) and scores.shape[0] == rows
        return scores

    def check_clean(self, op: str, scores: Tensor, labels: Tensor) -> None:
        pass

    def sums(self, scores: Tensor) -> Tensor:
        """Of all outputs of each row, weighted."""
        each = scores.double().flatten(scores.dim() - self.rank)
        return (each * torch.cos(torch.arange(each.shape[-1], dtype=torch.float64))).sum(-1)

    def of_rows(self, scores: Tensor, labels: Tensor) -> Tensor:
        places = self.sums(scores) / self.step
        return torch.where(places.isfinite(), places.nan_to_num().floor().remainder(2), -1).to(torch.int8)

    def floor(self, outputs: int, labels: Tensor) -> float:
        return 0.5


@dataclass
class Walked:
    """What became of a model."""

    name: str
    sites: list[str] = field(default_factory=list)  # at which a walk can put noise
    reached: set[str] = field(default_factory=set)  # of these, by the engine that shares work
    cells: int = 0
    differing: int = 0  # cells in which the engines differ by more rows than rounding may move
    moved: int = 0  # cells in which noise changes what is measured
    changed: bool = False  # the model, by walking it
    warned: list[str] = field(default_factory=list)


def call_of(name: str) -> Call:
    """How a model is called."""
    return Call("walked", output=(MODELS | ORIGINALS)[name].output)


def reached(name: str, detail: str | None = None) -> tuple[list[str], dict[str, str]]:
    """The sites of a model at which noise can enter, and why some of them are not reached, as its recording has it."""
    model, x = made(name, 4)
    given, how = Inputs.of(x), call_of(name)
    with nk.inject(model, None, example_input=given[:2].given, detail=detail) as injected, torch.inference_mode():
        state = state_of(injected)
        state.placement = SILENT
        names = [site.name for site in state.traced if site.row_dim is not None or site.alone]
        try:
            tape = record_tape(injected, given, how)
        except NotTraceable as reason:
            return names, dict.fromkeys(names, str(reason))
    why = {name: tape.refused.get(name, IDLE) for name in names}
    return names, {name: reason for name, reason in why.items() if name not in tape.sites}


def idle_of(name: str) -> set[str]:
    """Sites from which nothing leads to the scores, as the recording has it: nothing is run for them."""
    return {site for site, why in reached(name)[1].items() if why == IDLE}


def some_of(names: Sequence[str], most: int | None) -> list[str]:
    """At most so many, from first to last."""
    if most is None or len(names) <= most:
        return list(names)
    return [names[round(i * (len(names) - 1) / (most - 1))] for i in range(most)]


def clean_products(name: str) -> tuple[float, dict[str, str]]:
    """The share of a model's multiply-adds at sites where noise enters, and why it does not at the others; those that
    torch's own counter sees must be among them."""
    model, x = made(name, 2)
    args, kwargs = Inputs.of(x).clone().arguments
    model.requires_grad_(False)  # torch's counter asks for gradient functions
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*args, **kwargs)
    with warnings.catch_warnings(), nk.inject(model, nk.Noise(add=1.0), example_input=x) as injected:
        warnings.simplefilter("ignore")
        found = nk.coverage(injected, x)
    assert found.macs >= counter.get_total_flops() // 2, "multiply-adds that coverage does not know of"
    return found.share("noise"), {row.name: row.why for row in found.operations if row.macs and not row.noise}


def digest(name: str, model: nn.Module, x: Given) -> list[Any]:
    """What must be the same of a model before and after: what it looks like, its state, its forward."""
    with torch.no_grad():
        outputs = call_of(name)(model, Inputs.of(x).clone())
    state = [t.clone() for t in (*model.parameters(), *model.buffers())]
    return [
        repr(model),
        model.training,
        list(model.state_dict()),
        [n for n, _ in model.named_modules()],
        *state,
        outputs,
    ]


def is_same(before: list[Any], after: list[Any]) -> bool:
    """Whether two digests are, to the bit."""
    pairs = zip(before, after, strict=True)
    return all(a.equal(b) if isinstance(a, Tensor) else a == b for a, b in pairs)


def walked(
    name: str, rows: int = 12, detail: str | None = None, noise: nk.Noise = NOISES[0], most: int | None = None,
    levels: Sequence[float] = LEVELS, draws: Sequence[int] = DRAWS,
) -> Walked:  # fmt: skip
    """A model walked at its sites, or at most so many of them, by both engines; it must be left as it was."""
    model, x = made(name, rows)
    sites = some_of(reached(name, detail)[0], most) if most else None
    before = digest(name, model, x) if most else []
    with torch.no_grad():
        # another one: the first forward of some is not like the others
        outputs = call_of(name)(made(name, rows)[0], Inputs.of(x).clone())
    metric, found = Parity(outputs), Walked(name)
    labels = torch.zeros(rows, dtype=torch.int64)
    tables: dict[str, dict[Any, int]] = {}
    for engine in ("shared", "plain"):
        with watched(found.reached), warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            study = nk.walk(
                model, (x, labels), noise=noise, levels=levels, draws=list(draws), seed=5, metric=metric, detail=detail,
                sites=sites,
                output=call_of(name).output,
                compute=nk.Compute(engine=engine, verify="sample"),
            )  # fmt: skip
        found.warned += [str(w.message) for w in said if "runs the whole model" in str(w.message)]
        tables[engine] = {(r.site, r.level, r.draw): r.correct for r in study.records}
    found.changed = bool(before) and not is_same(before, digest(name, model, x))
    clean = int((metric.of_rows(outputs, labels) == 1).sum())
    for cell, count in tables["plain"].items():
        found.cells += 1
        found.moved += count != clean
        found.differing += abs(tables["shared"][cell] - count) > 1
    found.sites = list(dict.fromkeys(site for site, _, _ in tables["plain"]))
    return found

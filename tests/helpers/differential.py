"""One random network walked three times: by the engine that shares work, by the plain one, and by a loop that knows
only `inject` and `noise_state`.

Run as a script it fuzzes: ``python tests/helpers/differential.py --first 0 --count 300``.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import traceback
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from random_networks import Case, case_of
from torch import Tensor, nn

import noisykernels as nk
from noisykernels._engine.shared import SharedEngine
from noisykernels.injection.site import Site
from noisykernels.metrics.accuracy import Accuracy
from noisykernels.walking import walk_parameter

SITES = 3  # walked of a network, at most
WEIGHTS = torch.tensor([1.0, -0.7, 0.45, 0.3] * 2, dtype=torch.float64)


class Fine(Accuracy):
    """A measure that sees all scores: is the whole part of their weighted sum, in steps of a size, odd?"""

    name = "fine"
    by_argmax = False

    def __init__(self, step: float) -> None:
        self.step = step

    def identity(self) -> str:
        return f"fine {self.step}"

    def check_clean(self, op: str, scores: Tensor, labels: Tensor) -> None:
        pass

    def places(self, scores: Tensor) -> Tensor:
        return (scores.double() * WEIGHTS[: scores.shape[-1]]).sum(-1) / self.step

    def of_rows(self, scores: Tensor, labels: Tensor) -> Tensor:
        places = self.places(scores)
        return torch.where(places.isfinite(), places.nan_to_num().floor().remainder(2), -1).to(torch.int8)

    def floor(self, outputs: Sequence[int], labels: Tensor) -> float:
        return 0.5

    def margins(self, scores: Tensor) -> Tensor:
        """How far scores may move, each of them, without changing what is measured."""
        places = self.places(scores)
        return (places - places.round()).abs() * self.step / WEIGHTS.abs().sum()


class Argmax(Accuracy):
    """The accuracy, with its margins."""

    def margins(self, scores: Tensor) -> Tensor:
        """How far scores may move, each of them, without changing the largest."""
        top = scores.double().topk(2).values
        return (top[..., 0] - top[..., 1]) / 2


@dataclass
class Found:
    """What became of a case."""

    case: Case
    sites: list[Site] = field(default_factory=list)  # walked
    reached: set[str] = field(default_factory=set)  # of these, by the engine that shares work
    warned: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    refused: str = ""  # what a walk said that would not run it
    cells: int = 0
    undecided: int = 0  # rows that rounding may decide
    skipped: str = ""  # why the loop itself cannot run it

    @property
    def caught(self) -> bool:
        """Whether the run-time check of the engines has found that the recording is wrong."""
        return any(word in line for line in self.warned for word in ("scores differ by", "what was recorded fails"))

    def __str__(self) -> str:
        """As one would write it down."""
        case = self.case
        kind = str(case.dtype).removeprefix("torch.")
        lines = [
            f"seed {case.seed}: {case.names}; {case.target}, {case.noise}, {kind}, {case.rows} rows, {case.compute}",
            *(f"  {line}" for line in self.failures[:4]),
            *(f"  warned: {line[:200]}" for line in self.warned),
        ]
        return "\n".join([*lines, case.text()])


def undecided(case: Case, margins: Tensor, size: float) -> int:
    """How many rows may come out either way, by their margins, values being of some size at most.

    A score is behind at most 40 operations, each a sum of at most 64 terms: two ways to compute it lie apart by at most
    2,560 roundings, each of u times the largest value. Where a part computes in a half type, the last bit of one of its
    sums, which are made in float32, may fall to the other side: in one of 2^15 / 64 sums, so in one row of a cell at
    most, and that by 2^-8 of the largest value, through up to 40 operations.
    """
    margins = margins.nan_to_num()
    near = int((margins <= 2560 * torch.finfo(case.dtype).eps / 2 * size).sum())
    return max(near, min(1, int((margins <= 40 * 2.0**-8 * size).sum()))) if case.half else near


class _Sizes:
    """The largest absolute value that any module takes or gives."""

    def __init__(self, model: nn.Module) -> None:
        self.largest = 1.0
        for module in model.modules():
            module.register_forward_hook(self)

    def __call__(self, module: nn.Module, args: Any, out: Any) -> None:
        with contextlib.suppress(RuntimeError):  # within vmap nothing is a number
            for value in (*args, *(out if isinstance(out, tuple) else (out,))):
                if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
                    self.largest = max(self.largest, float(value.abs().max()))


def sites_of(case: Case) -> list[Site]:
    """Some of the sites at which rows can be told apart, or are all alike."""
    found = [s for s in nk.sites(case.model(), case.data()[:2]) if s.row_dim is not None or s.alone]
    if case.target != "activation":
        found = [s for s in found if s.calls]
    if case.by_channel:
        found = [s for s in found if s.row_dim == 0 and len(s.shape) > 1 and s.shape[0] == 2]
    some = random.Random(case.seed).sample(found, min(1 if case.by_channel else SITES, len(found)))
    return [site for site in found if site in some]


Cell = tuple[str, float, int]  # site, level, draw


@torch.inference_mode()
def loop(case: Case, site: Site) -> dict[Cell, tuple[Tensor, float]]:
    """Scores of a site's cells, and the size of the values: the whole model for each, with noise at this site only."""
    found = {}
    noise = case.noise_at(site.shape)
    for level in case.levels:
        model, x = case.model(), case.data()
        given = noise(level) if case.target == "parameter" else noise.scaled(level)

        def here(name: str, module: nn.Module, given: Any = given) -> Any:
            if name not in ((site.name,) if case.target == "activation" else site.calls):
                return None
            return [given] if case.target == "weight" else given

        placed = {"noise": noise, "where": here} if case.target == "activation" else {"noise": None, "hardware": here}
        sizes = _Sizes(model)
        with nk.inject(model, example_input=x[:2], **placed):
            for draw in case.draws:
                sizes.largest = 1.0
                with nk.noise_state(model, seed=case.seed, draws=[draw], rows=list(case.ids)):
                    found[site.name, level, draw] = model(x.clone()), sizes.largest
    return found


def walked(case: Case, engine: str, sites: list[Site], labels: Tensor, metric: Accuracy) -> dict[Cell, int]:
    """Counts of every cell that a walk has run on all rows."""
    compute = nk.Compute(engine=engine, **case.compute)  # type: ignore[arg-type]
    how: dict[str, Any] = dict(
        draws=list(case.draws), seed=case.seed, sites=[s.name for s in sites], rows=list(case.ids), metric=metric,
        compute=compute,
    )  # fmt: skip
    model, data, levels = case.model(), (case.data(), labels), list(case.levels)
    noise = case.noise_at(sites[0].shape)
    if case.target == "parameter":
        study = walk_parameter(model, data, noise, levels, **how)
    else:
        how |= dict(target=case.target, levels=levels, plateaus=case.plateaus)
        more = [noise, nk.Noise(add=0.2)] if case.more and case.target == "activation" else [noise]
        study = nk.walk(model, data, noise=more, **how)[0]
    assert torch.equal(data[0], case.data()), "the walk wrote into its data"
    return {(r.site, r.level, r.draw): r.correct for r in study.records if r.rows == len(labels)}


def compared(case: Case) -> Found:
    """A case walked three times."""
    found = Found(case)
    expected: dict[Cell, tuple[Tensor, float]] = {}
    try:
        with torch.inference_mode():
            clean = case.model()(case.data())
        for site in sites_of(case):
            with contextlib.suppress(RuntimeError):  # a site at which nobody can tell rows apart
                expected |= loop(case, site)
                found.sites.append(site)
    except Exception as reason:  # a model that nobody can run noisily is no case
        found.skipped = f"{type(reason).__name__}: {reason}"
    if not found.sites:
        found.skipped = found.skipped or "no site"
        return found
    metric: Fine | Argmax = Argmax() if case.by_argmax else Fine(max(1e-3, 0.4 * float(clean.double().std())))
    labels = clean.argmax(1)
    tables = {}
    for engine in ("plain", "shared"):
        with watched(found.reached), warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                tables[engine] = walked(case, engine, found.sites, labels, metric)
            except Exception as reason:
                _note(found, engine, reason)
        found.warned += [str(w.message) for w in said if str(w.message).startswith("walk")]
    for cell, (scores, size) in expected.items():
        count = int((metric.of_rows(scores, labels) == 1).sum())
        near = undecided(case, metric.margins(scores), size)
        found.cells += 1
        found.undecided += near
        for engine, table in tables.items():
            if cell in table and abs(table[cell] - count) > near:
                how = "reached" if engine == "shared" and cell[0] in found.reached else "whole"
                found.failures.append(f"{engine}: {cell}: {table[cell]} of {len(labels)}, a loop gives {count} ({how})")
    return found


def _note(found: Found, engine: str, reason: Exception) -> None:
    """An error of a walk: a sentence of ours that refuses an unusual model, or a failure."""
    said = f"{engine}: {type(reason).__name__}: {str(reason)[:300]}"
    ours = isinstance(reason, ValueError | RuntimeError) and str(reason).startswith(
        ("walk", "sites", "inject", "site ")
    )
    if ours and found.case.sort != "everyday":
        found.refused = said
        return
    last = traceback.extract_tb(reason.__traceback__)[-1]
    found.failures.append(f"{said} ({Path(last.filename).name}:{last.lineno})")


class watched:
    """Notes the sites that the engine that shares work answers for, for the length of a block."""

    def __init__(self, reached: set[str]) -> None:
        self.reached = reached

    def __enter__(self) -> None:
        self.chunk, reached = SharedEngine.chunk, self.reached
        chunk = self.chunk

        def noted(engine: SharedEngine, requests: Any, first: int, data: Any) -> Iterator[Any]:
            for k, answer in chunk(engine, requests, first, data):
                reached.add(requests[k].site.name)
                yield k, answer

        SharedEngine.chunk = noted  # type: ignore[method-assign]

    def __exit__(self, *exception: object) -> None:
        SharedEngine.chunk = self.chunk  # type: ignore[method-assign]


def shortened(found: Found) -> Found:
    """The case with as few pieces as still fail."""
    for k, piece in enumerate(found.case.chain):
        if piece.removable:
            chain = found.case.chain[:k] + found.case.chain[k + 1 :]
            if chain and (less := compared(replace(found.case, chain=chain))).failures:
                return shortened(less)
    return found


@dataclass
class Summary:
    """Of many cases."""

    networks: int = 0
    skipped: dict[int, str] = field(default_factory=dict)
    reached: int = 0  # networks with a site other than the input that the engine that shares work evaluated
    sites: int = 0
    sites_reached: int = 0
    cells: int = 0
    undecided: int = 0
    refused: int = 0
    caught: list[Found] = field(default_factory=list)
    failed: list[Found] = field(default_factory=list)

    def add(self, found: Found) -> None:
        if found.skipped:
            self.skipped[found.case.seed] = found.skipped
            return
        inner = [s.name for s in found.sites if s.name != "input"]
        self.networks += 1
        self.reached += any(s in found.reached for s in inner)
        self.sites += len(inner)
        self.sites_reached += sum(s in found.reached for s in inner)
        self.cells += found.cells
        self.undecided += found.undecided
        self.refused += bool(found.refused)
        self.caught += [found] if found.caught else []
        if found.failures:
            self.failed.append(found)

    def told(self) -> str:
        """The summary and the first failures, as short as they get."""
        return "\n\n".join([str(self), *(str(shortened(found)) for found in self.failed[:3])])

    def __str__(self) -> str:
        seeds = [found.case.seed for found in self.failed]
        return (
            f"{self.networks} networks, {self.reached} reached inside; {self.sites_reached} of {self.sites} sites "
            f"inside; {self.cells} cells, {self.undecided} rows undecided; {len(self.skipped)} skipped; {self.refused} "
            f"refused; {len(self.caught)} caught by the run-time check; {len(seeds)} failed: {seeds}"
        )


def fuzzed(seeds: Iterable[int]) -> Summary:
    """Walks the networks of some seeds."""
    summary = Summary()
    for seed in seeds:
        summary.add(compared(case_of(seed)))
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--shorten", action="store_true", help="print each failure with as few pieces as fail")
    args = parser.parse_args()
    torch.set_num_threads(1)
    summary = fuzzed(range(args.first, args.first + args.count))
    for found in summary.failed:
        print(shortened(found) if args.shorten else found)
    print(summary)
    for found in summary.caught:
        print(f"caught {found.case.seed}: {found.case.names}")
    for seed, why in summary.skipped.items():
        print(f"skipped {seed}: {why[:200]}")


if __name__ == "__main__":
    main()

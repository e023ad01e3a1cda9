"""Cells of a grid that need not be run in full, because their accuracy lies on a plateau.

*Proved*: no prediction can flip at a level. The noise is bounded, so every value after the site stays within a radius
of its clean one: absolute weights carry the radius through linear operations, and activations and max-pools do not make
it larger. A level is proved if, for every row, the best clean score leads by more than the radii of both scores.
(In exact arithmetic: rows nearer to a boundary than a contraction rounds may differ from plan to plan, as ever.)

*Settled*: each draw of a level is evaluated on a block of rows of its own, some 2,000 rows for all draws together. If
the 95 % interval of the level's accuracy that they give lies within a share of (clean accuracy - floor) around the
clean accuracy or around the floor, that is what its cells report. Near the clean accuracy the interval is that of the
difference, from the rows that flip (Wilson's for either direction, at 97.5 %).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from noisykernels._engine.evaluator import Evaluator
from noisykernels._engine.request import Answer, Request
from noisykernels._engine.shared import Reuse
from noisykernels._engine.targets import Walked
from noisykernels._util.runtime import gpu_precision
from noisykernels.metrics.base import NAN
from noisykernels.noise.contract import largest_eps
from noisykernels.noise.description import Noise
from noisykernels.stats.intervals import wilson
from noisykernels.stats.records import Record
from noisykernels.walking.cells import Cells

__all__ = ["provable", "settled"]


ROWS = 2000  # that are looked at for a level, in all draws together

Levels = Callable[[Sequence[Request], Callable[[float], object]], list[Answer]]


def settled(
    grid: Sequence[Request], here: Evaluator, answers: Levels, cells: Cells, floor: float, share: float,
    advance: Callable[[float], object],
) -> list[Request]:  # fmt: skip
    """Puts the cells on plateaus into `cells`, and gives requests for all others.

    Args:
        grid: what would have to be evaluated: all rows, in an order of their own.
        here: the engines; proofs need the one that shares work.
        answers: evaluates requests.
        cells: knows which rows are correct without noise.
        floor: accuracy under unbounded noise.
        share: of (clean accuracy - floor): distance from either that counts as none.
        advance: called with the levels that need no further work.
    """
    rest = []
    limits = provable(here, grid)
    for request, limit in zip(grid, limits, strict=True):
        proved = [v for v in request.levels if v <= limit]
        _put_proved(request, proved, cells)
        advance(len(proved))
        if len(proved) < len(request.levels):
            rest.append(replace(request, levels=tuple(v for v in request.levels if v > limit)))
    found = [r for r in rest if r.rows < len(r.draws)]  # too few to tell
    rest = [r for r in rest if r.rows >= len(r.draws)]
    for request, judged in zip(rest, _looks(rest, answers, cells), strict=True):
        open_levels = [v for v, answer in judged if not _put_settled(request, v, answer, cells, floor, share)]
        advance(len(judged) - len(open_levels))
        if open_levels:
            found.append(replace(request, levels=tuple(open_levels)))
    return found


# ------------------------------------------------------------------------------------------- settled


def _looks(rest: Sequence[Request], answers: Levels, cells: Cells) -> list[list[tuple[float, Answer]]]:
    """For each request and level: the answer [draws, rows], every draw on a block of rows of its own."""
    asked = []
    for r in rest:
        size = min(r.rows, ROWS) // len(r.draws)
        asked += [replace(r, draws=(draw,), start=j * size, rows=size) for j, draw in enumerate(r.draws)]
    given = iter(answers(asked, lambda _: None))
    found = []
    for r in rest:
        parts = np.concatenate([next(given) for _ in r.draws], 1)  # [levels, draws, rows of a block]
        cells.evaluations[r.which] += parts.size
        found.append(list(zip(r.levels, parts, strict=True)))
    return found


def _put_proved(request: Request, levels: Sequence[float], cells: Cells) -> None:
    site, hits = request.site, int(cells.clean.sum())
    for level in levels:
        for draw in request.draws:
            counted = Record.counted(site.name, site.index, level, draw, request.rows, hits, "proved")
            cells.put(request.which, counted)


def _put_settled(
    request: Request, level: float, answer: Answer, cells: Cells, floor: float, share: float
) -> bool:  # fmt: skip
    """Records a level's cells if they are settled; whether they are."""
    if (answer == NAN).any():
        return False  # it is run in full, with a warning
    hits, size = answer == 1, answer.shape[1]
    before = cells.clean[: hits.size].reshape(hits.shape)
    clean = float(cells.clean.mean())
    near = share * (clean - floor)
    low, high = _of_flips(before, hits)
    at_clean = max(-low, high) <= near
    if not at_clean:
        low, high = wilson(int(hits.sum()), hits.size)
        if max(high - floor, floor - low) > near:
            return False
    for draw, was, now in zip(request.draws, before, hits, strict=True):
        count = int(now.sum())
        record = Record.counted(request.site.name, request.site.index, level, draw, size, count, "settled")
        if at_clean:  # rows that are easier or harder than all do not matter for the difference
            lower, upper = _of_flips(was, now)
            values = clean + (count - int(was.sum())) / size, clean + lower, clean + upper
            accuracy, below, above = (min(1.0, max(0.0, v)) for v in values)
            record = record._replace(accuracy=accuracy, low=below, high=above)
        cells.put(request.which, record)
    return True


def _of_flips(before: Any, after: Any) -> tuple[float, float]:
    """95 % interval of the difference of two accuracies of the same rows."""
    better_low, better_high = wilson(int((after & ~before).sum()), after.size, 0.975)
    worse_low, worse_high = wilson(int((before & ~after).sum()), after.size, 0.975)
    return float(better_low - worse_high), float(better_high - worse_low)


# -------------------------------------------------------------------------------------------- proved


def provable(here: Evaluator, requests: Sequence[Request]) -> list[float]:
    """For each request on all rows, the level up to which no prediction can flip; it need not be exact beyond the
    request's levels: rows are looked at only as long as one of them may hold."""
    limits = [math.inf if here.shares(r) and _is_scalar(here.problem.noises[r.which]) else 0.0 for r in requests]
    reuse = here.reuse
    if reuse is None:
        return [0.0] * len(requests)
    with torch.inference_mode():
        for inputs in here.problem.data[0].split(reuse.rows):
            live = [i for i, r in enumerate(requests) if any(0 < v <= limits[i] for v in r.levels)]
            if not live:
                break
            clean = reuse.tape.run(inputs)
            for i in live:
                noise = here.problem.noises[requests[i].which]
                assert isinstance(noise, Noise)  # nothing is proved of noise on weights
                limits[i] = min(limits[i], _limit(reuse, requests[i].site.name, clean, noise, len(inputs)))
    return limits


def _is_scalar(noise: Walked) -> bool:
    return isinstance(noise, Noise) and all(level is None or level.dim() == 0 for level in (noise.add, noise.mul))


def _limit(reuse: Reuse, site: str, clean: dict[int, Any], noise: Noise, rows: int) -> float:
    """The level up to which no prediction of these rows can flip."""
    number = reuse.tape.sites[site]
    if clean[number].dtype not in (torch.float32, torch.float64):
        return 0.0  # half types round by more than the margin below
    if clean[number].is_cuda and "tf32" in gpu_precision():
        return 0.0  # and so does tf32
    x, most = clean[number].abs().double(), largest_eps(noise.kind)  # float64: tiny radii must not become 0
    a, m = (0.0 if level is None else float(level) for level in (noise.add, noise.mul))
    at_site = [most * (a + m * x)]  # the radius is A times the first plus A^2 times the second
    if noise.mode == "add_mul":
        at_site.append(torch.full_like(x, a * m * most**2))
    limit = math.inf
    scores = clean[reuse.tape.result].double()
    top, best = scores.max(1, keepdim=True)
    others = torch.ones_like(scores, dtype=torch.bool).scatter_(1, best, False)
    lead = (top - scores)[others]
    terms = []
    for radius in at_site:
        table = {number: radius}
        for step in reuse.suffix(site).steps:
            found = radius(step, table, reuse.tape, rows)
            if found is None:
                return 0.0
            table[step.outputs[0]] = found
        if (end := table.get(reuse.tape.result)) is None:
            return math.inf  # the scores do not depend on the site
        end = end * (1 + 2**-10)  # for the roundings that the values themselves have met
        terms.append((end + end.gather(1, best))[others])
    if len(terms) == 1:
        limits = lead / terms[0]
    else:  # b A + c A^2 < lead
        b, c = terms
        limits = 2 * lead / (b + torch.sqrt(b * b + 4 * c * lead))
    limit = float(torch.nan_to_num(limits, nan=0.0, posinf=math.inf).min())
    return math.nextafter(limit, 0.0)

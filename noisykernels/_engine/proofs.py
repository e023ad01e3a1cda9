"""Levels up to which no prediction can flip, proved from bounds on the noise.

The noise is bounded, so every value after the site stays within a radius of its clean one: absolute weights carry the
radius through linear operations, and activations and max-pools do not make it larger. A level is proved if, for every
row, the best clean score leads by more than the radii of both scores. (In exact arithmetic: rows nearer to a boundary
than a contraction rounds may differ from plan to plan, as ever.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from noisykernels._engine.request import Request
from noisykernels._engine.shared import SharedEngine
from noisykernels._engine.targets import Target
from noisykernels._graph.bounds import radius
from noisykernels._util.runtime import gpu_precision

__all__ = ["proved_up_to"]


def proved_up_to(engine: SharedEngine, requests: Sequence[Request]) -> list[float]:
    """For each request on all rows, the level up to which no prediction can flip; it need not be exact beyond the
    request's levels: rows are looked at only as long as one of them may hold."""
    targets = [engine.problem.targets[r.which] for r in requests]
    known = engine.problem.metric.by_argmax and not engine.elsewhere  # elsewhere the clean values are not the tape's
    limits = [
        math.inf if known and t.reaches(engine.tape, r.site) else 0.0 for r, t in zip(requests, targets, strict=True)
    ]
    for inputs in engine.problem.data[0].split(engine.rows):
        live = [i for i, r in enumerate(requests) if any(0 < v <= limits[i] for v in r.levels)]
        if not live:
            break
        clean = engine.clean(inputs)
        for i in live:
            limits[i] = min(limits[i], _limit(engine, requests[i].site.name, clean, targets[i], len(inputs)))
    return limits


def _limit(engine: SharedEngine, site: str, clean: dict[int, Any], target: Target, rows: int) -> float:
    """The level up to which no prediction of these rows can flip."""
    tape = engine.tape
    number = tape.sites[site]
    if number in tape.fixed:
        return 0.0  # nothing is known of what follows weights
    if clean[number].dtype not in (torch.float32, torch.float64):
        return 0.0  # half types round by more than the margin below
    if clean[number].is_cuda and "tf32" in gpu_precision():
        return 0.0  # and so does tf32
    at_site = target.radii(clean[number].abs().double())  # float64: tiny radii must not become 0
    if not at_site:
        return 0.0
    limit = math.inf
    scores = clean[tape.result].double()
    top, best = scores.max(1, keepdim=True)
    others = torch.ones_like(scores, dtype=torch.bool).scatter_(1, best, False)
    lead = (top - scores)[others]
    terms = []
    for start in at_site:
        table = {number: start}
        for step in engine.suffix(site).steps:
            found = radius(step, table, tape, rows)
            if found is None:
                return 0.0
            table[step.outputs[0]] = found
        if (end := table.get(tape.result)) is None:
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

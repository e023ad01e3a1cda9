"""docs/results/measures.md: every measure in every study by every engine, held against a plain loop over `inject`.

``PYTHONPATH=.:tests/helpers python tests/helpers/measures_page.py`` writes it anew; `test_measures_page.py` holds it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import torch
from measure_cases import CASES as ALIKE
from measure_cases import Case, prepared
from torch import Tensor
from weighted_cases import WEIGHTED

import noisykernels as nk
from noisykernels.experiments import order_sensitivity, sweep_formats
from noisykernels.walking import walk_parameter

CASES = ALIKE | WEIGHTED
PAGE = Path(__file__).parents[2] / "docs" / "results" / "measures.md"
SEED, LEVELS, DRAWS = 3, (0.3, 3.0), (0, 1)
SITE = "one:linear#0"
NOISE, WEIGHTS = nk.Noise(add=1.0), nk.WeightNoise(add=0.2)


class Here(Executor):
    """Workers that are this process: what is sent to them is evaluated at once."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """As the protocol says."""
        done: Future[Any] = Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except Exception as error:
            done.set_exception(error)
        return done


def looped(case: Case, draw: int, **placed: Any) -> float:
    """What is measured of the model with noise or hardware of one draw: its outputs, then the measure's definition."""
    _, targets, *_ = case.data()
    return case.value(outputs(case, draw, **placed), against(case, targets))


def outputs(case: Case, draw: int, **placed: Any) -> Tensor:
    """Of all rows under a draw."""
    x, *_ = case.data()
    with torch.inference_mode(), nk.inject(case.model(), example_input=x[:2], **placed) as noisy:
        with nk.noise_state(noisy, seed=SEED, rows=torch.arange(len(x)), draws=[draw]):
            return noisy(x)


def against(case: Case, targets: Tensor) -> Tensor:
    """Targets, or the outputs without noise where there are none."""
    if targets.dim() > 1 or bool(targets.any()):
        return targets
    with torch.inference_mode():
        return case.model()(case.data()[0])


Pairs = Iterator[tuple[float, float]]  # of what a study says and what a loop does


def walked(case: Case, **compute: Any) -> Pairs:
    study = nk.walk(
        case.model(), case.data(), noise=NOISE, levels=LEVELS, draws=DRAWS, seed=SEED, sites=[SITE],
        metric=case.metric, compute=nk.Compute(**compute),
    )  # fmt: skip
    assert len(study.records) == len(LEVELS) * len(DRAWS)
    for r in study.records:
        yield r.value, looped(case, r.draw, **at_site(r.level))


def searched(case: Case, noise: Any, placed: Callable[[float], dict[str, Any]], **options: Any) -> Pairs:
    """Four of the cells that a search has looked at on all rows, those nearest to what it has found."""
    _, targets, *_ = case.data()
    clean, some = looped(case, 0, **placed(0.0)), sum(looped(case, d, **placed(3.0)) for d in range(4)) / 4
    study = nk.walk(
        case.model(), case.data(), noise=noise, seed=SEED, sites=[SITE], metric=case.metric,
        at=nk.Value(clean + (some - clean) / 2), search=nk.Search(rel_ci=0.3), **options,
    )  # fmt: skip
    (found,) = study.midpoints()
    assert found.status == "ok" and found.low < found.level < found.high
    nearest = sorted(study.records, key=lambda r: (abs(r.level - found.level), r.draw))
    for r in [r for r in nearest if r.rows == len(targets)][:4]:
        yield r.value, looped(case, r.draw, **placed(r.level))


def at_site(level: float) -> dict[str, Any]:
    """How `inject` has noise at a level."""
    return {"noise": NOISE.scaled(level), "where": [SITE]}


def on_weights(level: float) -> dict[str, Any]:
    """How `inject` has noise on weights at a level."""
    return {"hardware": {SITE: [WEIGHTS.scaled(level)]}, "noise": None}


def walked_weights(case: Case) -> Pairs:
    study = nk.walk(
        case.model(), case.data(), noise=WEIGHTS, target="weight", levels=LEVELS, draws=DRAWS, seed=SEED, sites=[SITE],
        metric=case.metric,
    )  # fmt: skip
    for r in study.records:
        yield r.value, looped(case, r.draw, **on_weights(r.level))


def parameter(case: Case) -> Pairs:
    def bits(v: float) -> list[Any]:
        return [nk.hardware.DAC(int(v), "row")]

    study = walk_parameter(
        case.model(), case.data(), bits, [3, 6], seed=SEED, sites=[SITE], metric=case.metric, axis="linear"
    )
    for r in study.records:
        yield r.value, looped(case, r.draw, hardware={SITE: bits(r.level)}, noise=None)


def voted(case: Case) -> Pairs:
    votes = nk.vote(case.model(), case.data(), noise=NOISE, draws=2, seed=SEED, metric=case.metric)
    (curve, *_), (one, other) = votes.curves.values(), (outputs(case, d, noise=NOISE) for d in DRAWS)
    targets = against(case, case.data()[1])
    yield curve.values[0], (case.value(one, targets) + case.value(other, targets)) / 2
    if "mean" in votes.curves:
        yield curve.values[1], case.value((one + other) / 2, targets)


def on_chips(case: Case) -> Pairs:
    found = nk.chips(case.model(), case.data(), hardware=[WEIGHTS], draws=2, seed=SEED, metric=case.metric)
    for draw, value in zip(DRAWS, found.values, strict=True):
        yield float(value), looped(case, draw, hardware=[WEIGHTS], noise=None)


def in_formats(case: Case) -> Pairs:
    clean = case.value(outputs(case, 0, noise=None), against(case, case.data()[1]))
    if not clean > 0:
        return  # shares of nothing
    sweep = sweep_formats(case.model(), case.data(), ["M6E5"], seed=SEED, inputs=4, metric=case.metric)
    value = looped(case, 0, hardware=[nk.Serial("M6E5")], noise=None)
    better = prepared(case)[0].higher_is_better
    yield sweep.results[0].normalised, value / clean if better else clean / value


def in_orders(case: Case) -> Pairs:
    serial = nk.Serial("M5E5", low=-4.0, high=4.0)
    study = order_sensitivity(case.model(), case.data(), serial, permutations=1, orders=("natural",), seed=SEED,
                              metric=case.metric)  # fmt: skip
    yield study.orders["natural"], looped(case, 0, hardware=[serial], noise=None)


STUDIES: dict[str, Callable[[Case], Pairs]] = {
    "walk, plain": lambda case: walked(case, engine="plain"),
    "walk, shared": lambda case: walked(case, engine="shared"),
    "walk, workers": lambda case: walked(case, executor=Here()),
    "search": lambda case: searched(case, NOISE, at_site),
    "walk of weights": walked_weights,
    "search of weights": lambda case: searched(case, WEIGHTS, on_weights, target="weight"),
    "walk_parameter": parameter,
    "vote": voted,
    "chips": on_chips,
    "sweep_formats": in_formats,
    "order_sensitivity": in_orders,
}
CLOSE = 1e-4  # relative: outputs are of single precision, the loop's sums of double


def cell(case: Case, study: str) -> str:
    """How many values were compared, all of them equal but for rounding; or what came instead."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            pairs = list(STUDIES[study](case))
        except ValueError as error:
            if "it is of a whole pass; give levels and draws for a grid" not in str(error):
                raise
            return "grids only"
    far = [(a, b) for a, b in pairs if not abs(a - b) <= CLOSE * max(1.0, abs(b))]
    return f"differs: {far[0][0]:.6g}, not {far[0][1]:.6g}" if far else f"{len(pairs)} equal" if pairs else "clean is 0"


def row(name: str) -> str:
    """A line of the table."""
    return f"| {name} | {' | '.join(cell(CASES[name], study) for study in STUDIES)} |"


def page() -> str:
    """The whole page."""
    head = f"| measure | {' | '.join(STUDIES)} |\n|---|{'---|' * len(STUDIES)}"
    return f"""# Every measure in every study

Values that a study gives, each held against a plain loop: the model injected, run under one draw, and the measure's
definition written out over its outputs in double precision. "4 equal": four values were compared, all equal to within
{CLOSE:g}. "clean is 0": shares of the clean value are not defined. Of a search four cells on all rows are compared,
those nearest to the level that it has found; "grids only": it says that what is measured has none.
`PYTHONPATH=.:tests/helpers python tests/helpers/measures_page.py` writes this page, a test holds it.

{head}
{chr(10).join(map(row, CASES))}

A function of a whole pass runs by the plain engine whatever is asked for: all rows of a draw are needed at once.
"""


if __name__ == "__main__":
    PAGE.write_text(page())

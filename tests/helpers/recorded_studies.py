"""Recorded studies other than walks: votes, chips, mixed noise, formats and orders of sums."""

from __future__ import annotations

import tempfile
from pathlib import Path

from recorded_digests import Cases, Parts, six, study_parts
from recorded_models import GRID, ROWS, problem, whole
from recorded_names import (
    ADC,
    Noise,
    Serial,
    WeightNoise,
    chips,
    layer_formats,
    order_sensitivity,
    running_sums,
    search_format,
    sweep_formats,
    vote,
    walk_mixed,
)
from recorded_stores import tasks_of

from noisykernels.experiments import LinearPredictor

case = Cases()


@case
def other_studies() -> Parts:
    parts: Parts = {}
    model, data = problem("cnn")
    own_model, own_data = problem("own")
    noise = Noise(add=2.0, mul=0.125)
    votes = {
        "vote": vote(model, data, noise=noise, draws=7, seed=3, subsets=5),
        "vote of some": vote(
            model, data, noise={"conv1": noise, "fc": Noise(mul=0.5)}, draws=[4, 2, 9], seed=3, rows=ROWS,
            batch_rows=64, draws_per_pass=2, kinds=["majority", "logit"],
        ),
        "vote at sites": vote(model, data, noise=noise, draws=5, seed=3, sites=["relu*"], kinds="majority"),
        "vote with hardware": vote(
            model, data, noise=None, hardware=[WeightNoise(add=0.25), ADC(6, 128.0)], draws=5, seed=3, subsets=4
        ),
        "vote with repeats": vote(model, data, noise=noise, draws=4, seed=3, repeats={"conv1": 3, "fc": 2}, subsets=4),
        "vote of noisy layers": vote(own_model, own_data, noise=None, draws=5, seed=3, subsets=4),
    }  # fmt: skip
    for name, found in votes.items():
        parts[name] = {
            "clean": found.clean, "rows": found.rows, "draws": found.draws, "seed": found.seed,
            "curves": {kind: six(curve._asdict()) for kind, curve in found.curves.items()},
        }  # fmt: skip
        parts[f"{name} table"] = found.table()
    made = {
        "chips": chips(model, data, hardware=[WeightNoise(add=0.5, relative="layer")], draws=9, seed=4),
        "chips of noise": chips(model, data, noise=noise, draws=[3, 8], seed=4, rows=ROWS, batch_rows=50),
        "chips of both": chips(
            model, data, hardware={"fc": [WeightNoise(mul=0.5)]}, noise=noise, draws=5, seed=4, draws_per_pass=2
        ),
    }
    for name, found in made.items():
        parts[name] = {"accuracy": found.values} | {
            k: getattr(found, k) for k in ("clean", "rows", "draws", "seed", "worst")
        }
        parts[f"{name} figures"] = six([found.mean, found.std, found.worst_of(2), found.yield_at(0.5)])
        parts[f"{name} table"] = found.table()
        parts[f"{name} table of limits"] = found.table(limits=[0.25, 0.5])
    mixed = walk_mixed(model, data, ratios=[0.0, 0.25, 1.0], sites=["conv1", "fc"], **GRID)
    for ratio, study in zip(mixed.ratios, mixed.studies, strict=True):
        parts |= study_parts(study, f"mixed {ratio:g} ")
    parts["mixed table"] = mixed.table()
    others = walk_mixed(model, data, ratios=[0.5], order="add_mul", kind="laplace", **GRID)
    parts |= study_parts(others.studies[0], "mixed other ")
    return parts


FORMATS = ["fp16", "bf16", "M2E4", "M4E5", "M7E6 stochastic", "L4R4", "L8R8", "L12R4 nearest"]


@case
def formats_and_orders() -> Parts:
    parts: Parts = {}
    model, data = problem("cnn", 60)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sweep.db"
        for name, some in (("", FORMATS[:5]), (" enlarged", FORMATS)):
            sweep = sweep_formats(model, data, some, inputs=6, seed=2, store=path, name="net")
            parts[f"sweep{name}"] = [
                (str(r.format), repr(r.format), *six([r.r2, r.normalised, r.speedup, r.saving])) for r in sweep.results
            ]
            parts[f"sweep{name} store"] = sorted(tasks_of(path))
        parts["sweep text"] = f"{sweep!r}, {sweep.fastest(0.5)}, {[str(r.format) for r in sweep.front()]}"
    reversed_sums = sweep_formats(
        model, data, ["M4E5"], inputs=data[0][:4], arithmetic=lambda f: Serial(f, order="reversed"), batch_rows=25
    )
    parts["sweep reversed"] = six([[r.r2, r.normalised] for r in reversed_sums.results])
    predictor = LinearPredictor.fit([sweep])
    parts["predictor"] = str(six(predictor))
    space = [f"M{m}E{e}" for m in (2, 3, 4, 6) for e in (4, 6)]
    for evaluations in (0, 2):
        found = search_format(model, data, predictor, formats=space, target=0.95, evaluations=evaluations, seed=2)
        parts[f"search with {evaluations}"] = str(six(found))
    layers = layer_formats(model, data, "M5E5", target=0.9, evaluations=12)
    parts["layers"] = {"formats": {k: str(v) for k, v in layers.formats.items()}, "macs": layers.macs,
                       "figures": six([layers.normalised, layers.speedup, layers.saving]),
                       "evaluations": layers.evaluations}  # fmt: skip
    parts["layers table"] = layers.table()
    for name, arithmetic in {"serial": Serial(low=-8, high=8), "format": Serial("L4R2", low=-6, high=6)}.items():
        study = order_sensitivity(model, data, arithmetic, permutations=4, seed=1, batch_rows=40)
        parts[f"orders {name}"] = six(study)
        parts[f"orders {name} table"] = study.table()
    parts["orders of inputs alone"] = six(
        order_sensitivity(model, data[0][:20], Serial(low=-8, high=8), permutations=3, seed=1)
    )
    x, w = whole((40,), -4, 4, 1), whole((40,), -3, 3, 2)
    for name, made in {
        "none": None, "name": "L4R2", "limits": Serial(low=-9, high=9), "stochastic": Serial("M3E5 stochastic"),
        "sorted": Serial("M3E5", order="descending"), "given": Serial(order=list(range(39, -1, -1)), high=7.0),
    }.items():  # fmt: skip
        parts[f"running sums {name}"] = running_sums(x, w, made, seed=3)
    return parts

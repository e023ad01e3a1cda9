"""What results must stay: fixed small studies and calls of operators, and digests of all that they give.

``python tests/helpers/recorded.py --digests`` writes the digests of tests/data/v0_1_0 anew, ``--write`` the files there
too, which were made by version 0.1.0 and should stay; ``--show NAME`` prints what a digest is of, and without arguments
it names those that differ. Whoever changes a result on purpose says
so in the changelog and writes them anew.

The cases are exact by construction, so that neither the machine nor the number of threads matters: weights and data
are small whole numbers, and where noise would enter a contraction its inputs are rounded to a coarse grid first
(`Grid`), or only one product of each sum differs from zero. Figures that come from a fit or from transcendental
functions are written with six digits, levels of a search with twelve. Two models, `attention` and `plain mlp`, are not
exact: their counts are the same at all levels and numbers of threads because no prediction is that close.

All names of the package are taken in the few lines below, and all calls with many arguments go through the functions
after them.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import re
import sqlite3
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from options import gathered
from torch import Tensor, nn

import noisykernels as nk
from noisykernels import _C
from noisykernels.brainscales import BrainScaleS2
from noisykernels.experiments import LinearPredictor
from noisykernels.noise.contract import KINDS, OPERANDS
from noisykernels.stats import Meta, Record
from noisykernels.study import Study
from noisykernels.training import train
from noisykernels.zoo import load_checkpoint as load_checkpoint
from noisykernels.zoo import save_checkpoint

Noise, WeightNoise, InputNoise, MacNoise, Serial = nk.Noise, nk.WeightNoise, nk.InputNoise, nk.MacNoise, nk.Serial
ADC, DAC, ColumnGain, ColumnOffset = nk.hardware.ADC, nk.hardware.DAC, nk.hardware.ColumnGain, nk.hardware.ColumnOffset
DifferentialPair, PCM = nk.hardware.DifferentialPair, nk.hardware.PCM
FixedFormat, FloatFormat, NoisyConv2d, NoisyLinear, NoiseSite = (
    nk.arithmetic.FixedFormat, nk.arithmetic.FloatFormat, nk.NoisyConv2d, nk.NoisyLinear, nk.NoiseSite
)  # fmt: skip
inject, noise_state, sites_of = nk.inject, nk.noise_state, nk.sites
compare, report = nk.compare, nk.study.report
set_cpu_level = _C.set_cpu_level


def walk(model: nn.Module, data: Any, **how: Any) -> Any:
    return nk.walk(model, data, **gathered(how))


def walk_parameter(model: nn.Module, data: Any, make: Any, values: Sequence[float], **how: Any) -> Study:
    return nk.walk_parameter(model, data, make, values, **gathered({"seed": 0, **how}))


def walk_mixed(model: nn.Module, data: Any, **how: Any) -> Any:
    return nk.walk_mixed(model, data, **gathered(how))


def vote(model: nn.Module, data: Any, **how: Any) -> Any:
    return nk.vote(model, data, **gathered(how))


def chips(model: nn.Module, data: Any, **how: Any) -> Any:
    return nk.chips(model, data, **gathered(how))


def sweep_formats(model: nn.Module, data: Any, formats: Any, **how: Any) -> Any:
    return nk.experiments.sweep_formats(model, data, formats, **gathered({"seed": 0, **how}))


def search_format(model: nn.Module, data: Any, predictor: Any, **how: Any) -> Any:
    return nk.experiments.search_format(model, data, predictor, **gathered({"seed": 0, **how}))


def layer_formats(model: nn.Module, data: Any, start: str, **how: Any) -> Any:
    return nk.experiments.layer_formats(model, data, start, **gathered({"seed": 0, **how}))


def order_sensitivity(model: nn.Module, data: Any, arithmetic: Any, **how: Any) -> Any:
    return nk.experiments.order_sensitivity(model, data, arithmetic, **gathered(how))


def running_sums(x: Tensor, weight: Tensor, arithmetic: Any, **how: Any) -> Tensor:
    return nk.experiments.running_sums(x, weight, arithmetic, **how)


def op(name: str) -> Callable[..., Tensor]:
    """An operator: `eps`, `perturb`, `linear`, `conv2d`, ..., `quantize`."""
    function: Callable[..., Tensor] = getattr(nk, name)
    return function


# ---------------------------------------------------------------------------------------------- what a digest is of

FOLDER = Path(__file__).resolve().parents[1] / "data" / "v0_1_0"
# Entries of a plan, and fields of results, that belong to the machine or that did not exist then.
OF_THE_MACHINE = ("torch", "cpu_level", "threads", "device", "verification", "ties", "arrays", "covered")
SINCE = {"metric": "accuracy", "arrays": "module"}  # fields that did not exist then, with what goes without saying
KINDS_THEN = ("gaussian", "uniform", "laplace")  # there may be more today
VERBATIM = 3000  # characters of a text that is kept as it is, so that a failure can be read


def six(value: Any) -> Any:
    """Floats with six digits, everywhere in a value."""
    if isinstance(value, Tensor | np.ndarray):
        return six(value.tolist())
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return {k: six(v) for k, v in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        told = {f.name: six(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {k: v for k, v in told.items() if k not in OF_THE_MACHINE and (k not in SINCE or v != SINCE[k])}
    if isinstance(value, list | tuple):
        return [six(v) for v in value]
    return value if value is None or isinstance(value, str | int | bool) else str(value)


def canonical(value: Any) -> str:
    """The one text of a value; of arrays, type, shape and a digest of the bytes, with one zero and one NaN."""
    if isinstance(value, str):
        return value
    if isinstance(value, Tensor):
        kind, array = str(value.dtype), value.detach().cpu().contiguous()
        if array.is_floating_point():
            array = torch.where(array == 0, torch.zeros_like(array), array)
            array = torch.where(array.isnan(), torch.full_like(array, math.nan), array)
        raw = array.view(-1).view(torch.uint8).numpy().tobytes()
        return f"{kind} {list(value.shape)} {hashlib.sha256(raw).hexdigest()}"
    if isinstance(value, np.ndarray):
        return canonical(torch.from_numpy(np.ascontiguousarray(value)))
    if isinstance(value, Record):
        return repr(tuple(value))
    if isinstance(value, Mapping):
        return "\n".join(f"{k}: {canonical(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return "\n".join(canonical(v) for v in value)
    return repr(value)


def told(value: Any) -> str:
    """What is written down of a value: a short text itself, else its SHA-256."""
    text = canonical(value)
    if isinstance(value, str) and len(text) <= VERBATIM:
        return text
    return "sha256 " + hashlib.sha256(text.encode()).hexdigest()


Parts = dict[str, Any]
CASES: dict[str, Callable[[], Parts]] = {}


def case(function: Callable[[], Parts]) -> Callable[[], Parts]:
    CASES[function.__name__] = function
    return function


@functools.cache
def parts_of(name: str) -> Parts:
    """What a case gives; each is run once in a process."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        return CASES[name]()


def value_of(name: str) -> Any:
    """What the digest ``case: part`` is of."""
    which, part = name.split(": ")
    return parts_of(which)[part]


def now() -> dict[str, str]:
    """All digests, as the present code makes them."""
    return {f"{name}: {part}": told(value) for name in CASES for part, value in parts_of(name).items()}


def meta_of(meta: Meta) -> dict[str, Any]:
    """All of a meta but what belongs to the machine; figures of a search with six digits."""
    told = dataclasses.asdict(meta)
    told["plan"] = {k: v for k, v in meta.plan.items() if k not in OF_THE_MACHINE}
    return told | {"midpoints": six(meta.midpoints)}


def study_parts(study: Study, prefix: str = "") -> Parts:
    """Records and meta of a study, from which all else follows (see `texts`). A search computes its levels."""
    records, meta = study.records, meta_of(study.meta)
    if study.meta.midpoints:
        return {f"{prefix}records": twelve(canonical(records)) + "\n", f"{prefix}meta": twelve(canonical(meta))}
    return {f"{prefix}records": records, f"{prefix}meta": meta}


def twelve(text: str) -> str:
    """A text with its long numbers cut to twelve digits."""
    return re.sub(r"\d+\.\d{9,}(e[+-]\d+)?", lambda found: f"{float(found[0]):.12g}", text)


# ------------------------------------------------------------------------------------------------- models and data

Model = TypeVar("Model", bound=nn.Module)


def whole(shape: Sequence[int], low: int, high: int, salt: int) -> Tensor:
    """Whole numbers low..high that look random: SplitMix64 of their positions."""
    z = np.arange(math.prod(shape), dtype=np.uint64) + np.uint64(1 + (salt << 32))
    z *= np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    z ^= z >> np.uint64(31)
    return torch.from_numpy((z % np.uint64(high - low + 1)).astype(np.float32) + low).view(*shape)


class Grid(nn.Module):
    """Rounds to quarters and limits: what follows adds up exactly, in whichever order."""

    def forward(self, x: Tensor) -> Tensor:
        return (torch.round(x * 4) / 4).clamp(-2048, 2048)


class Skip(nn.Module):
    """Two ways around a layer, and a normalisation of scale 1."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(16, 10), nn.Linear(10, 10), nn.Linear(10, 5)
        self.norm, self.grid = nn.BatchNorm1d(10, eps=2**-10), Grid()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(self.grid(x.flatten(1)))))
        x = self.grid(x + torch.relu(self.second(self.grid(x))))
        return self.last(x)


class Attention(nn.Module):
    """Four tokens that look at each other."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.last = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.attention(x, x, x, need_weights=False)[0]).flatten(1))


class Unrecordable(nn.Module):
    """Looks at a value, so that every pass has to run all of it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.grid = nn.Linear(16, 8), nn.Linear(8, 4), Grid()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(self.grid(x)))
        return self.last(self.grid(x if float(x.abs().max()) > -1 else -x))


def filled(model: Model, salt: int = 1, scale: float = 1.0, most: int = 3) -> Model:
    """A model with whole numbers as weights, and normalisations that are exact."""
    with torch.no_grad():
        for k, (name, values) in enumerate(sorted(model.state_dict().items())):
            if name.endswith("num_batches_tracked"):
                continue
            if name.endswith("running_var"):
                values.copy_(4.0 ** whole(values.shape, 0, 1, salt + k) - 2**-10)
            elif name.endswith("running_mean"):
                values.copy_(whole(values.shape, -2, 2, salt + k))
            elif "norm" in name:
                values.fill_(1.0 if name.endswith("weight") else 0.0)
            else:
                values.copy_(scale * whole(values.shape, -most, most, salt + k))
    return model.eval()


def mlp(grid: bool = True) -> nn.Sequential:
    """Two layers; without the grid, noise enters contractions as it is."""
    layers = [nn.Flatten(), Grid(), nn.Linear(16, 12), nn.ReLU(), Grid(), nn.Linear(12, 5)]
    model = filled(nn.Sequential(*(layer for layer in layers if grid or not isinstance(layer, Grid))))
    with torch.no_grad():
        model[-1].bias += torch.arange(5) / 8  # no two scores are equal
    return model


def cnn() -> nn.Module:
    model = nn.Sequential()
    layers = {
        "conv1": nn.Conv2d(1, 4, 3, padding=1), "norm1": nn.BatchNorm2d(4, eps=2**-10), "relu1": nn.ReLU(),
        "pool1": nn.MaxPool2d(2), "grid1": Grid(), "conv2": nn.Conv2d(4, 6, 3), "relu2": nn.ReLU(), "grid2": Grid(),
        "flat": nn.Flatten(), "fc": nn.Linear(24, 5),
    }  # fmt: skip
    for name, layer in layers.items():
        model.add_module(name, layer)
    return filled(model, 11, most=2)


def own() -> nn.Module:
    """Noisy layers of its own, with hardware in one."""
    return filled(nn.Sequential(
        nn.Flatten(), NoisyLinear(16, 12, noise=Noise(add=2.0)), nn.ReLU(), Grid(), NoiseSite(Noise(mul=0.25)), Grid(),
        NoisyLinear(12, 5, noise=Noise(add=1.0, mul=0.125), hardware=[ADC(6, 64.0)]),
    ), 21)  # fmt: skip


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, (1, 4, 4)),
    "plain mlp": (lambda: mlp(False), (1, 4, 4)),
    "cnn": (cnn, (1, 8, 8)),
    "skip": (lambda: filled(Skip(), 31), (1, 4, 4)),
    "own": (own, (1, 4, 4)),
    "attention": (lambda: filled(Attention(), 41, 0.125), (4, 8)),
    "unrecordable": (lambda: filled(Unrecordable(), 51), (16,)),
}


def problem(name: str, rows: int = 240) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """A model, and data of which it classifies nine tenths right."""
    make, shape = MODELS[name]
    model = make()
    inputs = whole((rows, *shape), -4, 4, 99)
    exact = model
    if name == "own":  # the labels are those without noise
        exact = filled(
            nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), Grid(), Grid(), Grid(), nn.Linear(12, 5)), 21
        )
    with torch.no_grad():
        scores = exact(inputs)
    wrong = torch.arange(rows) % 10 == 3
    return model, (inputs, (scores.argmax(1) + wrong) % scores.shape[1])


ROWS = [7 * i + 3 for i in range(240)]
LEVELS = [1.0, 16.0, 256.0]
GRID = {"levels": LEVELS, "draws": 2, "seed": 5}

# ------------------------------------------------------------------------------------------------------------ walks

NOISES = {
    "add": Noise(add=1.0),
    "mul": Noise(mul=0.25),
    "mul_add": Noise(add=0.5, mul=0.25),
    "add_mul": Noise(add=0.5, mul=0.25, order="add_mul"),
    "fold": Noise(add=0.5, mul=0.25, fold=True),
    "uniform": Noise(add=1.0, kind="uniform"),
    "laplace": Noise(add=1.0, mul=0.125, kind="laplace"),
    "channels": Noise(add=torch.tensor([[[1.0, 0.5, 2.0, 0.0, 1.0, 1.0, 4.0, 1.0, 1.0, 0.5, 1.0, 1.0]]])),
}
WEIGHT_NOISES = {
    "absolute": WeightNoise(add=0.125),
    "layer": WeightNoise(add=0.125, relative="layer"),
    "channel": WeightNoise(add=0.125, relative="channel"),
    "mul": WeightNoise(mul=0.125),
    "fold": WeightNoise(add=0.125, mul=0.125, fold=True, kind="gaussian"),
    "uniform": WeightNoise(add=0.125, kind="uniform"),
}


@case
def walk_noises() -> Parts:
    """Each noise on one model, with the engine that shares work and with the plain one."""
    parts: Parts = {}
    model, data = problem("mlp")
    for engine in ("auto", "plain"):
        for name, noise in NOISES.items():
            sites = [1, 2] if name == "channels" else None
            study = walk(model, data, noise=noise, sites=sites, engine=engine, **GRID)
            parts |= study_parts(study, f"{name} {engine} ")
    return parts


@case
def walk_models() -> Parts:
    """Each model under mixed noise of its activations and noise of its weights."""
    parts: Parts = {}
    for name in MODELS:
        model, data = problem(name)
        for engine in ("auto", "plain"):
            study = walk(model, data, noise=Noise(add=1.0, mul=0.125), engine=engine, **GRID)
            parts |= study_parts(study, f"{name} {engine} ")
        study = walk(model, data, noise=WeightNoise(add=0.25), target="weight", **GRID)
        parts |= study_parts(study, f"{name} weight ")
    return parts


@case
def walk_weights() -> Parts:
    parts: Parts = {}
    model, data = problem("cnn")
    for name, noise in WEIGHT_NOISES.items():
        for engine in ("auto", "plain"):
            study = walk(model, data, noise=noise, target="weight", engine=engine, **GRID)
            parts |= study_parts(study, f"{name} {engine} ")
    several = walk(model, data, noise=list(WEIGHT_NOISES.values())[:3], target="weight", **GRID)
    for study, name in zip(several, WEIGHT_NOISES, strict=False):
        parts |= study_parts(study, f"several {name} ")
    return parts


@case
def walk_several_noises() -> Parts:
    parts: Parts = {}
    model, data = problem("cnn")
    chosen = ["add", "mul", "mul_add", "add_mul", "fold"]
    for engine in ("auto", "plain"):
        studies = walk(model, data, noise=[NOISES[n] for n in chosen], engine=engine, **GRID)
        for name, study in zip(chosen, studies, strict=True):
            parts |= study_parts(study, f"{name} {engine} ")
    return parts


@case
def walk_options() -> Parts:
    """Rows, float64, chosen sites, floor, axis, sizes of passes, memory, data in batches, a count of draws as ids."""
    parts: Parts = {}
    model, data = problem("cnn")
    grid = {"noise": NOISES["mul_add"], **GRID}
    ways: dict[str, dict[str, Any]] = {
        "rows": {"rows": ROWS},
        "rows permuted": {"rows": torch.tensor(ROWS).flip(0)},
        "sites by name": {"sites": ["conv*", "relu2", 0]},
        "sites by index": {"sites": 3},
        "floor": {"floor": 0.125},
        "axis": {"axis": "linear"},
        "passes": {"batch_rows": 70, "draws_per_pass": 1},
        "memory": {"memory": 200_000},
        "plain memory": {"memory": 200_000, "engine": "plain"},
        "draws": {"draws": [9, 4, 4_000_000_000]},
        "levels": {"levels": torch.tensor([8.0, 0.0, 1.0])},
        "threads": {"threads": 1},
        "description": {"description": ("net", "whole numbers")},
        "seed": {"seed": 2**63 + 11},
    }
    for name, way in ways.items():
        parts |= study_parts(walk(model, data, **{**grid, **way}), f"{name} ")
    batches = [(x, y) for x, y in zip(data[0].split(100), data[1].split(100), strict=True)]
    parts |= study_parts(walk(model, batches, **grid), "batches ")
    double = cnn().double()
    parts |= study_parts(walk(double, (data[0].double(), data[1]), **grid), "float64 ")
    calls: list[tuple[int, int]] = []
    walk(model, data, progress=lambda done, total: calls.append((int(done), int(total))), **grid)
    parts["progress ends with"] = str(calls[-1])
    training = cnn().train()
    walk(training, data, **grid)
    parts["model left in training mode"] = str(all(m.training for m in training.modules()))
    return parts


@case
def walk_plateaus() -> Parts:
    parts: Parts = {}
    for name in ("plain mlp", "cnn"):
        model, data = problem(name, 1200)
        how: dict[str, Any] = {"levels": [1e-4, 0.02, 1.0, 8.0, 1e4, 1e6], "draws": 2, "seed": 5, "plateaus": 0.05}
        for kind in ("gaussian", "uniform"):
            noises = [Noise(add=1.0, kind=kind), Noise(mul=0.25, kind=kind)]
            for study, term in zip(walk(model, data, noise=noises, **how), ("add", "mul"), strict=True):
                parts |= study_parts(study, f"{name} {kind} {term} ")
    return parts


@case
def walk_search() -> Parts:
    """The adaptive walk: activations, several noises, and chips."""
    parts: Parts = {}
    model, data = problem("cnn", 480)
    for engine in ("auto", "plain"):
        how: dict[str, Any] = {"seed": 5, "engine": engine, "sites": ["input", "conv2", "fc"], "rel_ci": 0.15}
        parts |= study_parts(walk(model, data, noise=NOISES["mul_add"], **how), f"{engine} ")
    noises = [Noise(add=1.0), Noise(mul=1.0)]
    for study, name in zip(walk(model, data, noise=noises, seed=6, rel_ci=0.4), ("add", "mul"), strict=True):
        parts |= study_parts(study, f"several {name} ")
    weight = WeightNoise(add=1.0, relative="layer")
    parts |= study_parts(walk(model, data, noise=weight, target="weight", seed=7, rel_ci=0.6), "chips ")
    return parts


def saturating(limit: float) -> Serial:
    return Serial(low=-limit, high=limit)


def converting(bits: float) -> list[Any]:
    return [DAC(int(bits), "row"), ADC(int(bits), "row")]


def leaking(share: float) -> list[Any]:
    return [Serial(leak=1 - share)]


def stepping(level: float) -> list[Any]:
    return [Serial(step_noise=level)]


@case
def walk_parameters() -> Parts:
    parts: Parts = {}
    model, data = problem("cnn")
    for engine in ("auto", "plain"):
        limits = walk_parameter(model, data, saturating, [2.0, 8.0, 64.0], name="limit", seed=1, engine=engine)
        bits = walk_parameter(model, data, converting, [2, 4, 8], name="bits", axis="linear", engine=engine)
        leaks = walk_parameter(
            model, data, leaking, [0.03125, 0.125], name="leak", larger="worse", sites=["fc"], engine=engine
        )
        steps = walk_parameter(
            model, data, stepping, [0.5, 8.0], name="noise", larger="worse", draws=2, sites=["fc", "conv1"],
            engine=engine, rows=ROWS, floor=0.125,
        )  # fmt: skip
        for name, study in (("limit", limits), ("bits", bits), ("leak", leaks), ("step noise", steps)):
            parts |= study_parts(study, f"{name} {engine} ")
    return parts


@case
def walk_workers() -> Parts:
    """Two processes and two threads, also without a tape."""
    parts: Parts = {}
    model, data = problem("cnn")
    grid = {"noise": NOISES["mul_add"], "threads": 1, **GRID}
    parts |= study_parts(walk(model, data, executor=2, **grid), "processes ")
    with ThreadPoolExecutor(2) as executor:
        parts |= study_parts(walk(model, data, executor=executor, **grid), "threads ")
        parts |= study_parts(walk(model, data, executor=executor, engine="plain", **grid), "threads plain ")
        search = {"noise": Noise(add=1.0), "seed": 5, "threads": 1, "rel_ci": 0.2, "sites": ["conv2"]}
        parts |= study_parts(walk(model, data, executor=executor, **search), "threads search ")
    return parts


def tasks_of(path: Path) -> dict[str, str]:
    """Name and result of every task that a store holds."""
    with closing(sqlite3.connect(path)) as db:
        return dict(db.execute("SELECT task, result FROM tasks ORDER BY task"))


def claimed(path: Path) -> list[tuple[Any, ...]]:
    """Task, owner and time of everything that a store holds: it stays as it is if nothing is evaluated again."""
    with closing(sqlite3.connect(path)) as db:
        return db.execute("SELECT task, owner, finished FROM tasks ORDER BY task").fetchall()


@case
def walk_store() -> Parts:
    """Fresh, again, enlarged; several noises, weights, a parameter and a search in stores."""
    parts: Parts = {}
    model, data = problem("cnn")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "activation.db"
        grid = {"noise": NOISES["mul_add"], "store": path, **GRID}
        parts |= study_parts(walk(model, data, sites=["conv1", "fc"], **grid), "fresh ")
        parts["fresh tasks"], before = tasks_of(path), claimed(path)
        parts |= study_parts(walk(model, data, sites=["conv1", "fc"], **grid), "again ")
        parts["again evaluated"] = str(len(set(claimed(path)) - set(before)))
        larger = {**grid, "levels": [*LEVELS, 2.0], "draws": 3}
        parts |= study_parts(walk(model, data, sites=["conv1", "fc", "relu2"], **larger), "enlarged ")
        parts["enlarged tasks"] = tasks_of(path)
        parts["enlarged kept"] = str(set(before) <= set(claimed(path)))
        others: dict[str, Callable[[Path], Any]] = {
            "several": lambda p: walk(model, data, noise=[NOISES["add"], NOISES["mul"]], store=p, **GRID)[1],
            "weight": lambda p: walk(model, data, noise=WEIGHT_NOISES["layer"], target="weight", store=p, **GRID),
            "parameter": lambda p: walk_parameter(model, data, saturating, [2.0, 8.0], name="limit", store=p),
            "search": lambda p: walk(model, data, noise=Noise(add=1.0), seed=5, sites=["fc"], rel_ci=0.2, store=p),
        }
        for name, run in others.items():
            path = Path(folder) / f"{name}.db"
            parts |= study_parts(run(path), f"{name} ")
            before = claimed(path)
            parts[f"{name} tasks"] = str(len(before)) if name == "search" else tasks_of(path)
            parts |= study_parts(run(path), f"{name} again ")
            parts[f"{name} again evaluated"] = str(len(set(claimed(path)) - set(before)))
    return parts


# ----------------------------------------------------------------------------------------------- the other studies


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
        parts[name] = {k: getattr(found, k) for k in ("accuracy", "clean", "rows", "draws", "seed", "worst")}
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


# ---------------------------------------------------------------------------------- tables, reports, exports, pictures


def without_versions(page: str) -> str:
    """A report without what belongs to the machine and to matplotlib."""
    page = re.sub(r'src="data:image/[^"]*"', 'src="picture"', page)
    rows = "|".join((*OF_THE_MACHINE, "report by noisykernels", "pictures by matplotlib"))
    page = re.sub(rf"<tr><t[dh][^>]*>(?:{rows})</t[dh]><td[^>]*>[^<]*</td></tr>", "", page)
    return re.sub(r"threads=\d+", "threads=N", page)


def drawn(figure: Any) -> str:
    """What a picture says: titles, labels, legends, and the points of its lines."""
    lines = []
    for ax in figure.axes:
        lines.append(f"{ax.get_title()} | {ax.get_xlabel()} | {ax.get_ylabel()} | {ax.get_xscale()} {ax.get_yscale()}")
        lines += [t.get_text() for t in ax.texts]
        lines += [t.get_text() for t in (ax.get_legend().get_texts() if ax.get_legend() else ())]
        lines += [f"{line.get_label()}: {six(line.get_xydata())}" for line in ax.lines]
        lines.append(f"{len(ax.collections)} {len(ax.patches)} {len(ax.images)}")
    return "\n".join(re.sub(r"_child\d+", "", line) for line in lines)


@functools.cache
def studies() -> dict[str, Study]:
    """One study of each sort that tables tell apart."""
    model, data = problem("cnn")
    return {
        "grid": walk(model, data, noise=NOISES["mul_add"], description=("net", "whole numbers"), **GRID),
        "mul": walk(model, data, noise=NOISES["mul"], **GRID),
        "weight": walk(model, data, noise=WEIGHT_NOISES["layer"], target="weight", **{**GRID, "draws": 6}),
        "search": walk(model, data, noise=NOISES["add"], seed=5, rel_ci=0.2, sites=["conv2", "fc"]),
        "parameter": walk_parameter(model, data, saturating, [2.0, 8.0, 64.0], name="limit"),
        "plateaus": walk(
            model, data, noise=NOISES["add"], seed=5, levels=[1e-4, 1.0, 16.0, 1e5], draws=2, plateaus=0.1
        ),
    }  # fmt: skip


@case
def texts() -> Parts:
    """What a person or another program reads of a study."""
    parts: Parts = {}
    made = studies()
    with tempfile.TemporaryDirectory() as folder:
        for name, study in made.items():
            parts[f"{name} repr"] = repr(study)
            parts[f"{name} table"] = study.table()
            parts[f"{name} midpoints"] = six(study.midpoints())
            parts[f"{name} curves"] = six([c._asdict() for c in study.curves()])
            parts[f"{name} csv"] = twelve(study.export(Path(folder) / "records.csv").read_text())
            content = json.loads(study.export(Path(folder) / "records.json").read_text())
            content["meta"]["plan"] = {k: v for k, v in content["meta"]["plan"].items() if k not in OF_THE_MACHINE}
            content["meta"]["midpoints"] = six(content["meta"]["midpoints"])
            parts[f"{name} json"] = twelve(json.dumps(content))
            saved = json.loads(study.save(Path(folder) / "study.json").read_text())
            parts[f"{name} keys of the file"] = str([*saved, *saved["meta"], *saved["columns"]])
        for name in ("grid", "plateaus"):
            parts[f"{name} free table"] = made[name].table(floor="free", confidence=0.9)
        pair = compare(made["grid"], made["mul"], ["both", "mul"])
        parts["comparison"] = six(pair)
        parts["comparison table"] = pair.table()
        parts["comparison with a search"] = compare(made["grid"], made["search"]).table()
    return parts


@case
def pages() -> Parts:
    """Reports and pictures; matplotlib is needed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    parts: Parts = {}
    made = studies()
    with tempfile.TemporaryDirectory() as folder:
        for name in ("grid", "search"):
            page = report(
                made[name], Path(folder) / "page.html", command="noisykernels walk" if name == "grid" else None
            )
            parts[f"{name} report"] = twelve(without_versions(page.read_text()))
    for name, study in made.items():
        parts[f"{name} plot"] = drawn(study.plot())
    parts["comparison plot"] = drawn(compare(made["grid"], made["mul"]).plot())
    model, data = problem("cnn")
    votes = vote(model, data, noise=Noise(add=2.0), draws=4, seed=3, subsets=4)
    parts["votes plot"] = drawn(votes.plot())
    mixed = walk_mixed(model, data, ratios=[0.0, 1.0], sites=["conv1", "fc"], **GRID)
    parts["mixed plot"], parts["mixed plot of a site"] = drawn(mixed.plot()), drawn(mixed.plot(site="fc"))
    pyplot.close("all")
    return parts


@case
def frames() -> Parts:
    """Frames of pandas and data sets of xarray; both are needed."""
    parts: Parts = {}
    made = studies()
    for name, study in made.items():
        parts[f"{name} frame"] = twelve(study.to_pandas().to_csv(index=False))
        parts[f"{name} data set"] = str(six(study.to_xarray().to_dict()))
    parts["chips of a study"] = six(made["weight"].chips().to_dict("list"))
    model, data = problem("cnn")
    votes = vote(model, data, noise=Noise(add=2.0), draws=4, seed=3, subsets=4)
    parts["votes frame"] = six(votes.to_pandas().to_dict("list"))
    parts["chips frame"] = chips(model, data, noise=Noise(add=2.0), draws=4, seed=3).to_pandas().to_csv(index=False)
    parts["mixed frame"] = walk_mixed(model, data, ratios=[0.0, 1.0], **GRID).to_pandas().to_csv(index=False)
    sweep = sweep_formats(model, data, FORMATS[:3], inputs=6)
    parts["sweep frame"] = six(sweep.to_pandas().to_dict("list"))
    return parts


# --------------------------------------------------------------------------------------------------------- messages


def wrong_calls() -> dict[str, Callable[[], Any]]:
    model, data = problem("mlp", 20)
    noise, x, w = Noise(add=1.0), torch.ones(2, 3), torch.ones(4, 3)

    def of_walk(**how: Any) -> Callable[[], Any]:
        return lambda: walk(model, data, **{"noise": noise, **GRID, **how})

    def on(values: Any) -> Callable[[], Any]:
        return lambda: walk(model, values, noise=noise, **GRID)

    return {
        "walk target": of_walk(target="bias"),
        "walk engine": of_walk(engine="fast"),
        "walk noise": of_walk(noise=1.0),
        "walk weight noise": of_walk(noise=WeightNoise(add=1.0)),
        "walk levels alone": of_walk(draws=None),
        "walk level": of_walk(levels=[-1.0]),
        "walk levels twice": of_walk(levels=[1.0, 1.0]),
        "walk level too large": of_walk(levels=[1e39]),
        "walk draws": of_walk(draws=0),
        "walk draw ids": of_walk(draws=[-1]),
        "walk seed": of_walk(seed=-1),
        "walk sites": of_walk(sites=["conv9"]),
        "walk rel_ci": of_walk(levels=None, draws=None, rel_ci=2.0),
        "walk plateaus": of_walk(plateaus=0.9),
        "walk plateaus of weights": of_walk(plateaus=0.1, noise=WeightNoise(add=1.0), target="weight"),
        "walk executor": of_walk(executor=0),
        "walk rows": of_walk(rows=[1, 2]),
        "walk batch_rows": of_walk(batch_rows=0),
        "walk memory": of_walk(memory=-1),
        "walk levels by row": of_walk(noise=Noise(add=torch.ones(1, 20, 1))),
        "walk order of relative": of_walk(noise=Noise(add=1.0, mul=1.0), target="weight"),
        "walk floor of a search": of_walk(levels=None, draws=None, floor=0.99),
        "walk data": on((data[0], data[1].float())),
        "walk labels": on((data[0], data[1] + 9)),
        "walk nan": on((data[0] / 0 * 0, data[1])),
        "walk no weights": lambda: walk(nn.Flatten(), data, noise=noise, target="weight", **GRID),
        "walk scores": lambda: walk(nn.Identity(), data, noise=noise, **GRID),
        "walk_parameter name": lambda: walk_parameter(model, data, saturating, [1.0], name=""),
        "walk_parameter larger": lambda: walk_parameter(model, data, saturating, [1.0], larger="wider"),
        "walk_parameter make": lambda: walk_parameter(model, data, 3, [1.0]),
        "walk_parameter devices": lambda: walk_parameter(model, data, str, [1.0]),
        "walk_mixed ratios": lambda: walk_mixed(model, data, ratios=[2.0], seed=1),
        "vote kinds": lambda: vote(model, data, noise=noise, draws=2, seed=1, kinds=["most"]),
        "vote without noise": lambda: vote(model, data, noise=None, draws=2, seed=1),
        "vote sites": lambda: vote(model, data, noise={"1": noise}, draws=2, seed=1, sites=["1"]),
        "chips without noise": lambda: chips(model, data, seed=1),
        "chips draws": lambda: chips(model, data, noise=noise, draws=0, seed=1),
        "sweep_formats none": lambda: sweep_formats(model, data, []),
        "sweep_formats format": lambda: sweep_formats(model, data, ["M99E1"]),
        "search_format target": lambda: search_format(
            model, data, nk.experiments.LinearPredictor(1.0, 0.0, 1.0, 0.0, 2), target=2.0
        ),
        "layer_formats evaluations": lambda: layer_formats(model, data, "M4E5", evaluations=0),
        "order_sensitivity orders": lambda: order_sensitivity(model, data, None, orders=["up"], seed=1),
        "order_sensitivity arithmetic": lambda: order_sensitivity(model, data, Serial(ordered=False), seed=1),
        "running_sums": lambda: running_sums(x, w, None),
        "compare names": lambda: compare(*[studies_of_two()[0]] * 2, ["a", "a"]),
        "inject twice": lambda: [inject(model, noise) for _ in range(2)],
        "inject pattern": lambda: inject(mlp(), {"conv9": noise}, example_input=data[0][:2]),
        "noise level": lambda: Noise(add=-1.0),
        "noise kind": lambda: Noise(add=1.0, kind="poisson"),
        "noise fold": lambda: Noise(add=1.0, mul=1.0, kind="uniform", fold=True),
        "perturb operand": lambda: op("perturb")(x, noise, seed=1, operand="sum"),
        "perturb draws": lambda: op("perturb")(x, noise, seed=1, draws=3),
        "perturb rows": lambda: op("perturb")(x, noise, seed=1, rows=[0, 1, 2]),
        "linear shapes": lambda: op("linear")(x, w.T, noise=noise, seed=1),
        "linear hardware": lambda: op("linear")(x, w, hardware=[1], seed=1),
        "linear same stream": lambda: op("linear")(x, w, hardware=[WeightNoise(add=1.0)] * 2, seed=1),
        "conv2d weight": lambda: op("conv2d")(x, w, noise=noise, seed=1),
        "eps kind": lambda: op("eps")((2, 3), kind="poisson", seed=1),
        "quantize format": lambda: op("quantize")(x, "M99E1"),
        "serial order": lambda: Serial(order="up"),
        "adc bits": lambda: ADC(0, 1.0),
        "study file": lambda: Study.load(Path(__file__)),
        "study export": lambda: studies_of_two()[0].export("records.xlsx"),
    }


def studies_of_two() -> tuple[Study, Study]:
    model, data = problem("mlp", 20)
    return walk(model, data, noise=Noise(add=1.0), **GRID), walk(model, data, noise=Noise(mul=1.0), **GRID)


@case
def messages() -> Parts:
    """Types and words of errors."""
    parts: Parts = {}
    for name, call in wrong_calls().items():
        try:
            call()
        except Exception as error:
            text = str(error).replace(str(Path(__file__).resolve().parent), "").replace(str(Path(__file__).parent), "")
            text = text.replace(", ".join(KINDS), ", ".join(KINDS_THEN))
            parts[name] = f"{type(error).__name__}: {text}".split("\nException raised from")[0]
        else:
            parts[name] = "no error"
    return parts


# -------------------------------------------------------------------------------------------------------- operators

MODES = {**{k: NOISES[k] for k in ("add", "mul", "mul_add", "add_mul", "fold")},
         "uniform": Noise(add=0.5, mul=0.25, kind="uniform"), "laplace": Noise(mul=0.5, kind="laplace")}  # fmt: skip
KEY: dict[str, Any] = {"seed": 2**63 + 5, "site": 77, "draws": [0, 5, 2**32 - 1], "rows": [4, 0, 2**32 - 1, 9]}
ONE: dict[str, Any] = {"seed": 9, "site": 3, "first_row": 6}


@case
def op_eps() -> Parts:
    parts: Parts = {}
    for kind in KINDS_THEN:
        for operand in OPERANDS:
            parts[f"{kind} {operand}"] = op("eps")((5, 3, 7), kind=kind, seed=12, site=8, operand=operand, draw=2)
        parts[f"{kind} long"] = op("eps")((2, 5003), kind=kind, seed=2**64 - 1, site=2**24 - 1, rows=[2**32 - 1, 1])
    return parts


@case
def op_noise() -> Parts:
    """Every noise on values and on results of contractions of whole numbers."""
    parts: Parts = {}
    x, w, b = whole((4, 9), -5, 5, 1), whole((6, 9), -3, 3, 2), whole((6,), -2, 2, 3)
    image, kernel = whole((4, 4, 6, 6), -5, 5, 4), whole((6, 2, 3, 3), -3, 3, 5)
    back, volume = whole((4, 3, 2, 2), -3, 3, 6), whole((4, 2, 3, 4, 3), -3, 3, 7)
    for mode, noise in MODES.items():
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
            parts[f"perturb {mode} {dtype}"] = op("perturb")(x.to(dtype), noise, shared=True, **KEY)
        how: dict[str, Any] = {"noise": noise, "shared": True, **KEY}
        parts[f"linear {mode}"] = op("linear")(x, w, b, **how)
        parts[f"linear relu float64 {mode}"] = op("linear")(x.double(), w.double(), None, relu=True, **how)
        parts[f"matmul {mode}"] = op("matmul")(x.view(4, 1, 9), w.T, **how)
        parts[f"conv2d {mode}"] = op("conv2d")(image, kernel, b, 1, "same", groups=2, **how)
        parts[f"conv_transpose2d {mode}"] = op("conv_transpose2d")(image, back, None, 2, 1, 1, **how)
        parts[f"conv1d {mode}"] = op("conv1d")(image[:, :, 0], kernel[:, :, 0], stride=2, groups=2, **how)
        parts[f"conv3d {mode}"] = op("conv3d")(volume, whole((3, 2, 2, 2, 2), -2, 2, 8), relu=True, **how)
        parts[f"pool {mode}"] = op("perturb_relu_max_pool2d")(image, noise, 2, shared=True, **KEY)
    draws, rows = nk.per_draw([0.5, 1.0, 2.0], 2), nk.per_row([1.0, 0.0, 2.0, 4.0], 2)
    for name, noise in {
        "draw": Noise(add=draws), "row": Noise(mul=rows), "channel": Noise(add=nk.per_channel(torch.arange(9.0), 2)),
        "both": Noise(add=draws, mul=rows),
    }.items():  # fmt: skip
        parts[f"levels by {name}"] = op("perturb")(x, noise, shared=True, **KEY)
    for operand in ("input", "weight", "programming"):
        parts[f"operand {operand}"] = op("perturb")(x, Noise(add=1.0), operand=operand, **ONE)
    return parts


def one_hot(rows: int, columns: int) -> Tensor:
    """One power of two in each row."""
    made = torch.zeros(rows, columns)
    made[range(rows), [(5 * r + 2) % columns for r in range(rows)]] = 2.0 ** whole((rows,), -1, 2, rows)
    return made


@case
def op_hardware() -> Parts:
    """Devices inside contractions; one product of each sum differs from zero where noise enters them."""
    parts: Parts = {}
    dense, sparse = whole((4, 9), -5, 5, 1), one_hot(4, 9)
    w, w_sparse, b = whole((6, 9), -3, 3, 2), one_hot(6, 9), whole((6,), -2, 2, 3)
    key = {"shared": True, **KEY}
    of_weights = {
        "absolute": WeightNoise(add=0.5), "layer": WeightNoise(add=0.5, relative="layer"),
        "channel": WeightNoise(add=0.5, relative="channel"), "mul": WeightNoise(mul=0.25, kind="laplace"),
        "fold": WeightNoise(add=0.5, mul=0.25, fold=True), "pair": DifferentialPair(0.125),
        "pair of levels": DifferentialPair(0.125, levels=8, over="channel"),
        "explicit products": MacNoise(0.5, explicit=True),
    }  # fmt: skip
    for name, device in of_weights.items():
        parts[f"weights {name}"] = op("linear")(sparse, w, b, hardware=[device], **key)
        parts[f"weights {name} conv2d"] = op("conv2d")(
            sparse.view(4, 9, 1, 1), w.view(6, 9, 1, 1), b, padding=1, hardware=[device], **key
        )
        parts[f"weights {name} conv_transpose2d"] = op("conv_transpose2d")(
            sparse.view(4, 9, 1, 1), w.T.reshape(9, 6, 1, 1), b, stride=2, hardware=[device], **key
        )
    parts["weights drift"] = six(op("linear")(sparse, w, b, hardware=[PCM(time=86400.0, pair=False)], **key))
    of_inputs = {
        "noise": InputNoise(add=0.5), "mul": InputNoise(mul=0.25, kind="uniform"), "converter": DAC(3, 4.0),
        "converter by row": DAC(4, "row"), "unsigned": DAC(3, 4.0, signed=False, rounding="floor"),
    }  # fmt: skip
    for name, device in of_inputs.items():
        parts[f"inputs {name}"] = op("linear")(dense, w_sparse, b, hardware=[device], **key)
    of_outputs = {
        "adc": ADC(5, 64.0), "adc by row": ADC(4, "row"), "gain": ColumnGain(0.125), "offset": ColumnOffset(0.5),
        "macs": MacNoise(0.5, 0.25, 0.125), "macs by layer": MacNoise(0.0, 0.0, 0.5, relative="layer"),
        "chip": BrainScaleS2(gain=0.25, noise_std=1.0), "chip in order": BrainScaleS2(0.25, 1.0, ordered=True),
    }  # fmt: skip
    for name, device in of_outputs.items():
        x = dense.abs() if "chip" in name else dense
        parts[f"outputs {name}"] = op("linear")(x, w, b, hardware=[device], **key)
        parts[f"outputs {name} and noise"] = op("linear")(
            x, w, b, hardware=[device], noise=MODES["mul"], relu=True, **key
        )
        image, kernel = whole((4, 2, 5, 5), 0, 5, 4), whole((6, 2, 3, 3), -3, 3, 5)
        y = op("conv2d")(image, kernel, b, 2, 1, hardware=[device], **key)
        rounded = "macs" in name  # torch may fuse a product and a sum
        parts[f"outputs {name} conv2d"] = torch.round(16 * y) if rounded else y
    several = [InputNoise(mul=0.25), DAC(6, 16.0), ColumnGain(0.125), ADC(6, 64.0)]
    parts["several"] = op("linear")(dense, w_sparse, b, hardware=several, noise=MODES["mul_add"], **key)
    return parts


@case
def op_serial() -> Parts:
    """Sums in a defined order: every operation is rounded as it is defined, so any values will do."""
    parts: Parts = {}
    x, w = op("eps")((4, 21), seed=1, site=1), op("eps")((5, 21), seed=1, site=2)
    image, kernel = op("eps")((3, 4, 5, 5), seed=1, site=3), op("eps")((6, 2, 3, 3), seed=1, site=4)
    permuted = torch.argsort(whole((21,), 0, 10**6, 1))
    made: dict[str, Serial] = {
        **{fmt: Serial(fmt) for fmt in ("M2E4", "M7E6", "fp16", "bf16", "L4R4", "L2R9")},
        **{fmt: Serial(fmt) for fmt in ("M4E5 stochastic", "L5R5 stochastic")},
        "float": Serial(FloatFormat(3, 4, subnormals=True, overflow="infinity", rounding="nearest")),
        "fixed": Serial(FixedFormat(3, 5)),
        "parts": Serial(operands="M4E5", product="exact", sum="L6R6"),
        **{order: Serial("M5E5", order=order)
           for order in ("reversed", "positive_first", "negative_first", "ascending", "descending")},
        "permuted": Serial(order=permuted), "limits": Serial(low=-1.5, high=2.0), "leak": Serial(leak=0.875),
        "synapse": Serial(synapse_limit=1.0, synapse_decay=0.5), "step noise": Serial(step_noise=0.25, gain=2.0),
    }  # fmt: skip
    for name, arithmetic in made.items():
        parts[f"linear {name}"] = op("linear")(x, w, w[:, 0], arithmetic=arithmetic, shared=True, **KEY)
        if name != "permuted":
            parts[f"conv2d {name}"] = op("conv2d")(image, kernel, padding=1, groups=2, arithmetic=arithmetic, **ONE)
    parts["linear float64"] = op("linear")(x.double(), w.double(), arithmetic=Serial("L8R8"), **ONE)
    parts["conv_transpose2d"] = op("conv_transpose2d")(image, kernel[:4], stride=2, arithmetic=Serial("M5E5"), **ONE)
    for fmt in ("M2E4", "M7E6 stochastic", "fp16", "bf16", "L4R4", "L3R8 nearest", "L3R8 stochastic"):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            parts[f"quantize {fmt} {dtype}"] = op("quantize")(
                (4 * x).to(dtype), fmt, seed=4, site=2, draw=3, first_row=5
            )
    return parts


@case
def op_gradients() -> Parts:
    """Gradients of sums that are exact, on one thread with the portable kernels."""
    parts: Parts = {}
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    set_cpu_level("portable")
    try:
        for mode in ("add", "mul", "mul_add", "add_mul", "uniform"):
            noise = MODES[mode]
            for name, (x, w) in {
                "perturb": (whole((4, 9), -5, 5, 1), None),
                "linear": (one_hot(4, 9), one_hot(9, 6).T.contiguous()),
                "conv2d": (one_hot(4, 9).view(4, 9, 1, 1), one_hot(9, 6).T.reshape(6, 9, 1, 1)),
                "conv_transpose2d": (one_hot(4, 9).view(4, 9, 1, 1), one_hot(9, 6).view(9, 6, 1, 1)),
            }.items():
                x = x.clone().requires_grad_()
                if w is None:
                    y = op(name)(x, noise, **ONE)
                    given: list[Tensor] = [x]
                else:
                    w = w.clone().requires_grad_()
                    y, given = op(name)(x, w, noise=noise, **ONE), [x, w]
                y.backward(whole(tuple(y.shape), -3, 3, 8))
                for which, tensor in zip("xw", given, strict=False):
                    parts[f"{name} {mode} {which}"] = tensor.grad
        devices = {"adc": ADC(5, 8.0), "serial": Serial(low=-2, high=2), "masked": Serial(high=2, gradient="masked"),
                   "weight": WeightNoise(add=0.5)}  # fmt: skip
        for name, device in devices.items():
            x, w = one_hot(4, 9).requires_grad_(), one_hot(9, 6).T.contiguous().requires_grad_()
            y = op("linear")(x, w, hardware=[device], **ONE)
            y.backward(whole(tuple(y.shape), -3, 3, 8))
            parts[f"linear {name} x"], parts[f"linear {name} w"] = x.grad, w.grad
    finally:
        set_cpu_level("auto")
        torch.set_num_threads(before)
    return parts


@case
def injection() -> Parts:
    """Names and numbers of sites, and scores of models that run noisily."""
    parts: Parts = {}
    for name in MODELS:
        model, (inputs, _) = problem(name, 12)
        parts[f"{name} sites"] = "\n".join(
            str((s.index, s.name, s.id, s.shape, s.row_dim)) for s in sites_of(model, inputs[:2])
        )
        if name in ("attention", "plain mlp"):  # its scores depend on the order of sums
            continue
        with torch.inference_mode(), inject(model, Noise(add=1.0, mul=0.125), example_input=inputs[:2]):
            with noise_state(model, seed=3, draws=[2, 7], rows=list(range(5, 17))):
                parts[f"{name} scores"] = model(inputs)
        linear = None if name == "own" else {"*:linear": Noise(add=1.0)}  # whose layers keep their own
        with torch.inference_mode(), inject(model, linear, repeats=2, example_input=inputs[:2]):
            with noise_state(model, seed=3):
                parts[f"{name} repeats"] = six(model(inputs))
    model, (inputs, _) = problem("own", 12)
    with torch.inference_mode(), noise_state(model, seed=3, draws=[0, 1]):
        parts["own layers"] = model(inputs)
    parts["own repr"] = repr(model)
    return parts


# ------------------------------------------------------------------------------------- files of this version


def activation_walk(store: Path | None) -> Study:
    """The walk of study.json and of the stores activation.db and activation-half.db, at one level of kernels."""
    model, data = problem("cnn")
    return of_one_level(lambda: walk(model, data, noise=NOISES["mul_add"], store=store, threads=1, **GRID))


def weight_walk(store: Path | None) -> Study:
    """The walk of the stores weight.db and weight-half.db."""
    model, data = problem("cnn")
    how = {"noise": WEIGHT_NOISES["layer"], "target": "weight", "store": store, "threads": 1, **GRID}
    return of_one_level(lambda: walk(model, data, **how))


STORES = {"activation": activation_walk, "weight": weight_walk}


def of_one_level(run: Callable[[], Any]) -> Any:
    """Runs with the kernels that every machine has: a store belongs to the level of its kernels."""
    set_cpu_level("portable")
    try:
        return run()
    finally:
        set_cpu_level("auto")


SETTINGS: dict[str, Any] = {"model": "recorded", "data": "whole numbers", "epochs": 2, "seed": 5}


def noisy_net() -> nn.Module:
    return filled(nn.Sequential(
        nn.Flatten(), NoisyLinear(16, 12, noise=Noise(add=0.5)), nn.BatchNorm1d(12), nn.ReLU(),
        NoiseSite(Noise(mul=0.25)), NoisyLinear(12, 5, noise=Noise(add=0.25)),
    ), 61, 0.125)  # fmt: skip


def trained(model: nn.Module, epochs: int, first_draw: int) -> list[dict[str, float]]:
    """Training of a model with noisy layers, on one thread, with noise that does not repeat."""
    _, (inputs, labels) = problem("mlp", 96)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return of_one_level(lambda: train(
            model, (inputs / 4, labels), epochs=epochs, batch_size=32, seed=5,
            on_step=lambda step, rows: noise_state(model, seed=1, draws=[first_draw + step], rows=rows),
        ))  # fmt: skip
    finally:
        torch.set_num_threads(before)


def machine() -> dict[str, str]:
    """What the bits of a training depend on beside the code."""
    return {"torch": str(torch.__version__), "cpu": torch.backends.cpu.get_cpu_capability()}


def native_digests() -> dict[str, str]:
    """The digests that the native tests hold every level, compiler and machine against."""
    folder = Path(__file__).resolve().parents[1] / "native"
    found = {}
    for source in sorted(folder.rglob("*.cpp")):
        found.update(dict(re.findall(r"(k\w*Digest) = (0x[0-9a-f]{16})", source.read_text())))
    return found


def lose_half(source: Path, target: Path) -> None:
    """A copy of a store as if its process had been killed half-way: every second task is only claimed, for a time that
    is over."""
    target.write_bytes(source.read_bytes())
    with closing(sqlite3.connect(target)) as db, db:
        for (task,) in db.execute("SELECT task FROM tasks ORDER BY finished, task").fetchall()[1::2]:
            db.execute("DELETE FROM tasks WHERE task = ?", (task,))
            db.execute("INSERT INTO claims VALUES (?, 'killed', 1, 1)", (task,))
    with closing(sqlite3.connect(target)) as db:
        db.execute("VACUUM")


def write() -> None:
    """Writes digests and files anew."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for old in FOLDER.iterdir():
        old.unlink()
    activation_walk(None).save(FOLDER / "study.json")
    for name, run in STORES.items():
        run(FOLDER / f"{name}.db")
        lose_half(FOLDER / f"{name}.db", FOLDER / f"{name}-half.db")
    model = noisy_net()
    save_checkpoint(FOLDER / "checkpoint.pt", model, SETTINGS, trained(model, 2, 0))
    torch.save(model.state_dict(), FOLDER / "state.pt")
    write_digests(machine())


def write_digests(of: dict[str, str]) -> None:
    """Writes the digests anew; the files beside them are of the machine that is named."""
    content = {"machine": of, "native": native_digests(), "digests": now()}
    (FOLDER / "digests.json").write_text(json.dumps(content, indent=0, ensure_ascii=False) + "\n")


def recorded() -> dict[str, Any]:
    """The content of digests.json."""
    found: dict[str, Any] = json.loads((FOLDER / "digests.json").read_text())
    return found


def main(arguments: Sequence[str]) -> None:
    if arguments[:1] == ["--write"]:
        write()
    elif arguments[:1] == ["--digests"]:
        write_digests(recorded()["machine"])
    elif arguments[:1] == ["--show"]:
        print(canonical(value_of(" ".join(arguments[1:]))))
    else:
        old, new = recorded()["digests"], now()
        different = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        print(f"{len(new)} digests, {len(different)} differ", *different, sep="\n")
        sys.exit(bool(different))


if __name__ == "__main__":
    import recorded as imported  # workers find its classes under this name

    imported.main(sys.argv[1:])

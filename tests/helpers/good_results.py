"""A good call of each public function of results, pictures, statistics, training, data and the zoo: its arguments."""

from __future__ import annotations

import functools
import sqlite3
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from good_calls import DATA, NOISE, VALUES, Good, X, injected, net
from made_study import MIDPOINTS, made_study
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import noisykernels as nk
from noisykernels import datasets, experiments, integrations, plotting, stats, training, walking, zoo
from noisykernels import study as results
from noisykernels.arithmetic import CostModel, FloatFormat

LABELS, VOTES = [0, 1], [[0, 1], [1, 1]]
SCORES = np.zeros((2, 2, 3))
FIT: dict[str, Any] = dict(
    levels=[0.1, 1.0, 10.0], accuracy=[[0.9], [0.5], [0.1]], clean=0.9, floor=0.1, rows=[[100]] * 3
)
SETTINGS: dict[str, Any] = {"model": "mlp", "data": "digits"}
LLAMA = zoo.LlamaSizes(vocabulary=260, width=8, blocks=1, heads=2, shared=1, hidden=8)


@functools.cache
def folder() -> Path:
    """A folder for what good calls write; it goes with the process."""
    made = tempfile.TemporaryDirectory(prefix="good-")
    folder.kept = made  # type: ignore[attr-defined]
    return Path(made.name)


@functools.cache
def study() -> nk.Study:
    return made_study(MIDPOINTS[:3])


def study_of_blocks() -> nk.Study:
    """A study of two blocks."""
    made = made_study()
    names = {site: f"layers.{k // 2}.fc{k % 2}:linear#0" for k, site in enumerate(made.meta.sites)}
    sites = tuple(names.values())
    return nk.Study([r._replace(site=names[r.site]) for r in made.records], replace(made.meta, sites=sites))


@functools.cache
def sweep() -> experiments.Sweep:
    made = [(FloatFormat(m, 6), m / 4) for m in (2, 3, 4)]
    return experiments.Sweep([experiments.FormatResult(f, r, r, 8.0 / f.mantissa, 1.0) for f, r in made], 0.9, 500)


@functools.cache
def chips() -> experiments.Chips:
    return experiments.Chips(np.array([0.8, 0.9]), 0.9, 100, (0, 1), 0)


@functools.cache
def votes() -> experiments.Votes:
    return nk.vote(net(), DATA, noise=NOISE, draws=2, seed=1)


@functools.cache
def formats() -> experiments.LayerFormats:
    return experiments.LayerFormats({"a": FloatFormat(3, 4)}, {"a": 10}, 1.0, 1, CostModel())


@functools.cache
def orders() -> experiments.OrderStudy:
    return experiments.order_sensitivity(net(), DATA, nk.Serial(low=-1.0, high=1.0), permutations=2, seed=1)


@functools.cache
def mixed() -> walking.Mixed:
    return walking.Mixed((0.0, 1.0), (study(), study()))


@functools.cache
def predictor() -> experiments.LinearPredictor:
    return experiments.LinearPredictor.fit([sweep()])


@functools.cache
def saved() -> Path:
    """A saved study."""
    return study().save(folder() / "saved.json")


@functools.cache
def saved_mixed() -> Path:
    mixed().save(folder() / "mixed")
    return folder() / "mixed"


@functools.cache
def checkpoint() -> Path:
    path = folder() / "checkpoint.pt"
    zoo.save_checkpoint(path, net(), SETTINGS)
    return path


def stepped() -> Any:
    """An optimizer of the kind that takes two passes."""
    return training.SAM(net().parameters(), torch.optim.SGD, lr=0.1)


def log() -> training.MetricLog:
    made = training.MetricLog(weights=lambda: training.weight_statistics(net()))
    made({"epoch": 0})
    return made


def speech(**more: Any) -> dict[str, Any]:
    return dict(frames=8, bands=4) | more


def sharp(**more: Any) -> dict[str, Any]:
    """Arguments that the sharpness-aware optimizers share."""
    return dict(base_optimizer=torch.optim.SGD, rho=0.1, model=None, same_noise=True, lr=0.1) | more


def blocks(**more: Any) -> dict[str, Any]:
    return dict(bottleneck=None, kernel_size=3) | more


def over(**more: Any) -> dict[str, Any]:
    """Arguments of what is measured over data."""
    return dict(model=net(), data=DATA, batch_size=3) | more


RESULTS: Good = {
    results.Result.save: lambda: dict(self=study(), path=folder() / "a.json"),
    results.Result.load: lambda: dict(path=saved()),
    results.Result.export: lambda: dict(self=study(), path=folder() / "a.csv", spreadsheet=False),
    results.Result.report: lambda: dict(self=chips(), path=folder() / "a.html", title=None),
    nk.Study.report: lambda: dict(self=study(), path=folder() / "a.html", title=None, at="drop:0.1"),
    nk.Study.compare: lambda: dict(self=study(), other=study(), names=("a", "b"), at="drop:0.1"),
    nk.Study.asking: lambda: dict(self=study(), at="drop:0.1"),
    nk.Study.curves: lambda: dict(self=study(), confidence=0.9),
    nk.Study.midpoints: lambda: dict(self=study(), floor=0.1, confidence=0.9, at="keep:0.9"),
    nk.Study.table: lambda: dict(self=study(), floor=0.1, confidence=0.9, at=["half", "keep:0.9"]),
    nk.Study.plot: lambda: dict(self=study(), ax=None, at="keep:0.9"),
    nk.Study.chips: lambda: dict(self=study(), limit=0.5),
    experiments.Chips.plot: lambda: dict(self=chips(), ax=None, limits=[0.5]),
    experiments.Chips.table: lambda: dict(self=chips(), limits=[0.5]),
    experiments.Chips.worst_of: lambda: dict(self=chips(), count=1),
    experiments.Chips.yield_at: lambda: dict(self=chips(), limit=0.5, confidence=0.9),
    experiments.Votes.plot: lambda: dict(self=votes(), ax=None),
    experiments.Sweep.fastest: lambda: dict(self=sweep(), target=0.5),
    experiments.Sweep.plot: lambda: dict(self=sweep(), ax=None, target=0.5),
    experiments.Sweep.table: lambda: dict(self=sweep(), target=0.5),
    experiments.LayerFormats.hardware: lambda: dict(self=formats(), arithmetic=nk.Serial),
    experiments.LayerFormats.plot: lambda: dict(self=formats(), ax=None),
    experiments.OrderStudy.plot: lambda: dict(self=orders(), ax=None),
    experiments.LinearPredictor.fit: lambda: dict(sweeps=[sweep()], anchored=True),
    experiments.LinearPredictor.predict: lambda: dict(self=predictor(), r2=0.5),
    experiments.exhaustive_search: lambda: dict(sweep=sweep(), target=0.5),
    results.Comparison.plot: lambda: dict(self=nk.compare(study(), study()), ax=None),
    walking.Mixed.save: lambda: dict(self=mixed(), folder=folder() / "mixed"),
    walking.Mixed.load: lambda: dict(folder=saved_mixed()),
    walking.Mixed.plot: lambda: dict(self=mixed(), ax=None, site=None),
    nk.compare: lambda: dict(a=study(), b=study(), names=("a", "b"), at=None),
    results.report: lambda: dict(study=study(), path=folder() / "a.html", title=None, command=None),
    results.uniform: lambda: dict(sites=["a", "b"], repeats=2),
    results.tailored: lambda: dict(midpoints={"a": 1.0, "b": 2.0}, repeats=2, mapping="inverse", published_ranks=False),
    results.allocate: lambda: dict(midpoints=study(), budget=9, level=0.5, cost=1, axis=None),
    results.predicted_accuracy: lambda: dict(midpoints=study(), repeats=1, level=0.5, axis=None),
}

PICTURES: Good = {
    plotting.plot_agreement: lambda: dict(sweeps=[sweep()], predictor=predictor(), ax=None),
    plotting.plot_compare: lambda: dict(comparison=nk.compare(study(), study()), ax=None),
    plotting.plot_curves: lambda: dict(study=study(), ax=None, sites=["input"], legend=True, curves=None, points=None),
    plotting.plot_front: lambda: dict(sweep=sweep(), ax=None, target=0.5, marked=("M3E6",)),
    plotting.plot_heat_map: lambda: dict(study=study(), ax=None, curves=None, points=None),
    plotting.plot_blocks: lambda: dict(study=study_of_blocks(), ax=None, points=None),
    plotting.plot_layer_formats: lambda: dict(found=formats(), ax=None),
    plotting.plot_mixed_map: lambda: dict(studies=[study(), study()], ratios=[0.0, 1.0], ax=None, site=None),
    plotting.plot_orders: lambda: dict(study=orders(), axes=None),
    plotting.plot_profile: lambda: dict(study=study(), ax=None, floor=None, points=None),
    plotting.plot_study: lambda: dict(study=study(), axes=None, floor=None, sites=None),
    plotting.plot_votes: lambda: dict(votes=votes(), ax=None, legend=True),
    plotting.plot_yields: lambda: dict(chips=chips(), ax=None, limits=[0.5]),
    experiments.plot_running_sums: lambda: dict(x=X[0], weight=X[1], arithmetics={"a": nk.Serial()}, ax=None),
}

STATISTICS: Good = {
    stats.wilson: lambda: dict(correct=5, rows=10, confidence=0.95),
    stats.band: lambda: dict(
        accuracy=[[0.5, 0.6]], rows=[[10, 10]], confidence=0.95, independent_rows=True, law="real", spread=[[0.1, 0.2]]
    ),
    stats.Keep: lambda: dict(share=0.9),
    stats.Drop: lambda: dict(by=0.01),
    stats.Ratio: lambda: dict(of_clean=0.95),
    stats.Value: lambda: dict(value=0.9),
    stats.fit_tolerance: lambda: dict(
        levels=[0.1, 1.0, 10.0], values=[[0.9], [0.5], [0.1]], at="keep:0.9", clean=0.9, floor=0.1, rows=100,
        law="binary", higher_is_better=True, spread=None, axis="log", confidence=0.95, independent_rows=True, seed=0,
        rising=False,
    ),
    stats.fit_midpoint: lambda: dict(
        FIT, axis="log", confidence=0.95, seed=0, independent_rows=True, rising=False
    ),
    stats.majority: lambda: dict(predictions=VOTES, labels=LABELS, classes=2, n=None),
    stats.mean_scores: lambda: dict(scores=SCORES, labels=LABELS, n=None, kind="logit", subsets=2, seed=0),
    stats.executions_needed: lambda: dict(curve=[0.5, 0.6], value=0.55, higher_is_better=True),
    stats.Record.counted: lambda: dict(
        site="a", site_index=0, level=0.5, draw=0, rows=10, correct=5, status="evaluated"
    ),
}  # fmt: skip

STEPS: dict[str, Any] = dict(seed=1, level=1.0, evaluation=0.0, statistics=X)
INTEGRATIONS: Good = {
    integrations.trainer_callback: lambda: dict(STEPS),
    integrations.lightning_callback: lambda: dict(STEPS),
}
TRAINING: Good = {
    training.train: lambda: dict(
        model=net(), data=DATA, epochs=1, lr=0.1, batch_size=4, augment=None, clamp=None, seed=0, device=None,
        progress=False, on_epoch=None, on_step=None, val=None, forward=None, output=None,
    ),
    training.accuracy: lambda: over(forward=None, output=None),
    training.clamp_weights: lambda: dict(model=net(), limit=0.1),
    training.recalibrate_bn: lambda: over(model=nn.BatchNorm1d(4), data=X, seed=None, forward=None),
    training.site_statistics: lambda: over(data=X, seed=None, level=None, forward=None, output=None),
    training.gradient_norms: lambda: over(seed=None, level=None, loss=None, forward=None, output=None),
    training.weight_statistics: lambda: dict(model=net()),
    training.m_sharpness: lambda: over(rho=0.05, ascent=training.SAM, forward=None, output=None, metric="nll"),
    training.noisy_steps: lambda: dict(model=injected(), seed=1, level=1.0),
    training.Schedule: lambda: dict(points=[(0, 0.0), (1, 1.0)]),
    training.Schedule.constant: lambda: dict(factor=1.0),
    training.Schedule.overshoot: lambda: dict(steps=10, peak=1.5, end=1.0),
    training.Schedule.ramp: lambda: dict(steps=10, start=0.0, end=1.0),
    training.VarianceAware: lambda: dict(sigma=1.0, alpha=0.5, theta=0.5, seed=1, form="folded", every=None),
    training.DenoisingBlock: lambda: blocks(features=4, dims=0),
    training.insert_denoising: lambda: blocks(model=net(), where="0:linear#0", example_input=X),
    training.denoising_sites: lambda: blocks(
        model=net(), gradients=training.gradient_norms(net(), DATA), budget=0.5
    ),
    training.SAM: lambda: sharp(params=net().parameters()),
    training.ASAM: lambda: sharp(params=net().named_parameters(), eta=0.1),
    training.SAMSON: lambda: sharp(params=net().named_parameters(), eta=0.1, p=2.0),
    training.MetricLog: lambda: dict(weights=list),
    training.MetricLog.to_pandas: lambda: dict(self=log(), name="weights"),
    training.bimodality: lambda: dict(values=X),
    training.two_means: lambda: dict(values=X),
}  # fmt: skip

FILES: Good = {
    datasets.load: lambda: dict(name="digits", split="test", root=None, limit=5, download=False),
    datasets.info: lambda: dict(name="digits"),
    datasets.augmentation: lambda: dict(data_name="digits"),
    datasets.numbered: lambda: dict(loader=DataLoader(TensorDataset(VALUES[1]), batch_size=2)),
    datasets.crop_flip: lambda: dict(x=VALUES[1], generator=torch.Generator(), pad=1, fill=(0.0, 0.0, 0.0)),
    datasets.synthetic_recordings: lambda: dict(takes=1, speakers=1, seed=0),
    datasets.log_mel: lambda: speech(words=[np.zeros(100, np.int16)]),
    datasets.read_recordings: lambda: dict(path=recordings()),
    datasets.spoken_digits: lambda: speech(split="test", source=recordings(), root=None, limit=5, download=False),
    datasets.kjv: lambda: dict(split="test", source=bible(), root=None, download=False),
    datasets.tokens: lambda: dict(
        text="to be or not to be", tokenizer="bytes", length=4, padded=False, column="text", vocabulary=300
    ),
    datasets.Tokens.first: lambda: dict(self=datasets.tokens("to be or not to be", length=4), windows=2),
    datasets.BytePairs: lambda: dict(merges=[(116, 104)]),
    datasets.BytePairs.trained: lambda: dict(text="the theme", size=258),
    datasets.BytePairs.encode: lambda: dict(self=datasets.BytePairs([]), text="the"),
    datasets.BytePairs.decode: lambda: dict(self=datasets.BytePairs([]), tokens=[116, 104, 101]),
    zoo.Llama: lambda: dict(sizes=LLAMA),
    zoo.LlamaSizes: lambda: dict(
        vocabulary=260, width=8, blocks=1, heads=2, shared=1, hidden=8, tied=True, length=16, theta=100.0, eps=1e-5
    ),
    zoo.language: lambda: dict(
        sizes=LLAMA, text=["to be or not to be"], steps=1, seed=0, lr=0.1, length=4, cache=folder() / "cache",
        root=None, on_step=None,
    ),
    zoo.save_for_transformers: lambda: dict(
        folder=folder() / "llama", model=zoo.Llama(LLAMA), tokenizer=datasets.BytePairs([])
    ),
    zoo.build: lambda: dict(name="mlp", shape=(1, 8, 8), classes=10),
    zoo.fresh: lambda: dict(model_name="mlp", data_name="digits", seed=0),
    zoo.trained: lambda: dict(
        model_name="mlp", data_name="digits", epochs=0, seed=0, lr=0.1, batch_size=4, augment=True, clamp=None, limit=9,
        cache=folder() / "cache", root=None, device=None, progress=False, on_epoch=None,
    ),
    zoo.checkpoint_path: lambda: dict(settings=SETTINGS, cache=folder()),
    zoo.load_checkpoint: lambda: dict(path=checkpoint(), model=net(), settings=SETTINGS),
    zoo.save_checkpoint: lambda: dict(path=folder() / "b.pt", model=net(), settings=SETTINGS, history=[]),
    zoo.LeNet5: lambda: dict(in_channels=1, size=28, classes=10, norm=False),
    zoo.MLP: lambda: dict(in_features=4, classes=3, width=4, hidden=1, norm=False),
}  # fmt: skip


@functools.cache
def recordings() -> Path:
    """A file of recordings."""
    path = folder() / "words.npz"
    np.savez(path, **datasets.synthetic_recordings(takes=6, speakers=1)._asdict())
    return path


@functools.cache
def bible() -> Path:
    """A file as the package of the text has it: eleven chapters of two verses."""
    path = folder() / "Bible.db"
    with sqlite3.connect(path) as file:
        file.execute("create table Bible (TestamentID, BookID, ChapterID, VerseID, Passage1, Passage2)")
        for k in range(22):
            chapter, verse = k // 2 + 1, k % 2 + 1
            row = (
                1,
                1,
                chapter,
                verse,
                f"{chapter}:{verse} Word {chapter}",
                f"  {chapter}:{verse} and more." * (verse - 1),
            )
            file.execute("insert into Bible values (?, ?, ?, ?, ?, ?)", row)
    file.close()
    return path

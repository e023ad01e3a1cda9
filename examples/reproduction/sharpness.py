"""Sharpness-aware training against noise on the weights: SGD, SAM, ASAM, SAMSON, and training with the noise itself.

LeNet-5 with batch norm, SGD with momentum. The weights of each layer get Gaussian noise, in units of the layer's
largest weight; a draw is one chip, the same for all test images. rho is chosen for each optimizer by the accuracy
under noise on training images that were set aside. Prints accuracy against level, mean and spread over chips and
trainings.
Some 30 trainings on a sixth of Fashion-MNIST; about 12 minutes on one core.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from scaffold import TEST_SEED, Data, accuracies, cached, main, mean, pyplot, show, spread, write
from torch import nn

import noisykernels as nk
from noisykernels.datasets import augmentation, load

ETA = 0.01
METHODS: dict[
    str, tuple[type | None, dict[str, float], tuple[float, ...]]
] = {  # optimizer, settings, rho to choose from
    "SGD": (None, {}, (0.0,)),
    "SAM": (nk.training.SAM, {}, (0.05, 0.1, 0.2, 0.4)),
    "ASAM": (nk.training.ASAM, {"eta": ETA}, (0.5, 1.0, 2.0, 4.0)),
    "SAMSON p=2": (nk.training.SAMSON, {"eta": ETA, "p": 2.0}, (0.2, 0.4, 0.8, 1.6)),
    "SAMSON p=inf": (nk.training.SAMSON, {"eta": ETA, "p": math.inf}, (0.1, 0.2, 0.5, 1.0)),
    "SGD, noisy weights": (None, {}, (0.0,)),
}


def array(level: float) -> list[nk.hardware.Device] | None:
    """What holds the weights of a layer: noise of `level` times the largest of them, drawn once for each chip."""
    return [nk.WeightNoise(add=level, relative="layer")] if level else None


def chip_accuracies(network: nn.Module, data: Data, level: float, draws: Sequence[int]) -> list[float]:
    """Accuracy of each chip on all the data; without noise there is but one."""
    if not level:
        return accuracies(network, data)
    found: list[float] = nk.chips(network, data, hardware=array(level), draws=draws, seed=TEST_SEED).values.tolist()
    return found


def trained_by(
    method: str, rho: float, model: str, data: str, epochs: int, limit: int, seed: int, level: float, rate: float
) -> nn.Module:
    """SGD with momentum 0.9, weight decay 5e-4 and cosine annealing, or an optimizer around it; cached."""
    kind, options, _ = METHODS[method]
    noisy = level if method.endswith("noisy weights") else 0.0
    settings: dict[str, Any] = {"model": model, "data": data, "epochs": epochs, "limit": limit, "seed": seed}
    settings |= {"method": method, "rho": rho, "rate": rate, "noisy": noisy}
    if noisy:
        settings["hardware"] = "WeightNoise relative=layer"

    def fit(network: nn.Module) -> None:
        inputs, labels = load(data, "train", limit=limit)
        augment = augmentation(data) or (lambda x, generator: x)
        base = {"lr": rate, "momentum": 0.9, "weight_decay": 5e-4}
        generator = torch.Generator().manual_seed(seed)
        named = list(network.named_parameters())
        optimizer: Any
        if kind is None:
            optimizer = torch.optim.SGD(network.parameters(), **base)
        else:
            optimizer = kind(named, torch.optim.SGD, rho=rho, model=network, **options, **base)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
        network.train()
        step = 0
        with nk.inject(network, None, hardware=array(noisy), example_input=inputs[:2]):
            for _ in range(epochs):
                for rows in torch.randperm(len(labels), generator=generator).split(128):
                    x, y = augment(inputs[rows], generator), labels[rows]
                    for _ in (0,) if kind is None else optimizer.passes():
                        with nk.noise_state(network, seed=seed, draws=[step]):
                            nn.functional.cross_entropy(network(x), y).backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    step += 1
                schedule.step()

    return cached(settings, fit)


def run(
    out: Path,
    data: str = "fashion-mnist",
    model: str = "lenet5-bn",
    epochs: int = 8,
    limit: int = 10000,
    rows: int = 2000,
    chips: int = 20,
    trainings: int = 3,
    choices: int = 4,
    rate: float = 0.05,
    level: float = 0.1,
    levels: tuple[float, ...] = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3),
) -> dict[str, Any]:
    """Accuracy for each method and level; level: at which rho is chosen and noisy weights are trained."""
    test = load(data, "test", limit=rows)
    inputs, labels = load(data, "train", limit=limit + rows)
    aside = (inputs[-rows:], labels[-rows:])
    recipe: dict[str, Any] = {
        "model": model,
        "data": data,
        "epochs": epochs,
        "limit": limit,
        "level": level,
        "rate": rate,
    }
    results: dict[str, Any] = {
        **recipe,
        "eta": ETA,
        "rows": rows,
        "chips": chips,
        "levels": levels,
        "chosen": {},
        "methods": {},
    }
    few = range(1000, 1000 + min(chips, 10))
    tuning = []
    for method, (_, _, radii) in METHODS.items():
        scores = {}
        for rho in radii[:choices]:
            network = trained_by(method, rho, seed=0, **recipe)
            scores[rho] = mean(chip_accuracies(network, aside, level, few))
        results["chosen"][method] = {"rho": max(scores, key=lambda r: scores[r]), "scores": scores}
        tuning.append([method, *(f"{r:g}: {s:.3f}" for r, s in scores.items()), *[""] * (choices - len(scores))])
    show(
        f"choice of rho (accuracy on {rows} images set aside, noise {level:g}, mean of {len(few)} chips)",
        ["method", *(["rho: accuracy"] * choices)],
        tuning,
    )
    lines, differences = [], []
    figure, axes = pyplot().subplots(1, 2, figsize=(13, 4.8), layout="constrained")
    for (method, chosen), marker in zip(results["chosen"].items(), "osD^vP", strict=True):
        found = []
        for seed in range(trainings):
            network = trained_by(method, chosen["rho"], seed=seed, **recipe)
            found.append([chip_accuracies(network, test, v, range(chips)) for v in levels])
        results["methods"][method] = found
        means = [[mean(f[i]) for f in found] for i in range(len(levels))]
        between_chips = [mean([spread(f[i]) for f in found]) for i in range(len(levels))]
        cells = [f"{mean(m):.3f} ±{spread(m):.3f} ({c:.3f})" for m, c in zip(means, between_chips, strict=True)]
        lines.append([method, f"{chosen['rho']:g}", *cells])
        axes[0].errorbar(levels, [mean(m) for m in means], between_chips, marker=marker, ms=5, label=method, capsize=2)
        base = [[mean(f[i]) for f in results["methods"]["SGD"]] for i in range(len(levels))]
        gains = [[a - b for a, b in zip(m, n, strict=True)] for m, n in zip(means, base, strict=True)]
        differences.append([method, *(f"{mean(g):+.3f} ±{spread(g):.3f}" for g in gains)])
        axes[1].errorbar(levels, [mean(g) for g in gains], [spread(g) for g in gains], marker=marker, ms=5, capsize=2)
    show(
        f"{model}: accuracy under weight noise, mean ± spread between {trainings} trainings (spread between {chips} "
        f"chips); {epochs} epochs of {limit} rows, {rows} test rows",
        ["method", "rho", *(f"level {v:g}" for v in levels)],
        lines,
    )
    show(
        f"gain over SGD, mean ± spread between {trainings} trainings",
        ["method", *(f"{v:g}" for v in levels)],
        differences,
    )
    what = "noise on the weights, relative to the layer's largest"
    axes[0].set(xlabel=what, ylabel="accuracy; bars: spread between chips", ylim=(0, 1))
    axes[1].set(xlabel=what, ylabel="gain over SGD; bars: spread between trainings")
    axes[0].legend(loc="lower left")
    for axis in axes:
        axis.grid(alpha=0.3)
    write(out, "sharpness", results, figure)
    return results


if __name__ == "__main__":
    main(run)

"""Training for noise whose level is not known: constant level against variance-aware training.

LeNet-5 with batch norm has additive noise after convolutions, linear layers and rectifiers. It is trained without
noise, with a constant level s, or variance-aware: each image has its own level, 0.45 s + 0.66 s |N(0, 1)|, whose mean
is 0.98 s. All are tested at constant levels, and where the level fluctuates from image to image. Several trainings
on a third of Fashion-MNIST; about 3 minutes on one core.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from scaffold import TEST_SEED, Data, cached, main, mean, pyplot, show, spread, write
from torch import Tensor, nn

import noisykernels as nk
from noisykernels.datasets import augmentation, load
from noisykernels.noise.contract import hashed_id
from noisykernels.training import train

ALPHA, THETA = 0.45, 0.66  # published
METHODS = ("clean", "constant", "variance-aware")
AFTER = ("conv2d", "linear", "relu")  # kinds of operations that the noise follows


def after_operations(network: nn.Module, inputs: Tensor) -> list[str]:
    """Names of the sites that the noise enters."""
    return [site.name for site in nk.sites(network, inputs[:2]) if site.kind in AFTER]


def normal(rows: Tensor, seed: int, draw: int) -> Tensor:
    """A standard normal number for each image, [rows]."""
    return nk.eps((len(rows), 1), seed=seed, site=hashed_id("level"), draw=draw, rows=rows)[:, 0]


def trained_for(method: str, level: float, model: str, data: str, epochs: int, limit: int, seed: int) -> nn.Module:
    """The published recipe with noise after the operations; cached."""
    settings: dict[str, Any] = {"model": model, "data": data, "epochs": epochs, "limit": limit, "seed": seed}
    settings |= {"method": method, "level": level if method != "clean" else 0.0}
    if method != "clean":
        settings["levels"] = "of noise_state"

    def fit(network: nn.Module) -> None:
        rows = load(data, "train", limit=limit)
        levels: Any = settings["level"]
        if method == "variance-aware":
            levels = nk.training.VarianceAware(level, alpha=ALPHA, theta=THETA * level, seed=seed)
        with nk.inject(network, nk.Noise(add=1.0), after_operations(network, rows[0]), example_input=rows[0][:2]):
            on_step = nk.training.noisy_steps(network, seed=seed, level=levels)
            train(network, rows, epochs=epochs, seed=seed, augment=augmentation(data), on_step=on_step)

    return cached(settings, fit)


@torch.inference_mode()
def accuracy(network: nn.Module, data: Data, level: float, fluctuation: float, draws: int) -> float:
    """Mean accuracy over draws where each image has the level `level |1 + fluctuation N(0, 1)|`."""
    inputs, labels = data
    correct = 0
    with nk.inject(network, nk.Noise(add=1.0), after_operations(network, inputs), example_input=inputs[:2]):
        for draw in range(draws):
            for rows in torch.arange(len(labels)).split(500):
                levels = level * (1 + fluctuation * normal(rows, TEST_SEED, draw)).abs()
                with nk.noise_state(network, seed=TEST_SEED, draws=[draw], rows=rows, level=levels):
                    correct += int((network(inputs[rows]).argmax(1) == labels[rows]).sum())
    return correct / len(labels) / draws


def run(
    out: Path,
    data: str = "fashion-mnist",
    model: str = "lenet5-bn",
    epochs: int = 5,
    limit: int = 20000,
    rows: int = 2000,
    draws: int = 3,
    trainings: int = 3,
    level: float = 1.0,
    levels: tuple[float, ...] = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0),
    fluctuations: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0),
) -> dict[str, Any]:
    """Accuracies for each way of training; level: of the training (its mean, for variance-aware training)."""
    test = load(data, "test", limit=rows)
    recipe: dict[str, Any] = {"model": model, "data": data, "epochs": epochs, "limit": limit, "level": level}
    results: dict[str, Any] = {**recipe, "rows": rows, "levels": levels, "fluctuations": fluctuations, "methods": {}}
    cases = [(v, 0.0) for v in levels] + [(level, f) for f in fluctuations]
    for method in METHODS:
        results["methods"][method] = found = []
        for seed in range(trainings):
            network = trained_for(method, seed=seed, **recipe)
            found.append([accuracy(network, test, v, f, draws) for v, f in cases])

    def cells(values: list[list[float]]) -> list[str]:
        return [f"{mean(column):.3f} ±{spread(column):.3f}" for column in zip(*values, strict=True)]

    methods = results["methods"]
    gains = [
        [a - b for a, b in zip(*pair, strict=True)]
        for pair in zip(methods[METHODS[2]], methods[METHODS[1]], strict=True)
    ]
    lines = [[m, *cells(methods[m])] for m in METHODS] + [["variance-aware - constant", *cells(gains)]]
    at, n = f"mean and spread of {trainings} trainings, {epochs} epochs of {limit} rows, {rows} test rows", len(levels)
    show(
        f"{model}, trained at {level:g}, tested at constant levels; {at}",
        ["trained", *(f"{v:g}" for v in levels)],
        [line[: n + 1] for line in lines],
    )
    show(
        f"the same, tested at levels {level:g} |1 + f N(0, 1)|; {at}",
        ["trained", *(f"f = {f:g}" for f in fluctuations)],
        [[line[0], *line[n + 1 :]] for line in lines],
    )
    figure, axes = pyplot().subplots(1, 2, figsize=(12, 4.6), layout="constrained", sharey=True)
    for method, marker in zip(METHODS, "osD", strict=True):
        columns = list(zip(*methods[method], strict=True))
        for axis, x, part in ((axes[0], levels, columns[:n]), (axes[1], fluctuations, columns[n:])):
            axis.errorbar(x, [mean(c) for c in part], [spread(c) for c in part], marker=marker, label=method, capsize=2)
    axes[0].set(xlabel="level of the noise, constant", ylabel="accuracy", ylim=(0, 1))
    axes[1].set(xlabel=f"fluctuation f of the level around {level:g}")
    axes[0].legend(title="trained")
    for axis in axes:
        axis.grid(alpha=0.3)
    write(out, "unstable", results, figure)
    return results


if __name__ == "__main__":
    main(run)

"""Batch norms re-calibrated under noise: accuracy before and after, over the level of the noise at all sites.

Networks with batch norm, trained without noise, get additive or multiplicative noise at every site; then the running
statistics of the batch norms are taken again under the same noise, from training images without their labels, cropped
and flipped as in training, and nothing else is changed. Level 0 tells what the choice of images alone does. Also the
level at which half of what is above chance is lost, before and after. Several trainings of LeNet-5 and of the MLP on
Fashion-MNIST; about 3 minutes on one core.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import torch
from scaffold import TEST_SEED, accuracies, main, mean, noisy_trained, pyplot, show, spread, write

import noisykernels as nk
from noisykernels.datasets import augmentation, info, load

LEVELS = {"add": (0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6), "mul": (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.2)}


def crossing(levels: tuple[float, ...], values: list[float], half: float) -> float:
    """The level at which the accuracy falls below `half`, interpolated on a log axis; nan if there is none."""
    for i in range(2, len(levels)):  # the first is 0
        if values[i - 1] >= half > values[i]:
            share = (values[i - 1] - half) / (values[i - 1] - values[i])
            return float(levels[i - 1] * (levels[i] / levels[i - 1]) ** share)
    return math.nan


def run(
    out: Path,
    data: str = "fashion-mnist",
    models: tuple[str, ...] = ("lenet5-bn", "mlp-bn"),
    epochs: int = 3,
    rows: int = 2000,
    fitted: int = 2000,
    draws: int = 3,
    trainings: int = 3,
) -> dict[str, Any]:
    """Accuracies before and after; fitted: how many training images the statistics are taken from."""
    test, (images, _) = load(data, "test", limit=rows), load(data, "train", limit=fitted)
    if augment := augmentation(data):
        images = augment(images, torch.Generator().manual_seed(TEST_SEED))
    floor = info(data).chance
    results: dict[str, Any] = {"epochs": epochs, "rows": rows, "fitted": fitted, "models": {}}
    figure, axes = pyplot().subplots(
        1, 2 * len(models), figsize=(5 * 2 * len(models), 4.4), layout="constrained", sharey=True
    )
    places = iter(axes)
    for model in models:
        results["models"][model] = of_model = {}
        for kind, levels in LEVELS.items():
            before: list[list[float]] = []
            after: list[list[float]] = []
            clean: list[float] = []
            for seed in range(trainings):
                network = noisy_trained(model, data, epochs=epochs, seed=seed)
                clean += accuracies(network, test)
                before.append([])
                after.append([])
                for level in levels:
                    noise = nk.Noise(**{kind: level})
                    before[-1].append(mean(accuracies(network, test, noise, draws=draws)))
                    changed = copy.deepcopy(network)
                    with nk.inject(changed, noise, example_input=images[:2]):
                        nk.training.recalibrate_bn(changed, images, seed=TEST_SEED + 1)
                    after[-1].append(mean(accuracies(changed, test, noise, draws=draws)))
            halves = [floor + (c - floor) / 2 for c in clean]
            points = {
                name: [crossing(levels, v, h) for v, h in zip(values, halves, strict=True)]
                for name, values in (("before", before), ("after", after))
            }
            of_model[kind] = {"levels": levels, "clean": clean, "before": before, "after": after, "midpoints": points}
            lines = []
            for i, level in enumerate(levels):
                a, b = [v[i] for v in before], [v[i] for v in after]
                gain = [y - x for x, y in zip(a, b, strict=True)]
                lines.append([f"{level:g}"] + [f"{mean(v):.3f} ±{spread(v):.3f}" for v in (a, b, gain)])
            show(
                f"{model}, {kind} at all sites: clean accuracy {mean(clean):.4f}, midpoint "
                f"{mean(points['before']):.3g} before and {mean(points['after']):.3g} after; "
                f"mean and spread of {trainings} trainings of {epochs} epochs, {rows} test rows",
                ["level", "before", "after", "gain"],
                lines,
                (),
            )
            axis = next(places)
            for name, values, style in (("before", before, "o--"), ("after", after, "s-")):
                columns = list(zip(*values, strict=True))[1:]
                axis.errorbar(
                    levels[1:], [mean(c) for c in columns], [spread(c) for c in columns], fmt=style, label=name
                )
            axis.axhline(mean(clean), color="0.4", ls=":")
            axis.set(xscale="log", ylim=(0, 1), xlabel=f"level, {kind}, all sites", title=model)
            axis.set_xticks(levels[1:], [f"{v:g}" for v in levels[1:]])
            axis.minorticks_off()
            axis.grid(alpha=0.3)
    axes[0].set_ylabel("accuracy")
    axes[0].legend(title="re-calibration")
    write(out, "recalibration", results, figure)
    return results


if __name__ == "__main__":
    main(run)

"""Multiplicative noise without limit: what a network keeps, and whether it becomes binary.

LeNet-5 with batch norm is trained with multiplicative noise at one site, from mild to a standard deviation of 10^10,
and tested under the noise that it was trained with, under the largest, and without noise; networks with additive noise
of the same level stand beside it. What the training made of the values at the site is told by how many of them are
zero, by how much of the variance of their magnitudes two levels explain in each channel, and by the accuracy, under the
same noise, where the values are replaced beforehand by these two levels, or by whether they are zero. Several trainings
of each on a third of Fashion-MNIST; about 8 minutes on one core.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from scaffold import TEST_SEED, Data, accuracies, main, mean, noisy_trained, pyplot, show, spread, write
from torch import Tensor, nn

import noisykernels as nk
from noisykernels.datasets import info, load
from noisykernels.noise.contract import hashed_id

LEVELS = (0.0, 0.3, 1.0, 3.0, 10.0, 100.0, 1e4, 1e10)
SMALL = 0.01  # zero, or as good as: below this share of the values' root mean square


def near_zero(x: Tensor) -> Tensor:
    """Where values are as good as zero."""
    return x.abs() < SMALL * x.square().mean().sqrt()


def zero_or_not(x: Tensor) -> Tensor:
    """Each value that is not near zero replaced by their mean magnitude in its channel, with its sign."""
    dims = [d for d in range(x.dim()) if d != 1]
    large = ~near_zero(x)
    level = torch.where(large, x.abs(), 0.0).sum(dims, keepdim=True) / large.sum(dims, keepdim=True).clamp(min=1)
    return torch.where(large, level * x.sign(), 0.0)


def two_levels(x: Tensor) -> Tensor:
    """Each magnitude replaced by the nearest of two levels, the best for its channel, with its sign."""
    size = x.abs().transpose(0, 1).flatten(1)  # [C, values]
    best = torch.full((len(size),), -1.0)
    found = torch.zeros_like(size)
    for threshold in size.quantile(torch.linspace(0.05, 0.95, 19), dim=1):
        high = size > threshold[:, None]
        n = high.sum(1)
        above = (size * high).sum(1) / n.clamp(min=1)
        below = (size * ~high).sum(1) / (size.shape[1] - n).clamp(min=1)
        between = n * (size.shape[1] - n) * (above - below).square()  # variance between the two, up to a factor
        better = between > best
        best = torch.where(better, between, best)
        found[better] = torch.where(high, above[:, None], below[:, None])[better]
    levels = found.reshape(x.transpose(0, 1).shape).transpose(0, 1)
    return torch.where(x < 0, -levels, levels)


def explained(x: Tensor) -> float:
    """How much of the variance of the magnitudes two levels explain, as a mean over channels."""
    size, levels = (v.abs().transpose(0, 1).flatten(1) for v in (x, two_levels(x)))
    return float(1 - ((size - levels).var(1) / size.var(1).clamp(min=1e-30)).mean())


@torch.inference_mode()
def changed(
    network: nn.Module, site: str, data: Data, change: Callable[[Tensor], Tensor], level: float, draw: int
) -> float:
    """Accuracy where the values at a site are changed before the multiplicative noise."""

    def replaced(module: nn.Module, x: Any, y: Tensor) -> Tensor:
        return nk.perturb(
            change(y), nk.Noise(mul=level), seed=TEST_SEED, site=hashed_id(site), draws=torch.tensor([draw])
        )

    handle = network.get_submodule(site.partition(":")[0]).register_forward_hook(replaced)
    correct = (network(data[0]).argmax(1) == data[1]).double().mean()
    handle.remove()
    return float(correct)


@torch.inference_mode()
def values_at(network: nn.Module, site: str, inputs: Tensor) -> Tensor:
    """Clean values at a site: the output of the module that the site is named after."""
    kept: list[Tensor] = []
    handle = network.get_submodule(site.partition(":")[0]).register_forward_hook(lambda m, x, y: kept.append(y))
    network(inputs)
    handle.remove()
    return kept[0]


def run(
    out: Path,
    data: str = "fashion-mnist",
    model: str = "lenet5-bn",
    sites: tuple[str, ...] = ("conv2:conv2d#0", "relu2:relu#0"),
    levels: tuple[float, ...] = LEVELS,
    epochs: int = 3,
    limit: int = 20000,
    rows: int = 2000,
    draws: int = 3,
    trainings: int = 3,
) -> dict[str, Any]:
    """Accuracies and shares of zeros for each site and level of training."""
    test = load(data, "test", limit=rows)
    size = (6 * len(sites) + 1.5, 8.5)
    figure, axes = pyplot().subplots(2, len(sites), figsize=size, layout="constrained", squeeze=False)
    results: dict[str, Any] = {"model": model, "epochs": epochs, "limit": limit, "rows": rows, "sites": {}}
    for site, column in zip(sites, axes.T, strict=True):
        results["sites"][site] = of_site = {}
        for kind in ("mul", "add"):
            for level in levels if kind == "mul" else levels[-1:]:
                found: list[dict[str, float]] = []
                for seed in range(trainings):
                    noise = {kind: level} if level else {}
                    network = noisy_trained(
                        model, data, epochs=epochs, limit=limit, seed=seed, where=site if noise else None, **noise
                    )
                    value = values_at(network, site, test[0])
                    mul = level if kind == "mul" else 0.0
                    found.append(
                        {
                            "same noise": mean(accuracies(network, test, nk.Noise(**noise), site, draws=draws)),
                            "two levels": mean(
                                [changed(network, site, test, two_levels, mul, d) for d in range(draws)]
                            ),
                            "zero or not": mean(
                                [changed(network, site, test, zero_or_not, mul, d) for d in range(draws)]
                            ),
                            "largest": mean(accuracies(network, test, nk.Noise(mul=levels[-1]), site, draws=draws)),
                            "clean": accuracies(network, test)[0],
                            "zeros": float((value == 0).double().mean()),
                            "near zero": float(near_zero(value).double().mean()),
                            "explained": explained(value),
                        }
                    )
                of_site[f"{kind} {level:g}"] = found
        names = list(next(iter(of_site.values()))[0])
        head = ["trained with", *(n if n != "largest" else f"mul={levels[-1]:g}" for n in names)]
        lines = [
            [f"{k.replace(' ', '=')}" if k != "mul 0" else "no noise"]
            + [f"{mean([f[n] for f in v]):.3f} ±{spread([f[n] for f in v]):.3f}" for n in names]
            for k, v in of_site.items()
        ]
        show(
            f"{model}, multiplicative noise at {site}: accuracies, and shares of the clean values; mean and spread of "
            f"{trainings} trainings, {epochs} epochs of {limit} rows, {rows} test rows",
            head,
            lines,
        )
        places = range(len(levels))
        for axis, shown in zip(column, (names[:5], names[5:]), strict=True):
            for name, marker in zip(shown, "osD^v", strict=False):
                series = [[f[name] for f in of_site[f"mul {v:g}"]] for v in levels]
                label = f"mul={levels[-1]:g}" if name == "largest" else name
                bars = [spread(s) for s in series]
                axis.errorbar(places, [mean(s) for s in series], bars, marker=marker, label=label)
            axis.set_xticks(places, [f"{v:g}" for v in levels])
            axis.set(xlabel="level of the multiplicative noise in training", ylim=(-0.02, 1), title=site)
            axis.grid(alpha=0.3)
        column[0].axhline(info(data).chance, color="0.5", ls=":")
        column[0].set_ylabel("accuracy")
        column[1].set_ylabel("share")
    for axis in axes[:, -1]:
        axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    write(out, "extreme", results, figure)
    return results


if __name__ == "__main__":
    main(run)

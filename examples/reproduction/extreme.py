"""Multiplicative noise without limit: what a network keeps, and whether it becomes binary.

LeNet-5 with batch norm is trained with multiplicative noise at one site, from mild to a standard deviation of 10^10,
and tested under the noise that it was trained with, under the largest, and without noise; networks with additive noise
of the same level stand beside it. What the training made of the values at the site is told by how many of them are zero
or as good as zero, and by how much survives when each value is replaced by whether it is above a threshold. Several
trainings of each; about 10 minutes on one core.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from scaffold import accuracies, main, mean, noisy_trained, pyplot, show, spread, write
from torch import Tensor, nn

import noisykernels as nk
from noisykernels.data import info, load

LEVELS = (0.0, 0.3, 1.0, 3.0, 10.0, 100.0, 1e4, 1e10)
SMALL = 0.01  # "as good as zero": below this share of the values' root mean square


@torch.inference_mode()
def values_at(network: nn.Module, site: str, inputs: Tensor) -> Tensor:
    """Clean values at a site: the output of the module that the site is named after."""
    kept: list[Tensor] = []
    handle = network.get_submodule(site.partition(":")[0]).register_forward_hook(lambda m, x, y: kept.append(y))
    network(inputs)
    handle.remove()
    return kept[0]


@torch.inference_mode()
def binarised(network: nn.Module, site: str, data: tuple[Tensor, Tensor]) -> float:
    """Accuracy where each value at a site is replaced by 0, or by the mean of the non-zero ones of its channel."""

    def binary(module: nn.Module, x: Any, y: Tensor) -> Tensor:
        dims = [d for d in range(y.dim()) if d != 1]
        large = y.abs() > SMALL * y.square().mean().sqrt()
        kept = torch.where(large, y, 0.0).sum(dims, keepdim=True) / large.sum(dims, keepdim=True).clamp(min=1)
        return torch.where(large, kept, 0.0)

    handle = network.get_submodule(site.partition(":")[0]).register_forward_hook(binary)
    correct = (network(data[0]).argmax(1) == data[1]).float().mean()
    handle.remove()
    return float(correct)


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
    figure, axes = pyplot().subplots(
        2, len(sites), figsize=(6.5 * len(sites), 8.5), layout="constrained", squeeze=False
    )
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
                    scaled = value.abs() / value.square().mean().sqrt()
                    found.append(
                        {
                            "same noise": mean(accuracies(network, test, nk.Noise(**noise), site, draws=draws)),
                            "largest": mean(accuracies(network, test, nk.Noise(mul=levels[-1]), site, draws=draws)),
                            "clean": accuracies(network, test)[0],
                            "binarised": binarised(network, site, test),
                            "zero": float((value == 0).float().mean()),
                            "near zero": float((scaled < SMALL).float().mean()),
                            "channels off": float((scaled.transpose(0, 1).flatten(1).amax(1) < SMALL).float().mean()),
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
        for axis, shown in zip(column, (names[:4], names[4:]), strict=True):
            for name, marker in zip(shown, "osD^", strict=False):
                series = [[f[name] for f in of_site[f"mul {v:g}"]] for v in levels]
                label = f"mul={levels[-1]:g}" if name == "largest" else name
                axis.errorbar(
                    places, [mean(s) for s in series], [spread(s) for s in series], marker=marker, label=label
                )
            axis.set_xticks(places, [f"{v:g}" for v in levels])
            axis.set(xlabel="level of the multiplicative noise in training", ylim=(0, 1), title=site)
            axis.grid(alpha=0.3)
            axis.legend()
        column[0].axhline(info(data).chance, color="0.5", ls=":")
        column[0].set_ylabel("accuracy")
        column[1].set_ylabel("share of the values (channels) at the site")
    write(out, "extreme", results, figure)
    return results


if __name__ == "__main__":
    main(run)

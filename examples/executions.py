"""How many executions does a noisy LeNet-5-BN need? Repeats at each site, uniform and tailored, against voting.

Every site has the same noise, at the global midpoint: the level at which noise everywhere leaves half of what the clean
network is above chance. R executions of each noisy operation are averaged there (uniform), shared out among the sites
with the same mean (tailored by the published ranks, and by the allocator), or R executions of the whole network vote.
Prints both tables and draws the curves. About three minutes on two cores.

With `--trainings 5` the published mappings are compared instead, on several trainings of four networks: what tailored
repeats gain over uniform ones. About 10 minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import noisykernels as nk
from noisykernels.datasets import load
from noisykernels.stats import executions_needed
from noisykernels.study import Study, allocate, tailored, uniform
from noisykernels.zoo import trained

Noisy = Callable[..., float]  # (level, repeats) -> mean accuracy of single executions with noise at all sites
REPEATS = (1, 2, 3, 5, 7, 10, 20)


def global_midpoint(accuracy: Callable[[float], float], target: float, low: float, high: float) -> float:
    """Bisection on a log axis, to a hundredth."""
    while high / low > 1.01:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if accuracy(middle) > target else (low, middle)
    return math.sqrt(low * high)


def at_global_midpoint(network: nn.Module, test: tuple[Tensor, Tensor], draws: int) -> tuple[Study, float, Noisy]:
    """The midpoints of the sites, the global one, and the accuracy with noise everywhere, as a mean over draws."""
    study = nk.walk(network, test, noise=nk.Noise(add=1.0), seed=1)
    assert study.meta.floor is not None

    def noisy(level: float, repeats: dict[str, int] | int = 1) -> float:
        one = dict(draws=draws, seed=2, kinds=("majority",), repeats=repeats)
        return float(nk.vote(network, test, noise=nk.Noise(add=level), **one).curves["majority"].values[0])

    return study, global_midpoint(noisy, (study.meta.clean + study.meta.floor) / 2, 1e-3, 10.0), noisy


def run(
    out: Path,
    model: str = "lenet5-bn",
    data: str = "fashion-mnist",
    epochs: int = 3,
    rows: int | None = None,
    draws: int = 5,
    ballots: int = 40,
) -> dict[str, list[float]]:
    """The accuracies of each way, for each of `REPEATS`; draws: to average over, ballots: that votes are taken from."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    network = trained(model, data, epochs=epochs, progress=True).eval()
    test = load(data, "test", limit=rows)
    study, level, noisy = at_global_midpoint(network, test, draws)
    clean, floor = study.meta.clean, study.meta.floor
    assert floor is not None
    sites = nk.sites(network, test[0][:2])
    votes = nk.vote(network, test, noise=nk.Noise(add=level), draws=ballots, seed=3)
    ways: dict[str, list[float]] = {
        "repeats, uniform": [noisy(level, uniform(sites, r)) for r in REPEATS],
        "repeats, tailored by rank": [noisy(level, tailored(study, r, "rank")) for r in REPEATS],
        "repeats, allocated": [noisy(level, allocate(study, r * len(sites), level=level)) for r in REPEATS],
        **{f"votes, {kind}": [float(c.values[r - 1]) for r in REPEATS] for kind, c in votes.curves.items()},
    }
    print(f"{model} on {data}: clean {clean:.4f}, global midpoint {level:.4f}, {len(test[1])} rows")
    width = max(map(len, ways))
    print("accuracy at R =".ljust(width), *(f"{r:>6d}" for r in REPEATS))
    for name, values in ways.items():
        print(name.ljust(width), *(f"{v:6.4f}" for v in values))
    goals = [floor + share * (clean - floor) for share in (0.6, 0.7, 0.8, 0.9)]
    print("executions needed for".ljust(width), *(f"{goal:>6.3f}" for goal in goals))
    for name, values in ways.items():
        needed = [next((r for r, v in zip(REPEATS, values, strict=True) if v >= goal), None) for goal in goals]
        if name.startswith("votes"):  # these are known for every number
            needed = [executions_needed(votes.curves[name.removeprefix("votes, ")], goal) for goal in goals]
        limit = ballots if name.startswith("votes") else REPEATS[-1]
        print(name.ljust(width), *(f"{f'> {limit}' if n is None else n:>6}" for n in needed))

    figure, axes = plt.subplots(figsize=(7, 4.4), layout="constrained")
    for (name, values), marker in zip(ways.items(), "osD^v<", strict=True):
        axes.plot(REPEATS, values, marker=marker, ms=5, ls="--" if name.startswith("votes") else "-", label=name)
    axes.axhline(clean, color="0.4", lw=1, ls=":")
    axes.annotate(f"clean {clean:.3f}", (REPEATS[0], clean), xytext=(0, 3), textcoords="offset points", fontsize=8)
    axes.set(xscale="log", xticks=REPEATS, xticklabels=REPEATS, xlabel="executions R", ylabel="accuracy")
    axes.minorticks_off()
    axes.legend(fontsize=8)
    figure.savefig(out, dpi=110)
    print(f"picture: {out}")
    return ways


def several(
    out: Path,
    models: Sequence[str] = ("lenet5", "lenet5-bn", "mlp", "mlp-bn"),
    data: str = "fashion-mnist",
    epochs: int = 3,
    rows: int | None = 2000,
    draws: int = 5,
    trainings: int = 5,
    mappings: Sequence[str] = ("inverse_sqrt", "inverse", "inverse_square", "log", "rank", "inverse_rank"),
    repeats: Sequence[int] = REPEATS[1:],
) -> dict[str, dict[str, list[list[float]]]]:
    """Accuracies [training][R] of uniform, tailored and allocated repeats; also as a file and a picture."""
    test = load(data, "test", limit=rows)
    found: dict[str, dict[str, list[list[float]]]] = {}
    for model in models:
        ways: dict[str, list[list[float]]] = {name: [] for name in ("uniform", *mappings, "allocated")}
        levels = []
        for seed in range(trainings):
            network = trained(model, data, epochs=epochs, seed=seed)
            study, level, noisy = at_global_midpoint(network, test, draws)
            names = [m.site for m in study.midpoints()]
            levels.append(level)
            plans = {"uniform": [uniform(names, r) for r in repeats]}
            plans |= {mapping: [tailored(study, r, mapping) for r in repeats] for mapping in mappings}
            plans["allocated"] = [allocate(study, r * len(names), level=level) for r in repeats]
            for name, plan in plans.items():
                ways[name].append([noisy(level, each) for each in plan])
        found[model] = ways
        base = np.array(ways["uniform"])
        print(
            f"\n{model} on {data}: global midpoint {np.mean(levels):.4f} (mean of {trainings} trainings of {epochs} "
            f"epochs), {len(test[1])} rows, {draws} draws"
        )
        print("R =".ljust(26), *(f"{r:>15d}" for r in repeats))
        print("uniform".ljust(26), *(f"{m:8.4f} ±{v:.4f}" for m, v in _moments(base)))
        for name in (*mappings, "allocated"):
            gain = np.array(ways[name]) - base
            print(f"{name} - uniform".ljust(26), *(f"{m:+8.4f} ±{v:.4f}" for m, v in _moments(gain)), flush=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / "reproduction_executions.json").write_text(json.dumps({"repeats": list(repeats), "models": found}) + "\n")
    draw_gains(out / "reproduction_executions.png", found, repeats)
    return found


def draw_gains(path: Path, found: dict[str, dict[str, list[list[float]]]], repeats: Sequence[int]) -> None:
    """Gain over uniform repeats for each network, against R; the ways stand side by side."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    across = min(2, len(found))
    down = -(-len(found) // across)
    size = (6.5 * across, 4.2 * down)
    figure, axes = plt.subplots(down, across, figsize=size, layout="constrained", sharey=True, squeeze=False)
    for axis, (model, ways) in zip(axes.flat, found.items(), strict=False):
        for i, (name, values) in enumerate(ways.items()):
            if name != "uniform":
                middle, bars = zip(*_moments(np.array(values) - np.array(ways["uniform"])), strict=True)
                places = np.arange(len(repeats)) + 0.09 * (i - len(ways) / 2)
                axis.errorbar(places, middle, bars, fmt="o", ms=4.5, capsize=2, label=name)
        axis.axhline(0, color="0.4", lw=1)
        axis.set(xlabel="mean executions R", title=model)
        axis.set_xticks(range(len(repeats)), [str(r) for r in repeats])
        axis.grid(alpha=0.3, axis="y")
    for row in axes:
        row[0].set_ylabel("gain in accuracy over uniform repeats")
    axes[0, -1].legend(fontsize=9)
    figure.savefig(path, dpi=65)
    plt.close(figure)


def _moments(values: np.ndarray) -> list[tuple[float, float]]:
    """Mean and standard deviation over trainings for each R."""
    deviation = values.std(0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])
    return list(zip(values.mean(0).tolist(), deviation.tolist(), strict=True))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="picture (default: executions.png), or folder with --trainings")
    parser.add_argument("--rows", type=int, help="first so many test images (default: all; 2000 with --trainings)")
    parser.add_argument("--epochs", type=int, default=3, help="of training (default: %(default)s)")
    parser.add_argument("--trainings", type=int, default=0, help="compare tailored repeats on so many of each network")
    arguments = parser.parse_args()
    if arguments.trainings:
        torch.set_num_threads(1)  # small layers: a second thread costs more than it brings
        folder, rows = arguments.out or Path("results"), arguments.rows or 2000
        several(folder, rows=rows, epochs=arguments.epochs, trainings=arguments.trainings)
    else:
        run(arguments.out or Path("executions.png"), rows=arguments.rows, epochs=arguments.epochs)

"""How many executions does a noisy LeNet-5-BN need? Repeats at each site, uniform and tailored, against voting.

Every site has the same noise, at the global midpoint: the level at which noise everywhere leaves half of what the clean
network is above chance. R executions of each noisy operation are averaged there (uniform), shared out among the sites
with the same mean (tailored by the published ranks, and by the allocator), or R executions of the whole network vote.
Prints both tables and draws the curves. About three minutes on two cores.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import noisykernels as nk
from noisykernels.ballots import executions_needed
from noisykernels.data import load
from noisykernels.multi import allocate, tailored, uniform
from noisykernels.train import trained

REPEATS = (1, 2, 3, 5, 7, 10, 20)


def global_midpoint(accuracy: Callable[[float], float], target: float, low: float, high: float) -> float:
    """Bisection on a log axis, to a hundredth."""
    while high / low > 1.01:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if accuracy(middle) > target else (low, middle)
    return math.sqrt(low * high)


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
    study = nk.walk(network, test, noise=nk.Noise(add=1.0), seed=1)
    clean, floor = study.meta.clean, study.meta.floor
    sites = nk.sites(network, test[0][:2])

    def noisy(level: float, repeats: dict[str, int] | int = 1) -> float:
        """Mean accuracy of single executions with noise at all sites."""
        one = dict(draws=draws, seed=2, kinds=("majority",), repeats=repeats)
        return float(nk.vote(network, test, noise=nk.Noise(add=level), **one).curves["majority"].accuracy[0])

    assert floor is not None
    level = global_midpoint(noisy, (clean + floor) / 2, 1e-3, 10.0)
    votes = nk.vote(network, test, noise=nk.Noise(add=level), draws=ballots, seed=3)
    ways: dict[str, list[float]] = {
        "repeats, uniform": [noisy(level, uniform(sites, r)) for r in REPEATS],
        "repeats, tailored by rank": [noisy(level, tailored(study, r, "rank")) for r in REPEATS],
        "repeats, allocated": [noisy(level, allocate(study, r * len(sites), level=level)) for r in REPEATS],
        **{f"votes, {kind}": [float(c.accuracy[r - 1]) for r in REPEATS] for kind, c in votes.curves.items()},
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("executions.png"), help="picture (default: %(default)s)")
    parser.add_argument("--rows", type=int, help="first so many test images (default: all)")
    parser.add_argument("--epochs", type=int, default=3, help="of training (default: %(default)s)")
    arguments = parser.parse_args()
    run(arguments.out, rows=arguments.rows, epochs=arguments.epochs)

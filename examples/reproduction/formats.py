"""Which number format a network needs, and whether two evaluations find it.

LeNet-5, an MLP and a network after CIFARNET, trained on Fashion-MNIST, run in every floating-point format of 1 to 23
mantissa and 2 to 8 exponent bits and in 182 fixed-point formats, with truncation after each multiplication and each
addition. The fast search (agreement of the last layer on ten inputs, a line fitted on the other networks, one bit more
or less) is held against all of them; then formats are chosen for each layer, and a neuron's running sum is shown in
several formats. The third network has half of CIFARNET's channels, sees Fashion-MNIST too, as grey images of 3 x 32 x
32, and is run on 300 of them only. Speed-ups are of the stand-in cost model. About 6 minutes on one core.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from scaffold import Data, cached, main, noisy_trained, pyplot, show, write
from torch import Tensor, nn

from noisykernels.arithmetic import CostModel, Format, as_format
from noisykernels.datasets import info, load
from noisykernels.experiments import (
    LinearPredictor,
    design_space,
    exhaustive_search,
    layer_formats,
    plot_running_sums,
    running_sums,
    search_format,
    sweep_formats,
)
from noisykernels.plotting import plot_agreement, plot_front
from noisykernels.training import train

SUMS = ("fp32", "M8E6", "M2E8", "M10E4", "L3R8", "L2R8")


def as_colour(x: Tensor) -> Tensor:
    """Grey images of any size as 3 x 32 x 32."""
    return F.interpolate(x, size=(32, 32), mode="bilinear").expand(-1, 3, -1, -1)


def cifarnet(classes: int) -> nn.Module:
    """The layers of Caffe's network for CIFAR-10, with half the channels and without local normalisation."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 5, padding=2), nn.MaxPool2d(3, 2, 1), nn.ReLU(),
        nn.Conv2d(16, 16, 5, padding=2), nn.ReLU(), nn.AvgPool2d(3, 2, 1),
        nn.Conv2d(16, 32, 5, padding=2), nn.ReLU(), nn.AvgPool2d(3, 2, 1),
        nn.Flatten(), nn.Linear(512, classes),
    )  # fmt: skip


def trained_with_data(name: str, data: str, *, epochs: int, limit: int, rows: int, few: int) -> tuple[nn.Module, Data]:
    """A trained network, and test rows as it takes them; fewer of them for the larger one."""
    if name != "cifarnet":
        return noisy_trained(name, data, epochs=epochs, limit=limit), load(data, "test", limit=rows)
    settings = {"model": name, "data": data, "epochs": epochs, "limit": limit, "seed": 0}

    def fit(network: nn.Module) -> None:
        x, y = load(data, "train", limit=limit)
        train(network, (as_colour(x), y), epochs=epochs, seed=0)

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        network = cifarnet(info(data).classes)
    x, y = load(data, "test", limit=min(rows, few))
    return cached(settings, fit, network), (as_colour(x), y)


@torch.inference_mode()
def neuron(network: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs and weights of the output of the last layer but one with weights that has the largest sum."""
    layer = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)][-2]
    kept: list[Tensor] = []
    handle = layer.register_forward_hook(lambda m, x, y: kept.append(x[0]))
    network(inputs[:1])
    handle.remove()
    if isinstance(layer, nn.Conv2d):
        operands = F.unfold(kept[0], layer.kernel_size, padding=layer.padding, stride=layer.stride)[0].T
    else:
        operands = kept[0]
    weights = layer.weight.flatten(1)
    place, output = divmod(int((operands @ weights.T).argmax()), len(weights))
    return operands[place], weights[output].detach()


def grown(x: Tensor, weight: Tensor, fmt: Format) -> tuple[float, float, str]:
    """The sum in a format, what it would be exactly, and after how many operands it has saturated."""
    sums = running_sums(x, weight, fmt)
    full = (sums.abs() >= fmt.largest_value).nonzero()
    exact = float(x.double() @ weight.double())
    return float(sums[-1]), exact, str(int(full[0]) + 1) if len(full) else "never"


def run(
    out: Path,
    data: str = "fashion-mnist",
    networks: tuple[str, ...] = ("lenet5", "mlp", "cifarnet"),
    epochs: int = 3,
    limit: int = 20000,
    rows: int = 1000,
    few: int = 300,
    every: int = 1,
    evaluations: tuple[int, ...] = (0, 1, 2),
    target: float = 0.99,
) -> dict[str, Any]:
    """What each search finds on each network. few: rows of the third network; every: take so many formats fewer."""
    space, cost = design_space()[::every], CostModel()
    made = {name: trained_with_data(name, data, epochs=epochs, limit=limit, rows=rows, few=few) for name in networks}
    sweeps = {name: sweep_formats(*of, space, cost=cost, name=name, seed=0) for name, of in made.items()}
    results: dict[str, Any] = {"data": data, "epochs": epochs, "limit": limit, "rows": rows, "few": few, "networks": {}}
    lines, fits, layers = [], [], []
    for name, sweep in sweeps.items():
        others = [s for other, s in sweeps.items() if other != name]
        line, free = LinearPredictor.fit(others), LinearPredictor.fit(others, anchored=False)
        fits.append([name, line.points, line.correlation, line.slope, line.residual, free.predict(1.0)])
        truth = {r.format: r for r in sweep.results}
        best = exhaustive_search(sweep, target)
        found = {}
        for count in evaluations:
            choice = search_format(
                *made[name], line, formats=space, target=target, evaluations=count, cost=cost, seed=0
            )
            found[f"search, {count}"] = choice
        if best is not None:
            found["all formats"] = best
        results["networks"][name] = {"clean": sweep.clean, "searches": {}, "front": []}
        for how, choice in found.items():
            real = truth[choice.format].normalised
            lost = "" if best is None else f"{best.speedup - choice.speedup:.2f}"
            ratio = sweep.rows * len(space) / choice.forwards
            lines.append(
                [name, how, choice.evaluations, str(choice.format), real, choice.speedup, lost, choice.saving, ratio]
            )
            results["networks"][name]["searches"][how] = {
                "format": str(choice.format), "evaluations": choice.evaluations, "normalised": real,
                "speedup": choice.speedup, "saving": choice.saving, "forwards": choice.forwards,
            }  # fmt: skip
        results["networks"][name]["front"] = [[str(r.format), r.normalised, r.speedup] for r in sweep.front()]
        start = (best or choice).format
        each = layer_formats(*made[name], start, target=target, cost=cost, seed=0)
        layers.append(
            [name, str(start), cost.speedup(start), " ".join(map(str, each.formats.values())), each.normalised,
             each.speedup, each.evaluations]
        )  # fmt: skip
        results["networks"][name]["layers"] = {site: str(f) for site, f in each.formats.items()}
    told = f"{len(space)} formats, target {target:g}, {epochs} epochs of {limit} rows, {rows} test rows"
    show(
        f"Chosen formats: {told}",
        ["network", "by", "evaluated", "format", "accuracy", "speed-up", "lost", "energy", "fewer runs"],
        lines,
        (0, 1, 3),
    )
    show(
        "Accuracy from the agreement of the last layer, fitted on the other networks",
        ["tested on", "points", "correlation", "slope", "residual", "free line at 1"],
        fits,
    )
    kinds = [
        [name, *(f"{r.format} {r.speedup:.2f}" if r else "none" for r in _best_of_kinds(sweep, target))]
        for name, sweep in sweeps.items()
    ]
    show("Fastest format of each kind above the target", ["network", "floating point", "fixed point"], kinds, (0, 1, 2))
    show(
        "A format for each layer, from the fastest for all",
        ["network", "from", "speed-up", "formats of the layers", "accuracy", "speed-up", "evaluated"],
        layers,
        (0, 1, 3),
    )
    last = networks[-1]
    x, weight = neuron(*(made[last][0], made[last][1][0]))
    sums = {name: grown(x, weight, as_format(name)) for name in SUMS}
    results["sums"] = {name: {"sum": s, "exact": e, "saturated": n} for name, (s, e, n) in sums.items()}
    exact = sums["fp32"][1]
    show(
        f"Running sum of a neuron of {last}, {len(x)} operands, exactly {exact:.4f}",
        ["format", "sum", "error", "saturated after"],
        [[name, s, s - e, n] for name, (s, e, n) in sums.items()],
    )

    count = len(networks)
    top = [place for k in range(count) for place in (f"n{k}", f"n{k}")]
    figure, axes = pyplot().subplot_mosaic(
        [top, ["fit"] * count + ["sum"] * count], figsize=(5 * count, 8.5), layout="constrained"
    )
    for k, sweep in enumerate(sweeps.values()):
        plot_front(sweep, axes[f"n{k}"], target=target)
    plot_agreement(list(sweeps.values()), LinearPredictor.fit(sweeps.values()), axes["fit"])
    plot_running_sums(x, weight, {name: as_format(name) for name in SUMS}, axes["sum"])
    axes["sum"].set_title(f"one neuron of {last}", fontsize=10)
    write(out, "formats", results, figure)
    return results


def _best_of_kinds(sweep: Any, target: float) -> list[Any]:
    """The fastest floating-point and the fastest fixed-point format."""
    found = []
    for kind in ("FloatFormat", "FixedFormat"):
        mine = [r for r in sweep.results if type(r.format).__name__ == kind and r.normalised >= target]
        found.append(max(mine, key=lambda r: r.speedup, default=None))
    return found


if __name__ == "__main__":
    main(run)

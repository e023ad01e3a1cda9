"""Midpoint of each site after training without noise, and after training with noise at that site.

Noise of growing level is put at one site at a time, and the network is trained anew with it, as published; the midpoint
is the level at which a network that was trained with the noise loses half of what a clean one is above chance, by
interpolation on a log axis. With and without batch norm, with and without clamped weights; then three sites again with
shorter and longer trainings. Prints the profiles and how much the weights before each site have grown. Some 200
trainings of MLPs on Fashion-MNIST; about 12 minutes on one core.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from scaffold import TEST_SEED, Data, accuracies, main, mean, noisy_trained, pyplot, show, write
from torch import nn

import noisykernels as nk
from noisykernels.datasets import info, load
from noisykernels.plotting.style import short_names

STEP = math.sqrt(10.0)  # between the levels of training


def weights(network: nn.Module) -> dict[str, tuple[float, float]]:
    """Root mean square and largest magnitude of the weights of each layer."""
    layers = {name: m.weight.detach() for name, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    return {name: (float(w.square().mean().sqrt()), float(w.abs().max())) for name, w in layers.items()}


def layers_before(site: str, layers: list[str], sites: list[str]) -> list[str]:
    """The layers with weights at or before a site; of the input, the first."""
    passed = [s.partition(":")[0] for s in sites[: sites.index(site) + 1]]
    return [name for name in passed if name in layers] or layers[:1]


def climb(recipe: dict[str, Any], site: str, test: Any, half: float, start: float, highest: float, draws: int) -> Any:
    """Trains at growing levels until the accuracy falls below `half`; levels, accuracies, weights and the midpoint."""
    found: dict[str, Any] = {"levels": [], "accuracy": [], "weights": [], "midpoint": None}
    level = start
    while level <= highest * 1.001:
        network = noisy_trained(**recipe, where=site, add=level)
        found["levels"].append(level)
        found["accuracy"].append(mean(accuracies(network, test, nk.Noise(add=level), site, draws=draws)))
        found["weights"].append(weights(network))
        if found["accuracy"][-1] < half:
            break
        level *= STEP
    (*_, above, below) = [math.nan, *found["accuracy"]]
    if below >= half:
        found["bound"] = ">"
    elif math.isnan(above):
        found["bound"] = "<"
    else:
        found["bound"] = ""
        found["midpoint"] = level / STEP * STEP ** ((above - half) / (above - below))
    return found


def cell(found: dict[str, Any]) -> str:
    """A midpoint, or what is known of it."""
    return f"{found['bound']} {found['levels'][-1]:.4g}" if found["bound"] else f"{found['midpoint']:.4g}"


def value(found: dict[str, Any]) -> float:
    """A midpoint, or its bound."""
    return float(found["midpoint"] or found["levels"][-1])


def profile(recipe: dict[str, Any], test: Data, floor: float, **how: Any) -> dict[str, Any]:
    """Midpoints of all sites of a network, trained clean and trained with the noise, and the growth of its weights."""
    network = noisy_trained(**recipe)
    study = nk.walk(network, test, noise=nk.Noise(add=1.0), seed=TEST_SEED, search=nk.Search(how.pop("precision")))
    clean, before = study.meta.clean, weights(network)
    half = floor + (clean - floor) / 2
    sites = [m.site for m in study.midpoints()]
    noisy = {s: climb(recipe, s, test, half, 1.0, **how) for s in sites}
    growth: dict[str, list[float]] = {}  # of the layer before the site, and of all before it
    for s in sites:
        best = max(range(len(noisy[s]["accuracy"])), key=lambda i: (noisy[s]["accuracy"][i] >= half, i))
        after = noisy[s]["weights"][best]
        factors = [after[layer][0] / before[layer][0] for layer in layers_before(s, list(before), sites)]
        growth[s] = [factors[-1], math.prod(factors)]
    return {
        "clean accuracy": clean,
        "largest weight": max(m for _, m in before.values()),
        "largest weight, noisy": max(m for n in noisy.values() for w in n["weights"] for _, m in w.values()),
        "clean-trained": {m.site: m.level for m in study.midpoints()},
        "noisy-trained": noisy,
        "growth": growth,
    }


def by_length(recipe: dict[str, Any], lengths: list[int], done: Any, test: Data, floor: float, **how: Any) -> Any:
    """Accuracy and midpoints after so many epochs, for the input, a layer before a norm, and the logits."""
    table: dict[int, dict[str, Any]] = {}
    for length in lengths:
        clean = accuracies(noisy_trained(**recipe | {"epochs": length}), test)[0]
        table[length] = {"clean accuracy": clean}
        for s, found in done["noisy-trained"].items():
            if s.partition(":")[0] in ("input", "fc2", "fc_out"):
                # A longer training begins where the one that is known was still good.
                start = max(1.0, found["levels"][-1] / STEP) if length > recipe["epochs"] else 1.0
                half = floor + (clean - floor) / 2
                table[length][s] = climb(recipe | {"epochs": length}, s, test, half, start, **how)
    return table


def draw(column: Any, title: str, found: dict[str, dict[str, Any]]) -> None:
    """Midpoints above, growth of the weights below."""
    for colour, (kind, this) in zip(("C0", "C1"), found.items(), strict=False):
        sites = list(this["growth"])
        column[0].plot(list(this["clean-trained"].values()), "o--", color=colour, label=f"clean-trained, {kind}")
        noisy = [value(v) for v in this["noisy-trained"].values()]
        column[0].plot(noisy, "s-", color=colour, label=f"noisy-trained, {kind}")
        column[1].plot([g[0] for g in this["growth"].values()], "s-", color=colour, label=kind)
    for axis, label in zip(column, ("midpoint noise level", "growth of the weights before the site"), strict=True):
        axis.set(yscale="log", ylabel=label, title=title)
        axis.set_xticks(range(len(sites)), short_names(sites), rotation=60, ha="right")
        axis.grid(alpha=0.3)


def run(
    out: Path,
    data: str = "fashion-mnist",
    models: tuple[str, ...] = ("mlp", "mlp-bn"),
    epochs: int = 3,
    limit: int = 0,
    rows: int = 2000,
    draws: int = 3,
    clamp: float = 0.2,
    highest: float = 1e6,
    lengths: tuple[int, ...] = (1, 10),
    precision: float = 0.1,
    name: str = "profiles",
) -> dict[str, Any]:
    """The profiles of each model; lengths: further numbers of epochs, for three sites of the last model.

    limit: of the training rows, 0 for all; clamp: of the weights, 0 for none; name: of the files.
    """
    test, floor = load(data, "test", limit=rows), info(data).chance
    how: dict[str, Any] = {"highest": highest, "draws": draws}
    results: dict[str, Any] = {"epochs": epochs, "limit": limit, "rows": rows, "draws": draws, "models": {}}
    size = (6.5 * len(models), 9)
    figure, axes = pyplot().subplots(2, len(models), figsize=size, layout="constrained", sharey="row", squeeze=False)
    for model, column in zip(models, axes.T, strict=True):
        recipe: dict[str, Any] = {"model": model, "data": data, "epochs": epochs, "limit": limit or None}
        results["models"][model] = of_model = {}
        for bound in (None, clamp) if clamp else (None,):
            kind = "free" if bound is None else f"clamped to {bound:g}"
            of_model[kind] = this = profile(recipe | {"clamp": bound}, test, floor, precision=precision, **how)
            lines = [
                [i, s, m, cell(found), value(found) / m, *this["growth"][s]]
                for i, ((s, m), found) in enumerate(
                    zip(this["clean-trained"].items(), this["noisy-trained"].values(), strict=True)
                )
            ]
            show(
                f"{model}, weights {kind}: clean accuracy {this['clean accuracy']:.4f}, {epochs} epochs, {rows} test "
                f"rows, largest weight {this['largest weight']:.2f} after clean, {this['largest weight, noisy']:.2f} "
                "after noisy training",
                ["#", "site", "clean-trained", "noisy-trained", "ratio", "weights grew by", "all before, product"],
                lines,
                (1,),
            )
        draw(column, f"{model}, {epochs} epochs", of_model)
    for axis in axes[:, 0]:
        axis.legend(fontsize=9)
    climbs = [
        found for m in results["models"].values() for kind in m.values() for found in kind["noisy-trained"].values()
    ]
    if lengths:
        every = sorted({*lengths, epochs})
        results["lengths"] = table = by_length(recipe, every, of_model["free"], test, floor, **how)
        chosen = list(table[epochs])
        show(
            f"{model}: midpoints of noisy-trained networks against the length of the training",
            ["epochs", *chosen],
            [[n, row[chosen[0]], *(cell(row[s]) for s in chosen[1:])] for n, row in table.items()],
            (),
        )
        climbs += [row[s] for n, row in table.items() if n != epochs for s in chosen[1:]]
    print(f"{sum(len(found['levels']) for found in climbs)} trainings with noise")
    write(out, name, results, figure)
    return results


if __name__ == "__main__":
    main(run)

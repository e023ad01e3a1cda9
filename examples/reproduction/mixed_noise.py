"""Mixed noise: a map over both levels, and what the order of the two terms does.

`mul_add` multiplies first and then adds, as in `x (1 + m eps) + a eps'`; `add_mul` adds first. LeNet-5 with batch norm
has the noise at its second convolution, before the batch norm. First a clean-trained network under each pair of levels
(additive up to ten times what it stands alone), in both orders; then networks that are trained with the noise, for
amplitudes A and additive shares r (add = A r, mul = A (1 - r)), up to A = 10^10. Some 50 trainings on a third of
Fashion-MNIST; about 10 minutes on one core.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scaffold import accuracies, main, mean, noisy_trained, pyplot, show, write

import noisykernels as nk
from noisykernels.datasets import load

ORDERS = ("mul_add", "add_mul")


def run(
    out: Path,
    data: str = "fashion-mnist",
    model: str = "lenet5-bn",
    site: str = "conv2:conv2d#0",
    epochs: int = 3,
    limit: int = 20000,
    rows: int = 2000,
    draws: int = 3,
    mul: tuple[float, ...] = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 2.5),
    add: tuple[float, ...] = (0.0, 0.1, 0.25, 0.5, 1.0, 1.5, 2.5),
    amplitudes: tuple[float, ...] = (1.0, 10.0, 1e2, 1e4, 1e10),
    ratios: tuple[float, ...] = (0.001, 0.1, 0.5, 0.9, 0.999),
) -> dict[str, Any]:
    """Accuracy over (mul, add) of a clean-trained network, and over (A, r) of noisy-trained ones, in both orders."""
    test = load(data, "test", limit=rows)
    recipe: dict[str, Any] = {"model": model, "data": data, "epochs": epochs, "limit": limit}
    network = noisy_trained(**recipe)
    results: dict[str, Any] = {"site": site, **recipe, "rows": rows, "clean": accuracies(network, test)[0]}
    maps: dict[str, dict[str, list[list[float]]]] = {"clean-trained": {}, "noisy-trained": {}}
    for order in ORDERS:
        maps["clean-trained"][order] = [
            [mean(accuracies(network, test, nk.Noise(a, m, order=order), site, draws=draws)) for a in add] for m in mul
        ]
    for order in ORDERS:
        maps["noisy-trained"][order] = table = []
        for amplitude in amplitudes:
            table.append([])
            for ratio in ratios:
                levels = {"add": amplitude * ratio, "mul": amplitude * (1 - ratio), "order": order}
                trained = noisy_trained(**recipe, where=site, **levels)
                table[-1].append(mean(accuracies(trained, test, nk.Noise(**levels), site, draws=draws)))
    results |= {"mul": mul, "add": add, "amplitudes": amplitudes, "ratios": ratios, "maps": maps}

    axes_of = {
        "clean-trained": (("mul", mul), ("add", add)),
        "noisy-trained": (("A", amplitudes), ("ratio r", ratios)),
    }
    figure, axes = pyplot().subplots(2, 3, figsize=(15, 8.5), layout="constrained")
    for row, (name, both) in zip(axes, maps.items(), strict=True):
        (down, down_values), (across, across_values) = axes_of[name]
        first, second = (np.array(both[order]) for order in ORDERS)
        pictures = (
            (ORDERS[0], first, "viridis", 0, 1),
            (ORDERS[1], second, "viridis", 0, 1),
            (f"{ORDERS[0]} - {ORDERS[1]}", first - second, "coolwarm", -0.5, 0.5),
        )
        for axis, (title, values, colours, low, high) in zip(row, pictures, strict=True):
            axis.imshow(values, cmap=colours, vmin=low, vmax=high, origin="lower", aspect="auto")
            for (i, j), v in np.ndenumerate(values):
                dark = colours == "viridis" and v < 0.5
                axis.text(
                    j,
                    i,
                    f"{round(v, 2) + 0.0:.2f}",
                    ha="center",
                    va="center",
                    color="white" if dark else "black",
                    fontsize=9,
                )
            axis.set_xticks(range(len(across_values)), [f"{v:g}" for v in across_values])
            axis.set_yticks(range(len(down_values)), [f"{v:g}" for v in down_values])
            axis.set(xlabel=across, ylabel=down, title=f"{name}: {title}")
        for order in ORDERS:
            show(
                f"{model}, {name}, {order} at {site}: accuracy, {epochs} epochs of {limit} rows, {rows} test rows, "
                f"clean {results['clean']:.4f}",
                [f"{down} \\ {across}", *(f"{v:g}" for v in across_values)],
                [[f"{v:g}", *(f"{x:.3f}" for x in line)] for v, line in zip(down_values, both[order], strict=True)],
            )
        difference = first - second
        place = np.unravel_index(np.abs(difference).argmax(), difference.shape)
        print(
            f"order: {ORDERS[0]} is better by {difference.mean():.3f} in the mean; the largest difference is "
            f"{difference[place]:+.3f}, at {down} {down_values[place[0]]:g} and {across} {across_values[place[1]]:g}"
        )
    write(out, "mixed", results, figure)
    return results


if __name__ == "__main__":
    main(run)

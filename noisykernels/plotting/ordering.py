"""Picture of a study of orders: deviations of outputs, and accuracies of permutations."""

from __future__ import annotations

from typing import Any

import numpy as np

from noisykernels._util.arguments import check_arguments
from noisykernels._util.optional import optional
from noisykernels.plotting.style import literal, two_axes
from noisykernels.stats.views import OrderStudyLike

__all__ = ["plot_orders"]


def plot_orders(study: OrderStudyLike, axes: Any = None) -> Any:
    """The deviation of each layer's outputs over permutations, sorted, and the accuracy of each permutation.

    Args:
        study: what `order_sensitivity` returned.
        axes: two matplotlib axes; None makes a new figure.

    Returns:
        The matplotlib Figure.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    check_arguments(plot_orders, locals())
    if axes is None:
        _, axes = optional("matplotlib.pyplot", "plot").subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    left, right = two_axes("plot_orders", axes)
    share = np.linspace(0, 1, 101)
    for layer in study.layers:
        left.plot(share, layer.quantiles, label=literal(f"{layer.name}, K = {layer.steps}"))
    left.set(xlabel="share of outputs", ylabel="deviation over permutations / deviation of outputs", ylim=(0, None))
    left.legend(fontsize="small")
    left.grid(alpha=0.3)
    finite = study.values[np.isfinite(study.values)]  # what is infinite has no place
    right.plot(np.sort(finite), "o", ms=4, color="0.4", label="random permutations, sorted")
    for i, (name, value) in enumerate(study.orders.items()):
        place = value if np.isfinite(value) else np.nan
        place = value if np.isfinite(value) else np.nan
        right.axhline(place, color=f"C{i}", ls="-" if name == "none" else "--", label=literal(f"order: {name}"))
    right.set(xlabel="permutation", ylabel=literal(study.metric), ylim=(0, 1) if study.metric == "accuracy" else None)
    right.xaxis.get_major_locator().set_params(integer=True)
    right.legend(fontsize="small", loc="lower right", bbox_to_anchor=(1.0, 0.12))
    right.grid(alpha=0.3)
    return left.figure

"""How a sum grows, operand by operand, in a given arithmetic: where it saturates, and what rounding does to it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from noisykernels._util.arguments import check_arguments
from noisykernels.arithmetic.formats import Format
from noisykernels.arithmetic.order import sorted_orders
from noisykernels.arithmetic.serial import Serial
from noisykernels.nn.functional import linear
from noisykernels.plotting.style import axes_or_new

__all__ = ["plot_running_sums", "running_sums"]


def running_sums(
    x: Tensor, weight: Tensor, arithmetic: str | Format | torch.dtype | Serial | None = None, *, seed: int = 0
) -> Tensor:
    """The sum of one neuron after each of its operands.

    Args:
        x, weight: the K inputs and weights of one output, vectors in the weight's natural order.
        arithmetic: a `Serial`, or the format of one; None: float32. Its order of operands is followed.
        seed: of noise and of stochastic rounding, which go by the place in the order here.

    Returns:
        Vector (K): the sum of the first 1, 2, ..., K operands.

    Raises:
        ValueError: x and weight that are not two vectors of one length.

    Source: figure 8 of Hill et al. 2018 (arXiv 1808.02513).

    Example:
        >>> running_sums(torch.ones(5), torch.ones(5), Serial(high=3.0))
        tensor([1., 2., 3., 3., 3.])
    """
    check_arguments(running_sums, locals())
    if x.dim() != 1 or x.shape != weight.shape:
        raise ValueError(
            f"running_sums: x and weight must be vectors of one length, got {list(x.shape)} and {list(weight.shape)}"
        )
    made = arithmetic if isinstance(arithmetic, Serial) else Serial(arithmetic)
    order = order_of(made, x, weight)
    x, weight = x[order], weight[order]
    made = copy.copy(made)
    made.order = "natural"
    parts = [linear(x[None, :k], weight[None, :k], hardware=[made], seed=seed).view(1) for k in range(1, len(x) + 1)]
    return torch.cat(parts) if parts else x.new_zeros(0)


def order_of(arithmetic: Serial, x: Tensor, weight: Tensor) -> Tensor:
    """Operands in the order in which an arithmetic adds them up."""
    check_arguments(order_of, locals())
    order = arithmetic.order
    if isinstance(order, str) and order not in ("natural", "reversed"):
        return sorted_orders(x.view(1, 1, -1), weight.view(1, -1, 1), order).view(-1).long()
    given = arithmetic.given_order("running_sums", len(x), x.device)
    return torch.arange(len(x)) if given is None else given.long()


def plot_running_sums(x: Tensor, weight: Tensor, arithmetics: Mapping[str, Any], ax: Any = None) -> Any:
    """The sum of one neuron against the number of operands, a line for each arithmetic.

    Args:
        x, weight: as for `running_sums`.
        arithmetics: what to add up in, by the names of the legend.
        ax: matplotlib axes; None makes a new figure.

    Returns:
        The axes.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    check_arguments(plot_running_sums, locals())
    ax = axes_or_new("plot_running_sums", ax, (6.0, 4.2))
    for name, arithmetic in arithmetics.items():
        sums = running_sums(x, weight, arithmetic)
        ax.plot(range(1, len(sums) + 1), sums.tolist(), lw=1.4, label=name)
    ax.set_xlabel("operands added up")
    ax.set_ylabel("running sum")
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8, framealpha=0.85, edgecolor="none")
    return ax

"""How much the loss depends on the value at each site: where a little noise does much."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from noisykernels._util.arguments import check_arguments
from noisykernels._util.data import Data, check_classes
from noisykernels._util.inputs import Call, Output
from noisykernels.injection.observer import Seen, watch
from noisykernels.injection.site import kind_of

__all__ = ["SiteGradient", "gradient_norms"]


class SiteGradient(NamedTuple):
    """The gradient of the loss at a site."""

    site: str
    site_index: int  # in execution order
    kind: str
    shape: tuple[int, ...]  # of one row's value
    rows: int
    norm: float  # mean over the rows of the L2 norm, in units of the loss over those of the value


def gradient_norms(
    model: nn.Module,
    data: Data,
    *,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    seed: int | Tensor | None = None,
    level: Any = None,
    batch_size: int = 500,
    forward: Callable[..., Any] | None = None,
    output: Output = None,
) -> list[SiteGradient]:
    r"""Norm of the loss's gradient with respect to the (noisy) value at each site, over data in evaluation mode.

    .. math:: \frac1N \sum_{i=1}^N \Big\lVert \frac{\partial L_i}{\partial y_i} \Big\rVert_2

    with :math:`L_i` the loss of row *i* and :math:`y_i` its value at the site, after the site's noise. To first order,
    small additive noise of level *a* at that site alone changes the loss of a row by that norm times *a*.

    Args:
        model: injected, with noisy layers, or without noise. No gradient of a parameter is touched, frozen or not.
        data: (inputs, labels), in any of the forms of ``docs/guides/data.md``. Rows are numbered through all batches.
        loss: function (outputs, labels) -> the *sum* of the rows' losses, 0-d; None is the cross-entropy.
        seed: 64-bit seed of the noise; None draws from torch's default generator.
        level: factor of all noise, as for `noise_state`; a vector fits a single batch only.
        batch_size: rows of a batch, where `data` are no batches.
        forward: how the model is called, as for `walk`; what the function itself computes beside it is no site.
        output: what of its result the loss takes, as for `walk`.

    Returns:
        A `SiteGradient` for every site that has rows, in execution order; the norm is 0 where the loss does not depend
        on the site.

    Raises:
        TypeError: a batch that is no tensor and does not begin with one.
        ValueError: no data, or no labels.

    Source: Efficient Noise Mitigation (arXiv 2409.18553) chooses the places of its denoising blocks by such norms.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 2, bias=False))
        >>> found = gradient_norms(model, (torch.randn(8, 4), torch.zeros(8)), loss=lambda out, _: 3 * out[:, 0].sum())
        >>> [(g.site, g.shape, g.rows) for g in found], found[1].norm
        ([('input', (4,), 8), ('0:linear#0', (2,), 8)], 3.0)
    """
    check_arguments(gradient_norms, locals())
    call = Call("gradient_norms", forward, output)
    of_rows = loss if loss is not None else _cross_entropy
    sums: dict[str, float] = {}
    rows: dict[str, int] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    values: dict[str, Tensor] = {}

    def look(seen: Seen) -> None:
        values[seen.site] = seen.noisy
        shapes[seen.site] = tuple(seen.noisy.shape[1:])

    def backward(outputs: Tensor, labels: Tensor) -> None:
        gradients = torch.autograd.grad(of_rows(outputs, labels), list(values.values()), allow_unused=True)
        for (site, value), gradient in zip(values.items(), gradients, strict=True):
            if gradient is not None:
                norms = torch.linalg.vector_norm(gradient.double().flatten(1), dim=1)
                sums[site] = sums.get(site, 0.0) + float(norms.sum())
            rows[site] = rows.get(site, 0) + len(value)
        values.clear()

    watch(call, model, data, look, seed=seed, level=level, batch_size=batch_size, backward=backward)
    return [
        SiteGradient(site, index, kind_of(site), shapes[site], rows[site], sums.get(site, 0.0) / rows[site])
        for index, site in enumerate(rows)
    ]


def _cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    check_classes("gradient_norms", outputs, labels)
    return nn.functional.cross_entropy(outputs, labels, reduction="sum")

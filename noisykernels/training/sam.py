"""Sharpness-aware training: `SAM`, `ASAM` and `SAMSON`, around any of torch's optimizers.

They differ in what the ascent to the worst place nearby is scaled by; its two passes are those of `SharpnessAware`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, ParamsT

from noisykernels.training.two_passes import SharpnessAware

__all__ = ["ASAM", "SAM", "SAMSON"]


class SAM(SharpnessAware):
    r"""Sharpness-aware minimisation: the step is taken with the gradient at :math:`w + \varepsilon`.

    .. math:: \varepsilon = \rho\, g / (\lVert g \rVert_2 + 10^{-16})

    with *g* the gradient at *w* and one norm over all parameters. The weights are back at *w* to the bit before
    the base optimizer steps.

    Args:
        params: parameters, named parameters or groups, as for any optimizer.
        base_optimizer: class of the optimizer that steps; its arguments are the remaining ones.
        rho: length of epsilon, in units of the weights; may differ between groups.
        model: its batch norms keep to the statistics of the first pass. None: both count.
        same_noise: torch's generators make the second pass draw as the first did, which holds for noise
            without a seed of its own and for dropout; False: the second pass draws afresh.
        **options: of the base optimizer.

    Raises:
        TypeError: a base optimizer that is no class, a setting that is no number.
        ValueError: a setting out of range, or one that the base optimizer has too; a base optimizer, such as LBFGS,
            whose step evaluates a closure.

    Source: Foret et al., Sharpness-Aware Minimization (arXiv 2010.01412).

    Example:
        >>> model = nn.Linear(4, 2)
        >>> optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)
        >>> x, y = torch.randn(8, 4), torch.zeros(8, dtype=torch.int64)
        >>> for _ in optimizer.passes():
        ...     nn.functional.cross_entropy(model(x), y).backward()
        >>> optimizer.step()
        >>> optimizer.zero_grad()
    """

    def __init__(
        self,
        params: ParamsT,
        base_optimizer: type[Optimizer],
        *,
        rho: float = 0.05,
        model: nn.Module | None = None,
        same_noise: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(params, base_optimizer, {"rho": rho}, model, same_noise, options)

    def _scale(self, name: str, weight: Tensor, group: dict[str, Any]) -> None:
        return None


class _Adaptive(SharpnessAware):
    """Those that scale by the weights, which they know by their names."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        if "param_names" not in param_group:
            raise ValueError(
                f"{type(self).__name__}: names tell which parameters are weights: give model.named_parameters()"
            )


class ASAM(_Adaptive):
    r"""Adaptive SAM: with eta 0 it does not depend on how a network's weights are scaled against each other.

    .. math:: \varepsilon = \rho\, T^2 g / (\lVert T g \rVert_2 + 10^{-16}), \qquad T = |w| + \eta

    for parameters whose name contains "weight" (batch norm's too), and *T* = 1 for the others.

    Args:
        params: named parameters, or groups of them: `model.named_parameters()`.
        base_optimizer, model, same_noise, **options: see `SAM`.
        rho: relative length of epsilon; may differ between groups.
        eta: added to the weights' magnitudes, in their units; may differ between groups.

    Raises:
        TypeError, ValueError: see `SAM`; also parameters without names.

    Source: Kwon et al., ASAM (arXiv 2102.11600).

    Example:
        >>> model = nn.Linear(4, 2)
        >>> optimizer = ASAM(model.named_parameters(), torch.optim.SGD, lr=0.1)
        >>> optimizer.step(lambda: model(torch.ones(1, 4)).sum().backward())
    """

    def __init__(
        self,
        params: ParamsT,
        base_optimizer: type[Optimizer],
        *,
        rho: float = 0.5,
        eta: float = 0.01,
        model: nn.Module | None = None,
        same_noise: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(params, base_optimizer, {"rho": rho, "eta": eta}, model, same_noise, options)

    def _scale(self, name: str, weight: Tensor, group: dict[str, Any]) -> Tensor | None:
        return weight.abs() + group["eta"] if "weight" in name else None


class SAMSON(_Adaptive):
    r"""ASAM with each weight tensor measured by its own norm, as analog hardware scales it by its largest weight.

    .. math::
        \varepsilon = \rho\, T^2 g / (\lVert T g \rVert_2 + 10^{-16}), \qquad
        T = (|w| + \eta) / \lVert W \rVert_p

    for parameters whose name contains "weight", with *W* the whole tensor that *w* is part of, and *T* = 1 for the
    others, and for a tensor of zeros.

    Args:
        params: named parameters, or groups of them: `model.named_parameters()`.
        base_optimizer, model, same_noise, **options: see `SAM`.
        rho: length of epsilon; may differ between groups.
        eta: added to the weights' magnitudes, in their units; may differ between groups.
        p: order of the norm, 1 to infinity; infinity is the largest magnitude. May differ between groups.

    Raises:
        TypeError, ValueError: see `ASAM`.

    Source: SAMSON, sharpness-aware minimization scaled by outlier normalization (arXiv 2211.11561).

    Example:
        >>> model = nn.Linear(4, 2)
        >>> optimizer = SAMSON(model.named_parameters(), torch.optim.SGD, p=2, lr=0.1)
        >>> optimizer.step(lambda: model(torch.ones(1, 4)).sum().backward())
    """

    def __init__(
        self,
        params: ParamsT,
        base_optimizer: type[Optimizer],
        *,
        rho: float = 0.2,
        eta: float = 0.01,
        p: float = math.inf,
        model: nn.Module | None = None,
        same_noise: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(params, base_optimizer, {"rho": rho, "eta": eta, "p": p}, model, same_noise, options)

    def _scale(self, name: str, weight: Tensor, group: dict[str, Any]) -> Tensor | None:
        if "weight" not in name:
            return None
        largest = weight.abs().max()
        unit = torch.where(largest > 0, largest, 1.0)  # powers of numbers near 1 neither over- nor underflow
        size = unit * torch.linalg.vector_norm(weight / unit, group["p"])
        return torch.where(size > 0, (weight.abs() + group["eta"]) / size, 1.0)

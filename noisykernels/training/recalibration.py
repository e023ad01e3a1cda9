"""Batch norm statistics taken again under noise, which shifts and widens what the layers see."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from noisykernels._util.arguments import check_arguments
from noisykernels._util.data import Data, batches
from noisykernels._util.inputs import Call, Inputs
from noisykernels._util.runtime import evaluating, place_of, unwrap
from noisykernels.injection.setting import noise_state
from noisykernels.injection.state import has_noise, tell_idle

__all__ = ["recalibrate_bn"]


def recalibrate_bn(
    model: nn.Module,
    data: Data,
    *,
    seed: int | Tensor | None = None,
    batch_size: int = 500,
    forward: Callable[..., Any] | None = None,
) -> None:
    r"""Replaces the running statistics of every batch norm by averages over the batches given, noise on.

    .. math::
        \mu = \frac1B \sum_b \operatorname{mean}(x_b), \qquad \sigma^2 = \frac1B \sum_b \operatorname{var}(x_b)

    over the *B* batches that reach the layer, with the unbiased variance, whatever its `momentum`. Meanwhile each
    layer normalises with the batch's own statistics, as in training; all else is in evaluation mode: dropout is
    off, and noise enters where it does in evaluation. Nothing but the running statistics changes: no mode, no
    weight; nothing at all if an error is raised. A batch norm that is not called keeps what it has.

    Args:
        model: injected, with noisy layers, or without noise.
        data: in any of the forms of ``docs/guides/data.md``. Labels are not used, nor are batches with one value per
            channel, such as a last row. Rows are numbered through all batches, so that no two share their noise.
        seed: 64-bit seed of the noise; None draws from torch's default generator. Of a model without noise it changes
            nothing, of which a warning tells.
        batch_size: rows of a batch, where `data` are no batches.
        forward: how the model is called: function (model, inputs as they came); None: ``model(x)``, ``model(x, z)``,
            or ``model(**inputs)`` for a dict.

    Raises:
        TypeError: a batch of what makes no tensors.
        ValueError: no batch norm with running statistics is called, no data, or no batch with more than one value per
            channel.

    Source: Tsai et al., Robust Processing-In-Memory Neural Networks via Noise-Aware Normalization
    (arXiv 2007.03230).

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).eval()
        >>> with nk.inject(model, nk.Noise(add=1.0), where="0"):
        ...     recalibrate_bn(model, (torch.randn(1000, 4), torch.zeros(1000)), seed=1)
        >>> bool((model[1].running_var > 1).all())
        True
    """
    check_arguments(recalibrate_bn, locals())
    target, call = unwrap(model), Call("recalibrate_bn", forward)
    layers = [m for m in target.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    noisy = has_noise(target)
    tell_idle("recalibrate_bn", target, seed=seed)
    averages = [_Average(layer) for layer in layers]
    first, place, done = 0, place_of(target), False
    try:
        with evaluating(target):
            for inputs, _ in batches("recalibrate_bn", data, batch_size, takes=call.takes(target)):
                if first == 0:
                    call.check(target, inputs)
                if len(inputs) == 0:
                    continue
                rows = torch.arange(first, first + len(inputs))
                with noise_state(target, seed=seed, rows=rows) if noisy else contextlib.nullcontext():
                    _run(call, target, inputs.to(place))
                first += len(inputs)
        if first == 0:
            raise ValueError("recalibrate_bn: data must hold at least one row, got none")
        if single := next((a.single for a in averages if a.single is not None and not a.count), None):
            raise ValueError(f"recalibrate_bn: a batch must have more than one value per channel, got {single} alone")
        if not any(average.count for average in averages):
            raise ValueError("recalibrate_bn: no batch reached a batch norm with running statistics")
        done = True
    finally:
        for average in averages:
            average.close(done)


def _run(call: Call, model: nn.Module, inputs: Inputs) -> None:
    """A batch through the model, or as far as a batch norm without running statistics, which one row ends."""
    try:
        call(model, inputs)
    except ValueError as error:
        if len(inputs) > 1 or "more than 1 value per channel" not in str(error):
            raise


class _Average:
    """Forward pre-hook of a batch norm: sets it to each batch's statistics, and averages them."""

    def __init__(self, layer: _BatchNorm) -> None:
        assert layer.running_mean is not None and layer.running_var is not None
        self.layer = layer
        self.before = (layer.running_mean.clone(), layer.running_var.clone())
        self.mean: Tensor | float = 0.0
        self.var: Tensor | float = 0.0
        self.count = 0
        self.single: list[int] | None = None  # shape of a batch with one value per channel
        self.hook = layer.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, layer: nn.Module, args: Any, kwargs: Any) -> None:
        x = args[0] if args else kwargs["input"]
        n = x.numel() // max(1, x.shape[1])
        if n < 2:  # has no variance: as a last batch of one row, it is normalised with what was found before
            self.single = list(x.shape)
            return
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        var, mean = torch.var_mean(x, [d for d in range(x.dim()) if d != 1], correction=0)
        self._write(mean, var)
        self.count += 1
        self.mean = self.mean + (mean - self.mean) / self.count
        self.var = self.var + (var * (n / (n - 1)) - self.var) / self.count

    def _write(self, mean: Any, var: Any) -> None:
        assert self.layer.running_mean is not None and self.layer.running_var is not None
        self.layer.running_mean.copy_(mean)
        self.layer.running_var.copy_(var)

    def close(self, done: bool) -> None:
        """Takes the hook away, and leaves the averages behind, or what was there before."""
        self.hook.remove()
        if done and self.count:
            self._write(self.mean, self.var)
            if self.layer.num_batches_tracked is not None:
                self.layer.num_batches_tracked.fill_(self.count)
        else:
            self._write(*self.before)

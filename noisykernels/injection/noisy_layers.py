"""Layers that draw by themselves, in a running forward: noisy layers and denoising blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from noisykernels.injection.rows import FIRST, no_rows
from noisykernels.injection.written_out import WrittenOut
from noisykernels.nn.signals import STANDARD
from noisykernels.noise.description import Noise
from noisykernels.noise.functional import perturb

__all__ = ["NoisyLayers"]


class NoisyLayers(WrittenOut):
    """The part of `mode.SiteMode` that such layers ask."""

    calls: dict[str, int]

    def drawn(
        self,
        op: Callable[..., Tensor],
        kind: str,
        noise: Noise | None,
        x: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """The operation of a noisy layer: its own noise and hardware, or the placement's."""
        name = self.name(kind)
        own, hardware = self.placement.layers_own, kwargs.pop("hardware", None)
        chosen = self.noise_at(name) if not own else noise if noise is None else noise.at(name)
        hardware = hardware if own else self.hardware_at(name)
        if kind != "noise" and (hardware is not None or self.on_hardware or self.record is not None):
            self.chip.first(name, self.modules, args[0])
        if hardware is not None and not self.tracing:
            made = self.made_by(name, kind, hardware, getattr(F, kind), (x, *args), kwargs)
            if made is not None:
                return self.at(name, chosen, made)
        # The size is known, and a function asked, when the clean value is there.
        alone = self.placement.normalize_to_input_size or not isinstance(chosen, Noise) or self.parallel is not None
        if isinstance(chosen, Noise) and self.record is None and not alone:
            scaled, repeats = self._levels(name, chosen, 0, x.dim())
            alone = repeats > 1
        if self.record is not None or chosen is None or alone:
            clean = x if kind == "noise" else getattr(F, kind)(x, *args, **kwargs)
            return self.at(name, chosen, clean)
        if x.dim() == 0 or x.shape[0] != self.key.batch or self.rows_at(name) != FIRST:
            raise RuntimeError(no_rows(name, self.key.batch, x))
        return op(x, *args, noise=scaled, **kwargs, **self.key_at(name))

    def standard(self, x: Tensor, name: str) -> Tensor:
        """Standard values under this forward's key, for what is no site; see `nn.signals.draw_standard`."""
        if self.parallel is not None:
            raise RuntimeError(f"{name!r}: in a tensor-parallel model it is not known which part of the value this is")
        number = self.calls.get(name, 0)
        self.calls[name] = number + 1
        return perturb(torch.zeros_like(x), STANDARD, **self.key_at(f"{name}#{number}"))

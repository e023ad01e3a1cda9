"""What the attentions of a running forward meet inside: devices at their own two products, noise at their details."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from noisykernels.injection.attention import flex_attention, scaled_dot_product_attention
from noisykernels.injection.contracting import Contracting
from noisykernels.injection.products import Product, product_of
from noisykernels.injection.site import PARTS, part_of

__all__ = ["Attending"]

_NAMES = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


class Attending(Contracting):
    """The part of `mode.SiteMode` that puts hardware into attention."""

    def name(self, kind: str) -> str:
        """See `SiteMode`."""
        raise NotImplementedError

    def _site(
        self, name: str, kind: str, func: Any, args: Any, kwargs: dict[str, Any], row_dim: int | None,
        product: Product | None = None,
    ) -> Any:  # fmt: skip
        raise NotImplementedError

    def attended(self, name: str, args: Any, kwargs: dict[str, Any], row_dim: int | None) -> Any:
        """An attention written out; None where nothing enters in it, so that torch's own kernel runs."""
        detail = self.placement.detail
        if not (self.on_hardware or self.tracing or detail):
            return None
        if "row_dims" in self.placement.pairs and row_dim is None:
            row_dim = self.placement.row_dim_at(name)
        if len(args) > 3 and callable(args[3]):
            query = args[0]
            key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], 1) for t in args[1:3])
            if detail or self._is_inside(name, query, key, value):
                return flex_attention(self, name, row_dim, *args)
            return None
        given = {**dict(zip(_NAMES, args, strict=False)), **kwargs}
        query, key, value = (given[n] for n in _NAMES[:3])
        mask = given.get("attn_mask")
        if query.layout is not torch.strided or type(mask) not in (type(None), Tensor, torch.nn.Parameter):
            if self._meets(name, {}):  # nested tensors, masks of a class of their own
                self.leave_out(name, query)
            return None
        if given.pop("enable_gqa", False):
            key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], -3) for t in (key, value))
            given |= {"key": key, "value": value}
        if detail or self._is_inside(name, query, key, value):
            return scaled_dot_product_attention(self, name, row_dim, **given)
        return None

    def _is_inside(self, name: str, query: Tensor, key: Tensor, value: Tensor) -> bool:
        """Whether something enters inside of an attention of which no details are asked for."""
        batch = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2])
        weights = query.new_empty((*batch, query.shape[-2], key.shape[-2]), device="meta")  # not known yet
        operands = {"scores": (query, key.mT), "weighted_sum": (weights, value)}
        if self.tracing:
            for part, pair in operands.items():
                self._uses_array(part_of(name, part), "matmul", pair, {}, None)
        return self._meets(name, operands)

    def _meets(self, name: str, operands: Mapping[str, tuple[Tensor, Tensor]]) -> bool:
        """Whether devices act on the products of the attention with this name; those of arrays where there are some."""
        self.arrays.append(name)
        met = False
        for part in PARTS:
            devices = self.hardware_at(part_of(name, part)) or ()
            product = product_of("matmul", operands[part], {}) if devices and operands else None
            array = product is not None and self.array_at(part_of(name, part), product) is not None
            met |= bool(devices) and (array or not all(d.of_array for d in devices))
        return met and not self.tracing

    def part(self, name: str, part: str, a: Tensor, b: Tensor, row_dim: int | None = None) -> Tensor:
        """One of the two products of the attention with this name."""
        self.arrays.append(name)  # by which both products are meant
        if self.placement.detail:
            value: Tensor = self._site(self.name(part), "matmul", torch.matmul, (a, b), {}, row_dim)
            return value
        made: Tensor | None = self.contracted(part_of(name, part), "matmul", torch.matmul, (a, b), {}, row_dim, None)
        return torch.matmul(a, b) if made is None else made

    def weighted(self, attention: Tensor, row_dim: int | None = None) -> Tensor:
        """The weights that the values are summed with, which are a site where details are asked for."""
        if not self.placement.detail:
            return attention
        name = self.name("softmax")
        return self.at(name, self.noise_at(name), attention, row_dim)

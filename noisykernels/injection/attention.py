"""Attention taken apart, so that noise and hardware can enter at its projections, its own two products and its output.

Stands in for `torch.nn.functional.multi_head_attention_forward` while an injected model runs, and for
`scaled_dot_product_attention` and `flex_attention` where something enters inside of them: the same arguments, the same
result up to rounding.
The tensors of the former are (length, batch, features): rows lie along dimension 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from noisykernels.injection.kinds import FLEX
from noisykernels.injection.values import Change
from noisykernels.noise.description import Noise

__all__ = ["flex_attention", "multi_head_attention_forward", "scaled_dot_product_attention"]


class Parts(Protocol):
    """What attention asks of the mode that runs it for its own products; see `attending.Attending`."""

    def part(self, name: str, part: str, a: Tensor, b: Tensor, row_dim: int | None = None) -> Tensor: ...

    def weighted(self, attention: Tensor, row_dim: int | None = None) -> Tensor: ...


class Sites(Parts, Protocol):
    """What a layer asks, too; see `mode.SiteMode`."""

    def name(self, kind: str) -> str: ...

    def noise_at(self, name: str) -> Noise | Change | None: ...

    def at(self, name: str, noise: Noise | Change | None, clean: Tensor, row_dim: int | None = None) -> Tensor: ...

    def site(self, kind: str, func: Any, args: Any, kwargs: dict[str, Any], row_dim: int | None = None) -> Any: ...


def multi_head_attention_forward(
    mode: Sites,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """As torch's, with sites `linear#0..2` (q, k, v), `attention#0` and `linear#3` (output)."""
    if static_k is not None or static_v is not None:
        raise RuntimeError("attention with static_k or static_v cannot have noise: project them before")
    if is_causal and attn_mask is None:
        raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
    batched = query.dim() == 3
    if not batched:
        query, key, value = query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1)
        key_padding_mask = key_padding_mask.unsqueeze(0) if key_padding_mask is not None else None
    length, rows, features = query.shape
    if features != embed_dim_to_check:
        raise RuntimeError(f"attention: expected {embed_dim_to_check} features, got {features}")

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        out: Tensor = mode.site("linear", F.linear, (x, weight, bias), {}, row_dim=1)
        return out

    if use_separate_proj_weight or in_proj_weight is None:
        weights: Any = (q_proj_weight, k_proj_weight, v_proj_weight)
    else:
        weights = in_proj_weight.chunk(3)
    biases: Any = (None,) * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
    inputs = zip((query, key, value), weights, biases, strict=True)
    q, k, v = (linear(x, weight, bias) for x, weight, bias in inputs)

    causal = is_causal and key_padding_mask is None and not need_weights
    mask = F._canonical_mask(None if causal else attn_mask, "attn_mask", None, "", q.dtype, False)
    padding = F._canonical_mask(key_padding_mask, "key_padding_mask", None, "", q.dtype, False)
    extra = 0  # keys that are not in the masks
    if bias_k is not None and bias_v is not None:
        k = torch.cat([k, bias_k.expand(1, rows, -1)])
        v = torch.cat([v, bias_v.expand(1, rows, -1)])
        extra += 1
    # (length, rows, features) -> (rows, heads, length, features of a head)
    q, k, v = (t.reshape(len(t), rows, num_heads, -1).permute(1, 2, 0, 3) for t in (q, k, v))
    if add_zero_attn:
        k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        extra += 1
    name = mode.name("attention")
    scores = mode.part(name, "scores", q, k.transpose(-1, -2), 0) / math.sqrt(q.shape[-1])
    if causal:  # torch then takes the hint for the mask, also for keys that are not in the mask
        scores = _causal(scores)
    if mask is not None:
        mask = F.pad(mask, (0, extra))
        if mask.dim() == 3:  # one for each row and head
            mask = mask.reshape(rows, num_heads, *mask.shape[1:])
        scores = scores + mask
    if padding is not None:
        scores = scores + F.pad(padding, (0, extra))[:, None, None, :]
    masked = mask is not None or padding is not None
    attention = scores.softmax(-1) if need_weights or not masked else _softmax(scores)
    attention = mode.weighted(attention, 0)
    if training and dropout_p > 0:
        attention = F.dropout(attention, dropout_p)
    out = mode.part(name, "weighted_sum", attention, v, 0).permute(2, 0, 1, 3).reshape(length, rows, -1)
    out = mode.at(name, mode.noise_at(name), out, row_dim=1)
    out = linear(out, out_proj_weight, out_proj_bias)
    if average_attn_weights:
        attention = attention.mean(1)
    if not batched:
        out, attention = out.squeeze(1), attention.squeeze(0)
    return out, attention if need_weights else None


def scaled_dot_product_attention(
    mode: Parts,
    name: str,
    row_dim: int | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """As torch's, written out: its products are parts of the attention with this name."""
    if is_causal and attn_mask is not None:
        raise RuntimeError("scaled_dot_product_attention: attn_mask must be None where is_causal is True")
    if enable_gqa:
        key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], -3) for t in (key, value))
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    scores = mode.part(name, "scores", query, key.transpose(-1, -2), row_dim) * factor
    if is_causal:
        scores = _causal(scores)
    if attn_mask is not None:
        of_bits = attn_mask.dtype is torch.bool
        scores = scores.masked_fill(~attn_mask, -math.inf) if of_bits else scores + attn_mask
    attention = _softmax(scores).to(query.dtype)
    attention = mode.weighted(attention, row_dim)
    if dropout_p > 0:
        attention = F.dropout(attention, dropout_p)
    return mode.part(name, "weighted_sum", attention, value, row_dim)


def flex_attention(
    mode: Parts,
    name: str,
    row_dim: int | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: Callable[..., Tensor],
    block_mask: tuple[Any, ...],
    scale: float,
    kernel_options: dict[str, Any],
    *buffers: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """As what `torch.nn.attention.flex_attention` runs, in three steps: torch makes the weights of the scores, as if
    the values to be summed were the rows of a unit matrix, so that functions of scores and masks are its own."""
    kept = torch.float64 if query.dtype == torch.float64 else torch.float32
    many = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    scores = mode.part(name, "scores", query.to(kept), many.to(kept).transpose(-1, -2), row_dim) * scale
    unit = torch.eye(key.shape[2], dtype=kept, device=key.device).expand(*key.shape[:2], -1, -1)

    def of_these(_: Tensor, *place: Any) -> Tensor:
        return score_mod(scores[place], *place)

    weights, *others = FLEX(query.to(kept), key.to(kept), unit, of_these, block_mask, 1.0, kernel_options, *buffers)
    weights = mode.weighted(weights.to(query.dtype), row_dim)
    value = value.repeat_interleave(query.shape[1] // value.shape[1], 1)
    return mode.part(name, "weighted_sum", weights, value, row_dim), *others


def _causal(scores: Tensor) -> Tensor:
    """Scores in which no key after a query counts."""
    allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    return scores.masked_fill(~allowed, -math.inf)


def _softmax(scores: Tensor) -> Tensor:
    """As torch's attention has it: what no key counts for is 0, with gradients that are 0."""
    empty = (scores == -math.inf).all(-1, keepdim=True)
    kind = torch.float32 if scores.element_size() < 4 else scores.dtype
    return scores.masked_fill(empty, 0.0).softmax(-1, kind).masked_fill(empty, 0.0).to(scores.dtype)

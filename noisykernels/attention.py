"""Multi-head attention taken apart, so that noise can enter at its projections and at its output.

Stands in for `torch.nn.functional.multi_head_attention_forward` while an injected model runs: the same arguments, the same
result up to rounding. Its tensors are (length, batch, features): rows lie along dimension 1.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from noisykernels.sites import SiteMode


def multi_head_attention_forward(
    mode: SiteMode,
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
    """As torch's function of the same name, with sites `linear#0..2` (q, k, v), `attention#0` and `linear#3` (output)."""
    if static_k is not None or static_v is not None:
        raise RuntimeError("attention with static_k or static_v is not a site; leave it out with where=...")
    batched = query.dim() == 3
    if not batched:
        query, key, value = query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1)
        key_padding_mask = key_padding_mask.unsqueeze(0) if key_padding_mask is not None else None
    length, rows, features = query.shape
    if features != embed_dim_to_check:
        raise RuntimeError(f"attention: expected {embed_dim_to_check} features, got {features}")

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return mode.site("linear", F.linear, (x, weight, bias), {}, row_dim=1)

    weights: Any = (
        (q_proj_weight, k_proj_weight, v_proj_weight)
        if use_separate_proj_weight
        else (in_proj_weight.chunk(3) if in_proj_weight is not None else None)
    )
    biases: Any = (None,) * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
    q, k, v = (linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))

    mask = F._canonical_mask(attn_mask, "attn_mask", None, "", q.dtype, False)
    if is_causal and mask is None:
        mask = torch.nn.Transformer.generate_square_subsequent_mask(length, device=q.device, dtype=q.dtype)
    padding = F._canonical_mask(key_padding_mask, "key_padding_mask", None, "", q.dtype, False)
    extra = 0
    if bias_k is not None and bias_v is not None:
        k, v = torch.cat([k, bias_k.expand(1, rows, -1)]), torch.cat([v, bias_v.expand(1, rows, -1)])
        extra += 1
    heads = [t.reshape(t.shape[0], rows, num_heads, -1).permute(1, 2, 0, 3) for t in (q, k, v)]  # (rows, heads, length, .)
    if add_zero_attn:
        heads[1:] = [F.pad(t, (0, 0, 0, 1)) for t in heads[1:]]
        extra += 1
    scores = heads[0] @ heads[1].transpose(-1, -2) / math.sqrt(heads[0].shape[-1])
    if mask is not None:
        mask = F.pad(mask, (0, extra))
        scores = scores + (mask.reshape(rows, num_heads, *mask.shape[1:]) if mask.dim() == 3 else mask)
    if padding is not None:
        scores = scores + F.pad(padding, (0, extra))[:, None, None, :]
    attention = scores.softmax(-1)
    mixed = F.dropout(attention, dropout_p, training) if dropout_p > 0 else attention
    out = (mixed @ heads[2]).permute(2, 0, 1, 3).reshape(length, rows, -1)
    name = mode.name("attention")
    out = mode.at(name, mode.placement.at(name, mode.modules[-1][1]), out, row_dim=1)
    out = linear(out, out_proj_weight, out_proj_bias)
    if not batched:
        out, attention = out.squeeze(1), attention.squeeze(0)
    if not need_weights:
        return out, None
    return out, attention.mean(-3) if average_attn_weights else attention

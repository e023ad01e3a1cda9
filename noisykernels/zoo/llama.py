"""A small language model of the Llama kind: root-mean-square norms, rotary positions, shared keys, gated layers.

Its modules have the names, and its arithmetic the order, of `LlamaForCausalLM` in Hugging Face's transformers: weights
go there and back under the same keys, and logits are equal to the bit. It is plain torch and knows nothing about noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noisykernels._util.arguments import check_arguments
from noisykernels._util.checks import Range, whole

__all__ = ["Llama", "LlamaSizes"]


@dataclass(frozen=True)
class LlamaSizes:
    """Sizes of a `Llama`.

    Args:
        vocabulary: number of tokens.
        width: of the residual stream; a multiple of heads.
        blocks: number of them.
        heads: of the queries; `width / heads` numbers each, an even number.
        shared: heads of keys and values, each of which serves `heads / shared` of the queries.
        hidden: width of the gated layers.
        tied: whether the head is the embedding.
        length: of the longest sequence, which transformers is told; nothing here depends on it.
        theta: base of the rotary positions.
        eps: added to the mean square in norms.

    Raises:
        ValueError: sizes that do not divide as they must.

    Example:
        >>> LlamaSizes(width=64, heads=4).to_transformers()["head_dim"]
        16
    """

    vocabulary: int = 2048
    width: int = 192
    blocks: int = 8
    heads: int = 6
    shared: int = 2
    hidden: int = 512
    tied: bool = True
    length: int = 1024
    theta: float = 10_000.0
    eps: float = 1e-5

    def __post_init__(self) -> None:
        counts = dict.fromkeys(
            ("vocabulary", "width", "blocks", "heads", "shared", "hidden", "length"), whole(1, 2**31)
        )
        above = dict.fromkeys(("theta", "eps"), Range(0, ends=False))
        check_arguments(LlamaSizes, vars(self), **counts, **above)
        if self.width % (2 * self.heads):
            raise ValueError(f"LlamaSizes: width must be an even multiple of heads, got {self.width} and {self.heads}")
        if self.heads % self.shared:
            raise ValueError(f"LlamaSizes: heads must be a multiple of shared, got {self.heads} and {self.shared}")

    def to_transformers(self) -> dict[str, Any]:
        """The content of transformers' ``config.json`` for a model of these sizes."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocabulary,
            "hidden_size": self.width,
            "num_hidden_layers": self.blocks,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.shared,
            "head_dim": self.width // self.heads,
            "intermediate_size": self.hidden,
            "tie_word_embeddings": self.tied,
            "max_position_embeddings": self.length,
            "rope_theta": self.theta,
            "rms_norm_eps": self.eps,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "bos_token_id": None,
            "eos_token_id": None,
            "torch_dtype": "float32",
        }


class _Norm(nn.Module):
    """x / sqrt(mean of x^2 + eps), times a weight."""

    def __init__(self, sizes: LlamaSizes) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(sizes.width)), sizes.eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x if x.element_size() >= 4 else x.float()  # as transformers sums the squares of half precision
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * normed.to(x.dtype)


class _Attention(nn.Module):
    """Each token looks at itself and those before it."""

    def __init__(self, sizes: LlamaSizes) -> None:
        super().__init__()
        self.each = sizes.width // sizes.heads
        self.q_proj = nn.Linear(sizes.width, sizes.width, bias=False)
        self.k_proj = nn.Linear(sizes.width, sizes.shared * self.each, bias=False)
        self.v_proj = nn.Linear(sizes.width, sizes.shared * self.each, bias=False)
        self.o_proj = nn.Linear(sizes.width, sizes.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (-1, self.each)).transpose(1, 2) for f in (self.q_proj, self.k_proj, self.v_proj))
        q, k = (t * cos + _quarter(t) * sin for t in (q, k))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        out: Tensor = self.o_proj(y.transpose(1, 2).flatten(-2))
        return out


def _quarter(x: Tensor) -> Tensor:
    """Pairs (i, i + half) turned by a right angle."""
    low, high = x.chunk(2, -1)
    return torch.cat((-high, low), -1)


class _Gated(nn.Module):
    """One layer decides how much of the other goes on."""

    def __init__(self, sizes: LlamaSizes) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(sizes.width, sizes.hidden, bias=False)
        self.up_proj = nn.Linear(sizes.width, sizes.hidden, bias=False)
        self.down_proj = nn.Linear(sizes.hidden, sizes.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class _Block(nn.Module):
    """Attention and gated layers, each added to the residual stream."""

    def __init__(self, sizes: LlamaSizes) -> None:
        super().__init__()
        self.self_attn, self.mlp = _Attention(sizes), _Gated(sizes)
        self.input_layernorm, self.post_attention_layernorm = _Norm(sizes), _Norm(sizes)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class _Stack(nn.Module):
    """Embedding, blocks and the last norm."""

    inv_freq: Tensor

    def __init__(self, sizes: LlamaSizes) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(sizes.vocabulary, sizes.width)
        self.layers = nn.ModuleList(_Block(sizes) for _ in range(sizes.blocks))
        self.norm = _Norm(sizes)
        each = sizes.width // sizes.heads
        turns = 1.0 / (sizes.theta ** (torch.arange(0, each, 2, dtype=torch.float) / each))
        self.register_buffer("inv_freq", turns, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed_tokens(ids)
        angles = torch.arange(ids.shape[1], device=ids.device)[:, None].float() * self.inv_freq.float()
        angles = torch.cat((angles, angles), -1)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        for block in self.layers:
            x = block(x, cos, sin)
        out: Tensor = self.norm(x)
        return out


class Llama(nn.Module):
    """A language model of the Llama kind: token ids (rows, length) to logits (rows, length, vocabulary).

    Weights come from torch's default generator: normal, deviation 0.02, and less by sqrt(2 * blocks) where a projection
    adds to the residual stream.

    Args:
        sizes: see `LlamaSizes`.

    Example:
        >>> model = Llama(LlamaSizes(vocabulary=50, width=16, blocks=2, heads=4, shared=2, hidden=24))
        >>> model(torch.tensor([[1, 2, 3]])).shape
        torch.Size([1, 3, 50])
    """

    def __init__(self, sizes: LlamaSizes | None = None) -> None:
        check_arguments(Llama.__init__, locals())
        super().__init__()
        self.sizes = sizes = sizes or LlamaSizes()
        self.model = _Stack(sizes)
        self.lm_head = nn.Linear(sizes.width, sizes.vocabulary, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                inward = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, 0.0, 0.02 / (2 * sizes.blocks) ** 0.5 if inward else 0.02)
        if sizes.tied:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        """Logits of the token after each."""
        out: Tensor = self.lm_head(self.model(input_ids))
        return out

"""Small models of transformers, and the caches that they may have."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn

__all__ = ["CAUSAL", "EXPERTS", "caches", "causal", "name_of_cache"]

SMALL = dict(
    vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
SHARED = SMALL | dict(num_key_value_heads=2)
OF_GPT2 = dict(vocab_size=50, n_embd=16, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2)
SLIDING = ["sliding_attention", "full_attention"]
CAUSAL: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("LlamaForCausalLM", SHARED),
    "Mistral": ("MistralForCausalLM", SHARED | dict(sliding_window=4)),
    "Gemma3": ("Gemma3ForCausalLM", SHARED | dict(head_dim=4, sliding_window=4, layer_types=SLIDING)),
    "Qwen3": ("Qwen3ForCausalLM", SHARED | dict(head_dim=4)),
    "Phi3": ("Phi3ForCausalLM", SHARED),
    "GPTNeoX": ("GPTNeoXForCausalLM", SMALL),
    "GPT2": ("GPT2LMHeadModel", OF_GPT2),
    "OPT": ("OPTForCausalLM", SMALL | dict(ffn_dim=24, word_embed_proj_dim=16)),
}
PLAIN = dict(rope_type="default", rope_theta=1e4)
MIXTURES = SHARED | dict(num_experts_per_tok=2)
OF_DEEPSEEK = dict(n_routed_experts=4, n_group=2, topk_group=1, n_shared_experts=1, first_k_dense_replace=1)
LATENT = dict(kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=4)
EXPERTS: dict[str, tuple[str, dict[str, Any]]] = {
    "Mixtral": ("MixtralForCausalLM", MIXTURES | dict(num_local_experts=4)),
    "Qwen2Moe": (
        "Qwen2MoeForCausalLM",
        MIXTURES | dict(num_experts=4, moe_intermediate_size=8, shared_expert_intermediate_size=8),
    ),
    "Qwen3Moe": ("Qwen3MoeForCausalLM", MIXTURES | dict(num_experts=4, moe_intermediate_size=8, head_dim=4)),
    "OLMoE": ("OlmoeForCausalLM", MIXTURES | dict(num_experts=4)),
    "DeepSeek V3": (
        "DeepseekV3ForCausalLM",
        MIXTURES | OF_DEEPSEEK | LATENT | dict(num_key_value_heads=4, moe_intermediate_size=8),
    ),
    "gpt-oss": (
        "GptOssForCausalLM",
        MIXTURES | dict(num_local_experts=4, head_dim=4, sliding_window=4, rope_parameters=PLAIN),
    ),
}  # fmt: skip


def causal(name: str, attention: str = "sdpa", **more: Any) -> nn.Module:
    """A model with weights at random, also where one begins with zeros."""
    of_class, sizes = (CAUSAL | EXPERTS)[name]
    made = getattr(transformers, of_class)
    torch.manual_seed(0)
    model: nn.Module = made(made.config_class(**sizes, attn_implementation=attention, **more)).eval()
    for p in model.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.3)
    return model


class Quantised(transformers.cache_utils.QuantizedLayer):
    """Codes of 8 bits with one step for all, without a package for it."""

    def _quantize(self, tensor: Tensor, axis: int) -> Any:
        step = tensor.abs().max() / 127
        return (tensor / step).round().to(torch.int8), step

    def _dequantize(self, q_tensor: Any) -> Tensor:
        codes, step = q_tensor
        return codes * step


def caches(model: Any) -> dict[str, Callable[[], Any]]:
    """What makes an empty cache, by its name."""
    layers = model.config.num_hidden_layers
    return {
        "dynamic": lambda: transformers.DynamicCache(config=model.config),
        "static": lambda: transformers.StaticCache(config=model.config, max_cache_len=16),
        "quantised": lambda: transformers.Cache(layers=[Quantised(residual_length=3) for _ in range(layers)]),
    }


def name_of_cache(model: nn.Module) -> str:
    """What a model calls its cache."""
    takes = inspect.signature(model.forward).parameters
    return next(name for name in ("cache", "past_key_values") if name in takes)

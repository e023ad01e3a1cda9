"""Causal language models as transformers lays them out: GPT-2, OPT, GPT-NeoX, Llama, Qwen, Gemma, Phi and Mixtral."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.inputs import VOCABULARY, Made, tokens

__all__ = ["DECODERS", "RMSNorm"]

WIDTH, HEADS, LAYERS, LENGTH = 16, 2, 2, 6


class Conv1D(nn.Module):
    """GPT-2's linear layer: the weight is transposed, tokens are folded into rows for `addmm`."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf) * 0.3), nn.Parameter(torch.randn(nf) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        size_out = (*x.size()[:-1], self.nf)
        x = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return x.view(size_out)


class NewGELU(nn.Module):
    """The one of tanh, written out."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


class GPT2Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.c_attn, self.c_proj = Conv1D(3 * WIDTH, WIDTH), Conv1D(WIDTH, WIDTH)
        self.c_fc, self.act, self.mlp_proj = Conv1D(4 * WIDTH, WIDTH), NewGELU(), Conv1D(WIDTH, 4 * WIDTH)
        self.register_buffer("bias", torch.tril(torch.ones((32, 32), dtype=torch.bool)).view(1, 1, 32, 32))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.ln_1(x)
        q, k, v = self.c_attn(hidden).split(WIDTH, dim=2)
        shape = (*q.shape[:-1], -1, WIDTH // HEADS)
        q, k, v = (t.view(shape).transpose(1, 2) for t in (q, k, v))
        weights = torch.matmul(q, k.transpose(-1, -2))
        weights = weights / torch.full([], v.size(-1) ** 0.5, dtype=weights.dtype, device=weights.device)
        queries, keys = q.size(-2), k.size(-2)
        causal = self.bias[:, :, keys - queries : keys, :keys]
        least = torch.full([], torch.finfo(weights.dtype).min, dtype=weights.dtype, device=weights.device)
        weights = torch.where(causal, weights.to(weights.dtype), least)
        weights = nn.functional.softmax(weights, dim=-1).type(v.dtype)
        out = torch.matmul(weights, v).transpose(1, 2)
        x = self.c_proj(out.reshape(*out.shape[:-2], -1).contiguous()) + x
        return x + self.mlp_proj(self.act(self.c_fc(self.ln_2(x))))


class GPT2(nn.Module):
    """Position ids made of the input's shape; logits for every token by the tied embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(32, WIDTH)
        self.h, self.ln_f = nn.ModuleList(GPT2Block() for _ in range(LAYERS)), nn.LayerNorm(WIDTH)
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        input_shape = input_ids.size()
        input_ids = input_ids.view(-1, input_shape[-1])
        position_ids = torch.arange(0, input_shape[-1], dtype=torch.long, device=input_ids.device).unsqueeze(0)
        x = self.wte(input_ids) + self.wpe(position_ids)
        for block in self.h:
            x = block(x)
        x = self.ln_f(x).view((-1, input_shape[1], x.size(-1)))
        return self.lm_head(x)


class OPT(nn.Module):
    """Learned positions by the running sum of the mask; heads folded into the rows for `bmm`; tokens folded into rows
    for the feed-forward part."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens, self.embed_positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(34, WIDTH)
        self.layers = nn.ModuleList(OPTLayer() for _ in range(LAYERS))
        self.final, self.lm_head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        rows, length = input_ids.shape
        attention_mask = torch.ones(rows, length, device=input_ids.device)
        positions = (torch.cumsum(attention_mask, dim=1).type_as(attention_mask) * attention_mask).long() - 1
        x = self.embed_tokens(input_ids) + self.embed_positions(positions + 2)
        mask = torch.full((length, length), torch.finfo(x.dtype).min)
        steps = torch.arange(mask.size(-1))
        mask.masked_fill_(steps < (steps + 1).view(mask.size(-1), 1), 0)
        mask = mask[None, None, :, :].expand(rows, 1, length, length)
        for layer in self.layers:
            x = layer(x, mask)
        return self.lm_head(self.final(x))[:, -1]


class OPTLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.fc1, self.fc2 = nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        residual, x = x, self.norm1(x)
        rows, length, _ = x.size()
        size = WIDTH // HEADS

        def shape(t: Tensor) -> Tensor:
            return t.view(rows, length, HEADS, size).transpose(1, 2).contiguous().view(rows * HEADS, -1, size)

        q, k, v = shape(self.q_proj(x) * size**-0.5), shape(self.k_proj(x)), shape(self.v_proj(x))
        scores = torch.bmm(q, k.transpose(1, 2))
        scores = scores.view(rows, HEADS, length, length) + mask
        scores = torch.max(scores, torch.tensor(torch.finfo(scores.dtype).min))
        scores = scores.view(rows * HEADS, length, length)
        out = torch.bmm(nn.functional.softmax(scores, dim=-1), v)
        out = out.view(rows, HEADS, length, size).transpose(1, 2).reshape(rows, length, WIDTH)
        x = residual + self.out_proj(out)
        shape_before = x.shape
        x = x.reshape(-1, x.size(-1))
        residual, x = x, self.norm2(x)
        return (residual + self.fc2(F.relu(self.fc1(x)))).view(shape_before)


class RMSNorm(nn.Module):
    """Llama's, written out."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, hidden_states: Tensor) -> Tensor:
        input_dtype = hidden_states.dtype
        hidden_states = hidden_states.to(torch.float32)
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + 1e-6)
        return self.weight * hidden_states.to(input_dtype)


class Rotary(nn.Module):
    """Cosines and sines for positions of every row, as transformers makes them."""

    def __init__(self, size: int) -> None:
        super().__init__()
        inverse = 1.0 / (10000.0 ** (torch.arange(0, size, 2, dtype=torch.int64).float() / size))
        self.register_buffer("inv_freq", inverse, persistent=False)

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        expanded = self.inv_freq[None, :, None].float().expand(position_ids.shape[0], -1, 1)
        places = position_ids[:, None, :].float()
        frequencies = (expanded.float() @ places.float()).transpose(1, 2)
        both = torch.cat((frequencies, frequencies), dim=-1)
        return both.cos().to(dtype=x.dtype), both.sin().to(dtype=x.dtype)


def rotate_half(x: Tensor) -> Tensor:
    a, b = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-b, a), dim=-1)


def repeat_kv(x: Tensor, times: int) -> Tensor:
    if times == 1:
        return x
    x = x[:, :, None, :, :].expand(x.shape[0], x.shape[1], times, *x.shape[2:])
    return x.reshape(x.shape[0], x.shape[1] * times, *x.shape[3:])


class LlamaLayer(nn.Module):
    """Grouped keys; `qk_norm` as Qwen 3 and Gemma 3 have it; `eager` without torch's kernel."""

    def __init__(self, groups: int, qk_norm: bool, eager: bool, feed: nn.Module, bias: bool) -> None:
        super().__init__()
        size = WIDTH // 4
        self.q_proj, self.o_proj = nn.Linear(WIDTH, WIDTH, bias=bias), nn.Linear(WIDTH, WIDTH, bias=False)
        self.k_proj, self.v_proj = (nn.Linear(WIDTH, groups * size, bias=bias) for _ in range(2))
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(), RMSNorm()
        self.q_norm, self.k_norm = (RMSNorm(size), RMSNorm(size)) if qk_norm else (nn.Identity(), nn.Identity())
        self.mlp, self.eager, self.times, self.size = feed, eager, 4 // groups, size

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        residual, x = x, self.input_layernorm(x)
        shape = (*x.shape[:-1], -1, self.size)
        q = self.q_norm(self.q_proj(x).view(shape)).transpose(1, 2)
        k = self.k_norm(self.k_proj(x).view(shape)).transpose(1, 2)
        v = self.v_proj(x).view(shape).transpose(1, 2)
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        q, k = (q * cos) + (rotate_half(q) * sin), (k * cos) + (rotate_half(k) * sin)
        k, v = repeat_kv(k, self.times), repeat_kv(v, self.times)
        if self.eager:
            length = x.shape[1]
            mask = torch.full((length, length), torch.finfo(x.dtype).min).triu(1)
            weights = torch.matmul(q, k.transpose(2, 3)) * self.size**-0.5 + mask[None, None]
            weights = nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(q.dtype)
            out = torch.matmul(weights, v)
        else:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out = out.transpose(1, 2).contiguous()
        x = residual + self.o_proj(out.reshape(*x.shape[:-1], -1).contiguous())
        return x + self.mlp(self.post_attention_layernorm(x))


class GatedMLP(nn.Module):
    def __init__(self, act: str = "silu") -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(WIDTH, 32, bias=False), nn.Linear(WIDTH, 32, bias=False)
        self.down_proj, self.act = nn.Linear(32, WIDTH, bias=False), act

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate_proj(x)
        gate = F.silu(gate) if self.act == "silu" else F.gelu(gate, approximate="tanh")
        return self.down_proj(gate * self.up_proj(x))


class PhiMLP(nn.Module):
    """Gate and up in one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj, self.down_proj = nn.Linear(WIDTH, 64, bias=False), nn.Linear(32, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(up * F.silu(gate))


class SparseExperts(nn.Module):
    """Mixtral's: every expert runs the tokens that are routed to it, and adds its results to the others'."""

    def __init__(self, experts: int = 4) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, experts, bias=False)
        self.experts = nn.ModuleList(GatedMLP() for _ in range(experts))

    def forward(self, hidden_states: Tensor) -> Tensor:
        rows, length, width = hidden_states.shape
        hidden_states = hidden_states.view(-1, width)
        routing = F.softmax(self.gate(hidden_states), dim=1, dtype=torch.float)
        routing, selected = torch.topk(routing, 2, dim=-1)
        routing /= routing.sum(dim=-1, keepdim=True)
        final = torch.zeros((rows * length, width), dtype=hidden_states.dtype, device=hidden_states.device)
        mask = torch.nn.functional.one_hot(selected, num_classes=len(self.experts)).permute(2, 1, 0)
        for number, expert in enumerate(self.experts):
            place, top = torch.where(mask[number])
            current = hidden_states[None, top].reshape(-1, width)
            current = expert(current) * routing[top, place, None]
            final.index_add_(0, top, current.to(hidden_states.dtype))
        return final.reshape(rows, length, width)


class DenseExperts(nn.Module):
    """Llama 4's way: every expert runs all tokens, in one `bmm`, and scores of 0 leave the others out."""

    def __init__(self, experts: int = 4) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, experts, bias=False)
        self.gate_up, self.down = (
            nn.Parameter(torch.randn(experts, a, b) * 0.3) for a, b in ((WIDTH, 64), (32, WIDTH))
        )

    def forward(self, x: Tensor) -> Tensor:
        shape, experts = x.shape, self.gate_up.shape[0]
        x = x.reshape(-1, x.shape[-1])
        logits = self.router(x)
        top, index = torch.topk(logits, 1, dim=1)
        scores = torch.full_like(logits, float("-inf")).scatter_(1, index, top).transpose(0, 1)
        scores = torch.sigmoid(scores.float()).to(x.dtype)
        routed = x.repeat(experts, 1) * scores.reshape(-1, 1)
        gate, up = torch.bmm(routed.view(experts, -1, x.shape[-1]), self.gate_up).chunk(2, dim=-1)
        out = torch.bmm(up * F.silu(gate), self.down)
        return out.reshape(experts, -1, x.shape[-1]).sum(dim=0).view(shape)


class Llama(nn.Module):
    """Logits for every token; or for the last one."""

    def __init__(
        self, groups: int = 4, qk_norm: bool = False, eager: bool = False, feed: type[nn.Module] = GatedMLP,
        last: bool = False, scaled: bool = False, bias: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.embed_tokens, self.scaled, self.last = nn.Embedding(VOCABULARY, WIDTH), scaled, last
        self.layers = nn.ModuleList(LlamaLayer(groups, qk_norm, eager, feed(), bias) for _ in range(LAYERS))
        self.norm, self.rotary_emb = RMSNorm(), Rotary(WIDTH // 4)
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed_tokens(input_ids)
        if self.scaled:
            x = x * torch.tensor(WIDTH**0.5, dtype=x.dtype)
        cache_position = torch.arange(0, x.shape[1], device=x.device)
        position_ids = cache_position.unsqueeze(0)
        cos, sin = self.rotary_emb(x, position_ids)
        for layer in self.layers:
            x = layer(x, cos, sin)
        x = self.norm(x)
        return self.lm_head(x[:, -1] if self.last else x[:, slice(0, None), :])


class NeoXLayer(nn.Module):
    """Queries, keys and values of a head side by side; a part of each is turned; both parts in parallel."""

    def __init__(self) -> None:
        super().__init__()
        self.query_key_value, self.dense = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        size, turned = WIDTH // HEADS, 4
        qkv = self.query_key_value(self.norm1(x))
        q, k, v = qkv.view((*x.shape[:-1], -1, 3 * size)).transpose(1, 2).chunk(3, dim=-1)
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        parts = []
        for t in (q, k):
            rot, rest = t[..., :turned], t[..., turned:]
            parts.append(torch.cat([(rot * cos) + (rotate_half(rot) * sin), rest], dim=-1))
        out = F.scaled_dot_product_attention(parts[0], parts[1], v, is_causal=True)
        attention = self.dense(out.transpose(1, 2).reshape(*x.shape[:-1], -1))
        return self.down(F.gelu(self.up(self.norm2(x)))) + attention + x


class NeoX(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_in, self.rotary_emb = nn.Embedding(VOCABULARY, WIDTH), Rotary(4)
        self.layers, self.norm = nn.ModuleList(NeoXLayer() for _ in range(LAYERS)), nn.LayerNorm(WIDTH)
        self.embed_out = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed_in(input_ids)
        position_ids = torch.arange(x.shape[1]).unsqueeze(0).expand(x.shape[0], -1)
        cos, sin = self.rotary_emb(x, position_ids)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.embed_out(self.norm(x))


DECODERS = {
    "GPT-2": Made(GPT2, tokens(LENGTH)),
    "OPT": Made(OPT, tokens(LENGTH)),
    "GPT-NeoX": Made(NeoX, tokens(LENGTH)),
    "Llama": Made(Llama, tokens(LENGTH)),
    "Llama, eager": Made(lambda: Llama(eager=True), tokens(LENGTH)),
    "Qwen 3": Made(lambda: Llama(groups=2, qk_norm=True, bias=True, last=True), tokens(LENGTH)),
    "Gemma 3": Made(lambda: Llama(groups=1, qk_norm=True, eager=True, scaled=True), tokens(LENGTH)),
    "Phi-3": Made(lambda: Llama(feed=PhiMLP), tokens(LENGTH)),
    "Llama 4 (experts)": Made(lambda: Llama(groups=2, feed=DenseExperts), tokens(LENGTH)),
    "Mixtral (experts)": Made(lambda: Llama(groups=2, feed=SparseExperts), tokens(11)),
}

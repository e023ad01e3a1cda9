"""Encoders of text as Hugging Face's transformers lays them out: BERT, DistilBERT, DeBERTa, ModernBERT-like and T5's,
and an ELECTRA-like head for every token."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.inputs import VOCABULARY, Made, tokens

__all__ = ["ENCODERS"]

WIDTH, HEADS, LAYERS, LENGTH = 16, 2, 2, 7


class BertEmbeddings(nn.Module):
    """Words, positions and types; positions are a buffer that is cut to length."""

    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(VOCABULARY, WIDTH, padding_idx=0)
        self.position_embeddings = nn.Embedding(32, WIDTH)
        self.token_type_embeddings = nn.Embedding(2, WIDTH)
        self.LayerNorm = nn.LayerNorm(WIDTH, eps=1e-12)
        self.dropout = nn.Dropout(0.1)
        self.register_buffer("position_ids", torch.arange(32).expand((1, -1)), persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        _, length = input_ids.size()
        kinds = torch.zeros(input_ids.size(), dtype=torch.long, device=input_ids.device)
        embeddings = self.word_embeddings(input_ids) + self.token_type_embeddings(kinds)
        embeddings += self.position_embeddings(self.position_ids[:, :length])
        return self.dropout(self.LayerNorm(embeddings))


class BertSelfAttention(nn.Module):
    """Written out ("eager"), or by torch's kernel ("sdpa")."""

    def __init__(self, eager: bool) -> None:
        super().__init__()
        self.heads, self.size, self.eager = HEADS, WIDTH // HEADS, eager
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.dropout = nn.Dropout(0.1)

    def transpose_for_scores(self, x: Tensor) -> Tensor:
        x = x.view((*x.size()[:-1], self.heads, self.size))
        return x.permute(0, 2, 1, 3)

    def forward(self, hidden_states: Tensor, mask: Tensor) -> Tensor:
        q = self.transpose_for_scores(self.query(hidden_states))
        k = self.transpose_for_scores(self.key(hidden_states))
        v = self.transpose_for_scores(self.value(hidden_states))
        if self.eager:
            scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(self.size)
            probabilities = self.dropout(nn.functional.softmax(scores + mask, dim=-1))
            context = torch.matmul(probabilities, v)
        else:
            context = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=0.0)
        context = context.permute(0, 2, 1, 3).contiguous()
        return context.view((*context.size()[:-2], WIDTH))


class BertLayer(nn.Module):
    def __init__(self, eager: bool) -> None:
        super().__init__()
        self.attention = BertSelfAttention(eager)
        self.dense = nn.Linear(WIDTH, WIDTH)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, eps=1e-12), nn.LayerNorm(WIDTH, eps=1e-12)
        self.intermediate, self.output = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.norm1(self.dense(self.attention(x, mask)) + x)
        return self.norm2(self.output(F.gelu(self.intermediate(x))) + x)


class Bert(nn.Module):
    """With the extended mask of transformers, a pooler and a head for sequences, or one for every token."""

    def __init__(self, eager: bool, per_token: bool = False) -> None:
        super().__init__()
        self.embeddings, self.per_token = BertEmbeddings(), per_token
        self.layer = nn.ModuleList(BertLayer(eager) for _ in range(LAYERS))
        self.pooler, self.classifier = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4)

    def forward(self, input_ids: Tensor) -> Tensor:
        mask = torch.ones(input_ids.shape, device=input_ids.device)
        mask = mask * (input_ids != 0)
        extended = (1.0 - mask[:, None, None, :]) * torch.finfo(torch.float32).min
        x = self.embeddings(input_ids)
        for layer in self.layer:
            x = layer(x, extended)
        if self.per_token:
            return self.classifier(F.gelu(self.pooler(x)))
        return self.classifier(torch.tanh(self.pooler(x[:, 0])))


class DistilLayer(nn.Module):
    """DistilBERT's: `view`s with -1, masks filled where they are 0."""

    def __init__(self) -> None:
        super().__init__()
        self.q_lin, self.k_lin, self.v_lin, self.out_lin = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.sa_layer_norm, self.output_layer_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.lin1, self.lin2 = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        rows, length, _ = x.size()

        def shape(t: Tensor) -> Tensor:
            return t.view(rows, -1, HEADS, WIDTH // HEADS).transpose(1, 2)

        q, k, v = shape(self.q_lin(x)), shape(self.k_lin(x)), shape(self.v_lin(x))
        q = q / math.sqrt(WIDTH // HEADS)
        scores = torch.matmul(q, k.transpose(2, 3))
        hidden = (mask == 0).view(rows, 1, 1, length).expand_as(scores)
        scores = scores.masked_fill(hidden, torch.tensor(torch.finfo(scores.dtype).min))
        context = torch.matmul(scores.softmax(dim=-1), v)
        context = context.transpose(1, 2).contiguous().view(rows, -1, WIDTH)
        x = self.sa_layer_norm(self.out_lin(context) + x)
        return self.output_layer_norm(self.lin2(F.gelu(self.lin1(x))) + x)


class DistilBert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings, self.position_embeddings = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(32, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.layer = nn.ModuleList(DistilLayer() for _ in range(LAYERS))
        self.pre_classifier, self.classifier = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4)

    def forward(self, input_ids: Tensor) -> Tensor:
        length = input_ids.size(1)
        position_ids = torch.arange(length, dtype=torch.long, device=input_ids.device)
        position_ids = position_ids.unsqueeze(0).expand_as(input_ids)
        x = self.norm(self.word_embeddings(input_ids) + self.position_embeddings(position_ids))
        mask = torch.ones_like(input_ids)
        for layer in self.layer:
            x = layer(x, mask)
        return self.classifier(F.relu(self.pre_classifier(x[:, 0])))


class Disentangled(nn.Module):
    """DeBERTa's attention: heads folded into the rows, positions gathered from scores of a table of distances."""

    def __init__(self) -> None:
        super().__init__()
        self.query_proj, self.key_proj, self.value_proj = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.dense, self.norm = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)

    def heads(self, x: Tensor) -> Tensor:
        x = x.view(*x.shape[:-1], HEADS, -1)
        return x.permute(0, 2, 1, 3).contiguous().view(-1, x.size(1), x.size(-1))

    def forward(self, x: Tensor, relative: Tensor, table: Tensor) -> Tensor:
        q, k, v = self.heads(self.query_proj(x)), self.heads(self.key_proj(x)), self.heads(self.value_proj(x))
        scale = math.sqrt(q.size(-1) * 3)
        scores = torch.bmm(q, k.transpose(-1, -2) / scale)
        span = table.size(0) // 2
        table = table.unsqueeze(0)
        pos_key = self.heads(self.key_proj(table)).repeat(q.size(0) // HEADS, 1, 1)
        pos_query = self.heads(self.query_proj(table)).repeat(q.size(0) // HEADS, 1, 1)
        index = torch.clamp(relative + span, 0, span * 2 - 1).unsqueeze(0)
        c2p = torch.bmm(q, pos_key.transpose(-1, -2))
        scores = scores + torch.gather(c2p, -1, index.expand([q.size(0), q.size(1), k.size(1)])) / scale
        p2c = torch.bmm(k, pos_query.transpose(-1, -2))
        index = torch.clamp(-relative + span, 0, span * 2 - 1).unsqueeze(0)
        p2c = torch.gather(p2c, -1, index.expand([q.size(0), k.size(1), k.size(1)])).transpose(-1, -2)
        scores = (scores + p2c / scale).view(-1, HEADS, scores.size(-2), scores.size(-1))
        context = torch.bmm(scores.softmax(-1).view(-1, scores.size(-2), scores.size(-1)), v)
        context = context.view(-1, HEADS, context.size(-2), context.size(-1)).permute(0, 2, 1, 3).contiguous()
        return self.norm(self.dense(context.view(*context.shape[:-2], -1)) + x)


class Deberta(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embeddings, self.norm = nn.Embedding(VOCABULARY, WIDTH), nn.LayerNorm(WIDTH)
        self.rel_embeddings, self.rel_norm = nn.Embedding(8, WIDTH), nn.LayerNorm(WIDTH)
        self.layer = nn.ModuleList(Disentangled() for _ in range(LAYERS))
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH)) for _ in range(LAYERS)
        )
        self.classifier = nn.Linear(WIDTH, 4)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.norm(self.embeddings(input_ids))
        ids = torch.arange(x.size(1))
        relative = ids[:, None] - ids[None, :].repeat(x.size(1), 1)
        table = self.rel_norm(self.rel_embeddings.weight)
        for layer, mlp in zip(self.layer, self.mlp, strict=True):
            x = layer(x, relative, table)
            x = x + mlp(x)
        return self.classifier(x[:, 0])


class T5Norm(nn.Module):
    """RMSNorm written out, in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(WIDTH) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        variance = x.to(torch.float32).pow(2).mean(-1, keepdim=True)
        return self.weight * (x * torch.rsqrt(variance + 1e-6))


def bucket(relative: Tensor, buckets: int = 8, distance: int = 16) -> Tensor:
    """T5's: near distances have their own, far ones share them."""
    buckets //= 2
    found = (relative > 0).to(torch.long) * buckets
    relative = torch.abs(relative)
    exact = buckets // 2
    large = exact + (torch.log(relative.float() / exact) / math.log(distance / exact) * (buckets - exact)).to(
        torch.long
    )
    large = torch.min(large, torch.full_like(large, buckets - 1))
    return found + torch.where(relative < exact, relative, large)


class T5Attention(nn.Module):
    """Without scale, with a bias of relative positions that the first layer hands to the others."""

    def __init__(self, has_bias: bool, causal: bool = False) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.causal = causal
        self.relative_attention_bias = nn.Embedding(8, HEADS) if has_bias else None

    def compute_bias(self, queries: int, keys: int) -> Tensor:
        assert self.relative_attention_bias is not None
        context, memory = torch.arange(queries)[:, None], torch.arange(keys)[None, :]
        values = self.relative_attention_bias(bucket(memory - context))
        return values.permute([2, 0, 1]).unsqueeze(0)

    def forward(self, x: Tensor, others: Tensor | None = None, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        rows, length = x.shape[:2]
        seen = x if others is None else others

        def shape(t: Tensor) -> Tensor:
            return t.view(rows, -1, HEADS, WIDTH // HEADS).transpose(1, 2)

        q, k, v = shape(self.q(x)), shape(self.k(seen)), shape(self.v(seen))
        scores = torch.matmul(q, k.transpose(3, 2))
        if bias is None:
            if self.relative_attention_bias is None:
                bias = torch.zeros((1, HEADS, length, k.shape[2]), device=scores.device, dtype=scores.dtype)
            else:
                bias = self.compute_bias(length, k.shape[2])
            if self.causal:
                bias = bias + torch.full((length, length), -1e4).triu(1)
        scores += bias
        weights = nn.functional.softmax(scores.float(), dim=-1).type_as(scores)
        out = torch.matmul(weights, v).transpose(1, 2).contiguous().view(rows, -1, WIDTH)
        return self.o(out), bias


class T5Block(nn.Module):
    """Self attention, attention to the encoder's result where there is one, and a feed-forward part."""

    def __init__(self, first: bool, decodes: bool) -> None:
        super().__init__()
        self.attention, self.norm = T5Attention(first, causal=decodes), T5Norm()
        self.cross, self.cross_norm = (T5Attention(False), T5Norm()) if decodes else (None, None)
        self.wi, self.wo, self.ff_norm = nn.Linear(WIDTH, 32, bias=False), nn.Linear(32, WIDTH, bias=False), T5Norm()

    def forward(self, x: Tensor, encoded: Tensor | None, bias: Any) -> tuple[Tensor, Tensor]:
        y, bias = self.attention(self.norm(x), bias=bias)
        x = x + y
        if self.cross is not None and self.cross_norm is not None:
            x = x + self.cross(self.cross_norm(x), encoded)[0]
        return x + self.wo(F.relu(self.wi(self.ff_norm(x)))), bias


class T5(nn.Module):
    """Encoder and decoder on shared embeddings; the decoder sees the input moved by one; logits for every token."""

    def __init__(self, decodes: bool) -> None:
        super().__init__()
        self.shared = nn.Embedding(VOCABULARY, WIDTH)
        self.encoder = nn.ModuleList(T5Block(i == 0, False) for i in range(LAYERS))
        self.decoder = nn.ModuleList(T5Block(i == 0, True) for i in range(LAYERS if decodes else 0))
        self.final, self.head = T5Norm(), nn.Linear(WIDTH, 6, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        x, bias = self.shared(input_ids), None
        for block in self.encoder:
            x, bias = block(x, None, bias)
        if not len(self.decoder):
            return self.head(self.final(x).mean(1))
        shifted = input_ids.new_zeros(input_ids.shape)
        shifted[..., 1:] = input_ids[..., :-1].clone()
        y, bias = self.shared(shifted), None
        for block in self.decoder:
            y, bias = block(y, x, bias)
        return self.head(self.final(y) * (WIDTH**-0.5))


ENCODERS = {
    "BERT": Made(lambda: Bert(eager=False), tokens(LENGTH)),
    "BERT, eager": Made(lambda: Bert(eager=True), tokens(LENGTH)),
    "BERT for tokens": Made(lambda: Bert(eager=False, per_token=True), tokens(LENGTH)),
    "DistilBERT": Made(DistilBert, tokens(LENGTH)),
    "DeBERTa": Made(Deberta, tokens(LENGTH)),
    "T5's encoder": Made(lambda: T5(decodes=False), tokens(LENGTH)),
    "T5": Made(lambda: T5(decodes=True), tokens(LENGTH)),
}

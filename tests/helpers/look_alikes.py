"""Look-alikes of what Hugging Face's libraries do with a model: a causal language model whose `generate` looks at the
signature of `forward`, and a trainer that drops the columns which `forward` does not take."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """Causal attention with a cache of keys and values, handed in and out."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor, past: tuple[Tensor, Tensor] | None) -> Any:
        rows, length, width = x.shape
        q, k, v = (t.view(rows, length, self.heads, -1).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        scores = (q @ k.transpose(-1, -2)) / (width // self.heads) ** 0.5
        seen = torch.arange(k.shape[2]) <= torch.arange(k.shape[2] - length, k.shape[2])[:, None]
        allowed = seen & mask[:, None, None, :].bool()
        weights = scores.masked_fill(~allowed, -1e9).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(rows, length, width)), (k, v)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, 2)
        self.norm2, self.mlp = nn.LayerNorm(width), nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Linear(32, width))

    def forward(self, x: Tensor, mask: Tensor, past: Any = None) -> Any:
        y, kept = self.attention(self.norm1(x), mask, past)
        x = x + y
        return x + self.mlp(self.norm2(x)), kept


class CausalLM(nn.Module):
    """Tokens to logits; with labels, also a loss."""

    def __init__(self, vocabulary: int = 40, width: int = 16, layers: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(64, width)
        self.blocks = nn.ModuleList([Block(width) for _ in range(layers)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        for p in self.parameters():
            p.data.mul_(3)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: list[Any] | None = None,
        labels: Tensor | None = None,
        use_cache: bool = False,
    ) -> dict[str, Any]:
        length = input_ids.shape[1] + (0 if past_key_values is None else past_key_values[0][0].shape[2])
        if attention_mask is None:
            attention_mask = torch.ones(len(input_ids), length, dtype=torch.long)
        if position_ids is None:
            position_ids = torch.arange(length - input_ids.shape[1], length)[None]
        x, kept = self.tokens(input_ids) + self.positions(position_ids), []
        for i, block in enumerate(self.blocks):
            x, cache = block(x, attention_mask, None if past_key_values is None else past_key_values[i])
            kept.append(cache)
        logits = self.head(self.norm(x))
        out: dict[str, Any] = {"logits": logits}
        if use_cache:
            out["past_key_values"] = kept
        if labels is not None:
            out["loss"] = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return out

    @torch.no_grad()
    def generate(
        self, input_ids: Tensor, new: int, attention_mask: Tensor | None = None, use_cache: bool = True
    ) -> Tensor:
        """Greedy. As transformers does, it passes only what the signature of `forward` lists."""
        takes = set(inspect.signature(self.forward).parameters)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        past = None
        for _ in range(new):
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            given: dict[str, Any] = {"input_ids": input_ids}
            if past is not None:
                given["input_ids"], positions = input_ids[:, -1:], positions[:, -1:]
            if "attention_mask" in takes:
                given["attention_mask"] = mask
            if "position_ids" in takes:
                given["position_ids"] = positions
            if use_cache and "use_cache" in takes:
                given |= {"use_cache": True, "past_key_values": past}
            out = self(**given)
            past = out.get("past_key_values")
            input_ids = torch.cat([input_ids, out["logits"][:, -1].argmax(-1)[:, None]], 1)
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        return input_ids


class Trainer:
    """Trains and evaluates on rows of columns, of which `forward` is given those that its signature lists."""

    def __init__(self, model: nn.Module, rows: list[dict[str, Any]]) -> None:
        self.model, self.rows = model, rows

    def columns(self) -> list[dict[str, Tensor]]:
        """The batches as the model gets them."""
        takes = [*inspect.signature(self.model.forward).parameters, "label", "label_ids"]
        batches = []
        for i in range(0, len(self.rows), 2):
            kept = [{k: v for k, v in row.items() if k in takes} for row in self.rows[i : i + 2]]
            if not kept[0]:
                raise ValueError("The batch received was empty")
            batches.append({k: torch.stack([row[k] for row in kept]) for k in kept[0]})
        return batches

    def train(self) -> list[float]:
        """One epoch; the losses."""
        self.model.train()
        optimizer, losses = torch.optim.SGD(self.model.parameters(), lr=0.01), []
        for batch in self.columns():
            loss = self.model(**batch)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    @torch.no_grad()
    def evaluate(self) -> float:
        """The mean loss."""
        self.model.eval()
        return sum(self.model(**batch)["loss"].item() for batch in self.columns()) / len(self.columns())

"""Mixtures of experts as people write them: which tokens an expert gets is found out in the forward."""

from __future__ import annotations

import torch
from look_alikes import CausalLM
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["WAYS_OF_EXPERTS", "Experts", "causal_experts"]

WAYS_OF_EXPERTS = ("loop", "masks", "capacity", "sorted", "gathered", "one by one")


class Experts(nn.Module):
    """Each token goes through the `chosen` of `number` experts that its gate prefers, written in the way `how`."""

    def __init__(self, how: str, width: int = 16, number: int = 4, chosen: int = 2, hidden: int = 8) -> None:
        super().__init__()
        self.how, self.number, self.chosen = how, number, chosen
        self.gate = nn.Linear(width, number, bias=False)
        self.up = nn.Parameter(torch.randn(number, hidden, width) / 4)
        self.down = nn.Parameter(torch.randn(number, width, hidden) / 3)
        self.alone = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width)) for _ in range(number)
        )

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        weights, which = self.gate(flat).softmax(-1).topk(self.chosen, dim=-1)
        made: Tensor = getattr(self, f"_{self.how.replace(' ', '_')}")(flat, weights, which)
        return made.view(x.shape)

    def _loop(self, x: Tensor, weights: Tensor, which: Tensor) -> Tensor:
        """As in transformers: indices of each expert's tokens, results added where they come from."""
        out = torch.zeros_like(x)
        chosen = F.one_hot(which, self.number).permute(2, 1, 0)
        for expert in chosen.sum((1, 2)).gt(0).nonzero():
            place, token = torch.where(chosen[expert[0]])
            hidden = F.silu(F.linear(x[token], self.up[expert[0]]))
            out.index_add_(0, token, F.linear(hidden, self.down[expert[0]]) * weights[token, place, None])
        return out

    def _masks(self, x: Tensor, weights: Tensor, which: Tensor) -> Tensor:
        """Modules, each on the rows of a mask."""
        out = torch.zeros_like(x)
        for place in range(self.chosen):
            for number, expert in enumerate(self.alone):
                mask = which[:, place] == number
                if mask.any():
                    out[mask] += expert(x[mask]) * weights[mask, place].unsqueeze(1)
        return out

    def _capacity(self, x: Tensor, weights: Tensor, which: Tensor) -> Tensor:
        """A product with a matrix of zeros and ones takes tokens to places of experts."""
        chosen = F.one_hot(which, self.number).sum(1)  # (tokens, experts)
        place = chosen.cumsum(0) * chosen - 1
        send = F.one_hot(place.clamp(min=0), len(x)).to(x.dtype) * chosen.unsqueeze(-1)  # (tokens, experts, places)
        sent = torch.einsum("tep,td->epd", send, x)
        hidden = torch.einsum("ehd,epd->eph", self.up, sent).relu()
        back = torch.einsum("edh,eph->epd", self.down, hidden)
        share = torch.zeros(len(x), self.number).scatter(1, which, weights)
        return torch.einsum("tep,epd->td", send * share.unsqueeze(-1), back)

    def _sorted(self, x: Tensor, weights: Tensor, which: Tensor) -> Tensor:
        """All choices sorted by expert, cut into pieces, and put back."""
        order = which.flatten().argsort(stable=True)
        token = order // self.chosen
        sizes = torch.bincount(which.flatten(), minlength=self.number).tolist()
        parts = [self.alone[n](part) for n, part in enumerate(x[token].split(sizes)) if len(part)]
        made = torch.cat(parts) * weights.flatten()[order].unsqueeze(1)
        return torch.zeros_like(x).scatter_add(0, token.unsqueeze(1).expand_as(made), made)

    def _gathered(self, x: Tensor, weights: Tensor, which: Tensor) -> Tensor:
        """The arrays of each choice beside its token."""
        hidden = torch.einsum("tkhd,td->tkh", self.up[which], x).relu()
        return (torch.einsum("tkdh,tkh->tkd", self.down[which], hidden) * weights.unsqueeze(-1)).sum(1)

    def _one_by_one(self, x: Tensor, weights: Tensor, which: Tensor) -> Tensor:
        """Each token by itself."""
        out = [
            sum(w * self.alone[int(n)](row) for w, n in zip(weight, numbers, strict=True))
            for row, weight, numbers in zip(x, weights, which, strict=True)
        ]
        return torch.stack(out)  # type: ignore[arg-type]


def causal_experts(how: str) -> CausalLM:
    """A language model of one block, with experts."""
    model = CausalLM(layers=1)
    torch.manual_seed(1)
    for block in model.blocks:
        block.mlp = Experts(how)
    return model.eval()

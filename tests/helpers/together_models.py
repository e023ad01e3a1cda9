"""Models whose weights, sites and calls are shared in ways that no direction of one value describes."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["MODELS", "problem"]


class Transposed(nn.Module):
    """A layer as GPT-2 has it: `addmm` with a weight that is stored (in, out)."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inner, outer) * 0.4), nn.Parameter(torch.randn(outer))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], -1)


class Tokens(nn.Module):
    """What all of them have: a body over (rows, 5, 6), and a head over the mean of its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 3)

    def body(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean(1))


class OfGpt(Tokens):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = Transposed(6, 8), Transposed(8, 8)

    def body(self, x: Tensor) -> Tensor:
        return F.gelu(self.b(torch.relu(self.a(x))))


class Products(Tokens):
    """Weights on either side of `@`, turned, in an einsum with groups, in a tensordot."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.v = nn.Parameter(torch.randn(6, 8)), nn.Parameter(torch.randn(8, 8))
        self.u, self.t = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(4, 2, 4))

    def body(self, x: Tensor) -> Tensor:
        x = torch.relu(x @ self.w)
        x = torch.tanh(torch.matmul(self.v.t(), x.transpose(1, 2)).transpose(1, 2))
        x = torch.einsum("bthd,dhe->bthe", x.view(*x.shape[:-1], 2, 4), self.t).flatten(2)
        return torch.tensordot(x, self.u, dims=([2], [1]))


class Twice(Tokens):
    """A layer that is called twice: one array."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 8)

    def body(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(torch.relu(self.a(x)))))


class Layers(Tokens):
    """A recurrent layer, whose arrays serve all steps."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.LSTM(6, 8, batch_first=True)

    def body(self, x: Tensor) -> Tensor:
        every, (last, _) = self.a(x)
        return every + last.transpose(0, 1)


class Cells(Tokens):
    """A cell that is called at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.GRUCell(6, 8)

    def body(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), 8)
        for t in range(x.shape[1]):
            h = self.a(x[:, t], h)
        return h.unsqueeze(1)


class Attention(Tokens):
    """Torch's layer, its function, and a norm between."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.m = nn.Linear(6, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm, self.qkv = nn.LayerNorm(8), nn.Linear(8, 24)

    def body(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = self.norm(x + self.m(x, x, x)[0])
        q, k, v = (t.view(len(x), 5, 2, 4).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Table(Tokens):
    """A table and a layer over it that are the same for all rows."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.of_table, self.a = nn.Embedding(5, 6), nn.Linear(6, 6), nn.Linear(6, 8)

    def body(self, x: Tensor) -> Tensor:
        return torch.relu(self.a(x + self.of_table(torch.relu(self.table(torch.arange(5))))))


class Made(Tokens):
    """A weight that is made anew at each call, given by name, and a head that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.utils.parametrizations.weight_norm(nn.Linear(6, 8)), nn.Linear(8, 8)
        self.unused = nn.Linear(8, 2)

    def body(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        self.unused(x)
        return F.linear(input=x, weight=self.b.weight, bias=self.b.bias)


MODELS: dict[str, Callable[[], nn.Module]] = {
    kind.__name__: kind for kind in (OfGpt, Products, Twice, Layers, Cells, Attention, Table, Made)
}


def problem(name: str, rows: int = 40) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """A model, and data that it gets right."""
    torch.manual_seed(0)
    model, x = MODELS[name]().eval(), torch.randn(rows, 5, 6)
    with torch.no_grad():
        return model, (x, model(x).argmax(1))

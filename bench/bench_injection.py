"""What injection itself costs: a clean model, injected without noise, with noise at all sites, and under plain hooks.

The models are small, so that what surrounds the arithmetic shows: a transformer of Llama's form that decodes one token
with a cache and reads a prompt of 256, and LeNet-5 on one image and on 32. Plain hooks add ``sigma * randn_like(y)``
behind every module that holds a site.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import noisykernels as nk
from noisykernels.zoo import LeNet5

SIGMA = 0.1
WIDTH, HEADS, BLOCKS, WORDS, LONGEST = 128, 4, 4, 512, 512
Cache = list[tuple[Tensor, Tensor] | None]


class Attend(nn.Module):
    """Attention of the queries to everything up to them, a module so that hooks see its result."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1)


class Block(nn.Module):
    """A block of Llama: rotary attention, then a gated layer, both after a norm and beside a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(WIDTH, 3 * WIDTH, bias=False) for _ in range(2))
        self.down = nn.Linear(3 * WIDTH, WIDTH, bias=False)
        self.attend, self.silu = Attend(), nn.SiLU()

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], cache: tuple[Tensor, Tensor] | None) -> Any:
        rows, length, _ = x.shape
        h = self.norm1(x)
        q, k, v = (m(h).view(rows, length, HEADS, -1).transpose(1, 2) for m in (self.q, self.k, self.v))
        q, k = rotated(q, *turn), rotated(k, *turn)
        if cache is not None:
            k, v = torch.cat([cache[0], k], 2), torch.cat([cache[1], v], 2)
        h = self.attend(q, k, v).transpose(1, 2).reshape(rows, length, WIDTH)
        x = x + self.out(h)
        h = self.norm2(x)
        return x + self.down(self.silu(self.gate(h)) * self.up(h)), (k, v)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


class Llama(nn.Module):
    """Words in, the next word's scores and the cache out."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.norm, self.head = nn.RMSNorm(WIDTH), nn.Linear(WIDTH, WORDS, bias=False)
        size = WIDTH // HEADS
        angle = torch.arange(LONGEST)[:, None] / 10000 ** (torch.arange(0, size, 2) / size).repeat(2)
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def forward(self, words: Tensor, past: int = 0, cache: Cache | None = None) -> tuple[Tensor, Cache]:
        x = self.words(words)
        turn = self.cos[past : past + words.shape[1]], self.sin[past : past + words.shape[1]]
        after: Cache = []
        for i, block in enumerate(self.blocks):
            x, kept = block(x, turn, None if cache is None else cache[i])
            after.append(kept)
        return self.head(self.norm(x)), after


def hooked(model: nn.Module) -> nn.Module:
    """The model with Gaussian noise on its input and behind every module without submodules that computes something."""

    def entering(m: nn.Module, args: Any) -> Any:
        x, *rest = args
        return (x + SIGMA * torch.randn_like(x), *rest) if x.is_floating_point() else None

    model.register_forward_pre_hook(entering)
    for module in model.modules():
        if not list(module.children()) and not isinstance(module, nn.Embedding | nn.Flatten):
            module.register_forward_hook(lambda m, a, y: y + SIGMA * torch.randn_like(y))
    return model


def contenders(make: Callable[[], nn.Module], *args: Any) -> dict[str, Callable[[], Any]]:
    """Calls of four copies of a model: clean, silent, noisy, under hooks."""

    def copy() -> nn.Module:
        torch.manual_seed(0)
        return make().eval()

    clean, silent, noisy, plain = copy(), copy(), copy(), hooked(copy())
    nk.inject(silent, None)
    nk.inject(noisy, nk.Noise(add=SIGMA), example_input=args[0])

    def run(model: nn.Module) -> Callable[[], Any]:
        return lambda: model(*args)

    return {name: run(m) for name, m in (("clean", clean), ("silent", silent), ("noisy", noisy), ("hooks", plain))}


def decoding() -> dict[str, Callable[[], Any]]:
    """One token after 64."""
    cache = [tuple(torch.randn(1, HEADS, 64, WIDTH // HEADS) for _ in "kv") for _ in range(BLOCKS)]
    return contenders(Llama, torch.tensor([[7]]), 64, cache)


CASES: dict[str, Callable[[], dict[str, Callable[[], Any]]]] = {
    "transformer, one token": decoding,
    "transformer, 256 tokens": lambda: contenders(Llama, torch.randint(WORDS, (1, 256))),
    "LeNet-5, 1 image": lambda: contenders(LeNet5, torch.randn(1, 1, 28, 28)),
    "LeNet-5, 32 images": lambda: contenders(LeNet5, torch.randn(32, 1, 28, 28)),
}


@pytest.mark.parametrize("case", CASES)
def test_injected_without_noise(contest: Callable[..., Any], case: str) -> None:
    calls = CASES[case]()
    contest(f"{case}, silent", ours=calls["silent"], baseline=calls["clean"], bar=1.05, rounds=31)


@pytest.mark.parametrize("case", CASES)
def test_noise_at_all_sites(contest: Callable[..., Any], case: str) -> None:
    calls = CASES[case]()
    clean = {"clean": calls["clean"]}
    contest(f"{case}, all sites", ours=calls["noisy"], baseline=calls["hooks"], bar=1.0, rounds=31, **clean)

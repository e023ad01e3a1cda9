"""What hardware and noise reach of five networks: GPT-2, Llama, a vision transformer, an LSTM tagger, a ResNet.

Small networks written as their owners write them (transposed weights and `addmm`, RMSNorm written out, rotary
positions, tied heads, torch's own attention), with random weights. Each is injected with noisy weights and noise at
every site; the account says of each parameter and each operation what reaches it, and why not. A few seconds.
"""

from __future__ import annotations

import math
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import noisykernels as nk


class Conv1D(nn.Module):
    """GPT-2's linear layer: the weight lies as (in, out)."""

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(features, outputs) * 0.1)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """One product of all tokens."""
        return torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], -1)


class GPT2(nn.Module):
    """One block, with the head tied to the embedding of tokens."""

    def __init__(self, width: int = 32, heads: int = 4, vocabulary: int = 50) -> None:
        super().__init__()
        self.heads = heads
        self.wte, self.wpe = nn.Embedding(vocabulary, width), nn.Embedding(16, width)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.c_attn, self.c_proj = Conv1D(width, 3 * width), Conv1D(width, width)
        self.c_fc, self.mlp_proj = Conv1D(width, 4 * width), Conv1D(4 * width, width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Scores of the next token."""
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.c_attn(self.ln_1(x)).chunk(3, -1))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.c_proj(out.transpose(1, 2).flatten(-2))
        x = x + self.mlp_proj(F.gelu(self.c_fc(self.ln_2(x))))
        return self.head(x)[:, -1]


class RMSNorm(nn.Module):
    """Written out, as in most Llamas."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """x over its root mean square."""
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


class Llama(nn.Module):
    """One block: rotary positions, attention written out, a gated feed-forward layer."""

    def __init__(self, width: int = 32, heads: int = 4, vocabulary: int = 50) -> None:
        super().__init__()
        self.heads = heads
        self.embed_tokens = nn.Embedding(vocabulary, width)
        self.input_norm, self.post_norm, self.norm = RMSNorm(width), RMSNorm(width), RMSNorm(width)
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate_proj, self.up_proj = nn.Linear(width, 64, bias=False), nn.Linear(width, 64, bias=False)
        self.down_proj, self.lm_head = nn.Linear(64, width, bias=False), nn.Linear(width, vocabulary, bias=False)

    def rotate(self, x: Tensor) -> Tensor:
        """Rotary positions of (batch, heads, tokens, n)."""
        half = x.shape[-1] // 2
        angle = torch.arange(x.shape[-2])[:, None] * 10000.0 ** (-torch.arange(half) / half)
        first, second = x[..., :half], x[..., half:]
        turned = (first * angle.cos() - second * angle.sin(), first * angle.sin() + second * angle.cos())
        return torch.cat(turned, -1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Scores of the next token."""
        x = self.embed_tokens(tokens)
        h = self.input_norm(x)
        q, k, v = (
            p(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        scores = self.rotate(q) @ self.rotate(k).transpose(-1, -2) / math.sqrt(q.shape[-1])
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        out = torch.softmax(scores.masked_fill(hidden, -math.inf), -1) @ v
        x = x + self.o_proj(out.transpose(1, 2).flatten(-2))
        h = self.post_norm(x)
        x = x + self.down_proj(F.silu(self.gate_proj(h)) * self.up_proj(h))
        return self.lm_head(self.norm(x))[:, -1]


class ViT(nn.Module):
    """Patches by a convolution, a class token, torch's own encoder layer."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token, self.positions = nn.Parameter(torch.zeros(1, 1, width)), nn.Parameter(torch.randn(1, 17, width))
        self.encoder = nn.TransformerEncoderLayer(width, 4, 64, 0.0, batch_first=True)
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Scores of classes."""
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        return self.head(self.encoder(x)[:, 0])


class Tagger(nn.Module):
    """An LSTM over embedded words."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.lstm = nn.LSTM(16, 24, batch_first=True)
        self.head = nn.Linear(24, 5)

    def forward(self, words: Tensor) -> Tensor:
        """Scores of the last word's tags."""
        return self.head(self.lstm(self.embedding(words))[0][:, -1])


class ResNet(nn.Module):
    """A stem, one residual block with a shortcut of its own, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.conv3, self.bn3 = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.downsample = nn.Sequential(nn.Conv2d(8, 16, 1, 2, bias=False), nn.BatchNorm2d(16))
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of classes."""
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn3(self.conv3(torch.relu(self.bn2(self.conv2(x))))) + self.downsample(x))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def run() -> dict[str, nk.injection.Coverage]:
    """The accounts of the five networks."""
    torch.manual_seed(0)
    tokens, images = torch.randint(50, (2, 8)), torch.randn(2, 3, 16, 16)
    accounts = {}
    for model, x in ((GPT2(), tokens), (Llama(), tokens), (ViT(), images), (Tagger(), tokens), (ResNet(), images)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the account says what the warning would
            nk.inject(model.eval(), nk.Noise(add=0.1), hardware=[nk.WeightNoise(add=0.01)], example_input=x)
        accounts[type(model).__name__] = nk.coverage(model, x)
    return accounts


def main() -> None:
    """Prints the accounts."""
    for name, account in run().items():
        print(f"{name}: {account}\n")


if __name__ == "__main__":
    main()

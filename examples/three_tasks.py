"""How much noise a regressor, a network for segmentation and an encoder can stand: three measures, three questions.

All three learn from scikit-learn's 8 x 8 digits: the lower half of a digit from its upper half (walked by the relative
error in dB), which digit each pixel of a canvas of four belongs to (mean IoU), and the digit from its eight rows as
tokens (accuracy). Prints each table and draws each picture. Some 45 CPU seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import noisykernels as nk
from noisykernels.datasets import load
from noisykernels.plotting import plot_blocks, plot_study

CLASSES = 10
SITES = [f"blocks.*.{name}:linear*" for name in ("q", "k", "v", "o", "gate", "up", "down")]
CANVAS, TILE = 2, 12  # digits to a side, pixels to a digit


class UNet(nn.Module):
    """One step down and up again, with a way across: scores [rows, classes and background, height, width]."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.enter = _step(1, width)
        self.down = _step(width, 2 * width, stride=2)
        self.deep = _step(2 * width, 2 * width)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.leave = _step(2 * width, width)
        self.head = nn.Conv2d(width, CLASSES + 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of images [rows, 1, height, width]."""
        across = self.enter(x)
        risen = self.up(self.deep(self.down(across)))
        return self.head(self.leave(torch.cat([across, risen], 1)))


def _step(channels: int, out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, 3, stride, padding=1), nn.BatchNorm2d(out), nn.ReLU())


class Block(nn.Module):
    """Attention and a gated product, each beside a residual stream."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.between = nn.RMSNorm(width), nn.RMSNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.gate, self.up = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """The stream [rows, tokens, width], and what this block adds."""
        h = self.before(x)
        q, k, v = (part(h).unflatten(-1, (2, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        x = x + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        h = self.between(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Encoder(nn.Module):
    """Rows of an image as tokens, each with a place of its own."""

    def __init__(self, width: int = 32, blocks: int = 4) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(8, width), nn.Parameter(torch.zeros(8, width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Scores [rows, classes] of images [rows, 1, 8, 8]."""
        x = self.embed(x.flatten(1, 2)) + self.place
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


def fitted(model: nn.Module, x: Tensor, y: Tensor, loss: Callable[[Tensor, Tensor], Tensor], epochs: int) -> nn.Module:
    """Trained by AdamW in batches of 32, the rate falling to nothing."""
    steps = epochs * (len(x) // 32)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(x))[: len(x) // 32 * 32].view(-1, 32):
            optimizer.zero_grad()
            loss(model(x[rows]), y[rows]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """Upper and lower half of each digit."""
    upper, lower = x.flatten(1).chunk(2, 1)
    return upper.clone(), lower.clone()


def canvases(x: Tensor, y: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Digits at a random place of each quarter, and the class of each pixel: 0 is the background."""
    side = CANVAS * TILE
    images, classes = torch.zeros(count, 1, side, side), torch.zeros(count, side, side, dtype=torch.long)
    for i in range(count):
        for j in range(CANVAS**2):
            which = int(torch.randint(len(x), ()))
            down, right = (TILE * at + int(torch.randint(TILE - 7, ())) for at in divmod(j, CANVAS))
            at = slice(down, down + 8), slice(right, right + 8)
            images[i, 0][at] = x[which, 0]
            classes[i][at] = torch.where(x[which, 0] > 0.25, y[which] + 1, 0)
    return images, classes


Digits = tuple[Tensor, Tensor]
GRID = dict(levels=torch.logspace(-2, 2, 13).tolist(), draws=3, seed=1)


def regressor(train: Digits, test: Digits, epochs: int) -> nk.Study:
    """Where has the error grown by 3 dB?"""
    mlp = nn.Sequential(nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 32))
    return nk.walk(
        fitted(mlp, *halves(train[0]), F.mse_loss, epochs), halves(test[0]), noise=nk.Noise(add=1.0), **GRID,
        metric=nk.metrics.RelativeMSE(decibels=True), at=nk.Drop(3), description=("MLP", "digits, lower half"),
    )  # fmt: skip


def segmentation(train: Digits, test: Digits, epochs: int) -> nk.Study:
    """Where is a mean IoU of 0.05 lost?"""
    unet = fitted(UNet(), *canvases(*train, len(train[0]) // 2), F.cross_entropy, epochs // 2)
    return nk.walk(
        unet, canvases(*test, min(50, len(test[0]))), noise=nk.Noise(add=1.0), **GRID,
        metric="mean_iou", at=nk.Drop(0.05), description=("U-Net", "canvases of digits"),
    )  # fmt: skip


def encoder(train: Digits, test: Digits, epochs: int) -> nk.Study:
    """At which share of its rms does noise at a projection take 0.05 of the accuracy?"""
    return nk.walk(
        fitted(Encoder(), *train, F.cross_entropy, epochs // 2), test, noise=nk.Noise(add=1.0, relative="rms"), **GRID,
        at=nk.Drop(0.05), sites=SITES, description=("encoder", "digits, rows"),
    )  # fmt: skip


def run(out: Path, tasks: Sequence[Callable[..., nk.Study]], epochs: int = 60) -> list[nk.Study]:
    """The studies of these tasks; their pictures go to a folder."""
    import matplotlib

    matplotlib.use("Agg")
    torch.manual_seed(0)
    train, test = load("digits", "train"), load("digits", "test")
    out.mkdir(parents=True, exist_ok=True)
    studies = []
    for task in tasks:
        studies.append(study := task(train, test, epochs))
        picture = out / f"task_{task.__name__}.png"
        figure = plot_blocks(study).figure if task is encoder else plot_study(study)
        figure.savefig(picture, dpi=100, bbox_inches="tight")
        print(f"{task.__name__}\n{study.table()}\npicture: {picture}\n")
    return studies


if __name__ == "__main__":
    run(Path("results"), (regressor, segmentation, encoder))

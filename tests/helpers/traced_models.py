"""Models that the engine that shares work records, one that it cannot, and a noise of each mode."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import noisykernels as nk
from noisykernels.zoo import MLP, LeNet5

NOISES = {
    "add": nk.Noise(add=0.5),
    "mul": nk.Noise(mul=0.5),
    "mixed": nk.Noise(add=0.3, mul=0.2),
    "add_mul": nk.Noise(add=0.3, mul=0.2, order="add_mul"),
    "fold": nk.Noise(add=0.3, mul=0.2, fold=True),
    "uniform": nk.Noise(add=0.3, mul=0.2, kind="uniform"),
}


class Residual(nn.Module):
    """Skip connections, writing in place, a shared activation, pooling and concatenation by functions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(x))
        y += x
        y = torch.cat([self.relu(y), 0.5 * x - 1.0], 1)
        y = F.max_pool2d(F.avg_pool2d(y, 2), 2)
        return self.head(y.mean((2, 3)).view(y.size(0), -1))


class Wide(nn.Module):
    """Channels enough for values that are held channels_last, and for Winograd's form; sums whose other term is known
    before the convolution, or only after it, or broadcast; views; pools of each kind.
    """

    def __init__(self, width: int = 16, wider: int = 128) -> None:
        super().__init__()
        self.stem, self.norm0 = nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, wider, 3, padding="same"), nn.BatchNorm2d(wider)
        self.skip, self.norm3 = nn.Conv2d(width, wider, 1), nn.BatchNorm2d(wider)
        self.conv3, self.conv4 = nn.Conv2d(wider, wider, 3, 1, 1), nn.Conv2d(wider, wider, 3, padding=1)
        self.drop, self.head = nn.Dropout2d(), nn.Linear(4 * wider, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm0(self.stem(x)))
        x = F.relu(x + self.drop(self.norm1(self.conv1(x))))
        x = F.relu(self.norm2(self.conv2(x)) + self.norm3(self.skip(x)))
        x = F.max_pool2d(F.relu(self.conv3(x)), 3, 2, 1)
        x = self.conv4(x) + x.mean((2, 3), keepdim=True)
        x = F.max_pool2d(F.relu(x), 2)
        return self.head(x.contiguous().view(x.size(0), -1))


class Encoder(nn.Module):
    """A transformer layer, whose attention is one operation with several sites."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(6, 16), nn.Linear(16, 4)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(x)).mean(1))


class Folded(nn.Module):
    """Folds the sequence into the rows and back."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(30, 4)

    def forward(self, x: Tensor) -> Tensor:
        rows, length, _ = x.shape
        y = torch.tanh(self.a(x.reshape(rows * length, -1)))
        return self.b(y.view(rows, -1))


class Recurrent(nn.Module):
    """A layer whose output is in its state as well."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class Transposed(nn.Module):
    """Rows along dimension 1 for a while."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(30, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.a(x.transpose(0, 1)))
        return self.b(y.transpose(0, 1).flatten(1))


class Differences(nn.Module):
    """Values that are subtracted, from either side."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y, z = self.a(x), 2 * self.b(x)
        return self.head(torch.tanh((z - y) + (1.0 - y) / 3))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "lenet": (lambda: LeNet5(norm=True), (1, 28, 28)),
    "mlp": (lambda: MLP(12, 4, width=8, norm=True), (12,)),
    "residual": (Residual, (3, 8, 8)),
    "wide": (Wide, (3, 7, 8)),
    "encoder": (Encoder, (5, 6)),
    "folded": (Folded, (5, 6)),
    "recurrent": (Recurrent, (5, 6)),
    "transposed": (Transposed, (5, 6)),
    "differences": (Differences, (6,)),
    "noisy layers": (
        lambda: nn.Sequential(nk.NoisyLinear(6, 5, noise=nk.Noise(add=9.0)), nn.ReLU(), nn.Linear(5, 3)),
        (6,),
    ),
}


def living_norms(model: nn.Module) -> None:
    """Norms that do something: random statistics and parameters."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)


def made(name: str, rows: int) -> tuple[nn.Module, Tensor]:
    """A model with norms that do something, and data."""
    torch.manual_seed(0)
    build, shape = MODELS[name]
    model = build().eval()
    living_norms(model)
    return model, torch.randn(rows, *shape)


class Random(nn.Module):
    """Draws by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return x.relu() + torch.rand(3)

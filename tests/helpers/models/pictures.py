"""Networks that give more than a class: U-Net, FCN, SSD's head, YOLO's, autoencoders and an implicit decoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.inputs import Made, images

__all__ = ["PICTURES"]


class DoubleConv(nn.Module):
    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(inner, outer, 3, padding=1, bias=False), nn.BatchNorm2d(outer), nn.ReLU(inplace=True),
            nn.Conv2d(outer, outer, 3, padding=1, bias=False), nn.BatchNorm2d(outer), nn.ReLU(inplace=True),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class UNet(nn.Module):
    """Skips are padded to the size of what is joined to them."""

    def __init__(self) -> None:
        super().__init__()
        self.inc, self.down1, self.down2 = DoubleConv(3, 4), DoubleConv(4, 8), DoubleConv(8, 8)
        self.up1, self.conv1 = nn.ConvTranspose2d(8, 8, 2, stride=2), DoubleConv(16, 8)
        self.up2, self.conv2 = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), DoubleConv(12, 4)
        self.outc = nn.Conv2d(4, 3, 1)

    @staticmethod
    def joined(x: Tensor, skip: Tensor) -> Tensor:
        dy, dx = skip.size()[2] - x.size()[2], skip.size()[3] - x.size()[3]
        x = F.pad(x, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])
        return torch.cat([skip, x], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.inc(x)
        x2 = self.down1(F.max_pool2d(x1, 2))
        x3 = self.down2(F.max_pool2d(x2, 2))
        x = self.conv1(self.joined(self.up1(x3), x2))
        return self.outc(self.conv2(self.joined(self.up2(x), x1)))


class FCN(nn.Module):
    """torchvision's way: a result in a dictionary, brought to the input's size."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=2, dilation=2))
        self.classifier = nn.Sequential(
            nn.Conv2d(8, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.1), nn.Conv2d(4, 3, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        input_shape = x.shape[-2:]
        result = {"out": self.backbone(x)}
        result["out"] = F.interpolate(
            self.classifier(result["out"]), size=input_shape, mode="bilinear", align_corners=False
        )
        return result["out"]


class ASPP(nn.Module):
    """DeepLab's: dilations side by side, and the mean of the whole picture."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, 2, 1)
        self.convs = nn.ModuleList(nn.Conv2d(6, 4, 3, padding=r, dilation=r) for r in (1, 2, 3))
        self.pool, self.project, self.out = nn.Conv2d(6, 4, 1), nn.Conv2d(16, 6, 1), nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        size, x = x.shape[-2:], F.relu(self.stem(x))
        found = [F.relu(conv(x)) for conv in self.convs]
        mean = F.relu(self.pool(F.adaptive_avg_pool2d(x, 1)))
        found.append(F.interpolate(mean, size=x.shape[-2:], mode="bilinear", align_corners=False))
        return F.interpolate(self.out(F.relu(self.project(torch.cat(found, dim=1)))), size)


class SSD(nn.Module):
    """Class scores of all anchors of two maps, as torchvision's heads lay them out, and boxes beside them."""

    def __init__(self, anchors: int = 2, classes: int = 3) -> None:
        super().__init__()
        self.classes = classes
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(inplace=True))
        self.extra = nn.Sequential(nn.Conv2d(6, 6, 3, 2, 1), nn.ReLU(inplace=True))
        self.scale_weight = nn.Parameter(torch.ones(6) * 3)
        self.scores = nn.ModuleList(nn.Conv2d(6, anchors * classes, 3, padding=1) for _ in range(2))
        self.boxes = nn.ModuleList(nn.Conv2d(6, anchors * 4, 3, padding=1) for _ in range(2))

    def gathered(self, heads: nn.ModuleList, maps: list[Tensor], columns: int) -> Tensor:
        found = []
        for i, features in enumerate(maps):
            results = heads[i](features)
            rows, _, height, width = results.shape
            results = results.view(rows, -1, columns, height, width).permute(0, 3, 4, 1, 2)
            found.append(results.reshape(rows, -1, columns))
        return torch.cat(found, dim=1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.features(x)
        scaled = self.scale_weight.view(1, -1, 1, 1) * F.normalize(first)
        maps = [scaled, self.extra(first)]
        scores, boxes = self.gathered(self.scores, maps, self.classes), self.gathered(self.boxes, maps, 4)
        return torch.cat([F.softmax(scores, dim=-1), torch.clamp(boxes, max=2.0)], dim=-1)


class Yolo(nn.Module):
    """Boxes decoded with a grid of cells that is kept from the last forward."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.m = nn.Conv2d(3, 6, 3, 4, 1), nn.Conv2d(6, 2 * 7, 1)
        self.register_buffer("anchors", torch.tensor([[1.0, 2.0], [2.0, 1.0]]))
        self.grid: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = self.m(F.silu(self.stem(x)))
        rows, _, ny, nx = x.shape
        x = x.view(rows, 2, 7, ny, nx).permute(0, 1, 3, 4, 2).contiguous()
        if self.grid is None or self.grid.shape[2:4] != x.shape[2:4]:
            yv, xv = torch.meshgrid(torch.arange(ny), torch.arange(nx), indexing="ij")
            self.grid = torch.stack((xv, yv), 2).expand((1, 2, ny, nx, 2)).float() - 0.5
        xy, wh, conf = x.sigmoid().split((2, 2, 3), 4)
        xy = (xy * 2 + self.grid) * 4
        wh = (wh * 2) ** 2 * self.anchors.view(1, 2, 1, 1, 2)
        return torch.cat((xy, wh, conf), 4).view(rows, 2 * nx * ny, 7)


class Autoencoder(nn.Module):
    """Down to a vector and back to the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 4, 3, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(4, 8, 3, 2, 1), nn.Flatten(), nn.Linear(32, 6)
        )
        self.decoder = nn.Sequential(
            nn.Linear(6, 32), nn.ReLU(), nn.Unflatten(1, (8, 2, 2)), nn.ConvTranspose2d(8, 4, 4, 2, 1), nn.ReLU(),
            nn.ConvTranspose2d(4, 3, 4, 2, 1), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


class VQVAE(nn.Module):
    """The nearest of a book of codes for every place, by distances written out, with the straight-through sum."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Conv2d(3, 4, 4, 2, 1), nn.ConvTranspose2d(4, 3, 4, 2, 1)
        self.codebook = nn.Embedding(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        z = self.encoder(x).permute(0, 2, 3, 1).contiguous()
        flat = z.view(-1, 4)
        weight = self.codebook.weight
        d = torch.sum(flat**2, dim=1, keepdim=True) + torch.sum(weight**2, dim=1) - 2 * torch.matmul(flat, weight.t())
        nearest = torch.argmin(d, dim=1).unsqueeze(1)
        one_hot = torch.zeros(nearest.shape[0], 8, device=z.device)
        one_hot.scatter_(1, nearest, 1)
        quantized = torch.matmul(one_hot, weight).view(z.shape)
        quantized = z + (quantized - z).detach()
        return self.decoder(quantized.permute(0, 3, 1, 2).contiguous())


class SuperResolution(nn.Module):
    """ESPCN: channels become pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.up = (
            nn.Conv2d(3, 6, 5, padding=2),
            nn.Conv2d(6, 12, 3, padding=1),
            nn.PixelShuffle(2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.conv2(torch.tanh(self.conv1(x)))).clamp(0.0, 1.0)


class StyleModulated(nn.Module):
    """Weights that are made for every row, run as groups of one convolution (StyleGAN 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.style, self.weight, self.out = nn.Linear(3, 4), nn.Parameter(torch.randn(6, 4, 3, 3)), nn.Conv2d(6, 3, 1)
        self.stem = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        style, x = self.style(x.mean((2, 3))), self.stem(x)
        rows, channels, height, width = x.shape
        weight = self.weight[None] * (style[:, None, :, None, None] + 1)
        weight = weight * torch.rsqrt(weight.pow(2).sum([2, 3, 4], keepdim=True) + 1e-8)
        x = x.reshape(1, rows * channels, height, width)
        x = F.conv2d(x, weight.reshape(rows * 6, channels, 3, 3), padding=1, groups=rows)
        return self.out(F.leaky_relu(x.reshape(rows, 6, height, width), 0.2))


PICTURES = {
    "U-Net": Made(UNet, images(10)),
    "FCN": Made(FCN, images(8)),
    "DeepLab (ASPP)": Made(ASPP, images(8)),
    "SSD": Made(SSD, images(8)),
    "YOLO": Made(Yolo, images(8)),
    "autoencoder": Made(Autoencoder, images(8)),
    "VQ-VAE": Made(VQVAE, images(8)),
    "ESPCN": Made(SuperResolution, images(6)),
    "StyleGAN 2's layer": Made(StyleModulated, images(6)),
}

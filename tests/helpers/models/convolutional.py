"""Convolutional classifiers as torchvision and timm lay them out: ResNet-18, DenseNet, RegNet, RepVGG, ConvNeXt,
NF-ResNet, EfficientNet, MobileNetV3, ShuffleNetV2, SqueezeNet, GhostNet and Inception."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.inputs import Made, images

__all__ = ["CONVOLUTIONAL"]


class BasicBlock(nn.Module):
    def __init__(self, inplanes: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn1, self.bn2, self.relu = nn.BatchNorm2d(planes), nn.BatchNorm2d(planes), nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inplanes != planes:
            self.downsample = nn.Sequential(nn.Conv2d(inplanes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ResNet18(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = nn.Conv2d(3, 4, 7, 2, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.maxpool, widths = nn.MaxPool2d(3, 2, 1), (4, 4, 8, 12, 16)
        self.layers = nn.Sequential(*(
            nn.Sequential(BasicBlock(a, b, 1 if i == 0 else 2), BasicBlock(b, b))
            for i, (a, b) in enumerate(itertools.pairwise(widths))
        ))  # fmt: skip
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d((1, 1)), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(self.maxpool(self.relu(self.bn1(self.conv1(x)))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class DenseLayer(nn.Module):
    """Takes a list of features, as torchvision does."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.relu1 = nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(channels, 2 * growth, 1, bias=False)
        self.norm2, self.relu2 = nn.BatchNorm2d(2 * growth), nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        joined = torch.cat(features, 1)
        return self.conv2(self.relu2(self.norm2(self.conv1(self.relu1(self.norm1(joined))))))


class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = (
            nn.Conv2d(3, 4, 3, 1, 1, bias=False),
            nn.ModuleList(DenseLayer(4 + 4 * i, 4) for i in range(3)),
        )
        self.transition = nn.Sequential(
            nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.Conv2d(16, 8, 1), nn.AvgPool2d(2, 2)
        )
        self.second, self.norm5 = nn.ModuleList(DenseLayer(8 + 4 * i, 4) for i in range(2)), nn.BatchNorm2d(16)
        self.classifier = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.first:
            features.append(layer(features))
        features = [self.transition(torch.cat(features, 1))]
        for layer in self.second:
            features.append(layer(features))
        out = F.relu(self.norm5(torch.cat(features, 1)), inplace=True)
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(out, (1, 1)), 1))


class SqueezeExcite(nn.Module):
    """Squeeze and excitation, with the gate that is asked for."""

    def __init__(self, channels: int, squeezed: int, gate: type[nn.Module] = nn.Sigmoid) -> None:
        super().__init__()
        self.avgpool, self.fc1, self.fc2 = (
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, squeezed, 1),
            nn.Conv2d(squeezed, channels, 1),
        )
        self.activation, self.scale_activation = nn.ReLU(), gate()

    def forward(self, x: Tensor) -> Tensor:
        scale = self.scale_activation(self.fc2(self.activation(self.fc1(self.avgpool(x)))))
        return scale * x


class RegNet(nn.Module):
    """Group convolutions and squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.a, self.b, self.c = (
            nn.Conv2d(8, 8, 1, bias=False),
            nn.Conv2d(8, 8, 3, 1, 1, groups=2, bias=False),
            nn.Conv2d(8, 8, 1),
        )
        self.norm1, self.norm2, self.norm3 = (nn.BatchNorm2d(8) for _ in range(3))
        self.se, self.activation, self.fc = SqueezeExcite(8, 2), nn.ReLU(inplace=True), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.activation(self.norm2(self.b(self.activation(self.norm1(self.a(x))))))
        x = self.activation(x + self.norm3(self.c(self.se(y))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(start_dim=1))


class RepVGG(nn.Module):
    """Three branches that training keeps apart."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, 2, 1)
        self.dense, self.point = nn.Conv2d(6, 6, 3, 1, 1, bias=False), nn.Conv2d(6, 6, 1, bias=False)
        self.identity, self.bn1, self.bn2 = nn.BatchNorm2d(6), nn.BatchNorm2d(6), nn.BatchNorm2d(6)
        self.linear = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.bn1(self.dense(x)) + self.bn2(self.point(x)) + self.identity(x))
        return self.linear(F.avg_pool2d(x, x.shape[-1]).view(x.size(0), -1))


class LayerNorm2d(nn.LayerNorm):
    """timm's: channels last for the norm."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class GlobalResponseNorm(nn.Module):
    """ConvNeXt V2's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(width)), nn.Parameter(torch.rand(width))

    def forward(self, x: Tensor) -> Tensor:
        size = x.norm(p=2, dim=(1, 2), keepdim=True)
        relative = size / (size.mean(dim=-1, keepdim=True) + 1e-6)
        return x + torch.addcmul(self.bias.view(1, 1, 1, -1), self.weight.view(1, 1, 1, -1), x * relative)


class ConvNeXt(nn.Module):
    def __init__(self, version: int) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 8, 2, 2), LayerNorm2d(8, eps=1e-6)
        self.conv_dw, self.norm = nn.Conv2d(8, 8, 7, padding=3, groups=8), nn.LayerNorm(8, eps=1e-6)
        self.fc1, self.fc2, self.gamma = nn.Linear(8, 16), nn.Linear(16, 8), nn.Parameter(torch.rand(8))
        self.grn = GlobalResponseNorm(16) if version == 2 else nn.Identity()
        self.head_norm, self.fc = LayerNorm2d(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x = self.stem_norm(self.stem(x))
        x = self.norm(self.conv_dw(x).permute(0, 2, 3, 1))
        x = self.fc2(self.grn(F.gelu(self.fc1(x)))).permute(0, 3, 1, 2)
        x = x.mul(self.gamma.reshape(1, -1, 1, 1)) + shortcut
        return self.fc(self.head_norm(F.adaptive_avg_pool2d(x, 1)).flatten(1))


class ScaledStdConv2d(nn.Conv2d):
    """NF-ResNet's: the weight is standardised in every forward, by a batch norm of its own."""

    def __init__(self, inner: int, outer: int, size: int) -> None:
        super().__init__(inner, outer, size, padding=size // 2)
        self.gain, self.scale = nn.Parameter(torch.rand(outer, 1, 1, 1) + 0.5), self.weight[0].numel() ** -0.5

    def forward(self, x: Tensor) -> Tensor:
        gain = (self.gain * self.scale).view(-1)
        weight = F.batch_norm(
            self.weight.reshape(1, self.out_channels, -1),
            None,
            None,
            weight=gain,
            training=True,
            momentum=0.0,
            eps=1e-6,
        ).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class NFResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv1, self.conv2 = ScaledStdConv2d(3, 6, 3), ScaledStdConv2d(6, 6, 3), ScaledStdConv2d(6, 6, 1)
        self.skipinit_gain, self.fc = nn.Parameter(torch.tensor(0.7)), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.stem(x)) * 1.7881
        out = self.conv2(F.silu(self.conv1(x * 0.98)) * 1.7881)
        out.mul_(self.skipinit_gain)
        return self.fc((out * 0.2 + x).mean((2, 3)))


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, squeeze and excitation, projection."""

    def __init__(self, width: int, act: type[nn.Module], gate: type[nn.Module]) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(width, 2 * width, 1, bias=False), nn.BatchNorm2d(2 * width, eps=0.001), act(inplace=True),
            nn.Conv2d(2 * width, 2 * width, 3, 1, 1, groups=2 * width, bias=False), nn.BatchNorm2d(2 * width),
            act(inplace=True), SqueezeExcite(2 * width, 2, gate),
            nn.Conv2d(2 * width, width, 1, bias=False), nn.BatchNorm2d(width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        result = self.block(x)
        result += x
        return result


class EfficientNet(nn.Module):
    """Or MobileNetV3, by other activations."""

    def __init__(self, act: type[nn.Module], gate: type[nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6), act(inplace=True))
        self.features = nn.Sequential(InvertedResidual(6, act, gate), InvertedResidual(6, act, gate))
        self.avgpool, self.classifier = (
            nn.AdaptiveAvgPool2d(1),
            nn.Sequential(nn.Dropout(0.2, inplace=True), nn.Linear(6, 5)),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.features(self.stem(x)))
        return self.classifier(torch.flatten(x, 1))


class ShuffleNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.branch2 = nn.Sequential(
            nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
            nn.Conv2d(4, 4, 3, 1, 1, groups=4, bias=False), nn.BatchNorm2d(4),
        )  # fmt: skip
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = self.conv1(x).chunk(2, dim=1)
        out = torch.cat((x1, self.branch2(x2)), dim=1)
        rows, channels, height, width = out.size()
        out = torch.transpose(out.view(rows, 2, channels // 2, height, width), 1, 2).contiguous()
        return self.fc(out.view(rows, channels, height, width).mean([2, 3]))


class SqueezeNet(nn.Module):
    """Two expansions side by side; the last convolution is the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.squeeze = nn.Conv2d(3, 6, 3, stride=2), nn.Conv2d(6, 3, 1)
        self.expand1x1, self.expand3x3, self.final = (
            nn.Conv2d(3, 4, 1),
            nn.Conv2d(3, 4, 3, padding=1),
            nn.Conv2d(8, 5, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.stem(x), inplace=True), 3, 2, ceil_mode=True)
        x = F.relu(self.squeeze(x), inplace=True)
        x = torch.cat([F.relu(self.expand1x1(x), inplace=True), F.relu(self.expand3x3(x), inplace=True)], 1)
        return torch.flatten(F.adaptive_avg_pool2d(F.relu(self.final(x), inplace=True), (1, 1)), 1)


class GhostNet(nn.Module):
    """Half of the features by a cheap operation on the others, cut to size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, 2, 1, bias=False)
        self.primary, self.cheap = nn.Conv2d(6, 4, 1, bias=False), nn.Conv2d(4, 4, 3, 1, 1, groups=4, bias=False)
        self.bn, self.fc = nn.BatchNorm2d(7), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x1 = F.relu(self.primary(F.relu(self.stem(x))), inplace=True)
        out = torch.cat([x1, F.relu(self.cheap(x1))], dim=1)[:, :7, :, :]
        return self.fc(F.hardsigmoid(self.bn(out)).mean((2, 3)).view(x.size(0), -1))


class Inception(nn.Module):
    """Branches side by side, one of a pool; the input is normalised channel by channel, as torchvision's does."""

    def __init__(self) -> None:
        super().__init__()
        self.b1, self.b2, self.b3, self.pool = (
            nn.Conv2d(3, 4, 1),
            nn.Conv2d(3, 4, 3, padding=1),
            nn.Conv2d(3, 4, (1, 5), padding=(0, 2)),
            nn.Conv2d(3, 2, 1),
        )
        self.bn, self.fc = nn.BatchNorm2d(14, eps=0.001), nn.Linear(14, 5)

    def forward(self, x: Tensor) -> Tensor:
        channels = [
            torch.unsqueeze(x[:, i], 1) * (s / 0.5) + (m - 0.5) / 0.5
            for i, (s, m) in enumerate(((0.229, 0.485), (0.224, 0.456), (0.225, 0.406)))
        ]
        x = torch.cat(channels, 1)
        pooled = self.pool(F.avg_pool2d(x, kernel_size=3, stride=1, padding=1))
        x = F.relu(self.bn(torch.cat([self.b1(x), self.b2(x), self.b3(x), pooled], 1)), inplace=True)
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(F.max_pool2d(x, 3, stride=2), (1, 1)), 1))


CONVOLUTIONAL = {
    "ResNet-18": Made(ResNet18, images(32)),
    "DenseNet": Made(DenseNet, images(8)),
    "RegNet": Made(RegNet, images(8)),
    "RepVGG": Made(RepVGG, images(8)),
    "ConvNeXt": Made(lambda: ConvNeXt(1), images(8)),
    "ConvNeXt V2": Made(lambda: ConvNeXt(2), images(8)),
    "NF-ResNet": Made(NFResNet, images(8)),
    "EfficientNet": Made(lambda: EfficientNet(nn.SiLU, nn.Sigmoid), images(8)),
    "MobileNetV3": Made(lambda: EfficientNet(nn.Hardswish, nn.Hardsigmoid), images(8)),
    "ShuffleNetV2": Made(ShuffleNet, images(8)),
    "SqueezeNet": Made(SqueezeNet, images(12)),
    "GhostNet": Made(GhostNet, images(8)),
    "Inception": Made(Inception, images(8)),
}

"""Models of torchvision: classifiers, segmentation, detection and video, of images as small as they take."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from models.inputs import Made, images, seeded

__all__ = ["TORCHVISION"]


def _of(
    name: str,
    size: int = 32,
    output: str | None = None,
    then: Callable[[nn.Module], nn.Module] | None = None,
    **how: Any,
) -> Made:
    """A model of its registry, or of a family at a size of its own."""

    def build() -> nn.Module:
        models = importlib.import_module("torchvision.models")
        if hasattr(models, name):
            made = getattr(models, name)(num_classes=10, **how)
        else:
            made = models.get_model(name, weights=None, num_classes=10, **how)
        return then(made) if then else made

    return Made(build, images(size), output=output, package="torchvision")


def _clips(rows: int) -> Tensor:
    return torch.randn(rows, 3, 4, 16, 16, generator=seeded())


class Heads(nn.Module):
    """A detector's features and heads for images of one size: what it measures before boxes are chosen, which no
    measure of rows has a use for."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.backbone = detector.backbone
        self.head = detector.rpn.head if hasattr(detector, "rpn") else detector.head

    def forward(self, images: Tensor) -> Tensor:
        features = self.backbone(images)
        found = self.head(list(features.values()))
        several = (
            found.values() if isinstance(found, dict) else [torch.cat([t.flatten(1) for t in ts], 1) for ts in found]
        )
        return torch.cat([t.flatten(1) for t in several], 1)


def _small_head(vgg: nn.Module) -> nn.Module:
    """Without the 120 million weights of its dense layers."""
    vgg.avgpool, vgg.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(512, 10)
    return vgg


def _blocks() -> Any:
    """Of a small ConvNeXt."""
    block = importlib.import_module("torchvision.models.convnext").CNBlockConfig
    return [block(8, 16, 1), block(16, 24, 2), block(24, None, 1)]


def _convnext() -> nn.Module:
    return importlib.import_module("torchvision.models").ConvNeXt(_blocks(), layer_scale=1.0, num_classes=10)


NO_BACKBONE = dict(weights_backbone=None)
TORCHVISION = {
    "AlexNet": _of("alexnet", 64),
    "VGG-11": _of("vgg11_bn", then=_small_head),
    "ResNet-18": _of("resnet18"),
    "ResNet-50": _of("resnet50"),
    "ResNeXt-50": _of("resnext50_32x4d"),
    "Wide ResNet-50": _of("wide_resnet50_2"),
    "DenseNet": _of("DenseNet", growth_rate=8, block_config=(2, 3, 2, 2), num_init_features=16),
    "MobileNetV2": _of("MobileNetV2", width_mult=0.25),
    "MobileNetV3": _of("mobilenet_v3_small"),
    "ShuffleNetV2": _of("shufflenet_v2_x0_5"),
    "SqueezeNet": _of("squeezenet1_1"),
    "MNASNet": _of("mnasnet0_5"),
    "EfficientNet-B0": _of("efficientnet_b0"),
    "ConvNeXt": Made(_convnext, images(32), package="torchvision"),
    "RegNet": _of("regnet_y_400mf"),
    "ViT": _of("VisionTransformer", image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=24, mlp_dim=48),
    "Swin": _of(
        "SwinTransformer", patch_size=[2, 2], embed_dim=12, depths=[2, 2], num_heads=[2, 4], window_size=[4, 4]
    ),
    "Swin V2": _of("swin_v2_t", 64),
    "MaxViT": _of(
        "MaxVit", input_size=(32, 32), stem_channels=8, partition_size=4, block_channels=[8, 16], block_layers=[1, 1],
        head_dim=4, stochastic_depth_prob=0.0,
    ),
    "GoogLeNet": _of("googlenet", init_weights=False),
    "Inception V3": _of("inception_v3", 80, init_weights=False),
    "FCN": _of("fcn_resnet50", output="out", aux_loss=True, **NO_BACKBONE),
    "DeepLab V3": _of("deeplabv3_mobilenet_v3_large", output="out", **NO_BACKBONE),
    "LR-ASPP": _of("lraspp_mobilenet_v3_large", output="out", **NO_BACKBONE),
    "Faster R-CNN's heads": _of("fasterrcnn_mobilenet_v3_large_320_fpn", 64, then=Heads, **NO_BACKBONE),
    "RetinaNet's heads": _of("retinanet_resnet50_fpn", then=Heads, **NO_BACKBONE),
    "FCOS's heads": _of("fcos_resnet50_fpn", then=Heads, **NO_BACKBONE),
    "SSDLite's heads": _of("ssdlite320_mobilenet_v3_large", 64, then=Heads, **NO_BACKBONE),
    "R3D-18": Made(
        lambda: importlib.import_module("torchvision.models.video").r3d_18(num_classes=10), _clips,
        package="torchvision",
    ),
}  # fmt: skip

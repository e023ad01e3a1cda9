"""Models of timm, at small sizes."""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from models.inputs import Made, images

__all__ = ["TIMM"]


def _of(name: str, size: int = 32, **how: Any) -> Made:
    def build() -> nn.Module:
        return importlib.import_module("timm").create_model(name, num_classes=10, **how)

    return Made(build, images(size), package="timm")


def _mixer() -> nn.Module:
    """The registered sizes have all of their blocks."""
    mixer: nn.Module = importlib.import_module("timm.models.mlp_mixer").MlpMixer(
        num_classes=10, img_size=32, patch_size=8, num_blocks=2, embed_dim=24
    )
    return mixer


PATCHES = dict(img_size=32, patch_size=8, depth=2, embed_dim=24)
TIMM = {
    "ViT": _of("vit_tiny_patch16_224", num_heads=2, **PATCHES),
    "DeiT, distilled": _of("deit_tiny_distilled_patch16_224", num_heads=2, **PATCHES),
    "Swin": _of(
        "swin_tiny_patch4_window7_224", img_size=32, patch_size=2, window_size=4, embed_dim=12, depths=(2, 2),
        num_heads=(2, 4),
    ),
    "Swin V2": _of(
        "swinv2_tiny_window8_256", img_size=32, patch_size=2, window_size=4, embed_dim=12, depths=(2, 2),
        num_heads=(2, 4),
    ),
    "ConvNeXt": _of("convnext_atto", depths=(1, 1, 2, 1), dims=(8, 16, 24, 32)),
    "ConvNeXt V2": _of("convnextv2_atto", depths=(1, 1, 2, 1), dims=(8, 16, 24, 32)),
    "MLP-Mixer": Made(_mixer, images(32), package="timm"),
    "ResMLP": _of("resmlp_12_224", img_size=32, num_blocks=2, embed_dim=24),
    "EfficientNet-Lite0": _of("efficientnet_lite0"),
    "MobileNetV4": _of("mobilenetv4_conv_small"),
    "LeViT": _of("levit_128s", 224),
    "CoAtNet": _of("coatnet_nano_rw_224", 64, img_size=64, depths=(1, 1, 1, 1)),
    "CoaT": _of("coat_lite_tiny", 64, img_size=64),
    "PiT": _of(
        "pit_ti_224", img_size=32, patch_size=8, stride=4, base_dims=(8, 8, 8), depth=(1, 1, 1), heads=(1, 2, 4)
    ),
    "BEiT": _of("beit_base_patch16_224", num_heads=2, **PATCHES),
    "CaiT": _of("cait_xxs24_224", num_heads=2, **PATCHES),
    "XCiT": _of("xcit_nano_12_p8_224", img_size=32, depth=2, embed_dim=24, num_heads=2),
    "PoolFormer": _of("poolformer_s12", 64),
    "MobileViT": _of("mobilevit_xxs", 64),
    "MobileViT V2": _of("mobilevitv2_050", 64),
    "ResNeSt": _of("resnest14d"),
    "NF-ResNet": _of("nf_resnet26"),
    "NFNet": _of("nfnet_l0", 64),
    "HRNet": _of("hrnet_w18_small"),
    "EVA-02": _of("eva02_tiny_patch14_224", img_size=32, patch_size=8, depth=2, embed_dim=24, num_heads=2),
    "MaxViT": _of("maxvit_rmlp_pico_rw_256", 64, img_size=64),
    "CAFormer": _of("caformer_s18", 64),
    "GhostNet": _of("ghostnet_050"),
    "RepVGG": _of("repvgg_a0"),
    "RepViT": _of("repvit_m0_9"),
    "FastViT": _of("fastvit_t8", 64),
    "EdgeNeXt": _of("edgenext_xx_small", 64),
    "Res2Net": _of("res2net50_14w_8s"),
    "SENet (SKNet)": _of("skresnet18"),
    "DaViT": _of("davit_tiny", 64, depths=(1, 1, 1, 1), embed_dims=(8, 16, 24, 32), num_heads=(1, 2, 3, 4)),
    "TResNet": _of("tresnet_m"),
    "Twins": _of("twins_svt_small", 64, img_size=64),
    "VOLO": _of("volo_d1_224", 64, img_size=64),
    "Hiera": _of("hiera_tiny_224", 224),
    "TinyViT": _of("tiny_vit_5m_224", 64),
    "ViT with registers (DINOv2)": _of("vit_small_patch14_reg4_dinov2", num_heads=2, **PATCHES),
    "SigLIP's ViT": _of("vit_base_patch16_siglip_224", num_heads=2, **PATCHES),
}  # fmt: skip

"""Models of timm, torchvision and transformers: both engines reach every site and find the same, no product is without
noise unsaid, and the model is left as it was."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
from models import ORIGINALS
from models.walking import clean_products, idle_of, walked

pytestmark = pytest.mark.usefixtures("one_thread")

SAMPLE = {
    "timm": ("ViT", "Swin V2", "ConvNeXt V2", "MLP-Mixer", "BEiT", "CaiT", "XCiT", "EVA-02", "PiT"),
    "torchvision": ("AlexNet", "DenseNet", "MobileNetV2", "ConvNeXt", "ViT", "Swin", "MaxViT"),
    "transformers": (
        "BERT", "BERT, eager", "DistilBERT", "ALBERT", "DeBERTa V2", "ModernBERT", "GPT-2", "GPT-2, eager", "BLOOM",
        "Llama", "Llama, classifier", "Mistral", "Gemma 3", "Mixtral (experts)", "Mamba", "RWKV", "T5", "BART",
        "Whisper", "Swin", "CLIP, texts", "wav2vec 2", "SegFormer", "DETR",
    ),
}  # fmt: skip


def sampled() -> list[Any]:
    """All models of the packages that are installed; those that are not in the sample under `--full`."""
    found = []
    for package, sample in SAMPLE.items():
        if find_spec(package) is None:
            found.append(pytest.param(package, marks=pytest.mark.skip(reason=f"{package} is not installed")))
            continue
        names = [name for name, made in ORIGINALS.items() if made.package == package]
        found += [pytest.param(n, marks=[] if n.partition(": ")[2] in sample else [pytest.mark.full]) for n in names]
    return found


def test_the_sample_is_of_models_there_are() -> None:
    for package, sample in SAMPLE.items():
        assert {f"{package}: {name}" for name in sample} <= set(ORIGINALS)


@pytest.mark.parametrize("name", sampled())
def test_the_engines_find_the_same(name: str) -> None:
    found = walked(name, rows=5, most=6, levels=(1.0,), draws=(0,))
    assert not found.differing and not found.changed and not found.warned, found
    assert set(found.sites) - idle_of(name) == found.reached and found.moved, found


@pytest.mark.parametrize("name", sampled())
def test_every_product_has_noise_or_a_reason(name: str) -> None:
    share, why = clean_products(name)
    assert all(why.values()) and (share == 1 or why), why

"""Models of torchvision: both engines reach every site and find the same, no product is without noise unsaid, and the
model is left as it was."""

from __future__ import annotations

from typing import Any

import pytest
from models import ORIGINALS
from models.walking import clean_products, idle_of, walked

pytest.importorskip("torchvision")
pytestmark = pytest.mark.usefixtures("one_thread")

SAMPLE = (
    "AlexNet", "DenseNet", "MobileNetV2", "ConvNeXt", "ViT", "Swin", "MaxViT",
)  # fmt: skip


def sampled() -> list[Any]:
    """All of them; those that are not in the sample under `--full`."""
    names = [name for name, made in ORIGINALS.items() if made.package == "torchvision"]
    return [pytest.param(n, marks=[] if n.partition(": ")[2] in SAMPLE else [pytest.mark.full]) for n in names]


@pytest.mark.parametrize("name", sampled())
def test_the_engines_find_the_same(name: str) -> None:
    found = walked(name, rows=5, most=6, levels=(1.0,), draws=(0,))
    assert not found.differing and not found.changed and not found.warned, found
    assert set(found.sites) - idle_of(name) == found.reached and found.moved, found


@pytest.mark.parametrize("name", sampled())
def test_every_product_has_noise_or_a_reason(name: str) -> None:
    share, why = clean_products(name)
    assert all(why.values()) and (share == 1 or why), why

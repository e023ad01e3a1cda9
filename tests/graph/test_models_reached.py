"""Models that people use, as look-alikes: which sites the engine that shares work reaches, and that it finds there what
the plain engine finds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import MODELS
from models.walking import NOISES, reached, walked
from torch import Tensor, nn

from noisykernels._graph.recorder import record_tape
from noisykernels._graph.tape import NotTraceable
from noisykernels.injection import inject

pytestmark = pytest.mark.usefixtures("one_thread")

# Of each kind of thing that had to be understood, one; all others are walked under `--full`.
SAMPLE = (
    "GPT-2", "Mixtral (experts)", "Swin (torchvision)", "LSTM, both directions", "Mamba-2", "DGCNN", "NF-ResNet",
    "message passing (PyG's batch)", "Qwen 3", "Siamese", "StyleGAN 2's layer", "YOLO", "DeepFM",
)  # fmt: skip
ATTENDING = ("BERT", "GPT-NeoX", "Qwen 3", "Llama 4 (experts)", "ViT", "MobileViT", "nn.Transformer", "Perceiver")
# Models that are not reached, or not everywhere, and why.
WHOLE = {"GCN of nodes": "goes by the positions of rows"}


def sampled(names: Any = MODELS) -> list[Any]:
    return [pytest.param(n, marks=[] if n in SAMPLE else [pytest.mark.full]) for n in names]


@pytest.mark.parametrize("name", sampled())
def test_the_engines_find_the_same(name: str) -> None:
    found = walked(name, noise=NOISES[len(name) % 2])
    assert not found.differing, found
    if name in WHOLE:
        assert WHOLE[name] in " ".join(found.warned)
    else:
        assert set(found.sites) == found.reached and not found.warned, found
    assert 3 * found.moved > found.cells, "the noise does nothing"


@pytest.mark.parametrize("name", sampled(ATTENDING))
def test_the_engines_find_the_same_within_attention(name: str) -> None:
    found = walked(name, detail="attention", rows=6)
    assert not found.differing and set(found.sites) == found.reached and not found.warned, found


def test_nine_models_of_ten_are_reached_everywhere() -> None:
    missed = {}
    for name in MODELS:
        sites, why = reached(name)
        if why:
            missed[name] = why
            assert any(WHOLE[name] in reason for reason in why.values()), (name, why)
        assert len(sites) > 1
    assert set(missed) == set(WHOLE)
    assert len(missed) <= 0.1 * len(MODELS)


class Keeping(nn.Module):
    """Keeps what it makes in its first forward: a table of its own, or what that forward saw."""

    def __init__(self, of_input: bool) -> None:
        super().__init__()
        self.f, self.of_input = nn.Linear(4, 4), of_input
        self.kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.kept is None:
            self.kept = torch.tanh(self.f(x[:1])) if self.of_input else torch.arange(x.shape[1]).cos()
        return self.f(x) + self.kept


@pytest.mark.parametrize("of_input", [False, True])
def test_what_a_first_forward_keeps(of_input: bool) -> None:
    model, x = Keeping(of_input).eval(), torch.randn(6, 4)
    with inject(model, None, example_input=x[:2]) as injected, torch.inference_mode():
        if of_input:
            with pytest.raises(NotTraceable, match="it keeps a value of the forward before"):
                record_tape(injected, x)
        else:
            assert set(record_tape(injected, x).sites) == {"input", "f:linear#0"}

"""Recurrent layers, cells, embeddings on hardware: an array for all time steps, by torch's kernel or step by step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noisykernels as nk
from noisykernels.noise.contract import hashed_id

SEED = 7
LAYERS = {"lstm": nn.LSTM, "gru": nn.GRU, "tanh": nn.RNN, "relu": nn.RNN}


class Last(nn.Module):
    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        more = {"nonlinearity": kind} if kind in ("tanh", "relu") else {}
        self.rnn = LAYERS[kind](4, 5, batch_first=True, **more, **options)

    def forward(self, x: Tensor) -> Tensor:
        out, state = self.rnn(x)
        last = state[0] if isinstance(state, tuple) else state
        return torch.cat([out.flatten(1), last.transpose(0, 1).flatten(1)], 1)


def put(model: nn.Module, x: Any, draws: Any = None, rows: Any = None, **placed: Any) -> Tensor:
    placed = {"noise": None, "example_input": x} | placed
    with nk.inject(model, **placed), nk.noise_state(model, seed=SEED, draws=draws, rows=rows):
        return model(x).detach()


def noisy(name: str, weight: Tensor, draw: int, level: float) -> Tensor:
    drawn = nk.eps(weight.shape, seed=SEED, site=hashed_id(name), operand="weight", draw=draw)
    return weight.detach() + level * drawn


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}])
def test_weights_are_arrays_for_all_steps(kind: str, options: dict[str, Any]) -> None:
    model, x = Last(kind, **options), torch.randn(3, 6, 4)
    both = put(model, x, hardware=[nk.WeightNoise(add=0.2)], draws=[0, 5])
    for part, draw in zip(both.chunk(2), (0, 5), strict=True):
        other = Last(kind, **options)
        with torch.no_grad():
            for name, w in other.rnn.named_parameters():
                if name.startswith("weight"):
                    w.copy_(noisy(f"rnn:{name}#0", w, draw, 0.2))
        assert torch.allclose(part, other(x), atol=1e-5)
    # The same arrays where the steps run one by one.
    slow = put(model, x, hardware=[nk.WeightNoise(add=0.2), nk.hardware.ADC(24, 1e3)], draws=[0, 5])
    assert torch.allclose(slow, both, atol=1e-2)
    assert torch.allclose(put(model, x, arithmetic=nk.Serial()), model(x), atol=1e-5)


def test_projections_and_packed_sequences() -> None:
    model, x = Last("lstm", proj_size=3, num_layers=2), torch.randn(3, 6, 4)
    assert torch.allclose(put(model, x, arithmetic=nk.Serial()), model(x), atol=1e-5)
    assert not torch.allclose(put(model, x, hardware=[nk.WeightNoise(add=0.2)]), model(x), atol=1e-2)

    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(4, 5, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(nn.utils.rnn.pack_padded_sequence(x, [6, 5, 2, 1][: len(x)], batch_first=True))[1][0]

    packed = Packed()
    assert not torch.allclose(put(packed, x, hardware=[nk.WeightNoise(add=0.2)]), packed(x), atol=1e-2)
    with pytest.raises(RuntimeError, match="padded sequences"):
        put(packed, x, arithmetic=nk.Serial())


@pytest.mark.parametrize("device", [nk.MacNoise(per_product=0.2), nk.InputNoise(add=0.2)])
def test_fresh_noise_differs_from_step_to_step(device: Any) -> None:
    model, x = Last("tanh"), torch.ones(3, 6, 4)
    with torch.no_grad():
        model.rnn.weight_hh_l0.zero_()
    out = put(model, x, hardware=[device])[:, :30].view(3, 6, 5)
    assert not torch.allclose(out[:, 0], out[:, 1], atol=1e-3)
    whole = put(model, x, hardware=[device], rows=[4, 5, 6], draws=[1, 2])
    alone = put(model, x[:1], hardware=[device], rows=[5], draws=[2])
    assert torch.allclose(whole[4:5], alone, atol=1e-6)


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells_are_one_chip(cell: Any) -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.cell = cell(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            state = None
            for t in range(x.shape[1]):
                state = self.cell(x[:, t], state)
            return state[0] if isinstance(state, tuple) else state

    model, x = Loop(), torch.randn(3, 4, 4)
    got = put(model, x, hardware=[nk.WeightNoise(add=0.2)], draws=[3])
    other = Loop()
    with torch.no_grad():
        for name in ("weight_ih", "weight_hh"):
            w = getattr(other.cell, name)
            w.copy_(noisy(f"cell:{name}#0", w, 3, 0.2))
    assert torch.allclose(got, other(x), atol=1e-5)
    assert torch.allclose(put(model, x, arithmetic=nk.Serial()), model(x), atol=1e-5)


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.places = nn.Embedding(9, 4), nn.Embedding(5, 4)
        self.head = nn.Linear(4, 9, bias=False)
        self.head.weight = self.words.weight

    def forward(self, t: Tensor) -> Tensor:
        return self.head(self.words(t) + self.places(torch.arange(t.shape[1])))


def test_embeddings_are_arrays() -> None:
    model, t = Words(), torch.randint(9, (3, 5))
    both = put(model, t, hardware={"words": [nk.WeightNoise(add=0.5)], "places": [nk.hardware.PCM()]}, draws=[0, 4])
    only = put(model, t, hardware={"words": [nk.WeightNoise(add=0.5)]}, draws=[0, 4])
    assert not torch.allclose(both, only, atol=1e-4)
    for part, draw in zip(only.chunk(2), (0, 4), strict=True):
        held = noisy("words:embedding#0", model.words.weight, draw, 0.5)
        x = held[t] + model.places.weight.detach()
        assert torch.allclose(part, x @ model.words.weight.detach().T, atol=1e-5)
    tied = put(model, t, hardware={"words": [nk.WeightNoise(add=0.5)], "head": [nk.WeightNoise(add=0.5)]},
               arrays="parameter")  # fmt: skip
    held = noisy("words:embedding#0", model.words.weight, 0, 0.5)
    assert torch.allclose(tied, (held[t] + model.places.weight.detach()) @ held.T, atol=1e-5)
    read = put(model, t, hardware={"words": [nk.hardware.ADC(4, 2.0)]})
    grid = nk.linear(model.words.weight.detach()[t], torch.eye(4), hardware=[nk.hardware.ADC(4, 2.0)])
    assert torch.allclose(read, model.head(grid + model.places.weight), atol=1e-5)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_of_embeddings(mode: str) -> None:
    bag, t = nn.EmbeddingBag(9, 4, mode=mode), torch.randint(9, (3, 5))
    model = nn.Sequential(bag)
    got = put(model, t, hardware=[nk.WeightNoise(add=0.5)], draws=[2])
    held = noisy("0:embedding_bag#0", bag.weight, 2, 0.5)
    assert torch.allclose(got, nn.functional.embedding_bag(t, held, mode=mode), atol=1e-5)

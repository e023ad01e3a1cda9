"""Models whose rows look at each other: one draw of all rows in a pass, as the user's own call has it, and said so."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import noisykernels as nk

ROWS = 60


class Centred(nn.Module):
    """Rows less their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.b(torch.relu(h - h.mean(0)))


class Contrasting(nn.Module):
    """Each row against each, as CLIP's logits are."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 4), nn.Linear(5, 4)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return self.a(x) @ self.b(z).T


class Attending(nn.Module):
    """Attention over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.o = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x)
        return self.o(torch.softmax(q @ q.T, -1) @ q)


class Scaled(nn.Module):
    """A scale of the whole batch, as dynamic quantization of tensors has it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        scale = h.abs().max() / 7
        return self.b(torch.round(h / scale) * scale)


class Shared(nn.Module):
    """Each row is given its part of a whole, of which there is less the more rows there are."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)) / len(x))


class Apart(nn.Module):
    """Rows by themselves, many roundings deep."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*[m for _ in range(30) for m in (nn.Linear(64, 64), nn.LayerNorm(64), nn.GELU())])
        self.a, self.b = nn.Linear(6, 64), nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.layers(self.a(x)))


def made(kind: type[nn.Module]) -> tuple[nn.Module, tuple[Any, Tensor]]:
    torch.manual_seed(1)
    model = kind().eval()
    x: Any = torch.randn(ROWS, 6)
    if kind is Contrasting:
        return model, ((x, torch.randn(ROWS, 5)), torch.arange(ROWS))
    return model, (x, torch.randint(4, (ROWS,)))


def by_hand(model: nn.Module, data: tuple[Any, Tensor], site: str, level: float, k: int) -> float:
    x = data[0] if isinstance(data[0], tuple) else (data[0],)
    with (
        nk.inject(model, nk.Noise(add=level), where=site),
        nk.noise_state(model, seed=1, draws=[k]),
        torch.no_grad(),
    ):
        return float(F.cross_entropy(model(*x), data[1]))


GRID: dict[str, Any] = dict(
    noise=nk.Noise(add=1.0), levels=[0.1, 1.0], draws=3, seed=1, metric="nll", at=nk.Ratio(1.05)
)
MIXED = [Centred, Contrasting, Attending, Scaled, Shared]


@pytest.mark.parametrize("kind", MIXED)
@pytest.mark.parametrize("engine", ["auto", "plain", "shared"])
def test_numbers_are_those_of_one_draw_of_all_rows(kind: type[nn.Module], engine: Any) -> None:
    model, data = made(kind)
    with pytest.warns(UserWarning, match=f"rows of this model look at each other.* passes of {ROWS} rows, all that"):
        study = nk.walk(model, data, **GRID, sites="a*" if kind is not Attending else "q*",
                        compute=nk.Compute(engine=engine))  # fmt: skip
    for r in study.records:
        assert r.value == pytest.approx(by_hand(model, data, r.site, r.level, r.draw), rel=1e-5)


def test_other_studies_do_so_too() -> None:
    model, data = made(Centred)
    weights = nk.WeightNoise(add=0.3, relative="layer")
    with pytest.warns(UserWarning, match="chips: rows of this model look at each other"):
        found = nk.chips(model, data, hardware=[weights], draws=3, seed=1, metric="nll")
    with nk.inject(model, None, hardware=[weights]), torch.no_grad():
        for k in range(3):
            with nk.noise_state(model, seed=1, draws=[k]):
                assert found.values[k] == pytest.approx(float(F.cross_entropy(model(data[0]), data[1])), rel=1e-5)
    with pytest.warns(UserWarning, match="vote: rows of this model look at each other"):
        nk.vote(model, data, noise=nk.Noise(add=0.5), draws=3, seed=1)


def test_as_many_rows_as_the_user_says() -> None:
    model, (x, y) = made(Centred)
    with pytest.warns(UserWarning, match="passes of 20 rows, as batch_rows says, of one draw"):
        study = nk.walk(model, (x, y), **GRID, compute=nk.Compute(batch_rows=20))
    with torch.no_grad():
        scores = torch.cat([model(part) for part in x.split(20)])
    assert study.meta.clean == pytest.approx(float(F.cross_entropy(scores, y)), rel=1e-6)


def test_too_many_rows_for_memory_are_refused() -> None:
    model, data = made(Centred)
    with pytest.raises(ValueError, match=r"walk: rows of this model look at each other.*Compute\(batch_rows=\.\.\.\)"):
        nk.walk(model, data, **GRID, compute=nk.Compute(memory=8 * 14 * 4 * 20))


@pytest.mark.parametrize("how", [{}, {"levels": [0.1, 1.0], "draws": 2, "plateaus": 0.05}])
def test_searches_and_plateaus_are_refused(how: dict[str, Any]) -> None:
    model, data = made(Centred)
    with warnings.catch_warnings(), pytest.raises(ValueError, match=r"walk: rows of this model look.*give levels and"):
        warnings.simplefilter("ignore")
        nk.walk(model, data, noise=nk.Noise(add=1.0), seed=1, **how)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_rounding_is_no_company(dtype: torch.dtype) -> None:
    model, (x, y) = made(Apart)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nk.walk(model.to(dtype), (x.to(dtype), y), noise=nk.Noise(add=1.0), levels=[0.1], draws=2, seed=1, sites="b*")

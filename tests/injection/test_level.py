"""`noise_state(level=...)`: equal, to the bit, to levels that were given where the noise is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import noisykernels as nk

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = 5
LEVELS = torch.tensor([0.0, 0.3, 1.0, 1.7, 40.0], dtype=torch.float64)
NOISES: dict[str, dict[str, Any]] = {
    "add": {"add": 0.3},
    "mul": {"mul": 0.7},
    "mul_add": {"add": 0.3, "mul": 0.7},
    "add_mul": {"add": 0.3, "mul": 0.7, "order": "add_mul"},
    "fold": {"add": 0.3, "mul": 0.7, "fold": True},
    "laplace": {"add": 0.3, "mul": 0.7, "kind": "laplace"},
}


class Ranks(nn.Module):
    """Values of rank 4, 3 and 2; fused, functional, in-place and shared sites; a layer of its own noise."""

    def __init__(self, how: str | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.shared, self.last = nn.Conv2d(2, 3, 3), nn.Linear(9, 9), nn.Linear(9, 4)
        self.own, self.how = nk.NoisyLinear(4, 4, noise=nk.Noise(mul=0.25)), how

    def middle(self, x: Tensor) -> Tensor:
        return self.shared(F.gelu(self.shared(x))).relu_()

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).flatten(2)
        x = self.middle(x) if self.how is None else checkpoint(self.middle, x, use_reentrant=self.how == "reentrant")
        return self.own(torch.tanh(self.last(x.mean(1))))


def inputs() -> Tensor:
    return torch.randn(ROWS, 2, 5, 5, generator=torch.Generator().manual_seed(1))


def rank_at(name: str) -> int:
    """Rank of the value at a site of `Ranks`."""
    path, _, kind = name.rpartition(":")
    return {"input": 4, "conv": 4, "shared": 3, "last": 2, "own": 2}.get(path or name, 2 if "tanh" in kind else 3)


def explicit(settings: dict[str, Any], factor: Callable[[int], Any]) -> Callable[[str, nn.Module], nk.Noise]:
    """The noise of each site with its levels multiplied beforehand, for the rank of the value there."""

    def where(name: str, module: nn.Module) -> nk.Noise:
        f = factor(rank_at(name))
        return nk.Noise(**{k: torch.full((), v, dtype=torch.float64) * f if k in ("add", "mul") else v
                           for k, v in settings.items()})  # fmt: skip

    return where


@torch.no_grad()  # folded noise has no gradient
@pytest.mark.parametrize("settings", NOISES.values(), ids=NOISES)
@pytest.mark.parametrize("draws", [None, [4, 0, 9]], ids=["one draw", "draws"])
@pytest.mark.parametrize("options", [{}, {"repeats": 3}, {"normalize_to_input_size": True}], ids=str)
def test_it_is_the_explicit_level_to_the_bit(settings: dict[str, Any], draws: Any, options: dict[str, Any]) -> None:
    outs = []
    for vector in (LEVELS, torch.tensor(1.7, dtype=torch.float64)):
        state = {"seed": 3, "draws": draws, "rows": [7, 1, 100, 3, 4]}
        model, other = Ranks(), Ranks()
        with nk.inject(model, nk.Noise(**settings), **options), nk.noise_state(model, **state, level=vector):
            mine = model(inputs())
        other.own.noise = nk.Noise(mul=0.25 * (nk.per_row(vector, 2) if vector.dim() else vector))
        factor = (lambda r, v=vector: nk.per_row(v, r)) if vector.dim() else (lambda r, v=vector: v)
        with nk.inject(other, nk.Noise(), explicit(settings, factor), **options), nk.noise_state(other, **state):
            theirs = other(inputs())
        assert torch.equal(mine, theirs)
        outs.append(mine)
    assert not torch.equal(*outs)
    rows = torch.arange(len(outs[0])) % ROWS
    assert torch.equal(outs[0][rows == 3], outs[1][rows == 3])  # the row whose level is 1.7


def test_a_row_keeps_its_level_and_noise_in_any_batch() -> None:
    model, x = Ranks(), inputs()
    with nk.inject(model, nk.Noise(add=0.3, mul=0.2)):
        with nk.noise_state(model, seed=1, draws=[0, 1], rows=range(ROWS), level=LEVELS):
            whole = model(x).view(2, ROWS, 4)
        order = torch.tensor([3, 1, 4])
        with nk.noise_state(model, seed=1, draws=[0, 1], rows=order, level=LEVELS[order]):
            part = model(x[order]).view(2, 3, 4)
        torch.testing.assert_close(part, whole[:, order], rtol=1e-5, atol=1e-5)  # the contraction of another size
        with nk.noise_state(model, seed=1, draws=[0], level=torch.ones(ROWS)):
            ones = model(x)
        with nk.noise_state(model, seed=1, draws=[0]):
            assert torch.equal(ones, model(x))
        with nk.noise_state(model, seed=1, draws=[0], level=0):
            assert torch.equal(model(x)[:2], model(x)[:2]) and torch.isfinite(model(x)).all()


def test_level_zero_is_the_noiseless_model() -> None:
    model, x = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(27, 4)), inputs()
    clean = model(x)
    with nk.inject(model, nk.Noise(add=3.0, mul=2.0)), nk.noise_state(model, seed=1, level=0.0):
        torch.testing.assert_close(model(x), clean, rtol=1e-5, atol=1e-6)  # the library's sums in another order


def test_per_channel_levels_and_rows_that_moved() -> None:
    """A level of another shape is multiplied; where rows lie along dimension 1, it is their level all the same."""
    channels = nk.per_channel([0.1, 0.5, 2.0], 4)
    model = nn.Conv2d(2, 3, 3)
    with nk.inject(model, nk.Noise(add=channels), "*:conv2d"), nk.noise_state(model, seed=1, level=LEVELS):
        mine = model(inputs())
    with nk.inject(model, nk.Noise(add=channels * nk.per_row(LEVELS, 4)), "*:conv2d"), nk.noise_state(model, seed=1):
        assert torch.equal(mine, model(inputs()))
    gru, x = nn.GRU(3, 4), torch.randn(6, ROWS, 3)
    outs = []
    for noise, level in ((nk.Noise(add=0.5), LEVELS), (nk.Noise(add=0.5 * nk.per_row(LEVELS, 3)), None)):
        with nk.inject(gru, noise, "*:gru", example_input=x, row_dims={"input": 1, "*": 1}):
            with nk.noise_state(gru, seed=1, level=level):
                outs.append(gru(x)[0])
    assert torch.equal(*outs) and not torch.equal(outs[0], gru(x)[0])


@pytest.mark.parametrize("how", ["reentrant", "not reentrant"])
def test_checkpointing_recomputes_with_the_same_level(how: str) -> None:
    found = []
    for kind in (how, None):
        model, x = Ranks(kind), inputs().requires_grad_()
        with nk.inject(model, nk.Noise(add=0.3, mul=0.4)):
            with nk.noise_state(model, seed=5, draws=[1, 2], level=LEVELS):
                y = model(x)
            y.square().sum().backward()  # after the block: the level of the forward counts
        found.append([y, x.grad, *(p.grad for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("vector", [False, True], ids=["0-d", "rows"])
def test_a_compiled_model_is_compiled_once(vector: bool) -> None:
    torch._dynamo.reset()
    model, x, graphs = Ranks(), inputs(), []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph

    compiled = torch.compile(model, backend=backend, fullgraph=True)
    with nk.inject(model, nk.Noise(add=0.3, mul=0.2), example_input=x):
        for step, factor in enumerate([0.5, 1.5, 0.0, 7.0]):
            level = factor * LEVELS if vector else factor
            with nk.noise_state(model, seed=1, draws=[step], level=level):
                assert torch.equal(compiled(x), model(x))
    assert len(graphs) == 1
    torch._dynamo.reset()


def test_blocks_nest_and_models_move() -> None:
    model, x = nn.Linear(3, 2), torch.ones(2, 3)
    with nk.inject(model, nk.Noise(add=1.0)):
        with nk.noise_state(model, seed=1, level=0.1) as state:
            outer = model(x)
            with nk.noise_state(model, seed=1, level=[1.0, 0.1]):
                assert torch.equal(model(x)[1], outer[1]) and not torch.equal(model(x)[0], outer[0])
            assert torch.equal(model(x), outer)
            model.half().float()
            assert state.level.dtype == torch.float64 and float(state.level) == 0.1
            assert not any("level" in key for key in model.state_dict())
        assert state.level is None
    layer = nk.NoisyLinear(3, 2, noise=nk.Noise(add=1.0))  # not injected
    with nk.noise_state(layer, seed=1, level=0.0):
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize(
    ("level", "error", "text"),
    [
        (-0.1, ValueError, "noise_state: level must be finite and not negative"),
        (float("nan"), ValueError, "finite"),
        ([0.1, float("inf")], ValueError, "finite"),
        ("0.1", TypeError, "a number, numbers or a floating-point tensor, got '0.1'"),
        (True, TypeError, "got True"),
        (torch.tensor(1), TypeError, "got torch.int64"),
        (torch.ones(2, 1), TypeError, r"got torch.float32 of \[2, 1\]"),
        (torch.ones(2, requires_grad=True), ValueError, "detach it"),
        ([0.1], RuntimeError, "one for each of the 2 rows, got 1"),
        ([0.1] * 4, RuntimeError, "one for each of the 2 rows, got 4"),
    ],
)
def test_what_is_refused(level: Any, error: type[Exception], text: str) -> None:
    model = nn.Linear(3, 2)
    with nk.inject(model, nk.Noise(add=1.0)), pytest.raises(error, match=text):
        with nk.noise_state(model, seed=1, draws=[0, 1], level=level):
            model(torch.ones(2, 3))

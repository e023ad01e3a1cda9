"""The engine that shares work: the plain engine's numbers, for every kind of model and noise, from far less work."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import noisykernels as nk
from noisykernels.carry import Suffix, directions
from noisykernels.inject import inject, noise_state
from noisykernels.injected import state_of
from noisykernels.models import MLP, LeNet5
from noisykernels.reuse import choose_plan
from noisykernels.sites import Placement
from noisykernels.tape import NotTraceable, record_tape

NOISES = {
    "add": nk.Noise(add=0.5),
    "mul": nk.Noise(mul=0.5),
    "mixed": nk.Noise(add=0.3, mul=0.2),
    "add_mul": nk.Noise(add=0.3, mul=0.2, order="add_mul"),
    "fold": nk.Noise(add=0.3, mul=0.2, fold=True),
    "uniform": nk.Noise(add=0.3, mul=0.2, kind="uniform"),
}


class Residual(nn.Module):
    """Skip connections, writing in place, a shared activation, pooling and concatenation by functions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(x))
        y += x
        y = torch.cat([self.relu(y), 0.5 * x - 1.0], 1)
        y = F.max_pool2d(F.avg_pool2d(y, 2), 2)
        return self.head(y.mean((2, 3)).view(y.size(0), -1))


class Encoder(nn.Module):
    """A transformer layer, whose attention is one operation with several sites."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(6, 16), nn.Linear(16, 4)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(x)).mean(1))


class Folded(nn.Module):
    """Folds the sequence into the rows and back."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(30, 4)

    def forward(self, x: Tensor) -> Tensor:
        rows, length, _ = x.shape
        y = torch.tanh(self.a(x.reshape(rows * length, -1)))
        return self.b(y.view(rows, -1))


class Recurrent(nn.Module):
    """A layer whose output is in its state as well."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class Transposed(nn.Module):
    """Rows along dimension 1 for a while."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(30, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.a(x.transpose(0, 1)))
        return self.b(y.transpose(0, 1).flatten(1))


class Differences(nn.Module):
    """Values that are subtracted, from either side."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y, z = self.a(x), 2 * self.b(x)
        return self.head(torch.tanh((z - y) + (1.0 - y) / 3))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "lenet": (lambda: LeNet5(norm=True), (1, 28, 28)),
    "mlp": (lambda: MLP(12, 4, width=8, norm=True), (12,)),
    "residual": (Residual, (3, 8, 8)),
    "encoder": (Encoder, (5, 6)),
    "folded": (Folded, (5, 6)),
    "recurrent": (Recurrent, (5, 6)),
    "transposed": (Transposed, (5, 6)),
    "differences": (Differences, (6,)),
    "noisy layers": (
        lambda: nn.Sequential(nk.NoisyLinear(6, 5, noise=nk.Noise(add=9.0)), nn.ReLU(), nn.Linear(5, 3)),
        (6,),
    ),
}


def made(name: str, rows: int) -> tuple[nn.Module, Tensor]:
    """A model with norms that do something, and data."""
    torch.manual_seed(0)
    build, shape = MODELS[name]
    model = build().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return model, torch.randn(rows, *shape)


@pytest.mark.parametrize("kind", list(NOISES))
@pytest.mark.parametrize("name", list(MODELS))
def test_scores_are_the_plain_ones(name: str, kind: str) -> None:
    """For all levels and draws at once, up to rounding: 2^-24 times the terms of a sum (at most 1,000) and the number
    of layers (10), of the largest score; the noise is the same to the bit.
    """
    model, x = made(name, 6)
    noise, draws, rows = NOISES[kind], [0, 3], torch.tensor([5, 0, 9, 2, 2**31, 7])
    levels = torch.tensor([0.0, 0.1, 1.0, 10.0], dtype=torch.float64)
    with inject(model, None, example_input=x[:2]) as injected, torch.inference_mode():
        tape, state = record_tape(injected, x), state_of(injected)
        clean = tape.run(x)
        assert tape.sites
        for site, number in tape.sites.items():
            dim = tape.row_dims[number]
            assert dim is not None
            key: dict[str, Any] = dict(seed=5, site=state.site_ids[site], draws=draws, rows=rows)
            toward, (mixture,) = directions([noise], clean[number], dim, **key)
            suffix = Suffix(tape, number)
            scores = suffix.scores(clean, suffix.carry(toward, 2, 6), mixture, levels, 2, 6).view(4, 2, 6, -1)
            for i, level in enumerate(levels.tolist()):
                state.placement = Placement(noise=noise.scaled(level), where=site, layers_own=False)
                with noise_state(injected, seed=5, draws=draws, rows=rows):
                    expected = injected(x).view(2, 6, -1)
                bound = 10 * 1000 * 2.0**-24 * expected.abs().max()
                assert (scores[i] - expected).abs().max() <= bound, (site, level)
            state.placement = Placement(layers_own=False)


@pytest.mark.parametrize("kind", list(NOISES))
@pytest.mark.parametrize("name", list(MODELS))
def test_counts_are_the_plain_ones(name: str, kind: str) -> None:
    """Also for sites that cannot be reached alone. A prediction may differ where two scores are equal up to rounding:
    margins are spread over some units, so that of a few thousand none is likely to be within 1e-5.
    """
    model, x = made(name, 40)
    y = model(x).argmax(1) if name != "noisy layers" else torch.randint(3, (40,))
    sites = ["input", "b"] if name == "folded" else None  # between them, rows are folded away
    settings: dict[str, Any] = dict(noise=NOISES[kind], levels=[0.0, 0.3, 3.0], draws=[4, 1], seed=7, sites=sites)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shared = nk.walk(model, (x, y), **settings)
    plain = nk.walk(model, (x, y), **settings, engine="plain")
    assert shared.records == plain.records


@pytest.mark.parametrize("engine", ["auto", "plain"])
def test_several_noises_are_as_each_alone(engine: str) -> None:
    """Mixed noise of several ratios in both orders, another kind and levels per channel: shared work, same counts."""
    model, x = made("lenet", 40)
    y = model(x).argmax(1)
    channels = nk.per_channel(torch.tensor([0.5]), ndim=4)
    noises = [
        *(nk.Noise.amplitude(1.0, ratio) for ratio in (0.0, 0.25, 1.0)),
        nk.Noise.amplitude(1.0, 0.5, order="add_mul"),
        NOISES["uniform"], NOISES["fold"], nk.Noise(add=channels),
    ]  # fmt: skip
    how: dict[str, Any] = dict(levels=[0.0, 0.3, 3.0], draws=[4, 1], seed=7, sites=["input", "pool1", "conv2"])
    together = nk.walk(model, (x, y), noise=noises, engine=engine, **how)
    for noise, study in zip(noises, together, strict=True):
        assert study.records == nk.walk(model, (x, y), noise=noise, engine=engine, **how).records


def test_several_noises_are_searched_as_each_alone(tmp_path: Any) -> None:
    model, x = made("mlp", 600)
    y = model(x).argmax(1)
    noises = [nk.Noise.amplitude(1.0, ratio) for ratio in (0.5, 1.0)]
    together = nk.walk(model, (x, y), noise=noises, seed=3, store=tmp_path / "s.db")
    for noise, study in zip(noises, together, strict=True):
        alone = nk.walk(model, (x, y), noise=noise, seed=3)
        assert study.records == alone.records and study.meta == alone.meta
    again = nk.walk(model, (x, y), noise=noises, seed=3, store=tmp_path / "s.db")
    assert [s.records for s in again] == [s.records for s in together]


def test_the_same_for_every_plan() -> None:
    model, x = made("lenet", 50)
    y = model(x).argmax(1)
    settings: dict[str, Any] = dict(noise=NOISES["mixed"], levels=[0.1, 1.0], draws=3, seed=7)
    whole = nk.walk(model, (x, y), **settings)
    for plan in (dict(batch_rows=7), dict(memory=2**20), dict(threads=1)):
        assert nk.walk(model, (x, y), **settings, **plan).records == whole.records


def test_rows_are_data_set_indices() -> None:
    model, x = made("mlp", 40)
    y, order = model(x).argmax(1), torch.randperm(40)
    settings: dict[str, Any] = dict(noise=NOISES["add"], levels=[1.0], draws=2, seed=7)
    shuffled = nk.walk(model, (x[order], y[order]), rows=order, **settings)
    assert shuffled.records == nk.walk(model, (x, y), **settings).records


def test_memory_bounds_the_passes() -> None:
    model, x = made("lenet", 4)
    with inject(model, None, example_input=x[:2]) as injected:
        tape = record_tape(injected, x)
    row = sum(4 * torch.Size(s[1:]).numel() for s in tape.shapes.values())
    for memory in (2**18, 2**22, 2**30):
        plan = choose_plan(tape, memory, 500, torch.device("cpu"))
        assert plan.rows * row <= memory // 4 or plan.rows == 1
        assert plan.bytes <= max(memory // 4, 4 * 3456 * plan.rows)


def test_memory_bounds_whole_passes_too() -> None:
    """Of large images a pass takes fewer rows than asked for; the noise is the same."""
    model, x = made("residual", 40)
    y = model(x).argmax(1)
    how: dict[str, Any] = dict(noise=NOISES["add"], levels=[1.0], draws=3, seed=7, engine="plain")
    little, much = (nk.walk(model, (x, y), **how, memory=memory) for memory in (2**18, 2**30))
    assert little.meta.plan["batch_rows"] == 2**18 // (4 * 8 * 8 * 64) and little.meta.plan["draws_per_pass"] == 1
    assert (much.meta.plan["batch_rows"], much.meta.plan["draws_per_pass"]) == (500, 8)
    assert little.records == much.records


def test_a_linear_operation_runs_once_for_all_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The convolution after the first pool sees directions of the draws, not values of every level."""
    model, x = made("lenet", 4)
    seen: list[int] = []
    with inject(model, None, example_input=x[:2]) as injected, torch.inference_mode():
        tape = record_tape(injected, x)
        for step in tape.steps:
            if step.name == "conv2d":
                function = step.function

                def counted(x: Tensor, *args: Any, function: Any = function, **kwargs: Any) -> Tensor:
                    seen.append(len(x))
                    return function(x, *args, **kwargs)

                monkeypatch.setattr("noisykernels.linearity.CONTRACTIONS", frozenset({function, counted}))
                step.function = counted
        number = tape.sites["pool1:max_pool2d#0"]
        suffix, clean = Suffix(tape, number), tape.run(x)
        seen.clear()
        key: dict[str, Any] = dict(seed=1, site=1, draws=[0, 1], rows=torch.arange(4))
        toward, (mixture,) = directions([NOISES["add"]], clean[number], 0, **key)
        levels = torch.linspace(0, 1, 9, dtype=torch.float64)
        suffix.scores(clean, suffix.carry(toward, 2, 4), mixture, levels, 2, 4)
    assert seen == [2 * 4]


class ByRows(nn.Module):
    """Other operations for other numbers of rows."""

    def forward(self, x: Tensor) -> Tensor:
        return x.relu() if len(x) % 2 else x.relu().abs()


class Random(nn.Module):
    """Draws by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return x.relu() + torch.rand(3)


class Shared(nn.Module):
    """Writes into memory that a view shares."""

    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        z = y.view(-1, 3)
        z.mul_(2)
        return y.relu()


class Means(nn.Module):
    """Rows look at each other."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return torch.relu(x - x.mean(0))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (ByRows(), "other operations for another number of rows"),
        (Random(), "running its operations again gives other scores"),
        (Shared(), "memory that several values share"),
    ],
)
def test_what_cannot_be_recorded_says_why(model: nn.Module, reason: str) -> None:
    x = torch.randn(8, 3)
    with inject(model, None) as injected, pytest.raises(NotTraceable, match=reason):
        record_tape(injected, x)


def test_sites_that_cannot_be_reached_fall_back_with_a_warning() -> None:
    model, x = Means(), torch.randn(8, 3)
    settings: dict[str, Any] = dict(noise=NOISES["add"], levels=[1.0], draws=1, seed=7)
    with pytest.warns(UserWarning, match=r"a:linear#0 \(mean mixes rows\)"):
        shared = nk.walk(model, (x, torch.randint(3, (8,))), **settings)
    assert len(shared.records) == 3
    with pytest.warns(UserWarning, match="every pass runs the whole model: .* other scores"):
        nk.walk(Random(), (x, torch.randint(3, (8,))), **settings)


def test_a_recording_leaves_nothing_behind() -> None:
    model, x = made("residual", 6)
    before, copy = model.state_dict(), x.clone()
    with inject(model, None, example_input=x[:2]) as injected:
        tape = record_tape(injected, x)
        tape.run(x)
    assert torch.equal(x, copy)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", [(5, 6, 24, 24), (7, 10), (3, 84), (4, 3, 9, 11), (2, 1500), (1, 1), (0, 4)])
def test_expand_levels_is_one_rounding_of_its_formula(shape: tuple[int, ...], relu: bool, cpu_level: str) -> None:
    """x + A d in float32, rounded once: the exact sum is representable in float64 up to 2^-53."""
    torch.manual_seed(1)
    ops = torch.ops.noisykernels
    x, d = torch.randn(shape), torch.randn(2 * shape[0], *shape[1:])
    levels = torch.tensor([0.0, 0.3, 2e4])
    y = ops.expand_levels(x, d, levels, relu)
    exact = x.double() + levels.double().view(3, 1, *[1] * len(shape)) * d.double().view(2, *shape)
    expected = (exact.relu() if relu else exact).float().reshape(y.shape)
    torch.testing.assert_close(y, expected, rtol=2**-23, atol=0)
    if len(shape) == 4:
        pooled = ops.expand_levels_max_pool2d(x, d, levels, relu, [2, 2], [2, 2], [0, 0])
        assert torch.equal(pooled, F.max_pool2d(y, 2))
        assert torch.equal(
            ops.expand_levels_max_pool2d(x, None, torch.zeros(1), True, [3, 3], [2, 2], [1, 1]),
            F.max_pool2d(x.relu(), 3, 2, 1),
        )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((torch.ones(2, 3), torch.ones(3, 3), torch.ones(1)), "direction must hold a multiple of 2 rows, got 3"),
        ((torch.ones(2, 3), torch.ones(2, 4), torch.ones(1)), "must differ in their rows only"),
        ((torch.ones(2, 3).double(), torch.ones(2, 3), torch.ones(1)), "must be float32"),
        ((torch.ones(2, 3), torch.ones(2, 3), torch.ones(1, 1)), "levels a vector"),
    ],
)
def test_expand_levels_refuses(args: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        torch.ops.noisykernels.expand_levels(*args, False)

"""What runs as one once the levels have parted: equal to the steps that it stands for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from traced_models import Wide, living_norms, made

import noisykernels as nk
from noisykernels._graph import winograd
from noisykernels._graph.directions import Mixture
from noisykernels._graph.fusions import is_channels_last
from noisykernels._graph.recorder import record_tape
from noisykernels._graph.suffix import Suffix
from noisykernels._graph.tape import Tape
from noisykernels._graph.winograd import Winograd
from noisykernels.injection import inject


def taped(name: str = "wide") -> Tape:
    model, x = made(name, 6)
    with inject(model, None, example_input=x[:2]) as injected, torch.inference_mode():
        return record_tape(injected, x[:4])


# ---------------------------------------------------------------------------------------------- Winograd's form


def form(inputs: int, outputs: int, bias: bool, relu: bool) -> tuple[Winograd, Any]:
    weight, shift = torch.randn(outputs, inputs, 3, 3), torch.randn(outputs) if bias else None

    def directly(x: Tensor, added: Tensor | None = None) -> Tensor:
        y = F.conv2d(x, weight.to(x.dtype), shift if shift is None else shift.to(x.dtype), padding=1)
        y = y if added is None else y + added
        return y.relu() if relu else y

    return Winograd(weight, shift, relu, directly), directly


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize(("bias", "relu"), [(False, False), (True, True), (True, False)])
@pytest.mark.parametrize(("images", "height", "width"), [(3, 4, 4), (70, 8, 8), (2, 7, 14), (1, 1, 5), (0, 4, 4)])
def test_winograd_is_the_convolution(images: int, height: int, width: int, bias: bool, relu: bool, added: bool) -> None:
    """Within what `_engine/rounding.py` allows two engines: 45 standard deviations sqrt(K) u ||x w|| of a sum of K."""
    torch.manual_seed(0)
    quick, directly = form(5, 6, bias, relu)
    x = torch.randn(images, 5, height, width)
    more = torch.randn(images, 6, height, width) if added else None
    y = quick(x, more)
    exact = directly(x.double(), None if more is None else more.double())
    squares = F.conv2d(x.double().square(), torch.ones(1, 5, 3, 3).double(), padding=1)
    bound = 45 * (9 * 5) ** 0.5 * 2.0**-24 * (squares.sqrt() * 3 + 1)  # weights are normal: below 3 in the mean
    assert y.shape == exact.shape and y.dtype == torch.float32
    assert bool(((y - exact).abs() <= bound).all())


def test_what_is_added_may_be_of_another_type() -> None:
    quick, directly = form(3, 4, True, True)
    x, more = torch.randn(2, 3, 4, 4), torch.randn(2, 4, 4, 4).double()
    assert torch.equal(quick(x, more), directly(x, more)) and quick(x, more).dtype == torch.float64


def test_winograd_rounds_as_its_description_says() -> None:
    """The spread of the error over many outputs, in parts of sqrt(K) u ||x w||: 0.3 to 0.55."""
    torch.manual_seed(0)
    quick, directly = form(128, 32, False, False)
    x = torch.randn(8, 128, 16, 16)
    error = (quick(x) - directly(x.double()))[..., 1:-1, 1:-1]
    assert 0.3 < float(error.square().mean().sqrt()) / (9 * 128 * 2.0**-24) < 0.55


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan"), 2e38])
def test_what_is_not_finite_runs_directly(value: float) -> None:
    """Differences of infinite values would be NaN in a whole tile, and a large value overflow in its transform."""
    torch.manual_seed(0)
    quick, directly = form(3, 4, True, True)
    x = torch.randn(5, 3, 8, 8)
    x[2, 1, 4, 5] = value
    with torch.inference_mode():
        torch.testing.assert_close(quick(x), directly(x), rtol=0, atol=0, equal_nan=True)


def test_winograd_pays_where_channels_are_many_and_tiles_are_full() -> None:
    enough = torch.empty(winograd.CHANNELS, winograd.CHANNELS, 3, 3)
    assert Winograd.pays(enough, 8, 8) and Winograd.pays(enough, 7, 8)
    assert not Winograd.pays(enough, 5, 5) and not Winograd.pays(enough[:, 1:], 8, 8)


# ------------------------------------------------------------------------------------- in a recording's suffix


def test_what_runs_as_one() -> None:
    """Of `Wide`: a sum belongs to the convolution whose other term is known by then, of two to the later one."""
    tape = taped()
    suffix = Suffix(tape, tape.sites["input"])
    runs, done = [], set[Any]()
    for i, fused in suffix.fused.items():
        if suffix.steps[i] not in done:
            done |= set(fused.through)
            runs.append(fused)
    assert [[step.name for step in fused.through] for fused in runs] == [
        ["conv2d", "batch_norm", "relu"],
        ["conv2d", "batch_norm", "dropout2d", "add", "relu"],
        ["conv2d", "batch_norm"],
        ["conv2d", "batch_norm", "add", "relu"],
        ["conv2d"],
        ["relu", "max_pool2d"],
        ["conv2d"],
        ["relu", "max_pool2d"],
    ]
    assert [fused.channels_last for fused in runs] == [False, *[True] * 4, False, True, False]
    forms = [fused for fused in runs if isinstance(fused.run, Winograd)]
    assert len(forms) == 2  # of conv3 and conv4


def test_suffixes_share_what_is_prepared() -> None:
    tape = taped()
    first, second = (Suffix(tape, tape.sites[name]) for name in ("input", "norm0:batch_norm#0"))
    shared = {id(fused) for fused in first.fused.values()} & {id(fused) for fused in second.fused.values()}
    assert len(shared) == len([f for f in second.fused.values() if not f.pools])


class Viewed(nn.Module):
    """Looks at a convolution's memory in its usual order."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16 * 64, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.conv1(x).relu())
        return self.head(y.view(y.size(0), 16, 64).mul(2.0).view(y.size(0), -1))


class Dropping(nn.Module):
    """What is added to is dropped, all of it or nothing: no random numbers are drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x).relu()
        x = F.dropout(self.conv2(x), 1.0, training=True) + x
        return self.head((F.dropout2d(self.conv2(x), 0.0, training=True) + x).relu().mean((2, 3)))


@pytest.mark.parametrize("build", [Wide, Viewed, Dropping])
@pytest.mark.parametrize("noise", [nk.Noise(add=1.0), nk.Noise.amplitude(1.0, 0.5, order="add_mul")], ids=str)
def test_verdicts_are_the_plain_engines(build: type[nn.Module], noise: nk.Noise) -> None:
    """At every site that the check trusts, which is each."""
    torch.manual_seed(0)
    model = build().eval()
    living_norms(model)
    x = torch.randn(40, 3, 8, 8)
    with torch.no_grad():
        data = x, model(x).argmax(1)
    how: dict[str, Any] = dict(noise=noise, levels=[0.0, 0.03, 0.3, 3.0, 30.0], draws=2, seed=3)
    shared = nk.walk(model, data, **how, compute=nk.Compute(engine="shared", threads=1))
    plain = nk.walk(model, data, **how, compute=nk.Compute(engine="plain", threads=1))
    found = shared.meta.plan["verification"]
    assert not found["differing"] and found["sites"] == len(nk.sites(model, x[:2]))
    assert [(r.site, r.level, r.draw, r.correct) for r in shared.records] == [
        (r.site, r.level, r.draw, r.correct) for r in plain.records
    ]


def test_values_stay_channels_last_between_convolutions() -> None:
    """And from where the levels part: nothing is laid out anew on the way."""
    tape = taped()
    number = tape.sites["norm0:batch_norm#0"]
    suffix = Suffix(tape, number)
    seen = []
    for fused in suffix.fused.values():
        if not fused.channels_last:
            continue

        def watched(x: Tensor, *added: Tensor, run: Any = fused.run) -> Tensor:
            seen.append(all(is_channels_last(v) for v in (x, *added)))
            return run(x, *added)

        fused.run = watched
    x = torch.randn(6, 3, 7, 8)

    with torch.inference_mode():
        clean = tape.run(x)
        direction = torch.randn_like(clean[number])
        carried = suffix.carry({("add", "gaussian"): direction}, 1, 6)
        suffix.scores(clean, carried, Mixture([{("add", "gaussian"): 1.0}]), torch.ones(3).double(), 1, 6)
    assert seen == [True] * 5

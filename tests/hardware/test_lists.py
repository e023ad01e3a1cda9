"""What a list of devices may hold: streams of one's own, levels, an order in which a signal can pass, real values."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noisykernels as nk
from noisykernels.arithmetic import Serial
from noisykernels.hardware import ADC, DAC, PCM, Arithmetic, ColumnGain, ColumnOffset, Device, DifferentialPair, Draw
from noisykernels.noise.contract import OPERANDS, stream_number

SEED = 4


class Stuck(Device):
    """Cells at zero, drawn from a stream with a name of its own."""

    operands = ("stuck cells",)

    def weight(self, weight: Tensor, draw: Draw) -> Tensor:
        return torch.where(draw.fixed(weight.shape, "stuck cells", kind="uniform") < -1.0, 0.0, weight)


class Jitter(Device):
    """Noise of its own on the outputs."""

    def __init__(self, stream: str = "jitter", sigma: float = 0.1) -> None:
        self.operands, self.sigma = (stream,), sigma

    def output(self, y: Tensor, draw: Draw) -> Tensor:
        return y + self.sigma * draw.fresh(y, *self.operands)


def operands(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(4, 6, dtype=dtype), torch.randn(5, 6, dtype=dtype)


# ------------------------------------------------------------------------------------------- streams


def test_streams_with_names_of_their_own_are_beyond_the_listed_ones() -> None:
    """Their numbers are part of the contract: a change of these is one of the bits."""
    assert [stream_number(name) for name in OPERANDS] == list(range(len(OPERANDS)))
    assert {name: stream_number(name) for name in ("stuck cells", "jitter", "")} == {
        "stuck cells": 228, "jitter": 230, "": 174,
    }  # fmt: skip
    assert all(128 <= stream_number(f"stream {k}") < 256 for k in range(500))
    assert len({stream_number(f"stream {k}") for k in range(2000)}) == 128


def test_own_streams_draw_what_the_contract_says() -> None:
    x, w = operands()
    y = nk.linear(x, w, hardware=[Stuck(), Jitter()], seed=SEED, site=3, draws=[7], first_row=2)
    ops, seed = torch.ops.noisykernels, torch.tensor(SEED)
    u = ops.eps([5, 6], 1, seed, 3, stream_number("stuck cells"), 7, None, 0)
    held = torch.where(u < -1.0, 0.0, w)
    right = x @ held.T + 0.1 * ops.eps([4, 5], 0, seed, 3, stream_number("jitter"), 7, None, 2)
    torch.testing.assert_close(y, right)
    assert bool((held == 0).any()) and not torch.equal(y, x @ w.T)
    others = [nk.eps((4, 5), seed=SEED, site=3, operand=name, draw=7, first_row=2) for name in OPERANDS]
    own = ops.eps([4, 5], 0, seed, 3, stream_number("jitter"), 7, None, 2)
    assert not any(torch.equal(own, other) for other in others)
    with pytest.raises(RuntimeError, match="unknown operand 100"):
        ops.eps([4, 5], 0, seed, 3, 100, 7, None, 2)


def _colliding(name: str) -> str:
    return next(n for n in (f"{name} {k}" for k in itertools.count()) if stream_number(n) == stream_number(name))


def test_streams_of_one_number_are_refused() -> None:
    x, w = operands()
    other = _colliding("jitter")
    message = f"hardware must draw from streams of different numbers, got 'jitter' and '{other}', which have 230"
    with pytest.raises(ValueError, match=message):
        nk.linear(x, w, hardware=[Jitter(), Jitter(other)], seed=1)
    with pytest.raises(ValueError, match=message):
        nk.inject(nn.Linear(6, 5), None, hardware=[Jitter(), Jitter(other)])
    both = Jitter()
    both.operands = ("jitter", other)
    with pytest.raises(ValueError, match=message):
        nk.linear(x, w, hardware=[both], seed=1)
    with pytest.raises(ValueError, match="at most one device that draws 'jitter'"):
        nk.linear(x, w, hardware=[Jitter(), Jitter()], seed=1)


def test_streams_that_no_device_names_are_refused() -> None:
    class Slip(Jitter):
        def output(self, y: Tensor, draw: Draw) -> Tensor:
            return y + draw.fresh(y, "jiter")

    x, w = operands()
    with pytest.raises(ValueError, match=r"Draw: operand must be one of add, .* or 'jitter', got 'jiter'"):
        nk.linear(x, w, hardware=[Slip()], seed=1)


# ------------------------------------------------------------------------------------------- levels


@pytest.mark.parametrize("level", [None, 1, 1.0, torch.tensor(1.0)])
def test_a_device_of_ones_own_needs_nothing_for_the_default_level(level: Any) -> None:
    x, _ = operands()
    model = nn.Sequential(nn.Linear(6, 5))
    with nk.inject(model, None, hardware=[Stuck(), Jitter()]):
        with nk.noise_state(model, seed=SEED):
            want = model(x)
        with nk.noise_state(model, seed=SEED, level=level):
            assert torch.equal(model(x), want)
            torch._dynamo.reset()
            torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(x), want)
        with nk.training.noisy_steps(model, seed=SEED)(0, None):
            assert torch.equal(model(x), want)


def test_another_level_needs_the_names_of_levels() -> None:
    x, _ = operands()
    model = nn.Sequential(nn.Linear(6, 5))
    with nk.inject(model, None, hardware=[Stuck()]), nk.noise_state(model, seed=SEED, level=0.5):
        with pytest.raises(RuntimeError, match=r"Stuck: a level other than 1 needs .* `level_names`.* got level 0\.5"):
            model(x)
        torch._dynamo.reset()
        assert torch.compile(model, backend="eager", fullgraph=True)(x).isnan().all()  # which a graph cannot refuse


# ------------------------------------------------------------------------------------------- order


class Both(Device):
    """Acts before the products and after them."""

    def input(self, x: Tensor, draw: Draw) -> Tensor:
        return x.round()

    def output(self, y: Tensor, draw: Draw) -> Tensor:
        return y.round()


DEVICES: dict[str, Callable[[], Device]] = {
    "input": lambda: nk.InputNoise(add=0.3), "dac": lambda: DAC(4, "row"), "weight": lambda: nk.WeightNoise(add=0.3),
    "pair": lambda: DifferentialPair(0.1), "pcm": lambda: PCM(10.0), "stuck": Stuck,
    "serial": lambda: Serial(operands="M2E4", product="exact", sum="exact"), "macs": lambda: nk.MacNoise(0.1),
    "adc": lambda: ADC(4, "row"), "gain": lambda: ColumnGain(0.3), "offset": lambda: ColumnOffset(0.3),
    "jitter": Jitter, "both": Both,
}  # fmt: skip
INSIDE, SUMS = ("input", "dac", "weight", "pair", "pcm", "stuck"), ("serial", "macs")
OF_INPUTS = ("input", "dac")


PAIRS = list(itertools.combinations(DEVICES, 2))


def fit(first: str, second: str) -> bool:
    """Whether a signal passes two devices in this order."""
    if "both" in (first, second):
        return first not in SUMS
    stages = [0 if name in INSIDE else 1 if name in SUMS else 2 for name in (first, second)]
    return stages[0] < stages[1] or stages in ([0, 0], [2, 2])


@pytest.mark.parametrize("names", PAIRS, ids="-".join)
def test_devices_act_in_the_order_of_the_list_or_it_is_refused(names: tuple[str, str]) -> None:
    x, w = operands()

    def ran(*names: str) -> Tensor | None:
        hardware = [DEVICES[name]() for name in names]
        if fit(*names):
            return nk.linear(x, w, hardware=hardware, seed=SEED)
        said = "at most once" if {*names} == {*SUMS} else "in the order in which a signal passes"
        with pytest.raises(ValueError, match=said):
            nk.linear(x, w, hardware=hardware, seed=SEED)
        return None

    first, second = names
    there, back = ran(first, second), ran(second, first)
    assert {first, second} == {*SUMS} or there is not None or back is not None
    if there is not None and back is not None and torch.equal(there, back):
        # Only where the two act on different operands of the products, between which there is no order.
        acts = [{"x"} if n in OF_INPUTS else {"x", "y"} if n == "both" else {"w"} for n in names]
        assert {first, second} <= {*INSIDE, "both"} and not acts[0] & acts[1]


def test_arithmetic_stands_before_the_outputs_devices() -> None:
    x, w = operands()
    serial = Serial(low=-2, high=2)
    of: Any = dict(seed=SEED)
    in_list = nk.linear(x, w, hardware=[DAC(4, "row"), serial, ADC(4, 2.0)], **of)
    assert torch.equal(nk.linear(x, w, hardware=[DAC(4, "row"), ADC(4, 2.0)], arithmetic=serial, **of), in_list)
    with pytest.raises(ValueError, match=r"linear: hardware must list .*; got DAC\(.*\) after Serial"):
        nk.linear(x, w, hardware=[serial, DAC(4, "row")], **of)
    with pytest.raises(ValueError, match="NoisyLinear: hardware must list devices in the order"):
        nk.NoisyLinear(6, 5, hardware=[serial, nk.WeightNoise(add=0.1)])
    with pytest.raises(ValueError, match="inject: hardware must list devices in the order"):
        nk.inject(nn.Linear(6, 5), None, hardware={"": [ADC(4, 1.0), nk.MacNoise(0.1)]})


# ------------------------------------------------------------------------------------------- complex values


class Doubled(Arithmetic):
    def contract(self, x: Tensor, weight: Tensor, draw: Draw) -> Tensor:
        return 2 * draw.contraction(x, weight)


REAL = "must be real, got complex64: make real and imaginary parts values of their own"


@pytest.mark.parametrize("device", [*DEVICES.values(), Doubled])
def test_complex_values_are_refused_by_every_device(device: Callable[[], Device]) -> None:
    z, w = operands(torch.cfloat)
    image, kernel = torch.randn(2, 1, 4, 4), torch.randn(3, 1, 2, 2)
    for x, weight, name in ((z, w, "x"), (z.real, w, "weight")):
        with pytest.raises(TypeError, match=f"linear: {name} {REAL}"):
            nk.linear(x, weight, hardware=[device()], seed=1)
    with pytest.raises(TypeError, match=f"conv2d: x {REAL}"):
        nk.conv2d(image.cfloat(), kernel.cfloat(), hardware=[device()], seed=1)
    with pytest.raises(TypeError, match=f"linear: bias {REAL}"):
        nk.linear(z.real, w.real, torch.zeros(5).cfloat(), hardware=[device()], seed=1)
    model = nn.Sequential(nn.Linear(6, 5, dtype=torch.cfloat))
    with (
        nk.inject(model, None, hardware=[device()]),
        nk.noise_state(model, seed=1),
        pytest.raises(TypeError, match=REAL),
    ):
        model(z)


def test_complex_values_are_refused_by_every_operator() -> None:
    z, w = operands(torch.cfloat)
    noise = nk.Noise(add=0.1)
    image = torch.ones(1, 1, 4, 4, dtype=torch.cfloat)
    calls: list[Callable[[], Any]] = [
        lambda: nk.perturb(z, noise), lambda: nk.matmul(z, w.T, noise=noise), lambda: nk.linear(z, w, noise=noise),
        lambda: nk.perturb_relu_max_pool2d(image, noise, 2), lambda: nk.conv2d(image, image, noise=noise),
        lambda: nk.conv_transpose2d(image, image, noise=noise), lambda: nk.arithmetic.quantize(z, "M2E4"),
        lambda: nk.NoiseSite(noise)(z), lambda: nk.NoisyLinear(6, 5, noise=noise)(z),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(TypeError, match=REAL):
            call()

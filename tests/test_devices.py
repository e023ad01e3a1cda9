"""Device models: each against its formula written again in numpy, their moments, gradients, and whose noise it is."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

import noisykernels as nk
from noisykernels.hardware.contraction import Contraction
from noisykernels.noise.arguments import Key

pytestmark = pytest.mark.usefixtures("one_thread")

FALSE_ALARM = 1e-6  # of each test of a moment
SIGMAS = float(stats.norm.isf(FALSE_ALARM / 2))
SEED, SITE = 5, 3
# name -> (function, shapes of x and weight, its options)
OPS: dict[str, tuple[Callable[..., Tensor], tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "linear": (nk.linear, (6, 8), (12, 8), {}),
    "conv2d": (nk.conv2d, (6, 4, 5, 5), (12, 2, 3, 3), {"groups": 2, "padding": 1}),
    "conv_transpose2d": (nk.conv_transpose2d, (6, 4, 5, 5), (4, 6, 3, 3), {"groups": 2, "stride": 2}),
}
FEATURES = 12  # of each of them
every_op = pytest.mark.parametrize("op", OPS)


class Seen(nk.hardware.Device):
    """Keeps what the devices before it in the list have made."""

    def __init__(self) -> None:
        self.weights: list[Tensor] = []

    def weight(self, weight: Tensor, draw: nk.hardware.Draw) -> Tensor:
        self.weights.append(weight)
        return weight


def held(device: nk.hardware.Device, weight: Tensor, op: str = "linear", draw: int = 0, seed: int = SEED) -> Tensor:
    """The weight that the array holds."""
    function, x, _, options = OPS[op]
    x = torch.zeros((1, weight.shape[1]) if op == "linear" else x, dtype=weight.dtype)
    seen = Seen()
    function(x, weight, hardware=[device, seen], seed=seed, site=SITE, draws=[draw], **options)
    return seen.weights[0]


def weights(op: str, dtype: torch.dtype = torch.float32) -> Tensor:
    weight = torch.randn(OPS[op][2], dtype=dtype, generator=torch.Generator().manual_seed(1))
    weight.view(-1)[::7] = 0
    return weight


def eps(shape: Any, operand: str, draw: int = 0) -> np.ndarray:
    return nk.eps(tuple(shape), seed=SEED, site=SITE, operand=operand, draw=draw).double().numpy()


def largest(op: str, weight: Tensor, over: str) -> np.ndarray:
    """max |W|, beside the weight; feature n of a transposed convolution is column n % 6 of group n // 6."""
    w = weight.detach().double().abs().numpy()
    if over == "layer":
        return w.max()
    if op != "conv_transpose2d":
        return w.max(tuple(range(1, w.ndim)), keepdims=True)
    result = np.empty_like(w)
    for part in (slice(0, 2), slice(2, 4)):
        result[part] = w[part].max((0, 2, 3), keepdims=True)
    return result


def close(found: Tensor, expected: np.ndarray, size: float, roundings: int) -> None:
    """Equal but for this many roundings of values of this size."""
    unit = torch.finfo(found.dtype).eps / 2
    np.testing.assert_allclose(found.detach().double().numpy(), expected, rtol=0, atol=roundings * unit * size)


# ------------------------------------------------------------------------------------------- pairs


@every_op
@pytest.mark.parametrize("over", ["layer", "channel"])
@pytest.mark.parametrize("options", [{}, {"levels": 10}, {"levels": 10, "rounding": "nearest"}, {"clip": False}])
def test_a_pair_is_the_published_formula(op: str, over: str, options: dict[str, Any]) -> None:
    """In conductances, as published. Float64: nothing is rounded to another step."""
    weight, g_max, sigma = weights(op, torch.float64), 0.1, 0.004
    found = held(nk.hardware.DifferentialPair(sigma, g_max=g_max, over=over, **options), weight, op, draw=2)
    w, c = weight.numpy(), g_max / largest(op, weight, over)
    g = c * w
    if "levels" in options:
        step = g_max / options["levels"]
        g = (np.rint if "rounding" in options else np.floor)(np.round(g / step, 12)) * step
    plus = np.where(g > 0, g, 0) + sigma * eps(w.shape, "g_plus", 2)
    minus = np.where(g < 0, -g, 0) + sigma * eps(w.shape, "g_minus", 2)
    if options.get("clip", True):
        assert (plus < 0).any() and (minus < 0).any()
        plus, minus = plus.clip(0), minus.clip(0)
    close(found, (plus - minus) / c, 8.0, 16)


def test_noise_of_a_pair_without_clipping() -> None:
    """std = sqrt(2) sigma / G_max max|W|; with clipping, a weight of zero has half the mean square."""
    weight = torch.zeros(400, 500)
    weight[0, 0] = -3.0
    noise = (held(nk.hardware.DifferentialPair(0.02, g_max=0.5, clip=False), weight) - weight).double()
    n, std = noise.numel(), math.sqrt(2) * 0.02 / 0.5 * 3
    assert float(noise.std()) == pytest.approx(std, rel=SIGMAS / math.sqrt(2 * n))
    assert abs(float(noise.mean())) < SIGMAS * std / math.sqrt(n)
    clipped = held(nk.hardware.DifferentialPair(0.02, g_max=0.5), weight).double().flatten()[1:] / (0.02 / 0.5 * 3)
    # max(0, a) - max(0, b): mean square 1/2 + 1/2 - 2 / (2 pi), fourth moment below 3 + 3 + 6 / 4
    assert float(clipped.square().mean()) == pytest.approx(1 - 1 / math.pi, abs=SIGMAS * math.sqrt(7.5 / n))


@every_op
@pytest.mark.parametrize("over", ["layer", "channel"])
def test_without_noise_the_weight_comes_back(op: str, over: str) -> None:
    weight = weights(op)
    for device in (
        nk.hardware.DifferentialPair(0.0, g_max=25.0, over=over),
        nk.hardware.DifferentialPair(0.0, over=over, clip=False),
        nk.hardware.PCM(1e7, programming=0.0, drift=0.0, read=0.0, over=over),
        nk.hardware.PCM(programming=0.0, read=0.0, over=over, compensate=True),
    ):
        assert torch.equal(held(device, weight, op), weight), device
    for device in (
        nk.hardware.DifferentialPair(0.1, levels=4, over=over),
        nk.hardware.PCM(100.0, over=over, compensate=True),
    ):
        assert torch.equal(held(device, torch.zeros_like(weight), op), torch.zeros_like(weight)), device


def test_steps_by_hand() -> None:
    w = torch.tensor([[1.0, 0.99, 0.3, 0.2, 0.0, -0.2, -0.3, -0.99, -1.0]])
    down = [1.0, 0.75, 0.25, 0.0, 0.0, -0.25, -0.5, -1.0, -1.0]
    assert held(nk.hardware.DifferentialPair(0.0, levels=4), w).tolist() == [down]
    nearest = [1.0, 1.0, 0.25, 0.25, 0.0, -0.25, -0.25, -1.0, -1.0]
    assert held(nk.hardware.DifferentialPair(0.0, levels=4, rounding="nearest"), w).tolist() == [nearest]
    ends = torch.tensor([[0.7, -0.7, 0.0]])
    for levels in (3, 10, 59, 63, 117, 127):  # the largest weight is on the grid whatever the number of steps
        assert torch.allclose(held(nk.hardware.DifferentialPair(0.0, levels=levels), ends), ends, rtol=2.0**-23, atol=0)


def test_gradient_of_a_pair_by_hand() -> None:
    """1, straight through the steps; 0 where the device that holds the weight is clipped."""
    w = weights("linear").requires_grad_()
    for levels in (None, 5):
        device = nk.hardware.DifferentialPair(0.3, levels=levels)
        (grad,) = torch.autograd.grad(held(device, w).sum(), w)
        size = largest("linear", w, "layer")
        value = w.detach().double().numpy()
        value = value if levels is None else np.floor(value / size * levels) / levels * size
        plus, minus = (0.3 * size * eps(w.shape, name) for name in ("g_plus", "g_minus"))
        lives = np.where(value >= 0, value + plus >= 0, -value + minus >= 0)
        assert 0 < lives.sum() < lives.size
        np.testing.assert_array_equal(grad.numpy(), lives)
    (grad,) = torch.autograd.grad(held(nk.hardware.DifferentialPair(0.0), w).sum(), w)
    assert torch.equal(grad, torch.ones_like(w))


# ------------------------------------------------------------------------------------------- phase-change memory


def pcm(w: np.ndarray, size: np.ndarray, t: float, compensate: bool, e: tuple[np.ndarray, ...]) -> np.ndarray:
    """Conductances in microsiemens."""
    target = np.abs(w) / size * 25
    g = target / 25
    made = np.maximum(0, target + (0.26348 + 1.9650 * g - 1.1731 * g**2) * e[0])
    log_g = np.log(np.maximum(g, 1e-30))
    mu = np.clip(-0.0155 * log_g + 0.0244, 0.049, 0.1)
    nu = np.abs(mu + np.clip(-0.0125 * log_g - 0.0059, 0.008, 0.045) * e[1])
    drifted = made * ((t + 20) / 20) ** -nu
    q = np.minimum(0.0088 / np.maximum(made / 25, 1e-30) ** 0.65, 0.2)
    found = np.maximum(0, drifted * (1 + q * np.sqrt(np.log((t + 20 + 250e-9) / 500e-9)) * e[2]))
    if compensate:
        found = found * made[w != 0].sum() / found[w != 0].sum()
    return np.sign(w) * found * size / 25


@every_op
@pytest.mark.parametrize("over", ["layer", "channel"])
@pytest.mark.parametrize(("time", "compensate"), [(0.0, False), (3600.0, False), (3.15e7, True)])
def test_pcm_is_the_published_model(op: str, over: str, time: float, compensate: bool) -> None:
    stages = ("programming", "drift", "read")
    for dtype, roundings in ((torch.float64, 1000), (torch.float32, 100)):
        weight = weights(op, dtype)
        e = tuple(eps(weight.shape, stage, 1) for stage in stages)
        found = held(nk.hardware.PCM(time, over=over, compensate=compensate), weight, op, draw=1)
        # the largest values are about 4; with 1e-7 a logarithm's argument, and Q, are bounded a little earlier
        close(found, pcm(weight.double().numpy(), largest(op, weight, over), time, compensate, e), 4.0, roundings)


def test_moments_of_pcm() -> None:
    """Each stage alone, devices at half the largest conductance."""
    n = 100_000
    weight = torch.full((100, n // 100), -0.5)
    weight[0, 0] = 1.0
    off = {"programming": 0.0, "drift": 0.0, "read": 0.0}

    def values(time: float, **on: float) -> np.ndarray:
        return -held(nk.hardware.PCM(time, **(off | on)), weight).double().flatten()[1:].numpy()

    def check(found: np.ndarray, mean: float, std: float) -> None:
        assert found.mean() == pytest.approx(mean, abs=SIGMAS * std / math.sqrt(n))
        assert found.std() == pytest.approx(std, rel=SIGMAS / math.sqrt(2 * n))

    check(values(0.0, programming=1.0), 0.5, (0.26348 + 1.9650 / 2 - 1.1731 / 4) / 25)
    check(values(0.0, programming=0.5), 0.5, (0.26348 + 1.9650 / 2 - 1.1731 / 4) / 50)
    # -ln of what is left: nu ln((t + 20) / 20), nu of mean 0.049 and deviation 0.008: both at their bounds here
    check(-np.log(values(180.0, drift=1.0) / 0.5), 0.049 * math.log(10), 0.008 * math.log(10))
    q = 0.0088 / 0.5**0.65
    check(values(1000.0, read=1.0), 0.5, 0.5 * q * math.sqrt(math.log(1020.00000025 / 500e-9)))
    assert (values(0.0, drift=1.0) == 0.5).all()  # nothing has drifted yet


def test_a_chip_ages() -> None:
    """At a later time it is the same chip: what was programmed and the coefficients of the drift are the same."""
    weight = weights("linear")
    fresh, hour, year = (held(nk.hardware.PCM(t, read=0.0), weight).double() for t in (0.0, 3600.0, 3.15e7))
    some = fresh != 0
    slope = (hour / fresh)[some].log() / math.log(3620 / 20)
    assert torch.allclose((year / fresh)[some].log(), slope * math.log(3.150002e7 / 20), atol=1e-5)  # float32
    assert (slope <= 0).all() and len(slope.unique()) > 50
    restored = held(nk.hardware.PCM(3.15e7, compensate=True), weight)
    assert restored.abs().sum() == pytest.approx(float(fresh.abs().sum()), rel=1e-6)
    by_channel = held(nk.hardware.PCM(3.15e7, compensate=True, over="channel"), weight).double().numpy()
    made = held(nk.hardware.PCM(0.0, read=0.0, over="channel"), weight).double().numpy()
    size = largest("linear", weight, "channel")
    assert np.abs(by_channel / size).sum() == pytest.approx(np.abs(made / size).sum(), rel=1e-6)


# ------------------------------------------------------------------------------------------- converters

INF, NAN = math.inf, math.nan


@pytest.mark.parametrize(
    ("options", "pairs"),
    [
        # 3 bits signed, limit 3: step 1, codes -4 ... 3; ties to even
        ({"bits": 3, "limit": 3.0}, [(0.4, 0), (0.5, 0), (1.5, 2), (2.5, 2), (-0.5, 0), (-1.5, -2), (3.4, 3)]),
        ({"bits": 3, "limit": 3.0}, [(9.0, 3), (-4.2, -4), (-9.0, -4), (INF, 3), (-INF, -4), (NAN, NAN)]),
        ({"bits": 3, "limit": 3.0, "rounding": "floor"}, [(0.9, 0), (-0.1, -1), (3.9, 3), (-3.1, -4), (-7.0, -4)]),
        # 2 bits unsigned, limit 1.5: step 0.5, codes 0 ... 3
        ({"bits": 2, "limit": 1.5, "signed": False}, [(-1.0, 0), (0.2, 0), (0.3, 0.5), (1.4, 1.5), (5.0, 1.5)]),
        ({"bits": 1, "limit": 2.0, "signed": False}, [(0.9, 0), (1.1, 2), (-3.0, 0), (4.0, 2)]),
        # the limit of a row: its largest magnitude
        ({"bits": 2, "limit": "row"}, [(-6.0, -6), (2.0, 0), (4.0, 6), (0.0, 0)]),
        ({"bits": 3, "limit": "row"}, [(0.0, 0), (0.0, 0)]),
    ],
)
def test_codes_by_hand(options: dict[str, Any], pairs: list[tuple[float, float]]) -> None:
    x = torch.tensor([[value for value, _ in pairs]])
    expected = torch.tensor([[float(code) for _, code in pairs]])
    one = nk.hardware.Draw(Contraction("linear"), Key(torch.tensor(0), None, None, 0, 0), torch.device("cpu"))
    for found in (nk.hardware.DAC(**options).input(x, one), nk.hardware.ADC(**options).output(x, one)):
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_a_code_is_a_multiple_of_the_step_to_the_bit() -> None:
    """What makes the straight-through gradient leaves no rounding behind."""
    x = torch.randn(100, 50)
    for bits, limit, rounding in ((8, 1.7, "nearest"), (5, 0.3, "floor"), (12, 2.1, "floor")):
        y = nk.linear(x, torch.eye(50), hardware=[nk.hardware.DAC(bits, limit, rounding=rounding)])
        step = torch.tensor(limit) / (2 ** (bits - 1) - 1)
        assert torch.equal((y / step).round() * step, y) and len(y.unique()) > 10


@pytest.mark.parametrize("rounding", ["nearest", "floor"])
def test_gradient_of_converters_by_hand(rounding: str) -> None:
    """1 from the smallest code to the largest, both included, and 0 beyond; limits take part in none."""
    x = torch.tensor([[-9.0, -4.1, -4.0, -3.9, 0.3, 0.0, 2.9, 3.0, 3.1, 9.0]], requires_grad=True)
    inside = torch.tensor([[0.0, 0, 1, 1, 1, 1, 1, 1, 0, 0]])
    weight = torch.diag(torch.arange(1.0, 11)).requires_grad_()
    y = nk.linear(x, weight, hardware=[nk.hardware.DAC(3, 3.0, rounding=rounding)])
    grad_x, grad_w = torch.autograd.grad(y.sum(), (x, weight))
    assert torch.equal(grad_x, inside * torch.arange(1.0, 11))
    codes = nk.linear(x, torch.eye(10), hardware=[nk.hardware.DAC(3, 3.0, rounding=rounding)])
    assert torch.equal(grad_w, codes.expand(10, 10))  # of the product: with the codes
    y = nk.linear(x, torch.eye(10), hardware=[nk.hardware.ADC(3, 3.0, rounding=rounding)])
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(grad, inside)
    y = nk.linear(x, torch.eye(10), hardware=[nk.hardware.ADC(3, "row", rounding=rounding)])
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(grad, torch.ones_like(x))


@every_op
def test_limits_of_channels(op: str) -> None:
    """Of input channels for a DAC, of output channels for an ADC; numbers as they come alone."""
    function, x_shape, _, options = OPS[op]
    x, weight = torch.randint(-9, 10, x_shape).float(), torch.randint(-3, 4, OPS[op][2]).float()
    clean = function(x, weight, hardware=[nk.hardware.Device()], **options)
    for kind, value in ((nk.hardware.DAC, x), (nk.hardware.ADC, clean)):
        limits = torch.tensor([3.5, 7.0, 14.0, 1.75]).repeat(5)[: value.shape[1]]
        expected = torch.empty_like(value)
        for n, limit in enumerate(limits):
            expected[:, n] = (value[:, n] / (limit / 7)).round().clamp(-8, 7) * (limit / 7)
        expected = (
            function(expected, weight, hardware=[nk.hardware.Device()], **options)
            if kind is nk.hardware.DAC
            else expected
        )
        assert torch.equal(function(x, weight, hardware=[kind(4, limits)], **options), expected)
        with pytest.raises(ValueError, match=f"{kind.__name__}: limit must hold one value for each of"):
            function(x, weight, hardware=[kind(4, limits[1:])], **options)


def test_channels_of_a_linear_layer_are_last() -> None:
    x = torch.randint(-9, 10, (2, 3, 4)).float()
    y = nk.linear(
        x, torch.eye(4), hardware=[nk.hardware.DAC(4, torch.tensor([7.0, 7, 7, 3.5])), nk.hardware.ADC(4, "row")]
    )
    expected = x.round().clamp(-8, 7)
    expected[..., 3] = (x[..., 3] * 2).clamp(-8, 7) / 2
    limit = expected.abs().amax((1, 2), keepdim=True) / 7  # of all positions of the row
    assert torch.equal(y, (expected / limit).round() * limit)


def test_brainscales_codes_to_the_bit() -> None:
    """Five-bit inputs, weights of six bits and a sign, a gain, rounding down to signed eight bits; in whole numbers."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randint(0, 32, (20, 128), generator=generator)
    weight = torch.randint(-63, 64, (30, 128), generator=generator)
    hardware = [nk.hardware.DAC(5, 31.0, signed=False), nk.hardware.ADC(8, 127.0, rounding="floor")]
    y = nk.linear(x + 0.25, weight / 128, hardware=hardware)
    expected = ((x @ weight.T) // 128).clamp(-128, 127)
    assert (expected == -128).any() and (expected == 127).any() and torch.equal(y.long(), expected)


# ------------------------------------------------------------------------------------------- columns, order


@every_op
def test_columns(op: str) -> None:
    """One number for each output channel and chip, at all rows and positions; in list order, the bias last."""
    function, x_shape, _, options = OPS[op]
    x, weight = torch.randn(x_shape), weights(op)
    clean = function(x, weight, hardware=[nk.hardware.Device()], **options)
    bias = torch.arange(float(FEATURES))
    wide = (-1, *[1] * (x.dim() - 2))
    for draw in (0, 7):
        gain = 1 + 0.5 * torch.from_numpy(eps((FEATURES,), "column_gain", draw)).float().view(wide)
        offset = 2 * torch.from_numpy(eps((FEATURES,), "column_offset", draw)).float().view(wide)
        devices = [nk.hardware.ColumnGain(0.5), nk.hardware.ColumnOffset(2.0)]
        for hardware, expected in ((devices, clean * gain + offset), (devices[::-1], (clean + offset) * gain)):
            y = function(x, weight, bias, hardware=hardware, seed=SEED, site=SITE, draws=[draw], **options)
            torch.testing.assert_close(y, expected + bias.view(wide))
    assert not np.array_equal(eps((FEATURES,), "column_gain"), eps((FEATURES,), "column_offset"))


def test_a_list_is_applied_in_order() -> None:
    """Inputs, then weights, the contraction, outputs, the bias after all."""
    x, w, bias = torch.tensor([[2.6]]), torch.tensor([[10.0]]), torch.tensor([0.25])
    hardware = [
        nk.hardware.ADC(8, 127.0),
        nk.hardware.DAC(4, 7.0),
        nk.hardware.ADC(3, 3.0),
        nk.hardware.DifferentialPair(0.0),
    ]
    assert nk.linear(x, w, bias, hardware=hardware).item() == 3.25  # 3 * 10 -> 30 -> 3
    assert nk.linear(x, w, bias, hardware=[nk.hardware.DAC(4, 7.0), nk.hardware.DAC(2, 1.0)]).item() == 10.25  # 3 -> 1


# ------------------------------------------------------------------------------------------- whose noise it is

MODELS: dict[str, Callable[[], list[nk.hardware.Device]]] = {
    "pair": lambda: [nk.hardware.DifferentialPair(0.05, levels=16, over="channel")],
    "pcm": lambda: [nk.hardware.PCM(1e5, compensate=True)],
    "converters": lambda: [nk.hardware.DAC(4, "row"), nk.hardware.ADC(6, "row", rounding="floor")],
    "columns": lambda: [nk.hardware.ColumnGain(0.1), nk.hardware.ColumnOffset(0.3)],
    "all": lambda: [
        nk.hardware.DAC(5, 31.0), nk.hardware.PCM(10.0), nk.hardware.DifferentialPair(0.02),
        nk.hardware.ColumnGain(0.1), nk.hardware.ColumnOffset(0.3),
        nk.hardware.ADC(8, "row"),
    ],
}  # fmt: skip


def single_products(shape: tuple[int, ...]) -> Tensor:
    """Inputs with one value that is not zero in each row: any order of summation gives the same bits."""
    x = torch.zeros(shape).flatten(1)
    for row in range(len(x)):
        x[row, (7 * row + 3) % x.shape[1]] = row + 2
    return x.view(shape)


@every_op
@pytest.mark.parametrize("model", MODELS)
def test_a_result_does_not_depend_on_its_company(op: str, model: str) -> None:
    """To the bit: splits and shuffles of the batch, draws together or alone, shared or not, channels_last."""
    function, x_shape, _, options = OPS[op]
    x, weight = single_products(x_shape), weights(op)
    hardware = MODELS[model]()

    def run(x: Tensor = x, weight: Tensor = weight, draws: Any = (4, 0, 9), **more: Any) -> Tensor:
        return function(x, weight, hardware=hardware, seed=SEED, site=SITE, draws=list(draws), **options, **more)

    whole = run(shared=True)
    by_draw = whole.view(3, len(x), *whole.shape[1:])
    assert torch.equal(run(torch.cat([x] * 3)), whole)
    for d, draw in enumerate((4, 0, 9)):
        assert torch.equal(run(draws=[draw]), by_draw[d])
    parts = [
        run(x[a:b], shared=True, first_row=a).view(3, b - a, *whole.shape[1:]) for a, b in ((0, 1), (1, 4), (4, 6))
    ]
    assert torch.equal(torch.cat(parts, 1), by_draw)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert torch.equal(run(x[order], draws=[9], rows=order), by_draw[2][order])
    if op != "linear":
        last = torch.channels_last
        assert torch.equal(run(x.to(memory_format=last), weight.to(memory_format=last), shared=True), whole)
    random = model != "converters"
    assert torch.equal(by_draw[0], by_draw[1]) != random
    assert torch.equal(hardware_again(run, model, hardware), whole)


def hardware_again(run: Callable[..., Tensor], model: str, hardware: list[nk.hardware.Device]) -> Tensor:
    """With a copy of the devices."""
    hardware[:] = copy.deepcopy(hardware)
    return run(shared=True)


def test_what_is_held_does_not_depend_on_the_memory_format() -> None:
    """Of a weight with enough values for vector instructions, whose logarithms differ in the last bit from others."""
    weight = torch.randn(12, 6, 7, 7)
    for device in (nk.hardware.DifferentialPair(0.05, levels=9, over="channel"), nk.hardware.PCM(1e5, compensate=True)):
        seen = Seen()
        for w in (weight, weight.to(memory_format=torch.channels_last), weight.flip(3).clone().flip(3)):
            nk.conv2d(torch.zeros(1, 6, 7, 7), w, hardware=[device, seen], seed=SEED)
        assert torch.equal(seen.weights[1], seen.weights[0]) and torch.equal(seen.weights[2], seen.weights[0])


def test_chips_and_sites_differ() -> None:
    weight = torch.ones(20, 20)
    for device in (nk.hardware.DifferentialPair(0.1), nk.hardware.PCM()):
        chips = [held(device, weight, draw=d, seed=s) - 1 for d in (0, 1) for s in (0, 1)]
        values = torch.stack(chips).flatten(1).double()
        assert len(values.unique()) > 0.9 * values.numel()
        # correlation of 400 pairs: deviation 1 / 20
        assert torch.corrcoef(values).fill_diagonal_(0).abs().max() < SIGMAS / 20


def test_two_devices_may_not_draw_from_one_stream() -> None:
    x, w = torch.zeros(1, 2), torch.zeros(2, 2)
    for pair, operand in (
        ([nk.hardware.PCM(), nk.hardware.PCM()], "programming"),
        ([nk.hardware.ColumnOffset(1.0), nk.hardware.ColumnGain(1.0), nk.hardware.ColumnOffset(2.0)], "column_offset"),
        ([nk.MacNoise(read=0.1, explicit=True), nk.hardware.PCM()], "read"),
    ):
        with pytest.raises(ValueError, match=f"linear: hardware must have at most one device that draws '{operand}'"):
            nk.linear(x, w, hardware=pair, seed=0)
    nk.linear(x, w, hardware=[nk.MacNoise(read=0.1), nk.hardware.PCM(), nk.WeightNoise(add=0.1)], seed=0)


# ------------------------------------------------------------------------------------------- torch


@every_op
@pytest.mark.parametrize("model", ["pair", "pcm", "columns"])
def test_gradcheck(op: str, model: str) -> None:
    """The smooth ones, in float64. max|W| takes part in no gradient: the largest weight is held."""
    function, x_shape, w_shape, options = OPS[op]
    hardware: list[nk.hardware.Device] = {
        "pair": [nk.hardware.DifferentialPair(0.1, clip=False)],
        "pcm": [nk.hardware.PCM(1e4, programming=0.2, read=0.5)],
        "columns": [nk.hardware.ColumnGain(0.3), nk.hardware.ColumnOffset(0.3)],
    }[model]
    fixed = weights(op, torch.float64).sign() * torch.empty(w_shape, dtype=torch.float64).uniform_(0.3, 0.9)
    fixed.view(-1)[:2] = torch.tensor([2.0, -0.5])
    some = torch.zeros(w_shape, dtype=torch.bool)
    some.view(-1)[1:6] = True
    x = torch.randn((2, *x_shape[1:]), dtype=torch.float64, requires_grad=True)

    def run(free: Tensor, x: Tensor) -> Tensor:
        weight = fixed.masked_scatter(some, free)
        return function(x, weight, hardware=hardware, seed=SEED, site=SITE, draws=[0, 3], shared=True, **options)

    assert torch.autograd.gradcheck(run, (fixed[some].clone().requires_grad_(), x), fast_mode=True)


def test_gradients_are_finite_where_weights_vanish() -> None:
    w = torch.tensor([[0.0, 1e-30, -1e-8, 1.0]], requires_grad=True)
    for device in (nk.hardware.DifferentialPair(0.1, levels=4), nk.hardware.PCM(100.0, compensate=True)):
        (grad,) = torch.autograd.grad(held(device, w).sum(), w)
        assert grad.isfinite().all(), device
        zeros = torch.zeros(1, 3, requires_grad=True)
        (grad,) = torch.autograd.grad(held(device, zeros).sum(), zeros)
        assert grad.isfinite().all(), device


@pytest.mark.parametrize("op", ["linear", "conv_transpose2d"])
def test_compiled_in_one_graph(op: str) -> None:
    """The same bits as in eager mode, and no second graph for another seed or another draw."""
    function, x_shape, _, options = OPS[op]
    x, weight, hardware = single_products(x_shape), weights(op), MODELS["all"]()
    graphs = 0

    def count(module: Any, _: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return module.forward

    def run(x: Tensor, seed: Tensor, draws: Tensor) -> Tensor:
        return function(x, weight, hardware=hardware, seed=seed, draws=draws, shared=True, **options)

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend=count)
    for seed, draws in ((1, [0, 1]), (2, [5, 9])):
        arguments = (x, torch.tensor(seed), torch.tensor(draws))
        assert torch.equal(compiled(*arguments), run(*arguments))
    assert graphs == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_round_once(dtype: torch.dtype) -> None:
    """What float32 makes of the same values, rounded."""
    weight = weights("linear").to(dtype)
    for device in (nk.hardware.DifferentialPair(0.05, levels=9), nk.hardware.PCM(1e4, compensate=True)):
        assert torch.equal(held(device, weight), held(device, weight.float()).to(dtype))
    x = (torch.randn(5, 4) * 3).to(dtype)
    for hardware in (
        [nk.hardware.DAC(6, 2.0)],
        [nk.hardware.ADC(6, "row")],
        [nk.hardware.ColumnOffset(0.1)],
        [nk.hardware.ColumnGain(0.1)],
    ):
        one, other = (nk.linear(v, torch.eye(4, dtype=v.dtype), hardware=hardware, seed=1) for v in (x, x.float()))
        assert torch.equal(one, other.to(dtype))


@every_op
def test_autocast_decides_the_type(op: str) -> None:
    """That of the contraction, with a bias too; what the array holds is made in float32."""
    function, x_shape, _, options = OPS[op]
    weight, seen = weights(op), Seen()
    hardware = [nk.hardware.PCM(10.0), seen, nk.hardware.ColumnOffset(0.1), nk.hardware.ADC(8, "row")]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for bias in (None, torch.zeros(FEATURES)):
            y = function(torch.randn(x_shape), weight, bias, hardware=hardware, seed=SEED, site=SITE, **options)
            assert y.dtype == torch.bfloat16
    assert torch.equal(seen.weights[0], held(nk.hardware.PCM(10.0), weight, op))


@every_op
def test_vmap_over_inputs_is_a_loop(op: str) -> None:
    function, x_shape, _, options = OPS[op]
    weight, several = weights(op), torch.stack([single_products(x_shape), -single_products(x_shape)])

    def run(x: Tensor) -> Tensor:
        return function(x, weight, hardware=MODELS["all"](), seed=SEED, **options)

    assert torch.equal(torch.func.vmap(run)(several), torch.stack([run(x) for x in several]))


def test_the_noise_is_made_where_the_operands_are() -> None:
    """An integer seed is on the CPU; the noise is on the operands' device all the same."""
    x, weight = torch.zeros(2, 3, device="meta"), torch.zeros(4, 3, device="meta")
    hardware = [
        nk.hardware.DifferentialPair(0.1),
        nk.hardware.PCM(),
        nk.hardware.ColumnGain(0.1),
        nk.hardware.ColumnOffset(0.1),
        nk.hardware.ADC(8, "row"),
    ]
    y = nk.linear(x, weight, hardware=hardware, seed=1)
    assert y.device.type == "meta" and y.shape == (2, 4)


def test_nothing_to_do() -> None:
    for model in MODELS.values():
        assert nk.linear(torch.zeros(0, 3), torch.ones(4, 3), hardware=model(), seed=1).shape == (0, 4)
        y = nk.linear(
            torch.zeros(2, 0), torch.zeros(4, 0), hardware=[nk.hardware.DAC(4, "row"), nk.hardware.ADC(4, 1.0)], seed=1
        )
        assert torch.equal(y, torch.zeros(2, 4))
        assert nk.linear(torch.ones(3), torch.ones(4, 3), hardware=model(), seed=1).shape == (4,)


def test_one_after_the_other_is_the_contraction_of_what_they_make() -> None:
    """A noisy image through all of them, against the same steps one by one."""
    x, weight, bias = torch.randn(3, 4, 5, 5), weights("conv2d"), torch.randn(FEATURES)
    options = OPS["conv2d"][3]
    hardware = [
        nk.InputNoise(add=0.1),
        nk.hardware.DAC(6, 3.0),
        nk.hardware.DifferentialPair(0.1),
        nk.hardware.ColumnGain(0.1),
        nk.hardware.ADC(7, 31.5),
    ]
    y = nk.conv2d(x, weight, bias, hardware=hardware, seed=SEED, site=SITE, draws=[2], **options)
    noisy = x + 0.1 * nk.eps(x.shape, seed=SEED, site=SITE, operand="input", draw=2)
    codes = (noisy / (3 / 31)).round().clamp(-32, 31) * (3 / 31)
    array = held(nk.hardware.DifferentialPair(0.1), weight, "conv2d", draw=2)
    sums = F.conv2d(codes, array, **options)
    sums = sums * (1 + 0.1 * torch.from_numpy(eps((FEATURES,), "column_gain", 2)).float().view(-1, 1, 1))
    steps = (y - bias.view(-1, 1, 1) - sums).abs() / 0.5
    assert steps.max() < 0.51 and (sums.abs() < 31).all()  # rounded to the nearest code; a little for float32


class Stuck(nk.hardware.Device):
    """A device of a user's: see docs/hardware.md."""

    operands = ("programming",)

    def weight(self, weight: Tensor, draw: nk.hardware.Draw) -> Tensor:
        u = draw.fixed(weight.shape, "programming", kind="uniform")
        return torch.where(u < 3**0.5 * (2 * 0.01 - 1), 0.0, weight)


def test_a_device_of_ones_own() -> None:
    """1 % of the cells, others on another chip; none of them twice in a list."""
    weight = torch.ones(300, 400)
    first, second = (held(Stuck(), weight, draw=d) == 0 for d in (0, 1))
    for stuck, share in ((first, 0.01), (second, 0.01), (first & second, 0.0001)):
        low, high = stats.binom.interval(1 - FALSE_ALARM, weight.numel(), share)
        assert low <= int(stuck.sum()) <= high
    with pytest.raises(ValueError, match="at most one device that draws 'programming'"):
        nk.linear(torch.ones(1, 4), torch.ones(3, 4), hardware=[Stuck(), nk.hardware.PCM()])


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: nk.hardware.DifferentialPair(0.1, levels=8),
            "DifferentialPair(sigma=0.1, g_max=1.0, levels=8, over='layer', ",
        ),
        (lambda: nk.hardware.PCM(20.0), "PCM(time=20.0, over='layer', "),
        (lambda: nk.hardware.DAC(4, "row"), "DAC(bits=4, limit='row', signed=True, rounding='nearest')"),
        (lambda: nk.hardware.ADC(4, torch.ones(3)), "ADC(bits=4, limit=<[3]>, signed=True, rounding='nearest')"),
        (lambda: nk.hardware.ColumnGain(torch.tensor(0.5)), "ColumnGain(sigma=0.5)"),
    ],
)
def test_shown(make: Callable[[], nk.hardware.Device], text: str) -> None:
    assert repr(make()).startswith(text)

"""Noise of products, accumulation steps and readings: the definition, the exact fold, its gradients and its range."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from arrays import KEY, Neutral, layer
from operators import assert_same_bits
from scipy.stats import chi2
from torch import Tensor

import noisykernels as nk
from noisykernels.hardware.contraction import Contraction
from noisykernels.hardware.macs import deviation
from noisykernels.reference import noise as reference


def products_one_by_one(x: Tensor, w: Tensor, m: float, a: float, s: float, draw: int) -> np.ndarray:
    """The definition, in float64: eps of product k of output i is element i K + k of its row."""
    rows, n, k = len(x), *w.shape
    eps = {
        name: reference.eps((rows, n * k), **KEY, operand=name, draw=draw).reshape(rows, n, k)
        for name in ("per_product", "per_step", "read")
    }
    xd, wd = x.double().numpy()[:, None, :], w.double().numpy()[None]
    return (xd * wd * (1 + m * eps["per_product"]) + a * eps["per_step"] + s * xd * eps["read"]).sum(-1)


def test_explicit_products_are_the_definition() -> None:
    x, w = torch.randn(3, 6), torch.randn(4, 6)
    y = nk.linear(x, w, hardware=[nk.MacNoise(0.3, 0.2, 0.1, explicit=True)], **KEY, draws=[5])
    assert np.abs(y.numpy() - products_one_by_one(x, w, 0.3, 0.2, 0.1, 5)).max() < 40 * 2**-24 * 30


def test_explicit_products_of_a_convolution_are_those_of_its_patches() -> None:
    """A convolution whose kernel covers the image is a linear layer."""
    x, w = torch.randn(3, 4, 3, 2), torch.randn(5, 4, 3, 2)
    device = nk.MacNoise(0.3, 0.2, 0.1, explicit=True)
    y = nk.conv2d(x, w, hardware=[device], **KEY)
    flat = nk.linear(x.flatten(1), w.flatten(1), hardware=[device], **KEY)
    torch.testing.assert_close(y.flatten(1), flat, rtol=0, atol=30 * 24 * 2**-24)


MACS = {
    "product": dict(per_product=0.3),
    "step": dict(per_step=0.2),
    "read": dict(read=0.4),
    "all": dict(per_product=0.2, per_step=0.1, read=0.1, relative="channel"),
}


@pytest.mark.parametrize("explicit", [False, True], ids=["folded", "explicit"])
@pytest.mark.parametrize("levels", list(MACS))
@pytest.mark.parametrize("name", ["linear", "conv2d", "conv_transpose2d"])
def test_variance_of_noisy_products(name: str, levels: str, explicit: bool) -> None:
    """Over 300 draws, each output's sum of squares over its variance is chi-square; false alarm 1e-6 in all cases."""
    op, (x, w, _), how = layer(name)
    x, w, count = x.detach()[:2], w.detach(), 300
    y = op(
        x, w, **how, hardware=[nk.MacNoise(**MACS[levels], explicit=explicit)], **KEY, draws=range(count), shared=True
    )
    wide = [t.double() for t in (x, w)]

    def clean(p: Tensor, q: Tensor) -> Tensor:
        name_ = name.removesuffix(" 3-d")
        return getattr(F, name_)(p, q, **how)

    m, a, s = (MACS[levels].get(key, 0.0) for key in ("per_product", "per_step", "read"))
    taps = w.shape[0] // how.get("groups", 1) if "transpose" in name else w.shape[1]
    steps = taps * math.prod(w.shape[2:])
    n = clean(*wide).shape[1]
    unit = torch.ones(n, dtype=torch.float64)
    if MACS[levels].get("relative") == "channel":
        parts = wide[1]
        if "transpose" in name:
            parts = parts.view(2, -1, *w.shape[1:]).transpose(1, 2).flatten(0, 1)
        unit = parts.flatten(1).abs().amax(1)
    unit = unit.view(-1, *[1] * (clean(*wide).dim() - 2))
    squares = wide[0].square()
    variance = m**2 * clean(squares, wide[1].square()) + a**2 * steps
    variance = variance + (s * unit) ** 2 * clean(squares, torch.ones_like(wide[1]))
    ratio = ((y.double().view(count, *variance.shape) - clean(*wide)).square() / variance).sum(0)
    bound = 1e-6 / (24 * ratio.numel())
    assert ratio.min() > chi2.ppf(bound, count) and ratio.max() < chi2.isf(bound, count)


def test_folded_products_are_one_eps_for_each_output() -> None:
    """Mean and deviation in float64, and the oracle's eps of operand per_product."""
    x, w, b = torch.randn(5, 70), torch.randn(33, 70), torch.randn(33)
    rows = [9, 2, 4, 0, 1]
    y = nk.linear(x, w, b, hardware=[nk.MacNoise(per_product=0.3)], **KEY, draws=[3, 8], shared=True, rows=rows)
    xd, wd = x.double(), w.double()
    spread = 0.3 * (xd.square() @ wd.square().T).sqrt()
    for i, draw in enumerate((3, 8)):
        eps = reference.eps((5, 33), **KEY, operand="per_product", draw=draw, rows=np.array(rows))
        expected = xd @ wd.T + b + spread * torch.from_numpy(eps).double()
        # 70 products of up to 16, each step rounded once.
        assert (y[5 * i : 5 * i + 5] - expected).abs().max() < 140 * 2**-24 * 100


@pytest.mark.parametrize("x_scale", [1e-30, 1e-19, 1.0, 1e18, 1e30])
@pytest.mark.parametrize("w_scale", [1e-30, 1e-6, 1.0, 1e7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_squares_neither_overflow_nor_vanish(x_scale: float, w_scale: float, dtype: torch.dtype) -> None:
    """A row of x and a feature of w in other units: the noise follows, although squares leave float32's range."""
    if not 1e-33 < x_scale * w_scale < 1e36:
        pytest.skip("the products themselves leave the range")
    x, w = torch.randn(3, 40, dtype=dtype), torch.randn(6, 40, dtype=dtype)
    of_row, of_feature = torch.ones(3, 1, dtype=dtype), torch.ones(6, 1, dtype=dtype)
    of_row[1], of_feature[2] = x_scale, w_scale

    def noise(x: Tensor, w: Tensor) -> Tensor:
        device = nk.MacNoise(per_product=0.5, read=0.25, relative="channel")
        return nk.linear(x, w, hardware=[device], **KEY) - F.linear(x, w)

    back = noise(x * of_row, w * of_feature) / of_row / of_feature.T
    spread = 0.5 * F.linear(x.square(), w.square()).sqrt()
    # Noise is the difference of values some 40 times larger, of 40 products each rounded.
    assert float(((back - noise(x, w)) / spread).abs().max()) < 40 * 40 * torch.finfo(dtype).eps


def test_a_value_that_is_not_finite_shows() -> None:
    for bad in (math.inf, math.nan):
        x = torch.ones(2, 3)
        x[1, 2] = bad
        y = nk.linear(x, torch.ones(4, 3), hardware=[nk.MacNoise(per_product=0.1)], seed=1)
        assert y[0].isfinite().all() and not y[1].isfinite().any()


@pytest.mark.parametrize("explicit", [False, True], ids=["folded", "explicit"])
@pytest.mark.parametrize("name", ["linear", "conv2d", "conv_transpose2d"])
def test_noise_of_products_under_autocast(name: str, explicit: bool) -> None:
    """What comes out is of the half type, the noise within is that of float32. The operands have no more digits."""
    op, operands, how = layer(name)
    x, w, b = (t.detach().bfloat16().float() for t in operands)
    hardware = [nk.MacNoise(0.3, 0.2, 0.1, relative="channel", explicit=explicit)]
    ids: dict[str, Any] = dict(how, hardware=hardware, **KEY, draws=[3, 1], shared=True)
    with torch.autocast("cpu", torch.bfloat16):
        low, biased = op(x, w, **ids), op(x, w, b, **ids)
        product = op(x, w, **{**ids, "hardware": [Neutral()]})
    wide = op(x, w, **ids)
    assert low.dtype == biased.dtype == torch.bfloat16
    if explicit:
        assert_same_bits(low, wide.bfloat16())
    else:
        # The library's own product in bfloat16, whatever it rounds within (operators.py), and the noise of float64.
        # What remains is the rounding of their sum to 8 bits, at most 2^-8 / (1 + 2^-8) of it, and those of float32 to
        # 24 bits: one of the sum, and fewer than 2^6 of the noise, the root of a sum of at most 27 squares.
        assert_same_bits(product, op(x.bfloat16(), w.bfloat16(), **{**ids, "hardware": [Neutral()]}))
        noise = op(x.double(), w.double(), **ids) - op(x.double(), w.double(), **{**ids, "hardware": [Neutral()]})
        exact = product.double() + noise
        assert ((low.double() - exact).abs() <= 2.0**-8 * exact.abs() + 2.0**-18 * noise.abs()).all()
    assert_same_bits(op(x.bfloat16(), w.bfloat16(), **ids), low)  # half types without autocast

    def f(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return op(x, w, **how, hardware=hardware, seed=torch.tensor(5), site=2)

    torch._dynamo.reset()
    assert_same_bits(torch.compile(f, fullgraph=True, backend="eager")(x), f(x))


def test_noise_of_half_types_is_not_rounded_product_by_product() -> None:
    """Steps of 2^-7 in bfloat16: the sum of 512 explicit products is that of float32, rounded once."""
    x, w = torch.randn(2, 512).bfloat16(), torch.randn(3, 512).bfloat16()
    device = [nk.MacNoise(0.3, 0.2, 0.1, explicit=True)]
    wide = nk.linear(x.float(), w.float(), hardware=device, **KEY)
    assert_same_bits(nk.linear(x, w, hardware=device, **KEY), wide.bfloat16())


def test_a_deviation_is_a_pure_function_of_its_operands() -> None:
    """The composite form takes any contraction; with one product it is the level times that product."""
    x, w = torch.tensor([[3.0]]), torch.tensor([[-2.0]])
    levels = nk.MacNoise(per_product=0.5, per_step=1.5, read=2.0).levels(Contraction("linear"), w)
    expected = math.sqrt((0.5 * 6) ** 2 + 1.5**2 + (2.0 * 3) ** 2)
    assert float(deviation(levels, Contraction("linear"), x, w)) == pytest.approx(expected, rel=1e-6)


def test_bad_levels_in_a_graph_show() -> None:
    """Where a level cannot be looked at, a bad one makes NaN, as everywhere; also beside good ones."""
    x, w = torch.ones(2, 3), torch.ones(4, 3)
    image, kernel = torch.ones(2, 3, 4, 4), torch.ones(4, 3, 3, 3)
    for bad in (math.nan, -1.0, math.inf):
        level = torch.tensor(1.0, dtype=torch.float64)
        devices = [nk.MacNoise(per_product=level, per_step=0.1), nk.MacNoise(per_step=0.1, read=level)]
        level.fill_(bad)
        for device in devices:
            with pytest.raises(ValueError, match="must be finite"):
                nk.linear(x, w, hardware=[device], seed=1)
            torch._dynamo.reset()
            f = torch.compile(lambda device: nk.linear(x, w, hardware=[device], seed=1), backend="eager")
            g = torch.compile(lambda device: nk.conv2d(image, kernel, hardware=[device], seed=1), backend="eager")
            assert f(device).isnan().all() and g(device).isnan().all()


def test_large_operands_are_no_nan() -> None:
    x, w = torch.full((2, 50), 1e11), torch.full((3, 50), 1e8)
    y = nk.linear(x, w, hardware=[nk.MacNoise(0.1, 0.0, 0.01)], **KEY)
    assert y.isfinite().all() and not torch.equal(y, F.linear(x, w))


def test_second_derivatives_where_there_is_no_noise_are_zero() -> None:
    x = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    w = torch.ones(4, 3, dtype=torch.float64, requires_grad=True)
    y = nk.linear(x, w, hardware=[nk.MacNoise(per_product=0.5)], seed=1)
    (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x, allow_unused=True)
    assert second is None or (second == 0).all()


def test_scales_of_squares_belong_to_their_features() -> None:
    """In several panels of features, some of them in other units; against float64."""
    x, w = torch.randn(4, 1000), torch.randn(300, 1000)
    units = 10.0 ** (torch.arange(300) % 7 * 4 - 12)[:, None].double()
    w = (w * units).float()
    y = nk.linear(x, w, hardware=[nk.MacNoise(per_product=0.5)], **KEY)
    xd, wd = x.double(), w.double()
    eps = torch.from_numpy(reference.eps((4, 300), **KEY, operand="per_product", draw=0)).double()
    expected = xd @ wd.T + 0.5 * (xd.square() @ wd.square().T).sqrt() * eps
    assert ((y - expected) / units.T).abs().max() < 1000 * 2**-24 * 16  # products of up to 16, each rounded once

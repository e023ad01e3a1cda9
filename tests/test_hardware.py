"""Noise inside a contraction: the weights' bits, the folded noise of products, gradients, and what torch makes of it.

A contraction with one-hot inputs gives the weights back, to the bit: so the noisy weights are seen.
"""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from operators import assert_same_bits, covering
from scipy.stats import chi2
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import noisykernels as nk
from noisykernels import _C, reference
from noisykernels.contraction import Contraction
from noisykernels.macs import deviation

KEY: dict[str, Any] = dict(seed=2**63 + 5, site=9)
DRAWS: dict[str, dict[str, Any]] = {
    "one": dict(),
    "numbered": dict(draws=[7]),
    "shared": dict(draws=[5, 0, 2**32 - 1], shared=True),
    "expanded": dict(draws=[3, 9]),
}
NOISES: dict[str, dict[str, Any]] = {
    "add": dict(add=0.25),
    "mul": dict(mul=0.5),
    "fold": dict(add=0.25, mul=0.5, fold=True),
    "uniform": dict(add=0.25, kind="uniform"),
}


class Neutral(nk.Device):
    """Changes nothing, but is no noise of ours: the contraction is then run draw by draw in plain torch."""


def scale_of(weight: Tensor, relative: str | None, over: tuple[int, ...]) -> Tensor:
    """max|W| as the levels' unit, in float64; `over`: the dimensions that are not output features."""
    if relative is None:
        return torch.ones((), dtype=torch.float64)
    return (weight.abs().amax() if relative == "layer" else weight.abs().amax(over, keepdim=True)).double()


def expected_weights(weight: Tensor, how: dict[str, Any], relative: str | None, draws: Any) -> Tensor:
    """The oracle's noisy weights, draw by draw."""
    noise = nk.Noise(**how)
    unit = scale_of(weight, relative, tuple(range(1, weight.dim())))
    if noise.add is not None:
        noise.add = noise.add * (unit.unsqueeze(0) if unit.dim() else unit)
    return reference.perturb(weight, noise, **KEY, draws=draws, shared=True, operand="weight")


# ------------------------------------------------------------------------------------------- noisy weights


@pytest.mark.parametrize(
    "case",
    covering(
        2,
        noise=list(NOISES),
        relative=[None, "layer", "channel"],
        draws=list(DRAWS),
        dtype=[torch.float32, torch.float64, torch.bfloat16, torch.float16],
        shape=[(5, 3), (16, 16), (200, 700), (1, 9), (37, 1)],  # 200 x 700: in several panels
        layout=["plain", "transposed", "strided"],
        threads=[1, 2],
    ),
    ids=str,
)
def test_noisy_weights_are_the_oracles(case: dict[str, Any]) -> None:
    n, k = case["shape"]
    g = torch.Generator().manual_seed(n)
    weight = torch.randn(n, k, generator=g).to(case["dtype"])
    if case["layout"] == "transposed":
        weight = weight.t().contiguous().t()
    elif case["layout"] == "strided":
        weight = torch.stack([weight, weight], -1)[..., 0]
    how = DRAWS[case["draws"]]
    count = len(how.get("draws", [0]))
    eye = torch.eye(k, dtype=case["dtype"])
    x = eye if how.get("shared") or count == 1 else eye.repeat(count, 1)
    relative = None if case["noise"] == "mul" else case["relative"]
    device = nk.WeightNoise(**NOISES[case["noise"]], relative=relative)
    before = torch.get_num_threads()
    torch.set_num_threads(case["threads"])
    try:
        y = nk.linear(x, weight, hardware=[device], **KEY, **how)
    finally:
        torch.set_num_threads(before)
    seen = y.view(count, k, n).transpose(1, 2).reshape(count * n, k)
    assert_same_bits(seen + 0.0, expected_weights(weight, NOISES[case["noise"]], relative, how.get("draws")) + 0.0)


@pytest.mark.parametrize("draws", list(DRAWS))
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(6, 3, 3, 2), (400, 64, 3, 3)], ids=["small", "panels"])
def test_noisy_weights_of_a_convolution(draws: str, last: bool, shape: tuple[int, ...]) -> None:
    """One-hot images, one for each weight: position (0, 0) of the output is that weight."""
    n, *item = shape
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    count, how = math.prod(item), DRAWS[draws]
    x = torch.eye(count).view(count, *item)[: min(count, 60)]
    if last:
        weight, x = weight.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    copies = len(how.get("draws", [0]))
    rows = x if how.get("shared") or copies == 1 else torch.cat([x] * copies)
    y = nk.conv2d(rows, weight, hardware=[nk.WeightNoise(add=0.25, relative="channel")], **KEY, **how)
    seen = y.flatten(1).view(copies, len(x), n).transpose(1, 2).flatten(0, 1)
    expected = expected_weights(weight, dict(add=0.25), "channel", how.get("draws")).flatten(1)[:, : len(x)]
    assert_same_bits(seen.contiguous(), expected.contiguous())


def test_noisy_weights_of_a_transposed_convolution() -> None:
    """Its output features lie along dimension 1, in groups; rows are dimension 0 all the same."""
    weight = torch.randn(4, 3, 2, 2)
    x = torch.eye(4).view(4, 4, 1, 1)
    y = nk.conv_transpose2d(x, weight, groups=2, hardware=[nk.WeightNoise(add=0.5, relative="channel")], **KEY)
    largest = weight.view(2, 2, 3, 4).abs().amax((1, 3)).double()  # (groups, features of a group)
    level = largest.repeat_interleave(2, 0).view(1, 4, 3, 1, 1) * 0.5
    noisy = reference.perturb(weight, nk.Noise(add=level), **KEY, operand="weight")
    for i in range(4):
        group = slice(0, 3) if i < 2 else slice(3, 6)
        assert_same_bits(y[i, group], noisy[i])


def test_the_noisy_weight_is_never_whole() -> None:
    """A weight of 256 MiB: the contraction may take what its result takes and some panels, not another weight."""
    program = """
import resource, torch, noisykernels as nk
weight, x = torch.ones(8192, 8192), torch.ones(2, 8192)
torch.nn.functional.linear(x, weight)
nk.linear(x, weight[:64], hardware=[nk.WeightNoise(add=0.1)], seed=1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
nk.linear(x, weight, hardware=[nk.WeightNoise(add=0.1)], seed=1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    grown = int(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)
    assert grown < 64 * 1024  # KiB


# ------------------------------------------------------------------------- the kernels against plain torch

LAYERS: dict[str, dict[str, Any]] = {
    "linear": dict(op=nk.linear, x=(4, 5), w=(3, 5)),
    "linear 3-d": dict(op=nk.linear, x=(4, 2, 70), w=(33, 70)),
    "conv2d": dict(op=nk.conv2d, x=(4, 6, 5, 5), w=(8, 3, 3, 3), padding=1, groups=2, stride=2),
    "conv1d": dict(op=nk.conv1d, x=(4, 3, 9), w=(5, 3, 3), dilation=2),
    "small conv_transpose2d": dict(op=nk.conv_transpose2d, x=(2, 2, 2, 2), w=(2, 1, 2, 2), groups=2, stride=2),
    "conv_transpose2d": dict(op=nk.conv_transpose2d, x=(4, 4, 4, 4), w=(4, 3, 3, 3), groups=2, stride=2, padding=1),
}
DEVICES: dict[str, list[nk.Device]] = {
    "weights": [nk.WeightNoise(add=0.1)],
    "relative weights": [nk.WeightNoise(mul=0.3)],
    "products": [nk.MacNoise(per_product=0.3)],
    "reading": [nk.MacNoise(read=0.2, relative="channel")],
    "steps": [nk.MacNoise(per_step=0.1)],
    "all": [
        nk.InputNoise(add=0.2),
        nk.WeightNoise(add=0.3, relative="channel"),
        nk.MacNoise(0.3, 0.2, 0.1, relative="layer"),
    ],
}


def layer(name: str, dtype: torch.dtype = torch.float32) -> tuple[Any, list[Tensor], dict[str, Any]]:
    how = dict(LAYERS[name])
    op, x, w = how.pop("op"), how.pop("x"), how.pop("w")
    n = w[1] * how.get("groups", 1) if "transpose" in name else w[0]
    g = torch.Generator().manual_seed(3)
    operands = [torch.randn(s, generator=g, dtype=torch.float64).to(dtype).requires_grad_() for s in (x, w, (n,))]
    return op, operands, how


def value_and_gradients(name: str, hardware: list[nk.Device], dtype: torch.dtype = torch.float32, **ids: Any) -> Any:
    op, operands, how = layer(name, dtype)
    y = op(*operands, **how, hardware=hardware, **KEY, **ids)
    along = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    return [y, *torch.autograd.grad(y, operands, along)]


@pytest.mark.parametrize("draws", list(DRAWS))
@pytest.mark.parametrize("devices", list(DEVICES))
@pytest.mark.parametrize("name", list(LAYERS))
def test_kernels_and_plain_torch_agree(name: str, devices: str, draws: str) -> None:
    """Values and gradients; both draw the same noise. Sums of at most 210 products and of 3 draws x 50 gradients, in
    another order: a relative error of 1000 eps of the largest value is beyond what rounding can do.
    """
    fast = value_and_gradients(name, DEVICES[devices], **DRAWS[draws])
    plain = value_and_gradients(name, [*DEVICES[devices], Neutral()], **DRAWS[draws])
    for a, b in zip(fast, plain, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=0, atol=1000 * 2**-24 * float(b.detach().abs().max()))


@pytest.mark.parametrize("name", ["linear", "conv1d", "small conv_transpose2d"])
@pytest.mark.parametrize("devices", ["weights", "relative weights", "products", "all"])
def test_gradients_are_those_of_the_function(name: str, devices: str) -> None:
    """Finite differences in float64, of first and (weights alone: a custom rule) second order. Levels relative to
    max|W| are left out: the maximum takes part in no gradient."""
    op, operands, how = layer(name, torch.float64)
    hardware = [d for d in DEVICES[devices] if not (isinstance(d, nk.WeightNoise) and d.relative)]
    if devices == "all":
        hardware = [nk.InputNoise(add=0.2), nk.MacNoise(0.3, 0.2, 0.1)]

    def f(*args: Tensor) -> Tensor:
        return op(*args, **how, hardware=hardware, **KEY, draws=[4, 1], shared=True)

    assert torch.autograd.gradcheck(f, operands)
    if "weights" in devices:
        assert torch.autograd.gradgradcheck(f, operands)


def test_derivative_of_a_deviation_of_zero_is_zero() -> None:
    for dtype in (torch.float32, torch.float64):
        x = torch.zeros(2, 3, dtype=dtype, requires_grad=True)
        w = torch.ones(4, 3, dtype=dtype, requires_grad=True)
        nk.linear(x, w, hardware=[nk.MacNoise(per_product=0.5, read=0.2)], seed=1).sum().backward()
        assert (x.grad == 4).all() and (w.grad == 0).all()


def test_input_noise_is_perturb_with_its_own_stream() -> None:
    x, w = torch.randn(6, 5), torch.eye(5)
    y = nk.linear(x, w, hardware=[nk.InputNoise(mul=0.5)], **KEY, draws=[2, 4], rows=[7, 0, 3])
    expected = reference.perturb(x, nk.Noise(mul=0.5), **KEY, draws=[2, 4], rows=[7, 0, 3], operand="input")
    assert_same_bits(y, expected)


# --------------------------------------------------------------------------- noise of products, steps, readings


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


# ----------------------------------------------------------------------------------------------- invariances


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(0, 9), st.sampled_from(["linear 3-d", "conv2d"]), st.integers(0, 2**32 - 20))
def test_a_row_keeps_its_noise_in_any_batch(rows: int, at: int, name: str, first: int) -> None:
    """Folded noise and input noise of rows do not depend on the other rows, up to the contraction's rounding."""
    op, (x, w, b), how = layer(name)
    at = at % rows
    x = torch.randn(rows, *x.shape[1:])
    hardware = DEVICES["all"]
    whole = op(x, w, b, **how, hardware=hardware, **KEY, draws=[2], first_row=first)
    one = op(x[at : at + 1], w, b, **how, hardware=hardware, **KEY, draws=[2], rows=[first + at])
    torch.testing.assert_close(one, whole[at : at + 1], rtol=0, atol=1000 * 2**-24 * float(whole.detach().abs().max()))


@pytest.mark.parametrize("name", list(LAYERS))
def test_draws_together_are_draws_alone(name: str) -> None:
    op, (x, w, b), how = layer(name)
    together = op(x, w, b, **how, hardware=DEVICES["all"], **KEY, draws=[3, 5, 8], shared=True)
    for i, draw in enumerate((3, 5, 8)):
        alone = op(x, w, b, **how, hardware=DEVICES["all"], **KEY, draws=[draw])
        part = together[i * len(alone) : (i + 1) * len(alone)]
        torch.testing.assert_close(part, alone, rtol=0, atol=1000 * 2**-24 * float(alone.detach().abs().max()))


def test_streams_of_a_site_are_apart() -> None:
    """Input, weight, products and output of one site share no noise."""
    zero, key = torch.zeros(64, 64), dict(seed=1, site=3)
    seen = {
        "input": nk.linear(zero, torch.eye(64), hardware=[nk.InputNoise(add=1.0)], **key),
        "weight": nk.linear(torch.eye(64), zero, hardware=[nk.WeightNoise(add=1.0)], **key).T,
        "step": nk.linear(zero, zero, hardware=[nk.MacNoise(per_step=0.125)], **key),
        "output": nk.linear(zero, zero, noise=nk.Noise(add=1.0), hardware=[Neutral()], **key),
    }
    for a, b in ((a, b) for a in seen for b in seen if a < b):
        c = float(torch.corrcoef(torch.stack([seen[a].flatten(), seen[b].flatten()]))[0, 1])
        assert abs(c) < 5.2 / 64, (a, b)  # 5.2 standard errors: 2e-7 a pair


def test_every_cpu_level_gives_the_same_bits() -> None:
    """Inputs, weights and levels are powers of two or 0, so that sums are exact in any order: what is left is noise."""
    before = _C.cpu_level()
    g = torch.Generator().manual_seed(2)
    x = 2.0 ** torch.randint(-1, 2, (7, 37), generator=g) * torch.randint(-1, 2, (7, 37), generator=g)
    w = 2.0 ** torch.randint(-1, 2, (33, 37), generator=g) * torch.randint(-1, 2, (33, 37), generator=g)
    images, kernel = x[:, :36].reshape(7, 1, 6, 6), w[:, :36].reshape(33, 1, 6, 6)
    lists = {
        "weight": [nk.WeightNoise(add=0.25)],
        "weight, channel": [nk.WeightNoise(add=0.3, relative="channel")],
        "weight, mul": [nk.WeightNoise(mul=0.3)],
        "weight, fold": [nk.WeightNoise(add=0.3, mul=0.2, fold=True)],
        "weight, uniform": [nk.WeightNoise(add=0.3, kind="uniform")],
        "products": [nk.MacNoise(per_product=0.3)],
        "all products": [nk.MacNoise(0.5, 0.25, 0.125, relative="layer")],
        "explicit": [nk.MacNoise(0.5, 0.25, 0.125, explicit=True)],
    }
    seen: dict[tuple[str, str], Tensor] = {}
    try:
        for level in _C.cpu_levels():
            _C.set_cpu_level(level)
            for name, hardware in lists.items():
                ids = dict(KEY, draws=[4, 2**32 - 1], shared=True)
                given = torch.eye(37) if name.startswith("weight") else x  # the noisy weights themselves
                outs = [nk.linear(given, w, hardware=hardware, **ids)]
                if name.startswith("weight"):
                    hot = torch.eye(36).view(36, 1, 6, 6)
                    outs.append(nk.conv2d(hot, kernel, hardware=hardware, **ids))
                else:
                    outs.append(nk.conv2d(images, kernel, hardware=hardware, **ids))
                value = torch.cat([y.flatten() for y in outs])
                assert_same_bits(seen.setdefault((name, "bits"), value), value)
    finally:
        _C.set_cpu_level("auto")
    assert _C.cpu_level() == before and len({v.sum().item() for v in seen.values()}) == len(lists)


def test_noise_of_the_output_comes_after_bias_then_relu() -> None:
    x, w, b, noise = torch.randn(4, 5), torch.randn(3, 5), torch.randn(3), nk.Noise(add=0.5, mul=0.25)
    hardware = [nk.WeightNoise(add=0.1)]
    y = nk.linear(x, w, b, noise=noise, hardware=hardware, relu=True, **KEY, draws=[4, 2], shared=True)
    inner = nk.linear(x, w, b, hardware=hardware, **KEY, draws=[4, 2], shared=True)
    assert_same_bits(y, torch.relu(nk.perturb(inner, noise, **KEY, draws=[4, 2])))


def test_unbatched_values_are_one_row() -> None:
    for name in ("linear", "conv2d", "conv_transpose2d"):
        op, (x, w, b), how = layer(name)
        y = op(x[0], w, b, **how, noise=nk.Noise(add=0.5), hardware=DEVICES["all"], **KEY)
        assert_same_bits(y, op(x[:1], w, b, **how, noise=nk.Noise(add=0.5), hardware=DEVICES["all"], **KEY)[0])
        with pytest.raises((ValueError, RuntimeError), match="takes one draw"):
            op(x[0], w, b, **how, hardware=DEVICES["weights"], **KEY, draws=[1, 2])


@pytest.mark.parametrize("devices", list(DEVICES))
def test_empty_batches_and_draws(devices: str) -> None:
    for name in ("linear", "conv2d"):
        op, (x, w, b), how = layer(name)
        clean = getattr(F, name)(x, w, b, **how)
        for rows, ids in ((0, {}), (0, dict(draws=[1, 2])), (2, dict(draws=[], shared=True)), (0, dict(draws=[]))):
            y = op(x[:rows], w, b, **how, hardware=DEVICES[devices], **KEY, **ids)
            assert y.shape == (0, *clean.shape[1:])


# ------------------------------------------------------------------------------------------ torch's transforms

SHARED: dict[str, Any] = dict(draws=torch.tensor([4, 1]), shared=True)


@pytest.mark.parametrize("devices", ["weights", "relative weights", "products", "all"])
@pytest.mark.parametrize("name", ["linear", "conv2d", "conv_transpose2d"])
def test_compiled_is_eager(name: str, devices: str) -> None:
    op, operands, how = layer(name)
    seed = torch.tensor(77)

    def f(*args: Tensor) -> Tensor:
        return op(*args, **how, hardware=DEVICES[devices], seed=seed, site=2, **SHARED)

    eager = f(*operands)
    torch._dynamo.reset()
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")(*operands)
    torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-5)
    expected = torch.autograd.grad(eager.square().sum(), operands)
    for a, b in zip(torch.autograd.grad(compiled.square().sum(), operands), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["array_linear", "array_convolution"])
def test_opcheck(name: str) -> None:
    op = getattr(torch.ops.noisykernels, name).default
    seed, draws, level = torch.tensor(5), torch.tensor([3, 1]), torch.tensor(0.1, dtype=torch.float64)
    if name == "array_linear":
        x, w, b = (torch.randn(s, requires_grad=True) for s in ((4, 6), (3, 6), (3,)))
        for macs in ((None, None, None), (level, level, level)):
            torch.library.opcheck(op, (x, w, b, level, None, 0, 0, *macs, seed, draws, None, 0, 2, True))
    else:
        x, w, b = (torch.randn(s, requires_grad=True) for s in ((4, 2, 5, 5), (3, 2, 3, 3), (3,)))
        geometry = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
        torch.library.opcheck(op, (x, w, b, *geometry, None, level, 1, 0, seed, draws, 2, False))


def test_vmap_autocast_checkpoint_and_functional_gradients() -> None:
    x, w, b = torch.randn(3, 4, 6), torch.randn(5, 6), torch.randn(5)
    hardware = DEVICES["all"]

    def f(x: Tensor, w: Tensor) -> Tensor:
        return nk.linear(x, w, b, hardware=hardware, seed=torch.tensor(3), site=2)

    mapped = torch.func.vmap(f, (0, None))(x, w)
    assert_same_bits(mapped, torch.stack([f(part, w) for part in x]))
    with torch.autocast("cpu", torch.bfloat16):
        low = nk.linear(x[0], w, b, hardware=[nk.WeightNoise(add=0.1)], **KEY)
    exact = nk.linear(x[0].bfloat16(), w.bfloat16(), b.bfloat16(), hardware=[nk.WeightNoise(add=0.1)], **KEY)
    assert_same_bits(low, exact)
    with torch.autocast("cpu", torch.bfloat16):  # folded products need no kernel of their own there
        assert nk.linear(x[0], w, b, hardware=hardware, **KEY).isfinite().all()
    leaf = w.clone().requires_grad_()
    (kept,) = torch.autograd.grad(f(x[0], leaf).square().sum(), leaf)
    (again,) = torch.autograd.grad(checkpoint(f, x[0], leaf, use_reentrant=False).square().sum(), leaf)
    assert_same_bits(again, kept)
    functional = torch.func.grad(lambda w: f(x[0], w).square().sum())(w)
    torch.testing.assert_close(functional, kept, rtol=1e-5, atol=1e-5)


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
    wide, clean = op(x, w, **ids), op(x, w, **{**ids, "hardware": [Neutral()]})
    assert low.dtype == biased.dtype == torch.bfloat16
    if explicit:
        assert_same_bits(low, wide.bfloat16())
    else:  # the product is rounded, then its sum with the noise
        assert ((low.float() - wide).abs() <= 1.01 * 2.0**-8 * (wide.abs() + clean.abs())).all()
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


def test_forward_derivatives_are_refused() -> None:
    x, w = torch.randn(2, 3), torch.randn(4, 3)
    with pytest.raises(NotImplementedError, match="forward-mode"):
        torch.func.jvp(lambda v: nk.linear(x, v, hardware=[nk.WeightNoise(add=0.1)], **KEY), (w,), (w,))


def test_fake_tensors_of_a_device_that_is_not_there() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    for name in LAYERS:
        op, (x, w, b), how = layer(name)
        for devices in DEVICES.values():
            real = op(x, w, b, **how, hardware=devices, seed=1, draws=[1, 2], shared=True)
            with FakeTensorMode(allow_non_fake_inputs=True):  # levels are real
                fake = op(*(torch.empty(t.shape, device="cuda") for t in (x, w, b)), **how, hardware=devices, seed=1,
                          draws=torch.tensor([1, 2]), shared=True)  # fmt: skip
            assert fake.device.type == "cuda" and fake.shape == real.shape


# ----------------------------------------------------------------------------------------------------- errors


class Draws(nk.Device):
    """A device of a user that draws from given streams."""

    def __init__(self, *operands: str) -> None:
        self.operands = operands


@pytest.mark.parametrize(
    ("noise", "stream"),
    [
        (nk.InputNoise(add=0.1), "input"), (nk.WeightNoise(add=0.1), "weight"), (nk.MacNoise(0.1), "per_product"),
        (nk.MacNoise(0.1, explicit=True), "per_step"), (nk.ColumnGain(0.1), "column_gain"),
    ],
    ids=str,
)  # fmt: skip
def test_devices_of_one_stream_are_refused(noise: nk.Device, stream: str) -> None:
    """Two of a kind, and a user's own beside ours; others go together."""
    x, w = torch.ones(4, 3), torch.ones(2, 3)
    said = "linear: hardware must have at most one device that draws "
    with pytest.raises(ValueError, match=said):
        nk.linear(x, w, hardware=[noise, noise])
    for pair in ([noise, Draws("drift", stream)], [Draws(stream), noise.scaled(2.0)]):
        with pytest.raises(ValueError, match=f"{said}'{stream}'"):
            nk.linear(x, w, hardware=pair)
    assert nk.linear(x, w, hardware=[noise, Draws("drift")], seed=1).shape == (4, 2)


def test_errors_name_what_is_wrong() -> None:
    x, w = torch.ones(4, 3), torch.ones(2, 3)
    for wrong, kind, said in (
        (lambda: nk.linear(x, w), TypeError, "noise must be a Noise"),
        (lambda: nk.linear(x, w, hardware=[nk.Noise(add=1.0)]), TypeError, "hardware must be a list of devices"),
        (lambda: nk.linear(x, w, hardware=[nk.WeightNoise(add=0.1)] * 2), ValueError, "draws 'weight'"),
        (lambda: nk.WeightNoise(add=0.1, mul=0.1), ValueError, "give add or mul"),
        (lambda: nk.WeightNoise(add=-1.0), ValueError, "finite and not negative"),
        (lambda: nk.WeightNoise(add=0.1, relative="column"), ValueError, "relative must be None, 'layer' or 'channel'"),
        (lambda: nk.MacNoise(per_product=math.nan), ValueError, "MacNoise: per_product"),
        (lambda: nk.MacNoise(read=torch.ones(3)), ValueError, "read must be a number or a 0-d tensor"),
        (lambda: nk.linear(x, w, hardware=[nk.WeightNoise(add=0.1)], draws=[1, 2, 3]), ValueError, "multiple of 3"),
        (lambda: nk.linear(x, w, hardware=[nk.MacNoise(0.1), Neutral()], draws=[1, 2, 3]), ValueError, "multiple of 3"),
        (lambda: nk.linear(x, w[:, :2], hardware=[nk.WeightNoise(add=0.1)]), RuntimeError, "last dimension must be 2"),
        (lambda: nk.perturb(x, nk.Noise(add=1.0, mul=1.0), operand="weight"), ValueError, "has one term"),
        (lambda: nk.perturb(x, nk.Noise(add=1.0), operand="wait"), ValueError, "operand must be one of"),
    ):
        with pytest.raises(kind, match=said):
            wrong()
    leaf = w.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="fold=True"):
        nk.linear(x, leaf, hardware=[nk.WeightNoise(add=0.1, mul=0.1, fold=True)], seed=1)


def test_a_deviation_is_a_pure_function_of_its_operands() -> None:
    """The composite form takes any contraction; with one product it is the level times that product."""
    x, w = torch.tensor([[3.0]]), torch.tensor([[-2.0]])
    levels = nk.MacNoise(per_product=0.5, per_step=1.5, read=2.0).levels(Contraction("linear"), w)
    expected = math.sqrt((0.5 * 6) ** 2 + 1.5**2 + (2.0 * 3) ** 2)
    assert float(deviation(levels, Contraction("linear"), x, w)) == pytest.approx(expected, rel=1e-6)


# ------------------------------------------------------------------------------------------ layers and models


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, padding=1),
        torch.nn.BatchNorm2d(4),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(4 * 64, 10),
    ).eval()


def test_hardware_of_an_injected_model_is_that_of_its_operators() -> None:
    model, x = network(), torch.randn(3, 1, 8, 8)
    hardware = DEVICES["all"]
    ids = {s.name: s.id for s in nk.sites(model, x)}
    with nk.inject(model, {"0": nk.Noise(add=0.1)}, hardware=hardware, example_input=x):
        with nk.noise_state(model, seed=4, draws=[2, 5], rows=[8, 1, 3]):
            y = model(x)
    key = dict(seed=4, draws=[2, 5], rows=[8, 1, 3])
    conv, norm, *_, last = model
    z = nk.conv2d(x, conv.weight, conv.bias, padding=1, hardware=hardware, noise=nk.Noise(add=0.1), shared=True,
                  site=ids["0:conv2d#0"], **key)  # fmt: skip
    z = torch.relu(norm(z)).flatten(1)
    expected = nk.linear(z, last.weight, last.bias, hardware=hardware, site=ids["4:linear#0"], **key)
    # The injected model's input is repeated before the first layer, so contractions are cut otherwise.
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-5 * float(expected.detach().abs().max()))


def test_hardware_of_some_layers() -> None:
    model, x = network(), torch.randn(3, 1, 8, 8)
    noise = [nk.WeightNoise(add=0.5)]
    ways = {
        "dict": {"0": noise},
        "function": lambda name, module: noise if isinstance(module, torch.nn.Conv2d) else None,
    }
    outs = []
    for hardware in ways.values():
        with nk.inject(model, None, hardware=hardware, example_input=x), nk.noise_state(model, seed=4):
            outs.append(model(x))
    layers = network()
    layers[0] = nk.NoisyConv2d(1, 4, 3, padding=1, hardware=noise)
    layers.load_state_dict(model.state_dict())
    with nk.inject(layers.eval(), None, example_input=x), nk.noise_state(layers, seed=4):
        outs.append(layers(x))
    assert_same_bits(outs[0], outs[1])
    assert_same_bits(outs[0], outs[2])
    assert not torch.equal(outs[0], model(x))
    with pytest.raises(ValueError, match="matches no site"):
        nk.inject(model, None, hardware={"convolution": noise}, example_input=x)
    with pytest.raises(TypeError, match="list of devices"):
        nk.inject(model, None, hardware=nk.Noise(add=1.0))


def test_hardware_where_rows_lie_elsewhere() -> None:
    """Attention's projections have their rows along dimension 1."""
    torch.manual_seed(0)
    model = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0).eval()
    x = torch.randn(5, 3, 8)
    with nk.inject(model, None, hardware=DEVICES["all"], example_input=x[:, :2], row_dims={"input": 1}):
        with nk.noise_state(model, seed=4, rows=[0, 1, 2]):
            whole = model(x)
        with nk.noise_state(model, seed=4, rows=[2]):
            alone = model(x[:, 2:])
    torch.testing.assert_close(alone, whole[:, 2:], rtol=0, atol=1e-5)
    assert not torch.allclose(whole, model(x), atol=0.01)


def test_a_level_scales_the_noise_of_hardware() -> None:
    model, x = network(), torch.randn(3, 1, 8, 8)
    scaled = [d.scaled(0.5) for d in DEVICES["all"]]
    with nk.inject(model, None, hardware=DEVICES["all"], example_input=x):
        with nk.noise_state(model, seed=4, level=0.5):
            half = model(x)
        with pytest.raises(RuntimeError, match="no level for each"), nk.noise_state(model, seed=4, level=torch.ones(3)):
            model(x)
    with nk.inject(model, None, hardware=scaled, example_input=x), nk.noise_state(model, seed=4):
        assert_same_bits(half, model(x))


def test_layers_alone_draw_afresh_and_can_be_switched() -> None:
    x = torch.randn(4, 6)
    layer = nk.NoisyLinear(6, 3, hardware=[nk.WeightNoise(add=0.5)], in_eval=False)
    torch.manual_seed(1)
    first, second = layer(x), layer(x)
    torch.manual_seed(1)
    assert_same_bits(layer(x), first)
    assert not torch.equal(first, second)
    assert_same_bits(layer.eval()(x), F.linear(x, layer.weight, layer.bias))
    assert "hardware=[WeightNoise(add=0.5)]" in repr(layer)


def test_training_with_noisy_weights_learns() -> None:
    """Loss falls under the same chips, through every kernel's gradient."""
    torch.manual_seed(0)
    model, x, y = network().train(), torch.randn(40, 1, 8, 8), torch.arange(40) % 10
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    with nk.inject(model, None, hardware=[nk.WeightNoise(add=0.05, relative="layer")], example_input=x[:2]):
        for step in range(30):
            with nk.noise_state(model, seed=4, draws=[step]):
                loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]


# --------------------------------------------------------------------------------------- levels and mistakes


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


def test_what_is_empty() -> None:
    """No inputs, no outputs, no rows, no draws: sums of nothing, and gradients of zeros."""
    for n, k in ((3, 0), (0, 3)):
        for device in (
            nk.WeightNoise(add=1.0, relative="layer"),
            nk.WeightNoise(add=1.0, relative="channel"),
            nk.PCM(),
        ):
            y = nk.linear(torch.ones(2, k), torch.ones(n, k), hardware=[device], seed=1)
            assert y.shape == (2, n) and (y == 0).all()
    explicit = [nk.MacNoise(0.1, 0.1, 0.1, explicit=True)]
    assert nk.linear(torch.ones(0, 3), torch.ones(4, 3), hardware=explicit, seed=1).shape == (0, 4)
    x, w, b = (
        torch.ones(2, 3, requires_grad=True),
        torch.ones(4, 3, requires_grad=True),
        torch.ones(4, requires_grad=True),
    )
    nk.linear(x, w, b, hardware=[nk.WeightNoise(add=1.0)], seed=1, draws=[], shared=True).sum().backward()
    assert all((t.grad == 0).all() for t in (x, w, b))


def test_devices_that_are_subclasses_stay_so_at_another_level() -> None:
    class Bounded(nk.WeightNoise):
        def weight(self, weight: Tensor, draw: nk.Draw) -> Tensor:
            return super().weight(weight, draw).clamp(-0.1, 0.1)

    assert isinstance(Bounded(add=1.0).scaled(2.0), Bounded)
    model, x = torch.nn.Linear(4, 3), torch.randn(5, 4)
    with nk.inject(model, None, hardware=[Bounded(add=1.0)], example_input=x):
        with nk.noise_state(model, seed=1):
            plain = model(x)
        with nk.noise_state(model, seed=1, level=1.0):
            assert_same_bits(model(x), plain)


@pytest.mark.parametrize(
    "device",
    [nk.PCM(), nk.DifferentialPair(0.2), nk.ColumnOffset(0.5), nk.ColumnGain(0.5)],
    ids=lambda d: type(d).__name__,
)
def test_a_level_reaches_every_device(device: nk.Device) -> None:
    model, x = torch.nn.Linear(4, 3), torch.randn(5, 4)
    with nk.inject(model, None, hardware=[device], example_input=x):
        with nk.noise_state(model, seed=1, level=0.0):
            silent = model(x)
        with nk.noise_state(model, seed=1):
            noisy = model(x)
    torch.testing.assert_close(silent, model(x), rtol=0, atol=1e-6)
    assert not torch.allclose(noisy, silent, atol=1e-3)

    class Unscaled(nk.Device):
        operands = ("programming",)

    with nk.inject(model, None, hardware=[Unscaled()], example_input=x), nk.noise_state(model, seed=1, level=0.5):
        with pytest.raises(RuntimeError, match="level_names"):
            model(x)


def test_measures_see_the_hardware() -> None:
    model, x = torch.nn.Sequential(torch.nn.Linear(4, 3)).eval(), torch.randn(50, 4)

    def variance() -> float:
        return next(r.variance for r in nk.site_statistics(model, x, seed=1) if r.site == "0:linear#0")

    plain = variance()
    with nk.inject(model, None, hardware=[nk.ColumnGain(30.0)], example_input=x):
        assert variance() > 20 * plain
    model[0] = nk.NoisyLinear(4, 3, hardware=[nk.ColumnGain(30.0)])
    assert variance() > 20 * plain


def test_hardware_that_nothing_gets_is_a_mistake() -> None:
    x = torch.randn(2, 4)
    noise = [nk.WeightNoise(add=0.1)]
    for model, hardware in (
        (torch.nn.Sequential(torch.nn.ReLU()), noise),
        (torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU()), {"1": noise}),
    ):
        with pytest.raises(ValueError, match="hardware needs a linear layer or convolution"):
            nk.inject(model, None, hardware=hardware, example_input=x)
    for wrong in (
        lambda: nk.WeightNoise(mul=0.1, relative="layer"),
        lambda: nk.MacNoise(per_product=0.1, relative="layer"),
        lambda: nk.linear(x, torch.ones(3, 4), hardware=noise, rows=[1, 2, 3]),
        lambda: nk.linear(x, torch.ones(3, 4), hardware=noise, first_row=2**32 - 1),
        lambda: nk.linear(x, torch.ones(3, 4), hardware=[Neutral()], site=2**24),
        lambda: nk.linear(x, torch.ones(3, 4), hardware=[nk.MacNoise(1e39)], seed=1),
        lambda: nk.WeightNoise(add=0.1).scaled(-1.0),
    ):
        with pytest.raises(ValueError):
            wrong()

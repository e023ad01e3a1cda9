"""Forward-mode derivatives of the operators: the transpose of their gradients, whatever stands inside or around."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import noisykernels as nk
from noisykernels.hardware import ADC, DAC, PCM, ColumnGain, DifferentialPair, InputNoise, MacNoise, WeightNoise

BOTH, ADD, MUL = nk.Noise(add=0.1, mul=0.3), nk.Noise(add=0.1), nk.Noise(mul=0.3, kind="uniform")
TURNED = nk.Noise(add=0.1, mul=0.3, order="add_mul")
ONE: dict[str, Any] = {"seed": 1, "site": 3}
TWO: dict[str, Any] = {**ONE, "draws": [4, 2], "shared": True}
TYPES = {"float32": torch.float32, "float64": torch.float64}

# Of x (3, 4), a weight (6, 4) and a bias (6).
WAYS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "add": lambda x, w, b: nk.perturb(x, ADD, **TWO), "both": lambda x, w, b: nk.perturb(x, BOTH, **ONE),
    "one number": lambda x, w, b: nk.perturb(x.sum(), BOTH, **ONE),
    "linear": lambda x, w, b: nk.linear(x, w, b, noise=BOTH, relu=True, **TWO),
    "one row": lambda x, w, b: nk.linear(x[0], w, b, noise=MUL, **ONE),
    "matmul": lambda x, w, b: nk.matmul(x, w.T, noise=TURNED, **TWO),
    "conv1d": lambda x, w, b: nk.conv1d(x[:, None], w[:, None, :3], b, padding=1, noise=BOTH, **TWO),
    "one image": lambda x, w, b: nk.conv2d(x[None], w[:, None, None], b, padding=1, noise=MUL, **ONE),
    "transposed": lambda x, w, b: nk.conv_transpose1d(
        x[..., None], w.T.reshape(4, 3, 2), b, groups=2, noise=BOTH, **ONE
    ),
    "weights": lambda x, w, b: nk.linear(x, w, b, hardware=[WeightNoise(mul=0.1)], **TWO),
    "weights of a row": lambda x, w, b: nk.linear(x[0], w, b, hardware=[WeightNoise(add=0.1)], **ONE),
    "weights of a convolution": lambda x, w, b: nk.conv1d(x[:, None], w[:, None, :3], b, hardware=[
        InputNoise(mul=0.1), WeightNoise(mul=0.1)], **TWO),
    "inputs": lambda x, w, b: nk.linear(x, w, b, hardware=[InputNoise(mul=0.1)], noise=BOTH, **TWO),
    "products": lambda x, w, b: nk.linear(x, w, b, hardware=[WeightNoise(mul=0.1), MacNoise(0.1, 0.1, 0.1)], **TWO),
    "products alone": lambda x, w, b: nk.linear(x, w, b, hardware=[MacNoise(per_product=0.1)], **TWO),
    "steps": lambda x, w, b: nk.linear(x, w, b, hardware=[MacNoise(per_step=0.1)], **ONE),
    "cells": lambda x, w, b: nk.linear(x, w, b, hardware=[DifferentialPair(0.1), PCM(10.0)], **ONE),
    "converters": lambda x, w, b: nk.linear(x, w, b, hardware=[DAC(8, 5.0), ColumnGain(0.1), ADC(8, 9.0)], **TWO),
    "serial": lambda x, w, b: nk.linear(x, w, b, arithmetic=nk.Serial("M8E5"), **TWO),
    "serial of a convolution": lambda x, w, b: nk.conv1d(x[:, None], w[:, None, :3], b, arithmetic=nk.Serial(), **ONE),
    "without draws": lambda x, w, b: nk.linear(x, w, b, hardware=[WeightNoise(mul=0.1)], **{**TWO, "draws": []}),
}  # fmt: skip


def operands(dtype: torch.dtype) -> list[Tensor]:
    return [torch.randn(s, dtype=dtype, generator=torch.Generator().manual_seed(5)) for s in ((3, 4), (6, 4), (6,))]


def close(a: Tensor, b: Tensor) -> None:
    rounding = 1e3 * torch.finfo(b.dtype).eps
    torch.testing.assert_close(a, b, rtol=rounding, atol=rounding * (1 + float(b.abs().max()) if b.numel() else 1))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("way", WAYS)
def test_tangents_are_those_of_the_gradient(way: str, dtype: str) -> None:
    """By `torch.func.jvp` and by dual numbers, of all operands and of each alone, and under autograd's eyes."""
    run, primals = WAYS[way], operands(TYPES[dtype])
    tangents = [torch.randn_like(p) for p in primals]
    value = run(*primals)
    parts = [
        torch.tensordot(jacobian, t, t.dim())
        for jacobian, t in zip(torch.func.jacrev(run, (0, 1, 2))(*primals), tangents, strict=True)
    ]
    given, found = torch.func.jvp(run, tuple(primals), tuple(tangents))
    assert torch.equal(given, value)
    close(found, sum(parts[1:], parts[0]))
    for i, part in enumerate(parts):
        if not (part.abs() > 0).any():  # it takes no part
            continue
        with forward_ad.dual_level():
            mixed = [forward_ad.make_dual(p, t) if i == j else p.clone().requires_grad_()
                     for j, (p, t) in enumerate(zip(primals, tangents, strict=True))]  # fmt: skip
            dual = forward_ad.unpack_dual(run(*mixed))
            assert torch.equal(dual.primal, value)
            close(dual.tangent, part)


@pytest.mark.parametrize("way", [w for w in WAYS if w != "without draws"])
def test_jacobians_and_second_derivatives(way: str) -> None:
    """Forward over reverse, reverse over forward, forward over forward: as reverse over reverse."""
    primals = operands(torch.float64)

    def score(x: Tensor) -> Tensor:
        return WAYS[way](x, *primals[1:]).sin().sum()

    x, func = primals[0], torch.func
    close(func.jacfwd(score)(x), func.jacrev(score)(x))
    second = func.jacrev(func.jacrev(score))(x)
    for derivative in (func.jacfwd(func.jacrev(score)), func.jacrev(func.jacfwd(score)), func.hessian(score)):
        close(derivative(x), second)
    close(func.jacfwd(func.jacfwd(score))(x), second)


def test_what_has_none_says_so() -> None:
    x, w, _ = operands(torch.float32)
    image = torch.randn(1, 1, 4, 4)
    level = torch.tensor(0.1)
    for run, point, message in (
        (lambda v: nk.perturb(v, nk.Noise(add=0.1, mul=0.1, fold=True), seed=1), x, "folded noise .* has no gradient"),
        (lambda v: nk.perturb_relu_max_pool2d(v, ADD, 2, seed=1), image, "it is inference only"),
        (lambda v: nk.linear(v, w, hardware=[WeightNoise(add=0.1, mul=0.1, fold=True)], seed=1), x, "folded noise"),
        (lambda v: nk.perturb(x, nk.Noise(add=v), seed=1), level, "no gradient with respect to a level"),
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match=message):
            torch.func.jvp(run, (point,), (point,))

"""Weights of a class of their own, as quantising libraries have them: their own operation, noise after it, hardware on
the values that they stand for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from injecting import oracle, run
from torch import Tensor, nn

import noisykernels as nk


class Int8(Tensor):
    """Whole numbers and a scale for each row."""

    @staticmethod
    def __new__(cls, codes: Tensor, scale: Tensor) -> Any:
        return Tensor._make_wrapper_subclass(cls, codes.shape, dtype=scale.dtype)  # type: ignore[attr-defined]

    def __init__(self, codes: Tensor, scale: Tensor) -> None:
        self.codes, self.scale = codes, scale

    def dequantize(self) -> Tensor:
        return self.codes * self.scale

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear:
            x, weight, bias = (*args, None)[:3]
            return F.linear(x, weight.dequantize(), bias)
        return super().__torch_function__(func, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            return Int8(args[0].codes, args[0].scale)
        raise NotImplementedError(str(func))


def quantised() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    codes = torch.randint(-127, 128, (5, 6))
    model[0].weight = nn.Parameter(Int8(codes, torch.full((5, 1), 0.01)), requires_grad=False)
    return model


@pytest.mark.parametrize("traced", [True, False])
def test_noise_comes_after_their_own_operation(traced: bool) -> None:
    model, x = quantised(), torch.randn(4, 6)
    options = {"example_input": x} if traced else {}
    with torch.no_grad():
        assert torch.allclose(run(model, x, "0", **options), model[1:](oracle(model[0](x), "0:linear#0")), atol=1e-6)
        plain = nn.Sequential(nn.Linear(6, 5), *model[1:])
        plain[0].weight.copy_(model[0].weight.dequantize())
        plain[0].bias.copy_(model[0].bias)
        for hardware in ([nk.WeightNoise(add=0.1)], [nk.hardware.ADC(8, 4.0)], [nk.Serial("fp16")]):
            got, want = (run(m, x, noise=None, hardware={"0": hardware}, **options) for m in (model, plain))
            assert torch.equal(got, want)

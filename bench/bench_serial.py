"""Ordered sums, against the noiseless layer and against the same sums as a loop over operands in torch, in the same
rounds: the loop alone, and with an established library (QPyTorch) that rounds whole tensors after every operation.

A step costs some operations for each multiply-add of the library's contraction, which it cannot reorder or contract:
clamps about four for one, a rounded product and sum some twenty. Stochastic rounding and noise have the floor of their
random numbers: one word of Philox, or one normal, for each step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import noisykernels as nk
from noisykernels import _C
from noisykernels.arithmetic import FORMATS, FixedFormat, FloatFormat, Serial, quantize, random_order

SEED = torch.tensor(1)
BARS = {"clamp": 5.0, "format": 20.0}  # times the noiseless layer, CPU level avx2, 2 threads
FASTER = {"clamp": 30.0, "format": 60.0}  # than the loop; for formats, than the loop with the library


@pytest.fixture(params=[level for level in ("avx2", "avx512") if level in _C.cpu_levels()])
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    """The budgets are for avx2; avx512 is reported beside it."""
    torch.set_num_threads(2)
    _C.set_cpu_level(request.param)
    yield request.param
    _C.set_cpu_level("auto")


class Linear:
    """512 to 512, batch 256."""

    name, K = "linear 512->512 batch 256", 512

    def __init__(self, small: bool = False) -> None:
        self.x, self.w = torch.randn(256, 512), torch.randn(512, 512)
        self.columns = self.w.t().contiguous()

    def plain(self) -> Tensor:
        return F.linear(self.x, self.w)

    def ours(self, how: Serial) -> Tensor:
        return nk.linear(self.x, self.w, arithmetic=how, seed=SEED)

    def product(self, k: int) -> Tensor:
        return self.x[:, k : k + 1] * self.w[:, k]

    def tuned_product(self, k: int) -> Tensor:
        return self.x[:, k : k + 1] * self.columns[k]


class Convolution:
    """64 to 64 channels, 3x3, on images of 32x32; a small batch where the loop with the library takes too long."""

    K = 576

    def __init__(self, small: bool = False) -> None:
        batch = 4 if small else 32
        self.name = f"conv 64->64 3x3 @32 batch {batch}"
        self.x, self.w = torch.randn(batch, 64, 32, 32), torch.randn(64, 64, 3, 3)
        self.patches = F.unfold(self.x, 3, padding=1)  # the loop gets them for nothing
        self.columns = self.w.flatten(1).t().contiguous()

    def plain(self) -> Tensor:
        return F.conv2d(self.x, self.w, padding=1)

    def ours(self, how: Serial) -> Tensor:
        return nk.conv2d(self.x, self.w, padding=1, arithmetic=how, seed=SEED)

    def product(self, k: int) -> Tensor:
        return self.w.flatten(1)[:, k, None] * self.patches[:, k : k + 1]

    def tuned_product(self, k: int) -> Tensor:
        return self.columns[k].view(1, -1, 1) * self.patches[:, k : k + 1]


LAYERS: list[Callable[..., Any]] = [Linear, Convolution]


def loop(layer: Any, step: Callable[[Tensor, Tensor], Tensor], tuned: bool = False, steps: int | None = None) -> Tensor:
    """The sums in plain torch, one operand after the other, all outputs at once: as one writes it, or with operands
    laid out in the order of their use."""
    v = torch.zeros(())
    for k in range(layer.K if steps is None else steps):
        v = step(v, layer.tuned_product(k) if tuned else layer.product(k))
    return v


def report(record_row: Any, bar: float | None, ratios: dict[str, float], other: str, times: float = 1.0) -> None:
    """A line with how many times faster we are than a contender, which was timed on a part of the work."""
    faster = ratios[other] * times / ratios["ours"]
    row = {"what": f"  times faster than the {other}", "base us": 0.0, "ours": faster, "spread": (faster, faster)}
    record_row({**row, "bar": bar, "met": None if bar is None else faster >= bar})


def clamped(v: Tensor) -> Tensor:
    return torch.clamp(v, -8, 8)


@pytest.mark.parametrize("make", LAYERS)
@pytest.mark.parametrize("what", ["nothing", "clamp", "leak", "synapse", "random order", "reversed order"])
def test_clamps(contest: Any, record_row: Any, level: str, what: str, make: Callable[[], Any]) -> None:
    """The running sum between limits, with leak or synapses; each against a loop that gives the same bits."""
    layer, limits = make(), dict(low=-8.0, high=8.0)
    plain: Any = {
        "nothing": lambda v, p: v + p,
        "clamp": lambda v, p: clamped(v + p),
        "leak": lambda v, p: clamped(0.96875 * v + p),
        "synapse": lambda v, p: clamped(v + torch.clamp(p, -4, 4)),
    }
    tuned: Any = {
        "nothing": lambda v, p: p.add_(v),
        "clamp": lambda v, p: p.add_(v).clamp_(-8, 8),
        "leak": lambda v, p: p.add_(v.mul_(0.96875)).clamp_(-8, 8),
        "synapse": lambda v, p: p.clamp_(-4, 4).add_(v).clamp_(-8, 8),
    }
    how = {
        "nothing": Serial(),
        "clamp": Serial(**limits),
        "leak": Serial(**limits, leak=0.96875),
        "synapse": Serial(**limits, synapse_limit=4.0),
        "random order": Serial(**limits, order=random_order(layer.K, 1)),
        "reversed order": Serial(**limits, order="reversed"),
    }[what]
    others: dict[str, Callable[[], Tensor]] = {}
    if what in plain and level == "avx2":
        others["loop"] = functools.partial(loop, layer, plain[what])
        others["tuned loop"] = functools.partial(loop, layer, tuned[what], True)
        for call in others.values():
            y = layer.ours(how)
            assert torch.equal(call().reshape(y.shape), y)
    ratios = contest(
        f"{what}, {layer.name}, {level}",
        ours=lambda: layer.ours(how),
        baseline=layer.plain,
        bar=BARS["clamp"] if level == "avx2" and what in ("clamp", "leak") else None,
        rounds=3 if others else 15,
        **others,
    )
    for other in others:
        report(record_row, FASTER["clamp"] if other == "loop" and what == "clamp" else None, ratios, other)


def library(kind: str) -> Callable[[Tensor], Tensor]:
    """Rounding of a whole tensor by QPyTorch, which compiles itself at the first import. It has no truncation, and its
    floating-point formats have no subnormals: the values differ a little, the work does not."""
    quant = pytest.importorskip("qtorch.quant", reason="the bench extra of pyproject.toml")
    if kind.startswith("L8R8"):
        return functools.partial(quant.fixed_point_quantize, wl=17, fl=8, rounding="nearest")
    exponent, mantissa = {"fp16": (5, 10), "bf16": (8, 7), "M7E6": (6, 7)}[kind.split()[0]]
    return functools.partial(quant.float_quantize, exp=exponent, man=mantissa, rounding="nearest")


STEPS = 8  # of the loop with the library, which takes seconds for all of them; each takes as long as the other


@pytest.mark.parametrize("make", LAYERS)
@pytest.mark.parametrize("fmt", ["M7E6", "M7E6 nearest", "L8R8", "L8R8 nearest", "fp16", "bf16"])
def test_formats(contest: Any, record_row: Any, level: str, fmt: str, make: Callable[..., Any]) -> None:
    """Operands, products and sums rounded to a format."""
    layer = make(small=True)
    name, *rounding = fmt.split()
    given = {"M7E6": FloatFormat(7, 6), "L8R8": FixedFormat(8, 8)}.get(name) or FORMATS[name]
    how = Serial(given.rounded(rounding[0]) if rounding else given)
    others: dict[str, Callable[[], Tensor]] = {}
    if level == "avx2":
        rounded = library(fmt)
        step = lambda v, p: rounded(v + rounded(p))  # noqa: E731
        others["library loop"] = functools.partial(loop, layer, step, steps=STEPS)
    ratios = contest(
        f"{fmt}, {layer.name}, {level}",
        ours=lambda: layer.ours(how),
        baseline=layer.plain,
        bar=BARS["format"] if level == "avx2" else None,
        rounds=5,
        **others,
    )
    if others:
        report(record_row, FASTER["format"], ratios, "library loop", layer.K / STEPS)


@pytest.mark.parametrize("make", LAYERS)
@pytest.mark.parametrize("what", ["noise of steps", "M7E6 stochastic", "L8R8 stochastic", "L8R8 stochastic sum"])
def test_random_steps(contest: Any, record_row: Any, level: str, what: str, make: Callable[..., Any]) -> None:
    """Against their random numbers alone: a normal for each step, or a word for each rounding. What these cost is that
    of the raw noise of as many uniform values, or normals, on the same threads."""
    layer = make(small=True)
    fixed = FixedFormat(8, 8, "stochastic")
    how = {
        "noise of steps": Serial(step_noise=0.1),
        "M7E6 stochastic": Serial(FloatFormat(7, 6, rounding="stochastic")),
        "L8R8 stochastic": Serial(fixed),
        "L8R8 stochastic sum": Serial(sum=fixed),
    }[what]
    outputs = layer.plain().numel()
    kind, per_step = "gaussian" if what == "noise of steps" else "uniform", 2 if what in TWICE else 1
    ratios = contest(
        f"{what}, {layer.name}, {level}",
        ours=lambda: layer.ours(how),
        baseline=layer.plain,
        rounds=5,
        **{"words of a step": lambda: nk.eps((1, outputs), kind=kind, seed=SEED)},
    )
    share = ratios["words of a step"] * layer.K * per_step / ratios["ours"]
    row = {"what": "  share of the random numbers", "base us": 0.0, "ours": share, "spread": (share, share)}
    record_row({**row, "bar": None, "met": None})


TWICE = ("M7E6 stochastic", "L8R8 stochastic")  # products and sums


@pytest.mark.parametrize("order", ["positive_first", "descending"])
def test_sorted_orders(contest: Any, level: str, order: str) -> None:
    """An order of its own for each output: sorting it costs more than adding it up."""
    x, w = torch.randn(32, 512), torch.randn(64, 512)
    contest(
        f"{order}, linear 512->64 batch 32, {level}",
        ours=lambda: nk.linear(x, w, arithmetic=Serial(low=-8, high=8, order=order)),
        baseline=lambda: F.linear(x, w),
        rounds=5,
        **{"sort alone": lambda: (x[:, None] * w).abs().argsort(-1)},
    )


@pytest.mark.parametrize("gradient", ["straight_through", "masked"])
def test_training_step(contest: Any, level: str, gradient: str) -> None:
    """Forward and backward of a clamped linear layer."""
    x, w = (torch.randn(n, 512, requires_grad=True) for n in (256, 512))
    how = Serial(low=-8, high=8, gradient=gradient)

    def step(f: Callable[[], Tensor]) -> Any:
        with torch.inference_mode(False), torch.enable_grad():
            y = f()
            return torch.autograd.grad(y, (x, w), torch.ones_like(y))

    contest(
        f"forward and backward, {gradient}, {level}",
        ours=lambda: step(lambda: nk.linear(x, w, arithmetic=how)),
        baseline=lambda: step(lambda: F.linear(x, w)),
    )


@pytest.mark.parametrize("fmt", ["M7E6", "L8R8", "fp16", "M7E6 stochastic"])
def test_quantize(contest: Any, level: str, fmt: str) -> None:
    """Rounding alone, of a million values, against the library and torch's own conversion to half floats and back."""
    x = torch.randn(1024, 1024)
    name, *rounding = fmt.split()
    given = {"M7E6": FloatFormat(7, 6), "L8R8": FixedFormat(8, 8)}.get(name) or FORMATS[name]
    fmt_ = given.rounded(rounding[0]) if rounding else given
    contest(
        f"quantize 2^20 values to {fmt}, {level}",
        ours=lambda: quantize(x, fmt_, seed=SEED),
        baseline=lambda: x.half().float(),
        library=functools.partial(library(fmt), x),
    )

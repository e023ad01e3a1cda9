"""The table of all operators, and how a case of it is called and what must come out.

A case names an operator, torch's own way to the noiseless value, operand shapes and options. `ROWS`
in a shape stands for the number of rows, which a test chooses.

Half types: how often a library rounds the partial sums of a contraction is its own affair and differs from machine to
machine (torch's transposed convolution in bfloat16 rounds them again and again where there is no AVX-512). So what a
test of half types expects is never a wider contraction rounded once: it is what the same call of the library gives for
the same operands, or sums of small integers, which are exact in any order, or arithmetic of our own, in float32.
These tests were run on AVX-512 with bfloat16 instructions (Zen 4) and there with ONEDNN_MAX_CPU_ISA = AVX512_CORE, AVX2
and SSE41, ATEN_CPU_CAPABILITY = avx2 and default, NOISYKERNELS_CPU_LEVEL = avx2 and portable, one and two threads.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import noisykernels as nk
from noisykernels.reference import noise as reference

ROWS = -1


def _same(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class Case:
    name: str
    noisy: Callable[..., Tensor]  # the operator
    clean: Callable[..., Tensor]  # torch's own
    shapes: tuple[tuple[int, ...], ...]  # of the operands
    options: dict[str, Any] = field(default_factory=dict)  # of both
    after: Callable[[Tensor], Tensor] = _same  # what the operator does after the noise
    also: dict[str, Any] = field(default_factory=dict)  # the operator's options that ask for it
    batched: bool = True  # whether dimension 0 is rows
    gradient: bool = True

    def operands(self, rows: int, dtype: torch.dtype, normal: bool = False) -> list[Tensor]:
        """Small integers, with which every contraction is exact, or normals. In half types too: of at most 37 products,
        each at most 4, no partial sum exceeds 148, and bfloat16 holds all integers up to 256."""
        g = torch.Generator().manual_seed(len(self.name))
        shapes = [[rows if n == ROWS else n for n in shape] for shape in self.shapes]
        if normal:
            return [torch.randn(s, generator=g, dtype=torch.float64).to(dtype) for s in shapes]
        return [torch.randint(-2, 3, s, generator=g).to(dtype) for s in shapes]

    def call(self, operands: Sequence[Tensor], noise: nk.Noise, **ids: Any) -> Tensor:
        return self.noisy(*operands, noise=noise, **self.options, **self.also, **ids)

    def value(self, operands: Sequence[Tensor]) -> Tensor:
        """The noiseless value, always with a dimension of rows."""
        clean = self.clean(*operands, **self.options)
        return clean if self.batched else clean.unsqueeze(0)

    def expected(self, operands: Sequence[Tensor], noise: nk.Noise, **ids: Any) -> Tensor:
        """torch's own contraction, then the oracle's noise, then what comes after."""
        ids["seed"] = int(ids["seed"])
        y = self.after(reference.perturb(self.value(operands).resolve_neg(), noise, **ids))
        return y if self.batched else y.squeeze(0)

    def terms(self, operands: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """How many products and biases each clean value sums, and the sum of their magnitudes."""
        wide = [o.double() for o in operands]
        return self.value([torch.ones_like(o) for o in wide]), self.value([o.abs() for o in wide])


def _relu_pool(kernel: int, stride: int | None = None, padding: int = 0) -> dict[str, Any]:
    also = dict(kernel_size=kernel, stride=stride, padding=padding)
    return dict(
        noisy=nk.perturb_relu_max_pool2d,
        clean=_same,
        after=lambda y: F.max_pool2d(F.relu(y), kernel, stride, padding),
        also=also,
        gradient=False,
    )


def _conv(dims: int, transposed: bool = False) -> dict[str, Any]:
    name = f"conv_transpose{dims}d" if transposed else f"conv{dims}d"
    return dict(noisy=getattr(nk, name), clean=getattr(F, name))


_LINEAR = dict(noisy=nk.linear, clean=F.linear)
_MATMUL = dict(noisy=nk.matmul, clean=torch.matmul)
_PERTURB = dict(noisy=nk.perturb, clean=_same)
_RELU = dict(after=F.relu, also=dict(relu=True))
_ONE_ROW = dict(batched=False)

CASES = {
    name: Case(name=name, shapes=shapes, **{k: v for part in parts for k, v in part.items()})
    for name, shapes, *parts in (
        ("perturb", ((ROWS, 7),), _PERTURB),
        ("perturb 4-d", ((ROWS, 3, 5, 5),), _PERTURB),
        ("perturb vector", ((ROWS,),), _PERTURB),
        ("perturb number", ((),), _PERTURB, _ONE_ROW),
        ("linear", ((ROWS, 33), (10, 33), (10,)), _LINEAR),
        ("linear without bias", ((ROWS, 20), (70, 20)), _LINEAR),
        ("linear relu", ((ROWS, 2, 9), (5, 9), (5,)), _LINEAR, _RELU),
        ("linear unbatched", ((9,), (5, 9), (5,)), _LINEAR, _ONE_ROW),
        ("conv1d", ((ROWS, 4, 11), (6, 4, 3), (6,)), _conv(1)),
        ("conv1d same", ((ROWS, 4, 11), (6, 4, 4)), _conv(1), dict(options=dict(padding="same"))),
        ("conv2d", ((ROWS, 3, 9, 8), (5, 3, 3, 3), (5,)), _conv(2)),
        (
            "conv2d grouped relu",
            ((ROWS, 4, 8, 8), (6, 2, 3, 3), (6,)),
            _conv(2),
            _RELU,
            dict(options=dict(groups=2, padding=1)),
        ),
        (
            "conv2d depthwise",
            ((ROWS, 8, 7, 7), (8, 1, 3, 3), (8,)),
            _conv(2),
            dict(options=dict(groups=8)),
        ),
        (
            "conv2d strided",
            ((ROWS, 3, 11, 9), (4, 3, 3, 2), (4,)),
            _conv(2),
            dict(options=dict(stride=(2, 1), dilation=(1, 2), padding=(0, 1))),
        ),
        (
            "conv2d same",
            ((ROWS, 3, 8, 8), (4, 3, 3, 5)),
            _conv(2),
            dict(options=dict(padding="same", dilation=2)),
        ),
        ("conv2d unbatched", ((3, 8, 8), (4, 3, 3, 3), (4,)), _conv(2), _ONE_ROW),
        ("conv3d", ((ROWS, 2, 5, 5, 5), (4, 2, 3, 2, 3), (4,)), _conv(3)),
        ("conv_transpose1d", ((ROWS, 4, 6), (4, 3, 3), (3,)), _conv(1, True)),
        (
            "conv_transpose2d",
            ((ROWS, 4, 5, 5), (4, 3, 3, 3), (6,)),
            _conv(2, True),
            dict(options=dict(stride=2, padding=1, output_padding=1, groups=2)),
        ),
        (
            "conv_transpose2d unbatched",
            ((4, 5, 5), (4, 3, 3, 3)),
            _conv(2, True),
            _RELU,
            _ONE_ROW,
        ),
        (
            "conv_transpose3d",
            ((ROWS, 3, 3, 3, 3), (3, 2, 2, 2, 2), (2,)),
            _conv(3, True),
            dict(options=dict(dilation=2)),
        ),
        ("matmul", ((ROWS, 12), (12, 9)), _MATMUL),
        ("matmul broadcast", ((ROWS, 1, 4, 6), (3, 6, 5)), _MATMUL),
        ("matmul rows of b", ((4, 6), (ROWS, 6, 5)), _MATMUL),
        ("matmul matrix vector", ((ROWS, 12), (12,)), _MATMUL),
        ("matmul vector matrix", ((12,), (12, ROWS)), _MATMUL),
        ("matmul vectors", ((12,), (12,)), _MATMUL, _ONE_ROW),
        ("pool", ((ROWS, 2, 8, 6),), _relu_pool(2)),
        ("pool odd", ((ROWS, 3, 7, 9),), _relu_pool(3, 2, 1)),
        ("pool overlapping", ((ROWS, 1, 6, 5),), _relu_pool(3, 1)),
    )
}

MODES = {
    "add": dict(add=0.5),
    "mul": dict(mul=0.25),
    "mul_add": dict(add=0.5, mul=0.25),
    "add_mul": dict(add=0.5, mul=0.25, order="add_mul"),
    "fold": dict(add=0.5, mul=0.25, fold=True),
}

# How the rows are repeated over draws: draws and `shared`.
DRAWS: dict[str, dict[str, Any]] = {
    "one": dict(),
    "numbered": dict(draws=[7]),
    "shared": dict(draws=[5, 0, 2**32 - 1], shared=True),
    "expanded": dict(draws=[3, 9]),
}


def level(name: str, amplitude: float, D: int, rows: int, item: Sequence[int]) -> Tensor:
    """Levels of one shape or another around an amplitude, for D draws of so many rows."""
    ndim = 1 + len(item)
    count = {"draw": D, "row": rows, "channel": item[0] if item else 0}.get(name, 1)
    values = amplitude * (1 + torch.arange(count, dtype=torch.float64) % 5 / 8)
    if name == "draw":
        return nk.per_draw(values, ndim)
    if name == "row":
        return nk.per_row(values, ndim)
    if name == "channel" and item:
        return nk.per_channel(values, ndim)
    if name == "full":
        g = torch.Generator().manual_seed(ndim)
        return amplitude * torch.rand(D, rows, *item, generator=g)
    return values[0] if count else torch.tensor(amplitude)


def covering(strength: int, **factors: Sequence[Any]) -> list[dict[str, Any]]:
    """Few combinations in which any `strength` factors occur with all their values."""
    groups = list(itertools.combinations(factors, strength))
    missing = dict.fromkeys(
        tuple(zip(group, values, strict=True))
        for group in groups
        for values in itertools.product(*(factors[name] for name in group))
    )

    def parts(row: dict[str, Any]) -> list[tuple[tuple[str, Any], ...]]:
        return [tuple((name, row.get(name)) for name in group) for group in groups]

    chosen = []
    for part in list(missing):
        if part not in missing:
            continue
        row = dict(part)
        for name in factors:
            if name not in row:
                trials = [{**row, name: value} for value in factors[name]]
                row = max(trials, key=lambda trial: sum(p in missing for p in parts(trial)))
        for covered in parts(row):
            missing.pop(covered, None)
        chosen.append({name: row[name] for name in factors})
    return chosen


def bits(t: Tensor) -> Tensor:
    """The bits of a tensor, every NaN alike."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[t.element_size()]
    return torch.where(t.isnan(), torch.nan, t.detach()).contiguous().view(integer)


def assert_same_bits(actual: Tensor, expected: Tensor, context: Any = "") -> None:
    assert actual.dtype == expected.dtype and actual.shape == expected.shape, (
        f"{actual.dtype} {list(actual.shape)}, expected {expected.dtype} {list(expected.shape)}"
    )
    wrong = bits(actual) != bits(expected)
    first = wrong.nonzero()[:1].flatten().tolist()
    assert not wrong.any(), (
        f"{int(wrong.sum())} of {wrong.numel()} differ, first at {first}: "
        f"{actual[tuple(first)]} for {expected[tuple(first)]} {context}"
    )

"""Ordered sums over every small geometry of convolutions, transposed ones too: torch's value in whole numbers."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import noisykernels as nk
from noisykernels.arithmetic import Serial
from noisykernels.brainscales import BrainScaleS2

pytestmark = pytest.mark.usefixtures("one_thread")

HOWS = (Serial(), Serial(order="ascending"), Serial(ordered=False))


def wholes(generator: torch.Generator, *shape: int, least: int = -4) -> Tensor:
    return torch.randint(least, 5, shape, generator=generator).float()


def transposed(x: Tensor, w: Tensor, b: Tensor, geometry: dict[str, Any]) -> np.ndarray:
    """A transposed convolution by its definition, in whole numbers: every product goes where it belongs."""
    stride, padding, extra, dilation = (geometry[k] for k in ("stride", "padding", "output_padding", "dilation"))
    groups, kernel = geometry["groups"], w.shape[2:]
    full = [
        (n - 1) * s + d * (k - 1) + e + 1
        for n, s, d, k, e in zip(x.shape[2:], stride, dilation, kernel, extra, strict=True)
    ]
    size = [n - 2 * p for n, p in zip(full, padding, strict=True)]
    y = np.zeros((len(x), w.shape[1] * groups, *full), np.int64)
    xs, ws = x.long().numpy(), w.long().numpy()
    inputs, outputs = xs.shape[1] // groups, ws.shape[1]
    for g, at in itertools.product(range(groups), np.ndindex(*kernel)):
        products = np.einsum("bi...,io->bo...", xs[:, g * inputs :][:, :inputs], ws[g * inputs :][:inputs][(..., *at)])
        where = tuple(
            slice(a * d, a * d + (n - 1) * s + 1, s)
            for a, d, n, s in zip(at, dilation, x.shape[2:], stride, strict=True)
        )
        y[(slice(None), slice(g * outputs, (g + 1) * outputs), *where)] += products
    cropped = tuple(slice(p, p + max(0, n)) for p, n in zip(padding, size, strict=True))
    return y[(..., *cropped)] + b.long().numpy().reshape(-1, *[1] * len(kernel))


def met(op: str, x: Tensor, w: Tensor, b: Tensor, geometry: dict[str, Any], hows: Sequence[Serial]) -> bool:
    """Whether torch accepts a geometry; if so, these ways of adding up give its value, else none gives any."""
    try:
        expected = getattr(F, op)(x, w, b, **geometry)
    except RuntimeError:
        expected = None
    if expected is None:
        sizes = transposed(x, w, b, geometry).shape if "transpose" in op else (0,)
        for how in hows:
            try:
                y = getattr(nk, op)(x, w, b, **geometry, arithmetic=how)
            except (ValueError, RuntimeError):
                continue
            assert y.numel() == 0 and y.shape == sizes, geometry  # a library's kernel may refuse to write nothing
        return False
    if "transpose" in op:
        assert np.array_equal(transposed(x, w, b, geometry), expected.numpy()), geometry
    for how in hows:
        y = getattr(nk, op)(x, w, b, **geometry, arithmetic=how)
        assert y.shape == expected.shape and torch.equal(y, expected), (geometry, how)
    return True


@pytest.mark.parametrize("all_of_them", [False, pytest.param(True, marks=pytest.mark.full)])
def test_every_small_geometry_of_one_dimension(all_of_them: bool) -> None:
    """Padding that crops, output padding, dilation, groups and strides: all that torch accepts."""
    g, accepted = torch.Generator().manual_seed(1), 0
    most = (4 if all_of_them else 3) + 1
    each = itertools.product(range(1, most), (1, 2, 3), (1, 2, 3), range(most), range(3), (1, 2, 3), (1, 2))
    for number, (n, k, s, p, e, d, groups) in enumerate(each):
        if not all_of_them and number // 2 % 2 != groups - 1:
            continue
        hows = HOWS if all_of_them else HOWS[number % 3 :][:1]
        x, w, b = wholes(g, 2, 2, n), wholes(g, 2, 2, k), wholes(g, 2 * groups)
        geometry = dict(stride=[s], padding=[p], dilation=[d], groups=groups)
        accepted += met("conv_transpose1d", x, w, b, dict(geometry, output_padding=[e]), hows)
        if e == 0:
            accepted += met("conv1d", x, w[:, : 2 // groups], b[:2], geometry, hows)
    assert accepted > (2000 if all_of_them else 500)


@pytest.mark.parametrize("count", [200, pytest.param(8000, marks=pytest.mark.full)])
def test_small_geometries_of_two_and_three_dimensions(count: int) -> None:
    """Each dimension with a stride, a padding, a dilation of its own."""
    g, r, accepted, empty = torch.Generator().manual_seed(2), random.Random(2), 0, 0
    for number in range(count):
        dims, groups = r.choice((2, 2, 3)), r.choice((1, 2))
        n, k, s, p, d = ([r.randint(*of) for _ in range(dims)] for of in ((1, 3), (1, 3), (1, 4), (0, 2), (1, 3)))
        e = [r.randrange(max(s[i], d[i])) for i in range(dims)]
        x, w, b = wholes(g, 2, 2, *n), wholes(g, 2, 2, *k), wholes(g, 2 * groups)
        geometry = dict(stride=s, padding=p, output_padding=e, dilation=d, groups=groups)
        accepted += met(f"conv_transpose{dims}d", x, w, b, geometry, HOWS[number % 3 :][:1])
        empty += 0 in transposed(x, w, b, geometry).shape
    assert accepted > count // 2 and empty > count // 50


def test_padding_that_crops_everything_or_what_was_added() -> None:
    """An output without positions, and one position that only output padding reaches; gradients go the same way."""
    x, w = torch.ones(4, 2, 5, 2), torch.ones(2, 1, 2, 1)
    assert nk.conv_transpose2d(x, w, padding=1, arithmetic=Serial()).shape == (4, 1, 4, 0)
    one, kernel = torch.full((1, 1, 1), 3.0), torch.full((1, 1, 1), 2.0)
    y = nk.conv_transpose1d(one, kernel, torch.ones(1), stride=5, padding=2, output_padding=4, arithmetic=Serial())
    assert y.tolist() == [[[1.0]]]
    leaves = [t.requires_grad_() for t in (x, w, torch.zeros(1))]
    nothing = nk.conv_transpose2d(*leaves, padding=1, arithmetic=Serial()).sum()
    assert all((g == 0).all() for g in torch.autograd.grad(nothing, leaves))
    spread, cropping = torch.randn(2, 2, 3, 4).requires_grad_(), torch.randn(2, 3, 2, 1).requires_grad_()
    geometry: dict[str, Any] = dict(stride=(2, 3), padding=(2, 1), output_padding=(1, 2), dilation=(1, 2))
    ours = nk.conv_transpose2d(spread, cropping, **geometry, arithmetic=Serial())
    torchs = F.conv_transpose2d(spread, cropping, **geometry)
    pull = torch.randn_like(torchs)
    for a, b in zip(*(torch.autograd.grad(y, (spread, cropping), pull) for y in (ours, torchs)), strict=True):
        torch.testing.assert_close(a, b)


def test_chips_of_any_geometry() -> None:
    """Outputs without rows or positions of BrainScaleS2, too."""
    for rows, padding in itertools.product((0, 2), (0, 1)):
        x, w = torch.ones(rows, 2, 5, 2), torch.ones(2, 1, 2, 1)
        y = nk.conv_transpose2d(x, w, padding=padding, arithmetic=BrainScaleS2(), seed=1)
        assert y.shape == F.conv_transpose2d(x, w, padding=padding).shape


def test_geometries_that_torch_refuses() -> None:
    x, w = torch.ones(2, 2, 3), torch.ones(2, 2, 2)
    for geometry, said in (
        (dict(output_padding=1), "output_padding must be smaller than stride or dilation"),
        (dict(padding=4), "the padding crops more than there is"),
        (dict(stride=0), "stride must be .* positive, got 0"),
        (dict(dilation=0), "dilation must be .* positive, got 0"),
        (dict(groups=0), "stride, dilation and groups must be positive"),
        (dict(padding=-1), "padding must be .* not negative, got -1"),
    ):
        with pytest.raises(ValueError, match=f"conv_transpose1d: {said}|conv_transpose1d: .*{said}"):
            nk.conv_transpose1d(x, w, **geometry, arithmetic=Serial())
    with pytest.raises(ValueError, match="the kernel is larger than the padded input"):
        nk.conv1d(x, torch.ones(2, 2, 4), arithmetic=Serial())

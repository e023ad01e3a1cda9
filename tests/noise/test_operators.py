"""Each operator is torch's own contraction followed by the oracle's noise, in whatever form.

One body per claim, over the table in operators.py. Operands are small integers where bits are
compared across contraction plans: integer sums are exact in any order.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import operators
import pytest
import torch
import torch.nn.functional as F
from factors import DIFFERENTIABLE, DTYPES, FACTORS, FORMATS, LEVELS, ROWS, SMOOTH, _channels_last, make, name_of
from operators import CASES, DRAWS, Case, assert_same_bits, covering
from torch import Tensor

import noisykernels as nk

MAX_EPS = 16  # above the largest |eps| of any kind: -ln(2^-32) / sqrt 2 for laplace


def rounding_bound(case: Case, operands: Sequence[Tensor], noise: nk.Noise, D: int) -> Tensor:
    """How far two float32 results with the same noise may differ if their contractions may.

    A sum of n terms in any order errs by at most gamma = n u / (1 - n u) of the sum S of magnitudes
    (Higham, Accuracy and Stability of Numerical Algorithms, section 4.2), a fused bias included.
    Noise stretches the difference by at most L = 1 + m max|eps| and rounds each result at most
    three times, each time a value of at most L S + a max|eps|. ReLU stretches nothing.
    """
    u = torch.finfo(torch.float32).eps / 2
    n, S = case.terms(operands)
    a, m = (0.0 if v is None else float(v.max()) for v in (noise.add, noise.mul))
    L = 1 + m * MAX_EPS
    bound = 2 * L * S * (n * u / (1 - n * u)) + 6 * u * (L * S + a * MAX_EPS)
    bound = bound.repeat(D, *[1] * (bound.dim() - 1)) if D > 1 else bound
    return bound if case.batched else bound.squeeze(0)


def check_values(
    op: str, mode: str, draws: str, rows: str, levels: str, kind: str, dtype: torch.dtype,
    format: str, numbers: str,
) -> None:  # fmt: skip
    case = CASES[op]
    noise, ids, rows_in = make(case, mode, draws, rows, levels, kind)
    operands = case.operands(rows_in, dtype, normal=numbers == "normal")
    operands[0] = FORMATS[format](operands[0])
    before = [o.clone() for o in operands]
    actual = case.call(operands, noise, **ids)
    for o, b in zip(operands, before, strict=True):
        assert_same_bits(o, b, "an operand was written to")
    expected = case.expected(operands, noise, **ids)
    if case.noisy is nk.linear and dtype == torch.float32 and numbers == "normal":
        D = len(ids["draws"]) if ids.get("shared") else 1
        error = (actual.double() - expected.double()).abs()
        assert (error <= rounding_bound(case, operands, noise, D)).all(), error.max()
    else:  # the same plan as torch's, or exact sums
        assert_same_bits(actual, expected, noise)


@pytest.mark.parametrize("combination", covering(2, **FACTORS), ids=name_of)
def test_values(combination: dict[str, Any]) -> None:
    check_values(**combination)


@pytest.mark.full
def test_values_of_any_three_factors() -> None:
    for combination in covering(3, **FACTORS):
        check_values(**combination)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", [name for name in CASES if name.startswith("pool")])
def test_pool_of_special_values(op: str, dtype: torch.dtype, cpu_level: str) -> None:
    case = CASES[op]
    (x,) = case.operands(8, dtype, normal=True)
    g = torch.Generator().manual_seed(1)
    for special in (torch.nan, torch.inf, -torch.inf, -0.0):
        x[torch.rand(x.shape, generator=g) < 0.1] = special
    noise = nk.Noise(add=0.5)
    three = case.after(nk.perturb(x, noise, seed=4))
    assert three.isnan().any() and not three.isnan().all()
    assert_same_bits(case.call([x], noise, seed=4), three)


# ------------------------------------------------------------------------------------ invariances


def _split(case: Case, noise: nk.Noise, operands: list[Tensor], **ids: Any) -> Tensor:
    """In two batches, the second one named by `first_row`."""
    at = next(i for i, s in enumerate(case.shapes) if operators.ROWS in s)
    dim = case.shapes[at].index(operators.ROWS)
    n = operands[at].shape[dim]
    cuts = (0, n // 3), (n // 3, n)
    parts = []
    for begin, end in cuts:
        part = [o.narrow(dim, begin, end - begin) if i == at else o for i, o in enumerate(operands)]
        parts.append(case.call(part, noise, **ids, first_row=begin))
    return torch.cat([p.unflatten(0, (len(ids["draws"]), -1)) for p in parts], 1).flatten(0, 1)


def _listed(case: Case, noise: nk.Noise, operands: list[Tensor], **ids: Any) -> Tensor:
    rows = case.value(operands).shape[0]
    return case.call(operands, noise, **ids, rows=range(rows))


def _draw_by_draw(case: Case, noise: nk.Noise, operands: list[Tensor], **ids: Any) -> Tensor:
    draws = ids.pop("draws")
    return torch.cat([case.call(operands, noise, **ids, draws=[d]) for d in draws])


def _repeated(case: Case, noise: nk.Noise, operands: list[Tensor], **ids: Any) -> Tensor:
    """The noiseless rows repeated by hand for `perturb`, instead of `shared`."""
    del ids["shared"]
    clean = case.value(operands)
    clean = clean.repeat(len(ids["draws"]), *[1] * (clean.dim() - 1))
    return case.after(nk.perturb(clean, noise, **ids))


def _one_thread(case: Case, noise: nk.Noise, operands: list[Tensor], **ids: Any) -> Tensor:
    torch.set_num_threads(1)
    return case.call(operands, noise, **ids)


def _other_levels(case: Case, noise: nk.Noise, operands: list[Tensor], **ids: Any) -> Tensor:
    results = []
    for name in nk._C.cpu_levels():
        nk._C.set_cpu_level(name)
        results.append(case.call(operands, noise, **ids))
    for result in results:
        assert_same_bits(result, results[0])
    return results[-1]


def _formatted(case: Case, noise: nk.Noise, operands: list[Tensor], **ids: Any) -> Tensor:
    return case.call([_channels_last(o) for o in operands], noise, **ids)


VARIANTS = [_split, _listed, _draw_by_draw, _repeated, _one_thread, _other_levels, _formatted]
BATCHED = [name for name, case in CASES.items() if case.batched]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda f: f.__name__[1:])
@pytest.mark.parametrize("op", BATCHED)
def test_noise_does_not_depend_on(op: str, variant: Callable[..., Tensor], threads: Callable[[int], None]) -> None:
    case = CASES[op]
    threads(2)
    elements = case.value(case.operands(1, torch.float32)).numel()
    rows = max(50, 20_000 // elements)  # so many that the noise goes to two threads
    operands = case.operands(rows, torch.float32)
    noise = nk.Noise(add=0.5, mul=0.25)
    ids: dict[str, Any] = dict(seed=11, site=3, draws=[4, 1], shared=True)
    expected = case.call(operands, noise, **ids)
    try:
        actual = variant(case, noise, operands, **ids)
    finally:
        nk._C.set_cpu_level("auto")
    assert_same_bits(actual, expected)


def materialised(case: Case, operands: Sequence[Tensor], noise: nk.Noise, **ids: Any) -> Tensor:
    """The operator in plain torch, its eps as tensors."""
    draws, shared = ids.pop("draws", [0]), ids.pop("shared", False)
    x = case.value(operands)
    x = x.repeat(len(draws), *[1] * (x.dim() - 1)) if shared else x
    x = x.unflatten(0, (len(draws), -1))

    def eps(operand: str) -> Tensor:
        parts = [nk.eps(x.shape[1:], operand=operand, draw=int(d), **ids) for d in draws]
        return torch.stack(parts).double()

    added = 0 if noise.add is None else noise.add * eps("add")
    factor = 1 if noise.mul is None else 1 + noise.mul * eps("mul")
    y = (x + added) * factor if noise.mode == "add_mul" else x * factor + added
    y = case.after(y.flatten(0, 1))
    return y if case.batched else y.squeeze(0)


@pytest.mark.parametrize(
    "combination",
    covering(2, op=DIFFERENTIABLE, mode=SMOOTH, draws=list(DRAWS), rows=list(ROWS), levels=LEVELS),
    ids=name_of,
)
def test_gradient_is_that_of_materialised_noise(combination: dict[str, Any]) -> None:
    case = CASES[combination.pop("op")]
    noise, ids, rows_in = make(case, **combination)
    operands = [o.requires_grad_() for o in case.operands(rows_in, torch.float64, normal=True)]
    actual = case.call(operands, noise, **ids)
    expected = materialised(case, operands, noise, **ids)
    along = torch.randn(actual.shape, generator=torch.Generator().manual_seed(2)).double()
    for a, e in zip(
        torch.autograd.grad(actual, operands, along),
        torch.autograd.grad(expected, operands, along),
        strict=True,
    ):
        # Sums of fewer than 2^12 terms of 53 bits, each with a few roundings of its own.
        assert (a - e).abs().max() <= 2**-40 * e.abs().max()


@pytest.mark.parametrize(
    "combination",
    covering(2, op=DIFFERENTIABLE, mode=SMOOTH, draws=list(DRAWS)),
    ids=name_of,
)
def test_gradcheck(combination: dict[str, Any]) -> None:
    case = CASES[combination.pop("op")]
    noise, ids, rows_in = make(case, rows="listed", levels="number", **combination)
    operands = [o.requires_grad_() for o in case.operands(rows_in, torch.float64, normal=True)]

    def f(*operands: Tensor) -> Tensor:
        return case.call(operands, noise, **ids)

    torch.autograd.gradcheck(f, operands, fast_mode=True)
    torch.autograd.gradgradcheck(f, operands, fast_mode=True)


def test_what_has_no_gradient_says_so() -> None:
    x = torch.zeros(2, 1, 4, 4, requires_grad=True)
    folded = nk.Noise(add=0.1, mul=0.1, fold=True)
    for op in (nk.perturb, functools.partial(nk.conv2d, weight=torch.zeros(1, 1, 3, 3))):
        with pytest.raises(RuntimeError, match=r"folded noise .* has no gradient"):
            op(x, noise=folded, seed=1)
        with torch.no_grad():
            op(x, noise=folded, seed=1)
    with pytest.raises(RuntimeError, match=r"perturb_relu_max_pool2d.*inference only"):
        nk.perturb_relu_max_pool2d(x, nk.Noise(add=0.1), 2, seed=1)
    nk.perturb_relu_max_pool2d(x.detach(), nk.Noise(add=0.1), 2, seed=1)


# ------------------------------------------------------------------------------------------ empty


@pytest.mark.parametrize("rows, draws", [(0, [2, 5]), (3, []), (0, []), (1, [2])])
@pytest.mark.parametrize("op", BATCHED)
def test_few_rows_and_draws(op: str, rows: int, draws: list[int]) -> None:
    case = CASES[op]
    operands = [o.requires_grad_(case.gradient) for o in case.operands(rows, torch.float32)]
    y = case.call(operands, nk.Noise(mul=0.5), seed=3, draws=draws, shared=True)
    clean = case.after(case.value(operands))
    assert y.shape == (len(draws) * clean.shape[0], *clean.shape[1:])
    if y.numel() > 0:
        assert_same_bits(y, case.expected(operands, nk.Noise(mul=0.5), seed=3, draws=draws))
    elif case.gradient:
        for o, g in zip(operands, torch.autograd.grad(y.sum(), operands), strict=True):
            assert g.shape == o.shape and not g.any()


@pytest.mark.parametrize(
    "noisy, clean, shapes",
    [
        (nk.linear, F.linear, ((4, 0), (3, 0), (3,))),
        (nk.linear, F.linear, ((4, 0), (3, 0))),
        (nk.linear, F.linear, ((4, 5), (0, 5), (0,))),
        (nk.matmul, torch.matmul, ((4, 0), (0, 3))),
        (nk.matmul, torch.matmul, ((4, 2), (2, 0))),
        (nk.conv2d, F.conv2d, ((4, 0, 5, 5), (2, 0, 3, 3), (2,))),
    ],
)
def test_nothing_to_sum(
    noisy: Callable[..., Tensor], clean: Callable[..., Tensor], shapes: Sequence[tuple[int, ...]]
) -> None:
    operands, noise = [torch.ones(s) for s in shapes], nk.Noise(add=1.0)
    y = noisy(*operands, noise=noise, seed=1)
    assert_same_bits(y, nk.perturb(clean(*operands), noise, seed=1))
    assert all((o == 1).all() for o in operands)


def test_eps_of_any_shape() -> None:
    for shape in ((), (0,), (3, 0), (0, 3), (2, 3, 4)):
        assert nk.eps(shape, seed=1).shape == shape
    assert_same_bits(nk.eps((), seed=1), nk.eps((1, 1), seed=1)[0, 0])

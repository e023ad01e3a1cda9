"""The operators under torch's transforms: each gives what the plain eager call gives."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from operators import CASES, MODES, ROWS, Case, assert_same_bits
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import noisykernels as nk

# One case of each rule: the default where a test is slow.
FEW = [
    "perturb 4-d",
    "linear relu",
    "linear unbatched",
    "conv2d grouped relu",
    "conv2d unbatched",
    "conv_transpose2d",
    "matmul broadcast",
]
DIFFERENTIABLE = [name for name, case in CASES.items() if case.gradient]
REST = [pytest.param(name, marks=pytest.mark.full) for name in DIFFERENTIABLE if name not in FEW]
SHARED: dict[str, Any] = dict(draws=torch.tensor([4, 1]), shared=True)


def ids_of(case: Case) -> dict[str, Any]:
    return dict(seed=torch.tensor(77), site=2, **(SHARED if case.batched else {}))


def leaves(case: Case, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [o.requires_grad_(case.gradient) for o in case.operands(4, dtype, normal=True)]


def gradients(y: Tensor, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    along = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    return torch.autograd.grad(y, operands, along)


def assert_all_same_bits(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for a, e in zip(actual, expected, strict=True):
        assert_same_bits(a, e)


# ------------------------------------------------------------------------------- opcheck, compile


class Recorder(TorchDispatchMode):
    """The calls of this library's operators, as the dispatcher sees them."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "noisykernels":
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("layout", ["contiguous", pytest.param("last", marks=pytest.mark.full)])
@pytest.mark.parametrize("op", CASES)
def test_opcheck(op: str, layout: str) -> None:
    case = CASES[op]
    operands = case.operands(4, torch.float32)
    if layout == "last" or "conv2d" in op:
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        format = formats.get(operands[0].dim(), torch.contiguous_format)
        operands[0] = operands[0].to(memory_format=format)
    with Recorder() as recorder:
        case.call(operands, nk.Noise(add=0.5, mul=0.25), **ids_of(case))
    ((function, args),) = recorder.calls
    for a in args:
        if isinstance(a, Tensor) and a.dtype == torch.float32:
            a.requires_grad_(case.gradient)
    torch.library.opcheck(function, args)


def test_opcheck_eps() -> None:
    with Recorder() as recorder:
        nk.eps((3, 5), seed=torch.tensor(1), rows=[3, 1, 4])
    ((function, args),) = recorder.calls
    torch.library.opcheck(function, args)


@pytest.fixture
def dynamo() -> Iterator[None]:
    """A fresh compiler that makes an error of every recompilation."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch._dynamo.reset()


@pytest.mark.parametrize("op", [*FEW, *REST])
def test_compiled_equals_eager(op: str, dynamo: None) -> None:
    case, noise = CASES[op], nk.Noise(add=0.5, mul=0.25)
    operands = leaves(case)

    def f(operands: list[Tensor]) -> Tensor:
        return case.call(operands, noise, **ids_of(case))

    compiled = torch.compile(f, backend="aot_eager", fullgraph=True)
    expected, actual = f(operands), compiled(operands)
    assert_same_bits(actual, expected)
    assert_all_same_bits(gradients(actual, operands), gradients(expected, operands))


def test_inductor_equals_eager(dynamo: None) -> None:
    """Gradients too, since on integers every sum is exact, in whatever order it is generated."""
    operands = [o.requires_grad_() for o in CASES["conv2d"].operands(4, torch.float32)]
    noise, ones = nk.Noise(add=0.25), torch.ones(6, 6)

    def f(operands: list[Tensor], seed: Tensor) -> Tensor:
        y = nk.conv2d(*operands, noise=noise, seed=seed, relu=True, **SHARED)
        z = nk.linear(y.round(), ones, noise=noise, seed=seed)
        return nk.perturb(z.relu(), noise, seed=seed) + y

    compiled = torch.compile(f, fullgraph=True)
    for seed in torch.arange(2):
        actual, expected = compiled(operands, seed), f(operands, seed)
        assert_same_bits(actual, expected)
        grads = (torch.autograd.grad(y.sum(), operands) for y in (actual, expected))
        assert_all_same_bits(*grads)


def test_no_recompilation_over_levels_seeds_and_ids(dynamo: None) -> None:
    x, w = torch.randn(4, 8), torch.randn(3, 8)

    def f(level: Tensor, noise: nk.Noise, seed: Tensor, draws: Tensor, rows: Tensor) -> Tensor:
        y = nk.linear(x, w, noise=nk.Noise(add=level), seed=seed, draws=draws, rows=rows)
        return nk.perturb(y, noise, seed=seed)

    compiled = torch.compile(f, backend="eager", fullgraph=True)
    for i in range(1, 4):
        level, seed = torch.tensor(i / 8), torch.tensor(i)
        ids = torch.tensor([i, i + 1]), torch.tensor([5 * i, i])
        for noise in (nk.Noise(mul=i / 4), nk.Noise(mul=0.5).scaled(i)):
            assert_same_bits(compiled(level, noise, seed, *ids), f(level, noise, seed, *ids))


@pytest.mark.parametrize("how", ["dynamic", "marked"])
def test_no_recompilation_over_counts_of_draws(how: str, dynamo: None) -> None:
    """Two or more; torch.compile makes a program of its own for a dimension of length 1."""
    noise, w = nk.Noise(mul=0.25), torch.randn(7, 9)

    def f(x: Tensor, draws: Tensor) -> Tensor:
        return nk.linear(x, w, noise=noise, seed=3, draws=draws, shared=True)

    compiled = torch.compile(f, backend="aot_eager", fullgraph=True, dynamic=True if how == "dynamic" else None)
    for count in (3, 2, 5, 8):
        x, draws = torch.randn(4, 9, requires_grad=True), torch.arange(count)
        if how == "marked":
            torch._dynamo.mark_dynamic(draws, 0)
        actual, expected = compiled(x, draws), f(x, draws)
        assert_same_bits(actual, expected)
        assert_all_same_bits(gradients(actual, [x]), gradients(expected, [x]))


BAD_LEVELS = torch.tensor([0.5, torch.nan, -1.0, torch.inf])


@pytest.mark.parametrize("mode", MODES)
def test_bad_values_in_a_graph_make_nan_of_their_rows(mode: str, dynamo: None) -> None:
    """Nobody can look at them there; the rows that they concern say so."""
    x, w = torch.ones(4, 3), torch.eye(3)
    spec = {k: v for k, v in MODES[mode].items() if k not in ("add", "mul")}
    one, other = torch.full((2, 1, 4, 1), 0.5)

    @torch.compile(backend="eager", fullgraph=True)
    def f(add: Tensor, mul: Tensor, draws: Tensor, rows: Tensor) -> Tensor:
        levels = {k: v for k, v in (("add", add), ("mul", mul)) if k in MODES[mode]}
        noise = nk.Noise(**levels, **spec)
        return nk.linear(x, w, noise=noise, seed=1, draws=draws, rows=rows, shared=True)

    draws, rows = torch.arange(2), torch.arange(4)
    assert not f(one, other, draws, rows).isnan().any()
    wrong = torch.tensor([False, True, True, True])
    for name in MODES[mode]:
        if name in ("add", "mul"):
            levels = {"add": one, "mul": other, name: BAD_LEVELS.view(1, 4, 1)}
            y = f(levels["add"], levels["mul"], draws, rows).isnan()
            assert (y == wrong.repeat(2)[:, None]).all(), name
    for bad in (-1, 2**32):
        y = f(one, other, draws, torch.tensor([0, bad, bad, bad])).isnan()
        assert (y == wrong.repeat(2)[:, None]).all()
        y = f(one, other, torch.tensor([7, bad]), rows).isnan()
        assert not y[:4].any() and y[4:].all()


# ------------------------------------------------------------------- checkpoint, export, functions


@pytest.mark.parametrize("seed", [None, 5])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint_redraws_the_same_noise(reentrant: bool, seed: int | None) -> None:
    def f(x: Tensor, w: Tensor) -> Tensor:
        y = nk.linear(x, w, noise=nk.Noise(mul=0.5), seed=seed, relu=True)
        return nk.perturb(nk.matmul(y, w, noise=nk.Noise(mul=1.0), seed=seed), nk.Noise(mul=2.0))

    operands = [torch.randn(4, 6, requires_grad=True), torch.randn(6, 6, requires_grad=True)]
    torch.manual_seed(1)
    expected = f(*operands)
    torch.manual_seed(1)
    actual = checkpoint(f, *operands, use_reentrant=reentrant)
    assert_same_bits(actual, expected)
    for o in operands:
        o.grad = None
    actual.sum().backward()
    grads = [o.grad for o in operands]
    assert_all_same_bits(grads, torch.autograd.grad(expected.sum(), operands))


@pytest.mark.parametrize("op", [*FEW, "pool odd", *REST])
def test_exported_program(op: str) -> None:
    case, noise = CASES[op], nk.Noise(add=0.5, mul=0.25)
    dynamic = {0: torch.export.Dim("rows", min=2)} if case.shapes[0][:1] == (ROWS,) else None

    class Module(torch.nn.Module):
        def forward(self, seed: Tensor, *operands: Tensor) -> Tensor:
            return case.call(operands, noise, seed=seed, **(SHARED if case.batched else {}))

    operands = case.operands(4, torch.float32)
    shapes = (None, (dynamic, *[None] * (len(operands) - 1)))
    program = torch.export.export(Module(), (torch.tensor(1), *operands), dynamic_shapes=shapes)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for rows in (4, 6) if dynamic else (4,):
        args = torch.tensor(9), *case.operands(rows, torch.float32)
        assert_same_bits(loaded(*args), Module()(*args))


@pytest.mark.parametrize("over", ["x", "seed", "level", "draws", "all"])
@pytest.mark.parametrize("op", [*FEW, "pool odd", *REST])
def test_vmap_is_one_call_for_each_element(op: str, over: str) -> None:
    case = CASES[op]
    first, *rest = case.operands(4, torch.float32)
    mapped = {  # a tensor and the dimension to map
        "x": (torch.stack([first, first + 1, first - 2], -1), -1),
        "seed": (torch.arange(3), 0),
        "level": (torch.tensor([0.5, 1.0, 2.0]), 0),
        "draws": (torch.arange(6).view(2, 3)[: 2 if case.batched else 1], 1),
    }
    args = [t if over in (k, "all") else t.select(d, 0) for k, (t, d) in mapped.items()]
    dims = tuple(d if over in (k, "all") else None for k, (_, d) in mapped.items())

    def f(x: Tensor, seed: Tensor, level: Tensor, draws: Tensor) -> Tensor:
        noise = nk.Noise(add=level, mul=0.25)
        return case.call([x, *rest], noise, seed=seed, draws=draws, shared=True)

    def at(i: int) -> list[Tensor]:
        return [a if d is None else a.select(d, i) for a, d in zip(args, dims, strict=True)]

    alone = torch.stack([f(*at(i)) for i in range(3)])
    assert_same_bits(torch.vmap(f, in_dims=dims)(*args), alone)


def test_vmap_randomness_is_that_of_the_seed() -> None:
    x = torch.zeros(3, 4)

    def f(x: Tensor) -> Tensor:
        return nk.perturb(x, nk.Noise(add=1.0))

    same, different = (torch.vmap(f, randomness=r)(x) for r in ("same", "different"))
    assert len(same.unique(dim=0)) == 1 and len(different.unique(dim=0)) == 3
    with pytest.raises(RuntimeError, match="randomness"):
        torch.vmap(f, randomness="error")(x)


@pytest.mark.parametrize("op", [*FEW, *REST])
def test_functional_derivatives(op: str) -> None:
    case, noise = CASES[op], nk.Noise(add=0.5, mul=0.25)
    operands = leaves(case, torch.float64)

    def f(*operands: Tensor) -> Tensor:
        return case.call(operands, noise, **ids_of(case)).pow(2).sum()

    plain = torch.autograd.grad(f(*operands), operands)
    everything = tuple(range(len(operands)))
    inputs = [o.detach() for o in operands]

    def assert_close(actual: Tensor, expected: Tensor) -> None:
        # Transforms turn a product with a vector into another product, which sums in another order. Sums of fewer than
        # 64 terms, none above the largest gradient, move by less than 64 * 64 roundings of it; other noise moves all.
        assert (actual - expected).abs().max() <= 64 * 64 * 2.0**-53 * expected.abs().max()

    for actual, expected in zip(torch.func.grad(f, everything)(*inputs), plain, strict=True):
        assert_close(actual, expected)
    each = torch.vmap(torch.func.grad(f), in_dims=(0, *[None] * (len(inputs) - 1)))
    repeated = inputs[0].expand(2, *inputs[0].shape)
    for actual in each(repeated, *inputs[1:]):
        assert_close(actual, plain[0])

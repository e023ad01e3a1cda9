"""Tokens that are followed through operations: what an entry depends on, by derivatives, is what is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from noisykernels.injection import belonging as of_belonging
from noisykernels.injection import belonging_rules
from noisykernels.injection.belonging import SEVERAL, Belonging
from noisykernels.injection.belonging_rules import NONE

TOKENS, SIZE = 4, 6
OTHER = torch.rand(TOKENS, SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.5
WEIGHT = torch.rand(5, SIZE, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 0.5
ORDER = torch.tensor([3, 0, 2, 1])
MASK = torch.tensor([True, False, True, True])
STACK = torch.rand(2, 8, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
Example = Callable[[Tensor], Any]


def written(write: Callable[[Tensor, Tensor], Any]) -> Example:
    """What becomes of a value of no token that is written into."""

    def run(x: Tensor) -> Tensor:
        out = torch.ones(TOKENS, SIZE, dtype=torch.float64)
        write(out, x)
        return out

    return run


MOVED: dict[str, Example] = {  # operations on x (tokens, size), larger than 0
    "view": lambda x: x.view(2, 2, SIZE),
    "reshape": lambda x: x.reshape(-1, 2),
    "flatten": lambda x: x.flatten(),
    "unflatten": lambda x: x.unflatten(0, (2, 2)),
    "ravel": lambda x: x.ravel(),
    "permute": lambda x: x.permute(1, 0),
    "transpose": lambda x: x.transpose(0, 1),
    "t": lambda x: x.t(),
    "T": lambda x: x.T,
    "mT": lambda x: x.mT,
    "swapaxes": lambda x: x.swapaxes(0, 1),
    "movedim": lambda x: x.movedim(0, 1),
    "unsqueeze": lambda x: x.unsqueeze(1),
    "squeeze": lambda x: x[:1].squeeze(0),
    "expand": lambda x: x.expand(2, -1, -1),
    "broadcast_to": lambda x: torch.broadcast_to(x, (2, TOKENS, SIZE)),
    "view_as": lambda x: x.view_as(OTHER.view(2, -1)),
    "reshape_as": lambda x: x.reshape_as(OTHER.view(2, -1)),
    "expand_as": lambda x: x[:1].expand_as(OTHER),
    "narrow": lambda x: x.narrow(0, 1, 2),
    "select": lambda x: x.select(1, 2),
    "split": lambda x: x.split([1, 3]),
    "split_with_sizes": lambda x: x.split_with_sizes([1, 3]),
    "chunk": lambda x: x.chunk(2, -1),
    "unbind": lambda x: x.unbind(0),
    "unfold": lambda x: x.unfold(0, 2, 1),
    "index_select": lambda x: x.index_select(0, ORDER),
    "gather": lambda x: x.gather(0, ORDER.unsqueeze(1).expand(-1, SIZE)),
    "take_along_dim": lambda x: x.take_along_dim(ORDER.unsqueeze(1), 0),
    "getitem": lambda x: (x[ORDER], x[MASK], x[1:, None, ::2], x[..., 1], x[ORDER, 2]),
    "masked_select": lambda x: x.masked_select(MASK.unsqueeze(1)),
    "repeat": lambda x: x.repeat(2, 1),
    "repeat_interleave": lambda x: x.repeat_interleave(2, 0),
    "tile": lambda x: x.tile(2, 1),
    "flip": lambda x: x.flip(0),
    "roll": lambda x: x.roll(1, 0),
    "diagonal": lambda x: x.diagonal(),
    "pad": lambda x: F.pad(x, (0, 0, 1, 2)),
    "cat": lambda x: torch.cat([x[2:], OTHER, x[:1]]),
    "concat": lambda x: torch.concat([x, x], 1),
    "stack": lambda x: torch.stack([x, x.flip(0)], 1),
    "contiguous": lambda x: x.T.contiguous(),
    "clone": lambda x: x.clone(),
    "alias": lambda x: torch.ops.aten.alias(x),
    "to": lambda x: x.to(torch.float32),
    "float": lambda x: x.float(),
    "double": lambda x: x.double(),
    "half": lambda x: x.half(),
    "bfloat16": lambda x: x.bfloat16(),
    "type": lambda x: x.type(torch.float32),
    "type_as": lambda x: x.type_as(WEIGHT),
    "cpu": lambda x: x.cpu(),
    "requires_grad": lambda x: x.requires_grad_(),
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
    "tril": lambda x: x.tril(2)[2:, :2],
    "triu": lambda x: x.triu()[:2, 2:],
    "sort": lambda x: x.sort(1)[0],
    "topk": lambda x: x.topk(2, dim=-1)[0],
}
MIXED: dict[str, Example] = {
    "where": lambda x: torch.where(OTHER > 0, x, 0.0),
    "add": lambda x: (x + OTHER, x + x, x + x[:1], 1 + x),
    "mul": lambda x: (x * x[:, :1], x.T * OTHER.T, 2 * x),
    "sub": lambda x: x - 1,
    "rsub": lambda x: 1 - x,
    "div": lambda x: (1 / x, x / x.roll(1, 1)),
    "pow": lambda x: x**2,
    "prelu": lambda x: F.prelu(x, WEIGHT[0, :1]),
    "hardswish": F.hardswish,
    "log_sigmoid": F.logsigmoid,
    "softsign": F.softsign,
    "relu6": F.relu6,
    "silu": F.silu,
    "gelu": F.gelu,
    "clamp": lambda x: x.clamp(min=0.1),
    "multiply": lambda x: torch.multiply(x, OTHER),
    "divide": lambda x: torch.divide(x, OTHER),
    "subtract": lambda x: torch.subtract(OTHER, x),
    "masked_fill": lambda x: x.masked_fill(torch.zeros(TOKENS, 1, dtype=torch.bool), 1.0),
    "nan_to_num": lambda x: x.nan_to_num(),
    "sum": lambda x: (x.sum(1), x.sum(0), x.sum(), x.sum(-1, keepdim=True), x[:1].sum(0), x.sum((0, 1))),
    "mean": lambda x: (x.mean(-1), x.view(2, 2, SIZE).mean(1)),
    "prod": lambda x: x.prod(1),
    "amax": lambda x: x[:, :1].amax(1),
    "amin": lambda x: x[:, :1].amin(1),
    "max": lambda x: x[:, :1].max(1)[0],
    "min": lambda x: x[:, :1].min(1)[0],
    "std": lambda x: x.std(1),
    "var": lambda x: (x.var(1), x.var(0)),
    "logsumexp": lambda x: x.logsumexp(1),
    "norm": lambda x: (x.norm(2, 1), x.norm(dim=0)),
    "vector_norm": lambda x: torch.linalg.vector_norm(x, dim=1),
    "softmax": lambda x: (x.softmax(-1), x.softmax(0)),
    "log_softmax": lambda x: x.log_softmax(1),
    "cumsum": lambda x: (x.cumsum(1), x.cumsum(0)[1:]),
    "cumprod": lambda x: x.cumprod(1),
    "glu": lambda x: F.glu(x),
    "normalize": lambda x: F.normalize(x, dim=1),
    "layer_norm": lambda x: F.layer_norm(x, (SIZE,)),
    "rms_norm": lambda x: F.rms_norm(x, (SIZE,)),
    "linear": lambda x: F.linear(x, WEIGHT),
    "matmul": lambda x: (x @ WEIGHT.T, WEIGHT @ x.T, x.T @ OTHER, OTHER.T @ x),
    "mm": lambda x: torch.mm(x, WEIGHT.T),
    "mv": lambda x: (torch.mv(x, WEIGHT[0]), torch.mv(WEIGHT, x[1])),
    "bmm": lambda x: torch.bmm(WEIGHT[:4].unsqueeze(1), x.unsqueeze(-1)),
    "addmm": lambda x: torch.addmm(WEIGHT[:, 0], x, WEIGHT.T),
    "baddbmm": lambda x: torch.baddbmm(torch.zeros(1, 1, 1).double(), WEIGHT[:4].unsqueeze(1), x.unsqueeze(-1)),
    "einsum": lambda x: (torch.einsum("td,hd->ht", x, WEIGHT), torch.einsum("td,td->d", x, OTHER)),
    "dot": lambda x: torch.dot(x[1], OTHER[0]),
    "vdot": lambda x: torch.vdot(OTHER[0], x.flatten()[:SIZE]),
    "vecdot": lambda x: torch.linalg.vecdot(x, OTHER),
    "inner": lambda x: torch.inner(x, WEIGHT),
    "addmv": lambda x: torch.addmv(OTHER[:, 0], x, WEIGHT[0]),
    "addbmm": lambda x: torch.addbmm(torch.zeros(1, 1).double(), WEIGHT[:4].unsqueeze(1), x.unsqueeze(-1)),
    "chain_matmul": lambda x: torch.chain_matmul(x, WEIGHT.T, WEIGHT),
    "multi_dot": lambda x: torch.linalg.multi_dot([x, WEIGHT.T, WEIGHT]),
    "tensordot": lambda x: torch.tensordot(x, WEIGHT, dims=([1], [1])),
    "bilinear": lambda x: F.bilinear(x, x.flip(0), torch.ones(2, SIZE, SIZE).double()),
    "grouped_mm": lambda x: F.grouped_mm(
        F.pad(x.float(), (0, 2)), STACK.float(), offs=torch.tensor([1, 4], dtype=torch.int32)
    ),
    "setitem": written(lambda out, x: out.__setitem__(slice(1, 3), x[:2])),
    "index_put": written(lambda out, x: out.index_put_((ORDER,), x)),
    "scatter": written(lambda out, x: out.scatter_(0, ORDER.unsqueeze(1).expand(-1, SIZE), x)),
    "index_copy": written(lambda out, x: out.index_copy_(0, ORDER[:2], x[:2])),
    "index_add": written(lambda out, x: out.index_add_(0, torch.tensor([1, 1, 0, 2]), x)),
    "scatter_add": written(lambda out, x: out.scatter_add_(1, ORDER.expand(TOKENS, -1), x[:, :4])),
    "copy": written(lambda out, x: out.copy_(x)),
    "a view that is written into": written(lambda out, x: out[1:].copy_(x[1:])),
    "a view of a view": written(lambda out, x: out.view(2, 2, SIZE)[1].T[2:, 0].add_(x[3, :4])),
    "an operation without a rule": lambda x: torch.linalg.svdvals(x),
}
OF_NONE: dict[str, Example] = {
    "zeros_like": torch.zeros_like, "ones_like": torch.ones_like, "empty_like": torch.empty_like,
    "full_like": lambda x: torch.full_like(x, 2.0), "rand_like": torch.rand_like, "randn_like": torch.randn_like,
    "new_zeros": lambda x: x.new_zeros(2), "new_ones": lambda x: x.new_ones(2),
    "new_empty": lambda x: x.new_empty(2), "new_full": lambda x: x.new_full((2,), 1.0),
}  # fmt: skip
PICKED: dict[str, tuple[Example, list[int]]] = {  # of whole numbers, and others without derivatives
    "nonzero": (lambda x: (x > 0).long().nonzero()[::SIZE], [0, 0, 1, 1, 2, 2, 3, 3]),
    "argwhere": (lambda x: (x[:, 0] > 0).argwhere(), [0, 1, 2, 3]),
    "argsort": (lambda x: x[:2, :3].argsort(-1), [0] * 3 + [1] * 3),
    "argmax": (lambda x: x.argmax(-1), [0, 1, 2, 3]),
    "argmin": (lambda x: x.argmin(0), [SEVERAL] * SIZE),
    "all": (lambda x: x.all(-1), [0, 1, 2, 3]),
    "any": (lambda x: x.any(), [SEVERAL]),
    "long": (lambda x: x[:, 0].long(), [0, 1, 2, 3]),
    "int": (lambda x: x[:, 0].int(), [0, 1, 2, 3]),
    "bool": (lambda x: x[:, 0].bool(), [0, 1, 2, 3]),
    "detach": (lambda x: x[:, 0].detach(), [0, 1, 2, 3]),
    "data": (lambda x: x[:, 0].data, [0, 1, 2, 3]),
    "zero": (lambda x: x[:, 0].clone().zero_(), [0, 1, 2, 3]),
    "fill": (lambda x: x[:, 0].clone().fill_(1.0), [0, 1, 2, 3]),
    "one_hot": (lambda x: F.one_hot(x[:, 0].long(), 2), [0, 0, 1, 1, 2, 2, 3, 3]),
    "embedding": (lambda x: F.embedding(x[:, 0].long(), WEIGHT[:, :2]), [0, 0, 1, 1, 2, 2, 3, 3]),
    "getitem": (lambda x: WEIGHT[x[:, 0].long()][..., :1], [0, 1, 2, 3]),
    "floor_divide": (lambda x: x[:, 0] // 0.3, [0, 1, 2, 3]),
    "scaled_dot_product_attention": (
        lambda x: F.scaled_dot_product_attention(x[None, None], OTHER[None, None], x[None, None])[..., :1], [0, 1, 2, 3]
    ),
    "matmul": (lambda x: x @ x.T, [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4),  # scores are of the token that asks
    "where": (lambda x: torch.where(x[:, 0] > 0)[0], [0, 1, 2, 3]),
}  # fmt: skip


def followed(run: Example, x: Tensor) -> tuple[list[Tensor], list[Tensor], list[str]]:
    """The results, their tokens, and the operations."""
    ran: list[str] = []
    rule_of = of_belonging.rule_of

    def spy(name: str) -> Any:
        ran.append(name)
        return rule_of(name)

    with pytest.MonkeyPatch.context() as patch, Belonging(lambda: "block") as belonging:
        patch.setattr(of_belonging, "rule_of", spy)
        belonging.tell(x, torch.arange(TOKENS).unsqueeze(1).expand(x.shape))
        out = run(x)
        results = [out] if isinstance(out, Tensor) else list(out)
        found = [None if (held := belonging.of(t)) is None else held.tokens for t in results]
    return results, [torch.full(t.shape, NONE) if f is None else f for t, f in zip(results, found, strict=True)], ran


def value() -> Tensor:
    return torch.rand(TOKENS, SIZE, generator=torch.Generator().manual_seed(4), dtype=torch.float64) + 0.25


@pytest.mark.parametrize("name", [*MOVED, *MIXED, *OF_NONE])
def test_tokens_are_those_that_entries_depend_on(name: str) -> None:
    run = {**MOVED, **MIXED, **OF_NONE}[name]
    x = value().requires_grad_()
    results, tokens, ran = followed(lambda x: run(x.clone() if name != "requires_grad" else x.detach()), x)
    assert name in ran or f"_{name}" in ran or " " in name
    for result, of in zip(results, tokens, strict=True):
        assert of.shape == result.shape
        for entry, token in zip(result.flatten(), of.flatten().tolist(), strict=True):
            if name == "requires_grad":  # a leaf: it depends on nothing
                continue
            slope = None
            if entry.requires_grad:
                (slope,) = torch.autograd.grad(entry, x, retain_graph=True, allow_unused=True)
            depends = [] if slope is None else slope.abs().sum(1).nonzero().flatten().tolist()
            wanted = NONE if not depends else depends[0] if len(depends) == 1 else SEVERAL
            assert token == wanted, (depends, token)


@pytest.mark.parametrize("name", PICKED)
def test_tokens_of_whole_numbers(name: str) -> None:
    run, wanted = PICKED[name]
    _, [tokens], ran = followed(run, value())
    assert name in ran
    assert tokens.flatten().tolist() == wanted


def test_every_rule_is_tested() -> None:
    tested = {*MOVED, *MIXED, *OF_NONE, *PICKED, "_grouped_mm"}
    assert set(belonging_rules._RULES) - tested == set()


@pytest.mark.parametrize("inference", [False, True])
def test_what_is_written_into_a_part_is_in_all_that_share_its_memory(inference: bool) -> None:
    def run(x: Tensor) -> list[Tensor]:
        known, unknown = x.flatten().clone(), torch.zeros(3, 2, 2, dtype=torch.float64)
        part = known.view(TOKENS, SIZE)[:, 1:]
        part[0].copy_(OTHER[0, 1:])
        part[1].add_(x[2, 1:])
        unknown[1][0].copy_(x[3, :2])
        held = unknown[1].clone()
        unknown.zero_()
        unknown[:, :, 0] = x[0, :2]
        return [known.view(TOKENS, SIZE)[:, :2], part[:, :1], held, unknown[0]]

    with torch.inference_mode(inference):
        _, found, _ = followed(run, value())
    assert [t.tolist() for t in found] == [
        [[0, NONE], [1, SEVERAL], [2, 2], [3, 3]], [[NONE], [SEVERAL], [2], [3]], [[3, 3], [NONE, NONE]],
        [[0, NONE], [0, NONE]],
    ]  # fmt: skip

"""Attention that a model writes out has the names, and so the noise, of torch's kernel and layer; what is none is left
alone, and told where it multiplies values with values."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.utils.checkpoint import checkpoint

import noisykernels as nk
from noisykernels.injection.site import kind_of
from noisykernels.noise.contract import hashed_id

E, H, L, D = 8, 2, 5, 4
SCALE = D**-0.5
PARTS = ("scores", "softmax", "weighted_sum")
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def eager(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As transformers has it."""
    scores = torch.matmul(q, k.transpose(-1, -2)) * SCALE + torch.zeros(1, 1, L, L)
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
    return torch.matmul(F.dropout(weights, 0.1, training=False), v)


def operators(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = (q @ k.mT).mul_(SCALE)
    scores[..., 0, 0] += 0.0
    return scores.masked_fill_(torch.zeros(L, L, dtype=torch.bool), -math.inf).softmax(-1) @ v


def folded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (t.reshape(-1, L, D) for t in (q, k, v))
    return torch.bmm(torch.softmax(torch.bmm(q, k.transpose(1, 2)) * SCALE, -1), v).view(-1, H, L, D)


def sums(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("bhid,bhjd->bhij", q, k) * SCALE
    return torch.einsum("bhij,bhjd->bhid", torch.nn.Softmax(-1)(scores), v)


def sinks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A column that all may look at, of no weight here."""
    scores = torch.cat([q @ k.mT * SCALE, torch.full((len(q), H, L, 1), -math.inf)], -1)
    return scores.softmax(-1)[..., :-1] @ v


def flexible(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return flex_attention(q, k, v)


def scaled_before(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q * SCALE @ k.mT).softmax(-1) @ v


def added(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (t.reshape(-1, L, D) for t in (q, k, v))
    scores = torch.zeros(len(q), L, L).baddbmm(q, k.mT, beta=1.0, alpha=SCALE)
    return torch.bmm(scores.softmax(-1), v).view(-1, H, L, D)


WRITTEN: dict[str, Attend] = {f.__name__: f for f in (eager, operators, folded, sums, flexible)}
OTHERS: dict[str, Attend] = {f.__name__: f for f in (scaled_before, added, sinks)}  # whose scores are others


class Attention(nn.Module):
    """Self-attention with the parameters of torch's layer."""

    def __init__(self, layer: nn.MultiheadAttention, attend: Attend) -> None:
        super().__init__()
        self.weight, self.bias, self.out_proj, self.attend = (
            layer.in_proj_weight, layer.in_proj_bias, layer.out_proj, attend,
        )  # fmt: skip

    def forward(self, x: Tensor, *_: Any, **__: Any) -> tuple[Tensor]:
        q, k, v = (t.view(-1, L, H, D).transpose(1, 2) for t in F.linear(x, self.weight, self.bias).chunk(3, 2))
        return (self.out_proj(self.attend(q, k, v).transpose(1, 2).flatten(2)),)


class Network(nn.Module):
    def __init__(self, attend: Attend | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer, self.head = nn.MultiheadAttention(E, H, batch_first=True), nn.Linear(E * L, 4)
        self.attn = layer if attend is None else Attention(layer, attend)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x, x, x, need_weights=False)[0]
        return self.head((x + self.attn(x, x, x, need_weights=False)[0]).flatten(1))


X = torch.randn(3, L, E, generator=torch.Generator().manual_seed(1))
INSIDE = [f"attn:{part}#{k}" for k in range(2) for part in (*PARTS, "attention")]


def inside(model: nn.Module, x: Tensor = X) -> list[str]:
    """The sites that are no layers, where nothing may be told."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return [s.name for s in nk.sites(model, x, detail="attention") if s.kind not in ("input", "linear")]


@torch.no_grad()
def noisy(model: nn.Module, where: str, x: Tensor = X) -> Tensor:
    with nk.inject(model, nk.Noise(add=0.5), where, example_input=x, detail="attention"):
        with nk.noise_state(model, seed=1, draws=[0, 3]):
            return model(x)


@pytest.mark.parametrize("how", [*WRITTEN, None])
def test_the_same_names_and_the_same_noise(how: str | None) -> None:
    kernel, model = Network(F.scaled_dot_product_attention).eval(), Network(WRITTEN[how] if how else None).eval()
    assert inside(model) == inside(kernel) == INSIDE
    with torch.no_grad():
        clean = kernel(X)
        assert torch.allclose(model(X), clean, atol=1e-5)
    for name in INSIDE[: 4 if how else 3]:  # of torch's layer the whole attention has its heads beside each other
        assert torch.allclose(noisy(model, name), noisy(kernel, name), atol=1e-5), name
        assert not torch.allclose(noisy(model, name)[:3], clean, atol=1e-2)


@pytest.mark.parametrize("how", OTHERS)
def test_scores_are_what_the_model_makes(how: str) -> None:
    model, kernel = Network(OTHERS[how]).eval(), Network(F.scaled_dot_product_attention).eval()
    assert inside(model) == INSIDE
    for part in PARTS[1 + (how == "sinks") :]:
        assert torch.allclose(noisy(model, f"attn:{part}#1"), noisy(kernel, f"attn:{part}#1"), atol=1e-5)


def test_noise_of_scores_is_on_what_the_model_makes() -> None:
    """Scaled already, where the queries are."""
    given = torch.randn(3, 3, H, L, D).unbind()
    noise = 0.5 * nk.eps((3, H, L, L), seed=1, site=hashed_id(":scores#0"))
    want = ((given[0] * SCALE @ given[1].mT) + noise).softmax(-1) @ given[2]

    class Scaled(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return scaled_before(q, k, v)

    model = Scaled()
    with nk.inject(model, nk.Noise(add=0.5), ":scores", example_input=given, detail="attention"):
        with nk.noise_state(model, seed=1):
            assert torch.allclose(model(*given), want, atol=1e-5)


@pytest.mark.parametrize("how", ["eager", "folded", "sums", "added"])
def test_walks_of_both_engines(how: str) -> None:
    model, x = Network({**WRITTEN, **OTHERS}[how]).eval(), torch.randn(60, L, E)
    told: dict[str, Any] = {"noise": nk.Noise(add=1.0), "levels": [0.3, 3.0], "draws": 2, "seed": 1}
    data, sites = (x, model(x).argmax(1)), ["attn:softmax", "attn:weighted_sum#1", "attn:attention"]
    shared, plain = (
        nk.walk(model, data, **told, sites=sites, detail="attention", compute=nk.Compute(engine=engine))
        for engine in ("shared", "plain")
    )
    assert shared.records == plain.records and len(shared.records) == 20
    assert shared.meta.plan["verification"]["differing"] == {}
    with nk.inject(model, nk.Noise(add=3.0), "attn:softmax#1", example_input=x[:2], detail="attention"):
        with nk.noise_state(model, seed=1, draws=[1]):
            hits = int((model(x).argmax(1) == data[1]).sum())
    mine = [r.correct for r in shared.records if (r.site, r.level, r.draw) == ("attn:softmax#1", 3.0, 1)]
    assert mine == [hits]


def test_hardware_and_coverage_by_the_same_names() -> None:
    given: dict[str, Any] = {"example_input": X, "detail": "attention"}
    results = []
    for attend in (eager, F.scaled_dot_product_attention):
        model, found = Network(attend).eval(), []
        for name in ("attn:scores#1", "attn:weighted_sum", "attn:attention#0"):
            with nk.inject(model, None, hardware={name: [nk.InputNoise(add=0.1)]}, **given), torch.no_grad():
                with nk.noise_state(model, seed=1):
                    found.append(model(X))
                rows = {row.name: row for row in nk.coverage(model, X).operations}
                found.append(
                    torch.tensor([rows[n].hardware for n in INSIDE if "softmax" not in n] + [rows[INSIDE[0]].macs])
                )
        results.append(found)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*results, strict=True))
    assert results[0][1].tolist() == [0, 0, 0, 1, 0, 0, 3 * H * L * L * D]


def test_compiled_and_recomputed() -> None:
    torch._dynamo.reset()
    model = Network(operators).eval()
    with nk.inject(model, nk.Noise(add=0.5), "attn", example_input=X, detail="attention"), torch.no_grad():
        with nk.noise_state(model, seed=1):
            want = model(X)
            assert torch.allclose(torch.compile(model, backend="eager", fullgraph=True)(X), want, atol=1e-5)
    twice = Network(eager).eval()
    twice.attn.attend = lambda *given: checkpoint(eager, *given, use_reentrant=False)
    gradients = []
    for one in (Network(eager).eval(), twice):
        x = X.clone().requires_grad_()
        with nk.inject(one, nk.Noise(mul=0.5), "attn", example_input=X, detail="attention"):
            with nk.noise_state(one, seed=1):
                one(x).sum().backward()
        gradients.append(x.grad)
    assert torch.allclose(*gradients, atol=1e-5)


# ------------------------------------------------------------------------------------------- what is none, and is told


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v, self.o, self.gate = (nn.Linear(E, n) for n in (E, E, E, E, 3))
        self.mix, self.head, self.held = nn.Linear(H, H), nn.Linear(E, 4), nn.Parameter(torch.randn(4, E))

    def heads(self, x: Tensor) -> list[Tensor]:
        return [f(x).view(-1, L, H, D).transpose(1, 2) for f in (self.q, self.k, self.v)]

    def join(self, out: Tensor) -> Tensor:
        return self.o(out.transpose(1, 2).flatten(2)).mean(1)

    def attention(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        return self.join((q @ k.mT).softmax(-1) @ v)


class Exponentials(Base):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        scores = (q @ k.mT).exp()
        return self.head(self.join(scores / scores.sum(-1, keepdim=True) @ v))


class TalkingHeads(Base):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        mixed = self.mix((q @ k.mT).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.head(self.join(mixed.softmax(-1) @ v))


class Difference(Base):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        return self.head(self.join(((q @ k.mT).softmax(-1) - (k @ q.mT).softmax(-1)) @ v))


class Gates(Base):
    """Experts, weighted by a softmax of what comes from attention."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.attention(x)
        return torch.einsum("be,bed->bd", self.gate(out).softmax(-1), torch.stack([self.head(out)] * 3, 1)).softmax(-1)


class Pooled(Base):
    """A weighted mean, by a softmax of means of what attention gives."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        weights = ((q @ k.mT).softmax(-1) @ v).mean((1, 3)).softmax(-1)
        return self.head((weights.unsqueeze(1) @ x).squeeze(1))


class PooledScores(Base):
    """A weighted mean, by a softmax of means of products."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, _ = self.heads(x)
        return self.head(((q @ k.mT).mean((1, 2)).softmax(-1).unsqueeze(1) @ x).squeeze(1))


class Latents(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(((self.held @ x.mT).softmax(-1) @ x).mean(1))


KNOWN = [":scores#0", ":softmax#0", ":weighted_sum#0", ":attention#0"]
NONE: dict[type[Base], tuple[list[str], str]] = {
    Exponentials: ([":matmul#0", ":matmul#1"], "':matmul#0', ':matmul#1': products"),
    TalkingHeads: ([":matmul#0", ":matmul#1"], "':matmul#0', ':matmul#1': products"),
    Difference: ([":matmul#0", ":matmul#1", ":matmul#2"], "':matmul#0', ':matmul#1', ':matmul#2': products"),
    Gates: ([*KNOWN, ":einsum#0"], "':einsum#0': products"),
    Pooled: ([*KNOWN, ":matmul#0"], "':matmul#0': products"),
    PooledScores: ([":matmul#0", ":matmul#1"], "':matmul#0', ':matmul#1': products"),
    Latents: ([":matmul#0", ":matmul#1"], "':matmul#1': products"),
}


@pytest.mark.parametrize("kind", NONE)
def test_what_is_no_attention_is_left_alone_and_told(kind: type[Base]) -> None:
    expected, told = NONE[kind]
    with pytest.warns(UserWarning, match=f"detail='attention': {told}"):
        found = nk.sites(kind().eval(), X, detail="attention")
    assert [s.name for s in found if s.kind not in ("input", "linear")] == expected
    usual = [s.name for s in nk.sites(kind().eval(), X) if s.kind not in ("input", "linear")]
    assert not {kind_of(name) for name in usual} & set(PARTS)  # not asked for: names are as they were


def test_a_model_without_attention_and_one_that_is_not_traced() -> None:
    with pytest.warns(UserWarning, match="the model runs no attention"):
        nk.sites(nn.Linear(3, 2), torch.ones(2, 3), detail="attention")
    model = Network(eager).eval()
    with nk.inject(model, nk.Noise(add=0.1), detail="attention"), nk.noise_state(model, seed=1):
        with pytest.warns(UserWarning, match="'attn:matmul#0', 'attn:matmul#1', .* found with example_input=... only"):
            model(X)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model(X)


# ------------------------------------------------------------------------------------------------------ flex_attention


class Flexible(nn.Module):
    """Scores that a function changes, a mask, fewer heads of keys; the same by torch's other kernel."""

    def __init__(self, flexible: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.head, self.flexible = nn.Linear(8, 32), nn.Linear(L * 32, 3), flexible
        self.mask = create_block_mask(lambda b, h, q, k: q >= k, None, None, L, L, device="cpu")

    def forward(self, x: Tensor) -> Tensor:
        q = self.fc(x).view(-1, L, 2, 16).transpose(1, 2)
        k = q[:, :1]
        if self.flexible:
            out = flex_attention(q, k, k, lambda s, b, h, i, j: s * 0.5, self.mask, enable_gqa=True)
        else:
            out = F.scaled_dot_product_attention(q, k, k, is_causal=True, scale=0.125, enable_gqa=True)
        return self.head(out.transpose(1, 2).flatten(1))


@torch.no_grad()
def test_flex_attention_is_an_attention_like_any_other() -> None:
    x = torch.randn(3, L, 8)
    one, other = Flexible(True).eval(), Flexible(False).eval()
    clean = one(x)
    assert torch.allclose(clean, other(x), atol=1e-5)
    assert [s.name for s in nk.sites(one, x)] == [s.name for s in nk.sites(other, x)]
    for name in (":scores#0", ":softmax#0", ":weighted_sum#0", ":attention#0"):
        assert torch.allclose(noisy(one, name, x), noisy(other, name, x), atol=1e-5), name
        assert not torch.allclose(noisy(one, name, x)[:3], clean, atol=1e-3)
    for device in (nk.InputNoise(add=0.1), nk.Serial()):
        found = []
        for model in (one, other):
            with nk.inject(model, None, hardware=[device], example_input=x), nk.noise_state(model, seed=1):
                found += [model(x), torch.tensor(nk.coverage(model, x).macs)]
        assert torch.allclose(found[0], found[2], atol=1e-5) and found[1] == found[3]
    assert torch.equal(one(x), clean)
    with nk.inject(one, nk.Noise(add=0.1), "fc", example_input=x), nk.noise_state(one, seed=1):
        torch._dynamo.reset()
        with pytest.raises(RuntimeError, match="flex_attention cannot be compiled in an injected model"):
            torch.compile(one, backend="eager", fullgraph=True)(x)
        torch._dynamo.reset()
        assert torch.equal(torch.compile(one, backend="eager")(x), one(x))  # which runs as it is
        torch._dynamo.reset()  # what it has given up on

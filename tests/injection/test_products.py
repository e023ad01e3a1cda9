"""Products of two operands, however torch calls them: sites of their own, noisy and on hardware row by row."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from injecting import NOISE
from torch import Tensor, nn

import noisykernels as nk
from noisykernels.noise.contract import hashed_id

K, N = 6, 4
Call = Callable[[Any, Tensor], Tensor]


class Model(nn.Module):
    """One call, of parameters w (K, N), v (N, K), b (N), e (2, K, N), u (N, K, K)."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        torch.manual_seed(1)
        sizes = {"w": (K, N), "v": (N, K), "b": (N,), "e": (2, K, N), "u": (N, K, K), "k": (K,)}
        for name, size in sizes.items():
            setattr(self, name, nn.Parameter(torch.randn(size)))
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, x)


def in_place(m: Model, x: Tensor) -> Tensor:
    return torch.zeros(len(x), N).addmm_(x, m.w, alpha=2.0)


def into(m: Model, x: Tensor) -> Tensor:
    return torch.mm(x, m.w.detach(), out=torch.empty(len(x), N))


aten = torch.ops.aten
# By name: the call, of x (rows, K) or (rows, T, K); the kind of its site; the array.
ARRAYS: dict[str, tuple[Call, str, str, bool]] = {
    "@": (lambda m, x: x @ m.w, "matmul", "w", False),
    "@ of tokens": (lambda m, x: x @ m.w, "matmul", "w", True),
    "@ a transposed one": (lambda m, x: x @ m.v.T, "matmul", "v", True),
    "@ a vector": (lambda m, x: x @ m.k, "matmul", "k", True),
    "array @": (lambda m, x: (m.v @ x.mT).mT, "matmul", "v", True),
    "by its method": (lambda m, x: x.__rmatmul__(torch.eye(len(x))) @ m.w, "matmul#1", "w", False),
    "matmul by name": (lambda m, x: torch.matmul(input=x, other=m.w), "matmul", "w", True),
    "linalg.matmul": (lambda m, x: torch.linalg.matmul(x, m.w), "matmul", "w", True),
    "aten.matmul": (lambda m, x: aten.matmul.default(x, m.w), "matmul", "w", True),
    "mm": (lambda m, x: torch.mm(x, mat2=m.w), "mm", "w", False),
    "mm into": (into, "mm", "w", False),
    "aten.mm": (lambda m, x: aten.mm.default(x, m.w), "mm", "w", False),
    "bmm": (lambda m, x: x[:, :2].transpose(0, 1).bmm(m.e).transpose(0, 1), "bmm", "e", True),
    "mv": (lambda m, x: torch.mv(x, m.k), "mv", "k", False),
    "inner": (lambda m, x: torch.inner(x, m.v), "inner", "v", True),
    "vecdot": (lambda m, x: torch.linalg.vecdot(x, m.k), "vecdot", "k", True),
    "bmm of an expanded one": (lambda m, x: x.bmm(m.w.expand(len(x), -1, -1)), "bmm", "w", True),
    "addmm": (lambda m, x: torch.addmm(m.b, x, m.w), "addmm", "w", False),
    "addmm scaled": (lambda m, x: torch.addmm(m.b, x, m.w, beta=0.5, alpha=2.0), "addmm", "w", False),
    "addmm_": (in_place, "addmm", "w", False),
    "addmm of folded rows": (
        lambda m, x: torch.addmm(m.b, x.reshape(-1, K), m.w).view(*x.shape[:2], N), "addmm", "w", True
    ),
    "addmv": (lambda m, x: torch.addmv(x[:, 0], x, m.k), "addmv", "k", False),
    "baddbmm": (
        lambda m, x: torch.baddbmm(m.b, x[:, :2].transpose(0, 1), m.e).transpose(0, 1), "baddbmm", "e", True
    ),
    "addbmm": (lambda m, x: torch.addbmm(m.b, x[:, :2].transpose(0, 1), m.e), "addbmm", "e", True),
    "einsum": (lambda m, x: torch.einsum("btk,kn->bnt", x, m.w), "einsum", "w", True),
    "einsum with groups": (lambda m, x: torch.einsum("bhk,hkn->bhn", x[:, :2], m.e), "einsum", "e", True),
    "einsum with dots": (lambda m, x: torch.einsum("...k,nk->...n", [x, m.v]), "einsum", "v", True),
    "einsum by numbers": (lambda m, x: torch.einsum(x, [0, 1], m.w, [1, 2], [0, 2]), "einsum", "w", False),
    "einsum of three": (lambda m, x: torch.einsum("bk,k,kn->bn", x, x[0] * 0 + 1, m.w), "einsum#1", "w", False),
    "tensordot": (lambda m, x: torch.tensordot(x, m.w, dims=1), "tensordot", "w", True),
    "tensordot of dims": (lambda m, x: torch.tensordot(x, m.v, dims=([2], [1])), "tensordot", "v", True),
    "bilinear": (lambda m, x: F.bilinear(x, x, m.u, m.b), "bilinear", "u", True),
    "multi_dot": (lambda m, x: torch.linalg.multi_dot([x, m.w, m.v.detach().clone()]), "multi_dot", "w", False),
    "linear by keyword": (lambda m, x: F.linear(weight=m.v, input=x, bias=m.b), "linear", "v", True),
    "linear of a turned array": (lambda m, x: F.linear(x, m.w.T), "linear", "w", True),
}  # fmt: skip


def data(tokens: bool, rows: int = 3) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(rows, 5, K) if tokens else torch.randn(rows, K)


def put(model: nn.Module, x: Tensor, draws: Any = None, rows: Any = None, seed: int = 1, **placed: Any) -> Tensor:
    placed = {"noise": None, "example_input": x} | placed
    with nk.inject(model, **placed), nk.noise_state(model, seed=seed, draws=draws, rows=rows):
        return model(x).detach()


def named(kind: str) -> str:
    return f":{kind}" if "#" in kind else f":{kind}#0"


@pytest.mark.parametrize("case", ARRAYS)
def test_an_array_is_noisy_as_it_is_stored(case: str) -> None:
    call, kind, array, tokens = ARRAYS[case]
    model, x, name = Model(call), data(tokens), named(kind)
    known = {s.name: s for s in nk.sites(model, x)}
    assert known[name].calls == (name,) and known[name].kind == kind.partition("#")[0]
    clean = model(x)
    noisy = put(model, x, hardware={name: [nk.WeightNoise(add=0.5)]}, draws=[0, 3])
    held = getattr(model, array)
    for part, draw in zip(noisy.chunk(2), (0, 3), strict=True):
        drawn = nk.eps(held.shape, seed=1, site=hashed_id(name), operand="weight", draw=draw)
        kept = held.detach().clone()
        with torch.no_grad():
            held += 0.5 * drawn
            assert torch.allclose(part, model(x), rtol=1e-4, atol=1e-4)
            held.copy_(kept)
    assert not torch.allclose(noisy[: len(x)], clean, atol=1e-2)


@pytest.mark.parametrize("case", ARRAYS)
@pytest.mark.parametrize("device", [nk.MacNoise(per_product=0.1), nk.InputNoise(add=0.1), nk.Serial(step_noise=0.1)])
def test_rows_are_told_apart(case: str, device: Any) -> None:
    call, kind, _, tokens = ARRAYS[case]
    model, x, name = Model(call), data(tokens), named(kind)
    whole = put(model, x, hardware={name: [device]}, rows=[4, 5, 6], draws=[0, 2])
    alone = put(model, x[1:2], hardware={name: [device]}, rows=[5], draws=[2], example_input=x)
    assert torch.allclose(whole[4:5], alone, atol=1e-5)
    assert not torch.allclose(whole[:3], whole[3:], atol=1e-3)


@pytest.mark.parametrize("case", ARRAYS)
def test_arithmetic_reaches_a_product(case: str) -> None:
    call, kind, _, tokens = ARRAYS[case]
    model, x = Model(call), data(tokens)
    assert torch.allclose(put(model, x, hardware={named(kind): [nk.Serial()]}), model(x), rtol=1e-4, atol=1e-5)
    bounded = put(model, x, hardware={named(kind): [nk.Serial(low=-0.01, high=0.01)]})
    assert not torch.allclose(bounded, model(x), atol=1e-2)


@pytest.mark.parametrize("case", ARRAYS)
def test_noise_enters_after_a_product(case: str) -> None:
    call, kind, _, tokens = ARRAYS[case]
    if "#" in kind or case in ("array @", "bmm", "baddbmm", "einsum", "multi_dot", "addmm of folded rows"):
        pytest.skip("its value goes on")
    model, x = Model(call), data(tokens)
    noisy = put(model, x, noise=NOISE, where=named(kind), seed=2**40)
    assert torch.allclose(noisy, oracle_of(model(x), named(kind)), atol=1e-6)


def oracle_of(value: Tensor, name: str) -> Tensor:
    return nk.perturb(value.detach(), NOISE, seed=2**40, site=hashed_id(name))


# --------------------------------------------------------------------------------------------- values times values


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(K, 8), nn.Linear(K, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k = (f(x).view(len(x), -1, 2, 4).transpose(1, 2) for f in (self.q, self.k))
        return (q @ k.mT).softmax(-1) @ q


def test_a_product_of_values_has_no_array() -> None:
    torch.manual_seed(0)
    model, x = Attention(), data(True)
    clean = model(x)
    assert [(s.name, s.calls) for s in nk.sites(model, x) if s.kind == "matmul"] == [
        (":matmul#0", ()), (":matmul#1", ())
    ]  # fmt: skip
    for device in (nk.WeightNoise(add=1.0), nk.hardware.PCM(), nk.hardware.ColumnGain(1.0), nk.MacNoise(read=1.0)):
        assert torch.allclose(put(model, x, hardware={":matmul": [device]}), clean, atol=1e-6)
    assert torch.allclose(put(model, x, hardware={":matmul": [nk.Serial()]}), clean, atol=1e-5)


def test_converters_and_input_noise_at_values() -> None:
    a, b = data(True), data(True).flip(1)

    class Product(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x @ y.mT

    model, site = Product(), hashed_id(":matmul#0")
    dac, adc = nk.hardware.DAC(4, "row"), nk.hardware.ADC(8, 9.0)

    def run(devices: list[Any]) -> Tensor:
        with nk.inject(model, None, hardware=devices), nk.noise_state(model, seed=1):
            return model(a, b)

    one = torch.eye(K)
    converted = [nk.linear(t, one, hardware=[dac]) for t in (a, b)]
    exact = converted[0] @ converted[1].mT
    expected = nk.linear(exact, torch.eye(5), hardware=[adc])
    assert torch.allclose(run([dac, adc]), expected, atol=9.0 / 127 + 1e-4)
    both = torch.cat([a.flatten(1), b.flatten(1)], 1)
    both = both + 0.1 * nk.eps(both.shape, seed=1, site=site, operand="input")
    x, y = (t.view(3, 5, K) for t in both.chunk(2, 1))
    assert torch.allclose(run([nk.InputNoise(add=0.1)]), x @ y.mT, atol=1e-5)


@pytest.mark.parametrize("explicit", [False, True])
def test_noise_of_the_products_of_values(explicit: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4)

    class Gram(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ x.mT

    device = nk.MacNoise(per_product=0.3, per_step=0.2, explicit=explicit)
    noise = put(Gram(), x, hardware=[device], draws=range(4000)).unflatten(0, (4000, 2)) - x @ x.mT
    variance = 0.09 * x.square() @ x.square().mT + 0.04 * 4
    assert torch.allclose(noise.var(0), variance, rtol=6 * math.sqrt(2 / 4000))
    assert float(noise.mean(0).abs().max()) < 6 * float(variance.max().sqrt()) / math.sqrt(4000)


# ------------------------------------------------------------------------------------------- rows in other places


class GPT(nn.Module):
    """As GPT-2: layers of (inputs, outputs) on folded tokens, a tied head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.places = nn.Embedding(11, K), nn.Embedding(7, K)
        self.w, self.b = nn.Parameter(torch.randn(K, 3 * K)), nn.Parameter(torch.zeros(3 * K))
        self.head = nn.Linear(K, 11, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, t: Tensor) -> Tensor:
        x = self.tokens(t) + self.places(torch.arange(t.shape[1]))
        q, k, v = torch.addmm(self.b, x.view(-1, K), self.w).view(*x.shape[:2], -1).chunk(3, -1)
        return self.head(x + (q @ k.mT).softmax(-1) @ v)[:, -1]


def test_studies_of_folded_rows_agree_with_the_loop() -> None:
    model, t, labels = GPT().eval(), torch.randint(11, (6, 5)), torch.randint(11, (6,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = nk.walk(model, (t, labels), noise=nk.Noise(add=1.0), levels=[0.3], draws=3, seed=1)
    for record in study.records:
        with (
            nk.inject(model, nk.Noise(add=0.3), record.site, example_input=t),
            nk.noise_state(model, seed=1, draws=[record.draw]),
        ):
            assert int((model(t).argmax(1) == labels).sum()) == record.correct
    assert {r.site for r in study.records} >= {":addmm#0", ":matmul#0", ":matmul#1", "head:linear#0"}


class Windows(nn.Module):
    """Rows parted into windows, with a table of positions that a layer makes, and a standardised weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.mlp = nn.Parameter(torch.randn(4, 2)), nn.Linear(2, 1)
        self.qk, self.w = nn.Linear(K, K), nn.Parameter(torch.randn(3, K))

    def forward(self, x: Tensor) -> Tensor:
        windows = x.unflatten(1, (2, 2)).flatten(0, 1)  # (rows x 2, 2, K)
        h = self.qk(windows)
        bias = F.relu(self.mlp(self.table)).view(2, 2)
        h = ((h @ h.mT) + bias).softmax(-1) @ h
        weight = F.layer_norm(self.w, (K,))
        return F.linear(h.unflatten(0, (-1, 2)).flatten(1, 2).mean(1), weight)


def test_windows_tables_and_standardised_weights() -> None:
    model, x = Windows().eval(), torch.randn(4, 4, K)
    places = {s.name: (s.row_dim, s.outer, s.alone) for s in nk.sites(model, x)}
    assert places == {
        "input": (0, 1, False), "qk:linear#0": (0, 1, False), "mlp:linear#0": (None, 1, True),
        ":relu#0": (None, 1, True), ":matmul#0": (0, 1, False), ":matmul#1": (0, 1, False),
        ":layer_norm#0": (None, 1, True), ":linear#0": (0, 1, False),
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*rows cannot.*")
        for placed in (dict(noise=NOISE), dict(hardware=[nk.WeightNoise(add=0.2), nk.MacNoise(per_product=0.1)])):
            both = put(model, x, draws=[5, 2], **placed)
            assert torch.allclose(both[4:], put(model, x, draws=[2], **placed), atol=1e-5)
            alone = put(model, x[2:3], draws=[2], rows=[2], **(placed | {"example_input": x}))
            assert torch.allclose(both[6:7], alone, atol=1e-5)
    noisy = put(model, x, noise=NOISE, where=":layer_norm", seed=2**40)
    weight = F.layer_norm(model.w, (K,)).detach()
    held = nk.perturb(weight[None], NOISE, seed=2**40, site=hashed_id(":layer_norm#0"))[0]
    assert torch.allclose(noisy, model(x) @ torch.linalg.pinv(weight).T @ held.T, atol=1e-3) or noisy.shape == (4, 3)


class Experts(nn.Module):
    """Rows that are sent to experts: each meets as many as it gets."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gate = nn.Linear(K, 3)
        self.experts = nn.ModuleList(nn.Linear(K, K) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        chosen = self.gate(x).argmax(-1)
        out = torch.zeros_like(x)
        for number in chosen.unique():
            places = torch.where(chosen == number)[0]
            out.index_add_(0, places, F.silu(self.experts[int(number)](x[places])))
        return out


def test_experts_are_left_out_by_name() -> None:
    model, x = Experts().eval(), torch.randn(16, K)
    with pytest.warns(UserWarning, match=r"'experts.0:linear#0'") as told:
        noisy = put(model, x, noise=nk.Noise(add=0.01), draws=[0, 1])
    assert len(told) == 1 and noisy.shape == (32, K)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chips = put(model, x, hardware=[nk.WeightNoise(add=0.1)], draws=[0, 1])
    assert torch.equal(chips[16:], put(model, x, hardware=[nk.WeightNoise(add=0.1)], draws=[1]))
    assert torch.allclose(put(model, x, arithmetic=nk.Serial()), model(x), atol=1e-5)


# ---------------------------------------------------------------------------------------------------------- the bias


@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (nn.Linear(K, N), (3, 5, K)), (nn.Conv1d(4, 6, 3, groups=2, padding=1), (3, 4, 7)),
        (nn.Conv2d(2, 3, 2, stride=2), (3, 2, 6, 6)), (nn.ConvTranspose1d(4, 6, 3, stride=2, groups=2), (3, 4, 5)),
    ],
)  # fmt: skip
def test_a_bias_is_a_column(layer: Any, size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(layer), torch.randn(size)
    clean = model(x)
    for devices in ([nk.Serial()], [nk.hardware.DAC(24, 100.0)], [nk.WeightNoise(add=1e-6)]):
        assert torch.allclose(put(model, x, hardware=devices, bias="column"), clean, atol=1e-3)
    noise = [nk.WeightNoise(add=0.1)]
    digital, column = (put(model, x, hardware=noise, bias=b, draws=[0, 2]) for b in ("digital", "column"))
    drawn = column - digital
    if not isinstance(layer, nn.ConvTranspose1d):  # the weights have the noise they had: what differs is the column
        features = -1 if isinstance(layer, nn.Linear) else 1
        flat = drawn.movedim(features, -1).reshape(2, -1, drawn.shape[features])
        assert torch.allclose(flat, flat[:, :1].expand_as(flat), atol=1e-5)
        assert float(flat[:, 0].std()) > 0.01
    layer.bias.data.fill_(1000.0)
    clipped = put(model, x, hardware=[nk.hardware.ADC(8, 10.0)], bias="column")
    assert float(clipped.max()) <= 10.0 < float(put(model, x, hardware=[nk.hardware.ADC(8, 10.0)]).min())


def test_columns_of_stored_and_recurrent_arrays() -> None:
    model, x = GPT().eval(), torch.randint(11, (3, 5))
    with torch.no_grad():
        model.b.normal_()
    assert torch.allclose(put(model, x, arithmetic=nk.Serial(), bias="column"), model(x), atol=1e-4)
    noise = {":addmm#0": [nk.WeightNoise(add=0.1)]}
    got = put(model, x, hardware=noise, bias="column")
    drawn = nk.eps((K + 1, 3 * K), seed=1, site=hashed_id(":addmm#0"), operand="weight")
    with torch.no_grad():
        model.w += 0.1 * drawn[:-1]
        model.b += 0.1 * drawn[-1]
    assert torch.allclose(got, model(x), atol=1e-4)
    rnn, steps = nn.GRU(4, 5, batch_first=True), torch.randn(3, 6, 4)

    class Out(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = rnn

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x)[0]

    noise_of = [nk.WeightNoise(add=0.2)]
    fast, slow = (
        put(Out(), steps, hardware=d, bias="column") for d in (noise_of, [*noise_of, nk.hardware.ADC(24, 1e2)])
    )
    assert torch.allclose(fast, slow, atol=1e-3)
    assert not torch.allclose(fast, put(Out(), steps, hardware=noise_of), atol=1e-2)


def test_one_warning_tells_of_all_that_was_left_out() -> None:
    class ByRow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(3, 6))

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([self.w @ row for row in x])

    model, x = ByRow(), torch.randn(5, 6)
    with nk.inject(model, None, hardware=[nk.WeightNoise(add=1.0)]):
        with pytest.warns(UserWarning, match="nothing enters") as told:
            model(x)
        names = ", ".join(f"':matmul#{k}'" for k in range(5))
        said = f"inject: rows cannot be told apart there, so nothing enters at {names}; with example_input=..."
        assert [str(w.message).startswith(said) for w in told] == [True] and told[0].filename == __file__
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model(x)  # once

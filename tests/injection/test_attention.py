"""Attention's own two products, of torch's kernel and of its layer: on hardware like any product of two values."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right

import noisykernels as nk
from noisykernels.noise.contract import hashed_id

B, H, L, S, E = 3, 4, 5, 6, 8
HIDDEN = torch.tensor([[True] * S, [False] * S, *([True] * n + [False] * (S - n) for n in (1, 2, 5))])
ADDED = torch.zeros(L, S).masked_fill(~HIDDEN, -math.inf) + torch.arange(S) * 0.1
DEVICES = {
    "inputs": [nk.InputNoise(add=0.1)],
    "products": [nk.MacNoise(per_product=0.1)],
    "explicit products": [nk.MacNoise(per_product=0.1, explicit=True)],
    "arithmetic": [nk.Serial(step_noise=0.1)],
    "all": [nk.InputNoise(add=0.1), nk.WeightNoise(add=0.3), nk.Serial(low=-1.0, high=1.0, step_noise=0.1)],
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "boolean mask": {"attn_mask": HIDDEN},
    "mask of each row": {"attn_mask": HIDDEN.expand(B, 1, L, S)},
    "added mask": {"attn_mask": ADDED},
    "scaled": {"scale": 0.3},
    "fewer heads of keys": {"enable_gqa": True},
}
PARTS = ("scores", "weighted_sum")


class Sdpa(nn.Module):
    """torch's kernel on (rows, heads, length, features); `call` may be one written out."""

    def __init__(self, call: Callable[..., Tensor] = F.scaled_dot_product_attention, **options: Any) -> None:
        super().__init__()
        self.call, self.options = call, options

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.call(q, k, v, **self.options)


def written_out(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Any = None, is_causal: Any = False, scale: Any = None,
    enable_gqa: Any = False, first: Any = torch.matmul, second: Any = torch.matmul,
) -> Tensor:  # fmt: skip
    """As the documentation of torch's kernel has it, for two products."""
    if enable_gqa:
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    scores = first(q, k.transpose(2, 3)) * (1 / math.sqrt(E) if scale is None else scale)
    if is_causal:
        attn_mask = torch.tensor([[s <= t for s in range(S)] for t in range(L)])
    if attn_mask is not None:
        attn_mask = attn_mask if attn_mask.is_floating_point() else torch.where(attn_mask, 0.0, -math.inf)
        scores = scores + attn_mask
    return second(torch.nan_to_num(scores.softmax(-1)), v)


def data(options: Any = None, rows: int = B) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    heads = 2 if options == "fewer heads of keys" else H
    return torch.randn(rows, H, L, E), torch.randn(rows, heads, S, E), torch.randn(rows, heads, S, E)


def put(model: nn.Module, given: Any, draws: Any = None, rows: Any = None, seed: int = 1, **placed: Any) -> Tensor:
    placed = {"noise": None, "example_input": given} | placed
    with nk.inject(model, **placed), nk.noise_state(model, seed=seed, draws=draws, rows=rows):
        return model(*given)


class Products(nn.Module):
    """One product of two values, called so that its site's number is that of an attention's product."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a @ b


def product_like(part: str, devices: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[Tensor, Tensor], Tensor]:
    """A product of two values on hardware, by the key of an attention's product."""

    def made(a: Tensor, b: Tensor) -> Tensor:
        with monkeypatch.context() as patched:
            patched.setattr("noisykernels.injection.drawing.hashed_id", lambda n: hashed_id(n.replace(":matmul", part)))
            return put(Products(), (a, b), example_input=None, hardware=devices)

    return made


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("devices", DEVICES)
def test_attention_is_its_two_products_on_hardware(options: str, devices: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given, told = data(options), OPTIONS[options]
    example = None if options == "mask of each row" else given
    noisy = put(Sdpa(**told), given, hardware=DEVICES[devices], example_input=example)
    parts = {part: product_like(f":{part}", DEVICES[devices], monkeypatch) for part in PARTS}
    expected = written_out(*given, **told, first=parts["scores"], second=parts["weighted_sum"])
    assert torch.allclose(noisy, expected, atol=1e-5)
    assert not torch.allclose(noisy, Sdpa(**told)(*given), atol=1e-2)


@pytest.mark.parametrize("options", OPTIONS)
def test_devices_that_do_nothing_leave_attention_as_it_is(options: str) -> None:
    given, model = [t.requires_grad_() for t in data(options)], Sdpa(**OPTIONS[options])
    clean = model(*given)
    same = put(model, given, hardware=[nk.InputNoise(add=0.0), nk.Serial()], example_input=None)
    assert torch.allclose(same, clean, atol=1e-5)
    expected = torch.autograd.grad(clean.square().sum(), given)
    for a, b in zip(torch.autograd.grad(same.square().sum(), given), expected, strict=True):
        assert torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("device", [nk.InputNoise(add=0.1), nk.MacNoise(per_product=0.1), nk.Serial(step_noise=0.1)])
def test_rows_and_draws_are_told_apart(device: Any) -> None:
    given = data()
    whole = put(Sdpa(), given, hardware=[device], rows=[4, 5, 6], draws=[0, 2])
    alone = put(Sdpa(), [t[1:2] for t in given], hardware=[device], rows=[5], draws=[2], example_input=given)
    assert torch.allclose(whole[4:5], alone, atol=1e-5)
    assert not torch.allclose(whole[:3], whole[3:], atol=1e-3)


class Folded(nn.Module):
    """Heads folded into the rows, as older code has them."""

    def forward(self, x: Tensor) -> Tensor:
        folded = x.flatten(0, 1)
        return F.scaled_dot_product_attention(folded, folded, folded).unflatten(0, (-1, H))


def test_rows_that_heads_are_folded_into() -> None:
    x, devices = data()[0], [nk.InputNoise(add=0.1)]
    noisy = put(Folded(), (x,), hardware=devices, rows=[4, 5, 6])
    assert torch.allclose(noisy, put(Sdpa(), (x, x, x), hardware=devices, rows=[4, 5, 6]), atol=1e-5)
    with pytest.warns(UserWarning, match=r"nothing enters at ':.*#0'"):
        put(Folded(), (x,), hardware=devices, example_input=None)


def test_devices_of_arrays_leave_the_kernel_of_torch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    given = data()
    clean = Sdpa()(*given)
    monkeypatch.setattr("noisykernels.injection.attending.scaled_dot_product_attention", None)
    assert torch.equal(put(Sdpa(), given, hardware=[nk.WeightNoise(add=0.5)]), clean)


class Latents(nn.Module):
    """Queries, keys or values that are parameters: the same for all rows."""

    def __init__(self, which: str) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.which, self.held = which, nn.Parameter(torch.randn(S, E))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        given = {"q": q, "k": k, "v": v} | {self.which: self.held}
        return F.scaled_dot_product_attention(*given.values())


@pytest.mark.parametrize("which", ["k", "v"])
@pytest.mark.parametrize("traced", [True, False])
def test_a_parameter_that_attention_multiplies_is_an_array(which: str, traced: bool) -> None:
    given, model = data(), Latents(which)
    noisy = put(model, given, hardware=[nk.WeightNoise(add=0.5)], example_input=given if traced else None)
    part = {"k": "scores", "v": "weighted_sum"}[which]
    with torch.no_grad():
        model.held += 0.5 * nk.eps((S, E), seed=1, site=hashed_id(f":{part}#0"), operand="weight")
    assert torch.allclose(noisy, model(*given), atol=1e-5)


def test_each_product_may_have_devices_of_its_own() -> None:
    given, devices = data(), [nk.InputNoise(add=0.1)]
    clean, both = Sdpa()(*given), put(Sdpa(), given, hardware=devices)
    one, other = (put(Sdpa(), given, hardware={f":{part}#0": devices}) for part in PARTS)
    assert len({float(y.sum()) for y in (clean, both, one, other)}) == 4
    assert torch.equal(both, put(Sdpa(), given, hardware={":attention#0": devices, "*": [nk.Serial(low=0.0)]}))
    assert torch.equal(one, put(Sdpa(), given, hardware=lambda name, _: devices if "scores" in name else None))
    assert torch.equal(both, put(Sdpa(), given, hardware=lambda name, _: devices if "attention" in name else None))
    with pytest.raises(ValueError, match="score#0' matches no site"):
        put(Sdpa(), given, hardware={":score#0": devices})


class Layer(nn.Module):
    """One torch layer, self-attention of (rows, length, features)."""

    def __init__(self, **told: Any) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.attention, self.told = nn.MultiheadAttention(E, 2, batch_first=True), told

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, **self.told)[0]


def written_out_layer(layer: nn.MultiheadAttention, x: Tensor, first: Any, second: Any, mask: Tensor) -> Tensor:
    q, k, v = (
        t.unflatten(2, (2, E // 2)).transpose(1, 2)
        for t in F.linear(x, layer.in_proj_weight, layer.in_proj_bias).chunk(3, 2)
    )
    scores = first(q, k.transpose(2, 3)) / math.sqrt(E // 2) + mask
    return layer.out_proj(second(torch.nan_to_num(scores.softmax(-1)), v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("devices", DEVICES)
@pytest.mark.parametrize("weights", [True, False])
def test_the_layer_of_torch_is_its_two_products_on_hardware(
    devices: str, weights: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(B, L, E, generator=torch.Generator().manual_seed(4))
    hidden = torch.zeros(L, L, dtype=torch.bool).fill_diagonal_(True)
    hidden[2] = not weights  # torch's layer gives NaN for such a query if it is to give weights, too
    model = Layer(attn_mask=hidden, need_weights=weights)
    noisy = put(model, (x,), hardware={"attention:attention#0": DEVICES[devices]})
    mask = torch.zeros(L, L).masked_fill(hidden, -math.inf)
    parts = {part: product_like(f"attention:{part}", DEVICES[devices], monkeypatch) for part in PARTS}
    clean = written_out_layer(model.attention, x, torch.matmul, torch.matmul, mask)
    assert torch.allclose(clean, model(x), atol=1e-5)
    assert torch.allclose(noisy, written_out_layer(model.attention, x, *parts.values(), mask), atol=1e-5)
    assert not torch.allclose(noisy, clean, atol=1e-3)


@pytest.mark.parametrize("model", [Sdpa(), Layer()])
def test_coverage_says_what_reaches_attention(model: nn.Module) -> None:
    given = data() if isinstance(model, Sdpa) else (torch.randn(B, L, E),)
    for device, reached in ((nk.Serial(), "arithmetic"), (nk.InputNoise(add=0.1), "hardware")):
        with nk.inject(model, None, hardware=[device], example_input=given):
            found = nk.coverage(model, given)
        assert found.share(reached) == 1.0
    with nk.inject(model, None, hardware=[nk.WeightNoise(add=0.1)], example_input=given):
        row = next(row for row in nk.coverage(model, given) if ":attention" in row.name)
    assert not row.reached and "no array" in row.why


def test_dropout_is_torchs() -> None:
    given, model = data(), Sdpa(dropout_p=0.5)
    torch.manual_seed(5)
    made = put(model, given, hardware=[nk.Serial()], example_input=None)
    torch.manual_seed(5)
    weights = (given[0] @ given[1].mT / math.sqrt(E)).softmax(-1)
    assert torch.allclose(made, F.dropout(weights, 0.5) @ given[2], atol=1e-5)


def test_a_mask_of_a_class_of_its_own_is_left_out_by_name() -> None:
    given, mask = data(), causal_lower_right(L, S)
    model, devices = Sdpa(attn_mask=mask), [nk.InputNoise(add=0.1)]
    with pytest.warns(UserWarning, match="nothing enters at ':attention#0'"):
        assert torch.allclose(put(model, given, hardware=devices), model(*given), atol=1e-6)


def test_attention_on_hardware_compiles_whole() -> None:
    given, model = data(), Sdpa(is_causal=True)
    eager = put(model, given, hardware=[nk.InputNoise(add=0.1)])
    with nk.inject(model, None, hardware=[nk.InputNoise(add=0.1)], example_input=given):
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        with nk.noise_state(model, seed=1):
            assert torch.allclose(compiled(*given), eager, atol=1e-5)


def test_no_warning_where_all_enters() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        put(Layer(), (torch.randn(B, L, E),), hardware=[nk.InputNoise(add=0.1)])


# ----------------------------------------------------------------------------------------------- details as sites

DETAILS = ["scores", "softmax", "weighted_sum", "attention"]


def test_details_are_no_sites_unless_asked_for() -> None:
    given = data()
    assert [s.name for s in nk.sites(Sdpa(), given)][3:] == [":attention#0"]
    found = nk.sites(Sdpa(), given, detail="attention")[3:]
    assert [s.name for s in found] == [f":{part}#0" for part in DETAILS]
    assert [s.shape for s in found] == [(B, H, L, S), (B, H, L, S), (B, H, L, E), (B, H, L, E)]
    assert all(s.row_dim == 0 and s.id == hashed_id(s.name) for s in found)
    of_layer = nk.sites(Layer(), torch.randn(B, L, E), detail="attention")
    names = [f"linear#{k}" for k in range(3)] + [f"{part}#0" for part in DETAILS] + ["linear#3"]
    assert [s.name for s in of_layer] == ["input", *(f"attention:{name}" for name in names)]
    assert [s.row_dim for s in of_layer] == [0, 1, 1, 1, 0, 0, 0, 1, 1]
    with pytest.raises(ValueError, match="':scores#0' matches no site"):
        nk.inject(Sdpa(), nk.Noise(add=0.1), ":scores#0", example_input=given)


def noisy_at(name: str, value: Tensor, at: str) -> Tensor:
    noise = nk.Noise(add=0.3)
    return nk.perturb(value, noise, seed=1, site=hashed_id(name)) if name == at else value


@pytest.mark.parametrize("part", DETAILS)
@pytest.mark.parametrize("options", ["plain", "causal", "boolean mask", "added mask"])
@pytest.mark.parametrize("traced", [True, False])
def test_noise_enters_at_a_detail(part: str, options: str, traced: bool) -> None:
    given, at = data(), f":{part}#0"
    model = Sdpa(**OPTIONS[options])
    with (
        nk.inject(model, nk.Noise(add=0.3), at, example_input=given if traced else None, detail="attention"),
        nk.noise_state(model, seed=1),
    ):
        noisy = model(*given)
    expected = written_out(
        *given,
        **OPTIONS[options],
        first=lambda a, b: noisy_at(":scores#0", a @ b, at),
        second=lambda a, b: noisy_at(
            ":attention#0", noisy_at(":weighted_sum#0", noisy_at(":softmax#0", a, at) @ b, at), at
        ),
    )
    assert torch.allclose(noisy, expected, atol=1e-5)


def test_hardware_is_the_same_with_details() -> None:
    given, devices = data(), [nk.InputNoise(add=0.1), nk.Serial()]
    detailed = put(Sdpa(), given, hardware=devices, detail="attention")
    assert torch.allclose(detailed, put(Sdpa(), given, hardware=devices), atol=1e-6)
    with nk.inject(Sdpa(), None, hardware={":scores#0": devices}, example_input=given, detail="attention") as model:
        rows = {row.name: row for row in nk.coverage(model, given)}
    assert rows[":scores#0"].arithmetic and rows[":scores#0"].macs == B * H * L * S * E
    assert not rows[":weighted_sum#0"].reached and rows[":weighted_sum#0"].macs == B * H * L * S * E


class Both(nn.Module):
    """torch's layer, then its kernel."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.attention, self.last = nn.MultiheadAttention(E, 2, batch_first=True), nn.Linear(L * E, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention(x, x, x, need_weights=False)[0]
        return self.last(F.scaled_dot_product_attention(x, x, x, is_causal=True).flatten(1))


def test_details_are_walked_by_both_engines() -> None:
    model, x = Both().eval(), torch.randn(64, L, E, generator=torch.Generator().manual_seed(6))
    told = {"noise": nk.Noise(add=1.0), "levels": [0.1, 1.0], "draws": 2, "seed": 1, "detail": "attention"}
    shared = nk.walk(model, (x, model(x).argmax(1)), **told)
    plain = nk.walk(model, (x, model(x).argmax(1)), **told, compute=nk.Compute(engine="plain"))
    assert "why" not in shared.meta.plan and shared.meta.plan["detail"] == "attention"
    assert shared.records == plain.records
    assert len({r.site for r in shared.records}) == 1 + 3 + 4 + 1 + 4 + 1
    with nk.inject(model, nk.Noise(add=1.0), "attention:scores", example_input=x[:2], detail="attention"):
        with nk.noise_state(model, seed=1, draws=range(2)):
            scores = model(x).view(2, 64, -1)
    correct = int((scores.argmax(-1) == model(x).argmax(1)).sum())
    mine = [r for r in shared.records if r.site == "attention:scores#0" and r.level == 1.0]
    assert sum(r.correct for r in mine) == correct

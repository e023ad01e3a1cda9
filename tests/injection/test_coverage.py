"""The account of what noise, hardware and arithmetic reach: parameter by parameter, operation by operation."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from injecting import NOISE, SEED
from operators import assert_same_bits
from torch import nn
from torch.nn.utils import parametrizations

import noisykernels as nk

CHIP: Any = [nk.WeightNoise(add=0.1)]
X = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(1))


class Mixed(nn.Module):
    """Weights that are read as they are, made of others, shared, added, multiplied by elements, and not at all."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.place, self.gate = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(4, 6))
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.made = parametrizations.weight_norm(nn.Linear(6, 6))
        self.low, self.up = nn.Parameter(torch.randn(6, 2)), nn.Parameter(torch.randn(2, 6))
        self.base, self.norm = nn.Linear(6, 6), nn.LayerNorm(6)
        self.conv = nn.Conv1d(4, 5, 3, padding=1, groups=1)
        self.own = nk.NoisyLinear(6, 3, noise=nk.Noise(add=0.1), hardware=CHIP)
        self.spare = nn.Linear(6, 2)

    def forward(self, x):
        x = (x + self.place) * self.gate
        x = self.norm(self.made(self.attention(x, x, x)[0]))
        x = F.linear(x, self.base.weight + self.low @ self.up, self.base.bias)
        return self.own(F.softmax(self.conv(x), -1))


def by_name(model: nn.Module, example: Any = X) -> dict[str, Any]:
    return {row.name: row for row in nk.coverage(model, example)}


def test_what_noise_and_hardware_reach() -> None:
    model = Mixed()
    with nk.inject(model, NOISE, ["norm", "conv"], hardware=CHIP, arithmetic=None, example_input=X):
        found = by_name(model)
    operations = [n for n, row in found.items() if row.part == "operation"]
    assert {n for n in operations if found[n].noise} == {"norm:layer_norm#0", "conv:conv1d#0", "own:linear#0"}
    in_arrays = {n for n, row in found.items() if row.part == "parameter" and row.hardware}
    assert in_arrays == {
        "attention.in_proj_weight", "attention.out_proj.weight", "made.parametrizations.weight.original0",
        "made.parametrizations.weight.original1", "low", "up", "base.weight", "conv.weight", "own.weight",
    }  # fmt: skip
    assert found[":mul#0"].why == "mul makes no site" == found["gate"].why.removeprefix(":mul#0: ")
    assert found["spare.weight"].why == "nothing computes with it: it is not used, or moved into other values"
    assert found["base.bias"].why.endswith("it is added to the products, not multiplied")
    assert all(bool(row.why) is not row.reached for row in found.values())
    assert not any(row.arithmetic for row in found.values())


def test_multiply_adds() -> None:
    """By hand, for three rows."""
    with nk.inject(Mixed(), NOISE, example_input=X) as model:
        found = nk.coverage(model, X)
    macs = {row.name: row.macs for row in found}
    assert macs["attention:linear#0"] == macs["attention:linear#3"] == macs["made:linear#0"] == 12 * 36
    assert macs["conv:conv1d#0"] == 3 * 5 * 6 * 4 * 3 == macs["conv.weight"]
    assert macs["attention.in_proj_weight"] == 3 * 12 * 36 and macs["own:linear#0"] == 15 * 18
    assert macs["norm:layer_norm#0"] == macs["place"] == 0
    assert found.macs == sum(row.macs for row in found.operations)
    assert found.share(["conv:conv1d#0"]) == macs["conv:conv1d#0"] / found.macs


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (nn.Conv2d(4, 6, 3, groups=2, padding=1), (2, 4, 5, 5), 2 * 6 * 25 * 2 * 9),
        (nn.ConvTranspose2d(4, 6, 3), (2, 4, 5, 5), 2 * 4 * 25 * 6 * 9),
        (nn.LSTM(5, 7, batch_first=True), (2, 3, 5), 6 * 28 * 12),
        (nn.GRU(5, 7, bidirectional=True, batch_first=True), (2, 3, 5), 2 * 6 * 21 * 12),
        (nn.Bilinear(3, 3, 4), (2, 3), 2 * 4 * 9),
        (nn.ReLU(), (2, 3), 0),
    ],
    ids=lambda x: type(x).__name__,
)
def test_multiply_adds_of_layers(layer: nn.Module, shape: tuple[int, ...], expected: int) -> None:
    x = torch.ones(shape)
    given = (x, x) if isinstance(layer, nn.Bilinear) else x
    assert nk.coverage(layer, given).macs == expected


def test_arithmetic_and_switches_and_dicts() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    x = X[:, 0]
    with nk.inject(model, NOISE, "1", hardware={"2": CHIP}, in_eval=False):
        found = by_name(model, x)
    assert found["1:relu#0"].noise and found["2.weight"].hardware and not found["0.weight"].reached
    assert found["0:linear#0"].why == "no noise was placed there; no hardware was placed there"
    with nk.inject(model, None, arithmetic=nk.Serial("fp16")):
        shares = [nk.coverage(model, x).share(what) for what in ("noise", "hardware", "arithmetic")]
    assert shares == [0.0, 0.0, 1.0]


def test_a_clean_model_and_noisy_layers() -> None:
    found = by_name(nn.Linear(6, 2), X[:, 0])
    assert [row.reached for row in found.values()] == [False] * 4
    assert found["weight"].why == ":linear#0: nothing is placed there"
    assert by_name(Mixed())["own.weight"].hardware


def test_it_leaves_the_model_as_it_was() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(4), nn.Dropout()).train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    x = X.clone()
    with nk.inject(model, NOISE, hardware=CHIP), nk.noise_state(model, seed=SEED):
        nk.coverage(model, x)
        assert model[1].training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(x, X) and type(model) is nn.Sequential
    assert all(p.grad is None for p in model.parameters())


def test_table_and_frame() -> None:
    pandas = pytest.importorskip("pandas")
    found = nk.coverage(nn.Linear(6, 2), X[:, 0])
    text = repr(found)
    assert text.splitlines()[0] == "36 multiply-adds, of which reached: noise 0.0%, hardware 0.0%, arithmetic 0.0%"
    assert len(text.splitlines()) == 3 + len(found)
    frame = found.to_pandas()
    assert isinstance(frame, pandas.DataFrame) and list(frame.name) == ["weight", "bias", "input", ":linear#0"]
    assert frame.macs.sum() == 2 * found.macs


LEFT = ["place", "gate", "spare.weight"]
ASKED: list[tuple[Any, list[str]]] = [
    (CHIP, LEFT), ({"*": CHIP}, LEFT), ({nn.Module: CHIP}, LEFT), (lambda name, module: CHIP, LEFT),
    (lambda name, module: CHIP if name.startswith("made") else None, LEFT),
    ({"made": CHIP}, []), ({"attention:linear": CHIP}, []),
]  # fmt: skip


@pytest.mark.parametrize("traced", [True, False])
@pytest.mark.parametrize(("hardware", "left"), ASKED)
def test_parameters_that_hardware_did_not_meet_are_told_of_once(hardware: Any, left: list[str], traced: bool) -> None:
    """Those of two or more dimensions for which it was asked; a weight that is made of others has met it."""
    model = Mixed()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        options = {"example_input": X} if traced else {}
        with nk.inject(model, None, hardware=hardware, **options), nk.noise_state(model, seed=SEED):
            model(X), model(X)
    told = [str(w.message) for w in caught if "hardware does not reach" in str(w.message)]
    assert told == [
        f"inject: hardware does not reach {', '.join(left)}: of no contraction the weight; nk.coverage(model, "
        "example_input) says why"
    ][: bool(left)]  # fmt: skip


def test_following_parameters_changes_no_bit() -> None:
    """The first forward follows them, the second does not; with gradients, and under vmap."""
    model = Mixed()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with nk.inject(model, NOISE, hardware=CHIP), nk.noise_state(model, seed=SEED):
            first, second = model(X), model(X)
            assert_same_bits(first.detach(), second.detach())
            first.sum().backward()
            grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
            model.zero_grad()
            second.sum().backward()
            for a, b in zip(grads, (p.grad for p in model.parameters() if p.grad is not None), strict=True):
                assert_same_bits(a, b)


class Products(nn.Module):
    """A product with an array, with what is computed from one, and of values alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.plain, self.scaled, self.gain = (nn.Parameter(torch.randn(s)) for s in ((6, 6), (6, 6), (6,)))

    def forward(self, x):
        x = x @ self.plain @ (self.scaled * self.gain)
        return x @ x.transpose(-1, -2)


@pytest.mark.parametrize("traced", [True, False])
def test_hardware_in_products_is_told_as_it_enters(traced: bool) -> None:
    """To the bit: what the account says is not reached is as without hardware."""
    model = Products()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with nk.inject(model, None, hardware=CHIP, **({"example_input": X} if traced else {})):
            with nk.noise_state(model, seed=SEED):
                noisy = model(X)
            found = by_name(model)
    reached = {name for name, row in found.items() if row.hardware}
    made = {"scaled", "gain", ":matmul#1"} if traced else set()  # a trace sees that it is the same for all rows
    assert reached == {"plain", ":matmul#0"} | made
    assert [w for w in caught if "does not reach scaled" in str(w.message)] == caught and bool(caught) is not traced
    if not traced:
        assert found["scaled"].why.endswith(":matmul#1: what is multiplied there is computed from it, and so no array")
    model.plain.data *= 0
    with torch.no_grad():
        assert not torch.equal(noisy, model(X))

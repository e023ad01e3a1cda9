"""The weights that a chip holds, as a state dict: those that the injected model computes with, and the contract's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import noisykernels as nk
from noisykernels.hardware import ADC, DAC, PCM, ColumnGain, DifferentialPair, Draw, InputNoise, MacNoise, WeightNoise
from noisykernels.injection import programmed
from noisykernels.noise.contract import hashed_id

SEED, DRAW = 5, 3
NORMS = (nn.BatchNorm2d, nn.LayerNorm)


class Turned(nn.Module):
    """A weight that is stored (inputs, features), as GPT-2's are."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


class Sliced(nn.Module):
    """One memory with two arrays, as of packed projections."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Parameter(torch.randn(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.both[:2]).sum(1, keepdim=True) + F.linear(x, self.both[2:])


class Last(nn.Module):
    """A recurrent layer's output alone."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)[0]
        return out


X = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
IMAGE = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(2))
SERIES = torch.randn(2, 7, 4, generator=torch.Generator().manual_seed(3))
TOKENS = torch.arange(6).view(2, 3)
MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), X),
    "convolution": (lambda: nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)), IMAGE),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), IMAGE),
    "turned": (Turned, X),
    "sliced": (Sliced, X),
    "lstm": (lambda: Last(nn.LSTM(4, 5, 2, batch_first=True, bidirectional=True)), SERIES),
    "embedding": (lambda: nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 3)), TOKENS),
    "attention": (lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), SERIES),
}  # fmt: skip
DEVICES: dict[str, list[Any]] = {
    "noise": [WeightNoise(add=0.3)], "relative": [WeightNoise(add=0.3, relative="channel")],
    "pcm": [PCM(time=1e4)], "two": [DifferentialPair(0.1, levels=8), WeightNoise(mul=0.2)],
}  # fmt: skip


def made(kind: str) -> tuple[nn.Module, Any]:
    """A model with an input."""
    torch.manual_seed(0)
    make, x = MODELS[kind]
    return make().eval(), x


@pytest.mark.parametrize("bias", ["digital", "column"])
@pytest.mark.parametrize("devices", DEVICES)
@pytest.mark.parametrize("kind", MODELS)
def test_the_clean_model_with_the_state_computes_what_the_injected_one_does(kind: str, devices: str, bias: Any) -> None:
    model, x = made(kind)
    clean, before = copy.deepcopy(model), copy.deepcopy(model.state_dict())
    example = {} if kind in ("linear", "convolution", "transposed") else {"example_input": x}
    with torch.no_grad(), nk.inject(model, None, hardware=DEVICES[devices], bias=bias, **example):
        with nk.noise_state(model, seed=SEED, draws=[DRAW]):
            noisy = model(x)
            chip = programmed(model, x, seed=SEED, draw=DRAW)
            assert torch.equal(model(x), noisy)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert list(chip) == list(before)
    wanted = clean(x)
    clean.load_state_dict(chip)
    with torch.no_grad():
        assert torch.allclose(clean(x), noisy, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(noisy, wanted, rtol=1e-2)
    changed = {name for name, t in chip.items() if not torch.equal(t, before[name])}
    norms = {f"{path}.{n}" for path, m in model.named_modules() if isinstance(m, NORMS) for n in ("weight", "bias")}
    held = {n for n, p in model.named_parameters() if p.dim() > 1 or bias == "column"} - norms
    assert changed == held


class Several(nn.Module):
    """A bilinear layer and a cell; one bias of both calls of a layer, a bias of what is computed."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.pair, self.cell = nn.Bilinear(4, 4, 4), nn.GRUCell(4, 4)
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        if kind == "one bias":
            self.b.bias = self.a.bias

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "cell":
            return self.cell(self.pair(x, x), x)  # type: ignore[no-any-return]
        if self.kind == "computed":
            return F.linear(x, self.a.weight, self.a.bias * 2)
        return self.b(self.a(x))  # type: ignore[no-any-return]


def test_columns_of_cells_and_of_what_no_state_can_hold() -> None:
    for kind, message in (
        ("cell", None), ("one bias", "'a.bias' is held by two arrays"), ("computed", "the bias at ':linear#0' is no")
    ):  # fmt: skip
        torch.manual_seed(0)
        model = Several(kind)
        with nk.inject(model, None, hardware=[WeightNoise(add=0.1)], bias="column", example_input=X):
            if message is not None:
                with pytest.raises(ValueError, match=f"programmed: {message}"):
                    programmed(model, X, seed=SEED)
                continue
            with nk.noise_state(model, seed=SEED, draws=[DRAW]):
                noisy = model(X)
            chip = programmed(model, X, seed=SEED, draw=DRAW)
        model.load_state_dict(chip)
        assert torch.allclose(model(X), noisy, atol=1e-5)


def test_bits_are_those_of_the_contract() -> None:
    """W + a eps of the stream of the array, whatever else is in the list."""
    model, x = made("linear")
    hardware = [InputNoise(add=0.5), DAC(6, 4.0), WeightNoise(add=0.3), MacNoise(0.1), ColumnGain(0.1), ADC(6, 9.0)]
    with nk.inject(model, nk.Noise(add=1.0), hardware=hardware):
        chip = programmed(model, x, seed=SEED, draw=DRAW)
    for layer in ("0", "2"):
        weight = model.get_parameter(f"{layer}.weight").detach()
        key: dict[str, Any] = {"seed": SEED, "site": hashed_id(f"{layer}:linear#0"), "operand": "weight"}
        kernel = nk.perturb(weight, nk.Noise(add=0.3), **key, draws=[DRAW], shared=True)
        assert torch.equal(chip[f"{layer}.weight"], kernel)
        eps = nk.eps(weight.shape, **key, draw=DRAW).double()
        assert torch.allclose(kernel.double(), weight.double() + 0.3 * eps, rtol=0, atol=1e-6)
        assert torch.equal(chip[f"{layer}.bias"], model.get_parameter(f"{layer}.bias"))


class Both(nk.hardware.Device):
    """Holds weights and acts on outputs."""

    def weight(self, weight: Tensor, draw: Draw) -> Tensor:
        return weight * 2

    def output(self, y: Tensor, draw: Draw) -> Tensor:
        return y + 1


def test_what_devices_do_to_weights_is_there_wherever_they_stand() -> None:
    model, x = made("linear")
    for hardware in ([Both()], [ColumnGain(0.1), Both()], [Both(), MacNoise(0.1)]):
        with nk.inject(model, None, hardware=hardware):
            assert torch.equal(programmed(model, x, seed=1)["0.weight"], 2 * model[0].weight)


def test_a_layer_of_its_own_hardware() -> None:
    layer, x = nk.nn.NoisyLinear(4, 3, hardware=[WeightNoise(add=1.0)]), X
    with nk.noise_state(layer, seed=SEED, draws=[DRAW]):
        noisy = layer(x)
    chip = programmed(layer, x, seed=SEED, draw=DRAW)
    assert torch.allclose(F.linear(x, chip["weight"], chip["bias"]), noisy, atol=1e-5)


class Twice(nn.Module):
    """A layer that is called twice, and a head that may be tied."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        if tied:
            self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.a(self.a(x)))
        return out


@pytest.mark.parametrize(("tied", "arrays", "fine"), [
    (False, "module", True), (False, "parameter", True), (False, "call", False),
    (True, "module", False), (True, "parameter", True), (True, "call", False),
])  # fmt: skip
def test_two_arrays_of_one_weight_are_refused(tied: bool, arrays: Any, fine: bool) -> None:
    model = Twice(tied)
    with nk.inject(model, None, hardware=[WeightNoise(add=0.3)], arrays=arrays):
        if not fine:
            with pytest.raises(
                ValueError, match=r"programmed: 'a.weight' is held by two arrays.*at 'a:linear#.*at '[ab]:"
            ):
                programmed(model, X, seed=SEED)
            return
        chip = programmed(model, X, seed=SEED)
        with nk.noise_state(model, seed=SEED, draws=[0]):
            noisy = model(X)
    model.load_state_dict(chip)
    assert torch.allclose(model(X), noisy, atol=1e-5)
    assert torch.equal(chip["a.weight"], chip["b.weight"]) == tied


def test_what_no_state_can_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="programmed: example_input must hold a tensor with at least one row"):
        programmed(nn.Linear(4, 3), X[:0], seed=1)
    model = parametrizations.weight_norm(nn.Linear(4, 3))
    with nk.inject(model, None, hardware=[WeightNoise(add=0.3)]):
        with pytest.raises(ValueError, match=r"programmed: the weight at ':linear#0' is no parameter or buffer"):
            programmed(model, X, seed=1)


def test_weights_outside_of_hardware_are_as_they_are() -> None:
    model, x = made("linear")
    with nk.inject(model, nk.Noise(add=1.0), hardware=None):
        chip = programmed(model, x, seed=1)
    assert all(torch.equal(chip[n], t) and chip[n].data_ptr() != t.data_ptr() for n, t in model.state_dict().items())

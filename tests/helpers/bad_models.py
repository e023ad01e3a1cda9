"""What users get wrong of noise, layers and injection."""

from __future__ import annotations

import torch
from bad_calls import NAN, NOISE, Table, X, injected, net, stated
from torch import Tensor, nn

import noisykernels as nk


def recurrent() -> nn.Module:
    return nn.Sequential(nn.LSTM(4, 3))


class Pair(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.relu(a) + b


class Mixing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x @ x.T)


class Counts(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(len(x)):
            x = torch.relu(x)
        return x


def two_inputs() -> None:
    model = Pair()
    with nk.inject(model, NOISE), nk.noise_state(model, draws=[0, 1]):
        model(X, X)


def nested() -> None:
    inner = net()

    class Calls(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return inner(x)

    model = Calls()
    with nk.inject(inner, NOISE), nk.inject(model, NOISE):
        model(X)


def part_first() -> None:
    model = net()
    nk.inject(model[0], NOISE)
    nk.inject(model, NOISE)


def whole_first() -> None:
    model = net()
    nk.inject(model, NOISE)
    nk.inject(model[0], NOISE)


def packed() -> None:
    sequence = nn.utils.rnn.pack_padded_sequence(torch.zeros(2, 3, 4), [3, 2], batch_first=True)

    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(4, 3, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(sequence)[0].data

    injected(torch.zeros(2, 1), model=Packed())


def training_mode_batch_norm() -> None:
    stated(nn.Sequential(nn.BatchNorm1d(4)).train(), seed=0, draws=[0, 1])


CASES: Table = {
    "Noise": [
        ("negative level", lambda _: nk.Noise(add=-0.1), ValueError),
        ("NaN level", lambda _: nk.Noise(mul=NAN), ValueError),
        ("infinite level", lambda _: nk.Noise(add=float("inf")), ValueError),
        ("level of another type", lambda _: nk.Noise(add="0.1"), TypeError),
        ("whole-number tensor", lambda _: nk.Noise(add=torch.tensor(1)), TypeError),
        (
            "level that wants a gradient",
            lambda _: nk.Noise(add=torch.ones((), requires_grad=True)),
            ValueError,
        ),
        ("unknown order", lambda _: nk.Noise(add=1.0, order="add"), ValueError),
        ("unknown kind", lambda _: nk.Noise(add=1.0, kind="cauchy"), ValueError),
        ("fold of add_mul", lambda _: nk.Noise(1.0, 1.0, order="add_mul", fold=True), ValueError),
        ("ratio outside [0, 1]", lambda _: nk.Noise.amplitude(1.0, 1.5), ValueError),
        (
            "negative tensor level, when used",
            lambda _: injected(noise=nk.Noise(add=torch.tensor(-1.0))),
            ValueError,
        ),
    ],
    "Layers": [
        ("a number for the noise", lambda _: nk.NoisyLinear(2, 2, noise=0.1), TypeError),
        (
            "input of another width",
            lambda _: nk.NoisyLinear(4, 2, noise=NOISE)(torch.zeros(2, 3)),
            RuntimeError,
        ),
        (
            "input of another type",
            lambda _: nk.NoisyLinear(4, 2, noise=NOISE)(X.double()),
            RuntimeError,
        ),
        (
            "state for a model without noise",
            lambda _: nk.noise_state(net(), seed=0).__enter__(),
            ValueError,
        ),
    ],
    "Injection": [
        ("not a model", lambda _: nk.inject(torch.relu, NOISE), TypeError),
        ("a number for the noise", lambda _: injected(noise=0.1), TypeError),
        ("pattern that fits no module", lambda _: injected(where="fc1"), ValueError),
        (
            "pattern that fits no site",
            lambda _: injected(where="0:relu", example_input=X),
            ValueError,
        ),
        (
            "pattern of a map that fits no site",
            lambda _: injected(noise={"fc1": NOISE}),
            ValueError,
        ),
        ("where of another type", lambda _: injected(where=3), TypeError),
        (
            "where together with a map",
            lambda _: injected(noise={"0": NOISE}, where="0"),
            ValueError,
        ),
        ("repeats below 1", lambda _: injected(repeats=0), ValueError),
        ("repeats by number of a site", lambda _: injected(repeats={3: 2}), TypeError),
        ("noise by number of a site", lambda _: injected(noise={3: NOISE}), TypeError),
        ("a number for row_dims", lambda _: injected(row_dims=3), TypeError),
        ("row_dims by number of a site", lambda _: injected(row_dims={3: 0}), TypeError),
        ("a dimension that is a word", lambda _: injected(row_dims={"input": "x"}), TypeError),
        ("a switch that is a word", lambda _: injected(normalize_to_input_size="x"), TypeError),
        ("repeats at no site", lambda _: injected(repeats={"fc1": 2}), ValueError),
        ("the same model twice", lambda _: [nk.inject(m, NOISE) for m in [net()] * 2], ValueError),
        ("a model with an injected part", lambda _: part_first(), ValueError),
        ("a part of an injected model", lambda _: whole_first(), ValueError),
        ("injected model run by another", lambda _: nested(), RuntimeError),
        (
            "TorchScript inside",
            lambda _: injected(model=nn.Sequential(torch.jit.script(nn.ReLU()))),
            ValueError,
        ),
        ("batch_first=False, rows unknown", lambda _: nk.inject(recurrent(), NOISE), ValueError),
        ("example without rows", lambda _: injected(example_input=torch.zeros(0, 4)), ValueError),
        ("example that is no tensor", lambda _: injected(example_input=3), ValueError),
        (
            "operations depend on the number of rows",
            lambda _: injected(model=Counts(), example_input=X, where=":relu#5"),
            RuntimeError,
        ),
        ("sites without an example", lambda _: nk.sites(net()), ValueError),
        (
            "input without rows",
            lambda _: injected(torch.tensor(1.0), model=nn.Sequential(nn.ReLU())),
            RuntimeError,
        ),
        (
            "value that mixes rows",
            lambda _: injected(model=Mixing(), example_input=X, where=":sigmoid#0"),
            RuntimeError,
        ),
        ("packed sequence", lambda _: packed(), RuntimeError),
        (
            "batch norm in training, several draws",
            lambda _: training_mode_batch_norm(),
            RuntimeError,
        ),
        ("several inputs and draws, no example", lambda _: two_inputs(), RuntimeError),
    ],
}

"""Recurrent layers and cells: noise on what they give, and hardware, where the weights of each layer and direction are
arrays for all time steps.

Where devices change weights only, torch's own kernel runs on what the arrays hold; else the steps run one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from noisykernels.hardware.contraction import Contraction
from noisykernels.hardware.device import Arithmetic, Device, Draw
from noisykernels.hardware.execute import run
from noisykernels.hardware.macs import MacNoise
from noisykernels.hardware.panels import held_by as held_on
from noisykernels.injection.columns import Wider
from noisykernels.injection.values import Change
from noisykernels.noise.arguments import Chip, Key
from noisykernels.noise.description import Noise

__all__ = ["cell_on_hardware", "held_by", "layer_on_hardware", "only_weights", "with_noise"]


class Running(Protocol):
    """What a recurrent layer asks of the mode that runs it; see `mode.SiteMode`."""

    @property
    def batch(self) -> int: ...

    @property
    def column(self) -> bool: ...  # whether a bias is one more column of the array

    def with_column(self, contraction: Contraction, x: Tensor, weight: Tensor, bias: Tensor) -> Wider: ...

    def at_level(self, name: str, hardware: Sequence[Device]) -> Sequence[Device]: ...

    @property
    def record(self) -> Any: ...

    def at(self, name: str, noise: Noise | Change | None, clean: Tensor, row_dim: int | None = None) -> Tensor: ...

    def part_key(self, name: str, part: str, step: int | None, like: Tensor) -> tuple[Key, Chip]: ...


class _Weights(NamedTuple):
    """Of one layer in one direction."""

    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor | None
    b_hh: Tensor | None
    w_hr: Tensor | None
    suffix: str  # of their names


def with_noise(mode: Running, name: str, noise: Noise | Change | None, args: Any, result: Any) -> Any:
    """LSTM, GRU, RNN: noise on the output, and on that part of the state that is output."""
    if not isinstance(args[3], bool):  # packed: (input, batch_sizes, ...), not (input, state, ...)
        if mode.record is not None or noise is None:
            return result
        raise RuntimeError(
            f"site {name!r}: packed sequences have no row dimension; "
            "pad them instead, or leave the site out with where=..."
        )
    out, hidden, *memory = result
    bidirectional, batch_first = args[-2:]
    noisy = mode.at(name, noise, out, 0 if batch_first else 1)
    if noisy is not out:
        time = 1 if batch_first else 0
        last = noisy.select(time, -1).unsqueeze(0)
        if bidirectional:  # the backward direction ends at the first step
            forward, _ = last.chunk(2, -1)
            _, backward = noisy.select(time, 0).unsqueeze(0).chunk(2, -1)
            last = torch.cat([forward, backward])
        hidden = torch.cat([hidden[: len(hidden) - len(last)], last])
    return (noisy, hidden, *memory)


def only_weights(hardware: Sequence[Device]) -> bool:
    """Whether devices change nothing but what an array holds."""
    return not any(
        isinstance(d, Arithmetic | MacNoise) or type(d).input is not Device.input or type(d).output is not Device.output
        for d in hardware
    )


def held_by(
    mode: Running, name: str, part: str, weight: Tensor, hardware: Sequence[Device], draw: int,
    contraction: Contraction | None = None,
) -> Tensor:  # fmt: skip
    """What an array of a site holds in one of the draws instead of its weight."""
    key, array = mode.part_key(name, part, None, weight)
    key = key if key.draws is None else key.of_draws(key.draws.narrow(0, draw, 1))
    chip = Draw(contraction or Contraction(part), key, weight.device, array)
    return held_on(hardware, weight, chip)


# ------------------------------------------------------------------------------------------------------------- layers


def layer_on_hardware(
    mode: Running, name: str, kind: str, hardware: Sequence[Device], func: Callable[..., Any], args: Sequence[Any]
) -> tuple[Tensor, ...]:
    """The result of an LSTM, GRU or RNN, whose arguments are those of torch's function."""
    hardware = mode.at_level(name, hardware)
    packed = not isinstance(args[3], bool)
    x, state, weights, biased, layers, dropout, training, bidirectional = (args[0], *args[2:9]) if packed else args[:8]
    batch_first = not packed and args[8]
    count = _draws(mode, name, weights[0])
    if only_weights(hardware):
        labels = _labels(len(weights), biased, layers, bidirectional)
        parts = []
        for draw in range(count):
            held = dict(zip(labels, weights, strict=True))
            for label in labels:
                if label.startswith("weight"):
                    _hold(mode, name, label, held, hardware, draw)
            given = list(args)
            given[3 if packed else 2] = list(held.values())
            if count > 1:
                given[0] = x.chunk(count, 0 if batch_first else 1)[draw]
                at = 2 if packed else 1
                given[at] = _chunk(state, count, draw)
            parts.append(func(*given))
        if count == 1:
            return tuple(parts[0])
        return tuple(
            torch.cat(values, (0 if batch_first else 1) if i == 0 else 1)
            for i, values in enumerate(zip(*parts, strict=True))
        )
    if packed:
        raise RuntimeError(f"site {name!r}: hardware that acts at every step needs padded sequences, not packed ones")
    x = x.transpose(0, 1) if batch_first else x
    states = state if isinstance(state, tuple | list) else (state,)
    found: list[list[Tensor]] = [[] for _ in states]
    number = 0
    for layer in range(layers):
        outs = []
        for backward in range(2 if bidirectional else 1):
            suffix = f"_l{layer}{'_reverse' if backward else ''}"
            w = _of_layer(weights, biased, number, layers * (1 + bidirectional), suffix)
            here = tuple(s[number] for s in states)
            out, here = _steps(mode, name, kind, hardware, x, here, w, bool(backward))
            outs.append(out)
            for one, last in zip(found, here, strict=True):
                one.append(last)
            number += 1
        x = torch.cat(outs, -1)
        if dropout > 0 and training and layer < layers - 1:
            x = F.dropout(x, dropout)
    return (x.transpose(0, 1) if batch_first else x, *(torch.stack(one) for one in found))


def _hold(
    mode: Running, name: str, label: str, weights: dict[str, Tensor], hardware: Sequence[Device], draw: int
) -> None:
    """Puts what an array holds in place of its weight, and of its bias where that is in the array."""
    weight, beside = weights[label], label.replace("weight", "bias")
    if not (mode.column and beside in weights):
        weights[label] = held_by(mode, name, label, weight, hardware, draw)
        return
    both = mode.with_column(Contraction(label), weight[:0], weight, weights[beside]).weight
    both = held_by(mode, name, label, both, hardware, draw)
    weights[label], weights[beside] = both[:, :-1], both[:, -1]


def _draws(mode: Running, name: str, weight: Tensor) -> int:
    key, _ = mode.part_key(name, "weight_ih_l0", None, weight)
    return 1 if key.draws is None else len(key.draws)


def _chunk(state: Any, count: int, draw: int) -> Any:
    if isinstance(state, Tensor):
        return state.chunk(count, 1)[draw]
    return tuple(s.chunk(count, 1)[draw] for s in state)


def _labels(total: int, biased: bool, layers: int, bidirectional: bool) -> list[str]:
    """Names of a layer's weights, as its module has them."""
    names = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if biased else [])]
    if total > len(names) * layers * (1 + bidirectional):
        names.append("weight_hr")
    return [
        f"{name}_l{layer}{suffix}"
        for layer in range(layers) for suffix in ("", "_reverse")[: 1 + bidirectional] for name in names
    ]  # fmt: skip


def _of_layer(weights: Sequence[Tensor], biased: bool, number: int, numbers: int, suffix: str) -> _Weights:
    """Those of one layer in one direction, which is this one of so many."""
    size = len(weights) // numbers
    w_ih, w_hh, *more = weights[number * size : (number + 1) * size]
    b_ih, b_hh = more[:2] if biased else (None, None)
    w_hr = more[2 if biased else 0] if len(more) % 2 else None
    return _Weights(w_ih, w_hh, b_ih, b_hh, w_hr, suffix)


def _steps(
    mode: Running, name: str, kind: str, hardware: Sequence[Device], x: Tensor, state: tuple[Tensor, ...], w: _Weights,
    backward: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:  # fmt: skip
    """One layer in one direction: (length, rows, features) and its last state."""
    outs = []
    order = range(len(x) - 1, -1, -1) if backward else range(len(x))
    for step in order:
        state = _step(mode, name, kind, hardware, x[step], state, w, step)
        outs.append(state[0])
    return torch.stack(outs[::-1] if backward else outs), state


def _step(
    mode: Running, name: str, kind: str, hardware: Sequence[Device], x: Tensor, state: tuple[Tensor, ...], w: _Weights,
    step: int | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The state after a step: the output first."""

    def contract(part: str, value: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        key, array = mode.part_key(name, f"{part}{w.suffix}", step, weight)
        contraction = Contraction(f"{part}{w.suffix}")
        if mode.column and bias is not None:
            both = mode.with_column(contraction, value, weight, bias)
            value, weight, bias = both.x, both.weight, None
        return run(contraction, value, weight, bias, hardware, key, False, array)

    h = state[0]
    of_x, of_h = contract("weight_ih", x, w.w_ih, w.b_ih), contract("weight_hh", h, w.w_hh, w.b_hh)
    if kind.startswith("lstm"):
        i, f, g, o = (of_x + of_h).chunk(4, -1)
        c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return (h if w.w_hr is None else contract("weight_hr", h, w.w_hr, None)), c
    if kind.startswith("gru"):
        (x_r, x_z, x_n), (h_r, h_z, h_n) = of_x.chunk(3, -1), of_h.chunk(3, -1)
        z, n = (x_z + h_z).sigmoid(), (x_n + (x_r + h_r).sigmoid() * h_n).tanh()
        return ((1 - z) * n + z * h,)
    return ((of_x + of_h).tanh() if "tanh" in kind else (of_x + of_h).relu(),)


# -------------------------------------------------------------------------------------------------------------- cells


def cell_on_hardware(mode: Running, name: str, kind: str, hardware: Sequence[Device], args: Sequence[Any]) -> Any:
    """The result of a cell, whose arguments are those of torch's function: (input, state, w_ih, w_hh, b_ih, b_hh)."""
    x, state, w_ih, w_hh, *biases = args
    b_ih, b_hh = (*biases, None, None)[:2]
    states = tuple(state) if isinstance(state, tuple | list) else (state,)
    weights = _Weights(w_ih, w_hh, b_ih, b_hh, None, "")
    found = _step(mode, name, kind, mode.at_level(name, hardware), x, states, weights, None)
    return found if kind.startswith("lstm") else found[0]

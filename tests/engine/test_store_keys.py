"""Keys of studies: another study is refused by name, the same one has the same key."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from stores import refused
from torch import nn

from noisykernels import STREAM_VERSION, Noise
from noisykernels._engine import store_keys
from noisykernels._engine.store import Store
from noisykernels._engine.store_keys import study_key


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))


INPUTS, LABELS = torch.arange(96.0).view(6, 1, 4, 4), torch.arange(6) % 3


def made(**other: object) -> dict[str, object]:
    arguments = {"model": net(), "inputs": INPUTS, "labels": LABELS, "noise": Noise(add=1.0, mul=0.5), "seed": 7,
                 "plan": {"threads": 2, "batch_rows": 500}}  # fmt: skip
    return study_key(**{**arguments, **other})  # type: ignore[arg-type]


def changed(model: nn.Module, name: str) -> nn.Module:
    model.state_dict()[name].view(-1)[0] += 1
    return model


def with_layer(number: int, layer: nn.Module, weights_of: int | None = None) -> nn.Module:
    model = net()
    if weights_of is not None:
        layer.load_state_dict(model[weights_of].state_dict())
    model[number] = layer
    return model


class Plain(nn.Module):
    """Prints an address, as a layer with a function among its settings may."""

    def extra_repr(self) -> str:
        return repr(object())


DIFFERENT = {
    "weight": ({"model": changed(net(), "4.weight")}, "model's weights differ"),
    "statistics": ({"model": changed(net(), "1.running_var")}, "model's weights differ"),
    "dtype": ({"model": net().double()}, "model's weights differ"),
    "activation": ({"model": with_layer(2, nn.Sigmoid())}, "model's layers differ"),
    "padding": ({"model": with_layer(0, nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), 0)}, "layers differ"),
    "inputs": ({"inputs": INPUTS + 1}, "inputs differ"),
    "shape": ({"inputs": INPUTS.view(6, 1, 2, 8)}, "inputs differ"),
    "labels": ({"labels": LABELS.flip(0)}, "labels differ"),
    "rows": ({"rows": range(1, 7)}, "row ids differ"),
    "level": ({"noise": Noise(add=2.0, mul=0.5)}, r"noise differs \(add: 1.0 in the file, 2.0 here\)"),
    "levels": ({"noise": Noise(add=torch.ones(1, 1, 1), mul=0.5)}, "noise differs"),
    "kind": ({"noise": Noise(add=1.0, mul=0.5, kind="laplace")}, r"noise differs \(kind: gaussian in the file, la"),
    "order": ({"noise": Noise(add=1.0, mul=0.5, order="add_mul")}, "mode: mul_add in the file, add_mul here"),
    "fold": ({"noise": Noise(add=1.0, mul=0.5, fold=True)}, "fold: False in the file, True here; mode"),
    "seed": ({"seed": 8}, r"seed differs \(7 in the file, 8 here\)"),
    "target": ({"target": "weight"}, "target differs .activation in the file, weight here"),
    "plan": ({"plan": {"threads": 4, "batch_rows": 500}}, r"plan differs \(threads: 2 in the file, 4 here\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", DIFFERENT)
def test_another_study_is_refused(path: Path, name: str) -> None:
    other, text = DIFFERENT[name]
    with Store(path, made()) as s:
        s.finish({"a": 1}, "me")
    said = refused(path, f"results of another study: the .*{text}", made(**other))
    assert said.count(" differ") == 1
    with Store(path, made()) as s:
        assert s.done() == {"a": 1}


def test_other_stream_and_several_pieces(path: Path) -> None:
    key = made()
    assert key["stream"] == STREAM_VERSION
    Store(path, key).close()
    refused(path, "the version of the noise stream differs .1 in the file, 2 here., the seed differs",
            {**key, "stream": 2, "seed": 1})  # fmt: skip


def test_the_same_study_has_the_same_key() -> None:
    model = net()
    model.load_state_dict(dict(reversed(net().state_dict().items())))
    with torch.no_grad():
        model.to(memory_format=torch.channels_last)
    model.train(False).requires_grad_(False)
    again = made(model=model, inputs=INPUTS.clone().transpose(0, 3).contiguous().transpose(0, 3), rows=torch.arange(6))
    assert again == made() and len(str(again["sha256"])) == 64
    assert made(model=with_layer(2, Plain())) == made(model=with_layer(2, Plain()))
    assert made(plan={"batch_rows": 500, "threads": 2})["sha256"] == made()["sha256"] != made(seed=1)["sha256"]


def test_tensors_are_read_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values in logical order however a tensor lies, of every type, whatever the size of the blocks."""
    tensors = [
        torch.arange(n).view(2, 3, -1).to(t) for n in (6, 30) for t in (torch.float64, torch.bfloat16, torch.bool)
    ]
    tensors += [t.transpose(0, 2) for t in tensors] + [
        tensors[3].expand(4, 2, 3, 5),
        torch.zeros(0, 3),
        torch.tensor(1j),
    ]
    tensors += [torch.view_as_complex(torch.ones(3, 2)).conj()]
    whole = [made(inputs=t)["inputs"] for t in tensors]
    assert whole == [made(inputs=t.clone(memory_format=torch.contiguous_format))["inputs"] for t in tensors]
    monkeypatch.setattr(store_keys, "_BLOCK", 4)
    assert whole == [made(inputs=t)["inputs"] for t in tensors]
    assert len(set(whole)) == len(whole)
    blocks = [b for t in tensors for b in store_keys._blocks(t)]
    assert max(b.numel() for b in blocks) <= 4
    for bad in (torch.eye(2).to_sparse(), torch.empty(2, device="meta")):
        with pytest.raises(TypeError, match="inputs: expected a tensor of plain values"):
            made(inputs=bad)
    with pytest.raises(ValueError, match="JSON"):
        made(plan={"x": float("nan")})

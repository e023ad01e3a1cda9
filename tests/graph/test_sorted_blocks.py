"""Operations that mix rows and bring them back become one step: tokens that are sorted by experts and multiplied group
by group; what does not bring them back is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import noisykernels as nk
from noisykernels._graph.recorder import record_tape
from noisykernels._graph.tape import Tape
from noisykernels.injection import inject
from noisykernels.injection.placement import SILENT
from noisykernels.injection.state import state_of

pytestmark = pytest.mark.usefixtures("one_thread")
EXPERTS, TOP, TOKENS, WIDTH = 3, 2, 5, 4

Way = Callable[["Experts", Tensor, Tensor], Tensor]


def grouped(self: Experts, x: Tensor, chosen: Tensor) -> Tensor:
    """As transformers does it."""
    order = chosen.sort().indices
    counts = torch.histc(chosen.float(), EXPERTS, 0, EXPERTS - 1)
    out = F.grouped_mm(x[order // TOP], self.weight, offs=counts.cumsum(0, dtype=torch.int32)).relu()
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order))
    return out[back]


def twice(self: Experts, x: Tensor, chosen: Tensor) -> Tensor:
    """Back by the order of the order."""
    order = chosen.argsort(stable=True)
    return F.relu(self.weight[chosen[order]] * x[order // TOP][..., None]).sum(1)[order.argsort()]


def not_back(self: Experts, x: Tensor, chosen: Tensor) -> Tensor:
    order = chosen.argsort(stable=True)
    return F.relu(self.weight[chosen[order]] * x[order // TOP][..., None]).sum(1)


def with_room(self: Experts, x: Tensor, chosen: Tensor) -> Tensor:
    """Each expert takes a few tokens only, whoever comes first."""
    taken = F.one_hot(chosen, EXPERTS).cumsum(0).gather(1, chosen[:, None])[:, 0]
    out = (self.weight[chosen] * x.repeat_interleave(TOP, 0)[..., None]).sum(1)
    return out * (taken <= 2 * TOKENS)[:, None]


def centred(self: Experts, x: Tensor, chosen: Tensor) -> Tensor:
    out = (self.weight[chosen] * x.repeat_interleave(TOP, 0)[..., None]).sum(1)
    return out - out.mean(0)


class Experts(nn.Module):
    def __init__(self, way: Way) -> None:
        super().__init__()
        self.f, self.gate, self.out = nn.Linear(3, WIDTH), nn.Linear(WIDTH, EXPERTS), nn.Linear(WIDTH, 2)
        self.weight = nn.Parameter(torch.randn(EXPERTS, WIDTH, WIDTH))
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        h = self.f(x).flatten(0, 1)
        share, chosen = self.gate(h).softmax(-1).topk(TOP)
        out = self.way(self, h, chosen.flatten()) * share.flatten()[:, None]
        return self.out(out.view(-1, TOP, WIDTH).sum(1).view(-1, TOKENS, WIDTH)).sum(1)  # type: ignore[no-any-return]


def taped(way: Way) -> tuple[Tape, nn.Module, Tensor]:
    torch.manual_seed(3)
    model, x = Experts(way).eval(), torch.randn(9, TOKENS, 3)
    with inject(model, None, example_input=x[:2]) as injected, torch.inference_mode():
        state_of(injected).placement = SILENT
        return record_tape(injected, x[:4]), model, x


@pytest.mark.parametrize("way", [grouped, twice])
def test_rows_that_come_back_are_followed(way: Way) -> None:
    tape, model, x = taped(way)
    assert set(tape.sites) == {"input", "f:linear#0", "gate:linear#0", "out:linear#0"}
    torch.testing.assert_close(tape.run(x)[tape.result], model(x))
    inner = [name for name in tape.refused if "relu" in name or "grouped" in name]
    assert inner and all("another order" in tape.refused[name] for name in inner)
    assert not tape.idle


@pytest.mark.parametrize("way", [not_back, with_room, centred])
def test_what_does_not_bring_them_back_is_refused(way: Way) -> None:
    tape, *_ = taped(way)
    assert not tape.sites and "mixes rows" in " ".join(tape.refused.values())


@pytest.mark.parametrize("noise", [nk.Noise(add=1.0), nk.Noise(add=0.5, mul=1.0, order="add_mul")], ids=["add", "both"])
@pytest.mark.filterwarnings("ignore:walk. rows cannot be told apart")
def test_both_engines_find_the_same(noise: nk.Noise) -> None:
    _, model, x = taped(grouped)
    labels = model(x).argmax(1)
    found = []
    for engine in ("shared", "plain"):
        how = dict(levels=[0.1, 1.0, 9.0], draws=3, seed=1, compute=nk.Compute(engine=engine, verify="sample"))
        found.append(nk.walk(model, (x, labels), noise=noise, **how).to_pandas())
    assert (found[0].correct - found[1].correct).abs().max() == 0 and found[0].correct.nunique() > 3

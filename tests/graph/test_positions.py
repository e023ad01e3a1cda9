"""Indices that go by the positions of rows: which are known to take of each row what is its own, and which are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noisykernels._graph.recorder import record_tape
from noisykernels._graph.tape import Tape, part_of, repeated
from noisykernels.injection import inject

TOKENS, WIDTH = 3, 4


class Net(nn.Module):
    """A layer, and a forward that is given."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.run, self.a = run, nn.Linear(WIDTH, WIDTH)
        self.low = nn.Linear(WIDTH, 2 * TOKENS)
        self.low.bias.data[:TOKENS] += 100  # its largest is one of the first three, as long as there is no noise

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, self.a(x))


def starts(h: Tensor) -> Tensor:
    """The number of the first token of each row, where tokens are folded into the rows."""
    return torch.arange(len(h)) * TOKENS


def flat(h: Tensor) -> Tensor:
    return h.reshape(-1, WIDTH)


OWN: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "first token": lambda m, h: flat(h)[starts(h)],
    "last token": lambda m, h: flat(h).index_select(0, starts(h) + TOKENS - 1),
    "edges": lambda m, h: flat(h)[(torch.tensor([0, 2])[None] + starts(h)[:, None]).view(-1)].view(len(h), -1),
    "largest": lambda m, h: flat(h)[starts(h) + h.sum(-1).argmax(1)],
    "largest two": lambda m, h: flat(h)[(h.sum(-1).topk(2, 1)[1] + starts(h)[:, None]).flatten()].view(len(h), 2, -1)[
        :, 0
    ],
    "gathered": lambda m, h: flat(h).gather(0, starts(h)[:, None].expand(-1, WIDTH)),
    "scattered": lambda m, h: h.new_zeros(len(h) * TOKENS, WIDTH).index_add(0, starts(h), h[:, 1]).view_as(h)[:, 0],
    "summed by row": lambda m, h: h.new_zeros(len(h), WIDTH).index_add(
        0, torch.arange(len(h)).repeat_interleave(TOKENS), flat(h)
    ),
    "written": lambda m, h: flat(h).clone().index_put((starts(h),), h[:, 1]).view_as(h).sum(1),
}
OTHER: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a larger range": lambda m, h: flat(h)[starts(h) + m.low(h[:, 0]).argmax(1)],
    "values": lambda m, h: flat(h)[starts(h) + (h[:, 0, 0] > 0).long()],
    "the largest of whole numbers": lambda m, h: flat(h)[
        starts(h) + (h[:, 0, :TOKENS] > 9).long().topk(1)[0].squeeze(1)
    ],
    "the larger of two": lambda m, h: flat(h)[
        starts(h) + torch.max((h[:, :, 0] > 9).long(), torch.tensor(0)).select(1, 0)
    ],
    "the largest by sorting": lambda m, h: flat(h)[
        starts(h) + (h[:, 0, :TOKENS] > 9).long().sort(-1).values.select(1, 2)
    ],
    "the next row from the 41st on": lambda m, h: flat(h)[starts(h) % 120],
    "a step too long": lambda m, h: F.pad(flat(h), (0, 0, 0, 9))[torch.arange(len(h)) * (TOKENS + 1)],
    "a step too short": lambda m, h: flat(h)[torch.arange(len(h)) * (TOKENS - 1)],
    "one token too far": lambda m, h: F.pad(h, (0, 0, 0, 1)).reshape(-1, WIDTH)[(starts(h) + 3)],
    "from the end": lambda m, h: flat(h)[starts(h) - TOKENS],
    "tokens outside of rows": lambda m, h: flat(h.transpose(0, 1))[starts(h)],
    "another dimension": lambda m, h: h.reshape(len(h), -1, WIDTH).transpose(0, 1)[torch.arange(len(h)) % TOKENS, 0],
    "a number made of it": lambda m, h: flat(h)[starts(h)] + (starts(h) + h.sum(-1).argmax(1))[:, None] * 0.1,
    "half of it": lambda m, h: flat(h)[(starts(h) + h.sum(-1).argmax(1)) // 2],
    "counted in another order": lambda m, h: flat(h)[starts(h).flip(0)],
}


def tape_of(run: Callable[[Any, Tensor], Tensor]) -> tuple[Tape, nn.Module, Tensor]:
    model, x = Net(run).eval(), torch.randn(50, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))
    with inject(model, None, example_input=x[:2]) as injected, torch.inference_mode():
        return record_tape(injected, x[:4]), model, x


@pytest.mark.parametrize("name", OWN)
def test_what_is_a_rows_own_is_reached(name: str) -> None:
    tape, model, x = tape_of(OWN[name])
    assert set(tape.sites) == {"input", "a:linear#0"}, tape.refused
    with torch.inference_mode():
        expected = model(x)
        torch.testing.assert_close(tape.run(x)[tape.result], expected)


@pytest.mark.parametrize("name", OTHER)
def test_what_may_be_anothers_is_not(name: str) -> None:
    tape, *_ = tape_of(OTHER[name])
    assert not tape.sites
    assert all("goes by the positions of rows" in why or "mixes rows" in why for why in tape.refused.values())


@pytest.mark.parametrize("name", ["largest", "largest two"])
def test_indices_of_copies_and_of_parts_are_those_of_their_rows(name: str) -> None:
    tape, _, x = tape_of(OWN[name])
    rows = 6
    values, parts = tape.run(x[:rows]), tape.run(x[2:5])
    copies = tape.run(torch.cat([x[:rows]] * 3))
    assert tape.strides
    for number, stride in tape.strides.items():
        assert stride == TOKENS
        assert torch.equal(repeated(tape, number, values[number], 3, rows), copies[number])
        assert torch.equal(part_of(tape, number, values[number], 2, 5, rows), parts[number])

"""Models that go by values, sizes, positions or hidden memory: a recording leaves them alone, by name, and all runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from given_forwards import DRAWS, LEVELS, Net, counts, data, tape_of
from torch import Tensor

import noisykernels as nk
from noisykernels._graph.tape import NotTraceable


def branch(m: Any, x: Tensor) -> Tensor:
    h = torch.relu(m.a(x))
    return m.o((m.b(h) if h.max() > 1e9 else h).mean(1))


def any_large(m: Any, x: Tensor) -> Tensor:
    h = torch.relu(m.a(x))
    return m.o((-h if bool((h > 1e9).any()) else h).mean(1))


def largest_as_number(m: Any, x: Tensor) -> Tensor:
    h = torch.relu(m.a(x))
    return m.o((h / (h.abs().max().item() / 7)).round().mean(1))


def number_in_a_slice(m: Any, x: Tensor) -> Tensor:
    h = torch.relu(m.a(x))
    return m.o(h[:, : (x.sum() < 1e9).long() + 3].mean(1))


def as_array(m: Any, x: Tensor) -> Tensor:
    h = torch.relu(m.a(x))
    return m.o(h.mean(1) * float(h.detach().numpy()[:, 0, 0].max() > -1))


def as_list(m: Any, x: Tensor) -> Tensor:
    h = torch.relu(m.a(x))
    return m.o(h.mean(1) + torch.tensor(h[0, 0].tolist()).sum() * 0)


def chosen_entries(m: Any, x: Tensor) -> Tensor:
    h = torch.sigmoid(m.a(x))
    return m.o(h[h > -1].view(len(x), 5, 8).mean(1))


def positions(m: Any, x: Tensor) -> Tensor:
    return m.o(m.a(x).mean(1) + torch.arange(len(x))[:, None] * 0.1)


def diagonal(m: Any, x: Tensor) -> Tensor:
    h = torch.relu(m.a(x)).mean(1)
    return m.o(torch.eye(len(x), dtype=h.dtype) @ h)


def mask_of_the_neighbour(m: Any, x: Tensor) -> Tensor:
    h = torch.relu(m.a(x)).mean(1)
    return m.o(h * (x[:, 0] > -9).all(1).roll(1, 0)[:, None])


def neighbour(m: Any, x: Tensor) -> Tensor:
    h = torch.relu(m.a(x))
    return m.o(h[(torch.arange(len(x)) + 1) % len(x), 0])


def running_sum(m: Any, x: Tensor) -> Tensor:
    return m.o(torch.relu(m.a(x)).mean(1).cumsum(0))


def quiet_sum(m: Any, x: Tensor) -> Tensor:
    return m.o(m.a(x).mean(1) + torch.relu(m.b(m.a(x)) - 1e9).mean(1).cumsum(0))


KEPT = {n: torch.arange(n) for n in range(64)}


def kept_from_before(m: Any, x: Tensor) -> Tensor:
    return m.o(torch.relu(m.a(x))[KEPT[len(x)], 0])


def pieces(m: Any, x: Tensor) -> Tensor:
    return torch.cat([m.o(torch.relu(m.a(part)).mean(1)) for part in x.split(7)])


def into_a_buffer(m: Any, x: Tensor) -> Tensor:
    h = torch.relu(m.a(x))
    m.positions.data.copy_(m.positions.data * 1.0)
    return m.o((h + m.positions).mean(1))


def transformed(m: Any, x: Tensor) -> Tensor:
    h = torch.relu(m.a(x))
    return m.o(torch.func.vmap(lambda row: row.mean(0))(h))


def random_numbers(m: Any, x: Tensor) -> Tensor:
    return m.o(F.dropout(torch.relu(m.a(x)), 1e-9).mean(1))


def as_many_as_values_say(m: Any, x: Tensor) -> Tensor:
    h = torch.relu(m.a(x)).mean(1)
    return m.o(h * (1 + len(h[h[:, 0] > 1e9])))


def kinds_of_tokens(m: Any, x: Tensor) -> Tensor:
    h = torch.relu(m.a(x)).mean(1)
    return m.o(h * x.gt(1e9).unique().numel())


def under_autocast(m: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return m.o(torch.relu(m.a(x).float()).mean(1).double())


def differentiated(m: Any, x: Tensor) -> Tensor:
    h = torch.relu(m.a(x)).mean(1)
    return m.o(h + torch.func.grad(lambda h: h.square().sum())(h))


LEFT = {
    branch: "__bool__ turns values into numbers", any_large: "__bool__ turns values into numbers",
    largest_as_number: "item turns values into numbers", number_in_a_slice: "__getitem__ turns values into numbers",
    as_array: "numpy turns values into numbers", as_list: "tolist turns values into numbers",
    chosen_entries: "view takes as many entries as values say", positions: "goes by the positions of rows",
    diagonal: "goes by the positions of rows", mask_of_the_neighbour: "roll mixes rows",
    neighbour: "goes by the positions of rows",
    running_sum: "cumsum mixes rows", quiet_sum: "cumsum mixes rows",
    kept_from_before: "made where it cannot be seen",
    pieces: "split mixes rows",
    into_a_buffer: "no value of this forward", transformed: "mean runs inside a transform of torch.func",
    differentiated: "requires_grad_ runs inside a transform of torch.func",
    as_many_as_values_say: "__len__ turns values into numbers", kinds_of_tokens: "numel turns values into numbers",
    under_autocast: "switches autocast on or off", random_numbers: "draws random numbers of its own",
}  # fmt: skip


@pytest.mark.parametrize("run", LEFT, ids=lambda run: run.__name__)
def test_what_is_not_understood_is_left_alone_and_says_why(run: Callable[..., Tensor]) -> None:
    try:
        tape = tape_of(run)
        assert not tape.sites
        reasons = list(tape.refused.values())
    except NotTraceable as reason:
        reasons = [str(reason)]
    assert reasons and all(LEFT[run] in why for why in reasons), reasons


@pytest.mark.parametrize("run", [branch, largest_as_number, positions, running_sum], ids=lambda run: run.__name__)
def test_what_is_left_alone_runs_whole(run: Callable[..., Tensor]) -> None:
    model, x = Net(run), data(14)
    y = torch.arange(14) % 2
    with pytest.warns(UserWarning, match=f"every pass runs the whole model.*({LEFT[run]})"):
        study = nk.walk(model, (x, y), noise=nk.Noise(add=1.0), levels=LEVELS, draws=DRAWS, seed=7, sites=["a"],
                        compute=nk.Compute(draws_per_pass=1))  # fmt: skip
    assert [r.correct for r in study.records] == counts(model, x, y, "a:linear#0")


def many_rows(m: Any, x: Tensor) -> Tensor:
    h = torch.relu(m.a(x))
    return m.o((h if len(x) < 20 else -h).mean(1))  # more than are held against others


def test_other_code_for_more_rows_is_found_on_a_whole_chunk() -> None:
    model, x = Net(many_rows), data(24)
    y = torch.arange(24) % 2
    with pytest.warns(UserWarning, match="every pass runs the whole model: it gives other scores for 24 rows") as told:
        study = nk.walk(model, (x, y), noise=nk.Noise(add=1.0), levels=LEVELS, draws=DRAWS, seed=7, sites=["a"],
                        compute=nk.Compute(draws_per_pass=1))  # fmt: skip
    assert told[0].filename == __file__
    assert [r.correct for r in study.records] == counts(model, x, y, "a:linear#0")

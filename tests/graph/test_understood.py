"""Models that go by rows, values, memory and numbers in ways that a recording must understand: their work is shared."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from given_forwards import DRAWS, LEVELS, Net, counts, data, tape_of
from torch import Tensor, nn

import noisykernels as nk
from noisykernels._graph.recorder import record_tape
from noisykernels._graph.tape import Step


def last_token(m: Any, x: Tensor) -> Tensor:
    h = torch.relu(m.a(x))
    return m.o(torch.relu(m.b(h))[torch.arange(x.shape[0]), -1])


def kept_by_rows(m: Any, x: Tensor) -> Tensor:
    n = len(x)
    if n not in m.kept:
        m.kept[n] = torch.arange(n)
    return m.o(torch.relu(m.a(x))[m.kept[n], 0])


def last_token_of_its_length(m: Any, x: Tensor) -> Tensor:
    h = torch.relu(m.a(x))
    lengths = (x[:, :, 0] > 0).sum(1).clamp(max=4)
    return m.o(torch.tanh(m.b(h))[torch.arange(len(x)), lengths])


def best_tokens(m: Any, x: Tensor) -> Tensor:
    h = torch.relu(m.a(x))
    best = h.sum(-1).topk(2, 1).indices
    return m.o(h[torch.arange(len(x))[:, None], best].mean(1))


def gathered(m: Any, x: Tensor) -> Tensor:
    h = torch.relu(m.a(x))
    best = h.sum(-1).argmax(1)
    return m.o(h.gather(1, best[:, None, None].expand(-1, 1, 8)).squeeze(1))


def class_token(m: Any, x: Tensor) -> Tensor:
    h = torch.cat([m.token.expand(len(x), -1, -1), m.a(x)], 1)
    h = h + torch.cat([m.positions, m.positions[:1]])
    return m.o(torch.relu(m.b(h))[:, 0] + h.mean(1))


def masks(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    mask = torch.ones(len(x), 5, 5, dtype=torch.bool).tril()
    scores = (h @ h.transpose(1, 2)).masked_fill(~mask, -torch.inf)
    return m.o((scores.softmax(-1) @ h).mean(1))


def windows(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)[:, :4].reshape(len(x), 2, 2, 8)
    h = torch.relu(m.b(h.reshape(len(x) * 2, 2, 8).roll(1, 1)))
    return m.o(h.view(len(x), 4, 8).mean(1))


def steps_first(m: Any, x: Tensor) -> Tensor:
    h = torch.relu(m.a(x)).transpose(0, 1).reshape(5 * len(x), 8)
    h = (m.b(h) + 0.5 * torch.tanh(h)).view(5, len(x), 8)
    return m.o(torch.relu(h[-1] + h.mean(0)))


def state_of_zeros(m: Any, x: Tensor) -> Tensor:
    state = x.new_zeros(len(x), 8)
    for t in range(3):
        state = torch.tanh(m.a(x[:, t]) + m.b(state))
    return m.o(state)


def filled_in(m: Any, x: Tensor) -> Tensor:
    out = torch.empty(len(x), 3, 8, dtype=x.dtype)
    for t in range(3):
        out[:, t] = torch.relu(m.a(x[:, t]))
    return m.o(out.flatten(1).view(len(x), 3, 8).sum(1))


def through_a_view(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    first, rest = h[:, 0], h[:, 1:]
    first.mul_(3)
    h[:, 1] += 1.0
    q, k = h.chunk(2, -1)
    q.relu_()
    return m.o((h * 0.1 + m.b(h)).mean(1) + rest.sum(1) + torch.cat([k, q], -1).amax(1))


def memory_of_two(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    flat = h.view(-1, 8)
    flat += 0.5
    F.relu(h, inplace=True)
    return m.o(m.b(flat).view(len(x), 5, 8).mean(1))


def of_other_type(m: Any, x: Tensor) -> Tensor:
    h = m.a(x).float()
    h += torch.full((8,), 1 / 3, dtype=torch.float64)
    h.gt_(0.5)
    return m.o(h.double().mean(1))


def masked(m: Any, x: Tensor) -> Tensor:
    h = torch.relu(m.a(x))
    h[h > 1] = 1.0
    h[torch.arange(len(x)), 2] = 0.0
    return m.o(torch.where(h > 0.5, h, -h).mean(1))


def looked_up(m: Any, x: Tensor) -> Tensor:
    tokens = (x[..., 0] * 3).long().clamp(0, 7)
    return m.o(torch.relu(m.table(tokens) + m.b(F.one_hot(tokens[:, 0], 8).double())[:, None]).mean(1))


def constant_number(m: Any, x: Tensor) -> Tensor:
    scale = 2 ** int(m.bits) - 1
    return m.o(((torch.sigmoid(m.a(x)) * scale).round() / scale).mean(1))


def masked_by_one_row(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    mask = torch.ones_like((x @ x.transpose(1, 2))[:1]).triu(1).bool()
    return m.o(((h @ h.transpose(1, 2)).masked_fill(mask, -1e9).softmax(-1) @ h).mean(1))


def rows_selected(m: Any, x: Tensor) -> Tensor:
    h = torch.relu(m.a(x)).index_select(0, torch.arange(x.shape[0]))
    return m.o((h + torch.full_like(h, 0.5)).mean(1))


def into_its_input(m: Any, x: Tensor) -> Tensor:
    x.mul_(2)
    return m.o(torch.relu(m.a(F.leaky_relu(x, 0.2, inplace=True))).mean(1))


def heads_first(m: Any, x: Tensor) -> Tensor:
    """Attention of old: heads before rows, and a padding mask that the first rows do not use."""
    h = torch.relu(m.a(x))
    q = h.view(len(x), 5, 2, 4).permute(2, 0, 1, 3).reshape(-1, 5, 4)
    mask = (x[..., 0] > 1.2)[:, None].expand(-1, 5, -1).repeat(2, 1, 1)
    scores = (q @ q.transpose(1, 2)).masked_fill(mask, -1e9).softmax(-1)
    return m.o((scores @ q).view(2, len(x), 5, 4).permute(1, 2, 0, 3).reshape(len(x), 5, 8).mean(1))


def chosen_by_all(m: Any, x: Tensor) -> Tensor:
    h = torch.relu(m.a(x))
    best = h.sum(-1).topk(2, 1).indices
    return m.o(h[torch.arange(len(x))[:, None].expand(-1, 2), best].mean(1))


def raw_view(m: Any, x: Tensor) -> Tensor:
    h = m.a(x).transpose(1, 2).clone()
    h[:, 0] = 1.0
    return m.o(torch.relu(h).mean(2))


def masked_class(m: Any, x: Tensor) -> Tensor:
    return m.o(torch.relu(m.a(x)).mean(1)).masked_fill(torch.tensor([False, False, False, True]), -1e9)


def unused(m: Any, x: Tensor) -> Tensor:
    h = torch.relu(m.a(x))
    m.side = torch.relu(m.b(h)).sum()
    return m.o(h.mean(1))


UNDERSTOOD = (
    last_token, kept_by_rows, last_token_of_its_length, best_tokens, gathered, class_token, masks, windows, steps_first,
    state_of_zeros, filled_in, through_a_view, memory_of_two, of_other_type, masked, looked_up, constant_number,
    masked_by_one_row, rows_selected, into_its_input, unused,
    heads_first, chosen_by_all, raw_view, masked_class,
)  # fmt: skip


@pytest.mark.parametrize("run", UNDERSTOOD, ids=lambda run: run.__name__)
def test_what_is_understood_is_shared_and_counts_as_a_loop_does(run: Callable[..., Tensor]) -> None:
    model, x = Net(run), data(31)
    with torch.no_grad():
        y = model(x.clone()).argmax(1)
    tape = tape_of(run)
    assert any(name not in ("input",) for name in tape.sites), tape.refused
    compute = nk.Compute(batch_rows=12, memory=2**16)  # several chunks, the last one smaller
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = nk.walk(model, (x, y), noise=nk.Noise(add=1.0), levels=LEVELS, draws=DRAWS, seed=7,
                        sites=list(tape.sites), compute=compute)  # fmt: skip
    assert "chunk_rows" in study.meta.plan  # of the engine that shares work
    for site in tape.sites:
        assert [r.correct for r in study.records if r.site == site] == counts(model, x, y, site), site
    assert len({r.correct for r in study.records}) > 2  # the noise does something


def test_where_rows_lie_is_found_though_all_of_them_are_equal() -> None:
    """A padding mask that no row uses, repeated for two heads: rows are inside of heads."""

    def unpadded(m: Any, x: Tensor) -> Tensor:
        h = torch.relu(m.a(x))
        mask = (x[..., 0] > 1e9).repeat(2, 1).view(2, len(x), 5)
        return m.o(h.masked_fill(mask[0, :, :, None], 0.0).mean(1))

    tape = tape_of(unpadded)
    (number,) = next(step.outputs for step in tape.steps if step.name == "repeat")
    assert (tape.row_dims[number], tape.outer[number]) == (0, 2)


def test_a_class_that_is_masked_is_no_tie() -> None:
    model, x = Net(masked_class), data(20)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        study = nk.walk(model, (x, model(x).argmax(1)), noise=nk.Noise(add=1.0), levels=LEVELS, draws=DRAWS, seed=7)
    assert study.meta.plan["ties"] < 0.5 and study.meta.plan["verification"]["worst"] < 1


def test_a_recording_holds_no_values() -> None:
    """What the model lets go while it is recorded is free: a step knows numbers of values, and constants only."""
    tape = tape_of(through_a_view)
    model = Net(through_a_view)
    known = {p.shape for p in (*model.parameters(), *model.buffers())}
    for step in tape.steps:
        for leaf in torch.utils._pytree.tree_leaves((step.args, step.kwargs)):
            assert not isinstance(leaf, Tensor) or leaf.shape in known or leaf.dim() == 0, (step.name, leaf.shape)


def test_recording_runs_each_operation_a_fixed_number_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linear in the depth: of the model itself three times, of each step three times, whatever follows a site."""
    counted = 0
    run = Step.run

    def counting(self: Step, values: Any, rows: int) -> None:
        nonlocal counted
        counted += 1
        run(self, values, rows)

    monkeypatch.setattr(Step, "run", counting)
    for depth in (4, 40):
        counted = 0
        layers = [layer for _ in range(depth) for layer in (nn.Linear(6, 6), nn.ReLU())]
        model, x = nn.Sequential(*layers, nn.Linear(6, 4)).eval(), torch.randn(4, 6)
        with nk.inject(model, None, example_input=x[:2]) as injected, torch.inference_mode():
            assert len(record_tape(injected, x).steps) == 2 * depth + 1
        assert counted == 3 * (2 * depth + 1)


def test_two_sites_of_one_value_are_two_values_of_a_recording() -> None:
    """Of attention by its kernel, the weighted sum is the result: noise at one is followed by the other's."""

    def attended(m: Any, x: Tensor) -> Tensor:
        h = m.a(x)
        return m.o(F.scaled_dot_product_attention(h, h, h).mean(1))

    tape = tape_of(attended, detail="attention")
    assert not tape.refused and {":weighted_sum#0", ":attention#0"} <= set(tape.sites)
    assert tape.sites[":weighted_sum#0"] < tape.sites[":attention#0"]

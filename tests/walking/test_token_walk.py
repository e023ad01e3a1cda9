"""Walks of language models: rows are sequences, whose tokens have noise of their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from look_alikes import CausalLM
from token_bits import Handed
from torch import Tensor

import noisykernels as nk

pytestmark = pytest.mark.usefixtures("one_thread")

IDS = torch.randint(0, 40, (6, 5), generator=torch.Generator().manual_seed(1))
SITES = ["model.blocks.0.mlp.0:linear#0", "model.head:linear#0"]
GRID: dict[str, Any] = dict(noise=nk.Noise(add=1.0), levels=[0.3, 3.0], draws=3, seed=4, sites=SITES, metric="nll")


def model() -> Handed:
    return Handed(CausalLM()).eval()


def data(left: int = 0, some: slice = slice(None)) -> Any:
    ids = IDS[some]
    mask, shifted = torch.ones_like(ids), torch.roll(ids, -1, 1)
    shifted[:, -1] = -100
    pad = lambda t, value: torch.nn.functional.pad(t, (left, 0), value=value)  # noqa: E731
    mask = pad(mask, 0)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    return {"input_ids": pad(ids, 0), "attention_mask": mask, "position_ids": places, "labels": pad(shifted, -100)}


def values(study: nk.Study) -> Tensor:
    return torch.tensor([r.value for r in study.records], dtype=torch.float64)


def test_records_are_those_of_a_loop_and_padding_changes_nothing() -> None:
    rows = nk.TokenRows(16)
    study = nk.walk(model(), data(), rows=rows, **GRID)
    net, batch = model(), data()
    found = []
    for record in study.records:
        with nk.inject(net, nk.Noise(add=record.level), where=record.site):
            with nk.noise_state(net, seed=4, rows=rows, draws=[record.draw]), torch.no_grad():
                logits = net(batch["input_ids"], batch["attention_mask"], batch["position_ids"])
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch["labels"], reduction="none")
        found.append(float(losses.sum(1).double().sum() / (batch["labels"] >= 0).sum()))
    torch.testing.assert_close(values(study), torch.tensor(found, dtype=torch.float64), rtol=1e-5, atol=1e-5)
    for other in (
        nk.walk(model(), data(left=3), rows=rows, **GRID),
        nk.walk(model(), data(), rows=rows, compute=nk.Compute(batch_rows=2, draws_per_pass=1), **GRID),
        nk.walk(model(), data(), rows=nk.TokenRows(16, range(6)), **GRID),
    ):
        torch.testing.assert_close(values(other), values(study), rtol=1e-5, atol=1e-5)
    plain = nk.walk(model(), data(), **GRID)
    assert not torch.allclose(values(plain), values(study), rtol=1e-4)
    assert study.meta.plan["tokens"] == 16 and "tokens" not in plain.meta.plan
    assert "why" not in study.meta.plan and study.meta.plan["verification"]["differing"] == {}  # work is shared


def test_a_search_and_a_store(tmp_path: Any) -> None:
    asked: dict[str, Any] = GRID | dict(levels=None, draws=None, sites=SITES[:1], at=nk.Ratio(1.2))
    rows = nk.TokenRows(16, range(10, 16))
    first = nk.walk(model(), data(), rows=rows, store=tmp_path / "a.db", search=nk.Search(rel_ci=0.5), **asked)
    again = nk.walk(model(), data(), rows=rows, store=tmp_path / "a.db", search=nk.Search(rel_ci=0.5), **asked)
    assert first.records == again.records and len(first.midpoints(at=nk.Ratio(1.2))) == 1
    with pytest.raises(Exception, match="tokens"):
        nk.walk(model(), data(), rows=nk.TokenRows(17, range(10, 16)), store=tmp_path / "a.db", **asked)


def test_what_a_walk_refuses() -> None:
    for rows, message in (
        (nk.TokenRows(16, [0]), "rows must hold one id for each of 6 rows, got 1"),
        (nk.TokenRows(16, None, [0, 1, 2, 3, 4]), "must say their sequences"),
        (nk.TokenRows(2**31), "there are 2 sequences, got 6"),
        (nk.TokenRows(3), "positions must lie below the length of 3"),
    ):
        with pytest.raises((ValueError, RuntimeError), match=f"^walk: .*{message}"):
            nk.walk(model(), data(), rows=rows, **GRID)
    with pytest.warns(UserWarning, match="every pass runs the whole model: rows are tokens"):
        nk.walk_parameter(
            model(), data(), lambda v: [nk.hardware.DAC(int(v), "row")], [2, 4], seed=4, rows=nk.TokenRows(16),
            sites=SITES, metric="nll", compute=nk.Compute(engine="shared"),
        )  # fmt: skip

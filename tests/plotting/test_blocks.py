"""The map of blocks: every site of a block is a cell with its number, and a bound where there is no midpoint."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from made_study import MIDPOINTS, made_study
from matplotlib.figure import Figure

from noisykernels.plotting import plot_blocks
from noisykernels.plotting.blocks import in_block
from noisykernels.stats.questions import Keep
from noisykernels.study import Study


def renamed(names: list[str]) -> Study:
    study = made_study(MIDPOINTS[: len(names)])
    table = dict(zip(study.meta.sites, names, strict=False))
    sites = tuple(table.get(name, name) for name in study.meta.sites)
    return Study([r._replace(site=table[r.site]) for r in study.records], replace(study.meta, sites=sites))


def test_every_site_of_a_block_is_a_cell() -> None:
    names = ["input", "stem:linear#0"] + [
        f"net.layers.{k}.{rest}" for k in (0, 1) for rest in ("attn.q:linear#0", "attn.k:linear#0", "norm:layer_norm#0")
    ]
    names[-1] = "net.layers.1:relu#0"
    study, ax = renamed(names), Figure().subplots()
    assert plot_blocks(study, ax) is ax
    points = {p.site: p for p in study.midpoints()}
    assert [t.get_text() for t in ax.get_yticklabels()] == ["net.layers.0", "net.layers.1"]
    assert ax.get_title("left").startswith("midpoint by accuracy\n")
    assert ", at=keep:0.9\n" in plot_blocks(study.asking(Keep(0.9)), Figure().subplots()).get_title("left")
    assert [t.get_text() for t in ax.get_xticklabels()] == ["attn.q linear", "attn.k linear", "norm", "relu"]
    texts = {(t.get_position()[0], t.get_position()[1]): t.get_text() for t in ax.texts}
    assert len(texts) == 6 and (3.5, 0.5) not in texts and (2.5, 1.5) not in texts
    q = points["net.layers.1.attn.q:linear#0"]
    assert texts[0.5, 1.5] == f"{q.level:.2g}"
    lost = points["net.layers.1.attn.k:linear#0"]
    assert lost.status == "below" and texts[1.5, 1.5] == f"< {lost.high:.2g}"
    colours = ax.collections[0].get_array()
    assert colours[1, 0] == pytest.approx(q.level) and np.ma.is_masked(colours[0, 3])
    (left, right) = ax.collections[0].get_clim()
    assert left <= q.level <= right


def test_sites_without_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="plot_blocks: expected sites of blocks"):
        plot_blocks(made_study())


def test_where_a_block_ends() -> None:
    assert in_block("layers.2.heads.1.q:linear#3") == ("layers.2", "heads.1.q:linear#3")
    assert in_block("0:linear#0") == ("0", ":linear#0") and in_block("a.b:matmul#0") is None

"""Pictures of number formats."""

from __future__ import annotations

import pytest
import torch
from format_networks import COST, made_sweep, made_up

from noisykernels.experiments import FormatResult, LinearPredictor, Sweep, design_space, plot_running_sums
from noisykernels.plotting import plot_agreement, plot_front


def test_pictures() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    truth = made_up(8)
    sweep = Sweep([FormatResult(f, truth(f), truth(f), COST.speedup(f), 1.0) for f in design_space()], 0.9, 100, "net")
    ax = plot_front(sweep, marked=("M7E6",))
    floats, fixed, front = ax.lines[:3]
    assert len(floats.get_xdata()) == 161 and len(fixed.get_xdata()) == 182 and ax.get_xscale() == "log"
    assert list(front.get_xdata()) == [r.speedup for r in sweep.front()]
    assert {t.get_text() for t in ax.texts} == {"M7E6", str(sweep.fastest().format)}
    assert sweep.plot(ax) is ax.figure
    line = LinearPredictor.fit([sweep])
    ax = plot_agreement([sweep, made_sweep([(0.5, 0.5)])], line)
    assert len(ax.lines) == 3 and "correlation 1.00" in ax.get_legend().get_texts()[-1].get_text()
    ax = plot_running_sums(torch.ones(9), torch.ones(9), {"float": None, "M2E5": "M2E5"})
    assert [list(one.get_ydata())[-1] for one in ax.lines] == [9, 8]
    matplotlib.pyplot.close("all")

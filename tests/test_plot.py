"""Pictures: every site, band, bar and arrow is there, on the caller's axes, and nothing global."""

from __future__ import annotations

import sys

import matplotlib
import numpy as np
import pytest
from made_study import MIDPOINTS, SITES, made_study
from matplotlib.figure import Figure

from noisykernels.plot import (
    FAMILIES,
    family_of,
    plot_curves,
    plot_profile,
    plot_study,
    short_name,
    short_names,
)
from noisykernels.study import Record, Study


@pytest.fixture(scope="module")
def study():
    return made_study()


@pytest.fixture
def ax():
    """Axes of a figure that pyplot does not know."""
    return Figure(figsize=(6, 5)).subplots()


def lines(ax):
    """Lines of the sites, by label."""
    return {x.get_label(): x for x in ax.get_lines() if not x.get_label().startswith("_")}


def test_names():
    expected = ["input", "conv1", "norm1", "relu1", "pool1", "conv2", "norm2", "relu2", "pool2",
                "fc1", "norm3", "relu3", "fc2", "norm4", "relu4", "fc3"]  # fmt: skip
    assert short_names(SITES) == expected
    assert short_name("features.3:conv2d#0") == "features.3 conv2d"
    assert short_name("features.conv_a:conv2d#2") == "features.conv_a#2"
    assert short_name("conv.body:relu#0") == "conv.body relu"  # the folder's name says nothing
    assert short_name(":relu#1") == "relu#1" and short_name("odd") == "odd"
    assert [family_of(s) for s in SITES[:5]] == ["input", "conv", "norm", "activation", "pool"]
    kinds = {"conv_transpose2d": "conv", "group_norm": "norm", "leaky_relu": "activation",
             "adaptive_avg_pool2d": "pool", "matmul": "linear", "lstm": "other"}  # fmt: skip
    assert {k: family_of(f"a.b:{k}#0") for k in kinds} == kinds


def test_curves_are_drawn_as_they_are(study, ax):
    assert plot_curves(study, ax) is ax
    curves = study.curves()
    drawn = lines(ax)
    assert list(drawn) == [f"{i}  {n}" for i, n in enumerate(short_names(SITES))]
    for c, line, fill in zip(curves, drawn.values(), ax.collections, strict=True):
        assert np.array_equal(line.get_xdata(), c.levels)
        assert np.array_equal(line.get_ydata(), c.mean)
        corners = fill.get_paths()[0].vertices[:, 1]
        assert corners.min() == c.low.min() and corners.max() == c.high.max()
    level = [x.get_ydata()[0] for x in ax.get_lines() if x.get_label().startswith("_")]
    assert level == [study.meta.clean, study.meta.floor]
    # above the upper line and below the lower one, off the curves
    assert {t.get_text(): t.get_va() for t in ax.texts} == {
        "clean 0.900": "bottom", "floor 0.1": "top"}  # fmt: skip
    assert ax.get_xscale() == "log" and ax.get_ylim() == (0, 1)
    assert "units of the value" in ax.get_xlabel() and "accuracy" in ax.get_ylabel()
    assert len(ax.get_legend().get_texts()) == 16
    # dark to light: the order can be read without colours
    grey = [np.dot(matplotlib.colors.to_rgb(x.get_color()), (0.3, 0.59, 0.11))
            for x in drawn.values()]  # fmt: skip
    assert all(np.diff(grey) > 0)


def test_curves_of_some_sites(study, ax):
    plot_curves(study, ax, sites=["conv2", 0, "fc3:linear#0"], legend=False)
    assert list(lines(ax)) == ["0  input", "5  conv2", "15  fc3"] and ax.get_legend() is None
    with pytest.raises(ValueError, match="'conv9' is not one of"):
        plot_curves(study, ax, sites=["conv9"])


def test_profile_shows_every_midpoint(study, ax):
    assert plot_profile(study, ax) is ax
    points = study.midpoints()
    bars = {}
    for container in ax.containers:
        if container.get_label() not in FAMILIES:
            continue
        data, _, (segments,) = container.lines
        assert data.get_color() == FAMILIES[container.get_label()][0]
        for x, y, ends in zip(*data.get_data(), segments.get_segments(), strict=True):
            assert family_of(points[int(x)].site) == container.get_label()
            bars[int(x)] = (y, *ends[:, 1])
    assert sorted(bars) == [i for i in range(16) if i not in (6, 14)]
    for i, bar in bars.items():
        assert bar == pytest.approx((points[i].level, points[i].low, points[i].high), rel=1e-12)
    arrows = {a.xy: a.get_position()[1] for a in ax.texts}
    assert arrows == {(6, 0.01): -22, (14, 1e4): 22}  # down from the smallest, up from the largest
    bottom, top = ax.get_ylim()
    assert ax.get_yscale() == "log" and bottom < 0.01 and top > 1e4
    assert [t.get_text() for t in ax.get_xticklabels()] == short_names(SITES)
    legend = [t.get_text() for t in ax.get_legend().get_texts()]
    assert legend == ["input", "conv", "linear", "norm", "pool", "activation",
                      "beyond tested levels"]  # fmt: skip


def test_open_interval_runs_to_the_edge(ax):
    levels = [10.0, 30.0, 100.0, 300.0, 800.0]
    study = made_study([770.0], levels=levels, rows=100, draws=1)
    counts = zip(levels, [90, 88, 80, 65, 49], strict=True)
    study = Study([Record.counted("input", 0, v, 0, 100, n) for v, n in counts], study.meta)
    (p,) = study.midpoints()
    assert p.status == "ok" and p.high == np.inf
    plot_profile(study, ax)
    (segment,) = ax.containers[0].lines[2][0].get_segments()
    assert segment[:, 1] == pytest.approx([p.low, 800])


def test_linear_axis(ax):
    study = made_study(levels=np.linspace(0, 2, 11), noise={"add": 0.0, "mul": 1.0})
    plot_curves(study, ax)
    assert ax.get_xscale() == "linear" and next(iter(lines(ax).values())).get_xdata()[0] == 0
    assert "fraction" in ax.get_xlabel()
    other = Figure().subplots()
    assert plot_profile(study, other).get_yscale() == "linear"


def test_level_zero_is_left_out_of_a_log_axis(ax):
    plot_curves(made_study(levels=[0.0, 0.1, 1.0, 10.0]), ax)
    assert all(list(x.get_xdata()) == [0.1, 1, 10] for x in lines(ax).values())


def test_floor_and_sites_reach_the_pictures(study):
    axes = Figure().subplots(1, 2)
    plot_study(study, axes, floor=0.6, sites=[1])
    assert list(lines(axes[0])) == ["1  conv1"]
    shown = [c.lines[0].get_ydata()[0] for c in axes[1].containers if c.get_label() == "input"]
    assert shown == [study.midpoints(0.6)[0].level] != [study.midpoints()[0].level]


def test_callers_axes_and_nothing_global(study, monkeypatch):
    """With axes given, pyplot is not even asked; the caller's figure comes back."""
    matplotlib.get_backend()  # resolves the default once, with pyplot
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    before = dict(matplotlib.rcParams)
    figure = Figure()
    axes = figure.subplots(1, 2)
    assert study.plot(axes) is figure and study.plot(list(axes)) is figure
    assert study.plot(axes[0]) is figure
    assert dict(matplotlib.rcParams) == before
    with pytest.raises(ValueError, match="expected two"):
        plot_study(study, axes[:1])


def inside(box, outer) -> bool:
    return (box.x0 >= outer.x0 - 1 and box.x1 <= outer.x1 + 1
            and box.y0 >= outer.y0 - 1 and box.y1 <= outer.y1 + 1)  # fmt: skip


def test_picture_of_1200_by_500_pixels_has_no_overlap(study, tmp_path, monkeypatch):
    """Rendered for real: all text lies within the picture, and no two texts overlap."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("Agg")
    monkeypatch.setattr(pyplot, "show", lambda *a, **k: pytest.fail("plt.show was called"))
    figure = study.plot()
    try:
        assert matplotlib.get_backend().lower() == "agg"
        path = tmp_path / "study.png"
        figure.savefig(path, dpi=100)
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        image = pyplot.imread(path)
        assert image.shape[:2] == (500, 1200) and image[..., :3].std() > 0.05
        boxes = []
        for ax in figure.axes:
            texts = [ax.title, ax.xaxis.label, ax.yaxis.label, *ax.get_legend().get_texts(),
                     *(t for t in ax.texts if t.get_text())]  # fmt: skip
            boxes += [(t.get_text(), t.get_window_extent()) for t in texts if t.get_text()]
            boxes.append(("legend", ax.get_legend().get_window_extent()))
        whole = figure.bbox
        for i, (text, box) in enumerate(boxes):
            assert inside(box, whole), text
            for other, box2 in boxes[i + 1 :]:
                if "legend" not in (text, other):
                    assert not box.padded(-1).overlaps(box2.padded(-1)), (text, other)
        right = figure.axes[1]
        legend = right.get_legend().get_window_extent()
        for x, p in enumerate(study.midpoints()):
            y = p.level if p.status == "ok" else {"none": p.low, "below": p.high}[p.status]
            assert not legend.contains(*right.transData.transform((x, y))), p.site
    finally:
        pyplot.close(figure)


def test_every_midpoint_kind_is_in_the_made_up_study(study):
    """The assertions above see all three statuses."""
    assert {p.status for p in study.midpoints()} == {"ok", "none", "below"}
    assert len(MIDPOINTS) == 16

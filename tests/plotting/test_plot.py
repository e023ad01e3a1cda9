"""Pictures: every site, band, bar and arrow is there, on the caller's axes, and nothing global."""

from __future__ import annotations

import io
import sys
import warnings
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
from made_study import MIDPOINTS, SITES, made_study
from matplotlib.figure import Figure

from noisykernels.plotting import plot_compare, plot_curves, plot_heat_map, plot_mixed_map, plot_profile, plot_study
from noisykernels.plotting.style import FAMILIES, family_of, short_name, short_names
from noisykernels.stats import Record
from noisykernels.stats.midpoint import described
from noisykernels.study import Study


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
    with pytest.raises(ValueError, match="axes must be two"):
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


# Maps ---------------------------------------------------------------------------------------------


def cells(ax):
    """Per row of a map: edges of its cells, and the values in them."""
    meshes = [c for c in ax.collections if hasattr(c, "get_coordinates")]
    return [(m.get_coordinates()[0, :, 0], m.get_array().ravel()) for m in meshes]


def labels(ax):
    return [t.get_text() for t in ax.get_legend().get_texts()]


def test_heat_map_has_every_cell(study, ax):
    assert plot_heat_map(study, ax) is ax
    rows = cells(ax)
    assert len(rows) == 16
    for (edges, values), c in zip(rows, study.curves(), strict=True):
        assert np.array_equal(values, c.mean) and not np.ma.is_masked(values)
        np.testing.assert_allclose(np.log10(edges), np.linspace(-2.25, 4.25, 14), atol=1e-12)
    assert [t.get_text() for t in ax.get_yticklabels()] == short_names(SITES) and ax.get_ylim() == (15.5, -0.5)
    marks = {x.get_label(): x for x in ax.get_lines() if not x.get_label().startswith("_")}
    points = study.midpoints()
    ok = [(p.level, i) for i, p in enumerate(points) if p.status == "ok"]
    assert list(zip(*marks["midpoint, interval 95 %"].get_data(), strict=True)) == ok
    assert [marks[f"midpoint {w} all levels"].get_data()[1].tolist() for w in ("below", "above")] == [[6], [14]]
    assert "not evaluated" not in labels(ax) and ax.get_xscale() == "log"
    bar = ax.figure.axes[1]
    assert bar.get_ylabel() == "accuracy (fraction of rows)"


def test_heat_map_says_what_was_not_run(study, ax):
    def status(r):
        return "proved" if r.level == 0.01 else "settled" if r.level > 5e3 and r.draw == 1 else "evaluated"

    kept = [r._replace(status=status(r)) for r in study.records if r.site_index != 3 or r.level < 900]
    plot_heat_map(Study(kept, study.meta), ax)
    assert labels(ax)[:3] == ["not evaluated", "proved", "settled"]
    masked = [np.ma.getmaskarray(values).tolist() for _, values in cells(ax)]
    assert masked[3] == [False] * 10 + [True] * 3 and not any(map(any, masked[:3] + masked[4:]))
    marks = {x.get_label(): x.get_data() for x in ax.get_lines()}
    assert [len(set(marks["proved"][1])), len(set(marks["settled"][1]))] == [16, 15]
    assert set(marks["proved"][0]) == {0.01} and set(marks["settled"][0]) == {1e4}
    assert ax.patch.get_hatch()


def searched(study):
    """As an adaptive study: other levels at each site."""
    some = [r for r in study.records if r.level < 10 ** (4 - 0.3 * r.site_index)]
    found = tuple(described(p) for p in study.midpoints())
    return Study(some, replace(study.meta, midpoints=found, plan={"evaluations": 5}))


def test_heat_map_of_an_adaptive_study_has_each_sites_own_levels(study, ax):
    study = searched(study)
    plot_heat_map(study, ax)
    for (edges, values), c in zip(cells(ax), study.curves(), strict=True):
        assert np.array_equal(values, c.mean) and np.all(edges[:-1] < c.levels) and np.all(c.levels < edges[1:])
    assert labels(ax)[0] == "not evaluated"
    other = Figure().subplots()
    assert plot_curves(study, other).get_title() == "up to 2000 rows, up to 3 draws, band 95 %"


def test_far_bounds_of_a_search_leave_room_for_the_rest(study):
    """Multiplicative noise, on a linear axis else; one site never falls up to 1e18, one is below 1e-12."""
    points = [described(p) for p in study.midpoints()]
    points[14]["low"], points[6]["high"] = 1e18, 1e-12
    far = [Record.counted(SITES[14], 14, v, 0, 2000, 1800) for v in (1.0, 1e18)]
    records = [r for r in study.records if r.site_index != 14] + far
    meta = replace(study.meta, midpoints=tuple(points), axis="linear", levels=(*study.meta.levels, 1e18))
    far_study = Study(records, meta)
    found = [p.level for p in study.midpoints() if p.status == "ok"]
    low, high = min(found) / 100, max(found) * 100
    for draw, which in ((plot_heat_map, "x"), (plot_curves, "x"), (plot_profile, "y")):
        axes = draw(far_study, Figure().subplots())
        left, right = getattr(axes, f"get_{which}lim")()
        assert getattr(axes, f"get_{which}scale")() == "log"
        assert low / 10 < left < min(found) and max(found) < right < 10 * high, draw
    both = plot_compare(far_study.compare(study), Figure().subplots())
    assert both.get_ylim()[1] < 100 * high and both.get_ylim()[0] > low / 100


def test_heat_map_of_odd_studies(study, ax):
    linear = made_study(levels=np.linspace(0, 2, 11), noise={"add": 0.0, "mul": 1.0})
    plot_heat_map(linear, ax)
    assert ax.get_xscale() == "linear"
    np.testing.assert_allclose(cells(ax)[0][0], np.linspace(-0.1, 2.1, 12), atol=1e-12)
    for levels in ([0.0, 1.0], [1.0]):
        other = Figure().subplots()
        plot_heat_map(made_study(levels=levels), other)
        assert [len(values) for _, values in cells(other)] == [1] * 16
    with pytest.raises(ValueError, match="that was evaluated"):
        plot_heat_map(made_study(levels=[0.0]), ax)
    with pytest.raises(ValueError, match="expected a study with records"):
        plot_heat_map(Study([], study.meta), ax)


RATIOS = [0.0, 0.25, 1.0]


@pytest.fixture(scope="module")
def mixed():
    return [made_study([0.5 * 2**i, 1e7, 0.002], seed=i) for i in range(3)]


def test_mixed_map_of_all_sites(mixed, ax):
    assert plot_mixed_map(mixed[::-1], RATIOS[::-1], ax) is ax
    drawn = lines(ax)
    assert list(drawn) == ["0  input", "1  conv1", "2  norm1"] and labels(ax) == list(drawn)
    assert drawn["0  input"].get_xdata().tolist() == RATIOS
    assert drawn["0  input"].get_ydata().tolist() == [s.midpoints()[0].level for s in mixed]
    bounds = [x.get_ydata().tolist() for x in ax.get_lines() if x.get_marker() in "^v" and x.get_ls() == "None"]
    far = 100 * max(s.midpoints()[0].level for s in mixed)  # of 10,000: bounds are drawn no further
    assert [b for b in bounds if b] == [[far] * 3, [0.01] * 3]
    assert ax.get_yscale() == "log" and "ratio" in ax.get_xlabel()


def test_mixed_map_of_a_site(mixed, ax):
    plot_mixed_map(mixed[::-1], RATIOS[::-1], ax, site="input")
    for (_, values), s in zip(cells(ax), mixed, strict=True):
        assert np.array_equal(values, s.curves()[0].mean)
    path = next(x for x in ax.get_lines() if len(x.get_xdata()) == 3)
    assert path.get_ydata().tolist() == RATIOS
    assert path.get_xdata().tolist() == [s.midpoints()[0].level for s in mixed]
    assert ax.get_ylim() == (-0.125, 1.375) and "input" in ax.get_xlabel() and "ratio" in ax.get_ylabel()


def test_mixed_map_of_searches(ax):
    studies = [searched(made_study(seed=i)) for i in range(3)]
    plot_mixed_map(studies, RATIOS, ax, site=0)
    assert [len(values) for _, values in cells(ax)] == [12] * 3  # all but the last level, 10,000
    assert ax.get_xlim()[1] == 100 * max(s.midpoints()[0].level for s in studies)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"ratios": [0.0, 0.5]}, "one ratio for each of 3"), ({"ratios": [0.0, 0.5, 0.5]}, "one ratio for each"),
        ({"ratios": [0.0, 0.5, 1.5]}, "each item of ratios must be a number from 0 to 1, got 1.5"),
        ({"ratios": [0.0, 0.5, float("nan")]}, "from 0 to 1, got nan"),
        ({"studies": [], "ratios": []}, "one ratio for each of 0"), ({"site": "fc9"}, "'fc9' is not one of"),
        ({"studies": [made_study([1.0]), *[made_study([1.0, 2.0])] * 2]}, "the same sites"),
    ],
)  # fmt: skip
def test_mixed_map_refuses(mixed, change, text):
    with pytest.raises(ValueError, match=text):
        plot_mixed_map(**{"studies": mixed, "ratios": RATIOS, **change})


def test_picture_of_a_comparison(study, ax):
    other = made_study([2 * v if i % 2 else v for i, v in enumerate(MIDPOINTS)], seed=4)
    both = study.compare(other, ("one", "two"))
    assert plot_compare(both, ax) is ax and both.plot(ax) is ax.figure
    assert labels(ax)[:3] == ["one", "two", "not told apart"]
    filled = {c.lines[0].get_xdata()[0]: c.lines[0].get_markerfacecolor() != "white" for c in ax.containers}
    assert len(filled) == 28
    assert all(filled[i + side] == (i % 2 == 1) for i in range(16) if i not in (6, 14) for side in (-0.15, 0.15))
    assert len({a.xy for a in ax.texts}) == 4  # the bounds of sites 6 and 14
    assert ax.get_yscale() == "log" and [t.get_text() for t in ax.get_xticklabels()] == short_names(SITES)


def test_every_midpoint_kind_is_in_the_made_up_study(study):
    """The assertions above see all three statuses."""
    assert {p.status for p in study.midpoints()} == {"ok", "none", "below"}
    assert len(MIDPOINTS) == 16


def test_many_sites_have_room() -> None:
    """A bar of colours in place of a legend, names of some of them, nothing that collapses."""
    one = made_study(MIDPOINTS[:2], draws=1)
    names = [f"model.layers.{i}.self_attn.q_proj:linear#0" for i in range(150)]
    records = [r._replace(site=name, site_index=i) for i, name in enumerate(names) for r in one.records[:13]]
    figure = plot_study(Study(records, replace(one.meta, sites=tuple(names))))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(io.BytesIO())
    curves, profile, bar = figure.axes
    assert curves.get_legend() is None and len(curves.lines) > 150
    told = [t.get_text() for t in bar.get_yticklabels()]
    assert 12 <= len(told) <= 24 and told[0].startswith("0  model.layers.0") and bar.yaxis_inverted()
    assert 30 <= len(profile.get_xticks()) <= 60
    assert len(plot_study(one).axes) == 2 and plot_study(one).get_size_inches().tolist() == [12.0, 5.0]

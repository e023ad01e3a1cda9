"""A study as one HTML file that explains itself: readable offline, on paper, and years later.

This file must not know torch.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from noisykernels._util.arguments import check_arguments
from noisykernels._util.text import covers
from noisykernels.plotting.curves import plot_curves, plot_profile
from noisykernels.plotting.maps import plot_heat_map
from noisykernels.stats.midpoint import Midpoint, midpoint_cells
from noisykernels.stats.questions import HALF
from noisykernels.stats.records import Meta
from noisykernels.stats.views import StudyLike
from noisykernels.study.html_page import picture, shown, table, text, versions, write_page

__all__ = ["report"]


# status of a record: what it says of the cell
STATUSES = {
    "evaluated": "run, and counted",
    "proved": "not run: the noise was shown to change no prediction, so the counts are those without noise",
    "settled": "not run in full: counts are of the rows looked at, accuracies are estimates for all rows",
}


CROSSES = {True: "Half-way: where the measured curve crosses.", False: "Crossing: the same, of the measured curve."}


def report(
    study: StudyLike, path: str | os.PathLike[str], title: str | None = None, *, command: str | None = None
) -> Path:
    """Writes a study as one HTML file; an existing file is replaced whole or not at all.

    In it: what was asked, the weakest and the strongest site, the midpoints with their intervals, curves, profile and
    heat map, how the cells were come by, and how to run the study again.

    Args:
        study: the study.
        path: of the file.
        title: None names the model and the data.
        command: the command that ran the study, if a command did.

    Returns:
        The path.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        ValueError: no records; a question that the clean value leaves no answer, so there are no midpoints.

    Example:
        >>> import tempfile
        >>> from noisykernels.stats import Meta, Record
        >>> from noisykernels.study import Study
        >>> meta = Meta(seed=0, noise={"add": 1.0}, levels=(0.1, 1.0, 10.0), draws=(0,), rows=100, clean_correct=90,
        ...             classes=10, sites=("input",), stream_version=1, model="mlp")
        >>> counts = zip(meta.levels, (88, 50, 11), strict=True)
        >>> study = Study([Record.counted("input", 0, v, 0, 100, c) for v, c in counts], meta)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     page = report(study, folder + "/report.html").read_text()
        >>> page[:15], "<title>mlp" in page
        ('<!DOCTYPE html>', True)
    """
    check_arguments(report, locals())
    if not study.records:
        raise ValueError("report: expected a study with records, got none")
    m, points, curves = study.meta, study.midpoints(), study.curves()  # once, for all pictures
    heading = title if title is not None else " on ".join(filter(None, (m.model, m.data))) or "Noise study"
    rows = [[str(p.site_index), p.site, *midpoint_cells(p)] for p in points]
    counts = Counter(r.status for r in study.records)
    cells = [[status, f"{n:,}", STATUSES.get(status, "")] for status, n in sorted(counts.items())]
    what, word = m.parameter or "noise level", m.at.word
    parts = [
        f'<p class="summary">{text(_summary(points, m))}</p>',
        "<h2>What was asked</h2>",
        table([], _asked(study)),
        f"<h2>{word.capitalize()} of each site</h2>",
        f"<p>{text(_meaning(study))} {text(CROSSES[m.at == HALF])}</p>",
        table(
            ["#", "site", word, "95 % interval", "half-way" if m.at == HALF else "crossing", "status"],
            rows,
            numbers=(0, 2, 3, 4),
        ),
        f"<h2>{text(m.metric[:1].upper() + m.metric[1:])} against {text(what)}</h2>",
        picture(
            lambda figure: plot_curves(study, figure.subplots(), curves=curves, points=points),
            (9.5, 4.8),
            f"{m.metric} of each site against {what}",
        ),
        "<h2>Layer profile</h2>",
        picture(
            lambda figure: plot_profile(study, figure.subplots(), points=points),
            (9.5, 4.8),
            f"{word} of each site in execution order",
        ),
        "<h2>Heat map</h2>",
        picture(
            lambda figure: plot_heat_map(study, figure.subplots(), curves=curves, points=points),
            (9.5, 1.9 + 0.27 * len(points)),
            f"{m.metric} over sites and levels",
        ),
        "<h2>How the cells were come by</h2>",
        f"<p>A cell is one site at one {'value' if m.parameter else 'level'} under one draw of the noise.</p>",
        table(["status", "cells", "meaning"], cells, numbers=(1,)),
        "<h2>How to run it again</h2>",
        f"<pre>{text(command)}</pre><p>or, in Python:</p>" if command else "",
        f"<pre>{text(_snippet(study))}</pre>",
        "<p>Noise depends on nothing but seed, site, draw, row and element. Predictions are the same under the same "
        "contraction plan; under another one those at a decision boundary may differ by rounding.</p>",
        "<h2>Plan and versions</h2>",
        table([], [[k, shown(v)] for k, v in [*m.plan.items(), ("noise stream", m.stream_version), *versions()]]),
    ]
    return write_page(path, heading, parts)


def _meaning(study: StudyLike) -> str:
    """What a midpoint or tolerance is, and what stands in its place."""
    m = study.meta
    if m.rising:
        return (
            f"The {m.parameter} at which {m.metric} {'is' if m.at == HALF else _moved(m)} {m.at.said}, and its 95 % "
            "interval, which speaks of the "
            f"randomness on these data. >: not even {_there(m)} at this value; <: still above {_there(m)} at it."
        )
    return (
        f"The {m.parameter or 'noise level'} at which {m.metric} {_moved(m)} {m.at.said}, and its 95 % interval, which "
        f"speaks of the noise's randomness on these data. >: not {_there(m)} up to this level; <: already at this "
        "level; ?: the search was stopped."
    )


def _moved(m: Meta) -> str:
    """Which way a measure goes when it gets worse."""
    return "has fallen" if m.higher_is_better else "has risen"


def _there(m: Meta) -> str:
    """As far as is asked."""
    return "half-way" if m.at == HALF else "so far"


def _summary(points: Sequence[Midpoint], m: Meta) -> str:
    """The weakest and the strongest site, in words."""
    ranks = {False: -math.inf, True: math.inf}
    ranked = sorted(
        [p for p in points if p.status != "open"] or points,
        key=lambda p: (p.level, p.low) if p.status == "ok" else (ranks[p.above], p.low if p.above else p.high),
    )
    weakest, strongest = (ranked[-1], ranked[0]) if points[0].rising else (ranked[0], ranked[-1])
    text = f"Without noise the {m.metric} is {m.clean:.4f}. "
    if len(points) == 1:
        return f"{text}{weakest.site} {_stands(weakest, m)}."
    text += f"The weakest of {len(points)} sites is {weakest.site}: it {_stands(weakest, m)}. "
    text += f"The strongest is {strongest.site}: it {_stands(strongest, m)}"
    if weakest.status == strongest.status == "ok" and min(weakest.level, strongest.level) > 0:
        ratio = strongest.level / weakest.level
        text += f", {ratio:.3g} times as much" if ratio >= 1 else f", 1/{1 / ratio:.3g} as much"
    return text + "."


def _stands(p: Midpoint, m: Meta) -> str:
    verb, moved = ("falls", "fallen") if m.higher_is_better else ("rises", "risen")
    far = "half-way" if m.at == HALF else m.at.said
    if p.status == "open":
        return f"{verb} {far} between {p.low:.4g} and {p.high:.4g}, if at all: the search was stopped"
    if p.rising and p.status != "ok":
        better, come = ("above", "has not risen") if m.higher_is_better else ("below", "has not fallen")
        place = "half-way" if m.at == HALF else f"{p.target:.4g}"
        return f"{'stands' if p.status == 'none' else come} {better} {place} " + (
            f"even at {p.high:.4g}" if p.status == "none" else f"up to {p.low:.4g}"
        )
    if p.status == "none":
        return f"does not {verb[:-1]} {far} up to level {p.low:.4g}"
    if p.status == "below":
        at = f"level {p.high:.4g}" if math.isfinite(p.high) else "every level"
        return f"has {moved} {far} already at {at}"
    interval = f"95 % interval {p.low:.4g} to {p.high:.4g}"
    place = f"half-way to the floor of {p.floor:.3g}" if m.at == HALF else far
    if p.rising:
        return f"{'is' if m.at == HALF else _moved(m)} {place} at {p.level:.4g} ({interval})"
    return f"{verb} {place} at level {p.level:.4g} ({interval})"


def _asked(study: StudyLike) -> list[list[str]]:
    m = study.meta
    span = f"from {min(m.levels):.4g} to {max(m.levels):.4g}"
    search = f"searched for each site, {len(m.levels)} looked at, {span}"
    return [
        ["model", m.model or "not said"],
        ["data", m.data or "not said"],
        ["rows", _rows_of(m)],
        ["parameter", f"{m.parameter}; larger is {m.noise.get('larger')}"]
        if m.parameter
        else ["noise at level 1", shown(m.noise)],
        ["where", f"{m.target}s, {_at_once(study)}"],
        *(["covered", line] for line in covers(m.plan.get("covered", {}))),
        ["seed", str(m.seed)],
        ["values" if m.parameter else "levels", search if m.midpoints else f"{len(m.levels)} {span}, {m.axis} axis"],
        ["draws", f"up to {len(m.draws)}, as many as needed" if m.midpoints else str(len(m.draws))],
        ["floor", "not known" if m.floor is None else f"{m.floor:.4g}, the {m.metric} taken for unbounded noise"],
        *([] if m.at == HALF else [["question", f"{m.at}: where the {m.metric} {_moved(m)} {m.at.said}"]]),
    ]


def _at_once(study: StudyLike) -> str:
    """Whether sites were noisy alone or together, and how many."""
    m, walked = study.meta, len({r.site for r in study.records})
    if "groups" in m.plan:
        return f"all sites of a group at a time: {walked} of {len(m.sites)} groups"
    return f"one site at a time: {walked} of {len(m.sites)} sites"


def _snippet(study: StudyLike) -> str:
    """Python that runs the study again, but for what it cannot know: the model and the data."""
    m = study.meta
    walked = list(dict.fromkeys(r.site for r in study.records))
    said = ((name, " ".join(text.split()) or "not said") for name, text in (("model", m.model), ("data", m.data)))
    what = [f"# {name}: {text}" for name, text in said]  # on one line each: it must stay a comment
    counted = list(m.draws) == list(range(len(m.draws)))
    draws = f"draws={len(m.draws) if counted else list(m.draws)!r},"
    settings = [f"seed={m.seed},", *([f"sites={walked!r},"] if len(walked) < len(m.sites) else [])]
    sizes = [f"{k}={m.plan[k]!r}" for k in ("batch_rows", "draws_per_pass", "threads", "memory") if k in m.plan]
    settings += [f"compute=nk.Compute({', '.join(sizes)}),"] if sizes else []
    settings += [
        f"{k}={m.plan[k]!r},"
        for k in ("plateaus", "groups", "root", "detail", "arrays")
        if k in m.plan and (k, m.plan[k]) != ("arrays", "module")
    ]
    settings += [] if m.floor is None else [f"floor={m.floor!r},"]
    settings += [f"axis={m.axis!r},"] + ([] if m.at == HALF else [f"at={str(m.at)!r},"])
    if "metric" in m.plan:
        code = m.plan.get("metric_code")
        settings.append(f"metric={code or 'metric'},")
        if code is None:
            what.append(f"# metric: that of the {m.metric}")
    if m.parameter:
        what.append("# make: from a value of the parameter to the devices of a contraction")
        lines = [f"make, {list(m.levels)!r},", f"name={m.parameter!r}, larger={m.noise.get('larger')!r},", draws]
        return _call("walk_parameter", what, [*lines, *settings])
    noise = {k: m.noise[k] for k in ("add", "mul", "kind", "fold") if k in m.noise}
    name, where = "Noise", [] if m.target == "activation" else [f'target="{m.target}",']
    noise["relative"] = m.noise.get("relative")
    if m.target == "weight":
        name = "WeightNoise"
    else:
        noise["order"] = m.noise.get("order") or ("add_mul" if m.noise.get("mode") == "add_mul" else "mul_add")
    standard = {"add": 0.0, "mul": 0.0, "kind": "gaussian", "fold": False, "order": "mul_add", "relative": None}
    known = {
        k: "..." if str(v).startswith("tensor") else repr(v) for k, v in noise.items()
    }  # a tensor's values are not
    if isinstance(noise["relative"], Mapping):
        known["relative"] = "ranges"
        what.append("# ranges: nk.noise.Ranges.of(study.meta.noise['relative']) of this study")
    terms = ", ".join(f"{k}={known[k]}" for k, v in noise.items() if v != standard[k])
    lines = [f"noise=nk.{name}({terms}),", *where]
    if not m.midpoints:
        lines += [f"levels={list(m.levels)!r},", draws]
    if m.midpoints:
        what.append("# add search=nk.Search(rel_ci=...) if another interval was asked for than 5 % to either side")
    return _call("walk", what, [*lines, *settings])


def _rows_of(m: Meta) -> str:
    """How many rows there are, and of a share of them how many count."""
    if m.clean_value is not None:
        return f"{m.rows:,}"
    return f"{m.rows:,} ({m.clean_correct:,} correct without noise), {m.classes} classes"


def _call(function: str, what: Sequence[str], lines: Sequence[str]) -> str:
    code = [
        "import noisykernels as nk",
        "",
        *what,
        f"study = nk.{function}(",
        "    model, data,",
        *(f"    {x}" for x in lines),
        ")",
    ]
    return "\n".join(code)

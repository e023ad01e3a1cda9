"""Recorded tables, exports, reports, pictures and frames of studies."""

from __future__ import annotations

import functools
import json
import re
import tempfile
from pathlib import Path
from typing import Any

from recorded_digests import OF_THE_MACHINE, Cases, Parts, six, twelve
from recorded_models import GRID, NOISES, WEIGHT_NOISES, problem, saturating
from recorded_names import Noise, chips, compare, report, sweep_formats, vote, walk, walk_mixed, walk_parameter
from recorded_studies import FORMATS

from noisykernels.study import Study

case = Cases()


def without_versions(page: str) -> str:
    """A report without what belongs to the machine and to matplotlib."""
    page = re.sub(r'src="data:image/[^"]*"', 'src="picture"', page)
    rows = "|".join((*OF_THE_MACHINE, "report by noisykernels", "pictures by matplotlib"))
    page = re.sub(rf"<tr><t[dh][^>]*>(?:{rows})</t[dh]><td[^>]*>[^<]*</td></tr>", "", page)
    return re.sub(r"threads=\d+", "threads=N", page)


def drawn(figure: Any) -> str:
    """What a picture says: titles, labels, legends, and the points of its lines."""
    lines = []
    for ax in figure.axes:
        lines.append(f"{ax.get_title()} | {ax.get_xlabel()} | {ax.get_ylabel()} | {ax.get_xscale()} {ax.get_yscale()}")
        lines += [t.get_text() for t in ax.texts]
        lines += [t.get_text() for t in (ax.get_legend().get_texts() if ax.get_legend() else ())]
        lines += [f"{line.get_label()}: {six(line.get_xydata())}" for line in ax.lines]
        lines.append(f"{len(ax.collections)} {len(ax.patches)} {len(ax.images)}")
    return "\n".join(re.sub(r"_child\d+", "", line) for line in lines)


@functools.cache
def studies() -> dict[str, Study]:
    """One study of each sort that tables tell apart."""
    model, data = problem("cnn")
    return {
        "grid": walk(model, data, noise=NOISES["mul_add"], description=("net", "whole numbers"), **GRID),
        "mul": walk(model, data, noise=NOISES["mul"], **GRID),
        "weight": walk(model, data, noise=WEIGHT_NOISES["layer"], target="weight", **{**GRID, "draws": 6}),
        "search": walk(model, data, noise=NOISES["add"], seed=5, rel_ci=0.2, sites=["conv2", "fc"]),
        "parameter": walk_parameter(model, data, saturating, [2.0, 8.0, 64.0], name="limit"),
        "plateaus": walk(
            model, data, noise=NOISES["add"], seed=5, levels=[1e-4, 1.0, 16.0, 1e5], draws=2, plateaus=0.1
        ),
    }  # fmt: skip


@case
def texts() -> Parts:
    """What a person or another program reads of a study."""
    parts: Parts = {}
    made = studies()
    with tempfile.TemporaryDirectory() as folder:
        for name, study in made.items():
            parts[f"{name} repr"] = repr(study)
            parts[f"{name} table"] = study.table()
            parts[f"{name} midpoints"] = six(study.midpoints())
            parts[f"{name} curves"] = six([c._asdict() for c in study.curves()])
            parts[f"{name} csv"] = twelve(study.export(Path(folder) / "records.csv").read_text())
            content = json.loads(study.export(Path(folder) / "records.json").read_text())
            content["meta"]["plan"] = {k: v for k, v in content["meta"]["plan"].items() if k not in OF_THE_MACHINE}
            content["meta"]["midpoints"] = six(content["meta"]["midpoints"])
            parts[f"{name} json"] = twelve(json.dumps(content))
            saved = json.loads(study.save(Path(folder) / "study.json").read_text())
            parts[f"{name} keys of the file"] = str([*saved, *saved["meta"], *saved["columns"]])
        for name in ("grid", "plateaus"):
            parts[f"{name} free table"] = made[name].table(floor="free", confidence=0.9)
        pair = compare(made["grid"], made["mul"], ["both", "mul"])
        parts["comparison"] = six(pair)
        parts["comparison table"] = pair.table()
        parts["comparison with a search"] = compare(made["grid"], made["search"]).table()
    return parts


@case
def pages() -> Parts:
    """Reports and pictures; matplotlib is needed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    parts: Parts = {}
    made = studies()
    with tempfile.TemporaryDirectory() as folder:
        for name in ("grid", "search"):
            page = report(
                made[name], Path(folder) / "page.html", command="noisykernels walk" if name == "grid" else None
            )
            parts[f"{name} report"] = twelve(without_versions(page.read_text()))
    for name, study in made.items():
        parts[f"{name} plot"] = drawn(study.plot())
    parts["comparison plot"] = drawn(compare(made["grid"], made["mul"]).plot())
    model, data = problem("cnn")
    votes = vote(model, data, noise=Noise(add=2.0), draws=4, seed=3, subsets=4)
    parts["votes plot"] = drawn(votes.plot())
    mixed = walk_mixed(model, data, ratios=[0.0, 1.0], sites=["conv1", "fc"], **GRID)
    parts["mixed plot"], parts["mixed plot of a site"] = drawn(mixed.plot()), drawn(mixed.plot(site="fc"))
    pyplot.close("all")
    return parts


@case
def frames() -> Parts:
    """Frames of pandas and data sets of xarray; both are needed."""
    parts: Parts = {}
    made = studies()
    for name, study in made.items():
        parts[f"{name} frame"] = twelve(study.to_pandas().to_csv(index=False))
        parts[f"{name} data set"] = str(six(study.to_xarray().to_dict()))
    parts["chips of a study"] = six(made["weight"].chips().to_dict("list"))
    model, data = problem("cnn")
    votes = vote(model, data, noise=Noise(add=2.0), draws=4, seed=3, subsets=4)
    parts["votes frame"] = six(votes.to_pandas().to_dict("list"))
    parts["chips frame"] = chips(model, data, noise=Noise(add=2.0), draws=4, seed=3).to_pandas().to_csv(index=False)
    parts["mixed frame"] = walk_mixed(model, data, ratios=[0.0, 1.0], **GRID).to_pandas().to_csv(index=False)
    sweep = sweep_formats(model, data, FORMATS[:3], inputs=6)
    parts["sweep frame"] = six(sweep.to_pandas().to_dict("list"))
    return parts

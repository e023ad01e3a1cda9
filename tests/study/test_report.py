"""Reports: everything is in one file, nothing is fetched, nothing of the user's runs, and the bytes are the study's."""

from __future__ import annotations

import base64
import re
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest
from made_study import MIDPOINTS, SITES, made_study
from pages import Reader, snippet

from noisykernels.stats.midpoint import described
from noisykernels.study import Study, report

matplotlib = pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def study():
    return made_study(model="LeNet", data="Fashion-MNIST")


@pytest.fixture
def page(study, tmp_path):
    return study.report(tmp_path / "r.html").read_text()


def pictures(page: str) -> list[str]:
    return [base64.b64decode(text).decode() for text in re.findall(r"data:image/svg\+xml;base64,([^\"]*)", page)]


def test_everything_is_there(study, page):
    read = Reader(page)
    for site, p in zip(SITES, study.midpoints(), strict=True):
        assert site in read.text
        assert p.status != "ok" or (f"{p.level:.4g}" in read.text and f"{p.low:.4g} .. {p.high:.4g}" in read.text)
    for text in ("LeNet on Fashion-MNIST", "2,000 (1,800 correct", "seed", "13 from 0.01 to 1e+04, log axis",
                 "The weakest of 16 sites is norm2:batch_norm#0: it has fallen half-way already at level 0.01",
                 "The strongest is relu4:relu#0: it does not fall half-way up to level 1e+04", "batch_rows",
                 "noise stream", f"evaluated{len(study.records)}"):  # fmt: skip
        assert text in read.text, text
    assert len(pictures(page)) == 3 and read.tags.count("img") == 3
    for picture in pictures(page):
        assert ElementTree.fromstring(picture).tag.endswith("svg")


def test_summary_of_sites_that_all_fall(tmp_path):
    study = made_study([0.5, 2.0])
    text = Reader(study.report(tmp_path / "r.html").read_text()).text
    low, high = study.midpoints()
    assert f"The weakest of 2 sites is input: it falls half-way to the floor of 0.1 at level {low.level:.4g}" in text
    assert f"95 % interval {high.low:.4g} to {high.high:.4g}), {high.level / low.level:.3g} times as much." in text
    text = Reader(made_study([0.5]).report(tmp_path / "r.html").read_text()).text
    assert "input falls half-way" in text and "weakest" not in text


def test_nothing_is_fetched(page):
    """Outside of the pictures no address at all; in them only the names of XML's vocabularies."""
    assert "http" not in page and "@import" not in page and "<script" not in page and "url(" not in page
    names = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    for picture in pictures(page):
        assert set(re.findall(r"https?:[^\"' )<>]*", picture)) <= names
        assert all(target.startswith(("#", "data:")) for target in re.findall(r'href="([^"]*)"', picture))


def test_what_the_user_wrote_is_text(tmp_path):
    evil = '<script>alert("1")</script>&\''
    study = made_study(model=evil, data=evil, plan={evil: evil}, noise={"add": 1.0, "kind": evil})
    records = [r._replace(site=evil) if r.site_index == 0 else r._replace(status=evil) for r in study.records]
    study = Study(records, replace(study.meta, sites=(evil, *SITES[1:])))
    page = report(study, tmp_path / "r.html", command=f"python {evil}").read_text()
    read = Reader(page)
    assert "script" not in read.tags and "<script" not in page and read.text.count(evil) >= 8
    assert report(study, tmp_path / "t.html", evil).read_text().count(f"<title>{read.text[:0]}&lt;script&gt;") == 1
    assert all("<script" not in picture for picture in pictures(page))


def test_the_same_study_makes_the_same_bytes(study, tmp_path):
    first = study.report(tmp_path / "a.html").read_bytes()
    settings = {"font.size": 20, "svg.fonttype": "none", "axes.facecolor": "red"}
    with matplotlib.rc_context(settings):
        assert Study.load(study.save(tmp_path / "s.json")).report(tmp_path / "b.html").read_bytes() == first
        assert all(matplotlib.rcParams[k] == v for k, v in settings.items())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.html", "b.html", "s.json"]


def test_the_snippet_runs_the_study_again(tmp_path):
    torch = pytest.importorskip("torch")
    import noisykernels as nk

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    data = torch.randn(60, 4), torch.arange(60) % 3
    data = data[0], model(data[0]).argmax(1)
    for noise, more in (
        (nk.Noise(add=1.0), {"levels": [0.1, 1.0], "draws": 2, "sites": ["1:relu#0"]}),
        (nk.Noise(0.3, 0.7, order="add_mul", kind="laplace"), {"levels": [0.5], "draws": [3, 5], "floor": 0.2}),
        (nk.Noise(add=1.0), {}),
    ):
        study = nk.walk(model, data, noise=noise, seed=2**64 - 1, **more, compute=nk.Compute(batch_rows=20, threads=1))
        names = {"model": model, "data": data}
        exec(snippet(study, tmp_path), names)
        assert names["study"].records == study.records and names["study"].meta.plan == study.meta.plan


def test_a_noise_of_tensors_is_not_made_up(tmp_path):
    study = made_study(noise={"kind": "gaussian", "mode": "add", "add": "tensor [1, 1, 3]", "mul": 0.0})
    assert "nk.Noise(add=...)" in snippet(study, tmp_path)


def test_adaptive_and_unfinished_studies(tmp_path):
    full = made_study()
    found = tuple(described(p) for p in full.midpoints())
    records = [r._replace(status="settled" if r.level > 1e3 else "proved") for r in full.records if r.draw == 0]
    study = Study(records, replace(full.meta, midpoints=found))
    text = Reader(study.report(tmp_path / "r.html").read_text()).text
    assert "searched for each site" in text and "levels=" not in text and "rel_ci" in text
    assert "proved176" in text.replace("\n", "") and "settled32" in text.replace("\n", "")


def test_refusals(study, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="expected a study with records"):
        report(Study([], study.meta), tmp_path / "r.html")
    with pytest.raises(ValueError, match="no better than its floor"):
        report(Study(study.records, replace(study.meta, floor=0.95)), tmp_path / "r.html")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r"noisykernels\[plot\]"):
        study.report(tmp_path / "r.html")
    assert not list(tmp_path.iterdir())
    assert len(MIDPOINTS) == 16

"""`parameter`, `vote`, `chips` and `compare`: what each tells is what Python finds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_runs import numbers, small_walk

import noisykernels as nk
from noisykernels.cli.main import main
from noisykernels.datasets import load
from noisykernels.walking import PARAMETERS, walk_parameter
from noisykernels.zoo import trained


def test_a_walk_over_a_parameter(cache: str, capsys, tmp_path: Path) -> None:
    """What Python finds, with all files; the store; each parameter known by a word."""
    pytest.importorskip("matplotlib")
    files = {name: tmp_path / f"p.{name}" for name in ("json", "html", "csv", "db", "png")}
    fixed = ["--epochs", "1", "--cache", cache, "--quiet", "--rows", "60"]
    flags = [*fixed, "--sites", "fc1", "fc_out", "--out", str(files["json"]), "--report", str(files["html"])]
    flags += ["--export", str(files["csv"]), "--spreadsheet", "--picture", str(files["png"])]
    store = ["--store", str(files["db"])]
    assert main(["parameter", "saturation", "--values", "log:0.1:10:3", *flags, *store]) == 0
    text = capsys.readouterr().out
    assert "limit of the running sum (units of the output)" in text and "fc_out:linear#0" in text
    study = nk.Study.load(files["json"])
    model, data = trained("mlp", "digits", epochs=1, cache=cache), load("digits", "test", limit=60)
    known = PARAMETERS["saturation"]._asdict()
    expected = walk_parameter(model, data, values=numbers("log:0.1:10:3"), seed=0, sites=["fc1", "fc_out"], **known)
    assert study.records == expected.records and study.meta.parameter == known["name"] and len(study.records) == 6
    assert all(path.stat().st_size > 100 for path in files.values())
    asked = [word for word in flags if word not in ("--rows", "60", "--epochs", "1", "--sites", "fc1", "fc_out")]
    assert main(["resume", str(files["db"]), *asked]) == 0 and capsys.readouterr().out == text
    for name in PARAMETERS:
        values = "0.2,0.3" if name == "leak" else "2,3"
        assert main(["parameter", name, "--values", values, "--draws", "2", "--sites", "fc1", *fixed, "--json"]) == 0
        (found,) = json.loads(capsys.readouterr().out)["midpoints"]
        assert found["site"] == "fc1:linear#0" and found["rising"] == (PARAMETERS[name].larger == "better"), name
    assert main(["parameter", "input-bits", "--values", "1,2", *fixed]) == 1
    assert "DAC: bits must be a whole number from 2 to 24, got 1" in capsys.readouterr().err


def test_votes(cache: str, capsys, tmp_path: Path) -> None:
    fixed = ["--epochs", "1", "--cache", cache, "--quiet", "--level", "0.5", "--draws", "5", "--rows", "80"]
    assert main(["vote", *fixed, "--picture", str(tmp_path / "v.png")]) == 0
    assert "executions" in capsys.readouterr().out and (tmp_path / "v.png").stat().st_size > 5000
    assert main(["vote", *fixed, "--json"]) == 0
    curves = json.loads(capsys.readouterr().out)["curves"]
    assert set(curves) == {"majority", "logit", "probability"} and len(curves["majority"]) == 5


def test_chips(cache: str, capsys) -> None:
    fixed = ["--epochs", "1", "--cache", cache, "--quiet", "--level", "0.1", "--draws", "5", "--rows", "80"]
    assert main(["chips", *fixed, "--noise", "mul", "--limits", "0.1,0.99", "--seed", "3"]) == 0
    told = capsys.readouterr().out
    assert "WeightNoise(mul=0.1)" in told and "5 chips, seed 3" in told and "yield at 0.9900: 0.000" in told
    assert main(["chips", *fixed, "--relative", "channel", "--arrays", "call", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    model = trained("mlp", "digits", epochs=1, cache=cache)
    noise = nk.WeightNoise(add=0.1, relative="channel")
    expected = nk.chips(model, load("digits", "test", limit=80), hardware=[noise], draws=5, seed=0, arrays="call")
    assert found["accuracy"] == expected.values.tolist() and found["mean"] == expected.mean
    with pytest.raises(SystemExit):
        main(["chips", *fixed, "--level", "-1"])
    assert "--level: expected a number from 0 to 3.40282e+38, got '-1'" in capsys.readouterr().err


def test_compare(cache: str, capsys, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    files = [str(tmp_path / "one.json"), str(tmp_path / "two.json"), str(tmp_path / "c.png")]
    for file, more in zip(files, (["--sites", "fc1", "fc2"], ["--sites", "fc2", "--seed", "1"]), strict=False):
        assert small_walk(cache, "--out", file, *more) == 0
    capsys.readouterr()
    assert main(["compare", *files[:2], "--picture", files[2]]) == 0
    text = capsys.readouterr().out
    assert "two / one" in text and "only in one" in text and "the studies differ: seed: 0 and 1" in text
    assert Path(files[2]).read_bytes()[:4] == b"\x89PNG"
    assert main(["compare", *files[:2], "--names", "old", "new", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["names"] == ["old", "new"] and result["differences"] == ["seed: 0 and 1"]
    assert [s["verdict"] for s in result["sites"]] == ["only in a", "not told apart"]
    assert result["sites"][0]["b"] is None and result["sites"][1]["b"]["site"] == "fc2:linear#0"
    assert main(["compare", files[0], files[0]]) == 0
    assert "b / a" in capsys.readouterr().out


def test_studies_that_cannot_be_read(tmp_path: Path, capsys) -> None:
    pytest.importorskip("matplotlib")
    bad = tmp_path / "bad.json"
    bad.write_text("{}")
    for arguments in (["report", bad], ["compare", bad, bad], ["report", tmp_path / "none.json"],
                      ["report", bad, "--out", tmp_path / "no" / "a.html"],
                      ["compare", bad, bad, "--picture", "a.txt"]):  # fmt: skip
        assert main([str(a) for a in arguments]) == 1
        said = capsys.readouterr()
        assert said.err.startswith(f"noisykernels {arguments[0]}: ") and said.err.count("\n") == 1 and not said.out
    assert list(tmp_path.iterdir()) == [bad]


def test_groups(cache: str, capsys) -> None:
    fixed = ["--epochs", "1", "--cache", cache, "--quiet", "--rows", "60"]
    grid = [*fixed, "--levels", "0.5,5", "--draws", "1"]
    assert main(["grid", *grid, "--groups", "ends=fc1:linear#0", "ends=fc_out", "first=0", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["midpoints"]
    assert [m["site"] for m in found] == ["ends", "first"]
    assert main(["grid", *grid, "--groups", "all"]) == 0
    assert "the sites of a group noisy together" in capsys.readouterr().out
    values = ["parameter", "saturation", "--values", "0.1,1", *fixed]
    assert main([*values, "--groups", "block", "--json"]) == 0
    assert [m["site"] for m in json.loads(capsys.readouterr().out)["midpoints"]] == ["fc1", "fc2", "fc3", "fc_out"]
    for words, said in [
        (["all", "a=b"], "--groups: all stands alone, got all a=b"),
        (["a=nothing"], "no site 'nothing'"),
        (["all=fc1", "fc1:linear#0=fc1"], "a group must have a name of its own"),
        (["a=fc1", "--sites", "fc1"], "leave out sites="),
    ]:
        assert main(["grid", *grid, "--groups", *words]) == 1
        assert said in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["grid", *grid, "--groups", "some"])
    assert "--groups: expected all, block or NAME=SITE, got 'some'" in capsys.readouterr().err


def test_questions(cache: str, tmp_path: Path, capsys) -> None:
    small = ["--cache", cache, "--model", "mlp", "--data", "digits", "--epochs", "1", "--quiet", "--rows", "60"]
    out = ["--out", str(tmp_path / "s.json")]
    grid = ["grid", *small, "--levels", "0.01,0.3,10", "--draws", "1", "--sites", "0"]
    assert main([*grid, "--at", "keep:0.9", *out]) == 0
    assert "tolerance" in (said := capsys.readouterr().out) and "at=keep:0.9" in said
    assert main(["compare", *[str(tmp_path / "s.json")] * 2, "--at", "drop:0.1"]) == 0
    assert "at=drop:0.1" in capsys.readouterr().out
    assert main([*grid, "--at", "value:1.0"]) == 1
    assert "nk.Value(1.0)" in capsys.readouterr().err
    for wrong, why in (("keep:2", "above 0 and below 1"), ("most", "expected half, keep:0.99"), ("drop:1_0", "got")):
        with pytest.raises(SystemExit):
            main([*grid, "--at", wrong])
        assert why in capsys.readouterr().err


def test_details_of_attention(cache: str, capsys) -> None:
    """None of the networks that the commands know has an attention, of which each tells."""
    fixed = ["--epochs", "1", "--cache", cache, "--quiet", "--rows", "20"]
    plain = ["grid", *fixed, "--levels", "1", "--draws", "1", "--sites", "fc1", "--json"]
    assert main(plain) == 0
    expected = capsys.readouterr().out
    with pytest.warns(UserWarning, match="attention"):
        assert main([*plain, "--detail", "attention"]) == 0
    assert capsys.readouterr().out == expected


def test_measures(cache: str, capsys) -> None:
    fixed = ["--epochs", "1", "--cache", cache, "--quiet", "--rows", "60"]
    assert main(["grid", *fixed, "--metric", "nll", "--at", "ratio:1.5", *"--levels 0.1,1,10 --draws 1".split()]) == 0
    text = capsys.readouterr().out
    model, data = trained("mlp", "digits", epochs=1, cache=cache), load("digits", "test", limit=60)
    study = nk.walk(
        model, data, noise=nk.Noise(add=1.0), levels=[0.1, 1.0, 10.0], draws=1, seed=0, metric="nll", at=nk.Ratio(1.5)
    )
    assert study.table() in text and "clean nll" in text and "tolerance" in text
    assert main(["vote", *fixed, "--level", "0.5", "--draws", "3", "--metric", "nll", "--json"]) == 0
    votes = nk.vote(model, data, noise=nk.Noise(add=0.5), draws=3, seed=0, metric="nll")
    found = json.loads(capsys.readouterr().out)["curves"]
    assert {name: curve[-1] for name, curve in found.items()} == {
        name: pytest.approx(float(curve.values[-1])) for name, curve in votes.curves.items()
    }
    with pytest.raises(SystemExit):
        main(["grid", *fixed, "--metric", "nlll"])
    assert "nll" in capsys.readouterr().err

"""What the documents show is true: docstring examples, the README's code, the example scripts."""

from __future__ import annotations

import ast
import doctest
import importlib
import importlib.util
import pkgutil
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import noisykernels
from noisykernels.zoo import LlamaSizes, language

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
GUIDES = ROOT / "docs" / "guides"
MODULES = sorted(
    m.name.removeprefix("noisykernels.")
    for m in pkgutil.walk_packages(noisykernels.__path__, "noisykernels.")
    if not m.name.endswith(("__main__", "._C"))
)
# What the examples of a package, or of a module, need beside torch.
NEED = {
    "datasets": "sklearn",
    "zoo": "sklearn",
    "plotting": "matplotlib",
    "study": "pandas",
    "study.html_report": "matplotlib",
}
EXAMPLES = 330  # lines of them at least: a folder that is not looked into must not go unnoticed


def module_of(name: str) -> ModuleType:
    for part in (name.partition(".")[0], name):
        if part in NEED:
            pytest.importorskip(NEED[part])
    return importlib.import_module(f"noisykernels.{name}")


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name: str) -> None:
    module = module_of(name)
    torch.manual_seed(0)
    failed, _ = doctest.testmod(module, extraglobs={"torch": torch, "nk": noisykernels})
    assert failed == 0


def test_no_example_is_left_out() -> None:
    modules = [module_of(name) for name in MODULES]
    found = [test for module in modules for test in doctest.DocTestFinder().find(module, module.__name__)]
    assert len(MODULES) > 120 and sum(len(test.examples) for test in found) >= EXAMPLES


def test_public_names_have_docstrings_and_examples() -> None:
    for name in noisykernels.__all__:
        thing = getattr(noisykernels, name)
        if callable(thing):
            assert thing.__doc__, name
            if name not in ("build_info", "NoiseState"):
                text = thing.__doc__ + "".join(
                    m.__doc__ or "" for m in vars(thing).values() if callable(m)
                ) if isinstance(thing, type) else thing.__doc__  # fmt: skip
                assert ">>>" in text, name
    assert sorted(noisykernels.__all__) == sorted(set(noisykernels.__all__))


def blocks(document: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", document.read_text(), flags=re.MULTILINE | re.DOTALL)


def reduced(source: str) -> str:
    """The code with fewer epochs, rows, draws and levels."""
    small = {"epochs": 1, "draws": 1, "limit": 100}

    class Reduce(ast.NodeTransformer):
        def visit_keyword(self, node: ast.keyword) -> ast.keyword:
            self.generic_visit(node)
            if node.arg in small and isinstance(node.value, ast.Constant):
                node.value = ast.Constant(small[node.arg])
            return node

    return ast.unparse(ast.fix_missing_locations(Reduce().visit(ast.parse(source))))


@pytest.mark.parametrize(
    "document",
    [
        README,
        *(
            GUIDES / f"{n}.md"
            for n in ("arithmetic", "compiling", "cuda", "hardware", "language", "ordering", "processes", "training")
        ),
    ],
    ids=lambda path: path.name,
)
def test_code_of_documents_runs(document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All python blocks one after the other, as a reader would type them, with smaller numbers."""
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib").use("agg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NOISYKERNELS_DATA", str(tmp_path))
    found = blocks(document)
    assert found
    names: dict[str, object] = {"__name__": "readme"}
    for i, block in enumerate(found):
        exec(compile(reduced(block), f"{document.name}, python block {i}", "exec"), names)


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.name)
def test_examples(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Each script's `run(out, ...)`, at reduced size."""
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib").use("agg")
    monkeypatch.setenv("NOISYKERNELS_DATA", str(tmp_path / "cache"))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, path.stem, script)
    spec.loader.exec_module(script)
    if path.stem == "first_walk":
        monkeypatch.setattr(script, "has_fashion_mnist", lambda: False)
        small = ["--epochs", "1", "--rows", "50", "--draws", "1", "--levels", "0.1,1", "--quiet"]
        assert script.run(tmp_path / "results", *small) == 0
        assert (tmp_path / "results" / "walk.png").exists()
        text = capsys.readouterr()
        assert "midpoint" in text.out and "falling back to the MLP" in text.err
    elif path.stem == "executions":
        ways = script.run(tmp_path / "e.png", model="mlp", data="digits", epochs=5, rows=60, draws=2, ballots=20)
        assert (tmp_path / "e.png").exists() and "executions needed for" in capsys.readouterr().out
        assert len(ways) == 6 and all(values[-1] > values[0] for values in ways.values())  # more help more
    elif path.stem == "coverage":
        for name, account in script.run().items():
            left = [r.name for r in account.parameters if len(r.shape) > 1 and not r.hardware]
            assert left == (["token", "positions"] if name == "ViT" else []) and account.share("noise") == 1.0
            assert account.table() in (ROOT / "docs" / "results" / "coverage.md").read_text()
    elif path.stem == "language_walk":
        texts = ["In the beginning was the word, and the word was read to those who heard it. " * 20]
        small = LlamaSizes(vocabulary=270, width=16, blocks=2, heads=2, shared=1, hidden=24)
        monkeypatch.setattr(script, "kjv", lambda split: texts)
        monkeypatch.setattr(script, "language", lambda **more: language(small, texts, length=16, **more))
        study = script.run(
            tmp_path / "results", "--windows", "6", "--length", "16", "--rel-ci", "0.5", "--steps", "100"
        )
        names = {p.name for p in (tmp_path / "results").iterdir()}
        assert {"lm.json", "lm.html", "lm.png"} < names and [n for n in names if n.endswith(".store")]
        walked = {record.site for record in study.records}
        assert len(walked) == 14 and all(name.endswith("_proj:linear#0") for name in walked)
        assert "steps a second" in capsys.readouterr().out
        for wrong, said in (("bert", "expected llama or hf:FOLDER"), (f"hf:{tmp_path}", "no config.json in")):
            with pytest.raises(SystemExit) as stopped:
                script.run(tmp_path, "--model", wrong)
            assert said in f"{stopped.value} {capsys.readouterr().err}"
    elif path.stem == "processes":
        losses, digest = script.run()
        assert len(losses) == 4 and digest in capsys.readouterr().out
    elif path.stem == "three_tasks":  # the others are run by `--full`
        (study,) = script.run(tmp_path, [script.regressor])
        assert study.meta.clean < -2 and all(p.status == "ok" for p in study.midpoints())
        assert (tmp_path / "task_regressor.png").exists() and "at=drop:3.0" in capsys.readouterr().out
    elif path.stem == "cupy_noise":
        assert script.run() == 0
        text = capsys.readouterr().out
        assert "nothing is run" in text or text.count(": yes") == 3
    else:
        assert path.stem == "walking_noise"
        studies = script.run(tmp_path, epochs=5, rows=60, draws=1, data="digits", model="mlp-bn", level=1.0)
        assert len(studies) == 4 and (tmp_path / "walking_noise.png").exists()

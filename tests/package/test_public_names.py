"""The face of the package: its names, in a file, so that a change of them is a decision; and who may know torch."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import noisykernels as nk

ROOT = Path(__file__).parents[2]
PACKAGE = Path(nk.__path__[0])
FROZEN = ROOT / "tests" / "data" / "public_names.txt"
MOST = 52  # names at the top: what most people need, found by reading once
PACKAGES = sorted(m.name for m in pkgutil.iter_modules(nk.__path__) if m.ispkg)
PUBLIC = [name for name in PACKAGES if name[0] != "_"]


def package(name: str) -> ModuleType:
    return importlib.import_module(f"noisykernels.{name}")


def public_names() -> Iterator[str]:
    """`nk.walk`, `nk.hardware.PCM`, ...: the top first, then each package in alphabetical order."""
    yield from (f"nk.{name}" for name in sorted(nk.__all__))
    for name in PUBLIC:
        yield from (f"nk.{name}.{public}" for public in sorted(getattr(package(name), "__all__", ())))


def run(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, timeout=300
    )
    assert done.returncode == 0, done.stdout
    return done.stdout.strip()


# ------------------------------------------------------------------------------------------- names


def test_public_names_are_those_of_the_file() -> None:
    now, then = list(public_names()), FROZEN.read_text().splitlines()
    gone, new = sorted(set(then) - set(now)), sorted(set(now) - set(then))
    assert now == then, f"gone: {gone}; new: {new}; meant so? then run: python {Path(__file__).relative_to(ROOT)}"


def test_the_top_is_small() -> None:
    assert 40 <= len(nk.__all__) <= MOST


@pytest.mark.parametrize("name", ["", *PUBLIC])
def test_every_name_resolves(name: str) -> None:
    here = package(name) if name else nk
    names = getattr(here, "__all__", ())
    assert len(set(names)) == len(names)
    assert all(getattr(here, public) is not None for public in names)
    assert set(names) <= set(dir(here))
    if name and name not in ("cli", "reference"):  # a command, and an oracle: neither is called by users
        assert getattr(nk, name) is here and name in dir(nk)


@pytest.mark.parametrize("name", ["", *PACKAGES])
def test_no_name_hides_a_module(name: str) -> None:
    """As `import noisykernels.walking.walks as m` must give the module."""
    here = package(name) if name else nk
    modules = {m.name for m in pkgutil.iter_modules(here.__path__)}
    allowed = set(PACKAGES) if not name else set()  # a namespace is its package
    hidden = {n for n in modules - allowed if not isinstance(getattr(here, n, here), ModuleType)}
    assert not modules & set(getattr(here, "__all__", ())) and not hidden


def test_an_unknown_name_is_named() -> None:
    with pytest.raises(AttributeError, match="module 'noisykernels' has no attribute 'wlak'"):
        nk.wlak  # noqa: B018
    with pytest.raises(AttributeError, match=r"no attribute 'PCM'; there is nk\.hardware\.PCM"):
        nk.PCM  # noqa: B018


@pytest.mark.parametrize("order", ["import noisykernels, torch", "import torch, noisykernels"])
def test_operators_are_there_in_either_order(order: str) -> None:
    assert "linear" in run(f"{order}; print(torch.ops.noisykernels.linear.default, torch.ops.noisykernels.quantize)")


@pytest.mark.parametrize("name", [m for m in PACKAGES if m != "reference"])
def test_every_package_can_come_first(name: str) -> None:
    """Before torch, and before any other of ours."""
    assert run(f"import noisykernels.{name}; print('well')") == "well"


def test_type_checkers_see_what_there_is() -> None:
    """`__init__.pyi` offers what `__init__.py` does, each name from its home."""
    offered = {}
    for node in ast.parse((PACKAGE / "__init__.pyi").read_text()).body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                assert alias.asname == alias.name  # only so is a name of a stub public
                offered[alias.name] = str(node.module)
        elif isinstance(node, ast.AnnAssign):
            offered[ast.unparse(node.target)] = ""
    assert offered.keys() == {*nk.__all__, *nk._NAMESPACES, "__version__", "__all__"}
    for name, home in offered.items():
        if home and name not in nk._NAMESPACES:
            assert getattr(nk, name) is getattr(importlib.import_module(home), name)


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_says_what_it_is(name: str) -> None:
    """In one sentence: what lives there, and after a semicolon what it must not know."""
    said = package(name).__doc__
    assert said is not None and "\n" not in said and said.endswith(".") and said.count(". ") == 0
    outside = said.partition("; ")[2]
    if name != "cli":  # nothing is above it
        assert re.search(r"must not know|knows of no|knows a .* only by", outside)


# ------------------------------------------------------------------------------------------- torch


def test_results_need_no_torch(tmp_path: Path) -> None:
    """A study is made, its midpoints computed, saved and loaded, where torch is not imported, as sys.modules tells."""
    code = f"""
import sys
import noisykernels as nk
from noisykernels.plotting import plot_study
sys.path.insert(0, {str(ROOT / "tests" / "helpers")!r})
from made_study import made_study
study = made_study()
found = study.midpoints()
assert [m.status for m in found].count("ok") > 10
study.save({str(tmp_path / "study.json")!r})
again = nk.study.Study.load({str(tmp_path / "study.json")!r})
assert again.records == study.records and str(again.midpoints()) == str(found)
assert nk.stats.wilson(9, 10)[0] < 0.9 < nk.stats.wilson(9, 10)[1] and nk.Study is type(study) and callable(plot_study)
print(*[m for m in sys.modules if m.partition(".")[0] == "torch"])
"""
    assert run(code) == ""


@pytest.mark.parametrize("name", ["stats", "study", "plotting"])
def test_imported_without_torch(name: str) -> None:
    assert run(f"import sys, noisykernels.{name}; print('torch' in sys.modules)") == "False"


def test_the_top_alone_imports_little() -> None:
    code = "import sys, noisykernels; print(*{'torch', 'numpy', 'scipy', 'matplotlib'} & set(sys.modules))"
    assert run(code) == ""


def test_operators_are_there_at_once() -> None:
    """As for a program, such as one that loads an exported model, which imports the package for its operators alone."""
    assert "linear" in run("import torch, noisykernels; print(torch.ops.noisykernels.linear)")


def test_optional_packages_stay_out() -> None:
    """What only some functions need is imported by them."""
    optional = "{'matplotlib', 'pandas', 'xarray', 'sklearn', 'tqdm', 'cloudpickle', 'ray'}"
    everything = ", ".join(f"noisykernels.{name}" for name in PUBLIC)
    code = f"import sys, torch; before = set(sys.modules); import {everything}; new = set(sys.modules) - before"
    assert run(f"{code}; print(*{optional} & new)") == ""


if __name__ == "__main__":
    FROZEN.write_text("".join(f"{name}\n" for name in public_names()))

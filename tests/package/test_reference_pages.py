"""What tools/reference.py writes: every public name, in the same words each time; the pages are up to date."""

from __future__ import annotations

import importlib.util
import pkgutil
from pathlib import Path
from types import ModuleType

import pytest

import noisykernels

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").exists())


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("write_reference", ROOT / "tools" / "reference.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def public_packages() -> list[ModuleType]:
    """Found another way than the tool does: by folders."""
    top = Path(noisykernels.__path__[0])
    found = [path.parent.relative_to(top.parent) for path in top.rglob("__init__.py")]
    return [importlib.import_module(".".join(f.parts)) for f in found if not any(part[0] == "_" for part in f.parts)]


def test_every_public_name_is_there(reference: ModuleType) -> None:
    pages = reference.pages()
    for package in public_packages():
        for name in getattr(package, "__all__", ()):
            page = pages[f"{package.__name__}.md"]
            assert f"\n## {name}\n" in page and f"\n| [{name}](#{name.lower()}) |" in page, (package.__name__, name)
            assert f"]({package.__name__}.md)" in pages["README.md"]


def test_no_modules_and_no_private_packages(reference: ModuleType) -> None:
    packages = {package.__name__ for package in public_packages()}
    modules = {m.name for m in pkgutil.walk_packages(noisykernels.__path__, "noisykernels.") if not m.ispkg}
    written = {name.removesuffix(".md") for name in reference.pages()} - {"README"}
    assert "noisykernels" in written and written <= packages and not written & modules


def test_which_packages(reference: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    public = '"""Here."""\n__all__ = ["NUMBER"]\nNUMBER = 3\n'
    for name in ("", "open", "open/inner", "open/_hidden", "_closed", "_closed/inner"):
        (tmp_path / "planted" / name).mkdir()
        (tmp_path / "planted" / name / "__init__.py").write_text(public)
    (tmp_path / "planted" / "module.py").write_text(public)
    (tmp_path / "planted" / "nameless").mkdir()
    (tmp_path / "planted" / "nameless" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    found = [module.__name__ for module in reference.namespaces("planted")]
    assert found == ["planted", "planted.open", "planted.open.inner"]
    (tmp_path / "planted" / "nameless" / "broken").mkdir()
    (tmp_path / "planted" / "nameless" / "broken" / "__init__.py").write_text("import no_such_module")
    with pytest.raises(ImportError):
        list(reference.namespaces("planted"))


def test_same_text_each_time(reference: ModuleType) -> None:
    """And none that only this run or this machine has."""
    pages = reference.pages()
    assert pages == reference.pages()
    for text in pages.values():
        assert " at 0x" not in text and str(ROOT) not in text


def test_what_a_section_says(reference: ModuleType) -> None:
    class Example:
        """Says what it is

        and more."""

        def method(self, a: int, *, b: str | None = None) -> float:
            """Does it."""
            return 0.0

        @property
        def size(self) -> int:
            """How large."""
            return 0

    Example.__module__ = "noisykernels.example"
    text = reference.section("Example", Example)
    assert text.startswith("## Example\n\nSays what it is\n\n```python\nExample()\n```\n\n<details>")
    assert (
        "and more.\n\nmethod(self, a: int, *, b: str | None = None) -> float\n    Does it.\n\nsize: int\n    How large."
        in text
    )
    assert reference.section("VERSION", 3) == "## VERSION\n\n```python\nVERSION: int = 3\n```\n"


def test_pages_are_up_to_date(reference: ModuleType) -> None:
    assert reference.outdated() == [], "run: python tools/reference.py"

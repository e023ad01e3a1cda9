"""The guide to tools of others and its example scripts run."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NEED = {
    "trainer": "transformers",
    "lightning_run": "lightning",
    "harness": "lm_eval",
    "lora": "peft",
    "quantised": "torchao",
}
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("page", ["other_tools", "language"])
def test_code_of_guides(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("transformers", "peft", "torchao", "sklearn"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "guides" / f"{page}.md").read_text()
    found = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    names: dict[str, object] = {"__name__": page}
    for block in found:
        exec(block, names)
    assert found


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "other_tools").glob("*.py")), ids=lambda p: p.stem)
def test_examples_of_tools(path: Path, tmp_path: Path) -> None:
    pytest.importorskip(NEED[path.stem])
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    found = script.run(tmp_path) if script.run.__code__.co_argcount else script.run()
    if isinstance(found, dict):  # of levels: noise does harm
        values = list(found.values())
        assert values[-1] < values[0]
    else:
        assert found

"""What the documents point to is there: links, pictures, files, and the commands that write pages."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").exists())
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
WRITTEN = [DOCS / "errors.md", DOCS / "results" / "cuda_code.md", *sorted((DOCS / "reference").glob("*.md"))]
# Files that a reader makes, as the documents call them.
MADE = {
    "clean.json", "noisy.json", "compare.png", "FOLDER/a.json", "FOLDER/none/a.json", "/flips.json", "votes.json",
    "ratio-0.25.json", "csrc/cpu/level_NAME.cpp", "config.json", "tokenizer.json", "ranges.json",
}  # fmt: skip
LINK = r"\]\(([^)\s]+)\)"
FILE = r"[\w./-]*\w\.(?:cpp|cuh|cu|h|inl|json|md|png|pyi|py|sh|toml|txt)\b"

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def prose(page: Path) -> str:
    """The page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings: lower case, hyphens for spaces, no punctuation."""
    headings = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def linked(page: Path) -> set[Path]:
    return {(page.parent / target).resolve() for target in re.findall(LINK, prose(page))}


def first_line(page: Path) -> str:
    """The first line below the title."""
    return next(line for line in page.read_text().splitlines()[1:] if line)


@pytest.fixture(scope="module")
def files() -> list[str]:
    """Every file of the tree but what tools leave behind."""
    found = []
    for folder, below, names in os.walk(ROOT):
        at = Path(folder).relative_to(ROOT)
        below[:] = [
            b for b in below if b[0] != "." and b != "__pycache__" and str(at / b) not in ("build", "dist", "results")
        ]
        found += [f"/{(at / name).as_posix()}" for name in names]
    return found


@each_page
def test_links_resolve(page: Path) -> None:
    for target in re.findall(LINK, prose(page)):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            to = page.parent / path if path else page
            assert to.exists(), f"{target} is not there"
            assert not anchor or anchor in anchors(to), f"{target}: no such heading"


@each_page
def test_files_named_exist(page: Path, files: list[str]) -> None:
    """Named by its path, or by the end of it."""
    text = re.sub(r"\w+://\S+|\]\([^)]*\)", "", page.read_text())  # links have a test of their own
    named = set(re.findall(FILE, text)) - MADE
    missing = sorted(name for name in named if not any(file.endswith(f"/{name}") for file in files))
    assert missing == []


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.name)
def test_written_pages_name_their_command(page: Path) -> None:
    found = re.match(r"Written by `(?:make ([\w-]+)|python ([\w/]+\.py))`", first_line(page))
    assert found, first_line(page)
    target, script = found.groups()
    if target:
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    else:
        assert (ROOT / script).exists()


def test_no_other_page_is_written() -> None:
    assert [page for page in PAGES if first_line(page).startswith("Written by `")] == sorted(WRITTEN)


def test_index_has_every_page() -> None:
    """In one hop from docs/README.md; the pages of reference/ from the index there."""
    index, reference = DOCS / "README.md", DOCS / "reference"
    pages = {page for page in DOCS.rglob("*.md") if page.parent != reference}
    assert pages - {index} <= linked(index)
    if reference.exists():
        assert reference / "README.md" in linked(index)
        assert set(reference.glob("*.md")) - {reference / "README.md"} <= linked(reference / "README.md")


def test_every_picture_is_shown() -> None:
    shown = " ".join(prose(page) for page in PAGES)
    assert [path.name for path in (DOCS / "images").iterdir() if f"images/{path.name})" not in shown] == []

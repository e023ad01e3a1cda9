"""What the files of csrc may know of each other (docs/design/architecture.md): a check of their include lines."""

import re
from pathlib import Path

import pytest

CSRC = next(p for p in Path(__file__).resolve().parents if (p / "csrc").is_dir()) / "csrc"
FILES = sorted(p for p in CSRC.rglob("*") if p.suffix in {".h", ".inl", ".cpp", ".cu"})
MAY_INCLUDE = {"": {""}, "cpu": {"", "cpu"}, "cuda": {"", "cuda"}, "ops": {"", "cpu", "cuda", "ops"}}


def folder(file: Path) -> str:
    return file.parent.relative_to(CSRC).as_posix().removeprefix(".")


def includes(file: Path) -> tuple[list[Path], list[str]]:
    """Ours, and those of others."""
    text = file.read_text()
    ours = [(file.parent / name).resolve() for name in re.findall(r'^\s*#\s*include "(.+)"', text, re.MULTILINE)]
    return ours, re.findall(r"^\s*#\s*include <(.+)>", text, re.MULTILINE)


def reached(file: Path) -> set[Path]:
    """The file and all of ours that it includes, directly or not."""
    found, left = set(), [file]
    while left:
        if (one := left.pop()) not in found:
            found.add(one)
            left += includes(one)[0]
    return found


def of_torch(name: str) -> bool:
    return name.partition("/")[0] in {"torch", "ATen", "c10"}


@pytest.mark.parametrize("file", FILES, ids=lambda p: p.relative_to(CSRC).as_posix())
def test_a_file_knows_only_what_its_folder_may(file: Path) -> None:
    ours, others = includes(file)
    assert all(p.is_file() and folder(p) in MAY_INCLUDE[folder(file)] for p in ours), ours
    assert file.name == "torch.h" or not any(map(of_torch, others)), others
    python = any(name.startswith(("pybind11", "Python.h")) for name in others)
    assert file.name in ("module.cpp", "plain.h") or not python, others
    assert len(file.read_text().splitlines()) <= 400


def test_the_oldest_torch_is_named_once_and_before_all_of_torch() -> None:
    assert len(FILES) > 25
    naming = [p for p in FILES if re.search(r"define TORCH_TARGET_VERSION", p.read_text())]
    assert naming == [CSRC / "ops" / "torch.h"]
    text = naming[0].read_text()
    assert text.index("#define TORCH_TARGET_VERSION") < text.index("#include")
    module = CSRC / "ops" / "module.cpp"
    assert naming[0] not in reached(module)  # torch refuses pybind11 under a target version


def test_the_definition_of_the_noise_stands_alone() -> None:
    """get_include() hands it out by itself."""
    assert reached(CSRC / "noise.h") == {CSRC / "noise.h"}


@pytest.mark.parametrize("level", ["avx2", "avx512"])
def test_nothing_of_the_library_is_compiled_for_a_wider_set(level: str) -> None:
    """A standard header's out-of-line copy from inside a level's region could be the one that a plain machine runs."""
    file = CSRC / "cpu" / f"level_{level}.cpp"
    text = file.read_text()
    before, inside = text.split("#pragma GCC push_options")
    first = set(re.findall(r"#include <(.+)>", before))
    assert not re.search(r"#include <", inside) and '#include "' not in before
    later = {name for p in reached(file) - {file} for name in includes(p)[1]}
    assert later <= first, later - first

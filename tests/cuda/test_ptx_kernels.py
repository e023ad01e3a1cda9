"""The CUDA kernels as nvcc compiles them, and planted bugs, run by the PTX interpreter."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from cuda_defects import DEFECTS, OF_THE_HOST, planted
from native_build import BUILD, ROOT, build
from simt import ptx
from simt.ptx_files import Launch, Module, PtxError, read_launches

KERNELS = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
PLANTED = ROOT / "tests" / "cuda" / "simt" / "planted.cu"
MOST_LAUNCHES = 16  # of a kernel, evenly from its first to its last, and fewer than twice as many

needs_nvcc = pytest.mark.skipif(
    shutil.which("nvcc") is None or shutil.which("cmake") is None, reason="nvcc or cmake is not installed"
)


def compile_ptx(source: Path, folder: Path) -> Module:
    target = folder / f"{source.stem}.ptx"
    command = ["nvcc", "-std=c++20", "-O3", "-arch=sm_80", "-lineinfo", "-ptx", source, "-o", target]
    subprocess.run(command, check=True)
    return Module(target.read_text())


@cache
def symbols(program: Path) -> dict[int, str]:
    """Names by address, from the start of the program."""
    lines = subprocess.run(["nm", program], check=True, capture_output=True, text=True).stdout.splitlines()
    found = {name: int(address, 16) for address, _, name in (line.split() for line in lines if line[0] != " ")}
    return {address - found["__executable_start"]: name for name, address in found.items()}


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, list[Launch]], str]]:
    """Launches on the emulated device by the end of the kernel's name, and what the program said."""
    build(ROOT, BUILD, "--target", "test_simt")
    file = tmp_path_factory.mktemp("ptx") / "launches"
    program = BUILD / "test_simt"
    done = subprocess.run(
        [program], env={**os.environ, "NOISYKERNELS_RECORD": str(file)}, check=True, capture_output=True, text=True
    )
    launches: dict[str, list[Launch]] = {}
    for launch in read_launches(file):
        end = symbols(program)[launch.kernel].split("_GLOBAL__N_1")[1]
        launches.setdefault(end, []).append(launch)
    yield launches, done.stdout
    file.unlink()


def what_is_wrong(module: Module, end: str, launch: Launch, late: bool = False) -> str:
    """Empty if the PTX leaves the memory as it was recorded."""
    machine = ptx.Machine(module.kernel(module.name(end)), launch, late)
    try:
        machine.run()
    except PtxError as error:
        return str(error)
    return "" if all(same_numbers(end, got, want) for _, got, want in machine.wrong()) else "wrong result"


def same_numbers(end: str, got: bytes, want: bytes) -> bool:
    """Whether memory of a kernel's type of data is equal but for which NaN stands there: the host's depends on the
    order of the operands that the compiler chose.
    """
    infinity, kind = next(
        (bits, kind)
        for name, bits, kind in (
            ("8BFloat16", 0x7F80, "u2"), ("7Float16", 0x7C00, "u2"), ("Edd", 0x7FF << 52, "u8"), ("", 0x7F8 << 20, "u4")
        )
        if name in end
    )  # fmt: skip
    pair = [np.frombuffer(part[: len(part) // int(kind[1]) * int(kind[1])], kind) for part in (got, want)]
    nan = [(v & (2 ** (8 * int(kind[1]) - 1) - 1)) > infinity for v in pair]
    return bool(((pair[0] == pair[1]) | (nan[0] & nan[1])).all())


@needs_nvcc
@pytest.mark.full  # minutes; the quick tests run these kernels in the emulation (simt), and the interpreter on its own
@pytest.mark.parametrize("source", KERNELS, ids=lambda source: source.stem)
def test_the_kernels_of_nvcc(source: Path, recorded: tuple[dict[str, list[Launch]], str], tmp_path: Path) -> None:
    module = compile_ptx(source, tmp_path)
    ran = 0
    for end, launches in recorded[0].items():
        if any(name.endswith(end) for name in module.starts):
            ran += 1
            has_copies = any(each.op.startswith("cp.async") for each in module.kernel(module.name(end)).code)
            for launch in launches[:: max(1, len(launches) // MOST_LAUNCHES)]:
                for late in (False, True) if has_copies else (False,):
                    assert not (what := what_is_wrong(module, end, launch, late)), f"{end}, late {late}: {what}"
    assert ran > 0.9 * len(module.starts)  # a kernel is of three factors, and the cases meet in pairs


@needs_nvcc
def test_planted_bugs(recorded: tuple[dict[str, list[Launch]], str], tmp_path: Path) -> None:
    """Each is noticed by the fibers or by the interpreter, which also prints a table."""
    module = compile_ptx(PLANTED, tmp_path)
    launches, said = recorded
    right = {end: each for end, each in launches.items() if "BugE0E" in end}
    assert len(right) == sum("BugE0E" in name for name in module.starts)
    bugs: dict[str, dict[str, str]] = {}
    for line in said.splitlines():
        if line.count("\t") == 2:
            bug, order, what = line.split("\t")
            bugs.setdefault(bug, {})[order] = what
    for number, (bug, noticed) in enumerate(bugs.items()):
        for late in (False, True):
            noticed["late" if late else "at once"] = "; ".join(
                what
                for end, each in right.items()
                if (what := what_is_wrong(module, end.replace("BugE0E", f"BugE{number}E"), each[0], late))
            )
        print(bug, *(f"{way}: {what[:200]}" for way, what in noticed.items()), sep="\n    ")
        assert any(noticed.values()) == (bug != "none"), bug
    assert len(bugs) > 10


@needs_nvcc
@pytest.mark.full
@pytest.mark.parametrize("defect", [d for d in DEFECTS if d not in OF_THE_HOST])
def test_the_interpreter_notices_defects(
    defect: str, recorded: tuple[dict[str, list[Launch]], str], tmp_path: Path
) -> None:
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    module = compile_ptx(planted(defect, tmp_path / "csrc"), tmp_path)
    ends = [end for end in recorded[0] if any(name.endswith(end) for name in module.starts)]
    late = defect in ("product: too weak a wait", "product: copies that nothing waits for")
    assert any(what_is_wrong(module, end, launch, late) for end in ends for launch in recorded[0][end])

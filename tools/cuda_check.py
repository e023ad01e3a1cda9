"""Compiles the CUDA kernels for every architecture, looks at the machine code, and writes docs/cuda.md. Needs no GPU.

Fails if a kernel spills registers, if it needs more than tools/cuda_limits.json allows, or if nvcc's --fmad changes the
code. The instructions are counted by cuobjdump, which is installed from PyPI into build/cuda where it is missing; where
it cannot be had, registers and memory are checked alone, as ptxas reports them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import venv
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "csrc/cuda/epilogue.cu"
BUILD = ROOT / "build/cuda"
LIMITS = ROOT / "tools/cuda_limits.json"
PAGE = ROOT / "docs/cuda.md"
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
MODES = ("add", "mul", "mul_add", "add_mul", "fold", "eps")
LAYOUTS = ("in order", "channels_last", "eps given")
TYPES = {"f": "float32", "d": "float64", "NS_8BFloat16E": "bfloat16", "NS_7Float16E": "float16"}
# What an instruction counts as: the first of these that its name begins with.
CLASSES = {
    "wide products": r"U?IMAD\.(WIDE|HI)",
    "float32": r"F(?!LO)|MUFU|I2F",
    "float64": r"D",
    "memory": r"LD|ST|ULD",
    "control": r"BRA|BSSY|BSYNC|CALL|RET|EXIT|WARPSYNC|NOP|BAR|BREAK|BMOV",
    "other": r"",
}

Kernel = tuple[str, str]  # "epilogue float32", "mul_add, channels_last"

HEAD = """# CUDA

The kernels are in `csrc/cuda/epilogue.cu`: the epilogue (one kernel for each mode, type and layout) and the fused
noise, ReLU and max-pooling. They use `csrc/noise.h` and give the bits of the CPU kernels. How that is known:

- **On the host.** `tests/simt` compiles the same file as C++, where every CUDA thread is a fiber, and compares all
  modes, kinds, types and layouts with the CPU kernels in three orders of the threads. Planted bugs (missing barriers,
  writes beside shared arrays, tails, misaligned accesses, lanes that are not there) are noticed. Part of `make test`.
- **By the compiler.** `make cuda-check` compiles them for the architectures below; no register is spilled, and nvcc's
  `--fmad` changes not one instruction. It writes this page: static facts, no speeds.
- **On a GPU.** The same comparisons are the target `test_gpu` of `CMakeLists.txt` (`test_gpu --full`: all 43,200 cases
  of the epilogue). They passed on one NVIDIA H100 (sm_90); no other GPU has run the kernels.

The operators do not use them yet.

"""


def kernel_of(mangled: str) -> Kernel:
    match = re.search(
        r"(epilogue|pool)_kernelILNS_4ModeE(\d)E(f|d|NS_\d\w+?E)[fd]L(?:NS1_6LayoutE(\d)|b(\d))E", mangled
    )
    assert match, mangled
    name, mode, kind, layout, given = match.groups()
    where = LAYOUTS[int(layout)] if layout else ("eps given" if given == "1" else "in order")
    return f"{name} {TYPES[kind]}", f"{MODES[int(mode)]}, {where}"


def compile_for(arch: int, fmad: str) -> tuple[Path, dict[Kernel, dict[str, int]]]:
    """The machine code, and what ptxas says of every kernel: registers, spilled and shared bytes."""
    cubin = BUILD / f"epilogue.sm_{arch}.fmad-{fmad}.cubin"
    run = subprocess.run(
        [
            *("nvcc", "-std=c++20", "-O3", "-Werror", "all-warnings", f"-arch=sm_{arch}", f"--fmad={fmad}"),
            *("-Xptxas", "-v", "-cubin", str(SOURCE), "-o", str(cubin)),
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    if run.returncode:
        sys.exit(f"sm_{arch}: nvcc failed\n{run.stderr}")
    facts = {}
    for part in run.stderr.split("Compiling entry function '")[1:]:
        shared = re.search(r"(\d+) bytes smem", part)
        facts[kernel_of(part.split("'")[0])] = {
            "registers": int(re.search(r"Used (\d+) registers", part)[1]),
            "spilled": sum(int(n) for n in re.findall(r"(\d+) bytes spill", part)),
            "shared": int(shared[1]) if shared else 0,
        }
    return cubin, facts


def disassembler() -> dict[str, str] | None:
    """An environment in which cuobjdump runs; None if there is none to be had."""
    if shutil.which("cuobjdump") and shutil.which("nvdisasm"):
        return dict(os.environ)
    folder = BUILD / "venv"
    if not folder.exists():
        venv.create(folder, with_pip=True)
        packages = ["nvidia-cuda-cuobjdump", "nvidia-cuda-nvdisasm"]
        if subprocess.run([folder / "bin/python", "-m", "pip", "install", "--quiet", *packages]).returncode:
            shutil.rmtree(folder)
            return None
    found = next(folder.glob("lib/python*/site-packages/nvidia/*/bin/cuobjdump"), None)
    return {**os.environ, "PATH": f"{found.parent}:{os.environ['PATH']}"} if found else None


def disassembly(cubin: Path, environment: dict[str, str]) -> str:
    command = ["cuobjdump", "-sass", str(cubin)]
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout


def instructions(code: str) -> dict[Kernel, Counter[str]]:
    """How many instructions of each class every kernel has."""
    mixes = {}
    for part in code.split("Function : ")[1:]:
        names = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)", part, re.MULTILINE)
        mixes[kernel_of(part.split()[0])] = Counter(
            next(c for c, pattern in CLASSES.items() if re.match(pattern, name)) for name in names
        )
    return mixes


def table(head: list[str], rows: list[list[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(str(c) for c in line) + " |\n" for line in lines) + "\n"


def page(facts: dict[int, dict[Kernel, dict[str, int]]], mixes: dict[int, dict[Kernel, Counter[str]]]) -> str:
    version = re.search(r"V([\d.]+)", subprocess.run(["nvcc", "--version"], stdout=subprocess.PIPE, text=True).stdout)
    archs, kernels = [f"sm_{a}" for a in facts], sorted(facts[ARCHITECTURES[0]])
    text = HEAD
    text += f"## Registers of a thread (nvcc {version[1]}; none spilled)\n\n"
    text += table(
        ["kernel", "mode, layout", "shared bytes", *archs],
        [[*k, facts[75][k]["shared"], *(facts[a][k]["registers"] for a in facts)] for k in kernels],
    )
    if mixes:
        text += "## Instructions of a kernel, all kinds of noise together\n\n"
        text += table(
            ["kernel", "mode, layout", *archs],
            [[*k, *(sum(mixes[a][k].values()) for a in mixes)] for k in kernels],
        )
        text += "## What they are\n\nThe float32 kernels, on each architecture.\n\n"
        text += table(
            ["architecture", "kernel", "mode, layout", *CLASSES],
            [[f"sm_{a}", *k, *(mixes[a][k][c] for c in CLASSES)] for a in mixes for k in kernels if "float32" in k[0]],
        )
    return text.rstrip() + "\n"


def main() -> None:
    if not shutil.which("nvcc"):
        print("cuda-check: nvcc is not installed; nothing was checked")
        return
    BUILD.mkdir(parents=True, exist_ok=True)
    limits, environment, wrong = json.loads(LIMITS.read_text()), disassembler(), []
    if environment is None:
        print("cuda-check: cuobjdump cannot be had; the instructions are not counted")
    facts: dict[int, dict[Kernel, dict[str, int]]] = {}
    mixes: dict[int, dict[Kernel, Counter[str]]] = {}
    for arch in ARCHITECTURES:
        cubin, facts[arch] = compile_for(arch, "true")
        if environment is not None:
            code = disassembly(cubin, environment)
            mixes[arch] = instructions(code)
            if code != disassembly(compile_for(arch, "false")[0], environment):
                wrong.append(f"sm_{arch}: --fmad changes the code")
        for kernel, fact in facts[arch].items():
            found = {**fact, "instructions": sum(mixes[arch][kernel].values()) if mixes else 0}
            for what, limit in {"spilled": 0, **limits[kernel[0]]}.items():
                if found[what] > limit:
                    wrong.append(f"sm_{arch}: {' '.join(kernel)}: {what} {found[what]}, at most {limit}")
        registers = max(fact["registers"] for fact in facts[arch].values())
        print(f"sm_{arch}: {len(facts[arch])} kernels, at most {registers} registers", flush=True)
    if wrong:
        sys.exit("\n".join(wrong))
    PAGE.write_text(page(facts, mixes))
    print(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()

"""Compiles the CUDA kernels for every architecture, looks at the machine code, writes docs/results/cuda_code.md.

Needs no GPU. Fails if a kernel spills registers, if it needs more than tools/cuda_limits.json allows, or if nvcc's
--fmad changes the code. The instructions are counted by cuobjdump, which is installed from PyPI into build/cuda where
it is missing; where it cannot be had, registers and memory are checked alone, as ptxas reports them.
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
SOURCES = sorted((ROOT / "csrc/cuda").glob("*.cu"))
BUILD = ROOT / "build/cuda"
LIMITS = ROOT / "tools/cuda_limits.json"
PAGE = ROOT / "docs/results/cuda_code.md"
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
MODES = ("add", "mul", "mul_add", "add_mul", "fold", "eps")
LAYOUTS = ("in order", "channels_last", "pooled by twos")
RULES = ("exact", "scaled", "bits", "truncate", "nearest", "nearest, flushed", "nearest, by bits", "fixed", "any")
STEPS = {0: "", 1: ", leak", 3: ", leak, synapse"}  # More in csrc/serial.h
TYPES = {"f": "float32", "d": "float64", "NS_8BFloat16E": "bfloat16", "NS_7Float16E": "float16"}
# What an instruction counts as: the first of these that its name begins with.
CLASSES = {
    "tensor cores": r"HMMA",
    "matrix loads": r"LDSM",
    "asynchronous copies": r"LDGSTS",
    "wide products": r"U?IMAD\.(WIDE|HI)",
    "float32": r"F(?!LO)|MUFU|I2F",
    "float64": r"D",
    "memory": r"LD|ST|ULD",
    "control": r"BRA|BSSY|BSYNC|CALL|RET|EXIT|WARPSYNC|NOP|BAR|BREAK|BMOV",
    "other": r"",
}

Kernel = tuple[str, str]  # "epilogue float32", "mul_add, channels_last"

HEAD = """# CUDA: what the compiler makes of the kernels

Written by `make cuda-check`, which needs no GPU: static facts, no speeds. No kernel spills a register on any
architecture, nvcc's `--fmad` changes not one instruction of the noise, and no kernel exceeds `tools/cuda_limits.json`.
How the kernels are tested, and what was measured, is in [cuda.md](../guides/cuda.md).

"""

# A kernel that draws so many blocks of one row, so that two of them tell what one block more takes.
PROBE = """
#include "noise.h"
using namespace noisykernels;
template <int kBlocks, bool kNormals>
__global__ void probe(uint32_t* out, uint64_t seed, uint32_t row, uint32_t draw, uint32_t block) {
  const RoundKeys<uint32_t> keys(seed);
  const RowConstants<uint32_t> constants(seed, row, draw, 7);
#pragma unroll
  for (int k = 0; k < kBlocks; ++k) {
    uint32_t w[4];
    float z[4];
    philox_in_row(keys, constants, block + 1000003u * k, w);
    if (kNormals) {
      Gaussian::sample(w[0], w[1], z[0], z[1]), Gaussian::sample(w[2], w[3], z[2], z[3]);
      reinterpret_cast<float4*>(out)[k] = make_float4(z[0], z[1], z[2], z[3]);
    } else {
      reinterpret_cast<uint4*>(out)[k] = make_uint4(w[0], w[1], w[2], w[3]);
    }
  }
}
template __global__ void probe<1, false>(uint32_t*, uint64_t, uint32_t, uint32_t, uint32_t);
template __global__ void probe<2, false>(uint32_t*, uint64_t, uint32_t, uint32_t, uint32_t);
template __global__ void probe<1, true>(uint32_t*, uint64_t, uint32_t, uint32_t, uint32_t);
template __global__ void probe<2, true>(uint32_t*, uint64_t, uint32_t, uint32_t, uint32_t);
"""

# Of the data sheets: multiprocessors, GHz, dense bf16 TFLOP/s; lanes of a multiprocessor that issue, that calculate in
# float32 and in integers, in one cycle (CUDA programming guide, arithmetic instructions).
CHIPS = {"A100": (80, 108, 1.41, 312, 128, 64, 64), "H100 SXM": (90, 132, 1.83, 989, 128, 128, 64)}


def kernel_of(mangled: str) -> Kernel:
    """What a symbol of the object file is, in words."""
    of_noise = r"(epilogue|pool)_kernelILNS_4ModeE(\d)E(f|d|NS_\d\w+?E)[fd](?:LNS1_6LayoutE(\d)E)?Lb(\d)E"
    if match := re.search(of_noise, mangled):
        name, mode, kind, layout, given = match.groups()
        where = LAYOUTS[int(layout)] if layout else "any geometry"
        return f"{name} {TYPES[kind]}", f"{MODES[int(mode)]}, {where}" + ", eps given" * (given == "1")
    if match := re.search(r"tile_kernelILNS_4RuleE(\d)ELj(\d+)E(f|d)E", mangled):
        rule, steps, kind = match.groups()
        return f"sums {TYPES[kind]}", f"{RULES[int(rule)]}{STEPS[int(steps)]}"
    if match := re.search(r"(sum|gradient|quantize)_kernelI(f|d|NS_\d\w+?E)[fd]?E", mangled):
        name, kind = match.groups()
        names = {"sum": "sums", "gradient": "gradient of sums", "quantize": "quantize"}
        return f"{names[name]} {TYPES[kind]}", "all else" if name == "sum" else ""
    match = re.search(r"gemm_kernelINS1_(?:11TensorCoresI(f|NS_\d\w+?E)E|5Exact)ELNS_4ModeE(\d)E", mangled)
    assert match, mangled
    kind, mode = match.groups()
    return f"gemm {'tf32' if kind == 'f' else TYPES[kind] if kind else 'float32'}", MODES[int(mode)]


def compile_for(source: Path, arch: int, fmad: str) -> tuple[Path, dict[Kernel, dict[str, int]]]:
    """The machine code, and what ptxas says of every kernel: registers, spilled and shared bytes."""
    cubin = BUILD / f"{source.stem}.sm_{arch}.fmad-{fmad}.cubin"
    run = subprocess.run(
        [
            *("nvcc", "-std=c++20", "-O3", "-Werror", "all-warnings", f"-arch=sm_{arch}", f"--fmad={fmad}"),
            *("-Xptxas", "-v", "-cubin", str(source), "-o", str(cubin)),
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
    """The machine code as text."""
    command = ["cuobjdump", "-sass", str(cubin)]
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout


def instructions(code: str) -> dict[str, Counter[str]]:
    """How many instructions of each class every kernel has, by its mangled name."""
    mixes = {}
    for part in code.split("Function : ")[1:]:
        names = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)", part, re.MULTILINE)
        mixes[part.split()[0]] = Counter(
            next(c for c, pattern in CLASSES.items() if re.match(pattern, name)) for name in names
        )
    return mixes


def of_one_block(arch: int, normals: bool, environment: dict[str, str]) -> Counter[str]:
    """What the generator takes for one block more, with or without its four normals."""
    source, cubin = BUILD / "probe.cu", BUILD / f"probe.sm_{arch}.cubin"
    source.write_text(PROBE)
    command = ["nvcc", "-std=c++20", "-O3", f"-arch=sm_{arch}", f"-I{ROOT / 'csrc'}", "-cubin", str(source)]
    subprocess.run([*command, "-o", str(cubin)], check=True)
    mixes = instructions(disassembly(cubin, environment))
    one, two = (next(m for n, m in mixes.items() if f"ILi{k}ELb{normals:d}E" in n) for k in (1, 2))
    return Counter({c: two[c] - one[c] for c in CLASSES if two[c] != one[c]})


def roofline(environment: dict[str, str]) -> str:
    """The cost of a normal beside that of the sum it is added to, by the instructions and the data sheets."""
    text = """## Random numbers against the tensor cores

What the generator takes for four normals (one block more of a row, in instructions that the compiler made), the least
time of one normal on all of a chip, and the inner dimension K at which the 2 K operations of one bfloat16 sum take the
tensor cores as long. A kernel that draws while others multiply hides the noise above that K, and takes at least the
normal's time below it. A pass of its own after the library's product adds the normal's time at every K, or that of
reading and writing the value where that is longer.

"""
    rows = []
    for chip, (arch, processors, ghz, tflops, issue, floats, integers) in CHIPS.items():
        words, all_of_it = (of_one_block(arch, normals, environment) for normals in (False, True))
        total, in_float = sum(all_of_it.values()), all_of_it["float32"]
        in_integer = total - in_float - all_of_it["memory"] - all_of_it["control"]
        cycles = max(total / issue, in_float / floats, in_integer / integers) / 4
        picoseconds = 1e3 * cycles / (processors * ghz)
        k = picoseconds * tflops / 2
        rows.append([
            f"{chip} (sm_{arch})", sum(words.values()), words["wide products"], total, in_float, in_integer,
            f"{picoseconds:.2f}", f"{k:.0f}",
        ])  # fmt: skip
    head = ["chip", "words", "of them wide products", "normals", "float32", "integer", "ps a normal", "K"]
    return text + table(head, rows)


def table(head: list[str], rows: list[list[object]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(str(c) for c in line) + " |\n" for line in lines) + "\n"


def page(
    facts: dict[int, dict[Kernel, dict[str, int]]], mixes: dict[int, dict[Kernel, Counter[str]]], costs: str
) -> str:
    """The text of docs/results/cuda_code.md."""
    version = re.search(r"V([\d.]+)", subprocess.run(["nvcc", "--version"], stdout=subprocess.PIPE, text=True).stdout)
    archs, newest = [f"sm_{a}" for a in facts], facts[ARCHITECTURES[-1]]
    text = HEAD + costs
    text += f"## Registers of a thread (nvcc {version[1]}; none spilled)\n\n"
    text += table(
        ["kernel", "mode, layout", "shared bytes", *archs],
        [
            [*k, newest[k]["shared"], *(facts[a].get(k, {}).get("registers", "-") for a in facts)]
            for k in sorted(newest)
        ],
    )
    if mixes:
        text += "## Instructions of a kernel, all kinds of noise together\n\n"
        text += table(
            ["kernel", "mode, layout", *archs],
            [[*k, *(sum(mixes[a][k].values()) if k in mixes[a] else "-" for a in mixes)] for k in sorted(newest)],
        )
        text += "## What they are, on sm_90\n\n"
        text += table(
            ["kernel", "mode, layout", *CLASSES], [[*k, *(mixes[90][k][c] for c in CLASSES)] for k in sorted(newest)]
        )
    return text.rstrip() + "\n"


def wrong_of(kernel: Kernel, found: dict[str, int], limits: dict[str, dict[str, int]]) -> list[str]:
    """What is more, or less, of a kernel than it should be."""
    wrong = [
        f"{' '.join(kernel)}: {what} {found[what]}, at most {limit}"
        for what, limit in {"spilled": 0, **limits[kernel[0]]}.items()
        if found.get(what, 0) > limit
    ]
    if kernel[0].startswith("gemm") and "instructions" in found:
        needed = ["asynchronous copies"] + ["tensor cores", "matrix loads"] * (kernel[0] != "gemm float32")
        wrong += [f"{' '.join(kernel)}: no {what}" for what in needed if not found[what]]
    return wrong


def main() -> None:
    """Compiles, checks the limits, writes the page."""
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
        facts[arch], mix = {}, {}
        for source in SOURCES:
            if source.stem == "gemm" and arch < 80:
                continue  # compiled, and never run: csrc/cuda/ptx.h
            cubin, found = compile_for(source, arch, "true")
            facts[arch] |= found
            if environment is not None:
                code = disassembly(cubin, environment)
                mix |= {kernel_of(name): counts for name, counts in instructions(code).items()}
                if code != disassembly(compile_for(source, arch, "false")[0], environment):
                    wrong.append(f"sm_{arch}: --fmad changes the code of {source.name}")
        for kernel, fact in facts[arch].items():
            counted = {"instructions": sum(mix[kernel].values()), **mix[kernel]} if mix else {}
            wrong += [f"sm_{arch}: {what}" for what in wrong_of(kernel, {**fact, **counted}, limits)]
        if mix:
            mixes[arch] = {kernel: Counter(counts) for kernel, counts in mix.items()}
        registers = max(fact["registers"] for fact in facts[arch].values())
        print(f"sm_{arch}: {len(facts[arch])} kernels, at most {registers} registers", flush=True)
    if wrong:
        sys.exit("\n".join(wrong))
    PAGE.write_text(page(facts, mixes, "" if environment is None else roofline(environment)))
    print(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()

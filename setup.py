"""Builds the extension `noisykernels._C`; everything else stands in pyproject.toml.

The operators use torch's stable ABI only, so one build serves every torch from 2.10 on. The CUDA kernels see no torch,
bring their own CUDA runtime and find torch's stream at run time: they are built wherever nvcc is, whatever torch is
there, and the same binary loads where there is no CUDA.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension, _get_cuda_arch_flags

HEADERS = sorted(str(p) for pattern in ("*.h", "*.inl") for p in Path("csrc").rglob(pattern))
KERNELS = sorted(str(p) for p in Path("csrc/cuda").glob("*.cu"))
# Of these, unless TORCH_CUDA_ARCH_LIST names others, what nvcc knows. Code for 8.0 runs on 8.6 and 8.9, too.
ARCHITECTURES = "7.5 8.0 9.0 10.0 12.0"


def is_newer(target: Path, made_from: Path) -> bool:
    """Than all of our files that the compiler wrote down it was made from; not if one of them is gone."""
    if not (target.exists() and made_from.exists()):
        return False
    inputs = [Path(p) for p in re.findall(r"csrc/\S+(?:h|cu)\b", made_from.read_text())]
    return all(p.exists() and target.stat().st_mtime > p.stat().st_mtime for p in inputs)


def output(*command: str) -> str:
    """What a command prints, to both of its streams."""
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout


def cuda_compiler() -> str | None:
    """nvcc; None, having said why, if there is none that will do."""
    nvcc = shutil.which("nvcc", path=f"{os.environ.get('CUDA_HOME', '')}/bin:{os.environ['PATH']}")
    if nvcc is None:
        print("noisykernels: nvcc was not found (PATH, CUDA_HOME): the CUDA kernels are left out")
        return None
    version = re.search(r"release (\d+)", said := output(nvcc, "--version"))
    if version is None or int(version[1]) < 12:
        print(f"noisykernels: {nvcc} is not of CUDA 12 or newer: the CUDA kernels are left out\n{said}")
        return None
    return nvcc


class Build(BuildExtension):
    """Compiles the CUDA kernels first, if there is a compiler for them."""

    def build_extensions(self) -> None:
        """See setuptools."""
        if nvcc := cuda_compiler():
            self.add_cuda(nvcc)
        super().build_extensions()

    def add_cuda(self, nvcc: str) -> None:
        """Compiles the kernels and adds them to what is linked."""
        if not os.environ.get("TORCH_CUDA_ARCH_LIST"):
            known = output(nvcc, "--list-gpu-arch").split()
            names = [a for a in ARCHITECTURES.split() if f"compute_{a.replace('.', '')}" in known]
            os.environ["TORCH_CUDA_ARCH_LIST"] = f"{';'.join(names)}+PTX"
        targets = _get_cuda_arch_flags()  # understands what torch's other extensions understand
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count())
        for source in KERNELS:
            target = Path(self.build_temp, source).with_suffix(".o")
            made_by, made_from = target.with_suffix(".command"), target.with_suffix(".d")
            command = [nvcc, "-std=c++20", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden", *targets, "-MD"]
            command += ["-MF", str(made_from), "-c", source, "-o", str(target)]
            if not (made_by.exists() and made_by.read_text() == str(command) and is_newer(target, made_from)):
                target.parent.mkdir(parents=True, exist_ok=True)
                print(f"noisykernels: {' '.join(command)}", flush=True)
                subprocess.run([*command, "--threads", jobs], check=True)
                made_by.write_text(str(command))
            extension.extra_objects.append(str(target))
        steps = output(nvcc, "--dryrun", "-x", "cu", "-c", os.devnull)
        root = Path(re.search("TOP=(.*)", steps)[1])  # nvcc itself may be a link or a script
        libraries = [root / "lib64", root / "lib", *root.glob("targets/*/lib")]
        extension.library_dirs += [str(p) for p in libraries if (p / "libcudart_static.a").exists()][:1]
        extension.extra_link_args += ["-lcudart_static", "-ldl", "-lrt", "-lpthread"]
        built = re.findall(r",code=(\w+)", " ".join(targets))
        extension.extra_compile_args.append(f'-DNOISYKERNELS_CUDA="{" ".join(built)}"')


extension = CppExtension(
    "noisykernels._C",
    sorted(str(p) for folder in ("ops", "cpu") for p in Path("csrc", folder).glob("*.cpp")),
    depends=[*HEADERS, *KERNELS],
    extra_compile_args=[
        "-std=c++20",
        "-O3",
        "-g0",
        "-fopenmp",
        "-fvisibility=hidden",
        "-ffp-contract=off",  # noise.h states every rounding
        "-Wall",
        "-Wextra",
    ],
    extra_link_args=["-fopenmp"],
)

setup(ext_modules=[extension], cmdclass={"build_ext": Build.with_options(use_ninja=True)})

"""Builds the extension `noisykernels._C`; everything else stands in pyproject.toml.

The operators use torch's stable ABI only, so one build serves every torch from 2.10 on. CUDA sources, once there
are any, are picked up here: there is no second builder.
"""

from pathlib import Path

from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

extension = CppExtension(
    "noisykernels._C",
    sorted(str(p) for p in [*Path("csrc").glob("*.cpp"), *Path("csrc/cpu").glob("*.cpp")]),
    depends=sorted(str(p) for pattern in ("*.h", "*.inl") for p in Path("csrc").rglob(pattern)),
    extra_compile_args=[
        "-std=c++20",
        "-O3",
        "-g0",
        "-fopenmp",
        "-fvisibility=hidden",
        "-ffp-contract=off",  # noise.h states every rounding
        "-Wall",
        "-Wextra",
        "-DTORCH_TARGET_VERSION=0x020a000000000000",  # the stable ABI of torch 2.10
    ],
    extra_link_args=["-fopenmp"],
)

setup(ext_modules=[extension], cmdclass={"build_ext": BuildExtension.with_options(use_ninja=True)})

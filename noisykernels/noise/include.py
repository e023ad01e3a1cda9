"""Where the definition of the noise is, for kernels that are not ours."""

from __future__ import annotations

from pathlib import Path

__all__ = ["get_include"]


def get_include() -> str:
    """The folder to compile with, ``-I``, so that ``#include <noisykernels/noise.h>`` finds what defines the noise.

    The header needs C++17 and no library; it compiles in C++, with nvcc and with NVRTC, which is CuPy's compiler.

    Example:
        >>> print((Path(get_include()) / "noisykernels" / "noise.h").read_text()[:30])
        // The definition of the noise
    """
    return str(Path(__file__).parents[1] / "include")

"""Noisy neural-network hardware in PyTorch: fused kernels, layers, and robustness studies.

What most people need stands here; the rest has namespaces (`nk.hardware`, `nk.arithmetic`, ...). All of it is loaded
when it is first asked for, so that records and statistics (`noisykernels.stats`) can be used without torch.
"""

import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

_HOMES = {
    "noise": "Noise eps get_include per_channel per_draw per_row perturb perturb_relu_max_pool2d",
    "noise.contract": "STREAM_VERSION build_info",
    "nn": "NoiseSite NoisyConv1d NoisyConv2d NoisyConv3d NoisyConvTranspose1d NoisyConvTranspose2d "
    "NoisyConvTranspose3d NoisyLinear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d linear "
    "matmul",
    "hardware": "InputNoise MacNoise WeightNoise",
    "arithmetic": "Serial quantize",
    "injection": "inject noise_state remove sites",
    "walking.walk": "walk",
    "walking": "Compute Search walk_mixed walk_parameter",
    "experiments": "chips vote",
    "study": "Study compare",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}
_NAMESPACES = (
    "arithmetic brainscales datasets experiments hardware injection metrics nn noise plotting stats study training "
    "walking zoo"
).split()

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> object:
    if name in _NAMESPACES:
        return import_module(f"noisykernels.{name}")
    if name == "__version__":
        try:
            found: object = version("noisykernels")
        except PackageNotFoundError:  # a source tree that is not installed
            found = "0+unknown"
    elif name in _HOME_OF:
        found = getattr(import_module(f"noisykernels.{_HOME_OF[name]}"), name)
    else:
        raise AttributeError(f"module 'noisykernels' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_NAMESPACES})


# Programs that import us for torch.ops.noisykernels alone find it complete, if they imported torch before.
if sys.modules.get("torch") is not None:
    import_module("noisykernels.arithmetic")  # below which all operators are

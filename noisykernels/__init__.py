"""Noisy neural-network hardware in PyTorch: fused kernels, layers, and robustness studies.

What most people need stands here; the rest has namespaces (`nk.hardware`, `nk.arithmetic`, ...). All of it is loaded
when it is first asked for, so that records and statistics (`noisykernels.stats`) can be used without torch.
"""

import importlib as _importlib
import sys as _sys
from importlib.util import find_spec as _find_spec
from typing import Any as _Any

_HOMES = {
    "noise": "Noise TokenRows eps get_include per_channel per_draw per_row perturb perturb_relu_max_pool2d",
    "noise.contract": "STREAM_VERSION build_info",
    "nn": "NoiseSite NoisyConv1d NoisyConv2d NoisyConv3d NoisyConvTranspose1d NoisyConvTranspose2d "
    "NoisyConvTranspose3d NoisyLinear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d linear "
    "matmul",
    "hardware": "InputNoise MacNoise WeightNoise",
    "arithmetic": "Serial quantize",
    "injection": "calibrate coverage inject noise_state remove sites",
    "walking": "Compute Search walk walk_mixed walk_parameter",
    "datasets": "tokens",
    "experiments": "chips vote",
    "stats": "Drop Keep Ratio Value",
    "study": "Study compare",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}
_NAMESPACES = (
    "arithmetic brainscales datasets experiments hardware injection integrations metrics nn noise plotting presets "
    "stats study training walking zoo"
).split()

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> object:
    if name in _NAMESPACES:
        return _importlib.import_module(f"noisykernels.{name}")
    if name == "__version__":
        metadata = _importlib.import_module("importlib.metadata")
        try:
            found: object = metadata.version("noisykernels")
        except metadata.PackageNotFoundError:  # a source tree that is not installed
            found = "0+unknown"
    elif name in _HOME_OF:
        found = getattr(_importlib.import_module(f"noisykernels.{_HOME_OF[name]}"), name)
    else:
        raise AttributeError(f"module 'noisykernels' has no attribute {name!r}{_hint(name)}")
    globals()[name] = found
    return found


def _hint(name: str) -> str:
    """Where a name is that is not at the top."""
    spaces = [] if name.startswith("_") else _NAMESPACES
    at = [f"nk.{s}.{name}" for s in spaces if name in _importlib.import_module(f"noisykernels.{s}").__all__]
    return f"; there is {' and '.join(at)}" if at else ""


def __dir__() -> list[str]:
    return sorted([*__all__, *_NAMESPACES, "__all__", "__doc__", "__file__", "__name__", "__path__", "__version__"])


class _WithTorch:
    """Registers torch.ops.noisykernels as soon as torch is there: programs may import us for the operators alone, and
    in either order. Where torch comes because a module of ours asks for it, that module registers what it needs."""

    def find_spec(self, name: str, path: _Any = None, target: _Any = None) -> _Any:
        if name != "torch":
            return None
        _sys.meta_path.remove(self)
        spec: _Any = _find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def and_register(module: _Any) -> None:
                execute(module)
                ours = [m for n, m in _sys.modules.items() if n.partition(".")[0] == "noisykernels"]
                if not any(getattr(m.__spec__, "_initializing", False) for m in ours):
                    _register()

            spec.loader.exec_module = and_register
        return spec


def _register() -> None:
    _importlib.import_module("noisykernels.arithmetic")  # all operators are in it or below


if _sys.modules.get("torch") is not None:
    _register()
else:
    _sys.meta_path.insert(0, _WithTorch())

"""Sites: the calls of a forward pass at which noise can enter, how they are named and numbered, and how noise enters there.

While an injected model runs, a torch-function mode sees every operation it calls, from modules and from plain functions
alike. An operation in `KINDS` is a site. Nothing in the model is replaced, so parameters, keys, hooks and sharing stay as
they are.
"""

from __future__ import annotations

import fnmatch
import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, handle_torch_function

from noisykernels import ops
from noisykernels.noise import Noise

SITE_LIMIT = 2**24

# Operations whose result our own operators produce with the noise fused.
_FUSED: dict[Any, Callable[..., Tensor]] = {
    F.linear: ops.linear,
    F.conv1d: ops.conv1d,
    F.conv2d: ops.conv2d,
    F.conv3d: ops.conv3d,
    F.conv_transpose1d: ops.conv_transpose1d,
    F.conv_transpose2d: ops.conv_transpose2d,
    F.conv_transpose3d: ops.conv_transpose3d,
}
_ACTIVATIONS = (
    "relu relu6 leaky_relu elu selu celu gelu silu mish softplus hardtanh hardswish hardsigmoid tanh sigmoid "
    "logsigmoid prelu rrelu glu softsign tanhshrink hardshrink softshrink threshold"
)
_NORMS = "batch_norm layer_norm group_norm instance_norm rms_norm local_response_norm"
_POOLS = " ".join(
    f"{kind}_pool{d}d" for d in (1, 2, 3) for kind in ("max", "avg", "adaptive_avg", "adaptive_max", "lp", "fractional_max")
)
_RECURRENT = "lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell"
_IN_PLACE = {"relu_", "relu6_", "leaky_relu_", "elu_", "selu_", "celu_", "hardtanh_", "tanh_", "sigmoid_", "threshold_", "rrelu_"}


def _kinds() -> dict[Any, str]:
    """Every function, method or alias under which torch offers an operation that makes a site, with the site's kind."""
    kinds: dict[Any, str] = {}
    places = (F, torch, Tensor, torch._C._nn, torch._VF)
    for name in f"{_ACTIVATIONS} {_NORMS} {_POOLS} {_RECURRENT}".split():
        for place in places:
            for alias in (name, f"{name}_", f"{name}_with_indices"):
                function = getattr(place, alias, None)
                if function is not None:
                    kinds[function] = name
    for function in _FUSED:
        kinds[function] = function.__name__
    kinds[F.scaled_dot_product_attention] = "attention"
    return kinds


KINDS = _kinds()


# -------------------------------------------------------------------------------------------------- names and numbers


def site_ids(names: Iterable[str]) -> dict[str, int]:
    """Numbers of a model's sites: 24 bits of a hash of the name; of two that collide the later in sorted order moves up.

    Example:
        >>> site_ids(["input", "conv1:conv2d#0"])
        {'conv1:conv2d#0': 8119087, 'input': 6796606}
    """
    ids: dict[str, int] = {}
    taken: set[int] = set()
    for name in sorted(names):
        number = hashed_id(name)
        while number in taken:
            number = (number + 1) % SITE_LIMIT
        taken.add(number)
        ids[name] = number
    return ids


@torch.compiler.assume_constant_result
def hashed_id(name: str) -> int:
    """24 bits of BLAKE2b of the name."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "little") % SITE_LIMIT


@dataclass(frozen=True)
class Site:
    """One site of a model: ``name`` is ``module.path:kind#k`` (or ``input``), ``index`` counts in execution order."""

    name: str
    index: int
    id: int
    kind: str
    shape: tuple[int, ...]
    row_dim: int | None  # dimension that counts rows; None: could not be found


@dataclass(frozen=True)
class Placement:
    """Which noise enters where: what `inject` was asked for."""

    noise: Noise | dict[str, Noise] | None = None
    where: Any = None
    normalize_to_input_size: bool = False
    repeats: int | dict[str, int] = 1
    in_training: bool = True
    in_eval: bool = True
    row_dims: dict[str, int] = field(default_factory=dict)

    def at(self, name: str, module: nn.Module) -> Noise | None:
        """The noise of the site with this name, whose innermost module is `module`."""
        if self.noise is None or not (self.in_training if module.training else self.in_eval):
            return None
        if isinstance(self.noise, dict):
            for pattern, mapped in self.noise.items():
                if matches(name, pattern):
                    return mapped
            return None
        where = self.where
        if where is None:
            return self.noise
        if isinstance(where, str):
            return self.noise if matches(name, where) else None
        if isinstance(where, type):
            return self.noise if isinstance(module, where) and name != "input" else None
        if callable(where):
            return where(name, module)
        chosen = any(matches(name, w) if isinstance(w, str) else isinstance(module, w) and name != "input" for w in where)
        return self.noise if chosen else None

    def repeats_at(self, name: str) -> int:
        """How often the noisy operation at a site is repeated and averaged."""
        if isinstance(self.repeats, int):
            return self.repeats
        return next((r for pattern, r in self.repeats.items() if matches(name, pattern)), 1)


def matches(name: str, pattern: str) -> bool:
    """Whether a site's name, its name without the call's number, or its module's path matches a shell pattern."""
    without_number = name.rpartition("#")[0] or name
    path = without_number.rpartition(":")[0]
    return any(fnmatch.fnmatchcase(n, pattern) for n in (name, without_number, path) if n)


# ------------------------------------------------------------------------------------------------- the noise of a site


def enter_module(path: str, module: nn.Module) -> None:
    """Tells the running mode, if there is one, which module's calls come next."""
    if torch._C._is_torch_function_mode_enabled():
        handle_torch_function(enter_module, (), path, module)


def leave_module() -> None:
    """The counterpart of `enter_module`."""
    if torch._C._is_torch_function_mode_enabled():
        handle_torch_function(leave_module, ())


def draw_layer(op: Callable[..., Tensor], kind: str, noise: Noise, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """A noisy layer's operation: a site of the model that runs, or alone, with a fresh seed."""
    if torch._C._is_torch_function_mode_enabled():
        return handle_torch_function(draw_layer, (x,), op, kind, noise, x, *args, **kwargs)
    return op(x, *args, noise=noise, **kwargs)


@dataclass
class Key:
    """What the noise of one forward depends on, besides site and row."""

    seed: Tensor
    draws: Tensor | None
    rows: Tensor | None
    batch: int  # rows of every draw together


class SiteMode(TorchFunctionMode):
    """Runs one forward of a model: names each site as it comes and puts the placement's noise there."""

    def __init__(
        self, placement: Placement, key: Key, root: nn.Module, ids: dict[str, int], record: list[tuple[str, str, Tensor]] | None = None
    ) -> None:
        super().__init__()
        self.placement, self.key, self.ids, self.record = placement, key, ids, record
        self.modules: list[tuple[str, nn.Module]] = [("", root)]
        self.calls: dict[str, int] = {}

    def resumed(self) -> SiteMode:
        """A mode that goes on from here, for a later recomputation of what follows."""
        mode = SiteMode(self.placement, self.key, self.modules[0][1], self.ids)
        mode.modules, mode.calls = list(self.modules), dict(self.calls)
        return mode

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is enter_module:
            self.modules.append(args)
            return None
        if func is leave_module:
            self.modules.pop()
            return None
        if func is draw_layer:
            return self._layer(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            from noisykernels.attention import multi_head_attention_forward

            return multi_head_attention_forward(self, *args, **kwargs)
        kind = KINDS.get(func)
        if kind is None:
            return func(*args, **kwargs)
        return self.site(kind, func, args, kwargs)

    def name(self, kind: str) -> str:
        """The name of the call of an operation that begins now."""
        stem = f"{self.modules[-1][0]}:{kind}"
        number = self.calls.get(stem, 0)
        self.calls[stem] = number + 1
        return f"{stem}#{number}"

    def site_id(self, name: str) -> int:
        """The number of a site; a collision that was not settled beforehand is an error."""
        number = self.ids.get(name)
        if number is None:
            number = hashed_id(name)
            if number in self.ids.values():
                raise RuntimeError(
                    f"site {name!r} has the same number as another; call sites(model, example_input) once, which settles it"
                )
            if not torch.compiler.is_compiling():  # a graph would be guarded on the table that it changes
                self.ids[name] = number
        return number

    def site(self, kind: str, func: Any, args: Any, kwargs: Any, row_dim: int | None = None) -> Any:
        """One call of an operation that makes a site."""
        name = self.name(kind)
        if kind in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
            row_dim = _recurrent_row_dim(name, args)
        noise = self.placement.at(name, self.modules[-1][1])
        if noise is None and self.record is None:
            return func(*args, **kwargs)
        if getattr(func, "__name__", "") in _IN_PLACE:
            target, func = args[0], getattr(F, kind, None) or getattr(torch, kind)
            return target.copy_(self.at(name, noise, func(*args, **kwargs), row_dim))
        if kwargs.get("inplace"):
            kwargs = {**kwargs, "inplace": False}
        op = _FUSED.get(func)
        if op is not None and noise is not None and self.record is None and row_dim is None:
            fused = self._fused(name, op, noise, args, kwargs)
            if fused is not None:
                return fused
        out = func(*args, **kwargs)
        if isinstance(out, tuple):  # recurrent layers and pools with indices: the noise is on the first
            return (self.at(name, noise, out[0], row_dim), *out[1:])
        return self.at(name, noise, out, row_dim)

    def at(self, name: str, noise: Noise | None, clean: Tensor, row_dim: int | None = None) -> Tensor:
        """The noisy value at a site."""
        if self.record is not None:
            self.record.append((name, self.modules[-1][0], clean))
            return clean
        if noise is None or not clean.is_floating_point():
            return clean
        dim = self._row_dim(name, clean, row_dim)
        value = clean if dim == 0 else clean.movedim(dim, 0)
        value = self._noisy(name, noise, value)
        return value if dim == 0 else value.movedim(0, dim)

    def _noisy(self, name: str, noise: Noise, value: Tensor) -> Tensor:
        noise, repeats = self._levels(name, noise, value.numel() // max(1, value.shape[0]))
        key = self._key(name)
        if repeats == 1:
            return ops.perturb(value, noise, **key)
        draws = torch.zeros(1, dtype=torch.int64, device=value.device) if key["draws"] is None else key["draws"]
        parts = [ops.perturb(value, noise, **{**key, "draws": draws * repeats + r}) for r in range(repeats)]
        return torch.stack(parts).mean(0)

    def _levels(self, name: str, noise: Noise, item_size: int) -> tuple[Noise, int]:
        """The noise with its published options applied, and the number of explicit repeats left to do."""
        placement, repeats = self.placement, self.placement.repeats_at(name)
        scale = 1.0 / item_size if placement.normalize_to_input_size and item_size > 0 else 1.0
        explicit = noise.mode == "add_mul" and repeats > 1  # a mean of such products is no product of means
        if not explicit:
            scale, repeats = scale / math.sqrt(repeats), 1
        return (noise if scale == 1.0 else noise.scaled(scale)), repeats

    def _key(self, name: str) -> dict[str, Any]:
        key = self.key
        return {"seed": key.seed, "site": self.site_id(name), "draws": key.draws, "rows": key.rows}

    def _fused(self, name: str, op: Callable[..., Tensor], noise: Noise, args: Any, kwargs: Any) -> Tensor | None:
        kwargs = dict(kwargs)
        x, rest = (args[0], args[1:]) if args else (kwargs.pop("input"), ())
        weight = rest[0] if rest else kwargs["weight"]
        batched = x.dim() > 1 if op is ops.linear else x.dim() == weight.dim()
        if not batched or x.shape[0] != self.key.batch or self._declared_row_dim(name) != 0:
            return None  # a row dimension to look into
        if self.placement.normalize_to_input_size or self.placement.repeats_at(name) != 1:
            if noise.mode == "add_mul" or self.placement.normalize_to_input_size:
                return None
            noise, _ = self._levels(name, noise, 0)
        return op(x, *rest, **kwargs, noise=noise, **self._key(name))

    def _layer(self, op: Callable[..., Tensor], kind: str, noise: Noise, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        name = self.name(kind)
        if self.record is not None:
            zero = op(x, *args, noise=Noise(), **kwargs)
            self.record.append((name, self.modules[-1][0], zero))
            return zero
        if x.dim() == 0 or x.shape[0] != self.key.batch:
            raise RuntimeError(self._no_rows(name, x))
        return op(x, *args, noise=noise, **kwargs, **self._key(name))

    def _declared_row_dim(self, name: str) -> int | None:
        dims = self.placement.row_dims
        return next((d for pattern, d in dims.items() if matches(name, pattern)), 0) if dims else 0

    def _row_dim(self, name: str, value: Tensor, known: int | None) -> int:
        dim = self._declared_row_dim(name) if known is None else known
        if dim is None or not -value.dim() <= dim < value.dim() or value.shape[dim] != self.key.batch:
            raise RuntimeError(self._no_rows(name, value))
        return dim

    def _no_rows(self, name: str, value: Tensor) -> str:
        return (
            f"site {name!r}: expected {self.key.batch} rows (draws x batch) along the row dimension, got a value of shape "
            f"{list(value.shape)}. Where rows do not lie along dimension 0, let inject() find them with example_input=... or "
            f"give row_dims={{{name!r}: dim}}; a value that mixes rows cannot be a site: leave it out with where=..."
        )


def _recurrent_row_dim(name: str, args: Sequence[Any]) -> int:
    """The dimension of the batch in a recurrent layer's output, from the call's own arguments."""
    if not isinstance(args[-1], bool):
        raise RuntimeError(f"site {name!r}: packed sequences have no row dimension; pad them, or leave the site out")
    return 0 if args[-1] else 1


def without_draws(placement: Placement) -> Placement:
    """A placement that puts no noise anywhere."""
    return replace(placement, noise=None)

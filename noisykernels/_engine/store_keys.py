"""To what a store belongs, and what its tasks are called: digests of model, data, noise and plan."""

from __future__ import annotations

import hashlib
import math
import operator
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from noisykernels._C import STREAM_VERSION
from noisykernels._engine.store import canonical
from noisykernels._util.inputs import Inputs
from noisykernels._util.streams import StreamedInputs, StreamedLabels
from noisykernels.hardware.device import Device
from noisykernels.noise.description import Noise
from noisykernels.noise.ranges import Ranges

__all__ = ["identity", "study_key", "task_key", "task_of"]

_BLOCK = 1 << 22  # values hashed at a time
_ROWS = 256  # of streamed data


# --------------------------------------------------------------------------------------------- keys


def task_key(site: str, levels: Sequence[float], draws: Sequence[int], rows: tuple[int, int]) -> str:
    """The name of a task: site, exact levels, draws and range of rows.

    Args:
        site, levels: name of the site; finite levels, at least one, told apart by all bits of their float64.
        draws, rows: ids of the draws, at least one; first row, and the one after the last.

    Raises:
        ValueError: no draws, negative ids, an empty range or a level that is not finite.

    Example:
        >>> task_key("conv1:conv2d#0", [0.1, 2.0], [0, 1, 2], (0, 2000))
        'conv1:conv2d#0|0x1.999999999999ap-4;0x1.0000000000000p+1|0,1,2|0:2000'
    """
    ids, (first, end) = [operator.index(d) for d in draws], map(operator.index, rows)
    values = [float(v) for v in levels]
    if not ids or min(ids) < 0 or not 0 <= first < end or not values or not all(map(math.isfinite, values)):
        raise ValueError(f"task_key: bad levels, draws or rows: {levels}, {draws}, {rows}")
    return f"{site}|{';'.join(v.hex() for v in values)}|{','.join(map(str, ids))}|{first}:{end}"


def task_of(key: str) -> tuple[str, list[float], list[int], tuple[int, int]]:
    """The counterpart of `task_key`, of a name that anyone may have given.

    Raises:
        ValueError: it names no task.

    Example:
        >>> task_of("conv1:conv2d#0|0x1.0000000000000p+1|0,1,2|0:2000")
        ('conv1:conv2d#0', [2.0], [0, 1, 2], (0, 2000))
    """
    site, *parts = key.rsplit("|", 3)
    try:
        levels, draws, rows = (part.split(mark) for part, mark in zip(parts, ";,:", strict=True))
        first, end = map(int, rows)
        found = site, [float.fromhex(v) for v in levels], [int(d) for d in draws], (first, end)
        if task_key(*found) == key:
            return found
    except (ValueError, OverflowError):
        pass
    raise ValueError("its name is none of a task")


def study_key(
    model: nn.Module, inputs: Inputs | StreamedInputs | Tensor, labels: Tensor | StreamedLabels,
    noise: Noise | Sequence[Noise], seed: int, *,
    plan: Mapping[str, Any], rows: Tensor | Sequence[int] | None = None, target: str = "activation",
) -> dict[str, Any]:  # fmt: skip
    """What all results of a study depend on, piece by piece, big ones as SHA-256.

    Sites, levels and draws are no part of it: they make the tasks. What is only in a model's Python code is not seen;
    its parameters, buffers, classes of layers and what these print of themselves are.

    Args:
        model, inputs, labels: the classifier and the data; read in blocks, wherever they are and however they lie.
        noise, seed, target: the noise at level 1 (or several), its seed, and where it enters.
        plan: the contraction plan; must survive JSON.
        rows: data-set index of each row; None numbers them in order.

    Returns:
        layers, weights, inputs, labels, rows, noise, seed, stream, target and plan, and the "sha256" of all these.

    Raises:
        TypeError: a tensor without plain values (sparse, on the meta device), a seed that is no whole number.
        ValueError: a plan that JSON cannot hold.

    Example:
        >>> from noisykernels import Noise
        >>> model, inputs, labels = torch.nn.Linear(4, 2), torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64)
        >>> key = study_key(model, inputs, labels, Noise(add=1.0), 7, plan={"batch_rows": 500})
        >>> key["noise"], key["seed"], len(key["weights"])
        ({'kind': 'gaussian', 'mode': 'add', 'fold': False, 'add': 1.0, 'mul': None}, 7, 64)
    """
    digests = {name: hashlib.sha256() for name in ("layers", "weights", "inputs", "labels", "rows")}
    for name, module in model.named_modules(remove_duplicate=False):
        said = re.sub(r"0x[0-9a-f]+", "", module.extra_repr())  # addresses change from run to run
        digests["layers"].update(canonical([name, type(module).__name__, said]).encode())
    state = {**dict(model.named_buffers(remove_duplicate=False)), **model.state_dict()}
    for name, value in sorted(state.items()):
        _hash(digests["weights"], name, value)
    ids = torch.arange(len(labels)) if rows is None else torch.as_tensor(rows, dtype=torch.int64)
    rows_of = inputs if isinstance(inputs, StreamedInputs) else Inputs.of(inputs)
    first = rows_of if isinstance(rows_of, Inputs) else rows_of[:1]
    for number, told in enumerate(first.told()):
        name = "inputs" if first.one is not None else told
        if isinstance(rows_of, Inputs):
            _hash(digests["inputs"], name, rows_of.tensors[number])
        else:
            _hash_parts(digests["inputs"], name, len(rows_of), (p.tensors[number] for p in rows_of.split(_ROWS)))
    if first.weights is not None:
        parts = [rows_of] if isinstance(rows_of, Inputs) else rows_of.split(_ROWS)
        _hash_parts(digests["inputs"], "weights of rows", len(rows_of), (p.every[-1] for p in parts))
    if isinstance(labels, Tensor):
        _hash(digests["labels"], "labels", labels)
    else:
        _hash_parts(digests["labels"], "labels", len(labels), labels.split(_ROWS))
    _hash(digests["rows"], "rows", ids)

    def level(t: Tensor | None) -> float | str | None:
        if t is None or t.dim() == 0:
            return None if t is None else float(t)
        _hash(digest := hashlib.sha256(), "level", t)
        return digest.hexdigest()

    def described(noise: Noise) -> dict[str, Any]:
        unit = noise.relative.digest if isinstance(noise.relative, Ranges) else noise.relative
        return {"kind": noise.kind, "mode": noise.mode, "fold": noise.fold,
                "add": level(noise.add), "mul": level(noise.mul),
                **({} if unit is None else {"relative": unit})}  # fmt: skip

    key = {
        **{name: digest.hexdigest() for name, digest in digests.items()},
        "noise": [described(n) for n in noise] if isinstance(noise, Sequence) else described(noise),
        "seed": operator.index(seed), "stream": STREAM_VERSION, "target": target, "plan": dict(plan),
    }  # fmt: skip
    return {**key, "sha256": hashlib.sha256(canonical(key).encode()).hexdigest()}


def _hash(digest: Any, name: str, value: Any) -> None:
    """Add name, type, shape and values of a tensor, in logical order and without a copy of the whole."""
    if not isinstance(value, torch.Tensor):  # the extra state of a module: any object
        digest.update(canonical([name, pickle.dumps(value, protocol=4).hex()]).encode())
        return
    if value.layout != torch.strided or value.is_meta or value.is_quantized:
        raise TypeError(f"study_key: {name}: expected a tensor of plain values, got {value.layout} on {value.device}")
    digest.update(canonical([name, str(value.dtype), list(value.shape)]).encode())
    for block in _blocks(value.detach().resolve_conj().resolve_neg()):
        digest.update(block.cpu().view(torch.uint8).numpy())


def _hash_parts(digest: Any, name: str, rows: int, parts: Iterator[Tensor]) -> None:
    """The same of a tensor of so many rows that comes in parts."""
    for number, part in enumerate(parts):
        if number == 0:
            digest.update(canonical([name, str(part.dtype), [rows, *part.shape[1:]]]).encode())
        for block in _blocks(part.detach()):
            digest.update(block.cpu().view(torch.uint8).numpy())


def _blocks(t: Tensor) -> Iterator[Tensor]:
    """The values in logical order, flat and contiguous, some at a time."""
    if t.is_contiguous():
        yield from t.view(-1).split(_BLOCK)
    elif t.numel() <= _BLOCK:
        yield t.contiguous().view(-1)
    elif len(t) == 1:
        yield from _blocks(t[0])
    else:
        for part in t.split(max(1, _BLOCK * len(t) // t.numel())):
            yield from _blocks(part)


def identity(value: Any) -> str:
    """What a store tells devices apart by: how they print themselves and what they hold, tensors by a digest.

    The same in every process; what is only in the code of a device is not seen.

    Example:
        >>> from noisykernels.arithmetic import Serial
        >>> one, other = (identity([Serial(order=order)]) for order in ([0, 1, 2], [0, 2, 1]))
        >>> one == other, one == identity([Serial(order=[0, 1, 2])])
        (False, True)
    """
    if isinstance(value, Tensor):
        held = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return f"{list(value.shape)} {value.dtype} {hashlib.sha256(held).hexdigest()[:16]}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(identity, value))}]"
    said = re.sub(r" at 0x[0-9a-f]+", "", repr(value))  # addresses change from run to run
    if not isinstance(value, Device):
        return said
    held_by = {n: v for n, v in vars(value).items() if isinstance(v, Tensor) or not n.startswith("_")}
    return f"{said} with {', '.join(f'{n}={identity(v)}' for n, v in sorted(held_by.items()))}"

"""What noise, hardware and arithmetic reach in a model: a row for each parameter and each operation."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import nn

from noisykernels._util.arguments import check_arguments
from noisykernels._util.checks import one_of
from noisykernels._util.optional import optional
from noisykernels._util.runtime import unwrap
from noisykernels._util.text import aligned, printable
from noisykernels.hardware.device import Arithmetic
from noisykernels.injection.account import Call, calls_of
from noisykernels.injection.api import inject, of_root
from noisykernels.injection.state import is_injected, state_of
from noisykernels.injection.trace import checked_example

__all__ = ["Coverage", "Reach", "coverage"]


@dataclass(frozen=True)
class Reach:
    """What reaches one parameter or one operation.

    Args:
        name: of the parameter; of the operation's site, or of its function where it makes none.
        part: ``"parameter"`` or ``"operation"``.
        shape: of the parameter, of the operation's result for the example.
        macs: multiply-adds of the operation; of a parameter, those in which it is an operand.
        noise: enters after the operation, or one that reads the parameter.
        hardware: the operation runs on devices; the parameter lies in the array of one.
        arithmetic: adds up the operation's products, or those of which the parameter is an operand.
        why: why none of these; empty where one reaches it.
    """

    name: str
    part: str
    shape: tuple[int, ...]
    macs: int
    noise: bool
    hardware: bool
    arithmetic: bool
    why: str = ""

    @property
    def reached(self) -> bool:
        """Whether anything that was asked for reaches it."""
        return self.noise or self.hardware or self.arithmetic


class Coverage:
    """What `coverage` returns: a row for each parameter of a model and each operation of a forward.

    Args:
        rows: parameters in the model's order, then operations in that of the forward.

    Example:
        >>> import torch
        >>> from noisykernels.hardware import WeightNoise
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
        >>> with inject(model, None, hardware=[WeightNoise(add=0.1)]):
        ...     found = coverage(model, torch.ones(1, 4))
        >>> [row.name for row in found if row.hardware], found.share("hardware")
        (['0.weight', '0:linear#0'], 1.0)
    """

    def __init__(self, rows: Iterable[Reach]) -> None:
        self.rows = tuple(rows)

    def __iter__(self) -> Any:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def parameters(self) -> list[Reach]:
        """The rows of parameters."""
        return [row for row in self.rows if row.part == "parameter"]

    @property
    def operations(self) -> list[Reach]:
        """The rows of operations."""
        return [row for row in self.rows if row.part == "operation"]

    @property
    def macs(self) -> int:
        """Multiply-adds of the whole forward."""
        return sum(row.macs for row in self.operations)

    def share(self, what: str | Collection[str]) -> float:
        """The share of multiply-adds that are reached.

        Args:
            what: ``"noise"``, ``"hardware"`` or ``"arithmetic"``; or names of sites, whose operations count.

        Example:
            >>> import torch
            >>> coverage(nn.Linear(4, 3), torch.ones(1, 4)).share(["linear#0"])
            0.0
        """
        check_arguments(Coverage.share, locals())
        if isinstance(what, str):
            one_of("Coverage.share", "what", what, ("noise", "hardware", "arithmetic"))
            counted = [row.macs for row in self.operations if getattr(row, what)]
        else:
            counted = [row.macs for row in self.operations if row.name in what]
        return sum(counted) / self.macs if self.macs else 0.0

    def to_pandas(self) -> Any:
        """The rows as a pandas DataFrame: name, part, shape, macs, noise, hardware, arithmetic, why."""
        names = [f.name for f in fields(Reach)]
        return optional("pandas", "table").DataFrame.from_records([asdict(row) for row in self.rows], columns=names)

    def table(self) -> str:
        """The rows as aligned text, and the share of multiply-adds of each kind."""
        head = ["name", "shape", "multiply-adds", "noise", "hardware", "arithmetic", "why not"]
        lines = [
            [r.name, str(list(r.shape)), f"{r.macs:,}", *("yes" if x else "-" for x in (r.noise, r.hardware,
             r.arithmetic)), r.why]
            for r in self.rows
        ]  # fmt: skip
        shares = ", ".join(f"{what} {self.share(what):.1%}" for what in ("noise", "hardware", "arithmetic"))
        title = f"{self.macs:,} multiply-adds, of which reached: {shares}"
        return "\n".join([title, *map(printable, aligned([head, *lines], left=(0, 1, 3, 4, 5, 6)))])

    def __repr__(self) -> str:
        return self.table()


def coverage(model: nn.Module, example_input: Any, *, root: str = "") -> Coverage:
    """What reaches each parameter and each operation of a model as it is: noise, devices, an arithmetic, or nothing.

    The model is run once in evaluation mode, without noise; it is left as it was. Noise and hardware that switches
    leave out in one mode count.

    Args:
        model: injected, with noisy layers, or neither.
        example_input: as for `inject`.
        root: as for `inject`; of an injected model that of the injection. Parameters keep their names.

    Returns:
        A `Coverage`, which prints as a table.

    Example:
        >>> import torch
        >>> from noisykernels.noise import Noise
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.Softmax(1))
        >>> with inject(model, Noise(add=0.1)):
        ...     for row in coverage(model, torch.ones(1, 4)):
        ...         print(row.name, row.noise, row.why or ".")
        0.weight True .
        0.bias True .
        input True .
        0:linear#0 True .
        1:softmax#0 False softmax makes no site
    """
    check_arguments(coverage, locals())
    args, kwargs = checked_example("coverage", example_input)
    target = unwrap(model)
    if is_injected(target):
        of_root("coverage", target, root)
    else:
        with inject(target, None, root=root):
            return coverage(target, example_input)
    calls = calls_of(target, args, kwargs)
    placement = state_of(target).placement
    asked = [
        what for what, given in (("noise", placement.noise), ("hardware", placement.hardware)) if given is not None
    ]
    operations = [_of_call(call, asked) for call in calls]
    return Coverage([*_of_parameters(target, calls), *operations])


def _of_call(call: Call, asked: Sequence[str]) -> Reach:
    devices = call.devices or ()
    arithmetic = any(isinstance(d, Arithmetic) for d in devices)
    hardware = any(not isinstance(d, Arithmetic) and (call.array or not d.of_array) for d in devices)
    reached = call.noise or hardware or arithmetic
    left = "; ".join(f"no {what} was placed there" for what in asked) or "nothing is placed there"
    if devices:
        left = "values are multiplied with values, so there is no array"
    why = "" if reached else call.why or left
    return Reach(call.name, "operation", call.shape, call.work.macs, call.noise, hardware, arithmetic, why)


def _of_parameters(model: nn.Module, calls: Sequence[Call]) -> list[Reach]:
    found = []
    for name, p in model.named_parameters():
        reading = [call for call in calls if name in call.work.parameters]
        within = [call for call in reading if name in call.work.multiplied]
        devices = [d for call in reading if name in call.array for d in call.devices or ()]
        macs = sum(call.work.macs for call in within)
        noise = any(call.noise for call in reading)
        arithmetic = any(isinstance(d, Arithmetic) for d in devices)
        hardware = any(not isinstance(d, Arithmetic) for d in devices)
        why = "" if noise or hardware or arithmetic else _why(name, reading)
        found.append(Reach(name, "parameter", tuple(p.shape), macs, noise, hardware, arithmetic, why))
    return found


def _why(name: str, reading: Sequence[Call]) -> str:
    """Why nothing reaches a parameter: what the operations that read it are."""
    if not reading:
        return "nothing computes with it: it is not used, or moved into other values"
    said = [f"{call.name}: {_why_not(name, call)}" for call in reading]
    return "; ".join(said[:3]) + (f"; and {len(said) - 3} more" if len(said) > 3 else "")


def _why_not(name: str, call: Call) -> str:
    """Why a parameter is not in hardware at an operation that reads it."""
    if call.devices and name not in call.array:
        if name not in call.work.multiplied:
            return "it is added to the products, not multiplied"
        return "what is multiplied there is computed from it, and so no array"
    if call.asked and not call.idle:
        return "nothing is placed there"
    return call.why or "no array, so it takes no hardware"

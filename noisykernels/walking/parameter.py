"""A walk over a parameter of the hardware of one contraction at a time: a saturation limit, bits, a leak."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from noisykernels._engine.arguments import draw_list, level_list
from noisykernels._engine.compute import Compute
from noisykernels._engine.session import Rows
from noisykernels._engine.targets import Parameter
from noisykernels._util.arguments import check_arguments
from noisykernels._util.data import Data
from noisykernels._util.inputs import Output
from noisykernels.arithmetic.formats import FloatFormat
from noisykernels.arithmetic.serial import Serial
from noisykernels.hardware.device import Device
from noisykernels.hardware.periphery import ADC, DAC
from noisykernels.metrics.accuracy import ACCURACY
from noisykernels.metrics.names import MetricLike
from noisykernels.stats.questions import At
from noisykernels.study.study import Study
from noisykernels.walking.groups import Groups
from noisykernels.walking.options import Asked
from noisykernels.walking.strategies import Grid, Progress
from noisykernels.walking.walks import run

__all__ = ["PARAMETERS", "Known", "walk_parameter"]


class Known(NamedTuple):
    """A parameter that the command line knows by a word: `make`, `name`, `larger` and `axis` of `walk_parameter`."""

    make: Callable[[float], list[Device]]
    name: str
    larger: Literal["better", "worse"]
    axis: Literal["log", "linear"]


def _saturation(limit: float) -> list[Device]:
    return [Serial(low=-limit, high=limit)]


def _loss(share: float) -> list[Device]:
    if share > 1:
        raise ValueError(f"walk_parameter: values of the share that leaks must be at most 1, got {share:g}")
    return [Serial(leak=1 - share)]


def _step_noise(level: float) -> list[Device]:
    return [Serial(step_noise=level)]


def _mantissa(bits: float) -> list[Device]:
    return [Serial(FloatFormat(_whole(bits), 8))]


def _input_bits(bits: float) -> list[Device]:
    return [DAC(_whole(bits), "row")]


def _output_bits(bits: float) -> list[Device]:
    return [ADC(_whole(bits), "row")]


def _whole(bits: float) -> int:
    if bits != int(bits):
        raise ValueError(f"walk_parameter: values must be whole numbers of bits, got {bits:g}")
    return int(bits)


PARAMETERS = {
    "saturation": Known(_saturation, "limit of the running sum (units of the output)", "better", "log"),
    "leak": Known(_loss, "share of the running sum lost at each step", "worse", "log"),
    "step-noise": Known(_step_noise, "noise of each step (std. dev., units of the output)", "worse", "log"),
    "mantissa": Known(_mantissa, "mantissa bits of operands, products and sums", "better", "linear"),
    "input-bits": Known(_input_bits, "bits of the inputs", "better", "linear"),
    "output-bits": Known(_output_bits, "bits of the outputs", "better", "linear"),
}


def walk_parameter(
    model: nn.Module,
    data: Data,
    make: Callable[[float], Sequence[Device] | Device],
    values: Sequence[float] | Tensor,
    *,
    name: str = "parameter",
    larger: Literal["better", "worse"] = "better",
    axis: Literal["log", "linear"] = "log",
    arrays: Literal["module", "call", "parameter"] = "module",
    root: str = "",
    detail: Literal["attention"] | None = None,
    forward: Callable[..., Any] | None = None,
    output: Output = None,
    draws: int | Sequence[int] = 1,
    seed: int,
    sites: Sequence[str | int | type] | str | type | None = None,
    groups: Groups = None,
    rows: Rows = None,
    metric: MetricLike = ACCURACY,
    floor: float | None = None,
    at: At = "half",
    compute: Compute | None = None,
    store: str | os.PathLike[str] | None = None,
    progress: Progress = False,
    description: tuple[str, str] = ("", ""),
) -> Study:
    """Puts hardware into one linear layer or convolution at a time, everything else exact, and walks its parameter.

    What precedes the contraction runs once; the contraction and what follows it run for each value and draw. The
    midpoint of a site is the value at which accuracy is half-way between its clean value and the floor, in the unit of
    the parameter.

    Args:
        model, data: as for `walk`.
        make: from a value of the parameter, a float, to the devices of the contraction, as for ``hardware=``; such as
            ``lambda limit: [Serial(low=-limit, high=limit)]``, ``lambda bits: [ADC(bits=int(bits), limit="row")]``,
            ``lambda leak: [Serial(leak=leak)]``.
        values: of the parameter, each finite and not negative.
        name: of the parameter, with its unit; it labels tables and pictures.
        larger: ``"better"``: accuracy rises with the parameter, as with a limit or bits; ``"worse"``: it falls, as
            with noise.
        arrays: which calls share an array, as for `inject`; they have the hardware together.
        root: the part at which names of sites begin, as for `inject`.
        detail: ``"attention"``: attention's own products are contractions, too, for devices that act on products of
            values, as for `inject`.
        axis: that the midpoint is fitted on: ``"log"``, or ``"linear"`` (for bits).
        draws: number of draws (ids 0, 1, ...), or the ids, of what the hardware draws; one is enough where it draws
            nothing.
        seed: 64-bit seed of what the hardware draws.
        sites: names, name patterns, module types or indices of contractions; None walks all.
        groups: contractions that have the hardware together, as for `walk`.
        store: as for `walk`. It belongs to this `name` and to the devices at the first value, by how they print
            themselves and what they hold, so keep the first value when you add values.
            With workers, `make` must be one that can be sent to them, a function of a module.
        rows, forward, output, metric, floor, at, compute, progress, description: as for `walk`.

    Returns:
        A `Study`, whose levels are the values. Intervals of its curves and midpoints take all rows of a draw to share
        what is random, as noise on weights does.

    Raises:
        ValueError: bad values, draws, sites or data, or as `make` does for a value.
        TypeError: `make` is no function or gives no devices; a seed, metric or compute of another type.
        RuntimeError, StoreError: as `walk`.

    Source: an extension of Walking Noise (arXiv 2212.10430) to parameters other than noise levels.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> x = torch.randn(50, 1, 2, 2)
        >>> from noisykernels.hardware import DAC
        >>> study = walk_parameter(model, (x, model(x).argmax(1)), lambda bits: [DAC(int(bits), "row")], [2, 4, 8],
        ...                        name="bits of the inputs", axis="linear", seed=1)
        >>> len(study.records), study.meta.parameter
        (6, 'bits of the inputs')
    """
    check_arguments(walk_parameter, locals())
    if not callable(make):
        raise TypeError(f"walk_parameter: make must be a function from a value to devices, got {make!r}")
    if larger not in ("better", "worse"):
        raise ValueError(f"walk_parameter: larger must be 'better' or 'worse', got {larger!r}")
    if axis not in ("log", "linear"):
        raise ValueError(f"walk_parameter: axis must be 'log' or 'linear', got {axis!r}")
    if not isinstance(name, str) or not name:
        raise ValueError(f"walk_parameter: name must be a text, got {name!r}")
    grid = Grid(tuple(level_list("walk_parameter", values)), tuple(draw_list("walk_parameter", draws)))
    target = Parameter(make, name, larger)
    if detail is not None:
        target = replace(target, of_values=any(not d.of_array for v in grid.levels for d in target.devices(v)))
    asked = Asked(
        op="walk_parameter", targets=(target,), strategy=grid, seed=seed, sites=sites, groups=groups, rows=rows,
        metric=metric, floor=floor, at=at, axis=axis, arrays=arrays, root=root, detail=detail, compute=compute,
        store=store, progress=progress, description=description, forward=forward, output=output,
    )  # fmt: skip
    (study,) = run(model, data, asked)
    return study

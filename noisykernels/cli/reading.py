"""Words of the command line, read as what they stand for; each function is a `type` of argparse.

Numbers are those that the table of checks allows, and written as one writes a number: ASCII digits, no underscores.
"""

from __future__ import annotations

import argparse
import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from noisykernels._util.checks import RANGES, Range, shown, whole
from noisykernels.hardware.noises import WeightNoise
from noisykernels.metrics.names import named
from noisykernels.noise.contract import STATISTICS
from noisykernels.stats.questions import KINDS, question

__all__ = [
    "LEVELS", "PART", "Number", "Numbers", "a_device", "a_group", "a_metric", "a_part", "a_path", "a_question",
    "a_site", "a_text", "a_unit",
]  # fmt: skip

LEVELS = Range(0, torch.finfo(torch.float32).max)  # what the noise of the networks of the command line can have
FINITE = Range()
PART = "layer|channel|group:N|tile:N"
FORMS = "0.1,0.3,1 or log:0.01:100:13 or lin:0:2:21"
MOST = 10_000  # numbers in a list
WHOLE = re.compile(r"[+-]?[0-9]{1,4000}")
REAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?")


@dataclass(frozen=True)
class Number:
    """Reads one number of a range."""

    allowed: Range

    def __call__(self, text: str) -> int | float:
        """The number that a word stands for."""
        value = number(text, self.allowed)
        if value is None:
            raise argparse.ArgumentTypeError(f"expected {self.allowed}, got {shown(text)}")
        return value


@dataclass(frozen=True)
class Numbers:
    """Reads numbers of a range, all different: ``0.1,0.3,1``, ``log:0.01:100:13`` or ``lin:0:2:21``, ends included."""

    allowed: Range

    def __call__(self, text: str) -> list[float]:
        """The numbers that a word stands for."""
        found = spaced(text) if text.startswith(("log:", "lin:")) else [number(v.strip()) for v in text.split(",")]
        values = [v for v in found if v is not None]
        if not 0 < len(values) == len(found) <= MOST:
            raise argparse.ArgumentTypeError(f"expected {FORMS}, at most {MOST} numbers, got {shown(text)}")
        if wrong := [v for v in values if v not in self.allowed]:
            raise argparse.ArgumentTypeError(f"expected each to be {self.allowed}, got {wrong[0]:g}")
        if len(set(values)) < len(values):
            raise argparse.ArgumentTypeError(f"expected numbers that differ, got {shown(text)}")
        return values


def number(text: str, allowed: Range = FINITE) -> int | float | None:
    """The number that a word stands for; None: it is no number, or none of those allowed."""
    if not (WHOLE if allowed.whole else REAL).fullmatch(text):
        return None
    value = int(text) if allowed.whole else float(text) + 0.0  # -0.0 is 0.0
    return value if value in allowed else None


def spaced(text: str) -> list[float]:
    """``log:first:last:count`` or ``lin:...``; nothing where it is neither."""
    scale, *parts = text.split(":")
    if len(parts) != 3:
        return []
    first, last, count = number(parts[0]), number(parts[1]), number(parts[2], whole(1, MOST))
    if first is None or last is None or count is None or (scale == "log" and min(first, last) <= 0):
        return []
    if scale == "log":
        ends = math.log10(first), math.log10(last)
        return torch.logspace(*ends, int(count), dtype=torch.float64).tolist()
    return torch.linspace(first, last, int(count), dtype=torch.float64).tolist()


def a_text(text: str) -> str:
    """A name or a heading: something that is there, without characters that no one sees."""
    if not text.strip() or "\0" in text:
        raise argparse.ArgumentTypeError(f"expected a text, got {shown(text)}")
    return text


def a_path(text: str) -> Path:
    """The path of a file or a folder."""
    if not text.strip() or "\0" in text:
        raise argparse.ArgumentTypeError(f"expected a path, got {shown(text)}")
    return Path(text)


def a_site(text: str) -> str | int:
    """A site: its index, its name or a pattern of names."""
    index = number(text, RANGES["first_row"])
    return a_text(text) if index is None else int(index)


def a_group(text: str) -> str:
    """Which sites are noisy together: a word, or a name and a site."""
    name, equals, site = text.partition("=")
    if text not in ("all", "block") and not (name.strip() and equals and site.strip() and "\0" not in text):
        raise argparse.ArgumentTypeError(f"expected all, block or NAME=SITE, got {shown(text)}")
    return text


def a_metric(text: str) -> str:
    """The name of a measure."""
    try:
        named("--metric", text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("--metric: ")) from error
    return text


def a_question(text: str) -> str:
    """What is asked of a curve: half, keep:0.99, drop:0.01, ratio:0.95 or value:0.9."""
    kind, colon, share = text.partition(":")
    try:
        if colon and number(share) is None:
            raise ValueError
        return str(question("--at", text))
    except ValueError as error:
        why = str(error).rpartition(": ")[2] if kind in KINDS and number(share) is not None else ""
        expected = "half, keep:0.99, drop:0.01, ratio:0.95 or value:0.9"
        raise argparse.ArgumentTypeError(f"expected {expected}, got {shown(text)}{f' ({why})' * bool(why)}") from None


def a_part(text: str) -> str:
    """A part of a layer whose largest weight is the unit of levels."""
    try:
        WeightNoise(add=1.0, relative=text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected {PART} with a number, got {shown(text)}") from error
    return text


def a_unit(text: str) -> str:
    """What additive levels are shares of: of a value, or of a weight."""
    return text if text in STATISTICS else a_part(text)


def a_device(name: str) -> str:
    """A device that is there."""
    there = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    there += [f"cuda:{k}" for k in range(torch.cuda.device_count())]
    if name not in there:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(there)} on this machine, got {shown(name)}")
    return name

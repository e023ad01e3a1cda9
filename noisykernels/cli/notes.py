"""What a store keeps of the command that fills it: the options of the study, and nothing that names a file."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

__all__ = ["ASKED", "NOTE", "TAKEN", "note", "words"]

NOTE = "command"  # its name in a store
#: Arguments of commands that a note may set. None of them may ever name a file.
TAKEN = frozenset(
    "model data epochs train_seed device threads noise ratio ratios order kind target relative arrays parameter levels "
    "at detail draws metric plateaus rel_ci most rows seed sites groups batch_rows draws_per_pass engine "
    "memory".split()
)
#: Arguments of the same commands that are asked anew of who resumes.
ASKED = frozenset("root cache json quiet picture out export spreadsheet report workers".split())


def note(args: argparse.Namespace) -> str:
    """The text of the note, with the threads, which are part of the plan: resumed elsewhere it is the same study."""
    threads = args.threads or torch.get_num_threads()
    return json.dumps([args.command, *words(argparse.Namespace(**{**vars(args), "threads": threads}), TAKEN)])


def words(args: argparse.Namespace, names: Collection[str]) -> list[str]:
    """How one types the arguments of a command that have these names, but for what is as it would be anyhow."""
    line: list[str] = []
    for action in sorted(args.own._actions, key=lambda a: bool(a.option_strings)):  # --sites would take what follows it
        value = getattr(args, action.dest, None)
        if action.dest not in names or value == action.default:
            continue
        flag = action.option_strings[:1]
        for one in value if isinstance(value, list) and isinstance(value[0], Path) else [value]:
            typed = _typed(one, action)
            line += [f"{flag[0]}={typed[0]}"] if flag and len(typed) == 1 and typed[0][:1] == "-" else [*flag, *typed]
    return line


def _typed(value: Any, action: argparse.Action) -> list[str]:
    """A value as one types it, numbers to the bit; a range as a range."""
    if not isinstance(value, list):
        return [] if value is True else [str(value)]
    if not all(isinstance(v, float) for v in value):
        return [str(v) for v in value]
    numbers = [f"{v:g}" if float(f"{v:g}") == v else repr(v) for v in value]
    if callable(action.type) and len(value) > 3:
        for scale in ("lin", "log"):
            with contextlib.suppress(argparse.ArgumentTypeError):
                if action.type(text := f"{scale}:{numbers[0]}:{numbers[-1]}:{len(value)}") == value:
                    return [text]
    return [",".join(numbers)]

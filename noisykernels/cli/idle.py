"""Options that would change nothing beside the others: refused, as who gives one believes that it does."""

from __future__ import annotations

import argparse
from collections.abc import Callable

__all__ = ["refuse_idle"]

# name of an argument: whether it does something beside the others, and beside which it would
NEEDS: dict[str, tuple[Callable[[argparse.Namespace], bool], str]] = {
    "draws": (lambda args: getattr(args, "levels", ()) is not None, "--levels"),
    "rel_ci": (lambda args: args.levels is None, "a search, so without --levels"),
    "most": (lambda args: args.levels is None, "a search, so without --levels"),
    "ratio": (lambda args: args.noise == "mixed", "--noise mixed"),
    "order": (lambda args: getattr(args, "noise", "mixed") == "mixed", "--noise mixed"),
    "relative": (
        lambda args: getattr(args, "noise", "mixed") != "mul" or getattr(args, "target", "weight") == "weight",
        "--noise add or mixed, or --target weight",
    ),
    "arrays": (lambda args: getattr(args, "target", "weight") == "weight", "--target weight"),
    "spreadsheet": (lambda args: any(path.suffix == ".csv" for path in args.export), "--export of a .csv"),
}


def refuse_idle(args: argparse.Namespace) -> None:
    """Before any work.

    Raises:
        ValueError: an option was given that would do nothing.
    """
    given = {*(getattr(args, "given", None) or ()), *(["spreadsheet"] if getattr(args, "spreadsheet", False) else [])}
    for action in args.own._actions:
        if action.dest in given and action.dest in NEEDS:
            acts, beside = NEEDS[action.dest]
            if not acts(args):
                raise ValueError(f"{action.option_strings[0]} goes with {beside}")

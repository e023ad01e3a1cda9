"""Runs a command, and says how it ended: 0 if all is well, 1 for an error, 2 for a wrong flag, 130 for Ctrl-C."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from noisykernels._util.files import WRITTEN
from noisykernels._util.runtime import torch_threads
from noisykernels.cli.commands import (
    resumed,
    run_chips,
    run_compare,
    run_info,
    run_mixed,
    run_parameter,
    run_report,
    run_sites,
    run_train,
    run_vote,
    run_walk,
)
from noisykernels.cli.output import print_json, typed
from noisykernels.cli.parser import parser
from noisykernels.zoo.checkpoint import CheckpointError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command: 0 if all is well, 1 for an error, 2 for a wrong flag, 130 for Ctrl-C."""
    args = parser().parse_args(argv)
    args.argv = list(sys.argv[1:] if argv is None else argv)
    runs = {
        "walk": run_walk, "grid": run_walk, "mixed": run_mixed, "parameter": run_parameter, "vote": run_vote,
        "chips": run_chips, "report": run_report, "compare": run_compare, "train": run_train, "sites": run_sites,
        "info": run_info,
    }  # fmt: skip
    before = len(WRITTEN)
    try:
        if args.command == "resume":
            args = resumed(args.store)
        with torch_threads(getattr(args, "threads", None)):
            result = runs[args.command](args)
        if result is not None:
            print_json(result)
        return 0
    except KeyboardInterrupt:
        files = ", ".join(map(str, WRITTEN[before:]))
        text = f"interrupted; {f'written: {files}' if files else 'nothing was written'}"
        if (store := getattr(args, "store", None)) is not None and store.exists():
            text += f"; results are kept, go on with: {typed('resume', str(store))}"
        print(text, file=sys.stderr)
        return 130
    except (ValueError, RuntimeError, OSError, ModuleNotFoundError, CheckpointError) as error:
        print(f"noisykernels {args.command}: {error}", file=sys.stderr)
        return 1

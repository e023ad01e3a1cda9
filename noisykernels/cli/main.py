"""Runs a command, and says how it ended: 0 if all is well, 1 for an error, 2 for a wrong flag, 130 for Ctrl-C."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from noisykernels._util.files import noting_written
from noisykernels._util.runtime import torch_threads
from noisykernels._util.text import printable
from noisykernels.cli.idle import refuse_idle
from noisykernels.cli.notes import ASKED, words
from noisykernels.cli.output import ERRORS, told, typed
from noisykernels.cli.parser import parser
from noisykernels.cli.program import interrupted, interruptible, tell
from noisykernels.cli.resume import resumed


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command: 0 if all is well, 1 for an error, 2 for a wrong flag, 130 for Ctrl-C."""
    args = parser().parse_args(argv)
    args.argv = list(sys.argv[1:] if argv is None else argv)
    with noting_written() as written:
        return _run(args, written)


def _run(args: argparse.Namespace, written: list[Path]) -> int:
    command = args.command

    def sentence() -> str:
        """How an interrupted command ends."""
        files = ", ".join(map(str, written))
        text = f"interrupted; {f'written: {files}' if files else 'nothing was written'}"
        if (store := getattr(args, "store", None)) is not None and store.exists():
            text += f"; results are kept, go on with: {typed('resume', str(store), *words(args, ASKED))}"
        return printable(text)

    try:
        with interruptible(sentence):
            if command == "resume":
                args = resumed(args)
            refuse_idle(args)
            with torch_threads(getattr(args, "threads", None)):
                args.run(args)
    except KeyboardInterrupt:
        return tell()
    except ERRORS as error:
        if interrupted():
            return tell()
        print(f"noisykernels {command}: {told(error).removeprefix(f'{command}: ')}", file=sys.stderr)
        return 1
    return 0

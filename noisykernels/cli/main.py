"""Runs a command, and says how it ended: 0 if all is well, 1 for an error, 2 for a wrong flag, 130 for Ctrl-C."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from noisykernels._engine.store import StoreError, note_of
from noisykernels._util.files import WRITTEN
from noisykernels._util.runtime import torch_threads
from noisykernels._util.text import one_line
from noisykernels.cli.output import NOTE, print_json, typed
from noisykernels.cli.parser import parser
from noisykernels.cli.program import interrupted, interruptible, tell
from noisykernels.zoo.checkpoint import CheckpointError

ERRORS = (ValueError, TypeError, RuntimeError, OSError, ImportError, MemoryError, CheckpointError)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command: 0 if all is well, 1 for an error, 2 for a wrong flag, 130 for Ctrl-C."""
    args = parser().parse_args(argv)
    args.argv = list(sys.argv[1:] if argv is None else argv)
    before, command = len(WRITTEN), args.command

    def sentence() -> str:
        """How an interrupted command ends."""
        files = ", ".join(map(str, WRITTEN[before:]))
        text = f"interrupted; {f'written: {files}' if files else 'nothing was written'}"
        if (store := getattr(args, "store", None)) is not None and store.exists():
            text += f"; results are kept, go on with: {typed('resume', str(store))}"
        return text

    try:
        with interruptible(sentence):
            if command == "resume":
                args = resumed(args.store)
            with torch_threads(getattr(args, "threads", None)):
                result = args.run(args)
            if result is not None:
                print_json(result)
    except KeyboardInterrupt:
        return tell()
    except ERRORS as error:
        if interrupted():
            return tell()
        print(f"noisykernels {command}: {told(error).removeprefix(f'{command}: ')}", file=sys.stderr)
        return 1
    return 0


def told(error: BaseException) -> str:
    """What an error says, in one line; one of the system is told by its file, without its number."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return one_line(f"{error.filename}: {error.strerror.lower()}")
    return one_line(str(error)) or type(error).__name__


def resumed(store: Path) -> argparse.Namespace:
    """The arguments of the command that a store remembers, for the store where it is now."""
    text = note_of(store, NOTE)
    if text is None:
        raise StoreError(f"{store}: holds no command: it was not filled by walk or grid of the command line")
    try:
        argv = [str(word) for word in json.loads(text)]
    except (TypeError, ValueError) as error:
        raise StoreError(f"{store}: damaged: its command cannot be read") from error
    if argv[:1] not in (["walk"], ["grid"], ["mixed"], ["parameter"]):
        raise StoreError(f"{store}: its command is no walk, grid, mixed or parameter, but {argv[:1]}")
    return argparse.Namespace(**{**vars(parser().parse_args(argv)), "store": store, "argv": argv})

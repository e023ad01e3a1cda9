"""`resume`: the command that fills a store, again.

A store may come from anyone, so its note is data: of the command in it only what `notes.TAKEN` lists is taken, and
nothing there names a file. Where files are, and how the work is shared, is said by who resumes, who is also asked
before a network is trained or data are downloaded because a store says so.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys

from noisykernels._engine.store import StoreError, note_of
from noisykernels._util.text import printable
from noisykernels.cli.notes import ASKED, NOTE, TAKEN, words
from noisykernels.cli.output import typed
from noisykernels.cli.parser import parser
from noisykernels.datasets.vision import is_here
from noisykernels.zoo.checkpoint import checkpoint_path
from noisykernels.zoo.pretrained import settings_of

__all__ = ["resumed"]

LONGEST = 1 << 20  # characters of a note


def resumed(asked: argparse.Namespace) -> argparse.Namespace:
    """The arguments of the command that fills a store, for the store where it is now; shown on standard error.

    Args:
        asked: arguments of `resume`.

    Raises:
        StoreError: the store cannot be read, holds no command, or one that cannot be read; it would train or download
            what is not here, and nobody has said yes.
        ValueError: a file asked for that the command does not write.
    """
    told = _told(asked)
    values = {name: value if name in TAKEN else told.own.get_default(name) for name, value in vars(told).items()}
    for name in ASKED:
        if name in values:
            values[name] = getattr(asked, name)
        elif getattr(asked, name):
            raise ValueError(f"--{name}: does not go with the command of {asked.store}, which is {told.command}")
    args = argparse.Namespace(**{**values, "command": told.command, "store": asked.store})
    args.argv = [args.command, *words(args, TAKEN)]
    left = [
        action.option_strings[0]
        for action in told.own._actions
        if action.dest not in {*TAKEN, "store", "help"} and getattr(told, action.dest) != action.default
    ]
    said = [f"{asked.store} goes on with: {typed(*args.argv)}"]
    if left:
        said.append(f"not taken from the store, give resume what you want of it: {' '.join(left)}")
    print("\n".join(f"noisykernels resume: {printable(line)}" for line in said), file=sys.stderr)
    if (would := _would(args)) and not asked.yes:
        _ask(f"{asked.store}: {would}")
    return args


def _would(args: argparse.Namespace) -> str:
    """What the command would do before it walks, in words; empty: nothing."""
    settings = settings_of(args.model, args.data, epochs=args.epochs, seed=args.train_seed)
    trained = checkpoint_path(settings, args.cache).exists()
    splits = ["test"] if trained else ["train", "test"]
    would = [] if trained else [f"train {args.model} on {args.data} for {args.epochs} epochs"]
    if not all(is_here(args.data, split, args.root) for split in splits):
        would.append(f"download {args.data}")
    return " and ".join(reversed(would))


def _ask(what: str) -> None:
    """Asks whether to go on, where there is someone to ask.

    Raises:
        StoreError: no.
    """
    if not sys.stdin.isatty():
        raise StoreError(f"{what}? Nothing was done: give resume --yes for it")
    print(f"noisykernels resume: {printable(what)}? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise StoreError(f"{what}: not without a yes; nothing was done")


def _told(asked: argparse.Namespace) -> argparse.Namespace:
    """All that the note of a store says, checked as what is typed is."""
    text: object = note_of(asked.store, NOTE)
    if text is None:
        raise StoreError(f"{asked.store}: holds no command: it was not filled by walk or grid of the command line")
    try:
        line = json.loads(text) if isinstance(text, str) and len(text) <= LONGEST else None
    except (ValueError, RecursionError):
        line = None
    if not isinstance(line, list) or not all(isinstance(word, str) for word in line):
        raise StoreError(f"{asked.store}: damaged: its command cannot be read")
    if line[:1] not in (["walk"], ["grid"], ["mixed"], ["parameter"]):
        raise StoreError(f"{asked.store}: its command is no walk, grid, mixed or parameter, but {str(line[:1])[:80]}")
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            return parser().parse_args(line)
    except SystemExit as error:
        why = said.getvalue().partition(": ")[2].strip() if error.code else "it asks for help"
        raise StoreError(f"{asked.store}: its command cannot be read: {why}") from error

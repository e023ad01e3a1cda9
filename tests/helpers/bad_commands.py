"""What users get wrong on the command line."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

from bad_calls import Table
from bad_training import damaged

from noisykernels._engine.store import Store
from noisykernels.cli.main import main


def cli(*arguments: object) -> None:
    """Runs the command line; what it writes to standard error becomes the message."""
    text = io.StringIO()
    with contextlib.redirect_stderr(text), contextlib.redirect_stdout(io.StringIO()):
        try:
            code: object = main([str(a) for a in arguments])
        except SystemExit as error:  # a wrong flag: argparse prints the usage, then the error
            code = error.code
    message = text.getvalue().strip().splitlines()[-1].partition(" (choose from")[0]
    raise SystemExit(f"{message} [exit code {code}]")


def unnoted(folder: Path) -> Path:
    """A store that no command has filled."""
    Store(folder / "a.db", {}).close()
    return folder / "a.db"


CASES: Table = {
    "Command line": [
        ("unknown model", lambda _: cli("walk", "--model", "vgg"), SystemExit),
        ("no level above 0", lambda _: cli("walk", "--levels", "0"), SystemExit),
        ("levels that are none", lambda _: cli("walk", "--levels", "log:0:1:3"), SystemExit),
        ("no command", lambda _: cli(), SystemExit),
        (
            "missing folder of the output",
            lambda f: cli("walk", "--out", f / "none" / "a.json"),
            SystemExit,
        ),
        (
            "levels of activations relative to weights",
            lambda f: cli("walk", "--relative", "layer", "--epochs", 0, "--cache", f),
            SystemExit,
        ),
        ("records of an unknown format", lambda _: cli("walk", "--export", "a.xls"), SystemExit),
        ("study that is not there", lambda f: cli("report", f / "a.json"), SystemExit),
        ("store that is not there", lambda f: cli("resume", f / "a.db"), SystemExit),
        ("comparison of one study", lambda _: cli("compare", "a.json"), SystemExit),
        ("store without a command", lambda f: cli("resume", unnoted(f)), SystemExit),
        (
            "checkpoint cut off",
            lambda f: cli("train", "--epochs", 1, "--cache", damaged(f, b"PK")["cache"]),
            SystemExit,
        ),
        (
            "no draw",
            lambda f: cli("walk", "--epochs", 0, "--draws", 0, "--quiet", "--cache", f),
            SystemExit,
        ),
        (
            "no rows",
            lambda f: cli("walk", "--epochs", 0, "--rows", 0, "--quiet", "--cache", f),
            SystemExit,
        ),
        (
            "ratio outside [0, 1]",
            lambda f: cli("walk", "--noise", "mixed", "--ratio", 2, "--epochs", 0, "--quiet", "--cache", f),
            SystemExit,
        ),
        ("unknown site", lambda f: cli("walk", "--sites", "fc9", "--epochs", 0, "--quiet", "--cache", f), SystemExit),
    ],
}

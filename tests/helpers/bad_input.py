"""What users get wrong, and the error that each mistake gets: the table of docs/errors.md.

`python tests/helpers/bad_input.py` writes the document; test_bad_input.py checks that it is true. The tables are in the
files beside this one whose names begin with bad_.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import bad_commands
import bad_hardware
import bad_models
import bad_training
import bad_walks
from bad_calls import Action, Table

DOCUMENT = Path(__file__).parents[2] / "docs" / "errors.md"
AREAS = (bad_models, bad_hardware, bad_walks, bad_training, bad_commands)
CASES: Table = {area: cases for module in AREAS for area, cases in module.CASES.items()}


def attempt(action: Action) -> BaseException:
    """The error that a call ends with; its message free of temporary names."""
    with tempfile.TemporaryDirectory() as name:
        try:
            action(Path(name))
        except (SystemExit, Exception) as error:
            message = str(error).replace(name, "FOLDER")
            message = re.sub(r"^\w+, \S+\.cpp:\d+, ", "", message)  # where in the C++ source
            return type(error)(message)
    raise AssertionError("no error")


def render() -> str:
    """The document."""
    lines = [
        "# What can go wrong, and what it says",
        "",
        "Written by `python tests/helpers/bad_input.py` from the table that the tests run. Nothing is",
        "computed or changed when an error is raised. Values that cannot be read at no great cost",
        "(on a device, or in a compiled graph) are not checked: a bad level or id makes NaN there.",
    ]
    for area, cases in CASES.items():
        lines += ["", f"## {area}", "", "| what is wrong | error | message |", "| --- | --- | --- |"]
        for what, action, _ in cases:
            error = attempt(action)
            message = " ".join(str(error).split()).replace("|", "\\|")
            name = "exit" if isinstance(error, SystemExit) else type(error).__name__
            lines.append(f"| {what} | {name} | {message} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    DOCUMENT.parent.mkdir(exist_ok=True)
    DOCUMENT.write_text(render())

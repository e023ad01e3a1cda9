"""Every option of every command, wrong in ten ways: one line that says so, before anything is begun."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from made_study import made_study

from noisykernels._engine.store import Store, noting
from noisykernels._util.checks import Range
from noisykernels.cli import commands, reading
from noisykernels.cli import main as command_line
from noisykernels.cli.notes import NOTE
from noisykernels.cli.parser import parser
from noisykernels.study import Study

# What stands before the options, where a command needs something; these files are there, and good.
NEEDED = {
    "parameter": ["saturation", "--values", "1"],
    "report": ["a.json"],
    "compare": ["a", "b"],
    "resume": ["a.db", "--yes"],
}
FILES = {"a.json", "a", "b", "a.db"}
# Words of Python, of torch, of SQLite and of the C library, none of which tells a user what was expected.
FOREIGN = (
    "Traceback usage: literal invalid base PosixPath Errno NoneType object torch. aten:: at:: tensor CPUAllocator "
    "RuntimeError overflow OverflowError ValueError TypeError SQL sqlite embedded null codec argument(s) int() float()"
).split()
NOTHING = ("", " ", "\0")
NUMBERS = "x nan inf -inf ² ٣ 1_0 0x1 1,5 1e -- None 1e999 1e-1e1".split()
LISTS = (
    ", 1, 1,,2 1;2 1,nan inf 1,x 1_0 ² 1,1 -1 0,-0.0 1e999 exp:0:1:3 lin:0:1:99999999999 lin:0:1:0 lin:0:1 lin:0:1:2:3 "
    "lin:0:1:1.5 lin:0:1:1e3 lin:1:1:3 lin:nan:1:3 lin:0:inf:3 lin:0:1:² log:0:1:3 log:-1:1:3 log:a:b:c"
).split()
WORDS = (*NOTHING, "nope", "MLP", "ad", "add ", "a\nb", "0", "é" * 3000, "../x")
PATHS = (*NOTHING, "a\0b")
TEXTS = (*NOTHING, "a\0", "\n", "\t")


@cache
def the_parser() -> argparse.ArgumentParser:
    return parser()


def known_commands() -> dict[str, argparse.ArgumentParser]:
    (group,) = the_parser()._subparsers._group_actions
    return group.choices


def beyond(allowed: Range) -> Iterator[str]:
    """What is just not in a range, and what is far from it."""
    step = 1 if allowed.whole else 1e-3
    for end, sign in ((allowed.low, -1), (allowed.high, 1)):
        yield f"{end + sign * max(step, abs(end) * 1e-3)!r}" if not allowed.whole else f"{end + sign}"
        yield f"{sign * 10**400}" if allowed.whole else f"{sign * 1e300!r}"
        if not allowed.ends:
            yield repr(float(end))
    if allowed.whole:
        yield from ("1.5", "1.0", "1e3", "1_000")


def wrong_for(action: argparse.Action) -> list[str]:
    """Wrong words for an option, by what it takes."""
    if action.nargs == 0:
        return ["", "1", "x", "true", "\0"]
    if action.choices is not None:
        return list(WORDS)
    if isinstance(action.type, reading.Number):
        return [*NOTHING, *NUMBERS, "1 1", "1\n", "9" * 5000, *beyond(action.type.allowed)]
    if isinstance(action.type, reading.Numbers):
        return [*NOTHING, *LISTS, *beyond(action.type.allowed)]
    return list({reading.a_path: PATHS, reading.a_device: WORDS}.get(action.type, TEXTS))


def cases() -> Iterator[tuple[str, list[str]]]:
    """Command lines that are wrong in one place."""
    for name, command in known_commands().items():
        needed = NEEDED.get(name, [])
        for action in command._actions:
            wrong = wrong_for(action)
            if action.option_strings and action.dest != "help":
                flag = action.option_strings[-1]
                many = action.nargs if isinstance(action.nargs, int) else 1
                for word in wrong:
                    yield name, [*needed, f"{flag}={word}"] if many < 2 else [*needed, flag, word, *["a"] * (many - 1)]
                if action.nargs != 0:
                    yield name, [*needed, flag]
            elif not action.option_strings:
                place = [word for word in needed if word[0] != "-"]
                for word in wrong:
                    for k in range(len(place) if action.nargs else 1):
                        yield name, [*needed[:k], word, *needed[k + 1 :]]
        for more in (["--none"], ["--none=1"], ["-z"], ["too", "many", "words"], ["--mod", "mlp"], ["--mode"], ["\0"]):
            yield name, [*needed, *more]


class Begun(BaseException):
    """A command went to work."""


def begun(*_: object, **__: object) -> None:
    raise Begun


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """What is wrong with what the command line says to words that are wrong; empty: nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command_line, "parser", the_parser)
    study = made_study([0.5, 1.0])
    for name in ("a.json", "a", "b"):
        study.save(name)
    with noting(NOTE, json.dumps(["walk", "--levels", "1"])), Store("a.db", {"seed": 0}):
        pass
    monkeypatch.setattr(Study, "report", begun)
    monkeypatch.setattr(commands, "compare", begun)
    for name in ("_trained", "load"):
        monkeypatch.setattr(commands, name, begun)

    def fault(words: list[str]) -> str:
        try:
            status = command_line.main(words)
        except SystemExit as error:
            status = error.code
        except Begun:
            return "accepted"
        said = capsys.readouterr()
        foreign = [word for word in FOREIGN if re.search(rf"(?<!\w){re.escape(word)}", said.err.partition(", got ")[0])]
        faults = {
            "accepted": status == 0,
            f"status {status}": status not in (1, 2),
            f"{said.err.count(chr(10))} lines": said.err.count("\n") != 1 or "\r" in said.err,
            "no name": not re.match(rf"noisykernels( {words[0]})?: " if words else "noisykernels: ", said.err),
            f"foreign {foreign}": bool(foreign),
            "long": len(said.err) > 1000,
            "output": bool(said.out),
            "files": {file.name for file in tmp_path.iterdir()} != FILES,
        }
        found = ", ".join(text for text, bad in faults.items() if bad)
        return f"{found} ({said.err})" if found else ""

    return fault


@pytest.mark.parametrize("name", [*known_commands()])
def test_every_option_wrong_in_ten_ways(name: str, says) -> None:
    tried = [[command, *words] for command, words in cases() if command == name]
    faults = {str(words): found for words in tried if (found := says(words))}
    told = "\n".join(f"{words[:200]}: {found[:300]}" for words, found in faults.items())
    assert not faults, f"{len(faults)} of {len(tried)}:\n{told}"


@pytest.mark.parametrize("name", [*NEEDED])
def test_what_stands_before_the_options_is_good(name: str, says) -> None:
    """So that a wrong word that is taken shows."""
    assert says([name, *NEEDED[name]]) == "accepted"

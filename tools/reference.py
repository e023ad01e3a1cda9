"""Writes docs/reference/: a page for each public package, from the signatures and docstrings of its names.

    python tools/reference.py            writes the pages
    python tools/reference.py --check    writes nothing; says which pages are not up to date, and fails if there are any

A package is public if no part of its name begins with an underscore; its names are those of its `__all__`.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs/reference"
KEPT = "\N{NO-BREAK SPACE}"  # so that a line of a signature ends between two parameters
WRITTEN = "Written by `python tools/reference.py` from the docstrings"


class Plain(str):
    """Text that a signature shows without quotes."""

    __repr__ = str.__str__


def namespaces(top: str = "noisykernels") -> Iterator[ModuleType]:
    """The package and those below it that are public and have names, in alphabetical order."""

    def fail(name: str) -> None:
        raise ImportError(f"reference: {name} cannot be imported")

    found = pkgutil.walk_packages(importlib.import_module(top).__path__, f"{top}.", onerror=fail)
    for name in sorted([top, *(m.name for m in found if m.ispkg and "._" not in m.name)]):
        module = importlib.import_module(name)
        if getattr(module, "__all__", ()):
            yield module


def shown(value: Any) -> Plain:
    """A default: classes by name, objects without their address, which is another one in each run."""
    if isinstance(value, type):
        return Plain(value.__name__)
    return Plain(re.sub(r" at 0x[0-9a-f]+", "", repr(value)))


def is_called(thing: Any) -> bool:
    """Whether it has a signature to show."""
    return isinstance(thing, type) or inspect.isroutine(inspect.unwrap(thing) if callable(thing) else thing)


def signature(name: str, thing: Any) -> str:
    """How a thing is called; of a property what it gives; of a value its type and, where that is short, itself."""
    if inspect.ismodule(thing):
        return f"import {thing.__name__}"
    if not is_called(thing):
        value = shown(thing)
        return f"{name}: {type(thing).__name__}" + (f" = {value}" if len(value) < 80 else "")
    try:
        called = inspect.signature(thing)
    except ValueError:  # compiled: its docstring begins with its signature
        return (thing.__doc__ or f"{name}(...)").splitlines()[0]
    given = []
    for p in called.parameters.values():
        annotation = Plain(p.annotation) if isinstance(p.annotation, str) else p.annotation
        default = p.default if p.default is p.empty else shown(p.default)
        given.append(p.replace(annotation=annotation, default=default))
    gives = called.return_annotation
    text = str(called.replace(parameters=given, return_annotation=Plain(gives) if isinstance(gives, str) else gives))
    text = re.sub(r"(?<!,) |(?<=,) (?![*/]|\w+: )", KEPT, name + text)
    lines = textwrap.wrap(text, 100, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines).replace(KEPT, " ")


def members(thing: type) -> Iterator[tuple[str, str | None]]:
    """Signature and docstring of the public methods and properties that our classes define, base classes first."""
    ours = [base for base in reversed(thing.__mro__) if base.__module__.partition(".")[0] == "noisykernels"]
    for name in dict.fromkeys(name for base in ours for name in vars(base) if name[0] != "_"):
        member = inspect.getattr_static(thing, name)
        if isinstance(member, property):
            yield f"{name}: {inspect.signature(member.fget).return_annotation}", member.__doc__
        elif inspect.isroutine(member) or isinstance(member, classmethod | staticmethod):
            yield signature(name, getattr(thing, name)), member.__doc__


def summary(thing: Any) -> str:
    """The first paragraph of its docstring, on one line; of a value there is none."""
    described = is_called(thing) or inspect.ismodule(thing)
    return " ".join(inspect.cleandoc(thing.__doc__ or "").partition("\n\n")[0].split()) if described else ""


def section(name: str, thing: Any) -> str:
    """Heading, summary and signature, and folded away all that the docstring and those of the methods say."""
    parts = [f"## {name}", summary(thing), f"```python\n{signature(name, thing)}\n```"]
    if is_called(thing):
        told = [inspect.cleandoc(thing.__doc__ or "")]
        for called, words in members(thing) if isinstance(thing, type) else ():
            told.append(called + textwrap.indent("\n" + inspect.cleandoc(words or ""), "    ").rstrip())
        parts += ["<details><summary>all of it</summary>", "```text\n" + "\n\n".join(told) + "\n```", "</details>"]
    return "\n\n".join(part for part in parts if part) + "\n"


def pages() -> dict[str, str]:
    """File names and texts: an index, and the page of each package."""
    made, index = {}, [f"# Reference\n\n{WRITTEN}: the public names, package by package.\n"]
    for module in namespaces():
        things = {name: getattr(module, name) for name in sorted(module.__all__)}
        lines = [f"# {module.__name__}\n\n{WRITTEN}. {summary(module)}\n", "| name | what it is |\n|---|---|"]
        for name, thing in things.items():
            what = summary(thing).replace("|", r"\|")
            lines.append(f"| [{name}](#{name.lower()}) | {what} |")
        made[f"{module.__name__}.md"] = "\n".join([*lines, "", *(section(*named) for named in things.items())])
        index.append(f"- [{module.__name__}]({module.__name__}.md): {summary(module)}")
    return {"README.md": "\n".join(index) + "\n", **made}


def outdated() -> list[str]:
    """The pages that are not what they would be written as, or should not be there."""
    made, there = pages(), {path.name: path.read_text() for path in FOLDER.glob("*.md")}
    return sorted(name for name in made.keys() | there.keys() if made.get(name) != there.get(name))


def main() -> None:
    """Writes the pages; with --check, only says which are not up to date."""
    wrong = outdated()
    if "--check" in sys.argv[1:]:
        sys.exit(f"not up to date: {', '.join(wrong)}; run: python tools/reference.py" if wrong else 0)
    FOLDER.mkdir(exist_ok=True)
    made = pages()
    for name in wrong:
        if name in made:
            (FOLDER / name).write_text(made[name])
        else:
            (FOLDER / name).unlink()
    print(f"wrote {', '.join(wrong) or 'nothing: all were up to date'}")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))  # the package beside this file, whatever is installed
    main()

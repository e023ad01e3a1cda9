"""Files and functions that are too long to be read at once: warns of long ones, fails at very long ones.

A function's length is its code: neither its docstring nor blank lines count. Of tests and of C++, only files are
measured.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

FILE, LONGEST_FILE = 400, 550  # lines; above the first a warning, above the second a failure
FUNCTION, LONGEST_FUNCTION = 60, 100  # lines of code
SUFFIXES = {".cpp", ".cu", ".h", ".inl", ".py"}
# Longer than the limit, with a reason. This list may only get shorter.
ACCEPTED = {
    "noisykernels/cli/parser.py: parser": "every command's arguments, one after the other",
    "tests/cuda/simt/ptx.py": "an interpreter of PTX: one class, whose instructions are in ptx_rules.py",
}


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Name and lines of code of each function of a file."""
    text = path.read_text()
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            told = node.body[0] if ast.get_docstring(node) is not None else None
            of_docstring = set() if told is None else set(range(told.lineno, told.end_lineno + 1))
            code = [
                n for n in range(node.lineno, node.end_lineno + 1) if lines[n - 1].strip() and n not in of_docstring
            ]
            yield f"{path}: {node.name}", len(code)


def measured(paths: list[Path]) -> Iterator[tuple[str, int, int, int, str]]:
    """What is measured: its name and size, what is long, what is too long, and the unit."""
    for path in paths:
        yield str(path), len(path.read_text().splitlines()), FILE, LONGEST_FILE, "lines"
        if path.suffix == ".py" and path.parts[0] != "tests":
            for name, size in functions(path):
                yield name, size, FUNCTION, LONGEST_FUNCTION, "lines of code"


def main() -> None:
    """Prints what is long, with its limit; exits with 1 if something is too long and not accepted."""
    tracked = subprocess.run(["git", "ls-files"], stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    paths = [
        path for path in map(Path, tracked) if path.suffix in SUFFIXES and path.is_file() and not path.is_symlink()
    ]
    failed, over = False, set()
    for name, size, long, longest, unit in measured(paths):
        if size > longest:
            over.add(name)
        if size > longest and name not in ACCEPTED:
            failed = True
            print(f"{name}: {size} {unit}, at most {longest} are allowed")
        elif size > long and name not in ACCEPTED:
            print(f"{name}: {size} {unit} (warning: {long})")
    for name in ACCEPTED.keys() - over:
        failed = True
        print(f"{name}: is short enough: take it out of the list in tools/sizes.py")
    sys.exit(failed)


if __name__ == "__main__":
    main()

"""Prints the structure of the package in figures: `python tools/structure.py [ROOT]`, ROOT a checkout, or this one.

Counted from the source alone, nothing is imported: modules and folders, imports between modules, circles, imports
hidden in functions, the longest function (lines of code without its docstring) and the longest parameter lists.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

NAME = "noisykernels"


def modules(root: Path) -> dict[str, ast.Module]:
    """Every module of the package by its dotted name, parsed."""
    found = {}
    for path in sorted((root / NAME).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text())
    return found


def imported(node: ast.AST, here: str, known: set[str]) -> Iterator[str]:
    """The modules of ours that an import statement names."""
    if isinstance(node, ast.Import):
        yield from (a.name for a in node.names if a.name in known)
    elif isinstance(node, ast.ImportFrom):
        base = here.rsplit(".", node.level)[0] if node.level else ""
        source = ".".join(filter(None, (base, node.module)))
        for a in node.names:
            whole = f"{source}.{a.name}"
            yield from ([whole] if whole in known else [source] if source in known else [])


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, directly or not (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(v: str) -> None:
        index[v] = low[v] = len(index)
        stack.append(v)
        for w in arrows[v]:
            if w not in index:
                visit(w)
                low[v] = min(low[v], low[w])
            elif w in stack:
                low[v] = min(low[v], index[w])
        if low[v] == index[v]:
            cut = stack.index(v)
            if len(stack) - cut > 1:
                found.append(sorted(stack[cut:]))
            del stack[cut:]

    for v in arrows:
        if v not in index:
            visit(v)
    return found


def code_lines(function: ast.FunctionDef) -> int:
    """Lines of a function's statements, without its docstring."""
    documented = ast.get_docstring(function) is not None and len(function.body) > 1
    first = function.body[1 if documented else 0]
    return (function.end_lineno or 0) - first.lineno + 1


def main(root: Path) -> None:
    """Prints the figures."""
    trees = modules(root)
    known = set(trees)
    arrows: dict[str, set[str]] = {name: set() for name in trees}
    hidden, functions = 0, []
    for name, tree in trees.items():
        in_functions = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
        for node in ast.walk(tree):
            targets = set(imported(node, name, known)) - {name}
            arrows[name] |= targets
            hidden += id(node) in in_functions and bool(targets)
            if isinstance(node, ast.FunctionDef):
                arguments = node.args
                count = len(
                    [a for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs) if a.arg != "self"]
                )
                functions.append((code_lines(node), count, f"{name}.{node.name}"))
    packages = {name.rpartition(".")[0] for name in trees} - {""}
    print(f"modules {len(trees)}, packages {len(packages)}, arrows {sum(map(len, arrows.values()))}")
    print(f"imports of ours hidden in functions: {hidden}")
    found = circles(arrows)
    print(f"circles: {len(found)}" + "".join(f"\n  {', '.join(c)}" for c in found))
    print("longest functions: " + ", ".join(f"{name} {lines}" for lines, _, name in sorted(functions)[:-6:-1]))
    most = sorted(functions, key=lambda f: -f[1])[:8]
    print("most parameters: " + ", ".join(f"{name} {count}" for _, count, name in most))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1])

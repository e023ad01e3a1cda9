"""Tables as aligned text, messages of one line, and text of unknown origin as a terminal may show it."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["aligned", "one_line", "printable", "printable_lines"]


def aligned(lines: Sequence[Sequence[str]], left: Sequence[int]) -> list[str]:
    """The lines of a table, a rule below the first; columns flush right but for those in `left`.

    Example:
        >>> aligned([["site", "level"], ["fc", "0.5"]], left=[0])
        ['site  level', '-----------', 'fc      0.5']
    """
    shown = [[printable(cell) for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    text = [
        "  ".join(c.ljust(w) if i in left else c.rjust(w)
                  for i, (c, w) in enumerate(zip(line, widths, strict=True))).rstrip()
        for line in shown
    ]  # fmt: skip
    return [text[0], "-" * max(map(len, text)), *text[1:]]


def one_line(text: str) -> str:
    r"""A text of several lines as one.

    Example:
        >>> one_line("not found; tried\n  a: no such file\n  b: no such file")
        'not found; tried; a: no such file; b: no such file'
    """
    return "; ".join(line for part in text.splitlines() if (line := part.strip()))


def printable(text: str) -> str:
    r"""Text on one line that does nothing to what shows it: control characters, ends of lines and characters that turn
    the direction of writing, as escapes.

    Example:
        >>> printable("fc1\x1b[2J\n"), printable("größe β")
        ('fc1\\x1b[2J\\n', 'größe β')
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable_lines(text: str) -> str:
    """The same of text of several lines."""
    return "\n".join(map(printable, text.split("\n")))

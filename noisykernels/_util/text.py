"""Tables as aligned text, messages of one line, and text of unknown origin as a terminal may show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["aligned", "covers", "one_line", "printable", "printable_lines"]


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


def covers(covered: Mapping[str, float]) -> list[str]:
    """What a study covers, in a line; none where it does not say.

    Args:
        covered: shares of multiply-adds that noise, hardware or an arithmetic reaches.

    Example:
        >>> covers({"hardware": 0.865, "noise": 0.12}), covers({})
        (['hardware in 86.5 %, noise after 12.0 % of the multiply-adds'], [])
    """
    words = {"noise": "noise after", "hardware": "hardware in", "arithmetic": "arithmetic in"}
    parts = [f"{words[what]} {share:.1%}".replace("%", " %") for what, share in covered.items()]
    return [f"{', '.join(parts)} of the multiply-adds"] if parts else []


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

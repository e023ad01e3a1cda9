"""Tables as aligned text, and messages of one line."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["aligned", "one_line"]


def aligned(lines: Sequence[Sequence[str]], left: Sequence[int]) -> list[str]:
    """The lines of a table, a rule below the first; columns flush right but for those in `left`.

    Example:
        >>> aligned([["site", "level"], ["fc", "0.5"]], left=[0])
        ['site  level', '-----------', 'fc      0.5']
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(c.ljust(w) if i in left else c.rjust(w)
                  for i, (c, w) in enumerate(zip(line, widths, strict=True))).rstrip()
        for line in lines
    ]  # fmt: skip
    return [text[0], "-" * max(map(len, text)), *text[1:]]


def one_line(text: str) -> str:
    r"""A text of several lines as one.

    Example:
        >>> one_line("not found; tried\n  a: no such file\n  b: no such file")
        'not found; tried; a: no such file; b: no such file'
    """
    return "; ".join(line for part in text.splitlines() if (line := part.strip()))

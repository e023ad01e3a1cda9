"""Parts of a page that explains itself: readable offline, on paper, and years later.

Nothing outside of the file is asked for: pictures lie in it, and there is no script. The same content makes the same
bytes.
"""

from __future__ import annotations

import base64
import html
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from noisykernels._util.files import replacing
from noisykernels._util.optional import optional
from noisykernels._util.text import printable_lines

__all__ = ["picture", "shown", "table", "text", "versions", "write_page"]


STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
  background: light-dark(#fff, #16181c); color: light-dark(#1a1a1a, #e4e4e4); }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
p.summary { font-size: 1.1rem; border-left: 4px solid #0072b2; padding-left: 1rem; }
table { border-collapse: collapse; } .wide { overflow-x: auto; }
th, td { text-align: left; padding: .2rem .9rem .2rem 0; vertical-align: top; border-bottom: 1px solid #8884; }
td { overflow-wrap: anywhere; }
th.n, td.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
img { max-width: 100%; background: #fff; padding: .5rem; box-sizing: border-box; border-radius: 4px; }
pre { padding: .8rem; background: #8882; border-radius: 4px; white-space: pre-wrap; overflow-wrap: anywhere; }
@media print { :root { color-scheme: light; }
  body { margin: 0; max-width: none; background: #fff; color: #000; font-size: 11pt; }
  img, tr, pre { break-inside: avoid; } h2 { break-after: avoid; } }
"""


def write_page(path: str | os.PathLike[str], heading: str, parts: Sequence[str]) -> Path:
    """Writes a page of some elements below a heading; an existing file is replaced whole or not at all."""
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(heading)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join([f"<h1>{text(heading)}</h1>", *filter(None, parts)])
        + "\n</body>\n</html>\n"
    )
    path = Path(path)
    with replacing(path) as file:
        file.write(page.encode())
    return path


def text(value: object) -> str:
    """Text of a page; what would turn the direction of writing, or is no text, as escapes."""
    return html.escape(printable_lines(str(value)))


def shown(value: Any) -> str:
    """A value of the meta for a reader."""
    if isinstance(value, dict):
        return ", ".join(f"{k} {shown(v)}" for k, v in value.items())
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) and value >= 10_000 else str(value)


def table(head: Sequence[str], lines: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """A table; without a head the first column is one. numbers: columns flush right."""

    def row(tag: str, cells: Sequence[str]) -> str:
        tags = [tag if head or i else "th" for i in range(len(cells))]
        kinds = [' class="n"' if i in numbers else "" for i in range(len(cells))]
        return "".join(f"<{t}{k}>{text(c)}</{t}>" for t, k, c in zip(tags, kinds, cells, strict=True))

    body = "\n".join(f"<tr>{row('td', line)}</tr>" for line in lines)
    top = f"<thead><tr>{row('th', head)}</tr></thead>\n" if head else ""
    return f'<div class="wide"><table>\n{top}<tbody>\n{body}\n</tbody>\n</table></div>'


def picture(draw: Callable[[Any], object], size: tuple[float, float], words: str) -> str:
    """A picture as an element of its own, so that names within two of them cannot clash.

    matplotlib's own settings, whatever the user's are, and no date: the same bytes again.
    """
    style, figures = optional("matplotlib.style", "plot"), optional("matplotlib.figure", "plot")
    file = io.BytesIO()
    with style.context(["default", {"svg.hashsalt": "noisykernels"}]):
        figure = figures.Figure(figsize=size, layout="constrained")
        draw(figure)
        figure.savefig(file, format="svg", dpi=150, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = file.getvalue()
    svg = svg[svg.index(b"<svg") :]  # without the reference to the document type
    return f'<img alt="{text(words)}" src="data:image/svg+xml;base64,{base64.b64encode(svg).decode()}">'


def versions() -> list[tuple[str, str]]:
    """Of what wrote the report."""
    ours = getattr(sys.modules.get("noisykernels"), "__version__", "unknown")
    return [("report by noisykernels", ours), ("pictures by matplotlib", optional("matplotlib", "plot").__version__)]

"""Says which of the files given do not end with exactly one newline, or are large."""

from __future__ import annotations

import sys
from pathlib import Path

LARGE = 500_000  # bytes; the tree holds no data that can be made or downloaded


def faults(path: Path) -> list[str]:
    """What is wrong with a file."""
    content = path.read_bytes()
    found = [f"has {len(content)} bytes, more than {LARGE}"] if len(content) > LARGE else []
    text = content and b"\0" not in content
    if text and (not content.endswith(b"\n") or content.endswith(b"\n\n")):
        found.append("must end with one newline")
    return found


def main() -> None:
    """Prints the faults of the files on the command line; exits with 1 if there are any."""
    wrong = [f"{name}: {fault}" for name in sys.argv[1:] for fault in faults(Path(name))]
    print("\n".join(wrong), end="\n" if wrong else "")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()

"""What commands write and print: studies, pictures, JSON."""

from __future__ import annotations

import argparse
import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

from noisykernels._util.files import replacing
from noisykernels._util.optional import optional
from noisykernels.study.export import exporter, finite
from noisykernels.study.html_report import report
from noisykernels.study.study import Study

__all__ = [
    "NOTE",
    "check_files",
    "check_folders",
    "draw_picture",
    "format_of_picture",
    "print_json",
    "tell_study",
    "typed",
]

NOTE = "command"  # under which a store keeps the command that filled it


def format_of_picture(path: Path) -> str:
    """matplotlib's name for a picture's format, by the suffix of its file."""
    known = optional("matplotlib.backend_bases", "plot").FigureCanvasBase.get_supported_filetypes()
    chosen = path.suffix.removeprefix(".").lower() or "png"
    if chosen not in known:
        raise ValueError(f"{path}: expected a picture ending in {', '.join(sorted(known))}, got {path.suffix!r}")
    return chosen


def check_folders(*paths: Path | None) -> None:
    """Before any work: results must have a place to go."""
    for path in paths:
        if path is not None and not path.absolute().parent.is_dir():
            raise FileNotFoundError(f"{path}: the folder does not exist")


def check_files(args: argparse.Namespace) -> str | None:
    """Before any work: what a study is to be written to; the picture's format."""
    check_folders(args.picture, args.out, args.report, *args.export)
    picture_format = None if args.picture is None else format_of_picture(args.picture)
    for path in args.export:
        exporter(path)
    if args.report is not None:
        optional("matplotlib", "plot")
    return picture_format


def tell_study(args: argparse.Namespace, study: Study, what: str, picture_format: str | None) -> None:
    """Writes and prints a study."""
    if args.out is not None:
        study.save(args.out)
    if args.json:
        print_json({"clean": study.meta.clean, "midpoints": [asdict(m) for m in study.midpoints()]})
    else:
        print(f"{study.meta.model} on {study.meta.data}; {what}")
        print(study.table())
    if args.picture is not None:
        draw_picture(study, args.picture, picture_format)
    for path in args.export:
        study.export(path)
    if args.report is not None:
        report(study, args.report, command=typed(*args.argv))
    if not args.json:
        files = [("picture", args.picture), ("study", args.out), ("report", args.report)]
        for what, path in [*files, *(("records", path) for path in args.export)]:
            if path is not None:
                print(f"{what}: {path}")


def typed(*words: str) -> str:
    """A command as one types it."""
    return shlex.join(["python", "-m", "noisykernels", *words])


def draw_picture(result: Any, path: Path, picture_format: str | None) -> None:
    """The picture of something that can plot itself."""
    figure = result.plot()
    with replacing(path) as file:
        figure.savefig(file, dpi=110, format=picture_format)


def print_json(value: Any) -> None:
    """Prints a value as strict JSON: what is not a finite number is null."""
    print(json.dumps(finite(value), indent=1, allow_nan=False))

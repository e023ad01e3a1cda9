"""All commands and flags, and what a command runs. Every flag of a study is also an argument of a Python function."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

from noisykernels._util.checks import RANGES, Range, shown, whole
from noisykernels._util.text import one_line, printable
from noisykernels.cli import commands, noises
from noisykernels.cli.reading import (
    LEVELS,
    PART,
    Number,
    Numbers,
    a_device,
    a_group,
    a_metric,
    a_part,
    a_path,
    a_question,
    a_site,
    a_text,
)
from noisykernels.datasets.vision import DATASETS
from noisykernels.stats.votes import MOST_DRAWS
from noisykernels.walking.parameter import PARAMETERS
from noisykernels.zoo.networks import MODELS

__all__ = ["parser"]

LONGEST = 800  # letters of a message, whatever was typed
GIB = Range(0.001, 10**6)  # that a pass may take


class _Once(argparse.Action):
    """Keeps what an option is given; an option that is given twice is a mistake."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        given = namespace.__dict__.setdefault("given", set())
        if option_string is not None and self.dest in given:
            raise argparse.ArgumentError(self, "given twice")
        given.add(self.dest)
        setattr(namespace, self.dest, values)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as commands do; takes no option that is written short."""

    def __init__(self, **about: Any) -> None:
        super().__init__(allow_abbrev=False, **about)
        for name in (None, "store"):
            self.register("action", name, _Once)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            expected = f"expected one of {', '.join(action.choices)}"
            raise argparse.ArgumentError(action, f"{expected}, got {shown(value)}")

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        if action.option_strings and "--" in arg_strings:  # which argparse leaves out, and keeps an empty list
            raise argparse.ArgumentError(action, "expected a value, got '--'")
        return super()._get_values(action, arg_strings)

    def error(self, message: str) -> NoReturn:
        """Ends the process with status 2."""
        self.exit(2, f"{self.prog.removeprefix('python -m ')}: {printable(one_line(message))[:LONGEST]}\n")


def parser() -> argparse.ArgumentParser:
    """All commands and flags."""
    top = _Parser(
        prog="python -m noisykernels",
        description="How much noise can each layer of a trained network take?",
        epilog="example: python -m noisykernels walk --model lenet5-bn --data fashion-mnist",
    )
    known = top.add_subparsers(dest="command", metavar="command", required=True)
    levels, ratios = Numbers(LEVELS), Numbers(RANGES["ratios"])

    def of(name: str) -> Number:
        return Number(RANGES[name])

    def command(name: str, runs: Callable[[argparse.Namespace], None], **about: Any) -> argparse.ArgumentParser:
        made = known.add_parser(name, **about)
        made.set_defaults(run=runs, own=made)
        return made

    here = _Parser(add_help=False)  # what belongs to this machine and this run of a command
    here.add_argument("--root", type=a_path, help="folder of the data sets (default: system, then cache)")
    here.add_argument("--cache", type=a_path, help="folder of trained checkpoints")
    here.add_argument("--json", action="store_true", help="machine-readable output on standard output")
    here.add_argument("--quiet", action="store_true", help="no progress bar")

    network = _Parser(add_help=False)
    network.add_argument("--model", default="mlp", choices=sorted(MODELS), help="network (default: %(default)s)")
    network.add_argument(
        "--data",
        default="digits",
        choices=sorted(DATASETS),
        help="data set (default: %(default)s)",
    )

    shared = _Parser(add_help=False, parents=[here, network])
    shared.add_argument(
        "--epochs",
        type=of("epochs"),
        default=3,
        help="epochs of training, if not cached (default: %(default)s)",
    )
    shared.add_argument("--train-seed", type=of("seed"), default=0, help="seed of the training (default: %(default)s)")
    shared.add_argument("--threads", type=of("threads"), help="threads of torch (default: as torch is set)")
    shared.add_argument("--device", type=a_device, default="cpu", help="cpu, cuda, cuda:1 (default: %(default)s)")

    terms = _Parser(add_help=False)
    noises.add_terms(terms)

    picture = _Parser(add_help=False)
    picture.add_argument("--picture", type=a_path, help="write curves and layer profile to this file")

    inside = _Parser(add_help=False)
    noises.add_inside(inside)

    passes = _Parser(add_help=False, parents=[picture, inside])
    passes.add_argument("--rows", type=of("rows"), help="first so many test images (default: all)")
    noises.add_seed(passes)
    passes.add_argument("--sites", type=a_site, nargs="+", help="names, patterns or indices of sites (default: all)")
    passes.add_argument("--batch-rows", type=of("batch_rows"), help="rows of a pass (default: 500; on a GPU 5000)")
    passes.add_argument(
        "--draws-per-pass", type=of("draws_per_pass"), default=8, help="draws of a pass (default: %(default)s)"
    )

    measured = _Parser(add_help=False)
    measured.add_argument("--metric", type=a_metric, default="accuracy", metavar="NAME",
                          help="what is measured: accuracy, top5, nll, brier, kl, agreement, f1, ece, ... (default: "
                          "%(default)s)")  # fmt: skip

    noisy = _Parser(add_help=False, parents=[passes, measured])
    noises.add_laws(noisy)

    workers = _Parser(add_help=False)
    workers.add_argument(
        "--workers", type=of("workers"), help="processes that share the work; give --threads 1, say, for each"
    )

    work = _Parser(add_help=False, parents=[workers])
    work.add_argument(
        "--groups", type=a_group, nargs="+", metavar="all|block|NAME=SITE",
        help="sites that are noisy together: all, those of each block, or those given the same name",
    )  # fmt: skip
    work.add_argument(
        "--at", type=a_question, default="half",
        help="where a curve crosses: half, keep:0.99, drop:0.01, ratio:0.95 or value:0.9 (default: %(default)s)",
    )  # fmt: skip
    work.add_argument(
        "--engine", default="auto", choices=("auto", "shared", "plain"), help="share work, or run every pass whole"
    )
    work.add_argument("--store", type=a_path, help="keep results in this file as they come, and go on from it")
    work.add_argument("--memory", type=Number(GIB), help="GiB that a pass may take (default: 1; a quarter of a GPU's)")

    shares = _Parser(add_help=False)
    shares.add_argument(
        "--arrays", default="module", choices=("module", "call", "parameter"),
        help="calls that share an array of the chip: of one module, none, with one parameter (default: %(default)s)",
    )  # fmt: skip

    files = _Parser(add_help=False)
    files.add_argument("--out", type=a_path, help="write the study (JSON) to this file")
    files.add_argument(
        "--export", type=a_path, action="append", default=[], metavar="PATH",
        help="write the records to this .csv, .json or .parquet file; may be repeated",
    )  # fmt: skip
    files.add_argument(
        "--spreadsheet", action="store_true", help="in .csv, mark text that a spreadsheet would run as a formula"
    )
    files.add_argument("--report", type=a_path, help="write one HTML file that shows and explains the study")

    study = _Parser(add_help=False, parents=[noisy, terms, work, shares, files])
    noises.add_target(study)

    forms = "0.1,1 | log:a:b:n | lin:a:b:n"
    walk = command("walk", commands.run_walk, parents=[shared, study], help="midpoint noise level of each site")
    walk.add_argument(
        "--rel-ci", type=of("rel_ci"), default=0.05, help="half-width of its interval (default: %(default)s)"
    )
    walk.add_argument(
        "--most", type=of("most"), help="evaluations that a site may cost (default: three million for 5 %%)"
    )
    walk.add_argument("--levels", type=levels, help=f"these levels, each on all rows, instead of a search: {forms}")
    walk.add_argument("--draws", type=of("draws"), default=3, help="draws of each of --levels (default: %(default)s)")
    grid = command("grid", commands.run_walk, parents=[shared, study], help="accuracy of each site at each level")
    grid.add_argument("--levels", type=levels, default=levels("log:0.001:1000:49"), help=forms)
    grid.add_argument("--draws", type=of("draws"), default=5, help="draws of each level (default: %(default)s)")
    grid.add_argument(
        "--plateaus",
        type=of("plateaus"),
        help="do not run levels in full whose accuracy is within this share of clean or floor",
    )
    mixed = command("mixed", commands.run_mixed, parents=[shared, noisy, work], help="midpoints for each mix of noises")
    mixed.add_argument(
        "--ratios", type=ratios, default=ratios("lin:0:1:5"), help="additive shares (default: 0,0.25,0.5,0.75,1)"
    )
    mixed.add_argument("--levels", type=levels, help=f"these levels, each on all rows, instead of a search: {forms}")
    mixed.add_argument("--draws", type=of("draws"), default=3, help="draws of each of --levels (default: %(default)s)")
    mixed.add_argument("--out", type=a_path, help="write a study (JSON) for each ratio to this folder")

    parameter = command(
        "parameter", commands.run_parameter, parents=[shared, passes, measured, work, shares, files],
        help="midpoint of a limit, of bits, of a leak in each layer",
    )  # fmt: skip
    parameter.add_argument("parameter", choices=PARAMETERS, help="what is walked, in one contraction at a time")
    parameter.add_argument("--values", type=levels, required=True, dest="levels", help=f"of the parameter: {forms}")
    parameter.add_argument("--draws", type=of("draws"), default=1, help="draws of each value (default: %(default)s)")

    vote = command(
        "vote", commands.run_vote, parents=[shared, noisy, terms], help="accuracy against number of executions"
    )
    vote.add_argument(
        "--level", type=Number(LEVELS), default=0.5, help="level of the noise everywhere (default: %(default)s)"
    )
    vote.add_argument(
        "--draws",
        type=Number(whole(1, MOST_DRAWS)),
        default=20,
        help="executions of the network (default: %(default)s)",
    )
    vote.add_argument("--out", type=a_path, help="write the result (JSON) to this file")

    chips = command(
        "chips",
        commands.run_chips,
        parents=[shared, measured, shares, inside],
        help="spread of accuracy over chips with noisy weights",
    )
    chips.add_argument("--noise", default="add", choices=("add", "mul"), help="kind of noise (default: %(default)s)")
    chips.add_argument("--level", type=Number(LEVELS), default=0.05, help="of all weights (default: %(default)s)")
    chips.add_argument(
        "--relative", type=a_part, metavar=PART, help="the level is a share of max|W| of this part of a layer"
    )
    chips.add_argument("--draws", type=of("draws"), default=100, help="number of chips (default: %(default)s)")
    chips.add_argument(
        "--limits", type=Numbers(RANGES["limits"]), default=[], help="accuracies to tell the yield at (default: three)"
    )
    chips.add_argument("--rows", type=of("rows"), help="first so many test images (default: all)")
    noises.add_seed(chips)
    chips.add_argument("--out", type=a_path, help="write the result (JSON) to this file")

    told = command(
        "report", commands.run_report, help="one HTML file that shows and explains a study, or another result"
    )
    told.add_argument("result", type=a_path, help="what --out wrote")
    told.add_argument("--out", type=a_path, help="file to write (default: the result's, ending in .html)")
    told.add_argument("--title", type=a_text, help="heading (default: a study's model and data)")

    both = command("compare", commands.run_compare, help="two studies, site by site: ratio of the midpoints")
    both.add_argument("studies", type=a_path, nargs=2, metavar="study", help="what --out wrote")
    both.add_argument(
        "--names", type=a_text, nargs=2, metavar=("A", "B"), help="what to call them (default: as their files)"
    )
    both.add_argument("--at", type=a_question, help="the question that both answer (default: that of the first)")
    both.add_argument("--picture", type=a_path, help="write both profiles to this file")
    both.add_argument("--out", type=a_path, help="write the comparison (JSON) to this file")
    both.add_argument("--json", action="store_true", help="machine-readable output on standard output")

    resume = known.add_parser(
        "resume", parents=[here, picture, workers, files],
        help="the walk or grid that fills a --store, again: goes on from there",
        description="Shows and runs the command that fills a store. Of that command only what makes the study is taken "
        "from the file; where files are, and what is written, is said here.",
    )  # fmt: skip
    resume.set_defaults(own=resume)
    resume.add_argument("store", type=a_path, help="the file")
    resume.add_argument("--yes", action="store_true", help="download and train what is not here, without a question")

    command("train", commands.run_train, parents=[shared], help="train a network, or load the cached one")
    sites = command("sites", commands.run_sites, parents=[network, inside], help="list the sites of a network")
    sites.add_argument("--json", action="store_true", help="machine-readable output on standard output")
    info = command("info", commands.run_info, help="what was built, and what this machine runs")
    info.add_argument("--json", action="store_true", help="machine-readable output")
    return top

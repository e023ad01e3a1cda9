"""All commands and flags, and what a command runs. Every flag of a study is also an argument of a Python function."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from noisykernels.cli import commands
from noisykernels.datasets.vision import DATASETS
from noisykernels.noise.contract import KINDS
from noisykernels.walking.parameter import PARAMETERS
from noisykernels.zoo.networks import MODELS

__all__ = ["parser"]


def numbers(text: str) -> list[float]:
    """Levels: ``0.1,0.3,1``, ``log:0.01:100:13`` or ``lin:0:2:21`` (ends included)."""
    try:
        if text.startswith(("log:", "lin:")):
            scale, low, high, count = text.split(":")
            start, end, n = float(low), float(high), int(count)
            if n < 1 or (scale == "log" and not 0 < min(start, end)):
                raise ValueError
            if scale == "log":
                ends = math.log10(start), math.log10(end)
                return torch.logspace(*ends, n, dtype=torch.float64).tolist()
            return torch.linspace(start, end, n, dtype=torch.float64).tolist()
        return [float(v) for v in text.split(",")]
    except ValueError as error:
        expected = "0.1,0.3,1 or log:0.01:100:13 or lin:0:2:21"
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}") from error


def parser() -> argparse.ArgumentParser:
    """All commands and flags."""
    top = argparse.ArgumentParser(
        prog="python -m noisykernels",
        description="How much noise can each layer of a trained network take?",
        epilog="example: python -m noisykernels walk --model lenet5-bn --data fashion-mnist",
    )
    known = top.add_subparsers(dest="command", required=True)

    def command(name: str, runs: Callable[[argparse.Namespace], Any], **about: Any) -> argparse.ArgumentParser:
        made = known.add_parser(name, **about)
        made.set_defaults(run=runs)
        return made

    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--model", default="mlp", choices=sorted(MODELS), help="network (default: %(default)s)")
    shared.add_argument(
        "--data",
        default="digits",
        choices=sorted(DATASETS),
        help="data set (default: %(default)s)",
    )
    shared.add_argument("--root", type=Path, help="folder of the data sets (default: system, then cache)")
    shared.add_argument("--cache", type=Path, help="folder of trained checkpoints")
    shared.add_argument(
        "--epochs",
        type=int,
        default=3,
        help="epochs of training, if not cached (default: %(default)s)",
    )
    shared.add_argument("--train-seed", type=int, default=0, help="seed of the training (default: %(default)s)")
    shared.add_argument("--threads", type=int, help="threads of torch (default: as torch is set)")
    shared.add_argument("--device", type=_device, default="cpu", help="cpu, cuda, cuda:1 (default: %(default)s)")
    shared.add_argument("--json", action="store_true", help="machine-readable output on standard output")
    shared.add_argument("--quiet", action="store_true", help="no progress bar")

    terms = argparse.ArgumentParser(add_help=False)
    terms.add_argument(
        "--noise", default="add", choices=("add", "mul", "mixed"), help="kind of the terms (default: %(default)s)"
    )
    terms.add_argument("--ratio", type=float, default=0.5, help="additive share of mixed noise (default: %(default)s)")

    passes = argparse.ArgumentParser(add_help=False)
    passes.add_argument("--rows", type=int, help="first so many test images (default: all)")
    passes.add_argument("--seed", type=int, default=0, help="seed of the noise (default: %(default)s)")
    passes.add_argument("--sites", nargs="+", help="names, patterns or indices of sites (default: all)")
    passes.add_argument("--batch-rows", type=int, help="rows of a pass (default: 500; on a GPU 5000)")
    passes.add_argument("--draws-per-pass", type=int, default=8, help="draws of a pass (default: %(default)s)")
    passes.add_argument("--picture", type=Path, help="write curves and layer profile to this file")

    noisy = argparse.ArgumentParser(add_help=False, parents=[passes])
    noisy.add_argument("--order", default="mul_add", choices=("mul_add", "add_mul"), help="order of mixed noise")
    noisy.add_argument(
        "--kind",
        default="gaussian",
        choices=KINDS,
        help="distribution (default: %(default)s)",
    )

    work = argparse.ArgumentParser(add_help=False)
    work.add_argument("--engine", default="auto", choices=("auto", "plain"), help="share work, or run every pass whole")
    work.add_argument("--store", type=Path, help="keep results in this file as they come, and go on from it")
    work.add_argument("--memory", type=float, help="GiB that a pass may take (default: 1; a quarter of a GPU's)")
    work.add_argument("--workers", type=int, help="processes that share the work; give --threads 1, say, for each")

    files = argparse.ArgumentParser(add_help=False)
    files.add_argument("--out", type=Path, help="write the study (JSON) to this file")
    files.add_argument(
        "--export", type=Path, action="append", default=[], metavar="PATH",
        help="write the records to this .csv, .json or .parquet file; may be repeated",
    )  # fmt: skip
    files.add_argument("--report", type=Path, help="write one HTML file that shows and explains the study")

    study = argparse.ArgumentParser(add_help=False, parents=[noisy, terms, work, files])
    study.add_argument(
        "--target",
        default="activation",
        choices=("activation", "weight"),
        help="where it enters (default: %(default)s)",
    )
    study.add_argument(
        "--relative", choices=("layer", "channel"), help="levels of weights as shares of max|W| of the layer or channel"
    )

    forms = "0.1,1 | log:a:b:n | lin:a:b:n"
    walk = command("walk", commands.run_walk, parents=[shared, study], help="midpoint noise level of each site")
    walk.add_argument("--rel-ci", type=float, default=0.05, help="half-width of its interval (default: %(default)s)")
    walk.add_argument("--levels", type=numbers, help=f"these levels, each on all rows, instead of a search: {forms}")
    walk.add_argument("--draws", type=int, default=3, help="draws of each of --levels (default: %(default)s)")
    grid = command("grid", commands.run_walk, parents=[shared, study], help="accuracy of each site at each level")
    grid.add_argument("--levels", type=numbers, default=numbers("log:0.001:1000:49"), help=forms)
    grid.add_argument("--draws", type=int, default=5, help="draws of each level (default: %(default)s)")
    grid.add_argument(
        "--plateaus", type=float, help="do not run levels in full whose accuracy is within this share of clean or floor"
    )
    mixed = command("mixed", commands.run_mixed, parents=[shared, noisy, work], help="midpoints for each mix of noises")
    mixed.add_argument(
        "--ratios", type=numbers, default=numbers("lin:0:1:5"), help="additive shares (default: 0,0.25,0.5,0.75,1)"
    )
    mixed.add_argument("--levels", type=numbers, help=f"these levels, each on all rows, instead of a search: {forms}")
    mixed.add_argument("--draws", type=int, default=3, help="draws of each of --levels (default: %(default)s)")
    mixed.add_argument("--out", type=Path, help="write a study (JSON) for each ratio to this folder")

    parameter = command(
        "parameter", commands.run_parameter, parents=[shared, passes, work, files],
        help="midpoint of a limit, of bits, of a leak in each layer",
    )  # fmt: skip
    parameter.add_argument("parameter", choices=PARAMETERS, help="what is walked, in one contraction at a time")
    parameter.add_argument("--values", type=numbers, required=True, dest="levels", help=f"of the parameter: {forms}")
    parameter.add_argument("--draws", type=int, default=1, help="draws of each value (default: %(default)s)")

    vote = command(
        "vote", commands.run_vote, parents=[shared, noisy, terms], help="accuracy against number of executions"
    )
    vote.add_argument("--level", type=float, default=0.5, help="level of the noise everywhere (default: %(default)s)")
    vote.add_argument("--draws", type=int, default=20, help="executions of the network (default: %(default)s)")
    vote.add_argument("--out", type=Path, help="write the result (JSON) to this file")

    chips = command(
        "chips", commands.run_chips, parents=[shared], help="spread of accuracy over chips with noisy weights"
    )
    chips.add_argument("--noise", default="add", choices=("add", "mul"), help="kind of noise (default: %(default)s)")
    chips.add_argument("--level", type=float, default=0.05, help="of all weights (default: %(default)s)")
    chips.add_argument(
        "--relative", choices=("layer", "channel"), help="the level is a share of max|W| of the layer or channel"
    )
    chips.add_argument("--draws", type=int, default=100, help="number of chips (default: %(default)s)")
    chips.add_argument("--limits", type=numbers, default=[], help="accuracies to tell the yield at (default: three)")
    chips.add_argument("--rows", type=int, help="first so many test images (default: all)")
    chips.add_argument("--seed", type=int, default=0, help="seed of the noise (default: %(default)s)")
    chips.add_argument("--out", type=Path, help="write the result (JSON) to this file")

    told = command(
        "report", commands.run_report, help="one HTML file that shows and explains a study, or another result"
    )
    told.add_argument("result", type=Path, help="what --out wrote")
    told.add_argument("--out", type=Path, help="file to write (default: the result's, ending in .html)")
    told.add_argument("--title", help="heading (default: a study's model and data)")

    both = command("compare", commands.run_compare, help="two studies, site by site: ratio of the midpoints")
    both.add_argument("studies", type=Path, nargs=2, metavar="study", help="what --out wrote")
    both.add_argument("--names", nargs=2, metavar=("A", "B"), help="what to call them (default: as their files)")
    both.add_argument("--picture", type=Path, help="write both profiles to this file")
    both.add_argument("--out", type=Path, help="write the comparison (JSON) to this file")
    both.add_argument("--json", action="store_true", help="machine-readable output on standard output")

    resume = known.add_parser("resume", help="the walk or grid that fills a --store, again: goes on from there")
    resume.add_argument("store", type=Path, help="the file; other paths count from the present folder")

    command("train", commands.run_train, parents=[shared], help="train a network, or load the cached one")
    command("sites", commands.run_sites, parents=[shared], help="list the sites of a network")
    info = command("info", commands.run_info, help="what was built, and what this machine runs")
    info.add_argument("--json", action="store_true", help="machine-readable output")
    known.metavar = " | ".join(known.choices)
    return top


def _device(name: str) -> str:
    """A device that is there."""
    there = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    there += [f"cuda:{k}" for k in range(torch.cuda.device_count())]
    if name not in there:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(there)} on this machine, got {name!r}")
    return name

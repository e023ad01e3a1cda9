"""The noise that flags ask for: the flags themselves, wherever they are taken, and what is made of them."""

from __future__ import annotations

import argparse

import noisykernels as nk
from noisykernels._util.checks import RANGES
from noisykernels.cli.reading import PART, Number, a_unit
from noisykernels.noise.contract import KINDS, STATISTICS

__all__ = ["add_inside", "add_laws", "add_seed", "add_target", "add_terms", "noise_of", "of_rows", "terms_of"]


def add_terms(parser: argparse.ArgumentParser) -> None:
    """Which terms there are."""
    parser.add_argument(
        "--noise", default="add", choices=("add", "mul", "mixed"), help="kind of the terms (default: %(default)s)"
    )
    parser.add_argument(
        "--ratio", type=Number(RANGES["ratio"]), default=0.5,
        help="additive share of mixed noise (default: %(default)s)",
    )  # fmt: skip


def add_laws(parser: argparse.ArgumentParser) -> None:
    """Order, distribution and unit."""
    parser.add_argument("--order", default="mul_add", choices=("mul_add", "add_mul"), help="order of mixed noise")
    parser.add_argument("--kind", default="gaussian", choices=KINDS, help="distribution (default: %(default)s)")
    parser.add_argument(
        "--relative", type=a_unit, metavar=f"{'|'.join(STATISTICS)}|{PART}",
        help="additive levels as shares: of a value's rows, or with --target weight of max|W| of this part of a layer",
    )  # fmt: skip


def add_target(parser: argparse.ArgumentParser) -> None:
    """Values or weights."""
    parser.add_argument(
        "--target", default="activation", choices=("activation", "weight"),
        help="where it enters (default: %(default)s)",
    )  # fmt: skip


def add_inside(parser: argparse.ArgumentParser) -> None:
    """Sites inside of attention."""
    parser.add_argument(
        "--detail", choices=("attention",), help="sites inside of attention, too: scores, softmax and weighted sum"
    )


def add_seed(parser: argparse.ArgumentParser) -> None:
    """Of the noise."""
    parser.add_argument(
        "--seed", type=Number(RANGES["seed"]), default=0, help="seed of the noise (default: %(default)s)"
    )


def terms_of(args: argparse.Namespace, relative: str | None = None) -> nk.Noise:
    """The noise asked for, at level 1."""
    if args.noise == "mixed":
        return nk.Noise.amplitude(1.0, args.ratio, order=args.order, kind=args.kind, relative=relative)
    return nk.Noise(add=float(args.noise == "add"), mul=float(args.noise == "mul"), kind=args.kind, relative=relative)


def noise_of(args: argparse.Namespace) -> nk.Noise | nk.WeightNoise:
    """The same, where it enters."""
    if args.target == "weight":
        if args.noise == "mixed":
            raise ValueError("--target weight goes with --noise add or mul, got mixed")
        if args.relative in STATISTICS:
            raise ValueError(f"--relative {args.relative} goes with --target activation")
        return nk.WeightNoise.of(terms_of(args), args.relative)
    return terms_of(args, of_rows(args))


def of_rows(args: argparse.Namespace) -> str | None:
    """What levels of values are relative to."""
    if args.relative is not None and args.relative not in STATISTICS:
        raise ValueError(f"--relative {args.relative} goes with --target weight of walk and grid, and with chips")
    found: str | None = args.relative
    return found

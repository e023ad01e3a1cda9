"""The command line: `python -m noisykernels walk | grid | mixed | parameter | vote | chips | report | compare | ...`.

Every flag is also an argument of a Python function.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import noisykernels as nk
from noisykernels.data import DATASETS, info, load
from noisykernels.models import MODELS, build
from noisykernels._files import WRITTEN, replacing
from noisykernels._optional import optional
from noisykernels.checkpoint import CheckpointError
from noisykernels.compare import compare
from noisykernels.parameter_walk import PARAMETERS, walk_parameter
from noisykernels.report import report
from noisykernels.store import StoreError, note_of, noting
from noisykernels.study import Study, exporter
from noisykernels.train import accuracy, trained
from noisykernels.workers import torch_threads

COMMANDS = "walk | grid | mixed | parameter | vote | chips | report | compare | resume | train | sites | info"
NOTE = "command"  # under which a store keeps the command that filled it


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
    commands = top.add_subparsers(dest="command", required=True, metavar=COMMANDS)

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
        choices=nk._C.noise_kinds(),
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
    walk = commands.add_parser("walk", parents=[shared, study], help="midpoint noise level of each site")
    walk.add_argument("--rel-ci", type=float, default=0.05, help="half-width of its interval (default: %(default)s)")
    walk.add_argument("--levels", type=numbers, help=f"these levels, each on all rows, instead of a search: {forms}")
    walk.add_argument("--draws", type=int, default=3, help="draws of each of --levels (default: %(default)s)")
    grid = commands.add_parser("grid", parents=[shared, study], help="accuracy of each site at each level")
    grid.add_argument("--levels", type=numbers, default=numbers("log:0.001:1000:49"), help=forms)
    grid.add_argument("--draws", type=int, default=5, help="draws of each level (default: %(default)s)")
    grid.add_argument(
        "--plateaus", type=float, help="do not run levels in full whose accuracy is within this share of clean or floor"
    )
    mixed = commands.add_parser("mixed", parents=[shared, noisy, work], help="midpoints for each mix of noises")
    mixed.add_argument(
        "--ratios", type=numbers, default=numbers("lin:0:1:5"), help="additive shares (default: 0,0.25,0.5,0.75,1)"
    )
    mixed.add_argument("--levels", type=numbers, help=f"these levels, each on all rows, instead of a search: {forms}")
    mixed.add_argument("--draws", type=int, default=3, help="draws of each of --levels (default: %(default)s)")
    mixed.add_argument("--out", type=Path, help="write a study (JSON) for each ratio to this folder")

    parameter = commands.add_parser(
        "parameter", parents=[shared, passes, work, files], help="midpoint of a limit, of bits, of a leak in each layer"
    )
    parameter.add_argument("parameter", choices=PARAMETERS, help="what is walked, in one contraction at a time")
    parameter.add_argument("--values", type=numbers, required=True, dest="levels", help=f"of the parameter: {forms}")
    parameter.add_argument("--draws", type=int, default=1, help="draws of each value (default: %(default)s)")

    vote = commands.add_parser("vote", parents=[shared, noisy, terms], help="accuracy against number of executions")
    vote.add_argument("--level", type=float, default=0.5, help="level of the noise everywhere (default: %(default)s)")
    vote.add_argument("--draws", type=int, default=20, help="executions of the network (default: %(default)s)")

    chips = commands.add_parser("chips", parents=[shared], help="spread of accuracy over chips with noisy weights")
    chips.add_argument("--noise", default="add", choices=("add", "mul"), help="kind of noise (default: %(default)s)")
    chips.add_argument("--level", type=float, default=0.05, help="of all weights (default: %(default)s)")
    chips.add_argument(
        "--relative", choices=("layer", "channel"), help="the level is a share of max|W| of the layer or channel"
    )
    chips.add_argument("--draws", type=int, default=100, help="number of chips (default: %(default)s)")
    chips.add_argument("--limits", type=numbers, default=[], help="accuracies to tell the yield at (default: three)")
    chips.add_argument("--rows", type=int, help="first so many test images (default: all)")
    chips.add_argument("--seed", type=int, default=0, help="seed of the noise (default: %(default)s)")

    told = commands.add_parser("report", help="one HTML file that shows and explains a study")
    told.add_argument("study", type=Path, help="what --out wrote")
    told.add_argument("--out", type=Path, help="file to write (default: the study's, ending in .html)")
    told.add_argument("--title", help="heading (default: the model and the data)")

    both = commands.add_parser("compare", help="two studies, site by site: ratio of the midpoints")
    both.add_argument("studies", type=Path, nargs=2, metavar="study", help="what --out wrote")
    both.add_argument("--names", nargs=2, metavar=("A", "B"), help="what to call them (default: as their files)")
    both.add_argument("--picture", type=Path, help="write both profiles to this file")
    both.add_argument("--json", action="store_true", help="machine-readable output on standard output")

    resume = commands.add_parser("resume", help="the walk or grid that fills a --store, again: goes on from there")
    resume.add_argument("store", type=Path, help="the file; other paths count from the present folder")

    commands.add_parser("train", parents=[shared], help="train a network, or load the cached one")
    commands.add_parser("sites", parents=[shared], help="list the sites of a network")
    info = commands.add_parser("info", help="what was built, and what this machine runs")
    info.add_argument("--json", action="store_true", help="machine-readable output")
    return top


def _device(name: str) -> str:
    """A device that is there."""
    there = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    there += [f"cuda:{k}" for k in range(torch.cuda.device_count())]
    if name not in there:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(there)} on this machine, got {name!r}")
    return name


def _trained(args: argparse.Namespace) -> torch.nn.Module:
    return trained(
        args.model,
        args.data,
        epochs=args.epochs,
        seed=args.train_seed,
        cache=args.cache,
        root=args.root,
        device=args.device,
        progress=not args.quiet,
    )


def _picture_format(path: Path) -> str:
    """matplotlib's name for a picture's format, by the suffix of its file."""
    known = optional("matplotlib.backend_bases", "plot").FigureCanvasBase.get_supported_filetypes()
    chosen = path.suffix.removeprefix(".").lower() or "png"
    if chosen not in known:
        raise ValueError(f"{path}: expected a picture ending in {', '.join(sorted(known))}, got {path.suffix!r}")
    return chosen


def _check_folders(*paths: Path | None) -> None:
    """Before any work: results must have a place to go."""
    for path in paths:
        if path is not None and not path.absolute().parent.is_dir():
            raise FileNotFoundError(f"{path}: the folder does not exist")


def _terms(args: argparse.Namespace) -> nk.Noise:
    """The noise asked for, at level 1."""
    if args.noise == "mixed":
        return nk.Noise.amplitude(1.0, args.ratio, order=args.order, kind=args.kind)
    return nk.Noise(add=float(args.noise == "add"), mul=float(args.noise == "mul"), kind=args.kind)


def _noise(args: argparse.Namespace) -> nk.Noise | nk.WeightNoise:
    """The noise of a walk, where it enters."""
    if args.target == "weight":
        return nk.WeightNoise.of(_terms(args), args.relative)
    if args.relative is not None:
        raise ValueError("--relative goes with --target weight")
    return _terms(args)


def _sites(args: argparse.Namespace) -> list[str | int] | None:
    return None if args.sites is None else [int(s) if s.isdigit() else s for s in args.sites]


def _check_files(args: argparse.Namespace) -> str | None:
    """Before any work: what a study is to be written to; the picture's format."""
    _check_folders(args.picture, args.out, args.report, *args.export)
    picture_format = None if args.picture is None else _picture_format(args.picture)
    for path in args.export:
        exporter(path)
    if args.report is not None:
        optional("matplotlib", "plot")
    return picture_format


def run_walk(args: argparse.Namespace) -> None:
    """Trains or loads, walks, writes the study, prints the midpoint table, writes picture, records and report."""
    picture_format = _check_files(args)
    noise = _noise(args)
    model = _trained(args)
    inputs, labels = load(args.data, "test", root=args.root, limit=args.rows)
    with noting(NOTE, _again(args)):
        study = nk.walk(
            model,
            (inputs, labels),
            noise=noise,
            target=args.target,
            plateaus=getattr(args, "plateaus", None),
            rel_ci=getattr(args, "rel_ci", 0.05),
            **_how(args, len(labels)),
        )
    _tell(args, study, f"noise {noise!r} times the level", picture_format)


def run_parameter(args: argparse.Namespace) -> None:
    """Walks a parameter of the hardware of one contraction at a time, and writes what `run_walk` does."""
    picture_format = _check_files(args)
    known = PARAMETERS[args.parameter]
    model = _trained(args)
    data = load(args.data, "test", root=args.root, limit=args.rows)
    how = _how(args, len(data[1]))
    with noting(NOTE, _again(args)):
        study = walk_parameter(model, data, values=how.pop("levels"), **known._asdict(), **how)
    _tell(args, study, known.name, picture_format)


def _tell(args: argparse.Namespace, study: Study, what: str, picture_format: str | None) -> None:
    """Writes and prints a study."""
    if args.out is not None:
        study.save(args.out)
    if args.json:
        _print_json({"clean": study.meta.clean, "midpoints": [asdict(m) for m in study.midpoints()]})
    else:
        print(f"{study.meta.model} on {study.meta.data}; {what}")
        print(study.table())
    if args.picture is not None:
        _draw(study, args.picture, picture_format)
    for path in args.export:
        study.export(path)
    if args.report is not None:
        report(study, args.report, command=_line(*args.argv))
    if not args.json:
        files = [("picture", args.picture), ("study", args.out), ("report", args.report)]
        for what, path in [*files, *(("records", path) for path in args.export)]:
            if path is not None:
                print(f"{what}: {path}")


def run_mixed(args: argparse.Namespace) -> Any:
    """Walks mixed noise of several ratios, and prints the midpoints of each."""
    _check_folders(args.picture, args.out)
    picture_format = None if args.picture is None else _picture_format(args.picture)
    model = _trained(args)
    data = load(args.data, "test", root=args.root, limit=args.rows)
    with noting(NOTE, _again(args)):
        mixed = nk.walk_mixed(
            model, data, ratios=args.ratios, order=args.order, kind=args.kind, **_how(args, len(data[1]))
        )
    files = [] if args.out is None else mixed.save(args.out)
    if args.picture is not None:
        _draw(mixed, args.picture, picture_format)
        files.append(args.picture)
    if args.json:
        pairs = zip(mixed.ratios, mixed.studies, strict=True)
        return [{"ratio": r, "midpoints": [asdict(m) for m in study.midpoints()]} for r, study in pairs]
    print(mixed.table())
    for path in files:
        print(f"written: {path}")
    return None


def _how(args: argparse.Namespace, rows: int) -> dict[str, Any]:
    """Arguments of a walk that all its commands share."""
    return dict(
        levels=args.levels,
        draws=None if args.levels is None else args.draws,
        engine=args.engine,
        memory=None if args.memory is None else int(args.memory * 2**30),
        store=args.store,
        executor=args.workers,
        seed=args.seed,
        sites=_sites(args),
        batch_rows=args.batch_rows,
        draws_per_pass=args.draws_per_pass,
        progress=not args.quiet,
        description=(f"{args.model}, {args.epochs} epochs", f"{args.data}, {rows} test rows"),
    )


def _again(args: argparse.Namespace) -> str:
    """The command, with the threads, which are part of the plan: resumed elsewhere it is the same study."""
    return json.dumps(args.argv if args.threads else [*args.argv, "--threads", str(torch.get_num_threads())])


def _line(*words: str) -> str:
    """A command as one types it."""
    return shlex.join(["python", "-m", "noisykernels", *words])


def _draw(result: Any, path: Path, picture_format: str | None) -> None:
    """The picture of something that can plot itself."""
    figure = result.plot()
    with replacing(path) as file:
        figure.savefig(file, dpi=110, format=picture_format)


def run_vote(args: argparse.Namespace) -> Any:
    """Runs the noisy network many times, and says what combining its answers gives."""
    _check_folders(args.picture)
    picture_format = None if args.picture is None else _picture_format(args.picture)
    model = _trained(args)
    data = load(args.data, "test", root=args.root, limit=args.rows)
    votes = nk.vote(
        model,
        data,
        noise=_terms(args).scaled(args.level),
        draws=args.draws,
        seed=args.seed,
        sites=_sites(args),
        batch_rows=args.batch_rows,
        draws_per_pass=args.draws_per_pass,
        progress=not args.quiet,
    )
    if args.picture is not None:
        _draw(votes, args.picture, picture_format)
    if args.json:
        return {"clean": votes.clean, "curves": {k: c.accuracy.tolist() for k, c in votes.curves.items()}}
    print(votes.table())
    return None


def run_chips(args: argparse.Namespace) -> Any:
    """Runs the network on many chips, and says how their accuracy spreads."""
    noise = nk.WeightNoise(**{args.noise: args.level}, relative=args.relative)
    model = _trained(args)
    data = load(args.data, "test", root=args.root, limit=args.rows)
    found = nk.chips(model, data, hardware=[noise], draws=args.draws, seed=args.seed, progress=not args.quiet)
    if args.json:
        return {"clean": found.clean, "mean": found.mean, "std": found.std, "accuracy": found.accuracy.tolist()}
    print(f"{args.model} on {args.data}; {noise!r}")
    print(found.table(args.limits))
    return None


def run_report(args: argparse.Namespace) -> None:
    """Writes a study as HTML."""
    out = args.out if args.out is not None else args.study.with_suffix(".html")
    _check_folders(out)
    print(f"report: {report(Study.load(args.study), out, args.title)}")


def run_compare(args: argparse.Namespace) -> Any:
    """Compares the midpoints of two studies."""
    _check_folders(args.picture)
    picture_format = None if args.picture is None else _picture_format(args.picture)
    stems = [path.stem for path in args.studies]
    names = args.names or (stems if stems[0] != stems[1] else ["a", "b"])
    a, b = map(Study.load, args.studies)
    both = compare(a, b, names)
    if args.picture is not None:
        _draw(both, args.picture, picture_format)
    if not args.json:
        print(both.table())
        return None
    sites = [p._asdict() | {k: m and asdict(m) for k, m in (("a", p.a), ("b", p.b))} for p in both.pairs]
    return {"names": both.names, "clean": both.clean, "differences": both.differences, "sites": sites}


def _resumed(store: Path) -> argparse.Namespace:
    """The arguments of the command that a store remembers, for the store where it is now."""
    text = note_of(store, NOTE)
    if text is None:
        raise StoreError(f"{store}: holds no command: it was not filled by walk or grid of the command line")
    try:
        argv = [str(word) for word in json.loads(text)]
    except (TypeError, ValueError) as error:
        raise StoreError(f"{store}: damaged: its command cannot be read") from error
    if argv[:1] not in (["walk"], ["grid"], ["mixed"], ["parameter"]):
        raise StoreError(f"{store}: its command is no walk, grid, mixed or parameter, but {argv[:1]}")
    return argparse.Namespace(**{**vars(parser().parse_args(argv)), "store": store, "argv": argv})


def run_train(args: argparse.Namespace) -> Any:
    """Trains or loads, and prints the test accuracy."""
    hits = accuracy(_trained(args), load(args.data, "test", root=args.root))
    if args.json:
        return {"model": args.model, "data": args.data, "epochs": args.epochs, "accuracy": hits}
    print(f"{args.model} on {args.data}, {args.epochs} epochs: test accuracy {hits:.4f}")
    return None


def run_sites(args: argparse.Namespace) -> Any:
    """Lists the sites of an untrained network."""
    about = info(args.data)
    found = nk.sites(build(args.model, about.shape, about.classes), torch.zeros(1, *about.shape))
    if args.json:
        return [{"index": s.index, "name": s.name, "id": s.id, "kind": s.kind, "shape": s.shape[1:]} for s in found]
    for s in found:
        print(f"{s.index:3d}  {s.name:24s} {' x '.join(map(str, s.shape[1:])):>14s}  id {s.id}")
    return None


def run_info(args: argparse.Namespace) -> Any:
    """What was built."""
    facts = {
        "version": nk.__version__,
        "stream_version": nk.STREAM_VERSION,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu_level": nk._C.cpu_level(),
        "kinds": nk._C.noise_kinds(),
        **nk.build_info(),
    }
    if args.json:
        return facts
    for name, value in facts.items():
        print(f"{name:15s} {', '.join(value) or 'none' if isinstance(value, list) else value}")
    return None


def _finite(value: Any) -> Any:
    """The value with None for every number that JSON cannot hold."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _print_json(value: Any) -> None:
    print(json.dumps(_finite(value), indent=1, allow_nan=False))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command: 0 if all is well, 1 for an error, 2 for a wrong flag, 130 for Ctrl-C."""
    args = parser().parse_args(argv)
    args.argv = list(sys.argv[1:] if argv is None else argv)
    runs = {
        "walk": run_walk, "grid": run_walk, "mixed": run_mixed, "parameter": run_parameter, "vote": run_vote,
        "chips": run_chips, "report": run_report, "compare": run_compare, "train": run_train, "sites": run_sites,
        "info": run_info,
    }  # fmt: skip
    before = len(WRITTEN)
    try:
        if args.command == "resume":
            args = _resumed(args.store)
        with torch_threads(getattr(args, "threads", None)):
            result = runs[args.command](args)
        if result is not None:
            _print_json(result)
        return 0
    except KeyboardInterrupt:
        files = ", ".join(map(str, WRITTEN[before:]))
        text = f"interrupted; {f'written: {files}' if files else 'nothing was written'}"
        if (store := getattr(args, "store", None)) is not None and store.exists():
            text += f"; results are kept, go on with: {_line('resume', str(store))}"
        print(text, file=sys.stderr)
        return 130
    except (ValueError, RuntimeError, OSError, ModuleNotFoundError, CheckpointError) as error:
        print(f"noisykernels {args.command}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

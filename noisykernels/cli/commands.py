"""What each command does, from its arguments; what it returns is printed as JSON."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

import torch

import noisykernels as nk
from noisykernels._C import cpu_level
from noisykernels._engine.arguments import chosen_sites
from noisykernels._engine.store import noting
from noisykernels._engine.targets import Parameter, Target
from noisykernels.cli.output import NOTE, check_files, check_folders, draw_picture, format_of_picture, tell_study
from noisykernels.datasets.vision import info, load
from noisykernels.noise.contract import KINDS
from noisykernels.study.comparison import compare
from noisykernels.study.result import Result
from noisykernels.study.study import Study
from noisykernels.training.loop import accuracy
from noisykernels.walking.options import strategy_of, targets_of
from noisykernels.walking.parameter import PARAMETERS, walk_parameter
from noisykernels.zoo.networks import build
from noisykernels.zoo.pretrained import trained


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


def _refuse(args: argparse.Namespace, target: Target | None = None) -> None:
    """Before any work: levels and sites that do not go with what is walked."""
    if target is not None:
        for level in args.levels or ():
            target.check(args.command, level, torch.float32)
    if args.sites is not None:
        about = info(args.data)
        found = nk.sites(build(args.model, about.shape, about.classes), torch.zeros(1, *about.shape))
        chosen_sites(args.command, [s for s in found if target is None or target.opens(s)], args.sites)


def run_walk(args: argparse.Namespace) -> None:
    """Trains or loads, walks, writes the study, prints the midpoint table, writes picture, records and report."""
    picture_format = check_files(args)
    noise, plateaus = _noise(args), getattr(args, "plateaus", None)
    (target,) = targets_of(noise, args.target)
    strategy_of(args.levels, args.levels and args.draws, None, plateaus, target)
    _refuse(args, target)
    model = _trained(args)
    inputs, labels = load(args.data, "test", root=args.root, limit=args.rows)
    with noting(NOTE, _again(args)):
        study = nk.walk(
            model,
            (inputs, labels),
            noise=noise,
            target=args.target,
            plateaus=plateaus,
            search=nk.Search(args.rel_ci, args.most) if args.levels is None else None,
            **_options(args, len(labels)),
        )
    tell_study(args, study, f"noise {noise!r} times the level", picture_format)


def run_parameter(args: argparse.Namespace) -> None:
    """Walks a parameter of the hardware of one contraction at a time, and writes what `run_walk` does."""
    picture_format = check_files(args)
    known = PARAMETERS[args.parameter]
    _refuse(args, Parameter(known.make, known.name, known.larger))
    model = _trained(args)
    data = load(args.data, "test", root=args.root, limit=args.rows)
    options = _options(args, len(data[1]))
    with noting(NOTE, _again(args)):
        study = walk_parameter(model, data, values=options.pop("levels"), **known._asdict(), **options)
    tell_study(args, study, known.name, picture_format)


def run_mixed(args: argparse.Namespace) -> Any:
    """Walks mixed noise of several ratios, and prints the midpoints of each."""
    check_folders(args.picture, args.out)
    picture_format = None if args.picture is None else format_of_picture(args.picture)
    _refuse(args)
    model = _trained(args)
    data = load(args.data, "test", root=args.root, limit=args.rows)
    with noting(NOTE, _again(args)):
        mixed = nk.walk_mixed(
            model, data, ratios=args.ratios, order=args.order, kind=args.kind, **_options(args, len(data[1]))
        )
    files = [] if args.out is None else mixed.save(args.out)
    if args.picture is not None:
        draw_picture(mixed, args.picture, picture_format)
        files.append(args.picture)
    if args.json:
        pairs = zip(mixed.ratios, mixed.studies, strict=True)
        return [{"ratio": r, "midpoints": [asdict(m) for m in study.midpoints()]} for r, study in pairs]
    print(mixed.table())
    for path in files:
        print(f"written: {path}")
    return None


def _options(args: argparse.Namespace, rows: int) -> dict[str, Any]:
    """Arguments of a walk that all its commands share."""
    return dict(
        levels=args.levels,
        draws=None if args.levels is None else args.draws,
        compute=_compute(
            args,
            engine=args.engine,
            memory=None if args.memory is None else int(args.memory * 2**30),
            executor=args.workers,
        ),
        store=args.store,
        seed=args.seed,
        sites=args.sites,
        progress=not args.quiet,
        description=(f"{args.model}, {args.epochs} epochs", f"{args.data}, {rows} test rows"),
    )


def _compute(args: argparse.Namespace, **more: Any) -> nk.Compute:
    return nk.Compute(batch_rows=args.batch_rows, draws_per_pass=args.draws_per_pass, **more)


def _again(args: argparse.Namespace) -> str:
    """The command, with the threads, which are part of the plan: resumed elsewhere it is the same study."""
    return json.dumps(args.argv if args.threads else [*args.argv, "--threads", str(torch.get_num_threads())])


def run_vote(args: argparse.Namespace) -> Any:
    """Runs the noisy network many times, and says what combining its answers gives."""
    check_folders(args.picture, args.out)
    picture_format = None if args.picture is None else format_of_picture(args.picture)
    _refuse(args)
    model = _trained(args)
    data = load(args.data, "test", root=args.root, limit=args.rows)
    votes = nk.vote(
        model,
        data,
        noise=_terms(args).scaled(args.level),
        draws=args.draws,
        seed=args.seed,
        sites=args.sites,
        compute=_compute(args),
        progress=not args.quiet,
    )
    if args.picture is not None:
        draw_picture(votes, args.picture, picture_format)
    if args.out is not None:
        votes.save(args.out)
    if args.json:
        return {"clean": votes.clean, "curves": {k: c.accuracy.tolist() for k, c in votes.curves.items()}}
    print(votes.table())
    return None


def run_chips(args: argparse.Namespace) -> Any:
    """Runs the network on many chips, and says how their accuracy spreads."""
    check_folders(args.out)
    noise = nk.WeightNoise(**{args.noise: args.level}, relative=args.relative)
    model = _trained(args)
    data = load(args.data, "test", root=args.root, limit=args.rows)
    found = nk.chips(model, data, hardware=[noise], draws=args.draws, seed=args.seed, progress=not args.quiet)
    if args.out is not None:
        found.save(args.out)
    if args.json:
        return {"clean": found.clean, "mean": found.mean, "std": found.std, "accuracy": found.accuracy.tolist()}
    print(f"{args.model} on {args.data}; {noise!r}")
    print(found.table(args.limits))
    return None


def run_report(args: argparse.Namespace) -> None:
    """Writes a result as HTML."""
    result = Result.load(args.result)
    out = args.out if args.out is not None else args.result.with_suffix(".html")
    check_folders(out)
    print(f"report: {result.report(out, args.title)}")


def run_compare(args: argparse.Namespace) -> Any:
    """Compares the midpoints of two studies."""
    check_folders(args.picture, args.out)
    picture_format = None if args.picture is None else format_of_picture(args.picture)
    stems = [path.stem for path in args.studies]
    names = args.names or (stems if stems[0] != stems[1] else ["a", "b"])
    a, b = map(Study.load, args.studies)
    both = compare(a, b, names)
    if args.picture is not None:
        draw_picture(both, args.picture, picture_format)
    if args.out is not None:
        both.save(args.out)
    if not args.json:
        print(both.table())
        return None
    sites = [p._asdict() | {k: m and asdict(m) for k, m in (("a", p.a), ("b", p.b))} for p in both.pairs]
    return {"names": both.names, "clean": both.clean, "differences": both.differences, "sites": sites}


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
        "cpu_level": cpu_level(),
        "kinds": list(KINDS),
        **nk.build_info(),
    }
    if args.json:
        return facts
    for name, value in facts.items():
        print(f"{name:15s} {', '.join(value) or 'none' if isinstance(value, list) else value}")
    return None

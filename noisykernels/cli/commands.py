"""What each command does, from its arguments: it prints what it found, then writes its files."""

from __future__ import annotations

import argparse
import functools
from dataclasses import asdict
from typing import Any

import torch

import noisykernels as nk
from noisykernels._C import cpu_level
from noisykernels._engine.arguments import chosen_sites
from noisykernels._engine.store import noting
from noisykernels._engine.targets import Parameter, Target
from noisykernels.cli.noises import noise_of, of_rows, terms_of
from noisykernels.cli.notes import NOTE, note
from noisykernels.cli.output import File, check_files, draw_picture, say, tell, typed
from noisykernels.cli.reading import a_site
from noisykernels.datasets.vision import info, load
from noisykernels.injection.api import sites_with_results
from noisykernels.noise.contract import KINDS
from noisykernels.stats.midpoint import Axis
from noisykernels.stats.records import usual_axis
from noisykernels.study.comparison import compare
from noisykernels.study.html_report import report
from noisykernels.study.result import Result
from noisykernels.study.study import Study
from noisykernels.training.loop import accuracy
from noisykernels.walking.groups import check_groups, grouped, words_of
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


def _refuse(args: argparse.Namespace, target: Target | None = None) -> None:
    """Before any work: levels and sites that do not go with what is walked."""
    if target is not None:
        for level in args.levels or ():
            target.check(args.command, level, torch.float32)
    groups = _groups(args)
    if args.sites is not None or groups is not None:
        check_groups(args.command, groups, args.sites)
        about = info(args.data)
        model = build(args.model, about.shape, about.classes)
        words = words_of(args.sites, groups)
        known = sites_with_results(model, torch.zeros(1, *about.shape), words, detail=args.detail)
        found = [s for s in known if target is None or target.opens(s)]
        grouped(args.command, model, chosen_sites(args.command, model, found, args.sites), groups, "")


def _refuse_levels(args: argparse.Namespace, axis: Axis) -> None:
    """Before any work: levels that leave a table of midpoints nothing to look at."""
    if axis == "log" and args.levels is not None and not any(level > 0 for level in args.levels):
        option = "--values" if args.command == "parameter" else "--levels"
        raise ValueError(f"{args.command}: {option} must hold one above 0, as midpoints are on a log axis")


def run_walk(args: argparse.Namespace) -> None:
    """Trains or loads, walks, writes the study, prints the midpoint table, writes picture, records and report."""
    check_files(args)
    noise, plateaus = noise_of(args), getattr(args, "plateaus", None)
    (target,) = targets_of("walk", noise, args.target)
    strategy_of("walk", args.levels, args.levels and args.draws, None, plateaus, target)
    _refuse(args, target)
    _refuse_levels(args, usual_axis(target.told()))
    model = _trained(args)
    inputs, labels = load(args.data, "test", root=args.root, limit=args.rows)
    with noting(NOTE, note(args)):
        study = nk.walk(
            model,
            (inputs, labels),
            noise=noise,
            target=args.target,
            plateaus=plateaus,
            arrays=args.arrays if args.target == "weight" else "module",
            search=nk.Search(args.rel_ci, args.most) if args.levels is None else None,
            **_options(args, len(labels)),
        )
    _tell_study(args, study, f"noise {noise!r} times the level")


def run_parameter(args: argparse.Namespace) -> None:
    """Walks a parameter of the hardware of one contraction at a time, and writes what `run_walk` does."""
    check_files(args)
    known = PARAMETERS[args.parameter]
    _refuse(args, Parameter(known.make, known.name, known.larger))
    _refuse_levels(args, known.axis)
    model = _trained(args)
    data = load(args.data, "test", root=args.root, limit=args.rows)
    options = _options(args, len(data[1]))
    with noting(NOTE, note(args)):
        study = walk_parameter(
            model, data, values=options.pop("levels"), arrays=args.arrays, **known._asdict(), **options
        )
    _tell_study(args, study, known.name)


def _tell_study(args: argparse.Namespace, study: Study, what: str) -> None:
    """Prints a study and writes its files."""
    export = functools.partial(study.export, spreadsheet=args.spreadsheet)
    page = functools.partial(report, study, command=typed(*args.argv))
    files = [
        File("study", args.out, study.save),
        File("picture", args.picture, functools.partial(draw_picture, study)),
        *(File("records", path, export) for path in args.export),
        File("report", args.report, page),
    ]

    def found() -> Any:
        covered = study.meta.plan.get("covered")
        return {"clean": study.meta.clean, "covered": covered, "midpoints": [asdict(m) for m in study.midpoints()]}

    tell(args, found, lambda: f"{study.meta.model} on {study.meta.data}; {what}\n{study.table()}", files)


def run_mixed(args: argparse.Namespace) -> None:
    """Walks mixed noise of several ratios, and prints the midpoints of each."""
    check_files(args)
    _refuse(args)
    _refuse_levels(args, "linear" if all(ratio == 1 for ratio in args.ratios) else "log")
    relative = of_rows(args)
    model = _trained(args)
    data = load(args.data, "test", root=args.root, limit=args.rows)
    with noting(NOTE, note(args)):
        mixed = nk.walk_mixed(
            model, data, ratios=args.ratios, order=args.order, kind=args.kind, relative=relative,
            **_options(args, len(data[1])),
        )  # fmt: skip

    def found() -> Any:
        pairs = zip(mixed.ratios, mixed.studies, strict=True)
        return [{"ratio": r, "midpoints": [asdict(m) for m in study.midpoints()]} for r, study in pairs]

    picture = File("written", args.picture, functools.partial(draw_picture, mixed))
    tell(args, found, mixed.table, [File("written", args.out, mixed.save), picture])


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
        metric=args.metric,
        store=args.store,
        seed=args.seed,
        at=args.at,
        sites=args.sites,
        groups=_groups(args),
        detail=args.detail,
        progress=not args.quiet,
        description=(f"{args.model}, {args.epochs} epochs", f"{args.data}, {rows} test rows"),
    )


def _groups(args: argparse.Namespace) -> Any:
    """The groups of a walk: a word, or a dict of names and sites."""
    given = getattr(args, "groups", None)
    if given is None:
        return None
    words = [word for word in given if "=" not in word]
    if words and len(given) > 1:
        raise ValueError(f"--groups: {words[0]} stands alone, got {' '.join(given)}")
    if words:
        return words[0]
    found: dict[str, list[str | int]] = {}
    for one in given:
        name, _, site = one.partition("=")
        found.setdefault(name, []).append(a_site(site))
    return found


def _compute(args: argparse.Namespace, **more: Any) -> nk.Compute:
    return nk.Compute(batch_rows=args.batch_rows, draws_per_pass=args.draws_per_pass, **more)


def run_vote(args: argparse.Namespace) -> None:
    """Runs the noisy network many times, and says what combining its answers gives."""
    check_files(args)
    _refuse(args)
    noise = terms_of(args, of_rows(args)).scaled(args.level)
    model = _trained(args)
    data = load(args.data, "test", root=args.root, limit=args.rows)
    votes = nk.vote(
        model,
        data,
        noise=noise,
        draws=args.draws,
        seed=args.seed,
        sites=args.sites,
        detail=args.detail,
        metric=args.metric,
        compute=_compute(args),
        progress=not args.quiet,
    )
    found = {
        "clean": votes.clean,
        "covered": votes.covered,
        "curves": {k: c.values.tolist() for k, c in votes.curves.items()},
    }
    picture = File("", args.picture, functools.partial(draw_picture, votes))
    tell(args, lambda: found, votes.table, [picture, File("", args.out, votes.save)])


def run_chips(args: argparse.Namespace) -> None:
    """Runs the network on many chips, and says how their accuracy spreads."""
    check_files(args)
    noise = nk.WeightNoise(**{args.noise: args.level}, relative=args.relative)
    model = _trained(args)
    data = load(args.data, "test", root=args.root, limit=args.rows)
    chips = nk.chips(
        model, data, hardware=[noise], draws=args.draws, seed=args.seed, arrays=args.arrays, detail=args.detail,
        metric=args.metric, progress=not args.quiet,
    )  # fmt: skip
    found: dict[str, Any] = {"clean": chips.clean, "mean": chips.mean, "std": chips.std}
    found["accuracy" if args.metric == "accuracy" else "values"] = chips.values.tolist()
    found["covered"] = chips.covered
    found |= {"yields": [{"limit": v, "share": chips.yield_at(v)[0]} for v in args.limits]} if args.limits else {}
    head = f"{args.model} on {args.data}; {noise!r}"
    tell(args, lambda: found, lambda: f"{head}\n{chips.table(args.limits)}", [File("", args.out, chips.save)])


def run_report(args: argparse.Namespace) -> None:
    """Writes a result as HTML."""
    result = Result.load(args.result)
    args.out = args.out if args.out is not None else args.result.with_suffix(".html")
    check_files(args, read=[args.result])
    say(f"report: {result.report(args.out, args.title)}")


def run_compare(args: argparse.Namespace) -> None:
    """Compares the midpoints of two studies."""
    check_files(args, read=args.studies)
    stems = [path.stem for path in args.studies]
    names = args.names or (stems if stems[0] != stems[1] else ["a", "b"])
    a, b = map(Study.load, args.studies)
    both = compare(a, b, names, args.at)
    sites = [p._asdict() | {k: m and asdict(m) for k, m in (("a", p.a), ("b", p.b))} for p in both.pairs]
    found = {"names": both.names, "clean": both.clean, "differences": both.differences, "sites": sites}
    picture = File("", args.picture, functools.partial(draw_picture, both))
    tell(args, lambda: found, both.table, [picture, File("", args.out, both.save)])


def run_train(args: argparse.Namespace) -> None:
    """Trains or loads, and prints the test accuracy."""
    hits = accuracy(_trained(args), load(args.data, "test", root=args.root))
    found = {"model": args.model, "data": args.data, "epochs": args.epochs, "accuracy": hits}
    tell(args, lambda: found, lambda: f"{args.model} on {args.data}, {args.epochs} epochs: test accuracy {hits:.4f}")


def run_sites(args: argparse.Namespace) -> None:
    """Lists the sites of an untrained network."""
    about = info(args.data)
    model = build(args.model, about.shape, about.classes)
    known = nk.sites(model, torch.zeros(1, *about.shape), detail=args.detail)
    found = [{"index": s.index, "name": s.name, "id": s.id, "kind": s.kind, "shape": s.shape[1:]} for s in known]
    lines = [f"{s.index:3d}  {s.name:24s} {' x '.join(map(str, s.shape[1:])):>14s}  id {s.id}" for s in known]
    tell(args, lambda: found, lambda: "\n".join(lines))


def run_info(args: argparse.Namespace) -> None:
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
    shown = {k: ", ".join(v) or "none" if isinstance(v, list) else v for k, v in facts.items()}
    tell(args, lambda: facts, lambda: "\n".join(f"{name:15s} {value}" for name, value in shown.items()))

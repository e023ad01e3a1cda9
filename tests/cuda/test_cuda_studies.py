"""Injected models, walks and votes on CUDA against the same on the CPU."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from cuda_cases import classifier, data, labelled, network
from operators import MODES

import noisykernels as nk

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
    pytest.mark.skipif(not nk._C.build_info()["cuda_archs"], reason="built without the CUDA kernels: no nvcc"),
]


@pytest.mark.parametrize("draws", [None, [3, 1]])
def test_injected_model(draws: list[int] | None) -> None:
    x, _ = data()
    scores = []
    for device in ("cpu", "cuda"):
        model = network().to(device)
        with nk.inject(model, nk.Noise(add=2.0), where=lambda name, _: nk.Noise(add=2.0) if name == "0" else None):
            with nk.noise_state(model, seed=3, draws=draws), torch.no_grad():
                scores.append(model(x.to(device)).cpu())
    # One noisy site, then two contractions of fewer than 64 terms each: 2^-24 x 2 x 64, with room for their growth.
    assert (scores[0] - scores[1]).abs().max() <= 2**-15 * scores[0].abs().max()


@pytest.mark.parametrize("mode", ["add", "mul", "mul_add", "add_mul"])
@pytest.mark.usefixtures("no_tf32")
@pytest.mark.parametrize("shaped", [False, True])
def test_walk_agrees_with_the_cpu(mode: str, shaped: bool) -> None:
    """Each record up to predictions at a decision boundary."""
    levels = dict(MODES[mode])
    if shaped:  # on the CPU, where people make them
        levels |= {k: nk.per_channel([v, 2 * v, v, 0.0], 4) for k, v in levels.items() if isinstance(v, float)}
    studies = []
    for device, engine in (("cpu", "auto"), ("cuda", "auto"), ("cuda", "plain")):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            studies.append(nk.walk(
                network().to(device), data(), noise=nk.Noise(**levels), levels=[0.1, 1.0, 10.0], draws=3, seed=1,
                sites=[1, 2] if shaped else None, compute=nk.Compute(engine=engine),
            ))  # fmt: skip
    for one in studies[1:]:
        for a, b in zip(one.records, studies[0].records, strict=True):
            assert (a.site, a.level, a.draw) == (b.site, b.level, b.draw)
            assert abs(a.correct - b.correct) <= 1, (a, b)  # one of 300 rows, if any, so near to a boundary


def test_adaptive_walk() -> None:
    here = nk.walk(classifier(), labelled(), noise=nk.Noise(add=1.0), seed=1, sites=[1, 2])
    there = nk.walk(classifier().cuda(), labelled(), noise=nk.Noise(add=1.0), seed=1, sites=[1, 2])
    for a, b in zip(here.midpoints(), there.midpoints(), strict=True):
        assert a.status == b.status, (a, b)
        assert max(a.low, b.low) <= min(a.high, b.high)  # both intervals hold the same midpoint


def test_vote() -> None:
    here, there = (
        nk.vote(classifier().to(device), labelled(), noise=nk.Noise(add=5.0), draws=5, seed=1)
        for device in ("cpu", "cuda")
    )
    for kind, curve in here.curves.items():
        assert abs(curve.values - there.curves[kind].values).max() <= 2 / 300, kind


def test_studies_that_are_kept_settled_or_mixed(tmp_path: Path) -> None:
    model, how = classifier().cuda(), dict(levels=[1e-5, 1.0, 100.0], draws=3, seed=1)
    whole = nk.walk(model, labelled(), noise=nk.Noise(add=1.0), **how)
    part = nk.walk(model, labelled(), noise=nk.Noise(add=1.0), **{**how, "draws": 2}, store=tmp_path / "s.db")
    kept = nk.walk(model, labelled(), noise=nk.Noise(add=1.0), **how, store=tmp_path / "s.db")
    assert len(part.records) < len(kept.records) and kept.records == whole.records
    settled = nk.walk(model, labelled(), noise=nk.Noise(add=1.0), **how, plateaus=0.03)
    statuses = {r.status for r in settled.records}  # which of the two it is depends on the last bits of a contraction
    assert "evaluated" in statuses and statuses & {"proved", "settled"}
    clean = whole.meta.clean_correct
    assert all(r.correct == clean for r in settled.records if r.status == "proved")
    mixed = nk.walk_mixed(model, labelled(), ratios=[0.0, 1.0], **how)
    assert mixed.studies[1].records == whole.records

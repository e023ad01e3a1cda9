"""Published settings: each with the constants of its source, and what it does to weights."""

from __future__ import annotations

import pytest
import torch

import noisykernels as nk
from noisykernels.hardware import PCM, DifferentialPair


def test_constants_are_those_of_the_sources() -> None:
    """AFM: `modifier_std_dev: 0.03` and `add_gauss_channel` in training; in evaluation 5 % of the absolute maximum of a
    column, or of tiles of 512. MemSE: G_max 0.1, 128 levels. aihwkit: two devices of 25 uS, max|W| of the layer.
    """
    (training,), (evaluation,) = nk.presets.afm("training"), nk.presets.afm()
    assert repr(training) == "WeightNoise(add=0.03, relative='channel')"
    assert repr(evaluation) == "WeightNoise(add=0.05, relative='channel')"
    assert repr(nk.presets.afm(tiles=True)[0]) == "WeightNoise(add=0.05, relative='tile:512')"
    (pcm,) = nk.presets.aihwkit_pcm(60.0)
    assert isinstance(pcm, PCM) and (float(pcm.time), pcm.over, pcm.pair, pcm.compensate) == (
        60.0,
        "layer",
        True,
        False,
    )
    assert (pcm.largest_conductance, pcm.first_reading, pcm.reading) == (25.0, 20.0, 250e-9)
    assert all(float(getattr(pcm, name)) == 1.0 for name in ("programming", "drift", "read"))
    (pair,) = nk.presets.memse(0.02)
    assert isinstance(pair, DifferentialPair) and pair.levels == 128 and pair.clip and pair.rounding == "floor"
    assert (float(pair.g_max), float(pair.sigma), pair.over) == (0.1, 0.02, "layer")
    assert repr(nk.presets.joshi(0.1)[0]) == "WeightNoise(add=0.1, relative='layer')"


def test_afm_is_what_its_script_adds() -> None:
    """Its `add_additive_noise`, written out: amax of each row of the weight, or of its tiles, times 0.05 times eps."""
    torch.manual_seed(0)
    weight, x = torch.randn(3, 1100), torch.eye(1100)
    eps = nk.perturb(torch.zeros_like(weight), nk.Noise(add=1.0), seed=1, operand="weight")
    for tiles, sizes in ((False, [1100]), (True, [367, 367, 366])):
        amax = torch.cat([t.abs().amax(1, keepdim=True).expand_as(t) for t in weight.split(sizes, 1)], 1)
        seen = nk.linear(x, weight, hardware=nk.presets.afm(tiles=tiles), seed=1).T
        assert torch.allclose(seen, weight + 0.05 * amax * eps, rtol=1e-5, atol=1e-6)


def test_a_preset_goes_where_hardware_goes() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)).eval()
    data = torch.randn(20, 4), torch.randint(2, (20,))
    chips = nk.chips(model, data, hardware=nk.presets.afm(), draws=3, seed=1, progress=False)
    assert chips.values.shape == (3,)


def test_another_stage_is_refused() -> None:
    with pytest.raises(ValueError, match="afm: stage must be 'training' or 'evaluation', got 'test'"):
        nk.presets.afm("test")

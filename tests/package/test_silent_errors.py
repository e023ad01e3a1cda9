"""What would be wrong unnoticed: values out of range, options without effect, threads in each other's way."""

from __future__ import annotations

import threading

import pytest
import torch

import noisykernels as nk
from noisykernels import Noise


def test_a_level_beyond_the_type_is_an_error_and_not_nan() -> None:
    x = torch.ones(2, 4)
    for noise in (Noise(add=1e39), Noise(mul=torch.tensor(1e39, dtype=torch.float64))):
        with pytest.raises(ValueError, match="finite"):
            nk.perturb(x, noise, seed=1)
        assert nk.perturb(x.double(), noise, seed=1).isfinite().all()
    with pytest.raises(ValueError, match="finite"):
        Noise(add=1e300).scaled(1e10)


def test_scores_that_are_nan_are_no_correct_predictions() -> None:
    """argmax takes the first NaN for the largest score, so every row would be of class 0."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 3))
    data = torch.randn(20, 4), (torch.arange(20) == 19).long()
    with pytest.warns(UserWarning, match="site input at level 1e\\+30: 20 of 20 rows of scores hold NaN"):
        study = nk.walk(model, data, noise=Noise(add=1.0), levels=[1e30], draws=1, seed=1, sites="input")
    assert study.records[0].correct == 0
    torch.nn.init.constant_(model[0].weight, float("nan"))
    with pytest.raises(ValueError, match="NaN without noise"):
        nk.walk(model, data, noise=Noise(add=1.0), levels=[1.0], draws=1, seed=1)


def test_the_mean_of_repeated_uniform_noise_is_not_uniform() -> None:
    """Only a mean of Gaussians is again of its kind: kurtosis 3 - 1.2 / R for uniform noise (1.8 for R = 1)."""
    x = torch.zeros(100_000, 1)
    site = torch.nn.Sequential(nk.NoiseSite(Noise(add=1.0, kind="uniform")))
    with nk.inject(site, None, repeats=4), nk.noise_state(site, seed=3):
        y = site(x).double().flatten()
    kurtosis = float((y**4).mean() / (y**2).mean() ** 2)
    # The estimate's standard error is below sqrt(24 / n) = 0.0155 for tails no heavier than the normal's: five of them.
    assert abs(kurtosis - 2.7) < 5 * 0.0155
    assert abs(float(y.var()) * 4 - 1) < 5 * 0.0155


def test_options_of_the_injection_reach_noisy_layers() -> None:
    layer = torch.nn.Sequential(nk.NoisyLinear(4, 3, noise=Noise(add=1.0)))
    x = torch.randn(5, 4)

    def noise_of(**options: object) -> torch.Tensor:
        with nk.inject(layer, None, **options), nk.noise_state(layer, seed=3), torch.no_grad():
            return layer(x) - torch.nn.functional.linear(x, layer[0].weight, layer[0].bias)

    plain = noise_of()
    torch.testing.assert_close(noise_of(repeats=4), plain / 2)
    torch.testing.assert_close(noise_of(normalize_to_input_size=True), plain / 3, rtol=1e-4, atol=1e-6)


def test_a_second_thread_cannot_change_the_state_of_a_model_in_use() -> None:
    model = torch.nn.Sequential(nk.NoisyLinear(2, 2, noise=Noise(add=1.0)))
    errors: list[str] = []

    def other() -> None:
        try:
            with nk.noise_state(model, seed=2):
                pass
        except RuntimeError as error:
            errors.append(str(error))

    with nk.noise_state(model, seed=1):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(errors) == 1 and "another thread" in errors[0]
    with nk.noise_state(model, seed=1):  # and is free again
        pass


def test_a_weight_with_a_stride_that_the_library_cannot_take() -> None:
    w = torch.randn(8).as_strided((1, 8), (2**40, 1))
    x = torch.randn(3, 8)
    torch.testing.assert_close(nk.linear(x, w, noise=Noise(), seed=1), torch.nn.functional.linear(x, w))

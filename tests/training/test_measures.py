"""Measures of sites and weights: known answers, plain torch and scipy as oracles, and nothing left behind."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from injecting import small
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import noisykernels as nk
from noisykernels.training import train
from noisykernels.training.statistics import SiteStatistics

pytestmark = pytest.mark.usefixtures("one_thread")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Flatten(), nn.Linear(27, 4)
    )


def images(rows: int = 23) -> Tensor:
    return torch.randn(rows, 2, 5, 5, generator=torch.Generator().manual_seed(2))


def state(model: nn.Module) -> list[Tensor]:
    return [v.clone() for v in model.state_dict().values()]


# ------------------------------------------------------------------------------------------------- signal and noise


def test_the_signal_is_what_plain_torch_sees() -> None:
    model, x = network().eval(), images()
    values, v = [x], x
    with torch.no_grad():
        for layer in (model[0], model[1], nn.ReLU()):
            v = layer(v)
            values.append(v)
        values.append(model[5](v.flatten(1)))
    for size in (500, 5):
        found = nk.training.site_statistics(model, (x, torch.zeros(23)), batch_size=size)
        names = [r.site for r in found]
        assert names == ["input", "0:conv2d#0", "1:batch_norm#0", "2:relu#0", "5:linear#0"]
        for i, (r, value) in enumerate(zip(found, values, strict=True)):
            expected = value.double()
            assert (r.site_index, r.values, r.noise_power, r.snr, r.snr_db) == (i, value.numel(), 0, math.inf, math.inf)
            assert r.kind == nk.sites(model, x)[i].kind and r.zeros == float((value == 0).double().mean())
            moments = (expected.mean(), expected.var(correction=0), expected.square().mean())
            # batches of another size may round float32 sums another way
            assert (r.mean, r.variance, r.power) == pytest.approx([float(m) for m in moments], rel=1e-5, abs=1e-6)
    assert 0.3 < found[3].zeros < 0.7 and found[1].zeros == 0


POWERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "add": ({"add": 0.5}, {}),
    "mul": ({"mul": 0.5}, {}),
    "mul_add": ({"add": 0.5, "mul": 0.7}, {}),
    "add_mul": ({"add": 1.5, "mul": 0.7, "order": "add_mul"}, {}),
    "fold": ({"add": 0.5, "mul": 0.7, "fold": True}, {}),
    "uniform": ({"add": 0.5, "mul": 0.7, "kind": "uniform"}, {}),
    "averaged": ({"add": 0.5, "mul": 0.7}, {"repeats": 4}),
    "averaged one by one": ({"add": 0.5, "mul": 0.7, "order": "add_mul"}, {"repeats": 4}),
    "laplace averaged": ({"add": 0.5, "kind": "laplace"}, {"repeats": 3}),
    "of the size": ({"add": 0.5, "mul": 3.0}, {"normalize_to_input_size": True}),
    "channels": ({"add": nk.per_channel([0.1, 0.5, 1.0, 2.0], 2)}, {}),
}


@pytest.mark.parametrize(("settings", "options"), POWERS.values(), ids=POWERS)
@pytest.mark.parametrize("level", [None, 1.5, "rows"])
def test_noise_power_is_that_of_the_noise(settings: dict[str, Any], options: dict[str, Any], level: Any) -> None:
    """Against the mean square of 240,000 differences, with a relative standard error of sqrt((k - 1) / 240,000) for a
    kurtosis k; with the spread of levels and of x^2 the k of all is below 60, so 8 % is more than five of them."""
    x = torch.randn(60_000, 4) * 2 + 1
    if level == "rows":
        level = torch.rand(60_000)
    model = nn.Identity()
    with nk.inject(model, nk.Noise(**settings), **options), torch.no_grad():
        with nk.noise_state(model, seed=1, level=level):
            measured = float((model(x) - x).double().square().mean())
        (found,) = nk.training.site_statistics(model, x, seed=2, level=level, batch_size=60_000)
    assert found.noise_power == pytest.approx(measured, rel=0.08)
    assert found.snr == pytest.approx(found.variance / found.noise_power)
    assert found.snr_db == pytest.approx(10 * math.log10(found.snr))
    if settings == {"mul": 0.5} and level is None:
        assert found.noise_power == pytest.approx(0.25 * found.power, rel=1e-12)


def test_additive_noise_has_the_published_ratio() -> None:
    x = torch.tensor([[0.0], [4.0]])
    model = nn.Identity()
    with nk.inject(model, nk.Noise(add=0.5)):
        (found,) = nk.training.site_statistics(model, x)
    assert found[3:] == (2, 2.0, 4.0, 8.0, 0.5, 0.25, 16.0, 10 * math.log10(16))


def test_noise_of_earlier_sites_is_part_of_the_signal() -> None:
    model, x, seen = network().eval(), images(), []
    model[1].register_forward_hook(lambda _, args, out: seen.append(out.clone()))
    with nk.inject(model, nk.Noise(add=2.0), where=["0", "2"]):
        found = {r.site: r for r in nk.training.site_statistics(model, x, seed=4)}
    clean = {r.site: r for r in nk.training.site_statistics(model, x)}
    assert found["0:conv2d#0"].variance == pytest.approx(clean["0:conv2d#0"].variance, rel=1e-6)
    relu = F.relu(seen[0]).double()
    assert found["2:relu#0"].variance == pytest.approx(float(relu.var(correction=0)), rel=1e-6)
    assert found["2:relu#0"].zeros == float((relu == 0).double().mean())
    assert found["2:relu#0"].noise_power == 4 and found["5:linear#0"].noise_power == 0


def test_layers_attention_recurrence_and_rows_that_moved() -> None:
    layer = nk.NoisyLinear(4, 3, noise=nk.Noise(mul=0.5))
    x = torch.randn(7, 4)
    noisy = nk.training.site_statistics(nn.Sequential(layer), x, seed=1)[1]
    assert noisy.noise_power == pytest.approx(0.25 * noisy.power, rel=1e-12) and noisy.values == 21
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    with nk.inject(encoder, nk.Noise(add=0.3)):
        found = nk.training.site_statistics(encoder, torch.randn(3, 5, 8))
    assert len(found) > 6 and all(r.noise_power == pytest.approx(0.09) for r in found)
    gru, x = nn.GRU(3, 4), torch.randn(6, 5, 3)
    levels = torch.arange(5.0)
    with nk.inject(gru, nk.Noise(add=1.0), example_input=x, row_dims={"*": 1, "input": 1}):
        for r in nk.training.site_statistics(gru, x, level=torch.arange(5.0)):
            assert r.noise_power == pytest.approx(float(levels.square().mean()), rel=1e-12)


def test_special_signals() -> None:
    def one(x: Tensor, noise: nk.Noise) -> SiteStatistics:
        model = nn.Identity()
        with nk.inject(model, noise):
            return nk.training.site_statistics(model, x)[0]

    assert one(torch.ones(3, 2), nk.Noise(add=1.0))[-2:] == (0, -math.inf)
    assert all(map(math.isnan, one(torch.ones(3, 2), nk.Noise())[-2:]))
    far = one(torch.tensor([[1e8], [1e8 + 8]]), nk.Noise(add=1.0))
    assert far.variance == 16  # not lost beside the mean
    assert one(torch.ones(3, 2).half(), nk.Noise(mul=0.5)).noise_power == 0.25


OPTIONS_OF_NOISE: dict[str, Any] = {
    "gradient_norms: seed=": lambda m, x: nk.training.gradient_norms(m, (x, torch.zeros(23).long()), seed=1),
    "site_statistics: seed= and level=": lambda m, x: nk.training.site_statistics(m, x, seed=1, level=0.5),
    "recalibrate_bn: seed=": lambda m, x: nk.training.recalibrate_bn(m, x, seed=1),
    "programmed: seed=": lambda m, x: nk.injection.programmed(m, x, seed=1),
}


@pytest.mark.parametrize("told", OPTIONS_OF_NOISE)
def test_options_of_noise_without_noise_are_told_of(told: str) -> None:
    model, measure = network().eval(), OPTIONS_OF_NOISE[told]
    with pytest.warns(UserWarning, match=f"^{told} changes nothing: the model has no noise; inject"):
        measure(model, images())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with nk.inject(model, nk.Noise(add=0.5), example_input=images()):
            measure(model, images())
        model[0] = nk.NoisyConv2d(2, 3, 3, noise=nk.Noise(add=0.5))
        measure(model, images())


def test_measuring_leaves_everything_as_it_was() -> None:
    model = network().train()
    model[1].eval()
    before, modes, generator = state(model), [m.training for m in model.modules()], torch.get_rng_state()
    for given in (False, True):
        if given:
            nk.inject(model, nk.Noise(add=0.5))
        cls, hooks, seed = type(model), [len(m._forward_hooks) for m in model.modules()], 1 if given else None
        nk.training.site_statistics(model, images(), seed=seed, batch_size=8)
        nk.training.gradient_norms(model, (images(), torch.zeros(23).long()), seed=seed, batch_size=8)
        assert type(model) is cls and [len(m._forward_hooks) for m in model.modules()] == hooks
        with pytest.raises(OSError):
            nk.training.site_statistics(model, broken(), seed=seed)
        assert type(model) is cls and torch.is_grad_enabled() and not torch._C._is_torch_function_mode_enabled()
    assert all(torch.equal(a, b) for a, b in zip(before, state(model), strict=True))
    assert [m.training for m in model.modules()] == modes and torch.equal(generator, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())


def broken() -> Any:
    yield images(4)
    raise OSError


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        (torch.zeros(0, 6), ValueError, "data must hold at least one row, got none"),
        ([], ValueError, "at least one row"),
        (["text"], TypeError, "a batch of data must be of tensors or numbers, got 'text'"),
        ((torch.zeros(3, 6), torch.zeros(2)), ValueError, "as many inputs as labels, got 3 and 2"),
    ],
)
def test_data_that_is_refused(data: Any, error: type[Exception], text: str) -> None:
    for measure in (nk.training.site_statistics, nk.training.gradient_norms):
        with pytest.raises(error, match=f"{measure.__name__}: .*{text}"):
            measure(small(), data)


# ------------------------------------------------------------------------------------------------------- gradients


class Rich(nn.Module):
    """Residuals in place, a shared layer, a functional and an in-place activation, perhaps checkpointed."""

    def __init__(self, how: str | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how = how
        self.first, self.shared, self.unused, self.last = (nn.Linear(6, 6) for _ in range(4))

    def middle(self, x: Tensor) -> Tensor:
        return self.shared(F.gelu(self.shared(x)).relu_())

    def forward(self, x: Tensor) -> Tensor:
        self.unused(x)
        x = torch.tanh(self.first(x))
        y = self.middle(x) if self.how is None else checkpoint(self.middle, x, use_reentrant=False)
        y += x
        return self.last(y)

    def by_hand(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """The values at the sites, out of place, in double precision."""
        v = [x, self.unused(x), self.first(x)]
        v.append(torch.tanh(v[-1]))
        v.append(self.shared(v[-1]))
        v.append(F.gelu(v[-1]))
        v.append(F.relu(v[-1]))
        v.append(self.shared(v[-1]))
        v.append(self.last(v[3] + v[-1]))
        return v, v[-1]


@pytest.mark.parametrize("how", [None, "checkpointed"])
@pytest.mark.parametrize("frozen", [False, True])
def test_gradient_norms_row_by_row(how: str | None, frozen: bool) -> None:
    model, x, y = Rich(how).double(), torch.randn(11, 6).double(), torch.randint(6, (11,))
    norms = torch.zeros(11, 9, dtype=torch.float64)
    for row in range(11):
        values, out = model.by_hand(x[row : row + 1].clone().requires_grad_())
        loss = F.cross_entropy(out, y[row : row + 1])
        for i, g in enumerate(torch.autograd.grad(loss, values, allow_unused=True)):
            norms[row, i] = 0 if g is None else g.norm()
    model.requires_grad_(not frozen)
    for size in (500, 4):
        found = nk.training.gradient_norms(model, (x, y), batch_size=size)
        assert [g.site for g in found] == [s.name for s in nk.sites(model, x)] and found[3].shape == (6,)
        assert [g.norm for g in found] == pytest.approx(norms.mean(0).tolist(), rel=1e-12)
        assert all(g.rows == 11 for g in found) and found[1].norm == 0 < found[2].norm


def test_recomputation_has_the_noise_of_the_pass() -> None:
    """A noisy contraction in one operator saves other tensors than one whose noise comes after."""
    data, found = (torch.randn(11, 6), torch.randint(6, (11,))), []
    for how in (None, "checkpointed"):
        model = Rich(how)
        with nk.inject(model, nk.Noise(add=0.3, mul=0.5)):
            found.append(nk.training.gradient_norms(model, data, seed=1))
    assert found[0] == found[1]


def test_gradient_norms_predict_what_small_noise_does() -> None:
    """With noise upstream, and after multiplicative noise: the loss under more noise of level 1e-4 at one site, by
    differences. Each row's change has mean square norm^2 a^2; for rows of equal norm (a linear loss) also its mean."""
    torch.manual_seed(3)
    model, x = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)).double(), torch.randn(2000, 5).double()
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    with nk.inject(model, nk.Noise(mul=0.5), where="1"):
        found = {
            g.site: g.norm
            for g in nk.training.gradient_norms(model, (x, x), loss=lambda out, _: (out * weights).sum(), seed=1)
        }
    factor = 1 + 0.5 * nk.eps((2000, 3), seed=1, site=nk.sites(model, x[:2])[2].id, operand="mul").double()
    by_hand = (factor * weights @ model[1].weight).norm(dim=1).mean()
    assert found["0:linear#0"] == pytest.approx(by_hand.item(), rel=1e-6)
    assert found["1:linear#0"] == pytest.approx(weights.norm().item(), rel=1e-12)
    with nk.inject(model, nk.Noise(add=1e-4), where="1"), nk.noise_state(model, seed=4):
        change = (model(x) * weights).sum(1)
    change = (change - (model(x) * weights).sum(1)).detach()
    # 2,000 squares of normal numbers: a standard error of 1.6 % of their mean root, 8 % is five of them
    assert float(change.square().mean().sqrt()) == pytest.approx(1e-4 * found["1:linear#0"], rel=0.08)


def test_gradient_norms_of_tokens_and_without_labels() -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(8, 3)).requires_grad_(False)
    tokens = torch.randint(9, (6, 2))
    found = nk.training.gradient_norms(model, (tokens, torch.zeros(6).long()))
    assert [g.site for g in found] == ["2:linear#0"] and found[0].norm > 0
    with pytest.raises(ValueError, match="gradient_norms: data must hold labels, got inputs alone"):
        nk.training.gradient_norms(model, tokens)


# --------------------------------------------------------------------------------------------------------- weights


def coefficient(x: np.ndarray) -> float:
    """Sarle's coefficient from scipy's unbiased skewness and kurtosis."""
    n = len(x)
    skewness, kurtosis = scipy.stats.skew(x, bias=False), scipy.stats.kurtosis(x, bias=False)
    return (skewness**2 + 1) / (kurtosis + 3 * (n - 1) ** 2 / ((n - 2) * (n - 3)))


def split(x: np.ndarray) -> float:
    """The best share of the variance over all splits, one by one."""
    x = np.sort(x)
    within = min(x[:k].var() * k + x[k:].var() * (len(x) - k) for k in range(1, len(x)))
    return 1 - within / (x.var() * len(x))


@pytest.mark.parametrize("n", [4, 5, 17, 300])
@pytest.mark.parametrize("law", ["normal", "exponential", "uniform"])
def test_shapes_are_those_of_the_oracles(n: int, law: str) -> None:
    x = getattr(np.random.default_rng(n), law)(size=n) * 7 + 3
    t = torch.from_numpy(x)
    assert nk.training.bimodality(t) == pytest.approx(coefficient(x), rel=1e-9)
    assert nk.training.two_means(t) == pytest.approx(split(x), rel=1e-9)
    for other in (-t, 1e-200 * t, 3e150 * t, t.flip(0), t.reshape(1, -1, 1)):
        assert nk.training.bimodality(other) == pytest.approx(nk.training.bimodality(t), rel=1e-8)
        assert nk.training.two_means(other) == pytest.approx(nk.training.two_means(t), rel=1e-8)


def test_shapes_with_known_answers() -> None:
    """Laws by their quantiles: the error of n points is of the order of 1 / n."""
    q = torch.arange(0.5, 100_000, dtype=torch.float64) / 100_000
    normal = torch.special.ndtri(q)
    assert nk.training.bimodality(q) == pytest.approx(5 / 9, abs=1e-4) and nk.training.two_means(q) == pytest.approx(
        0.75, abs=1e-4
    )
    assert nk.training.bimodality(normal) == pytest.approx(1 / 3, abs=1e-3)
    assert nk.training.two_means(normal) == pytest.approx(2 / math.pi, abs=1e-3)
    for n in (4, 10, 1000):
        binary = torch.tensor([-3.0, 5.0] * (n // 2))
        assert nk.training.bimodality(binary) == pytest.approx((n - 2) * (n - 3) / ((n - 1) * (n + 1)), rel=1e-12)
        assert nk.training.two_means(binary) == 1
    assert math.isnan(nk.training.bimodality(torch.ones(9))) and math.isnan(nk.training.two_means(torch.ones(9)))
    assert math.isnan(nk.training.bimodality(torch.tensor([1.0, 2.0, 3.0]))) and math.isnan(
        nk.training.two_means(torch.zeros(0))
    )
    assert nk.training.two_means(torch.tensor([0.1, 0.2])) == 1


def test_weights_of_a_network() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2, bias=False), nn.MultiheadAttention(2, 1))
    model[0].weight.data.copy_(torch.tensor([[3.0, -4.0], [3.7, 0.0]]))
    model[2].weight.data.zero_()
    model.append(model[0])
    found = nk.training.weight_statistics(model)
    assert [(w.weight, w.kind, w.values) for w in found] == [
        ("0.weight", "Linear", 4), ("1.weight", "BatchNorm1d", 2), ("2.weight", "Linear", 4),
        ("3.in_proj_weight", "MultiheadAttention", 12), ("3.out_proj.weight", "NonDynamicallyQuantizableLinear", 4),
    ]  # fmt: skip
    first, zero = found[0], found[2]
    assert first[3:7] == pytest.approx((math.sqrt(9 + 16 + 3.7**2), 4.0, 10.7 / 4, 0.5), rel=1e-6)
    assert first.bimodality == nk.training.bimodality(model[0].weight) and first.two_means == nk.training.two_means(
        model[0].weight
    )
    assert zero[3:6] == (0, 0, 0) and all(map(math.isnan, zero[6:]))


# ------------------------------------------------------------------------------------------------------------- log


def test_a_log_of_training_changes_nothing_and_says_it_all() -> None:
    pytest.importorskip("pandas")
    data = torch.randn(40, 6), torch.randint(3, (40,))

    def run(logged: bool) -> tuple[nn.Module, nk.training.MetricLog]:
        model = small(norm=True)
        with nk.inject(model, nk.Noise(add=0.5), where="0"):
            log = nk.training.MetricLog(
                sites=lambda: nk.training.site_statistics(model, data, seed=1),
                weights=lambda: nk.training.weight_statistics(model),
            )
            log({"epoch": 0})
            noisy = nk.training.noisy_steps(model, seed=1, level=nk.training.Schedule.ramp(6))
            train(model, data, epochs=2, batch_size=16, on_step=noisy, on_epoch=log if logged else None)
            last = nk.training.site_statistics(model, data, seed=1)
        assert not logged or log.records["sites"][-len(last) :] == [{"epoch": 2, **r._asdict()} for r in last]
        return model, log

    (one, log), (other, _) = run(True), run(False)
    assert all(torch.equal(a, b) for a, b in zip(state(one), state(other), strict=True))
    table = log.to_pandas("sites")
    assert list(table.epoch.unique()) == [0, 1, 2] and (table[table.site == "0:linear#0"].noise_power == 0.25).all()
    assert len(log.to_pandas("weights")) == 3 * 3
    with pytest.raises(KeyError, match="expected one of sites, weights, got 'snr'"):
        log.to_pandas("snr")
    with pytest.raises(TypeError, match="MetricLog: sites must be a function that measures, got list"):
        nk.training.MetricLog(sites=[])

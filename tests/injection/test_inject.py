"""Injection: names and numbers of sites, and which noise arrives where."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from injecting import NOISE, SEED, integers, small, whole, with_noise
from operators import assert_same_bits
from torch import Tensor, nn

import noisykernels as nk
from noisykernels.noise.contract import hashed_id, site_ids
from noisykernels.reference import noise as reference
from noisykernels.zoo import networks as models

# -------------------------------------------------------------------------------- names and numbers

# The published tables (index of each noise operator), in the names of our models.
LENET = "input conv1:conv2d relu1:relu pool1:max_pool2d conv2:conv2d relu2:relu pool2:max_pool2d \
fc1:linear relu3:relu fc2:linear relu4:relu fc3:linear"
LENET_BN = "input conv1:conv2d norm1:batch_norm relu1:relu pool1:max_pool2d conv2:conv2d \
norm2:batch_norm relu2:relu pool2:max_pool2d fc1:linear norm3:batch_norm relu3:relu fc2:linear \
norm4:batch_norm relu4:relu fc3:linear"
MLP = "input fc1:linear relu1:relu fc2:linear relu2:relu fc3:linear relu3:relu fc_out:linear"
MLP_BN = "input fc1:linear norm1:batch_norm relu1:relu fc2:linear norm2:batch_norm relu2:relu \
fc3:linear norm3:batch_norm relu3:relu fc_out:linear"


@pytest.mark.parametrize(
    ("name", "count", "table"),
    [("lenet5", 12, LENET), ("lenet5-bn", 16, LENET_BN), ("mlp", 8, MLP), ("mlp-bn", 11, MLP_BN)],
)
def test_published_site_tables(name: str, count: int, table: str) -> None:
    model = models.build(name)
    found = nk.sites(model, torch.zeros(2, 1, 28, 28))
    expected = [s if s == "input" else f"{s}#0" for s in table.split()]
    assert [s.name for s in found] == expected and len(found) == count
    assert [s.index for s in found] == list(range(count))
    assert [s.row_dim for s in found] == [0] * count
    assert {s.name: s.id for s in found} == site_ids(expected)
    assert type(model) is type(models.build(name))  # nothing left behind


def test_golden_site_ids() -> None:
    """A change of any of these numbers changes everyone's noise: a major release."""
    assert site_ids(["input", "input#1", "conv1:conv2d#0", "conv1:conv2d#1", ":relu#0"]) == {
        "input": 11703183, "input#1": 13784357, "conv1:conv2d#0": 4577211,
        "conv1:conv2d#1": 3987221, ":relu#0": 1000647,
    }  # fmt: skip


def test_colliding_ids_go_up_in_sorted_order(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = {"a": 7, "b": 7, "c": 8, "d": 2**24 - 1, "e": 2**24 - 1, "f": 0}
    monkeypatch.setattr("noisykernels.noise.contract.hashed_id", numbers.__getitem__)
    expected = {"a": 7, "b": 8, "c": 9, "d": 2**24 - 1, "e": 0, "f": 1}
    assert site_ids("abcdef") == expected == site_ids("fedcba")


def test_collision_in_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("noise.contract", "injection.drawing"):
        monkeypatch.setattr(f"noisykernels.{module}.hashed_id", lambda name: 5)
    model, x = small(), torch.zeros(2, 6)
    assert sorted(s.id for s in nk.sites(model, x)) == [5, 6, 7, 8]
    with pytest.raises(RuntimeError, match="same number as another; give inject"):
        with_noise(model, NOISE, x)
    with nk.inject(model, NOISE, example_input=x), nk.noise_state(model, seed=1):
        model(x)


# ------------------------------------------------------------------------------- the oracle's noise

IMAGE, LINE, BLOCK = (3, 4, 8, 8), (3, 4, 9), (3, 2, 5, 5, 5)
LAYERS = [
    (nn.Linear(9, 5), LINE, "linear"),
    (nn.Linear(9, 5, bias=False), (4, 9), "linear"),
    (nn.Conv1d(4, 3, 3), LINE, "conv1d"),
    (nn.Conv2d(4, 6, 3, groups=2), IMAGE, "conv2d"),
    (nn.Conv2d(4, 4, 3, padding="same", padding_mode="circular"), IMAGE, "conv2d"),
    (nn.Conv3d(2, 3, 2), BLOCK, "conv3d"),
    (nn.ConvTranspose1d(4, 2, 3), LINE, "conv_transpose1d"),
    (nn.ConvTranspose2d(4, 2, 3, stride=2, output_padding=1), IMAGE, "conv_transpose2d"),
    (nn.ConvTranspose3d(2, 2, 2), BLOCK, "conv_transpose3d"),
    (nn.BatchNorm2d(4), IMAGE, "batch_norm"),
    (nn.LayerNorm(8), IMAGE, "layer_norm"),
    (nn.GroupNorm(2, 4), IMAGE, "group_norm"),
    (nn.InstanceNorm2d(4), IMAGE, "instance_norm"),
    (nn.RMSNorm(8), IMAGE, "rms_norm"),
    (nn.LocalResponseNorm(2), IMAGE, "local_response_norm"),
    (nn.MaxPool1d(2), LINE, "max_pool1d"),
    (nn.AvgPool1d(2), LINE, "avg_pool1d"),
    (nn.MaxPool2d(2), IMAGE, "max_pool2d"),
    (nn.AvgPool2d(2), IMAGE, "avg_pool2d"),
    (nn.MaxPool3d(2), BLOCK, "max_pool3d"),
    (nn.AvgPool3d(2), BLOCK, "avg_pool3d"),
    (nn.LPPool1d(2, 2), LINE, "lp_pool1d"),
    (nn.LPPool2d(2, 2), IMAGE, "lp_pool2d"),
    (nn.AdaptiveAvgPool1d(2), LINE, "adaptive_avg_pool1d"),
    (nn.AdaptiveAvgPool2d(2), IMAGE, "adaptive_avg_pool2d"),
    (nn.AdaptiveAvgPool3d(2), BLOCK, "adaptive_avg_pool3d"),
    (nn.AdaptiveMaxPool1d(2), LINE, "adaptive_max_pool1d"),
    (nn.AdaptiveMaxPool2d(2), IMAGE, "adaptive_max_pool2d"),
    (nn.GLU(), IMAGE, "glu"),
    (nn.PReLU(), IMAGE, "prelu"),
    (nn.Threshold(0.5, 2), IMAGE, "threshold"),
    (nn.Softplus(), IMAGE, "softplus"),
    (nn.LogSigmoid(), IMAGE, "logsigmoid"),
    (nn.Tanh(), IMAGE, "tanh"),
    (nn.Sigmoid(), IMAGE, "sigmoid"),
    (nn.GELU(), IMAGE, "gelu"),
    (nn.Softsign(), IMAGE, "softsign"),
    (nn.Tanhshrink(), IMAGE, "tanhshrink"),
    (nn.Hardshrink(), IMAGE, "hardshrink"),
    (nn.Softshrink(), IMAGE, "softshrink"),
    (nn.RReLU(), IMAGE, "rrelu"),
    (nn.Hardtanh(), IMAGE, "hardtanh"),
    (nn.ELU(), IMAGE, "elu"),
    (nn.ReLU(), IMAGE, "relu"),
    (nn.ReLU6(), IMAGE, "hardtanh"),
    (nn.LeakyReLU(), IMAGE, "leaky_relu"),
    (nn.SELU(), IMAGE, "selu"),
    (nn.CELU(), IMAGE, "celu"),
    (nn.SiLU(), IMAGE, "silu"),
    (nn.Mish(), IMAGE, "mish"),
    (nn.Hardswish(), IMAGE, "hardswish"),
    (nn.Hardsigmoid(), IMAGE, "hardsigmoid"),
]


@pytest.mark.parametrize(("layer", "shape", "kind"), LAYERS, ids=lambda v: getattr(v, "_get_name", str)())
def test_noise_after_each_kind_of_layer_is_the_oracles(layer, shape, kind) -> None:
    """As the root of a model, inside one, with draws, and with rows."""
    layer, x = whole(layer), integers(*shape)
    clean, rows = layer(x), [5, 2**32 - 1, 0, 9][: len(x)]
    name = f":{kind}#0"
    y = with_noise(layer, NOISE, x, name, rows=rows)
    assert_same_bits(y, reference.perturb(clean, NOISE, seed=SEED, site=hashed_id(name), rows=rows))
    inside, name = nn.Sequential(nn.Identity(), layer), f"1:{kind}#0"
    assert [s.name for s in nk.sites(inside, x)] == ["input", name]
    y = with_noise(inside, NOISE, x, name, draws=[3, 0])
    expected = reference.perturb(clean, NOISE, seed=SEED, site=hashed_id(name), draws=[3, 0], shared=True)
    assert_same_bits(y, expected)


@pytest.mark.parametrize(
    "noise",
    [
        nk.Noise(mul=0.3),
        nk.Noise(add=0.2, mul=0.3, order="add_mul", kind="laplace"),
        nk.Noise.amplitude(0.7, 0.25, kind="uniform"),
        nk.Noise.amplitude(0.7, 0.25, fold=True),
        nk.Noise(add=nk.per_row([0.1, 0.2, 0.0], ndim=2), mul=torch.tensor(0.5)),
        nk.Noise(add=nk.per_draw([0.1, 2.0], ndim=2)),
    ],
    ids=str,
)
def test_global_noise_site_by_site(noise: nk.Noise) -> None:
    """Every form of noise, on the input and after three elementwise operations, by hand."""
    model = nn.Sequential(nn.ReLU(), nn.Hardtanh(), nn.LeakyReLU())
    x, draws, rows = torch.randn(3, 7), [4, 1], [8, 6, 7]
    y = with_noise(model, noise, x, draws=draws, rows=rows)
    expected = torch.cat([x, x])
    steps = [
        ("input", nn.Identity()),
        *zip(("0:relu#0", "1:hardtanh#0", "2:leaky_relu#0"), model, strict=True),
    ]
    for name, layer in steps:
        key = dict(seed=SEED, site=hashed_id(name), draws=draws, rows=rows)
        expected = reference.perturb(layer(expected), noise, **key)
    assert_same_bits(y, expected)


def test_draws_together_and_one_by_one_and_batch_splits() -> None:
    """Exact in the noise: whole-number values before the site, elementwise operations after it."""
    model, x = whole(nn.Sequential(nn.Linear(6, 5), nn.ReLU())), integers(7, 6)
    rows = torch.tensor([9, 3, 4, 0, 11, 2, 6])
    for where in ("input", "0", None):
        model_ = nn.Sequential(nn.Hardtanh(), nn.ReLU()) if where != "0" else model
        together = with_noise(model_, NOISE, x, where, draws=[2, 0, 7], rows=rows)
        alone = [with_noise(model_, NOISE, x, where, draws=[d], rows=rows) for d in (2, 0, 7)]
        assert_same_bits(together, torch.cat(alone))
        parts = [
            with_noise(model_, NOISE, a, where, draws=[7], rows=r)
            for a, r in zip(x.split(3), rows.split(3), strict=True)
        ]
        assert_same_bits(torch.cat(parts), alone[2])
    shuffled = torch.randperm(7)
    y = with_noise(model, NOISE, x[shuffled], draws=[7], rows=rows[shuffled])
    plain = with_noise(model, NOISE, x, draws=[7], rows=rows)
    # "global" has a contraction behind a noisy input, which may round otherwise: K + 1 roundings.
    bound = 8 * torch.finfo().eps * (x.abs().sum(1, keepdim=True) * 2 + 20)
    assert ((y - plain[shuffled]).abs() <= bound[shuffled]).all()


def test_no_draws_is_the_draw_0_and_no_rows_is_places_in_the_batch() -> None:
    model, x = nn.Sequential(nn.ReLU()), torch.randn(4, 3)
    y = with_noise(model, NOISE, x)
    assert_same_bits(y, with_noise(model, NOISE, x, draws=[0], rows=range(4)))


# -------------------------------------------------------------------------------------- which sites


def noisy_sites(model: nn.Module, x: Tensor, where, noise=NOISE, **options) -> list[str]:
    """The sites at which an injection puts noise, seen by where values change."""
    names = [s.name for s in nk.sites(model, x)]
    chosen = []
    for name in names:
        with nk.inject(model, noise, where, example_input=x, **options):
            placement = model.__dict__["_noise_state"].placement
            path = name.rpartition(":")[0]
            if placement.at(name, model.get_submodule(path)) is not None:
                chosen.append(name)
    return chosen


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (None, "input conv1:conv2d#0 relu1:relu#0 pool1:max_pool2d#0 conv2:conv2d#0 relu2:relu#0 "
               "pool2:max_pool2d#0 fc1:linear#0 relu3:relu#0 fc2:linear#0 relu4:relu#0 "
               "fc3:linear#0"),
        ("conv1:conv2d#0", "conv1:conv2d#0"),
        ("input", "input"),
        ("fc2", "fc2:linear#0"),
        ("*:max_pool2d", "pool1:max_pool2d#0 pool2:max_pool2d#0"),
        (["fc?", "input"], "input fc1:linear#0 fc2:linear#0 fc3:linear#0"),
        (nn.Conv2d, "conv1:conv2d#0 conv2:conv2d#0"),
        ((nn.MaxPool2d, "fc1"), "pool1:max_pool2d#0 pool2:max_pool2d#0 fc1:linear#0"),
        (lambda name, module: NOISE if getattr(module, "out_features", 0) == 84 else None,
         "fc2:linear#0"),
        (models.LeNet5, "conv1:conv2d#0 relu1:relu#0 pool1:max_pool2d#0 conv2:conv2d#0 relu2:relu#0 "
                        "pool2:max_pool2d#0 fc1:linear#0 relu3:relu#0 fc2:linear#0 relu4:relu#0 fc3:linear#0"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)  # fmt: skip
def test_where(where, expected: str) -> None:
    model = models.LeNet5().eval()
    assert noisy_sites(model, torch.zeros(1, 1, 28, 28), where) == expected.split()


def test_walking_noise_is_at_one_site_only() -> None:
    """Everything before the site stays clean, to the bit."""
    model, seen = small().eval(), {}
    for name, module in model.named_children():
        module.register_forward_hook(lambda m, a, out, name=name: seen.__setitem__(name, out))
    x = torch.randn(4, 6)
    model(x)
    clean = dict(seen)
    with_noise(model, NOISE, x, "2:relu#0")
    assert_same_bits(seen["0"], clean["0"])
    assert not torch.equal(seen["3"], clean["3"])


def test_mapped_noise() -> None:
    model, x = nn.Sequential(nn.ReLU(), nn.Hardtanh()), torch.randn(3, 7)
    noises = {
        "0": nk.Noise(add=0.1),
        "*:relu": nk.Noise(add=9.0),
        "1:hardtanh#0": nk.Noise(mul=0.2),
    }
    with nk.inject(model, noises), nk.noise_state(model, seed=SEED):
        y = model(x)
    first = reference.perturb(F.relu(x), noises["0"], seed=SEED, site=hashed_id("0:relu#0"))
    key = dict(seed=SEED, site=hashed_id("1:hardtanh#0"))
    assert_same_bits(y, reference.perturb(F.hardtanh(first), noises["1:hardtanh#0"], **key))


# -------------------------------------------------------------------------------- published options


def test_train_and_eval_switches() -> None:
    model, x = nn.Sequential(nn.ReLU(), nn.Hardtanh()), torch.randn(3, 7)
    model[1].eval()
    for options, expected in (
        (dict(), (True, True)), (dict(in_training=False), (False, True)),
        (dict(in_eval=False), (True, False)),
        (dict(in_training=False, in_eval=False), (False, False)),
    ):  # fmt: skip
        for where, noisy in zip(("0", "1"), expected, strict=True):
            with nk.inject(model, NOISE, where, **options), nk.noise_state(model, seed=1):
                assert torch.equal(model(x), F.hardtanh(F.relu(x))) is not noisy


def test_normalize_to_input_size() -> None:
    model, x = whole(nn.Sequential(nn.Linear(6, 5))), integers(4, 6)
    with nk.inject(model, NOISE, "0", normalize_to_input_size=True), nk.noise_state(model, seed=1):
        y = model(x)
    key = dict(seed=1, site=hashed_id("0:linear#0"))
    assert_same_bits(y, reference.perturb(model(x), nk.Noise(add=0.5 / 5), **key))


@pytest.mark.parametrize("noise", [NOISE, nk.Noise(mul=0.3), nk.Noise(add=0.5, mul=0.3)], ids=str)
def test_repeats_divide_levels_by_the_root(noise: nk.Noise) -> None:
    model, x = whole(nn.Sequential(nn.Linear(6, 5))), integers(4, 6)
    with nk.inject(model, noise, "0", repeats={"0": 7}), nk.noise_state(model, seed=1):
        y = model(x)
    scaled = noise.scaled(1 / 7**0.5)
    assert_same_bits(y, reference.perturb(model(x), scaled, seed=1, site=hashed_id("0:linear#0")))


def test_repeats_have_the_distribution_of_the_mean_of_explicit_repeats() -> None:
    """Variance of R-fold noise against that of the mean of draws d*R..d*R+R-1, 200,000 values each.

    False-alarm level 1e-6 per side and case; the variance ratio of n Gaussian values has standard
    deviation sqrt(4 / n) around 1, of a mean of products little more (sqrt(8 / n)).
    """
    R, x = 4, torch.full((400, 500), 2.0)
    model = nn.Sequential(nn.ReLU())
    for noise in (NOISE, nk.Noise(mul=0.3), nk.Noise(add=0.5, mul=0.3, order="add_mul")):
        with nk.inject(model, noise, "0", repeats=R), nk.noise_state(model, seed=1, draws=[5]):
            y = model(x)
        explicit = with_noise(model, noise, x, "0", seed=1, draws=[5 * R + r for r in range(R)])
        mean = explicit.view(R, *x.shape).mean(0)
        ratio = ((y - 2).var() / (mean - 2).var()).item()
        if noise.mode == "add_mul":
            assert_same_bits(y, mean)  # which is how it is done
        assert abs(ratio - 1) < 4.9 * (8 / x.numel()) ** 0.5
        assert abs((y - 2).mean()) < 4.9 * (y.var() / x.numel()) ** 0.5

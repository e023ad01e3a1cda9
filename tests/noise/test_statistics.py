"""The noise follows its law and nothing about it depends on anything; bad generators are rejected.

Every statistic is a p-value: the probability, for ideal noise, of a result at least as extreme,
with a Bonferroni factor for the comparisons inside it. A p-value below ALPHA fails. The file
computes some 200 of them at fixed coordinates: ideal noise would fail one of them with probability
2e-4, once and for all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import integrate, special, stats

from noisykernels import eps
from noisykernels.reference import noise as reference

ALPHA = 1e-6
Array = npt.NDArray[Any]
KINDS = list(reference.KINDS)
LAWS = {kind: getattr(stats, name)(**args) for kind, (name, args) in reference.LAWS.items()}


def normal_p(scores: npt.ArrayLike) -> float:
    """p-value of the largest of some standard normal scores."""
    return float(2 * stats.norm.sf(np.max(np.abs(scores))) * np.size(scores))


def two_sided(law: Any, value: npt.ArrayLike) -> float:
    """p-value of the most extreme of some values of a law, too small or too large."""
    p = 2 * np.minimum(law.cdf(value), law.sf(np.asarray(value) - (law.dist.name == "poisson")))
    return float(np.min(p) * np.size(p))


# ---------------------------------------------------------------------- statistics of samples [n]


def kolmogorov_smirnov(z: Array, law: Any) -> float:
    u, n = np.sort(law.cdf(z.ravel())), z.size
    distance = max((np.arange(1, n + 1) / n - u).max(), (u - np.arange(n) / n).max())
    return float(stats.kstwobign.sf(distance * n**0.5))


def anderson_darling(z: Array, law: Any) -> float:
    """For a law known in full, A^2 tends to sum_k c_k / (k (k + 1)) of chi-squares c_k.

    Its tail is that of its first term (Zolotarev): P(A^2 > a) = sqrt(3) erfc(sqrt a), which is
    2.4 % too small at 1e-6 (by numerical inversion of the characteristic function).
    """
    u, n = np.sort(law.cdf(z.ravel())), z.size
    u = np.clip(u, 2.0**-34, 1 - 2.0**-34)  # float32 rounding may leave the support
    weight = (2 * np.arange(1, n + 1) - 1) / n
    a2 = -n - (weight * (np.log(u) + np.log1p(-u[::-1]))).sum()
    return float(3**0.5 * special.erfc(max(a2, 0) ** 0.5))


@functools.cache
def even_moment(law: Any, k: int) -> float:
    """Of a law that is symmetric about 0, relative error below 1e-8."""
    return 2 * integrate.quad(lambda z: z**k * law.pdf(z), 0, law.support()[1])[0]


def moments(z: Array, law: Any) -> float:
    """Moments 1 to 4, against their exact standard errors sqrt((m_2k - m_k^2) / n)."""
    v = z.ravel().astype(np.float64)
    power, scores = np.ones_like(v), []
    for k in (1, 2, 3, 4):
        power *= v
        expected = 0.0 if k % 2 else even_moment(law, k)
        scores.append((power.mean() - expected) * (v.size / (even_moment(law, 2 * k) - expected**2)) ** 0.5)
    return normal_p(scores)


TAILS = [float(2 * stats.norm.sf(t)) for t in (3, 4, 4.5, 5)]


def tails(z: Array, law: Any) -> float:
    """How many values lie beyond the quantiles that correspond to 3 ... 5 sigma, on each side."""
    p = 1.0
    for share in TAILS:
        edge, expected = law.isf(share / 2), stats.poisson(z.size * share / 2)
        p = min(p, two_sided(expected, [(z > edge).sum(), (z < -edge).sum()]))
    return p * len(TAILS)


def collisions(z: Array, law: Any) -> float:
    """How many values have occurred before: no value may have a probability above 2^-24.

    The expected number of equal pairs among n is n^2 / 2 times the sum of p^2, at most max p. It is
    reached where two words' results round to one float32; a word's upper 24 bits have 2^-25 each
    with a sign.
    """
    repeated = z.size - np.unique(z).size
    return float(stats.poisson(z.size**2 / 2 * 2.0**-24).sf(repeated))


def correlation(x: Array, y: Array, law: Any) -> float:
    """Correlation of values and of their squares; exact standard errors from the law's moments."""
    a, b = x.ravel().astype(np.float64), y.ravel().astype(np.float64)
    squares = (a * a - 1) @ (b * b - 1) / (even_moment(law, 4) - 1)
    return normal_p([a @ b / a.size**0.5, squares / a.size**0.5])


def lags(z: Array, law: Any) -> float:
    """Correlations along the last axis at distances 1 to 9: inside blocks of four and across."""
    return 9 * min(correlation(z[..., k:], z[..., :-k], law) for k in range(1, 10))


# ------------------------------------------------------------- statistics of raw words [n, 4]


def flips(w: Array, other: Array | None = None) -> float:
    """Each bit of a word differs from the next one's (or the other's) half of the time."""
    difference = w[1:] ^ w[:-1] if other is None else w ^ other
    n = len(difference)
    bits = (difference[:, :, None] >> np.arange(32, dtype=np.uint32) & 1).sum(0)
    return normal_p((2.0 * bits - n) / n**0.5)


def chi_square(cells: Array, count: int) -> float:
    expected = cells.size / count
    squares = (np.bincount(cells.ravel(), minlength=count) - expected) ** 2
    return two_sided(stats.chi2(count - 1), squares.sum() / expected)


def bits_and_bytes(w: Array) -> float:
    """Each bit is set half of the time; each of the sixteen bytes has equally likely values."""
    byte = np.ascontiguousarray(w, "<u4").view(np.uint8)
    return 17 * min(flips(w, np.zeros_like(w)), *(chi_square(b, 256) for b in byte.T))


def serial(w: Array) -> float:
    """Correlations between the words of a block, and with those of the next three blocks."""
    u = (w / 2.0**32 - 0.5) * 12**0.5
    inside = (u.T @ u)[np.triu_indices(w.shape[1], 1)] / len(u) ** 0.5
    scores = [(u[k:].T @ u[:-k]).ravel() / (len(u) - k) ** 0.5 for k in (1, 2, 3)]
    return normal_p(np.concatenate([inside, *scores]))


def triples(w: Array) -> float:
    """The upper four bits of three consecutive words fall equally often into 4096 boxes."""
    top = (w.ravel() >> 28).astype(np.int64)
    top = top[: top.size // 3 * 3].reshape(-1, 3)
    return chi_square(top @ [256, 16, 1], 4096)


WORD_TESTS = [flips, bits_and_bytes, serial, triples]


def walk(coordinate: str, rounds: int = 10, n: int = 2**17) -> Array:
    """Words [n, 4] at successive values of one coordinate of the contract."""
    place: dict[str, Any] = {"block": 0, "row": 0, "draw": 0, "site": 0}
    seed, steps = 2024, np.arange(n)
    if coordinate == "seed":
        keys = np.stack([steps, np.zeros_like(steps)], -1)
        return reference.philox4x32(reference.counters(operand="add", **place), keys, rounds)
    counter = np.zeros((n, 4), np.uint32)
    counter[:, list(place).index(coordinate)] = steps * (256 if coordinate == "site" else 1)
    return reference.philox4x32(counter, (seed, 0), rounds)


def avalanche(rounds: int, n: int = 2**12) -> float:
    """Each bit of counter and key flips each bit of the words half of the time."""
    rng = np.random.default_rng(0)
    inputs = rng.integers(0, 2**32, (n, 6), dtype=np.uint32)
    clean, p = reference.philox4x32(inputs[:, :4], inputs[:, 4:], rounds), 1.0
    for word in range(6):
        for bit in range(32):
            other = inputs.copy()
            other[:, word] ^= np.uint32(1 << bit)
            p = min(p, flips(clean, reference.philox4x32(other[:, :4], other[:, 4:], rounds)))
    return p * 192


# ------------------------------------------------------------------------------ the noise passes

PLACES: list[dict[str, Any]] = [
    {"seed": 0, "site": 0, "draw": 0},
    {"seed": 2**64 - 1, "site": 2**24 - 1, "draw": 2**32 - 1, "operand": "mul"},
]


@functools.cache
def sample(kind: str, place: int, rows: int = 2**10, n: int = 2**12) -> Array:
    return eps((rows, n), kind=kind, **PLACES[place]).numpy()


SAMPLE_TESTS = [kolmogorov_smirnov, anderson_darling, moments, collisions, lags]


@pytest.mark.parametrize("test", SAMPLE_TESTS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("place", range(len(PLACES)))
@pytest.mark.parametrize("kind", KINDS)
def test_values_follow_the_law(kind: str, place: int, test: Callable[..., float]) -> None:
    rows = 2**10 if test is moments else 2**8
    assert test(sample(kind, place)[:rows], LAWS[kind]) >= ALPHA


@pytest.mark.parametrize("kind", KINDS)
def test_tails_hold_what_they_should_beyond_five_sigma(kind: str) -> None:
    """2^25 Gaussian values: 9.6 expected beyond 5 sigma on each side."""
    z = eps((2**13, 2**12), kind=kind, seed=1).numpy()
    assert tails(z, LAWS[kind]) >= ALPHA


def test_gaussian_values_repeat_no_more_often_than_float32_makes_them() -> None:
    """Among 2^20 values, 7524 equal pairs (0.7 %) are expected of a float32 grid.

    With floats of spacing 2^(e - 23) from 2^e to 2^(e + 1), the probability that two values agree
    is the sum over e, and both signs, of the spacing times the integral of the squared density.
    """
    z = sample("gaussian", 0)[: 2**8]
    e = np.arange(-40, 4)
    integral = np.diff(stats.norm.cdf(2**0.5 * 2.0 ** np.append(e, 4))) / (2 * np.pi**0.5)
    expected = z.size**2 / 2 * (2 * 2.0 ** (e - 23) * integral).sum()
    repeated = z.size - np.unique(z).size
    assert expected / z.size < 0.01
    assert stats.poisson(expected).sf(repeated) >= ALPHA


NEIGHBOURS: list[dict[str, Any]] = [
    *({"seed": 5 + k} for k in (1, 2, 3, -1, -5, 2**32)),
    *({c: 5 + k} for c in ("site", "draw", "first_row") for k in (1, 2, 16, 256)),
    *({"operand": o} for o in ("add", "input", "weight", "spare")),
    # One coordinate up and another down: what a generator that adds them would confuse.
    {"seed": 6, "site": 4},
    {"seed": 6, "draw": 4},
    {"seed": 6, "first_row": 4},
    {"site": 6, "draw": 4},
    {"draw": 6, "first_row": 4},
    {"site": 4, "operand": "spare"},
]


@pytest.mark.parametrize("other", NEIGHBOURS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_neighbours_are_independent(kind: str, other: dict[str, Any]) -> None:
    """Seeds 0, 1, 2, ..., sites, draws, rows, operands: also shifted by up to two elements."""
    here: dict[str, Any] = {"seed": 5, "site": 5, "draw": 5, "first_row": 5, "operand": "mul"}
    x, y = (eps((1, 2**17), kind=kind, **place).numpy() for place in (here, here | other))
    pairs = [(x[:, max(0, k) :], y[:, max(0, -k) :]) for k in range(-2, 3)]
    n = 2**17 - 2
    assert 5 * min(correlation(a[:, :n], b[:, :n], LAWS[kind]) for a, b in pairs) >= ALPHA


def test_radius_and_angle_of_a_gaussian_pair_are_independent() -> None:
    """Elements 0, 1 and 2, 3 of a block are points of the plane, as Box and Muller make them."""
    z = sample("gaussian", 0)[: 2**8].astype(np.float64).reshape(-1, 2)
    square, angle = (z * z).sum(1), np.arctan2(z[:, 1], z[:, 0])
    assert kolmogorov_smirnov(square, stats.chi2(2)) >= ALPHA
    assert kolmogorov_smirnov(angle, stats.uniform(-np.pi, 2 * np.pi)) >= ALPHA
    waves = [f(k * angle) for k in range(1, 9) for f in (np.cos, np.sin)]
    scores = [(square / 2 - 1) @ wave * (2 / len(z)) ** 0.5 for wave in waves]  # variance 1 * 1/2
    assert normal_p(scores) >= ALPHA


@pytest.mark.parametrize("test", WORD_TESTS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("coordinate", ["block", "row", "draw", "site", "seed"])
def test_raw_words_are_uniform_and_independent(coordinate: str, test: Callable[[Array], float]) -> None:
    assert test(walk(coordinate)) >= ALPHA


def test_every_input_bit_changes_half_of_the_output() -> None:
    assert avalanche(rounds=10) >= ALPHA


# ------------------------------------------------------------------- bad generators are rejected


@pytest.mark.parametrize("rounds", range(1, 7))
def test_too_few_rounds_are_rejected(rounds: int) -> None:
    """Seven rounds are the fewest that pass here, as in the generator's publication."""
    assert flips(walk("row", rounds)) < ALPHA
    assert avalanche(rounds) < ALPHA


def test_randu_is_rejected() -> None:
    """x <- 65539 x mod 2^31: triples on fifteen planes, and constant low bits."""
    power = np.ones(1, np.uint64)
    while power.size < 2**19:
        power = np.concatenate([power, power * (power[-1] * np.uint64(65539) % 2**31) % 2**31])
    w = (power << np.uint64(1)).astype(np.uint32).reshape(-1, 4)
    assert triples(w) < ALPHA
    assert bits_and_bytes(w) < ALPHA


def test_a_table_of_normals_is_rejected() -> None:
    """32,768 quantiles: too fine for Kolmogorov-Smirnov, but without tails and never new."""
    table = stats.norm.ppf((np.arange(32768) + 0.5) / 32768).astype(np.float32)
    z = table[np.random.default_rng(0).integers(0, 32768, 2**23)]
    assert tails(z, stats.norm()) < ALPHA
    assert collisions(z, stats.norm()) < ALPHA


@pytest.mark.parametrize("test", [kolmogorov_smirnov, anderson_darling, moments, tails], ids=lambda f: f.__name__)
def test_a_sum_of_four_bytes_is_rejected(test: Callable[..., float]) -> None:
    byte = np.random.default_rng(0).integers(0, 256, (2**20, 4))
    z = (byte.sum(1) - 4 * 127.5) / (4 * (256**2 - 1) / 12) ** 0.5
    assert test(z, stats.norm()) < ALPHA


@pytest.mark.parametrize("test", SAMPLE_TESTS, ids=lambda f: f.__name__)
def test_small_defects_are_rejected(test: Callable[..., float]) -> None:
    """Each test of samples sees its own kind of small defect in ideal noise."""
    z = np.random.default_rng(0).standard_normal((2**8, 2**12), dtype=np.float32)
    defect = {
        kolmogorov_smirnov: z + np.float32(0.01),
        anderson_darling: z * np.float32(1.01),
        moments: z + np.float32(0.01),
        collisions: np.round(z, 4),
        lags: z + np.float32(0.02) * np.roll(z, 3, axis=1),
    }[test]
    assert test(z, stats.norm()) >= ALPHA
    assert test(defect, stats.norm()) < ALPHA

"""Questions: the value each asks for, in both directions; those without an answer are refused with one that has one."""

from __future__ import annotations

import math

import pytest

import noisykernels as nk
from noisykernels.stats.questions import HALF, Question, of_part, offered, question, targeted

ALL = [HALF, nk.Keep(0.99), nk.Drop(0.01), nk.Ratio(0.95), nk.Value(0.9)]


@pytest.mark.parametrize(
    ("asked", "falling", "rising"),
    [  # of a clean accuracy of 0.9 and a floor of 0.1; of a clean loss of 0.5 and a floor of 2.5
        (HALF, 0.5, 1.5),
        (nk.Keep(0.75), 0.7, 1.0),
        (nk.Drop(0.2), 0.7, 0.7),
        (nk.Value(0.6), 0.6, 0.6),
    ],
)
def test_the_value_asked_for(asked, falling, rising):
    assert targeted("f", asked, 0.9, 0.1) == pytest.approx(falling)
    assert targeted("f", asked, 0.5, 2.5, higher_is_better=False) == pytest.approx(rising)


def test_ratios_go_the_way_of_the_measure():
    assert targeted("f", nk.Ratio(0.95), 0.8, None) == pytest.approx(0.76)
    assert targeted("f", nk.Ratio(1.05), 20.0, None, higher_is_better=False) == pytest.approx(21)


@pytest.mark.parametrize("asked", ALL, ids=str)
def test_text_and_object_are_one(asked):
    assert question("f", str(asked)) == question("f", asked) == asked


@pytest.mark.parametrize(
    "wrong",
    ["keep", "keep:", "keep:1", "keep:nan", "drop:-1", "drop:0", "ratio:1", "ratio:0", "value:inf", "third", ""],
)
def test_texts_that_are_no_question(wrong):
    with pytest.raises(ValueError, match=r"^walk: at must be 'half', nk.Keep\(0.99\)"):
        question("walk", wrong)


@pytest.mark.parametrize("wrong", [0.5, None, nk.Keep, Question(), ("half",), b"half"], ids=repr)
def test_what_is_no_question(wrong):
    with pytest.raises(TypeError, match=r"^walk: at must be 'half'"):
        question("walk", wrong)


@pytest.mark.parametrize("make", [nk.Keep, nk.Drop, nk.Ratio, nk.Value])
@pytest.mark.parametrize("number", [math.nan, math.inf, "0.5", True, None])
def test_numbers_that_no_question_has(make, number):
    with pytest.raises((TypeError, ValueError), match=f"^{make.__name__}: "):
        make(number)


CASES = [
    (HALF, 0.9, None, True, "no floor of its own"), (nk.Keep(0.9), 20.0, None, False, "no floor of its own"),
    (HALF, 0.1, 0.1, True, "not above the floor 0.1"), (nk.Keep(0.9), 0.05, 0.1, True, "not above the floor"),
    (nk.Keep(0.9), 2.6, 2.3, False, "not below the floor 2.3"), (HALF, 0.9, math.nan, True, "not above the floor nan"),
    (nk.Value(0.95), 0.9, 0.1, True, "must be above the 0.95"), (nk.Value(0.9), 0.9, 0.1, True, "above the 0.9"),
    (nk.Value(0.3), 0.5, None, False, "must be below the 0.3"), (nk.Ratio(1.05), 0.9, 0.1, True, "above the 0.945"),
    (nk.Ratio(0.9), 20.0, None, False, "below the 18"), (nk.Ratio(0.9), -1.0, None, True, "not above 0"),
    (nk.Ratio(1.05), 0.0, None, False, "not above 0"),
]  # fmt: skip


@pytest.mark.parametrize(("asked", "clean", "floor", "higher", "said"), CASES, ids=lambda v: str(v))
def test_a_question_without_an_answer_names_one_that_has_one(asked, clean, floor, higher, said):
    with pytest.raises(ValueError, match=r"^walk: .*no answer") as error:
        targeted("walk", asked, clean, floor, higher_is_better=higher)
    text = str(error.value)
    assert said in text
    named = text.split("nk.")[-1].split(" ")[0]
    other = eval(f"nk.{named}", {"nk": nk})  # the one named has an answer
    target = targeted("walk", other, clean, None, higher_is_better=higher)
    assert target < clean if higher else target > clean


def test_accuracies_do_not_fall_below_what_they_can_be():
    with pytest.raises(ValueError, match=r"never as low as the -0.1"):
        targeted("walk", nk.Drop(1.0), 0.9, 0.1, worst=0.0)
    with pytest.raises(ValueError, match=r"brier is never as high as the 2.4"):
        targeted("walk", nk.Drop(2.0), 0.4, 0.9, metric="brier", higher_is_better=False, worst=2.0)


def test_a_clean_value_that_is_no_number_has_no_question():
    with pytest.raises(ValueError, match="the clean loss is nan"):
        targeted("walk", nk.Drop(1.0), math.nan, None, metric="loss")


def test_easy_rows_are_not_robust_ones():
    """The first rows of a search have a clean value of their own; a value asked for is as far from that."""
    assert of_part(nk.Value(0.8), 0.95, 0.9, 0.1) == pytest.approx(0.85)
    assert of_part(nk.Drop(0.1), 0.95, 0.9, 0.1) == pytest.approx(0.85)
    assert of_part(HALF, 0.95, 0.9, 0.1) == (0.95 + 0.1) / 2


def test_what_is_offered_has_most_answers_and_is_the_hardest_such():
    assert offered([0.6, 0.7, 0.88], 0.9, 0.1, True) == (nk.Keep(0.98), 3)
    assert offered([0.1, 0.2, 0.9], 0.9, 0.1, True) == (nk.Keep(0.5), 2)
    assert offered([0.9, 0.9], 0.9, 0.1, True) is None
    assert offered([30.0, 23.0], 20.0, None, False) == (nk.Ratio(1.1), 2)
    assert offered([0.5], -1.0, None, True) is None
    assert offered([30.0, 23.0], 20.0, 10.0, False) == (nk.Ratio(1.1), 2)  # worse than the floor without noise

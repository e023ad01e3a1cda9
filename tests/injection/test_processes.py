"""Several processes have the noise of one, bit for bit, forward and backward; what cannot is refused by name."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from process_cases import CASES, Found, all_cases, compared, in_processes
from process_refusals import REFUSED, all_of

EXAMPLES = Path(__file__).parents[2] / "examples"
SIZES = (2, pytest.param(4, marks=pytest.mark.full))
Ranks = list[tuple[dict[str, Found], dict[str, str]]]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Ranks]:
    """What so many processes have found: they are started once."""
    kept: dict[int, Any] = {}

    def of(size: int) -> Ranks:
        if size not in kept:
            kept[size] = in_processes(size, tmp_path_factory.mktemp(f"of {size}"), all_of)
        return kept[size]

    return of


@pytest.fixture(scope="module")
def one() -> dict[str, Found]:
    return all_cases()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", CASES)
def test_several_processes_give_what_one_gives(
    case: str, size: int, one: dict[str, Found], ranks: Callable[[int], Ranks]
) -> None:
    number, differing = compared(one[case], [found[case] for found, _ in ranks(size)])
    assert number > 100 and differing == 0


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_right_is_refused_in_all_processes(case: str, size: int, ranks: Callable[[int], Ranks]) -> None:
    _, words = REFUSED[case]
    for _, messages in ranks(size):
        assert all(word in messages[case] for word in words), messages[case]


@pytest.mark.parametrize("size", SIZES)
def test_rows_that_all_number_from_0_and_studies_that_all_do_are_told(size: int, ranks: Callable[[int], Ranks]) -> None:
    for rank, (_, messages) in enumerate(ranks(size)):
        assert "each of the processes numbers its rows from 0" in messages["warnings"]
        for study in ("walk", "vote", "chips"):
            told = f"{study}: process {rank} of torch.distributed does the whole study by itself"
            assert (told in messages["warnings"]) == (rank > 0)


def test_the_example_prints_the_same_alone_and_under_torchrun() -> None:
    script, printed = str(EXAMPLES / "processes.py"), []
    for start in ([], ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]):
        done = subprocess.run([sys.executable, *start, script], capture_output=True, text=True, check=True)
        count, losses, digest = done.stdout.splitlines()
        printed.append((count, [float(loss) for loss in losses.partition(":")[2].split()], digest))
    (alone, losses, digest), (together, *others) = printed
    assert (alone, together) == ("1 process", "2 processes") and others[1] == digest and "tensor parallel: " in digest
    assert len(losses) == 4 and others[0] == pytest.approx(losses, abs=2e-5)  # sums in another order; 5 digits

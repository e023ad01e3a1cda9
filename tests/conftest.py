"""Fixtures and the marker `full` that all tests share."""

from collections.abc import Callable, Iterator

import pytest
import torch

from noisykernels import _C


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="also run the slow rest of the cases")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "full: the slow rest of the cases; deselected without --full")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--full") or config.getoption("-m"):
        return
    kept = [item for item in items if item.get_closest_marker("full") is None]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


@pytest.fixture(params=_C.cpu_levels())
def cpu_level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction-set level of this machine in turn, forced."""
    _C.set_cpu_level(request.param)
    yield request.param
    _C.set_cpu_level("auto")


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets torch's number of threads; put back after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Bit equality is promised for a fixed number of threads; torch's generator starts anew."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)

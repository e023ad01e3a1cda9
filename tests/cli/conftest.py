"""A checkpoint that the tests of commands share."""

from __future__ import annotations

import pytest

from noisykernels.cli.main import main


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with the checkpoint of the MLP, one epoch on digits."""
    pytest.importorskip("sklearn")
    folder = str(tmp_path_factory.mktemp("checkpoints"))
    assert main(["train", "--epochs", "1", "--cache", folder, "--quiet", "--json"]) == 0
    return folder

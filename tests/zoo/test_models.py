"""The two published networks: shapes, sizes, and the order in which their operations run."""

from __future__ import annotations

import copy
import doctest
import pickle

import pytest
import torch
from torch import nn

from noisykernels.zoo import networks as models

LENET = "conv1 relu1 pool1 conv2 relu2 pool2 fc1 relu3 fc2 relu4 fc3"
LENET_BN = "conv1 norm1 relu1 pool1 conv2 norm2 relu2 pool2 fc1 norm3 relu3 fc2 norm4 relu4 fc3"
MLP = "fc1 relu1 fc2 relu2 fc3 relu3 fc_out"
MLP_BN = "fc1 norm1 relu1 fc2 norm2 relu2 fc3 norm3 relu3 fc_out"
# Operations after the input; with the input these are the 8, 11, 12 and 16 sites of the study.
PUBLISHED = {
    "mlp": (MLP, 8),
    "mlp-bn": (MLP_BN, 11),
    "lenet5": (LENET, 12),
    "lenet5-bn": (LENET_BN, 16),
}


def calls(model: nn.Module, x: torch.Tensor) -> list[str]:
    """Names of the leaf modules in the order in which a forward calls them."""
    seen: list[str] = []
    for name, module in model.named_modules():
        if name:
            module.register_forward_hook(lambda *_, name=name: seen.append(name))
    model(x)
    return seen


@pytest.mark.parametrize("name", PUBLISHED)
def test_operations_run_in_the_published_order(name: str) -> None:
    names, count = PUBLISHED[name]
    model = models.build(name)
    ran = calls(model, torch.randn(2, 1, 28, 28))
    assert [call for call in ran if call != "flatten"] == names.split()
    assert 1 + len(names.split()) == count
    assert [key for key, _ in model.named_children()] == ran  # registered as called


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)], ids=["gray28", "colour32"])
def test_logits_for_every_data_set(name: str, shape: tuple[int, int, int]) -> None:
    logits = models.build(name, shape, 7)(torch.randn(3, *shape))
    assert logits.shape == (3, 7) and logits.dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "shape", "count"),
    [
        ("lenet5", (1, 28, 28), 44_426),  # 156 + 2416 + 30840 + 10164 + 850, as published
        ("lenet5-bn", (1, 28, 28), 44_426 + 2 * (6 + 16 + 120 + 84)),
        ("lenet5", (3, 32, 32), 62_006),  # 456 + 2416 + 48120 + 10164 + 850
        ("mlp", (1, 28, 28), 785 * 64 + 2 * 65 * 64 + 650),
        ("mlp-bn", (1, 28, 28), 785 * 64 + 2 * 65 * 64 + 650 + 3 * 128),
        ("mlp", (1, 8, 8), 65 * 64 + 2 * 65 * 64 + 650),
    ],
)
def test_number_of_parameters(name: str, shape: tuple[int, int, int], count: int) -> None:
    assert sum(p.numel() for p in models.build(name, shape).parameters()) == count


@pytest.mark.parametrize("name", PUBLISHED)
def test_copies_and_traces_compute_the_same(name: str) -> None:
    model = models.build(name).eval()
    x = torch.randn(2, 1, 28, 28)
    expected = model(x)
    for other in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.fx.symbolic_trace(model),
    ):
        torch.testing.assert_close(other(x), expected, rtol=0, atol=0)


def test_a_module_attached_later_is_not_called() -> None:
    model = models.MLP()
    model.add_module("state", nn.Softmax(dim=0))
    assert "state" not in calls(model, torch.randn(2, 784))


def test_clear_refusals() -> None:
    with pytest.raises(ValueError, match="expected one of mlp, mlp-bn, lenet5, lenet5-bn, got 'vgg'"):
        models.build("vgg")
    with pytest.raises(ValueError, match=r"size must be a whole number from 16 to .*, got 8"):
        models.build("lenet5", (1, 8, 8))
    with pytest.raises(ValueError, match=r"square images \(C, H, H\), got \(1, 28, 14\)"):
        models.build("lenet5", (1, 28, 14))
    assert models.LeNet5(1, 16)(torch.randn(2, 1, 16, 16)).shape == (2, 10)  # the smallest


def test_examples() -> None:
    assert doctest.testmod(models) == (0, 5)

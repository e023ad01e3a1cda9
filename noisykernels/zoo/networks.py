"""The two networks of the Walking Noise study: an MLP and LeNet-5, with and without batch norm.

They are plain torch modules that know nothing about noise. Every operation is a module of its own,
registered and called in execution order, so that the sites of an injected model come out in the
order of the published tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from torch import Tensor, nn

from noisykernels._util.arguments import check_arguments
from noisykernels._util.checks import whole

__all__ = ["MLP", "MODELS", "LeNet5", "build"]


class _Chain(nn.Module):
    """Named modules called one after the other, in the order in which they are registered."""

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        # The names, not children(): whatever is attached to the model later must not be called.
        self.order = tuple(layers)
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        """Apply every layer in order."""
        for name in self.order:
            x = getattr(self, name)(x)
        return x


class MLP(_Chain):
    """Multi-layer perceptron: `hidden` fully connected layers with ReLU, then the output layer.

    With the defaults this is the network RL_TFC of the study: in -> 64 -> 64 -> 64 -> classes.

    Args:
        in_features: values per item; an image is flattened first.
        classes: number of outputs (logits).
        width: units of each hidden layer.
        hidden: number of hidden layers.
        norm: put a `BatchNorm1d` after each hidden fully connected layer.

    Modules, in order: `flatten`, then `fc1`, [`norm1`], `relu1`, ..., `fc_out`.
    Input `(B, ...)` with `in_features` values per item, float; output `(B, classes)`.

    Example:
        >>> import torch
        >>> MLP(norm=True)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        in_features: int = 784,
        classes: int = 10,
        *,
        width: int = 64,
        hidden: int = 3,
        norm: bool = False,
    ) -> None:
        check_arguments(MLP.__init__, locals())
        layers: dict[str, nn.Module] = {"flatten": nn.Flatten()}
        features = in_features
        for i in range(1, hidden + 1):
            layers[f"fc{i}"] = nn.Linear(features, width)
            if norm:
                layers[f"norm{i}"] = nn.BatchNorm1d(width)
            layers[f"relu{i}"] = nn.ReLU()
            features = width
        layers["fc_out"] = nn.Linear(features, classes)
        super().__init__(layers)


class LeNet5(_Chain):
    """LeNet-5: two 5x5 convolutions without padding and with pooling, three fully connected layers.

    Args:
        in_channels: channels of the image.
        size: height and width of the image in pixels, at least 16.
        classes: number of outputs (logits).
        norm: put a batch norm after every convolution and fully connected layer but the last.

    Modules, in order: `conv1`, [`norm1`], `relu1`, `pool1`, `conv2`, [`norm2`], `relu2`, `pool2`,
    `flatten`, `fc1`, [`norm3`], `relu3`, `fc2`, [`norm4`], `relu4`, `fc3`.
    Input `(B, in_channels, size, size)`, float; output `(B, classes)`.

    Raises:
        ValueError: the image is too small for two convolutions and two poolings.

    Example:
        >>> import torch
        >>> LeNet5()(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(self, in_channels: int = 1, size: int = 28, classes: int = 10, *, norm: bool = False) -> None:
        check_arguments(LeNet5.__init__, locals(), size=whole(16, 2**31))
        side = ((size - 4) // 2 - 4) // 2  # a convolution takes 4 pixels, a pooling half of the rest
        if side < 1:
            raise ValueError(f"LeNet5: size: expected at least 16 pixels a side, got {size}")
        layers: dict[str, nn.Module] = {}

        def block(i: int, operation: str, module: nn.Module, batch_norm: nn.Module) -> None:
            layers[operation] = module
            if norm:
                layers[f"norm{i}"] = batch_norm
            layers[f"relu{i}"] = nn.ReLU()

        block(1, "conv1", nn.Conv2d(in_channels, 6, 5), nn.BatchNorm2d(6))
        layers["pool1"] = nn.MaxPool2d(2)
        block(2, "conv2", nn.Conv2d(6, 16, 5), nn.BatchNorm2d(16))
        layers["pool2"] = nn.MaxPool2d(2)
        layers["flatten"] = nn.Flatten()
        block(3, "fc1", nn.Linear(16 * side * side, 120), nn.BatchNorm1d(120))
        block(4, "fc2", nn.Linear(120, 84), nn.BatchNorm1d(84))
        layers["fc3"] = nn.Linear(84, classes)
        super().__init__(layers)


def _mlp(shape: Sequence[int], classes: int, norm: bool) -> nn.Module:
    """An MLP for items of any shape."""
    features = 1
    for n in shape:
        features *= n
    return MLP(features, classes, norm=norm)


def _lenet5(shape: Sequence[int], classes: int, norm: bool) -> nn.Module:
    """A LeNet-5 for square images `(C, H, H)`."""
    if len(shape) != 3 or shape[1] != shape[2]:
        raise ValueError(f"build: shape: expected square images (C, H, H), got {tuple(shape)}")
    return LeNet5(shape[0], shape[1], classes, norm=norm)


#: Name on the command line -> function of (shape of one item, number of classes).
MODELS: Mapping[str, Callable[[Sequence[int], int], nn.Module]] = MappingProxyType(
    {
        "mlp": lambda shape, classes: _mlp(shape, classes, False),
        "mlp-bn": lambda shape, classes: _mlp(shape, classes, True),
        "lenet5": lambda shape, classes: _lenet5(shape, classes, False),
        "lenet5-bn": lambda shape, classes: _lenet5(shape, classes, True),
    }
)


def build(name: str, shape: Sequence[int] = (1, 28, 28), classes: int = 10) -> nn.Module:
    """Build a model by name for a data set. Its weights come from torch's default generator.

    Args:
        name: one of `MODELS`: "mlp", "mlp-bn", "lenet5", "lenet5-bn".
        shape: shape of one item, (C, H, W).
        classes: number of classes.

    Returns:
        The model, float32, on the CPU, in training mode.

    Raises:
        ValueError: unknown name, or a shape that the model cannot take.

    Example:
        >>> build("lenet5-bn", (3, 32, 32)).fc1
        Linear(in_features=400, out_features=120, bias=True)
    """
    check_arguments(build, locals())
    if name not in MODELS:
        raise ValueError(f"build: name: expected one of {', '.join(MODELS)}, got {name!r}")
    return MODELS[name](shape, classes)

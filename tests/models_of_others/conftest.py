"""Models of packages that `make test-models` installs: how torchvision is made to load beside any torch."""

from torchvision_ops import complete_torchvision

LIBRARY = complete_torchvision()

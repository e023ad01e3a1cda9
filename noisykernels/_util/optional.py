"""Optional dependencies, imported by the function that needs them."""

from __future__ import annotations

import importlib
from typing import Any


def optional(module: str, extra: str) -> Any:
    """Import a module of an optional dependency.

    Raises:
        ModuleNotFoundError: it is not installed; the message says which extra has it.
    """
    package = module.partition(".")[0]
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise  # installed, but something that it needs is not
        text = f"{package} is not installed; try: pip install noisykernels[{extra}]"
        raise ModuleNotFoundError(text, name=package) from error
    return importlib.import_module(module)

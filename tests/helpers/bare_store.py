"""The results store alone, without torch and the rest of the package, for processes that are killed by the hundred."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

package = ModuleType("noisykernels")  # its own __init__ is not run
package.__path__ = [str(Path(__file__).parents[2] / "noisykernels")]
assert sys.modules.setdefault("noisykernels", package) is package

from noisykernels._engine.store import Store, StoreError, note_of, noting  # noqa: E402

__all__ = ["Store", "StoreError", "note_of", "noting"]

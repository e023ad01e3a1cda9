"""Options of studies from one flat dict, for tests that vary them one by one."""

from __future__ import annotations

from typing import Any

import noisykernels as nk

COMPUTE = ("engine", "batch_rows", "draws_per_pass", "memory", "threads", "executor", "verify")


def gathered(options: dict[str, Any]) -> dict[str, Any]:
    """The same options with `compute=` and `search=` in place of what belongs there."""
    rest = dict(options)
    flat = {name: rest.pop(name) for name in COMPUTE if name in rest}
    if "rel_ci" in rest:
        rest["search"] = nk.Search(rest.pop("rel_ci"))
    return rest | ({"compute": nk.Compute(**flat)} if flat else {})

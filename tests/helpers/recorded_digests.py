"""What a digest is of: the one text of a value, free of what belongs to the machine, and the parts of a study."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from noisykernels.stats import Meta, Record
from noisykernels.study import Study

Parts = dict[str, Any]


class Cases(dict[str, Callable[[], Parts]]):
    """The cases of a file by their names, in the order in which it decorates them."""

    def __call__(self, function: Callable[[], Parts]) -> Callable[[], Parts]:
        self[function.__name__] = function
        return function


# Entries of a plan, and fields of results, that belong to the machine or that did not exist then.
OF_THE_MACHINE = ("torch", "cpu_level", "threads", "device", "verification", "ties", "arrays", "covered")
# Fields that did not exist then, with what goes without saying.
SINCE = {"metric": "accuracy", "arrays": "module", "at": "half", "clean_value": None, "unit": "fraction of rows"}
KINDS_THEN = ("gaussian", "uniform", "laplace")  # there may be more today
VERBATIM = 3000  # characters of a text that is kept as it is, so that a failure can be read


def six(value: Any) -> Any:
    """Floats with six digits, everywhere in a value."""
    if isinstance(value, Tensor | np.ndarray):
        return six(value.tolist())
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return {k: six(v) for k, v in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        told = {f.name: six(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if told.get("at") == "half":  # whose target the rest tells
            told.pop("target", None)
        return {k: v for k, v in told.items() if k not in OF_THE_MACHINE and (k not in SINCE or v != SINCE[k])}
    if isinstance(value, list | tuple):
        return [six(v) for v in value]
    return value if value is None or isinstance(value, str | int | bool) else str(value)


def canonical(value: Any) -> str:
    """The one text of a value; of arrays, type, shape and a digest of the bytes, with one zero and one NaN."""
    if isinstance(value, str):
        return value
    if isinstance(value, Tensor):
        kind, array = str(value.dtype), value.detach().cpu().contiguous()
        if array.is_floating_point():
            array = torch.where(array == 0, torch.zeros_like(array), array)
            array = torch.where(array.isnan(), torch.full_like(array, math.nan), array)
        raw = array.view(-1).view(torch.uint8).numpy().tobytes()
        return f"{kind} {list(value.shape)} {hashlib.sha256(raw).hexdigest()}"
    if isinstance(value, np.ndarray):
        return canonical(torch.from_numpy(np.ascontiguousarray(value)))
    if isinstance(value, Record):
        return repr(tuple(value))
    if isinstance(value, Mapping):
        return "\n".join(f"{k}: {canonical(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return "\n".join(canonical(v) for v in value)
    return repr(value)


def told(value: Any) -> str:
    """What is written down of a value: a short text itself, else its SHA-256."""
    text = canonical(value)
    if isinstance(value, str) and len(text) <= VERBATIM:
        return text
    return "sha256 " + hashlib.sha256(text.encode()).hexdigest()


def meta_of(meta: Meta) -> dict[str, Any]:
    """All of a meta but what belongs to the machine; figures of a search with six digits."""
    told = {k: v for k, v in dataclasses.asdict(meta).items() if k not in SINCE or v != SINCE[k]}
    told["plan"] = {k: v for k, v in meta.plan.items() if k not in OF_THE_MACHINE}
    return told | {"midpoints": six(meta.midpoints)}


def study_parts(study: Study, prefix: str = "") -> Parts:
    """Records and meta of a study, from which all else follows (see `texts`). A search computes its levels."""
    records, meta = study.records, meta_of(study.meta)
    if study.meta.midpoints:
        return {f"{prefix}records": twelve(canonical(records)) + "\n", f"{prefix}meta": twelve(canonical(meta))}
    return {f"{prefix}records": records, f"{prefix}meta": meta}


def twelve(text: str) -> str:
    """A text with its long numbers cut to twelve digits."""
    return re.sub(r"\d+\.\d{9,}(e[+-]\d+)?", lambda found: f"{float(found[0]):.12g}", text)

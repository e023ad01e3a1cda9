"""What is cached: keys and values as a cache of transformers is given them, which are sites where they are asked for.

Their classes are told of it once, when they are there and a model is injected: an update passes through the running
mode, and so a value is noisy when it is written, and stays as it is. transformers itself is never imported.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from noisykernels._util.tensors import can_look
from noisykernels.injection.tokens import CACHES
from noisykernels.nn.signals import cached

__all__ = ["check_cache", "keep_cached", "with_cache", "without"]

_CROSS, _OF_DRAWS = "_noisykernels_cross", "_noisykernels_draws"


def keep_cached() -> None:
    """Has the caches of transformers tell of what is written into them."""
    classes = sys.modules.get("transformers.cache_utils")
    if classes is None or hasattr(classes, "_noisykernels"):
        return
    update, set_up = classes.Cache.update, classes.EncoderDecoderCache.__init__

    @functools.wraps(update)
    def told(self: Any, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        key_states, value_states = cached(key_states, value_states, layer_idx, getattr(self, _CROSS, False))
        return update(self, key_states, value_states, layer_idx, *args, **kwargs)

    @functools.wraps(set_up)
    def of_both(self: Any, *args: Any, **kwargs: Any) -> None:
        set_up(self, *args, **kwargs)
        setattr(self.cross_attention_cache, _CROSS, True)

    classes.Cache.update, classes.EncoderDecoderCache.__init__ = told, of_both
    classes._noisykernels = True  # type: ignore[attr-defined]


def with_cache(model: nn.Module, given: Mapping[Any, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """A new cache for a call of a model that would go without: what is cached is noisy then, too."""
    classes, config = sys.modules.get("transformers.cache_utils"), getattr(model, "config", None)
    uses = given.get("use_cache")
    uses = getattr(config, "use_cache", True) if uses is None else uses
    name = next((n for n in CACHES if n in names), None)
    if classes is None or config is None or uses or name is None or given.get(name) is not None:
        return {}
    new = classes.DynamicCache(config=config)
    if getattr(config, "is_encoder_decoder", False):
        new = classes.EncoderDecoderCache(new, classes.DynamicCache(config=config))
    return {name: new} | ({"use_cache": True} if "use_cache" in names else {})


def without(result: Any, lent: Any) -> Any:
    """The result of a model, in which a cache that it was lent is not."""
    if type(result) is tuple:
        return tuple(part for part in result if part is not lent)
    if isinstance(result, dict) and any(part is lent for part in result.values()):
        return type(result)(**{name: part for name, part in result.items() if part is not lent})
    return result


def check_cache(given: Mapping[Any, Any], batch: int, draws: Tensor | None) -> None:
    """Refuses a cache of another number of rows, or one that other draws have filled."""
    cache = next((given[name] for name in CACHES if given.get(name) is not None), None)
    if not hasattr(cache, "get_seq_length"):  # none, or one of a form of its own
        return
    held = _rows_held(cache)
    if held not in (None, batch):
        raise RuntimeError(
            f"the cache holds keys of {held} rows, and this call has {batch} (draws x sequences): a cache belongs to "
            "the draws that have filled it"
        )
    if draws is None or can_look(draws):
        now = (0,) if draws is None else tuple(draws.tolist())
        before = getattr(cache, _OF_DRAWS, now) if held is not None else now
        if before != now:
            raise RuntimeError(f"the cache was filled by draws {list(before)}, and this call has draws {list(now)}")
        setattr(cache, _OF_DRAWS, now)


def _rows_held(cache: Any) -> int | None:
    """Of how many rows a cache holds keys; None: of none yet, or it does not tell."""
    cache = getattr(cache, "self_attention_cache", cache)
    layers = getattr(cache, "layers", cache)
    for layer in layers if isinstance(layers, list | tuple) else ():
        keys = layer[0] if isinstance(layer, tuple | list) and layer else getattr(layer, "keys", None)
        if isinstance(keys, Tensor) and keys.dim() > 2 and keys.numel():
            length = getattr(layer, "get_seq_length", lambda: 1)()
            return keys.shape[0] if int(length) else None
    return None

"""Where a module of an injected model stands, and the `forward` that it has meanwhile.

The class of a module stays what it is, so classes that others swap in and out meet nothing of ours: `forward` becomes
a method in the object's own dictionary, which looks like the one it stands in for and finds all it needs in the object.
Knows nothing of what such a method does.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

from torch import nn

from noisykernels._util.runtime import wrapped

__all__ = [
    "ABOVE",
    "Door",
    "door_of",
    "give_back",
    "is_own",
    "keep_copies",
    "keep_path",
    "original",
    "parameters_of",
    "paths_of",
    "settle",
    "stand_in",
    "standing_in",
    "without_forwards",
]

ABOVE = ".."  # the path of a model whose names begin at a part of it
_KEY = "_noise_door"
_SCRIPT = "__prepare_scriptable__"  # which torch.jit.script calls before it looks for the source of `forward`

Make = Callable[[Callable[..., Any]], Callable[..., Any]]


class Door:
    """What a module of an injected model knows of itself.

    Args:
        path: its name in the model, without those of wrappers.
        state: of the model; None once the noise is out, for a method that others have covered and may bring back.
    """

    def __init__(self, path: str, state: Any) -> None:
        self.path, self.state = path, state
        self.own: Any = None  # a `forward` that somebody else had put on the object before
        self.make: Make | None = None  # of the method that is there, or underneath what others have put on it since
        self.parameters: tuple[str, ...] = ()  # names of the arguments that its forward takes by position
        self.opens = True  # noise enters where it is called by itself
        self.leaf: Any = None  # of a layer of torch's: what is known of its call

    def __setstate__(self, told: dict[str, Any]) -> None:
        self.__dict__.update(told)
        keep_copies()  # unpickled where no model was injected yet


def door_of(module: nn.Module) -> Door | None:
    """The door of a module, if it is part of an injected model."""
    door: Door | None = module.__dict__.get(_KEY)
    return door if door is not None and door.state is not None and not door.state.gone else None


def paths_of(
    model: nn.Module, prefix: str = "", every: bool = False, root: str = ""
) -> Iterator[tuple[str, nn.Module]]:  # fmt: skip
    """Every module of a model with its name, once or under each; without wrappers, of which no name depends.

    Args:
        root: the part at which names begin: a wrapper by hand. It comes first, as if it were the model.
    """
    if root:
        part = next(m for path, m in paths_of(model, every=True) if path == root)
        inside = {}
        for path, module in paths_of(part, every=every):
            inside[id(module)] = module
            yield path, module
        for path, module in paths_of(model, every=every):
            if id(module) not in inside:
                yield path or ABOVE, module
            elif every and path != root and not path.startswith(f"{root}."):
                yield path, module
        return
    seen: set[int] = set()
    waiting = [(prefix, model)]
    while waiting:
        path, module = waiting.pop()
        if id(module) in seen and not every:
            continue
        seen.add(id(module))
        inner = wrapped(module)
        if inner is None:
            yield path, module
        for name, child in reversed(module._modules.items()):
            if child is not None:
                waiting.append((path if child is inner else f"{path}.{name}" if path else name, child))


def settle(module: nn.Module, path: str, state: Any) -> None:
    """Gives a module its door; where others have covered one of an earlier injection, its method is still there."""
    before, door = module.__dict__.get(_KEY), Door(path, state)
    if before is not None:
        door.own, door.make = before.own, before.make
    module.__dict__[_KEY] = door


def standing_in(plain: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator of a function that stands in for `plain`: a module's class has it, or somebody put it on the object."""

    def look_alike(run: Callable[..., Any]) -> Callable[..., Any]:
        made: Any = functools.wraps(plain)(run)
        made._noisykernels = True
        if not inspect.isfunction(plain):  # it takes no `self`, which a method's signature leaves out
            signature = inspect.signature(plain)
            self = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
            made.__signature__ = signature.replace(parameters=[self, *signature.parameters.values()])
        return made  # type: ignore[no-any-return]

    return look_alike


def original(module: nn.Module) -> Callable[..., Any]:
    """The forward of a module as it is without ours."""
    door: Door | None = module.__dict__.get(_KEY)
    if door is None or door.own is None:
        return functools.partial(type(module).forward, module)
    own: Callable[..., Any] = door.own
    return own


def keep_path() -> None:
    """In code that is being compiled, of the module whose method calls this: what it calls goes by its own name. torch
    makes that of where it has found `self`, of a method on the object ``forward.__self__``, where an exported program
    looks for constants in vain.
    """
    from torch._dynamo.comptime import comptime  # noqa: PLC0415  # loading the compiler takes a second

    comptime(_keep_path)


def _keep_path(context: Any) -> None:
    held = context.get_local("self", stacklevel=1)._i_will_not_complain_if_bc_breaks_VariableTracker().realize()
    held.set_nn_module_stack_source(held.source)


def is_own(module: nn.Module) -> bool:
    """Whether somebody has put a forward on the object, besides ours."""
    door: Door | None = module.__dict__.get(_KEY)
    return "forward" in module.__dict__ if door is None or door.make is None else door.own is not None


def parameters_of(module: nn.Module) -> tuple[str, ...]:
    """Names of the arguments that the forward of a module takes by position."""
    if is_own(module):
        return _positional(original(module))
    return _of_function(type(module).forward)[1:]


def _positional(forward: Callable[..., Any]) -> tuple[str, ...]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(p.name for p in inspect.signature(forward).parameters.values() if p.kind in kinds)


_of_function = functools.cache(_positional)


def _is_ours(forward: Any) -> bool:
    return isinstance(forward, MethodType) and hasattr(forward.__func__, "_noisykernels")


def _is_covered(module: nn.Module, door: Door) -> bool:
    """Whether others have put a `forward` of theirs on the object since, which calls ours as far as can be known."""
    forward = module.__dict__.get("forward")
    if door.make is None or forward is None or forward is door.own or _is_ours(forward):
        return False
    return getattr(forward, "__func__", None) is not type(module).forward  # what was there before, brought back


def stand_in(module: nn.Module, make: Make) -> None:
    """Puts the method that `make` gives for a module's forward on the object, where it is not there already."""
    told, door = module.__dict__, module.__dict__[_KEY]
    own = told.get("forward")
    plain = own or type(module).forward
    if plain is nn.Module.forward or _is_ours(own) or _is_covered(module, door):
        return
    door.own, door.make = own, make
    told["forward"] = MethodType(make(plain), module)
    told[_SCRIPT] = _refuse_script


def give_back(module: nn.Module, for_good: bool) -> None:
    """Takes the method of `stand_in` away, and for good the door too. One that others have covered stays underneath,
    and passes calls on."""
    told = module.__dict__
    door: Door | None = told.get(_KEY)
    if door is None:
        return
    told.pop(_SCRIPT, None)
    covered = _is_covered(module, door)
    if _is_ours(told.get("forward")):
        del told["forward"]
        if door.own is not None:
            told["forward"] = door.own
    if not covered:
        door.own = door.make = None
    if for_good:
        door.state = None
        if not covered:
            del told[_KEY]


@contextlib.contextmanager
def without_forwards(model: nn.Module, unwanted: Callable[[Any], bool]) -> Iterator[None]:
    """Within, the modules that somebody has given such a `forward`, before or after ours, have that of their class."""
    kept = []
    for module in model.modules():
        told, door = module.__dict__, module.__dict__.get(_KEY)
        above, below = told.get("forward"), None if door is None else door.own
        if not unwanted(above) and not unwanted(below):
            continue
        kept.append((told, above, door, below))
        if door is not None:
            door.own = None if unwanted(below) else below
        if unwanted(above):
            del told["forward"]
            if door is not None and door.make is not None:
                told["forward"] = MethodType(door.make(type(module).forward), module)
    try:
        yield
    finally:
        for told, above, door, below in kept:
            told["forward"] = above
            if door is not None:
                door.own = below


def _refuse_script() -> Any:
    raise RuntimeError(
        "torch.jit.script: the model is injected, and TorchScript would hold it without its noise: remove() it first, "
        "or use torch.compile or torch.export"
    )


def keep_copies() -> None:
    """Shallow copies, replicas and unpickled modules get a method of their own instead of that of the original."""
    module: Any = nn.Module
    if hasattr(module, "_noisykernels"):
        return
    module._noisykernels = True
    set_state, replicate = module.__setstate__, module._replicate_for_data_parallel

    @functools.wraps(set_state)
    def own_set_state(self: nn.Module, state: Any) -> None:
        set_state(self, state)
        _rebind(self)

    @functools.wraps(replicate)
    def own_replicate(self: nn.Module) -> nn.Module:
        replica: nn.Module = replicate(self)
        _rebind(replica)
        return replica

    module.__setstate__, module._replicate_for_data_parallel = own_set_state, own_replicate


def _rebind(module: nn.Module) -> None:
    door: Door | None = module.__dict__.get(_KEY)
    if door is None or door.make is None or _is_covered(module, door):
        return
    module.__dict__["forward"] = MethodType(door.make(door.own or type(module).forward), module)

"""An injected model looks and can be handled as it was: classes that others swap, forwards that others replace,
signatures, copies of all kinds, tracers and compilers."""

from __future__ import annotations

import copy
import functools
import inspect
import io
import pickle
from collections.abc import Callable
from types import MethodType
from typing import Any

import pytest
import torch
from injecting import NOISE, SEED, run
from operators import assert_same_bits
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim.swa_utils import AveragedModel

import noisykernels as nk
from noisykernels._util.runtime import unwrap

X = torch.linspace(-1, 1, 18).reshape(3, 6)


class Masked(nn.Module):
    """With a signature that callers look at, an operation of its own and a submodule of a user's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Sequential(nn.Linear(6, 6), nn.Tanh()), nn.Linear(6, 4)

    def forward(self, x: Tensor, mask: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
        """The owner's words."""
        h = torch.relu(self.body(x))
        return self.head(h if mask is None else h * mask) * scale


def noisy(model: nn.Module, x: Tensor = X) -> Tensor:
    with nk.noise_state(model, seed=SEED):
        return model(x)


# --------------------------------------------------------------------------------------------------- classes of others


class Twice(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return 2 * w


def fully_sharded(module: nn.Module) -> Callable[[], None]:
    """What FSDP2 does to a class: a subclass with a mixin, and hooks."""
    before = type(module)
    module.__class__ = type(
        f"FSDP{before.__name__}", (type("FSDPModule", (), {"unshard": lambda self: None}), before), {}
    )
    handles = [module.register_forward_pre_hook(lambda m, a: None, prepend=True)]
    handles.append(module.register_forward_hook(lambda m, a, y: None))

    def undo() -> None:
        module.__class__ = before
        for handle in handles:
            handle.remove()

    return undo


def parametrized(function: Callable[..., Any], **options: Any) -> Callable[[nn.Module], Callable[[], None]]:
    def swap(module: nn.Module) -> Callable[[], None]:
        function(module, **options)
        return lambda: parametrize.remove_parametrizations(module, "weight")

    return swap


def twice(module: nn.Module) -> Callable[[], None]:
    parametrize.register_parametrization(module, "weight", Twice())
    return lambda: parametrize.remove_parametrizations(module, "weight")


def pruned(module: nn.Module) -> Callable[[], None]:
    prune.l1_unstructured(module, "weight", 0.3)
    return lambda: prune.remove(module, "weight")


def old_norm(module: nn.Module) -> Callable[[], None]:
    nn.utils.spectral_norm(module)
    return lambda: nn.utils.remove_spectral_norm(module)


SWAPS: dict[str, Callable[[nn.Module], Callable[[], None]]] = {
    "weight_norm": parametrized(parametrizations.weight_norm),
    "spectral_norm": parametrized(parametrizations.spectral_norm),
    "orthogonal": parametrized(parametrizations.orthogonal), "twice": twice, "prune": pruned, "old norm": old_norm,
    "fully_shard": fully_sharded,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*is deprecated")
@pytest.mark.parametrize("whole", [True, False], ids=["the model", "a layer of it"])
@pytest.mark.parametrize("name", list(SWAPS))
def test_classes_that_others_swap(name: str, whole: bool) -> None:
    """Before and after injection, undone before and after removal: the noise, a working model and its class."""

    def made() -> tuple[nn.Module, nn.Module]:
        torch.manual_seed(0)
        model = nn.Linear(6, 6).eval() if whole else nn.Sequential(nn.Linear(6, 6), nn.ReLU()).eval()
        return model, model if whole else model[0]

    model, layer = made()
    undo = SWAPS[name](layer)
    with_both = run(model, X)
    clean = model(X)
    undo()
    plain_clean, plain = model(X), run(model, X)

    model, layer = made()  # swap, inject, undo, remove
    undo = SWAPS[name](layer)
    nk.inject(model, NOISE)
    assert_same_bits(noisy(model), with_both)
    undo()
    assert_same_bits(noisy(model), plain)
    nk.remove(model)
    assert type(layer) is nn.Linear and torch.equal(model(X), plain_clean)

    model, layer = made()  # inject, swap, remove, undo
    nk.inject(model, NOISE)
    undo = SWAPS[name](layer)
    assert_same_bits(noisy(model), with_both)
    nk.remove(model)
    assert torch.equal(model(X), clean)
    undo()
    assert type(layer) is nn.Linear and torch.equal(model(X), plain_clean)

    model, layer = made()  # inject, swap, undo, remove
    nk.inject(model, NOISE)
    undo = SWAPS[name](layer)
    undo()
    assert_same_bits(noisy(model), plain)
    nk.remove(model)
    assert type(layer) is nn.Linear and torch.equal(model(X), plain_clean)

    model, layer = made()  # swap, inject, remove, undo
    undo = SWAPS[name](layer)
    nk.remove(nk.inject(model, NOISE).model)
    undo()
    assert type(layer) is nn.Linear and torch.equal(model(X), plain_clean)
    assert not any(k.startswith("_noise") or k == "forward" for m in model.modules() for k in vars(m))


def test_no_class_is_made_of_a_users_class() -> None:
    made = []

    class Registered(nn.Linear):
        def __init_subclass__(cls, **kwargs: Any) -> None:
            made.append(cls)

    model = nn.Sequential(Registered(6, 6), nn.Linear(6, 6))
    classes = [type(m) for m in model.modules()]
    for target in (model[0], model):
        with nk.inject(target, NOISE):
            assert [type(m) for m in model.modules()] == classes
            noisy(target)
            nk.sites(target, X)
    assert not made


def test_a_forward_that_came_with_another_class_is_run() -> None:
    """A layer is quantised in place: what is called is what its new class does."""

    class Rounded(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return torch.round(super().forward(x))

    model = nn.Sequential(nn.Linear(6, 6)).eval()
    with nk.inject(model, nk.Noise(add=1e-6), "0"):
        model[0].__class__ = Rounded
        with nk.noise_state(model, seed=1):
            y = model(X)
        assert torch.equal(y, y.round())


# -------------------------------------------------------------------------------------------------- forwards of others


def hooked(module: nn.Module, seen: list[str]) -> Callable[[], None]:
    """As accelerate moves values between devices: the forward is replaced on the object, and put back."""

    def new_forward(module: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append("in")
        return module._old_forward(*args, **kwargs)

    module._old_forward = module.forward
    module.forward = functools.update_wrapper(functools.partial(new_forward, module), module.forward)

    def undo() -> None:
        module.forward = module._old_forward
        del module._old_forward

    return undo


@pytest.mark.parametrize("part", ["", "body", "head", "body.0"])
def test_forwards_that_others_replace(part: str) -> None:
    expected, clean = run(Masked(), X), Masked()(X)
    seen: list[str] = []

    model = Masked()  # replace, inject, remove, undo
    undo = hooked(model.get_submodule(part), seen)
    nk.inject(model, NOISE)
    assert_same_bits(noisy(model), expected)
    assert list(inspect.signature(model.forward).parameters) == ["x", "mask", "scale"]
    nk.remove(model)
    undo()
    assert torch.equal(model(X), clean)

    model = Masked()  # inject, replace, remove, undo
    nk.inject(model, NOISE)
    undo = hooked(model.get_submodule(part), seen)
    assert_same_bits(noisy(model), expected)
    nk.remove(model)
    assert torch.equal(model(X), clean)
    undo()
    assert torch.equal(model(X), clean)
    assert_same_bits(run(model, X), expected)

    model = Masked()  # inject, replace, undo
    nk.inject(model, NOISE)
    hooked(model.get_submodule(part), seen)()
    assert_same_bits(noisy(model), expected)

    model = Masked()  # inject, replace, remove, inject
    nk.inject(model, NOISE)
    hooked(model.get_submodule(part), seen)
    nk.inject(nk.remove(model), NOISE)
    assert_same_bits(noisy(model), expected)
    twin = copy.deepcopy(model)
    assert_same_bits(noisy(twin), expected)

    model = Masked()  # replace, inject, undo: what was there before comes back, and ours upon it
    undo = hooked(model.get_submodule(part), seen)
    nk.inject(model, NOISE)
    undo()
    assert_same_bits(noisy(model), expected)
    assert seen


def test_a_method_put_on_the_object() -> None:
    def forward(self: nn.Module, x: Tensor, more: int = 0) -> Tensor:
        return self.head(torch.relu(self.body(x))) * 1.0

    model = Masked()
    model.forward = MethodType(forward, model)
    with nk.inject(model, NOISE, example_input=X):
        assert list(inspect.signature(model.forward).parameters) == ["x", "more"]
        assert_same_bits(noisy(model), run(Masked(), X))
    assert model.forward.__func__ is forward


# --------------------------------------------------------------------------------------------------- what is looked at


def test_what_is_looked_at_is_the_owners() -> None:
    model, plain = Masked(), Masked()
    with nk.inject(model, NOISE):
        for path, module in model.named_modules():
            other = plain.get_submodule(path)
            assert inspect.signature(module.forward) == inspect.signature(other.forward)
            assert type(module) is type(other) and repr(module) == repr(other)
            assert module.forward.__doc__ == other.forward.__doc__ and module.forward.__name__ == "forward"
            assert module.forward.__self__ is module
            assert inspect.getsource(module.forward) == inspect.getsource(other.forward)
            for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks"):
                assert not getattr(module, hooks)
        assert [n for n, _ in model.named_modules()] == [n for n, _ in plain.named_modules()]
        assert list(dict(model.named_buffers())) == list(dict(plain.named_buffers()))
        with nk.noise_state(model, seed=SEED, rows=[3, 4, 5]):
            assert list(model.state_dict()) == list(plain.state_dict())


def test_scripting_is_refused_with_a_reason() -> None:
    for outer in (lambda m: m, nn.Sequential):
        model = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
        with nk.inject(model, NOISE):
            for target in (outer(model), model[0]):
                with pytest.raises(RuntimeError, match="TorchScript would hold it without its noise"):
                    torch.jit.script(target)
        torch.jit.script(model)


def test_symbolic_trace() -> None:
    """It runs the class's forward: the graph is the owner's, its modules are noisy, and that is said."""
    model, plain = Masked(), torch.fx.symbolic_trace(Masked(), concrete_args={"mask": None})
    with nk.inject(model, NOISE):
        with pytest.warns(UserWarning, match="symbolic_trace"):
            traced = torch.fx.symbolic_trace(model, concrete_args={"mask": None})
        assert traced.code == plain.code
    with nk.inject(traced, NOISE):
        assert_same_bits(noisy(traced), run(plain, X))


@pytest.mark.parametrize("strict", [True, False])
def test_export(strict: bool) -> None:
    model = Masked().eval()
    with nk.inject(model, NOISE), nk.noise_state(model, seed=SEED):
        expected = model(X)
        program = torch.export.export(model, (X,), strict=strict)
    assert torch.allclose(program.module()(X), expected, atol=1e-6)


def test_compiled_whole_once_before_and_after() -> None:
    torch._dynamo.reset()
    model, expected = Masked().eval(), run(Masked().eval(), X)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    clean = compiled(X)
    for _ in range(3):
        with nk.inject(model, NOISE):
            assert torch.allclose(noisy(compiled), expected, atol=1e-6)
            assert torch.allclose(noisy(model), expected, atol=1e-6)
        assert torch.equal(compiled(X), clean)


# --------------------------------------------------------------------------------------------------------------- copies


def copies(model: nn.Module) -> dict[str, nn.Module]:
    torch.save(model, stream := io.BytesIO())
    stream.seek(0)
    return {
        "deepcopy": copy.deepcopy(model), "pickle": pickle.loads(pickle.dumps(model)), "shallow": copy.copy(model),
        "save": torch.load(stream, weights_only=False), "average": AveragedModel(model),
        "replica": model._replicate_for_data_parallel(), "wrapped": nn.DataParallel(model),
    }  # fmt: skip


def test_copies_run_their_own_modules() -> None:
    expected = run(Masked(), X)
    model = Masked()
    with nk.inject(model, NOISE):
        for name, twin in copies(model).items():
            if name != "replica":  # which holds its parameters as attributes
                assert_same_bits(noisy(twin), expected)
            inner = unwrap(twin) if name in ("average", "wrapped") else twin
            assert inner.forward.__self__ is inner
        shallow = copy.copy(model)
        shallow._modules = {**model._modules, "body": nn.Identity()}
        assert not torch.equal(noisy(shallow), noisy(model))
        twin = copy.deepcopy(model)
    assert_same_bits(noisy(twin), expected)  # which has its noise from the copy on
    assert torch.equal(nk.remove(twin)(X), model(X))
    assert not any(k.startswith("_noise") or k == "forward" for m in twin.modules() for k in vars(m))

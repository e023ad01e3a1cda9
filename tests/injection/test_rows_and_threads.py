"""Which rows a call of an injected model has, what tells of rows that come again, and whose a block is."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import noisykernels as nk

pytestmark = pytest.mark.usefixtures("one_thread")

NOISE = nk.Noise(add=1.0, mul=0.5)
AGAIN = "other data get the noise of the call before"


class Two(nn.Module):
    """Two arguments that carry rows, and one that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(5, 3)

    def forward(self, x: Tensor, scale: Tensor, y: Tensor) -> Tensor:
        return torch.relu(self.a(x) * scale + self.b(y))


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


# ------------------------------------------------------------------------------------------- rows that count on


@pytest.mark.parametrize("draws", [None, [3], [0, 5, 2]])
def test_advancing_rows_are_those_of_one_batch(draws: list[int] | None) -> None:
    """Batches of any size, equal to rows given by hand and to all at once; a new block begins with row 0 again."""
    model, x = small(), torch.randn(20, 4)
    sizes = [3, 1, 9, 7]
    with nk.inject(model, NOISE):
        for _ in range(2):
            with nk.noise_state(model, seed=1, draws=draws, rows="advance"):
                parts = [model(part) for part in x.split(sizes)]
        by_hand, done = [], 0
        for part in x.split(sizes):
            with nk.noise_state(model, seed=1, draws=draws, rows=range(done, done + len(part))):
                by_hand.append(model(part))
            done += len(part)
        with nk.noise_state(model, seed=1, draws=draws):
            whole = model(x)
    count = 1 if draws is None else len(draws)
    together = torch.cat([p.view(count, -1, 3) for p in parts], 1).flatten(0, 1)
    assert all(torch.equal(a, b) for a, b in zip(parts, by_hand, strict=True))
    torch.testing.assert_close(together, whole)  # but for the contraction's plan
    assert together.unique().numel() == together.numel()


def test_advancing_with_several_inputs_levels_and_blocks_within_blocks() -> None:
    model, x, y, scale = Two(), torch.randn(6, 4), torch.randn(6, 5), torch.ones(())
    with nk.inject(model, NOISE, example_input=(x, scale, y)):

        def run(first: int, count: int) -> Tensor:
            return model(x[first : first + count], scale, y=y[first : first + count])

        with nk.noise_state(model, seed=1, draws=[0, 1], level=0.5):
            whole = run(0, 6).view(2, 6, 3)
        with nk.noise_state(model, seed=1, draws=[0, 1], level=0.5, rows="advance"):
            one = run(0, 2)
            with nk.noise_state(model, seed=1, rows="advance"):
                run(0, 5)
            with nk.noise_state(model, seed=1):
                run(0, 5)
            with pytest.raises(RuntimeError, match="level must be"), nk.noise_state(model, level=[1.0], rows="advance"):
                run(0, 5)
            two = run(2, 4)
        torch.testing.assert_close(torch.cat([one.view(2, 2, 3), two.view(2, 4, 3)], 1), whole)


def test_advancing_rows_of_noisy_layers_in_inference_mode_and_on_another_dimension() -> None:
    layer, x = nk.NoisyLinear(4, 3, noise=nk.Noise(add=1.0)).eval(), torch.zeros(8, 4)
    with torch.inference_mode(), nk.noise_state(layer, seed=1, rows="advance"):
        parts = [layer(x[:3])]
        with torch.inference_mode(False), torch.no_grad():
            parts.append(layer(x[3:]))
    with nk.noise_state(layer, seed=1):
        assert torch.equal(torch.cat(parts), layer(x))
    model, z = nn.ReLU(), torch.ones(5, 8)
    with nk.inject(model, NOISE, row_dims={"input": 1, "*": 1}):
        with nk.noise_state(model, seed=1, rows="advance"):
            parts = [model(z[:, :2]), model(z[:, 2:])]
        with nk.noise_state(model, seed=1):
            assert torch.equal(torch.cat(parts, 1), model(z))


def test_advancing_rows_compiled() -> None:
    """The count is a tensor of the graph: no call compiles anew."""
    model, x = small().eval(), torch.randn(12, 4)
    with nk.inject(model, NOISE):
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        with nk.noise_state(model, seed=1, rows="advance"):
            parts = [compiled(x[:4])]
            with torch._dynamo.config.patch(error_on_recompile=True):
                parts += [compiled(x[4:8]), compiled(x[8:])]
        with torch._dynamo.config.patch(error_on_recompile=True), nk.noise_state(model, seed=1, rows="advance"):
            parts.append(compiled(x[:4]))
        with nk.noise_state(model, seed=1):
            torch.testing.assert_close(torch.cat(parts), torch.cat([model(x), model(x)[:4]]))


def test_what_advance_is_not_for() -> None:
    model, x = small(), torch.randn(5, 4, requires_grad=True)
    with nk.inject(model, NOISE):
        with (
            pytest.raises(ValueError, match="rows must be a vector of ids or 'advance', got 'next'"),
            nk.noise_state(model, rows="next"),
        ):
            pass
        with nk.noise_state(model, seed=1, rows="advance"):
            for reentrant in (False, True):
                y = checkpoint(model, x, use_reentrant=reentrant).sum()
                with pytest.raises(RuntimeError, match="a checkpoint computes again"):
                    y.backward()


# ------------------------------------------------------------------------------------------- rows that come again


def warned(run: Callable[[], Any]) -> int:
    """How often it is told that rows come with other data."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        run()
    return sum(AGAIN in str(w.message) for w in told)


def test_other_data_with_the_same_rows_are_told_of_once_in_a_block() -> None:
    model, batches = small(), list(torch.randn(4, 5, 4))
    with nk.inject(model, NOISE):

        def loop(data: list[Tensor], blocks: int = 1, **state: Any) -> int:
            def run() -> None:
                for _ in range(blocks):
                    with nk.noise_state(model, **state):
                        for x in data:
                            model(x)

            return warned(run)

        assert loop(batches, seed=1) == 1 and loop(batches, blocks=2, seed=1) == 2
        assert loop([x.clone() for x in batches], seed=1, draws=[0, 3]) == 1
        with torch.inference_mode():
            assert loop([x.clone() for x in batches], seed=1) == 1
        assert loop([batches[0], batches[0][:3]], seed=1) == 1
        assert loop(batches) == 0  # each call has a seed of its own
        assert loop(batches, seed=1, rows=range(5)) == 0 and loop(batches, seed=1, rows="advance") == 0
        assert loop([batches[0]] * 3, seed=1) == 0 and loop([batches[0].clone() for _ in range(3)], seed=1) == 0
        assert loop(batches[:1], blocks=3, seed=1) == 0
        x = torch.zeros(5, 4)

        def refilled() -> None:
            with nk.noise_state(model, seed=1):
                for batch in batches:
                    model(x.copy_(batch))

        assert warned(refilled) == 1
        with nk.noise_state(model, seed=1), warnings.catch_warnings():
            warnings.simplefilter("error")
            torch.func.vmap(model)(torch.randn(3, 5, 4))
    chip, fresh = nk.WeightNoise(add=0.1), nk.InputNoise(add=0.1)
    for hardware, times in ((None, 0), ([chip], 0), ([fresh], 1), ({"0": [chip]}, 0), ({"0": [chip, fresh]}, 1)):
        with nk.inject(model, None, hardware=hardware):  # nothing draws, or a chip, which is the same for all data
            assert loop(batches, seed=1) == times
    for layer, times in (
        (nk.NoisyLinear(4, 3, noise=nk.Noise(add=0.1)), 1),
        (nk.NoisyLinear(4, 3, hardware=[chip]), 0),
        (nk.NoisyLinear(4, 3, hardware=[nk.MacNoise(0.1)]), 1),
        (nk.NoisyLinear(4, 3, arithmetic=nk.Serial("M7E6")), 0),
    ):
        model = layer
        assert loop(batches, seed=1) == times


@pytest.mark.parametrize("rows", [64, 128, 256, 512])
def test_other_data_are_told_of_whichever_columns_differ(rows: int) -> None:
    """Images with the same border and texts with the same first token, of sizes that divide one another."""
    images = [nn.functional.pad(torch.rand(rows, 1, 20, 20), (4, 4, 4, 4)) for _ in range(2)]
    texts = [torch.cat([torch.zeros(rows, 1).long(), torch.randint(1, 50, (rows, 63))], 1) for _ in range(2)]
    for model, (one, other) in ((nn.Flatten(), images), (nn.Embedding(50, 4), texts)):
        for data, times in (([one, other], 1), ([one, one.clone()], 0)):
            with nk.inject(model, NOISE), nk.noise_state(model, seed=1):
                assert warned(lambda model=model, data=data: [model(x) for x in data]) == times


# ------------------------------------------------------------------------------------------- threads


def in_a_thread(run: Callable[[], Any]) -> Any:
    """What another thread returns or raises."""
    found: list[Any] = []

    def work() -> None:
        try:
            found.append(run())
        except RuntimeError as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return found[0]


def test_a_block_belongs_to_the_thread_that_entered_it() -> None:
    """Another thread neither draws by its seed nor enters one of the same model, but may use a copy or wait."""
    model, x = small(), torch.randn(5, 4)
    with nk.inject(model, NOISE):
        with nk.noise_state(model, seed=1, draws=[0, 1]):
            expected = model(x)
            for run in (lambda: model(x), lambda: nk.noise_state(model, seed=2).__enter__()):
                error = in_a_thread(run)
                assert isinstance(error, RuntimeError) and "another thread is within a noise_state block" in str(error)
            for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
                with nk.noise_state(model, seed=1, draws=[0, 1]):
                    assert torch.equal(in_a_thread(lambda other=other: other(x)), expected)

                def own(other: nn.Module = other) -> Tensor:
                    with nk.noise_state(other, seed=2):
                        return other(x)

                assert in_a_thread(own).shape == (5, 3)
            assert torch.equal(model(x), expected)
        assert not torch.equal(in_a_thread(lambda: model(x)), model(x))  # outside of it, a fresh seed for every call


def test_a_backward_pass_may_have_threads_of_its_own() -> None:
    """Autograd's threads compute a checkpoint again: under the block of the thread that waits for them."""
    model, x = small(), torch.randn(5, 4, requires_grad=True)
    with nk.inject(model, NOISE), nk.noise_state(model, seed=1):
        (expected,) = torch.autograd.grad(model(x).sum(), x)
        y = checkpoint(model, x, use_reentrant=False).sum()
        assert torch.equal(in_a_thread(lambda: torch.autograd.grad(y, x)[0]), expected)

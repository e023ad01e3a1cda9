"""What the suffix of a deep network takes, how far that is from what its arithmetic asks for, and what a full grid can
gain at most.

`python bench/profile_deep.py resnet vgg encoder` takes sites spread over a network. Of each it tells the multiply-adds
that are left for each row, level and draw once the levels have parted, as a part of those of the network, and times a
pass of 20 levels against a forward with noise in plain torch: processor time of one thread, interleaved, medians of
ratios, so that it may run beside other work. The floor is those multiply-adds at the speed of the best convolution (or
product) of the network, and what these write at that of a copy; the loop over the mean floor is what a grid gains at
most where each multiply-add is done. `--torch` shows the operations of torch that passes run; `--steps` times each step
of the network alone, on values that stay in the caches, and tells how much of each kind is left: the loop over what is
left in all is what a grid gains at most with these operations, were levels and noise free.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from bench_study import ENCODER, Encoder, ResNet18, SmallVGG, calibrated, modules_of_sites
from torch import Tensor, nn
from torch.profiler import profile

import noisykernels as nk
from noisykernels._graph.directions import directions
from noisykernels._graph.linearity import functions
from noisykernels._graph.recorder import record_tape
from noisykernels._graph.suffix import Suffix
from noisykernels._graph.tape import Step, Tape
from noisykernels.injection import inject
from noisykernels.noise.arguments import Key

LEVELS, ROUNDS = 20, 3
NEAR, BYTES = 1 << 20, 24 << 20  # of a plan on a CPU
# Model, shape of a row, rows of a forward of the loop, sites (None: all that a hook can reach), how many are timed, and
# shapes of its convolutions (rows, channels, outputs, pixels) or products (rows, terms, outputs).
NETWORKS: dict[str, tuple[Any, ...]] = {
    "resnet": (ResNet18, (3, 32, 32), 40, None, 6,
               [(16, 64, 64, 32), (32, 128, 128, 16), (64, 256, 256, 8), (128, 512, 512, 4)]),
    "vgg": (SmallVGG, (3, 32, 32), 100, None, 8, [(96, 32, 32, 32), (96, 64, 64, 16), (96, 128, 128, 8)]),
    "encoder": (Encoder, (16, 32), 500, ENCODER, 11, [(3200, 64, 64), (3200, 64, 128), (3200, 128, 64)]),
}  # fmt: skip
_PRODUCTS = functions("matmul __matmul__ bmm")


def seconds(call: Callable[[], object]) -> float:
    """Processor time of a call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def work(tape: Tape, step: Step) -> int:
    """Multiply-adds of a step for a row."""
    out = math.prod(tape.shapes[step.outputs[0]]) // tape.rows if step.outputs else 0
    if step.function in _PRODUCTS:
        return out * tape.shapes[step.inputs[0]][-1]
    weights = [a for a in step.args[1:] if isinstance(a, Tensor) and a.dim() > 1]
    return out * weights[0][0].numel() if weights and (step.name.startswith("conv") or step.name == "linear") else 0


def speeds(shapes: list[tuple[int, ...]]) -> tuple[float, float]:
    """Multiply-adds a second, of the best of some shapes, and values a second of a copy."""
    found = []
    for shape in shapes:
        if len(shape) == 4:
            rows, inputs, outputs, size = shape
            x = torch.randn(rows, inputs, size, size).contiguous(memory_format=torch.channels_last)
            w = torch.randn(outputs, inputs, 3, 3)
            taps = (3 * size - 2) ** 2  # without those of the padding
            took = min(seconds(lambda x=x, w=w: F.conv2d(x, w, padding=1)) for _ in range(5))
            found.append(rows * inputs * outputs * taps / took)
        else:
            rows, inputs, outputs = shape
            x, w = torch.randn(rows, inputs), torch.randn(outputs, inputs)
            took = min(seconds(lambda x=x, w=w: F.linear(x, w)) for _ in range(5))
            found.append(rows * inputs * outputs / took)
    big = torch.randn(2**18)
    out = torch.empty_like(big)
    return max(found), 2**18 / min(seconds(lambda: out.copy_(big)) for _ in range(9))


def alone(tape: Tape, x: Tensor) -> list[float]:
    """Seconds of each step for a row: the best of some runs, which find their values in the caches."""
    values, found = tape.run(x), []
    for step in tape.steps:
        args, kwargs = step.arguments(values, len(x))
        found.append(min(seconds(lambda s=step, a=args, k=kwargs: s.function(*a, **k)) for _ in range(7)) / len(x))
    return found


def kind(step: Step) -> str:
    """What a table of steps calls it."""
    kinds = {"products": ("linear", "conv"), "attention": ("matmul", "bmm", "softmax", "baddbmm"), "norms": ("norm",)}
    return next((k for k, parts in kinds.items() if any(part in step.name for part in parts)), "rest")


def told_of_steps(tape: Tape, x: Tensor, rests: list[list[Step]], loop: float) -> None:
    """Prints what each kind of step takes in a forward, and how much of that is left after the levels have parted."""
    times = dict(zip(map(id, tape.steps), alone(tape, x), strict=True))
    whole = left = 0.0
    for one in dict.fromkeys(map(kind, tape.steps)):
        all_of = sum(times[id(s)] for s in tape.steps if kind(s) == one)
        rest = statistics.mean(sum(times[id(s)] for s in steps if kind(s) == one) for steps in rests)
        whole, left = whole + all_of, left + rest
        print(f"{one:12s} {1e6 * all_of:8.2f} us of a forward, left {rest / all_of:.3f}: {1e6 * rest:.2f}")
    print(f"{'all':12s} {1e6 * whole:8.2f} us of a forward, left {left / whole:.3f}: {1e6 * left:.2f}")
    print(f"loop over what is left {loop / left:.2f}, forward over what is left {whole / left:.2f}")


class Pass:
    """A pass of all levels from a site, as the engine cuts it."""

    def __init__(self, tape: Tape, x: Tensor, site: str) -> None:
        self.suffix = Suffix(tape, tape.sites[site])
        self.rows = max(1, min(len(x), NEAR // (2 * self.suffix.near)))
        self.clean = tape.run(x[: self.rows])
        value, place = self.clean[self.suffix.number], tape.place(self.suffix.number)
        key = Key(torch.tensor(5), torch.tensor([0]), torch.arange(self.rows), 0, 1)
        self.toward, (self.mixture,) = directions([nk.Noise(add=1.0)], value, place, self.rows, key)
        self.levels = torch.logspace(-2, 2, LEVELS, dtype=torch.float64)
        most = min(BYTES // (self.suffix.peak * self.rows), self.suffix.rows / self.rows)
        self.parts = self.levels.tensor_split(-(-LEVELS // max(1, int(most))))
        carried = self.suffix.carry(self.toward, 1, self.rows)
        self.rest = steps = [self.suffix.steps[i] for i in carried.rest]
        self.multiply_adds = sum(work(tape, step) for step in steps)  # of a row, once the levels have parted
        self.written = sum(
            math.prod(tape.shapes[n]) // tape.rows for step in steps if work(tape, step) for n in step.outputs
        )

    def run(self) -> None:
        """Once."""
        carried = self.suffix.carry(self.toward, 1, self.rows)
        for part in self.parts:
            self.suffix.scores(self.clean, carried, self.mixture, part, 1, self.rows)


def loop(model: nn.Module, x: Tensor, module: nn.Module | None) -> None:
    """A cell of plain torch."""
    if module is None:
        model(x + torch.normal(0.0, 0.1, x.shape)).argmax(1)
        return
    hook = module.register_forward_hook(lambda _m, _i, out: out + torch.normal(0.0, 0.1, out.shape))
    model(x).argmax(1)
    hook.remove()


def main() -> None:
    """Prints the tables."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("networks", nargs="*", default=list(NETWORKS))
    asked.add_argument("--torch", action="store_true", help="show the operations of torch in passes of each site timed")
    asked.add_argument("--steps", action="store_true", help="time each step alone")
    asked.add_argument("--all", action="store_true", help="time all sites")
    args = asked.parse_args()
    torch.set_num_threads(1)
    for name in args.networks:
        with torch.inference_mode():
            table(name, args)


def table(name: str, args: argparse.Namespace) -> None:
    """Of one network."""
    build, shape, rows, chosen, count, shapes = NETWORKS[name]
    model, (x, y) = calibrated(build(), shape, rows)
    sites, modules = nk.sites(model, x[:2]), modules_of_sites(model, (x, y))
    chosen = list(range(len(sites))) if chosen is None else chosen
    with inject(model, None, example_input=x[:2]) as injected:
        tape = record_tape(injected, x[:4])
    whole = sum(work(tape, step) for step in tape.steps)
    speed, copy = speeds(shapes)
    passes = {i: Pass(tape, x, sites[i].name) for i in chosen}
    floors = {i: p.multiply_adds / speed + p.written / copy for i, p in passes.items()}
    best = f"{2e-9 * speed:.0f} GFlop/s, copy {4e-9 * copy:.1f} GB/s"
    print(f"{name}: {1e-6 * whole:.1f} M multiply-adds a row; best speed {best}")
    print(f"{'site':32s} {'left':>6s} {'loop':>8s} {'ours':>8s} {'floor':>8s} {'ratio':>6s}   (us of a row)")
    loops, ours, shares = [], [], []
    for i in chosen[:: 1 if args.all else -(-len(chosen) // count)]:
        pairs = []
        for turn in range(ROUNDS + 1):
            once = seconds(lambda m=modules[i]: loop(model, x, m)) / rows
            again = seconds(passes[i].run) / (passes[i].rows * LEVELS)
            pairs += [(once, again)] if turn else []
        ratio = statistics.median(a / b for a, b in pairs)
        once, again = (1e6 * statistics.median(column) for column in zip(*pairs, strict=True))
        loops.append(once)
        ours.append(again)
        shares.append(passes[i].multiply_adds / whole)
        told = f"{shares[-1]:6.3f} {once:8.1f} {again:8.1f} {1e6 * floors[i]:8.1f} {ratio:6.2f}"
        print(f"{sites[i].name:32s} {told}", flush=True)
        if args.torch:
            with profile() as found:
                passes[i].run()
            own = sorted(((e.self_cpu_time_total, e.key) for e in found.key_averages()), reverse=True)[:8]
            print("    " + ", ".join(f"{key} {100 * part / sum(t for t, _ in own):.0f} %" for part, key in own))
    mean = statistics.mean(passes[i].multiply_adds / whole for i in chosen)
    floor = 1e6 * statistics.mean(floors.values())
    print(f"left at the sites timed {statistics.mean(shares):.3f}, at all {len(chosen)} {mean:.3f}")
    print(f"loop over ours, sums of the sites timed {sum(loops) / sum(ours):.2f}")
    print(f"loop over the mean floor of all sites {statistics.mean(loops) / floor:.2f}")
    if args.steps:
        few = x[: max(1, min(rows, (1 << 20) // max(p.suffix.peak for p in passes.values())))]
        told_of_steps(tape, few, [p.rest for p in passes.values()], 1e-6 * statistics.mean(loops))
    print()


if __name__ == "__main__":
    main()

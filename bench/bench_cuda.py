"""Noise on a GPU: ours, no noise, plain torch and torch.compile, each against the noiseless layer of the same run.

    python bench/bench_cuda.py [layers|products|walks|serial]

Convolutions are cuDNN's as torch sets it: tf32 is allowed. Times are of CUDA events, the second-level cache flushed
before each call, medians of interleaved rounds; in brackets the range of the middle half of the rounds' ratios.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from bench_study import ResNet18
from torch import Tensor

import noisykernels as nk
from noisykernels.arithmetic import FloatFormat, Serial, quantize
from noisykernels.zoo import build

ROUNDS = 40
ADD, MIXED = nk.Noise(add=0.1), nk.Noise(add=0.1, mul=0.1)


def times(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every way in every round."""
    flush = torch.empty(256 << 20, dtype=torch.int8, device="cuda")
    marks: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in ways}
    for _ in range(3):
        for way in ways.values():
            way()
    for _ in range(rounds):
        for name, way in ways.items():
            flush.zero_()
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            way()
            end.record()
            marks[name].append((begin, end))
        torch.cuda.synchronize()
    return {name: [b.elapsed_time(e) for b, e in pairs] for name, pairs in marks.items()}


def row(what: str, base: str, ways: dict[str, Callable[[], object]], rounds: int = ROUNDS) -> None:
    """One line of the table: the base in microseconds, the others as ratios to it."""
    found = times(ways, rounds)
    cells = [what, f"{1000 * statistics.median(found[base]):.1f}"]
    for name in ways:
        if name != base:
            ratios = [t / b for t, b in zip(found[name], found[base], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            cells.append(f"{middle:.2f} ({low:.2f}..{high:.2f})")
    print("| " + " | ".join(cells) + " |", flush=True)


def plain(y: Tensor, mixed: bool) -> Tensor:
    """What one writes by hand."""
    if mixed:
        y = y * (1 + 0.1 * torch.randn_like(y))
    return y + 0.1 * torch.randn_like(y)


def layers() -> None:
    print("| layer | noiseless, us | ours, add | ours, mixed | plain, add | plain, mixed | compiled, mixed |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    seed = torch.tensor(7, device="cuda")

    def line(what: str, clean: Callable[[], Tensor], noisy: Callable[[nk.Noise], Tensor]) -> None:
        torch._dynamo.reset()  # a program of its own for each line
        compiled = torch.compile(lambda: plain(clean(), True))
        row(what, "clean", {
            "clean": clean, "add": lambda: noisy(ADD), "mixed": lambda: noisy(MIXED),
            "plain add": lambda: plain(clean(), False), "plain mixed": lambda: plain(clean(), True),
            "compiled": compiled,
        })  # fmt: skip

    with torch.inference_mode():
        for name, dtype, tf32 in (
            ("bf16", torch.bfloat16, False), ("tf32", torch.float32, True), ("fp32", torch.float32, False)
        ):  # fmt: skip
            torch.backends.cuda.matmul.allow_tf32 = tf32
            for size in (1024, 2048, 4096, 8192):
                x, w = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2))
                line(
                    f"linear {size}^3 {name}",
                    lambda x=x, w=w: F.linear(x, w),
                    lambda noise, x=x, w=w: nk.linear(x, w, noise=noise, seed=seed),
                )
        for batch, inputs, outputs, size, kernel, padding in (
            (256, 64, 64, 32, 3, 1), (256, 6, 16, 14, 5, 0), (256, 1, 6, 28, 5, 2), (256, 3, 32, 32, 3, 1)
        ):  # fmt: skip
            x = torch.randn(batch, inputs, size, size, device="cuda")
            w, b = torch.randn(outputs, inputs, kernel, kernel, device="cuda"), torch.randn(outputs, device="cuda")
            line(
                f"conv {inputs}->{outputs} {kernel}x{kernel} @{size}, ReLU, {batch} rows",
                lambda x=x, w=w, b=b, p=padding: F.relu(F.conv2d(x, w, b, padding=p)),
                lambda noise, x=x, w=w, b=b, p=padding: nk.conv2d(
                    x, w, b, padding=p, noise=noise, relu=True, seed=seed
                ),
            )
        x = torch.randn(2000, 6, 28, 28, device="cuda")
        line(
            "noise, ReLU, max-pool of 2000 x 6 x 28 x 28",
            lambda: F.max_pool2d(F.relu(x), 2),
            lambda noise: nk.perturb_relu_max_pool2d(x, noise, 2, seed=seed),
        )
        x = torch.randn(1 << 26, device="cuda").view(8192, 8192)
        line("noise on 8192 x 8192 float32 (clean: a copy)", x.clone, lambda noise: nk.perturb(x, noise, seed=seed))


def products() -> None:
    """Where one fused kernel is faster than the library and an epilogue: by the inner dimension."""
    print("| y = noise(x w^T), mixed | noiseless, us | library + epilogue | fused |")
    print("| --- | --- | --- | --- |")
    seed = torch.tensor(7, device="cuda")

    def multiplied_by(way: str, x: Tensor, w: Tensor) -> Tensor:
        nk._C.set_cuda_multiplier(way)
        return nk.linear(x, w, noise=MIXED, seed=seed)

    for dtype, name, fused in (
        (torch.bfloat16, "bf16", "fused"), (torch.float32, "tf32", "fused_tf32"), (torch.float32, "fp32", "fused")
    ):  # fmt: skip
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        for rows, columns in ((8192, 8192), (1024, 1024), (256, 512)):
            for inner in (64, 128, 256, 512, 1024, 2048):
                x, w = (torch.randn(n, inner, device="cuda", dtype=dtype) for n in (rows, columns))
                row(f"{rows} x {columns}, K = {inner}, {name}", "clean", {
                    "clean": lambda x=x, w=w: F.linear(x, w),
                    "library": lambda x=x, w=w: multiplied_by("library", x, w),
                    "fused": lambda x=x, w=w, way=fused: multiplied_by(way, x, w),
                })  # fmt: skip
    nk._C.set_cuda_multiplier("library")


def walks() -> None:
    """Whole walks: seconds with the work shared, and with the whole noisy model run for each level and draw."""
    print("| study | GPU, s | GPU, plain engine, s | evaluations |")
    print("| --- | --- | --- | --- |")

    def line(name: str, model: torch.nn.Module, shape: tuple[int, ...], rows: int, draws: int) -> None:
        g = torch.Generator().manual_seed(1)
        x = torch.randn(rows, *shape, generator=g)
        model = model.cuda().eval()
        with torch.inference_mode():
            labels = torch.cat([model(part.cuda()).argmax(1).cpu() for part in x.split(1000)])
        levels = torch.logspace(-3, 2, 16).tolist()
        cells = []
        for engine in ("auto", "plain"):
            settings = dict(
                noise=nk.Noise(add=1.0), levels=levels, draws=draws, seed=1, compute=nk.Compute(engine=engine)
            )
            nk.walk(model, (x[:200], labels[:200]), **{**settings, "draws": 1, "levels": levels[:2]})
            begin = time.perf_counter()
            study = nk.walk(model, (x, labels), **settings)
            cells.append(f"{time.perf_counter() - begin:.2f}")
        print("| " + " | ".join([name, *cells, str(len(study.records) * rows)]) + " |", flush=True)

    line("LeNet-5-BN, 16 levels x 5 draws x 10,000 rows", build("lenet5-bn"), (1, 28, 28), 10_000, 5)
    line("ResNet-18 (CIFAR form), 16 levels x 2 draws x 1,000 rows", ResNet18(), (3, 32, 32), 1000, 2)


def in_a_loop(x: Tensor, w: Tensor, done: Callable[[Tensor], Tensor], each: Callable[[Tensor], Tensor]) -> Tensor:
    """Sums in order as one writes them by hand: all outputs at once, one k after the other."""
    y = x.new_zeros(x.shape[0], w.shape[0])
    for k in range(x.shape[1]):
        y = done(y + each(x[:, k : k + 1] * w[:, k]))
    return y


def serial() -> None:
    """Sums with a defined arithmetic against the library's, in float32 without tf32; and against a loop over k."""
    torch.backends.cuda.matmul.allow_tf32 = False
    stochastic, seed = FloatFormat(7, 6, rounding="stochastic"), torch.tensor(7, device="cuda")
    ways = {
        "clamp": Serial(low=-4.0, high=4.0), "leak": Serial(leak=0.99, high=4.0), "fp16": Serial("fp16"),
        "bf16": Serial("bf16"), "M7E6": Serial("M7E6"), "L8R8": Serial("L8R8"), "stochastic": Serial(stochastic),
        "clamp, noisy steps": Serial(low=-4.0, high=4.0, step_noise=0.01),
    }  # fmt: skip
    print("| sums in order | the library, us | " + " | ".join(ways) + " |\n" + "| --- " * (2 + len(ways)) + "|")
    with torch.inference_mode():
        for rows, columns, inner in ((2048, 2048, 2048), (256, 512, 512)):
            x, w = (torch.randn(n, inner, device="cuda") / inner**0.25 for n in (rows, columns))
            row(f"linear {rows} x {columns}, K = {inner}", "clean", {
                "clean": lambda x=x, w=w: F.linear(x, w),
                **{
                    name: lambda x=x, w=w, way=way: nk.linear(x, w, arithmetic=way, seed=seed)
                    for name, way in ways.items()
                },
            }, rounds=8)  # fmt: skip
        print("\n| sums in order, K = 128 | ours, us | a loop over k | torch.compile of it |\n" + "| --- " * 4 + "|")
        x, w = (torch.randn(2048, 128, device="cuda") / 128**0.25 for _ in range(2))
        for name, done, each in (
            ("clamp", lambda y: y.clamp(-4, 4), lambda p: p),
            ("fp16", lambda y: y.half().float(), lambda p: p.half().float()),
        ):  # fmt: skip
            torch._dynamo.reset()
            compiled = torch.compile(lambda y, x, w, done=done, each=each: done(y + each(x * w)))

            def by_steps(compiled: Callable[..., Tensor] = compiled) -> Tensor:
                y = x.new_zeros(2048, 2048)
                for k in range(128):
                    y = compiled(y, x[:, k : k + 1].contiguous(), w[:, k].contiguous())
                return y

            row(f"{name}, 2048 x 2048", "ours", {
                "ours": lambda way=ways[name]: nk.linear(x, w, arithmetic=way, seed=seed),
                "loop": lambda done=done, each=each: in_a_loop(x, w, done, each), "compiled": by_steps,
            }, rounds=8)  # fmt: skip
        print("\n| rounding 8192 x 8192 float32 | a copy, us | fp16 | M7E6 | stochastic |\n" + "| --- " * 5 + "|")
        x = torch.randn(8192, 8192, device="cuda")
        row("to a format", "copy", {
            "copy": x.clone, "fp16": lambda: quantize(x, "fp16"), "M7E6": lambda: quantize(x, "M7E6"),
            "stochastic": lambda: quantize(x, stochastic, seed=seed),
        })  # fmt: skip


if __name__ == "__main__":
    if not torch.cuda.is_available():
        sys.exit("there is no CUDA device: nothing was measured")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}\n")
    wanted = sys.argv[1:] or ["layers", "products", "walks", "serial"]
    for name in wanted:
        {"layers": layers, "products": products, "walks": walks, "serial": serial}[name]()
        print()

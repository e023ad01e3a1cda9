"""Defects planted into the CUDA kernels, which the tests must notice."""

from pathlib import Path

# A defect of each kind in csrc/cuda: what to replace, and by what.
DEFECTS = {
    "no barrier before the maximum": ("__syncthreads();\n        const int64_t drawn", "const int64_t drawn"),
    "no barrier after the maximum": ("        }\n        __syncthreads();\n      }\n", "        }\n      }\n"),
    "the tail is not cut": ("least(4, end - element)", "4"),
    "alignment is not looked at": (" && reinterpret_cast<uintptr_t>(row + item) % alignof(Four<T>) == 0", ""),
    "a shared input is not": ("(kGiven || e.shared ? ids_.b : i)", "i"),
    "rows beyond the last": ("if (i >= cut.rows) continue;", ""),
    "a bad level of two": ("a.v[k] = m.v[k] = kNaN<C>", "m.v[k] = kNaN<C>"),
    "bad ids": ("ids_.valid ? z.v[k] : kNaN<float>", "z.v[k]"),
    "bad levels": ("return kGiven ? level : checked_level(level);", "return level;"),
    "the bias does not repeat": ("work_.bias(place.item + k * place.stride).remainder", "place.item"),
    "one operand for both": ("Operand::kMul))", "Operand::kAdd))"),
    "one tile for each block": ("tile += gridDim.x", "tile += cut.tiles"),
    "no shared block of channels": ("(begin / 4 + block) * 4", "((begin + 3) / 4 + block) * 4"),
    "one block too few of a channel": (" + (positions % 4 != 0)", ""),
    "no ReLU": ("work_.e.relu ? C(0) : -kInfinity<C>", "-kInfinity<C>"),
    "a line too short": ("last.element(last.y0 + line, last.x1)", "last.element(last.y0 + line, last.x1 - 1)"),
    "the row of other eps": ("work.given(i).remainder", "ids_.b"),
    "the line below is the same": (
        "row.values(top + width, {top + width, 1, 0, 4})",
        "row.values(top, {top, 1, 0, 4})",
    ),
    "product: no barrier between stages": (
        "__syncthreads();  // all copies of this stage",
        "// all copies of this stage",
    ),
    "product: too weak a wait": ("wait_for_copies<kStages - 2>", "wait_for_copies<kStages - 1>"),
    "product: copies that nothing waits for": ("  wait_for_copies<0>();", ""),
    "product: no barrier before the results": ("  __syncthreads();\n  static_assert", "  static_assert"),
    "product: columns dealt wrongly": ("column / 2 * 4 + which * 2", "column / 2 * 4 + (1 - which) * 2"),
    "product: no warp barrier before the noise": (
        "shared);\n    __syncwarp();\n    const int columns",
        "shared);\n    const int columns",
    ),
    "product: no warp barrier before the store": (
        "    __syncwarp();\n    constexpr int kLanes",
        "    constexpr int kLanes",
    ),
    "product: no warp barrier after the store": (
        "column0 + c, 1, 0, 4}, y);\n    }\n    __syncwarp();",
        "column0 + c, 1, 0, 4}, y);\n    }",
    ),
    "product: beyond the inner dimension": ("in_a = k < g.K && ", "in_a = "),
    "product: beyond the rows": ("k < g.K && row0 + row < g.M", "k < g.K"),
    "product: columns on top of each other": (
        "values[16 * i + 8 * below + lane / 4][column + c] =",
        "values[16 * i + 8 * below + lane / 4][column] =",
    ),
    "product: a stage too far": ("(step + kStages - 1) * kDepth", "(step + kStages) * kDepth"),
    "product: rows of the first tiles again": ("(group * kRowsTogether + at % rows_here)", "(at % rows_here)"),
    "product: chunks looked for elsewhere": (
        "place_w(row, chunk + lane / 8 % 2)",
        "place_a(row, chunk + lane / 8 % 2)",
    ),
    "serial: no barrier before the steps": ("__syncthreads();\n    const int count", "const int count"),
    "serial: no barrier after the steps": ("    __syncthreads();\n  }\n#pragma", "  }\n#pragma"),
    "serial: beyond the steps": (" && step + p < s.K;", ";"),
    "serial: beyond the lines": ("first + line < lines && ", ""),
    "serial: outputs beyond the last": ("if (i < s.I && j < s.J) ", ""),
    "serial: one matrix for all": ("t % s.Tb", "0"),
    "serial: rows of another layout": ("k_stride == 1 ? i % kDepth : i / kTile", "i % kDepth"),
    "serial: no order": ("s.order == nullptr ? position : s.order[position]", "position"),
    "serial: one order for all": ("s.order + output * s.K", "s.order"),
    "serial: noise by position": ("element = place.element + k;", "element = place.element + p;"),
    "serial: a block of noise for all": ("if (block != block_) {", "if (block_ < 0) {"),
    "serial: one stream for both roundings": ("Operand::kRoundingOfSum", "Operand::kRoundingOfProduct"),
    "serial: bad ids": ("const bool valid = id.valid || ", "const bool valid = true || "),
    "serial: sums instead of positions": ("s.track ? state.last : state.v", "state.v"),
    "serial: always clamped": ("C(0), C(0), C(0), C(-1)", "C(0), C(0), C(0), C(0)"),
    "serial: noise in tiles": ("s.noisy || s.order_of_each", "s.order_of_each"),
    "gradient: before the last clamp, of a": (
        "where_less(last[row * g.J + j], position, grad[row * g.J + j], C(0))",
        "grad[row * g.J + j]",
    ),
    "gradient: before the last clamp, of b": (
        "where_less(last[output], position, grad[output], C(0))",
        "grad[output]",
    ),
    "gradient: one matrix for all": ("b[(t * g.K + k) * g.J + j]", "b[k * g.J + j]"),
    "quantize: the tail is not cut": ("least(first + 4, q.n)", "first + 4"),
    "quantize: one draw for all": ("row / q.noise.B, row % q.noise.B", "0, row % q.noise.B"),
    "quantize: bad ids": ("random && !id.valid ? kNaN<C> : rounded", "rounded"),
    "quantize: a signalling NaN": (
        "where_less(C(-1), abs_of(v), round_by<Rule::kAny>(c, v, u), kNaN<C>)",
        "round_by<Rule::kAny>(c, v, u)",
    ),
}
# Of them, those of code that the host runs.
OF_THE_HOST = ("one block too few of a channel", "serial: noise in tiles")


def planted(defect: str, csrc: Path) -> Path:
    """Puts a defect into a copy of our sources; returns the kernels that have it."""
    old, new = DEFECTS[defect]
    (file,) = (f for f in (csrc / "cuda").iterdir() if old in f.read_text())
    file.write_text(file.read_text().replace(old, new))
    kernels = {"gemm.cu": "gemm.cu", "ptx.h": "gemm.cu", "serial.cu": "serial.cu"}
    return csrc / "cuda" / kernels.get(file.name, "epilogue.cu")

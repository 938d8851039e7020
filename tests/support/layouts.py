"""What the compiler made of layouts, read from a kernel's TTGIR."""

import re


def check_verify_layout(ttgir, p):
    """The four words that one thread's assembly takes for a 16-byte chunk are one: contiguous, and in one thread."""
    layouts = dict(re.findall(r"^(#\w+) = #ttg\.blocked<\{(.*?)\}>", ttgir, re.M))
    [line] = [text for text in ttgir.splitlines() if "elementwise_inline_asm" in text and "ld.relaxed.gpu.global.v4" in text]
    shape = f"4x8x{p.warps}x{p.block_b // 8}x4"
    used = set(re.findall(rf"tensor<{shape}xi(?:32|64), (#\w+)>", line))
    assert len(used) == 1, "the operands of the assembly differ in layout"
    layout = layouts[used.pop()]

    def field(name):
        return [int(n) for n in re.search(rf"{name} = \[(.*?)\]", layout)[1].split(",")]

    assert field("sizePerThread") == [1, 1, 1, 1, 4]
    assert field("order")[0] == 4
    assert field("threadsPerWarp") == [4, 8, 1, 1, 1] and field("warpsPerCTA") == [1, 1, p.warps, 1, 1], "not operand B"

"""tests/support/same_ptx.py: a changed kernel is told, one that is only called otherwise is not."""

import importlib.util

import triton
from support import same_ptx
from triton.backends.compiler import GPUTarget

SOURCE = '''
import triton
import triton.language as tl


@triton.jit
def scale(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n)
    tl.store(out_ptr + i, x * 2.0, mask=i < n)
'''
NAMES = {"scale": "scaled", "x_ptr": "given_ptr", "out_ptr": "result_ptr", "BLOCK": "SIZE", "    i =": "    # a line more\n    i ="}


def ptx(folder, name, source):
    path = folder / f"{name}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    kernel = getattr(module, "scaled" if "scaled" in source else "scale")
    *parameters, block = kernel.arg_names
    signature = dict(zip(parameters, ("*fp32", "*fp32", "i32"), strict=True)) | {block: "constexpr"}
    source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs={(3,): 128})
    return triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]


def test_names_are_no_difference(tmp_path):
    renamed = SOURCE
    for old, new in NAMES.items():
        renamed = renamed.replace(old, new)
    first, second = ptx(tmp_path, "first", SOURCE), ptx(tmp_path, "second", renamed)
    assert first != second
    assert same_ptx.normalised(first) == same_ptx.normalised(second)
    text = same_ptx.normalised(first)
    assert ".loc" not in text and "debug" not in text and "st.global" in text and "kernel_param_2" in text


def test_a_change_is_told(tmp_path):
    first = same_ptx.normalised(ptx(tmp_path, "first", SOURCE))
    changed = same_ptx.normalised(ptx(tmp_path, "changed", SOURCE.replace("2.0", "3.0")))
    wrong, equal = same_ptx.compare({"a": changed, "b": first, "c": first}, {"a": first, "b": first, "d": first})
    assert equal == 1
    assert [text.partition("\n")[0] for text in wrong] == [
        "a: differs", "c: missing in the old file", "d: missing in the new file",
    ]  # fmt: skip
    assert "\n    -" in wrong[0] and "\n    +" in wrong[0]

"""The GEMMs in the op's own precision: which code runs, what the kernel computes, what it compiles to."""

import itertools

import pytest
import torch
from support.memory import reserved
from support.recorder import Recorder
from torch._subclasses.fake_tensor import FakeTensorMode

from bench.compiled import machine_code, resources
from rnn_triton.launch import gemm
from rnn_triton.op import gradients

NAN = float("nan")
PRECISIONS = ("tf32", "tf32x3", "ieee")
# Error of one product in units of |a b|. tf32 rounds both operands to 11 bits, 2^-11 each; tf32x3 leaves out
# small*small (2^-22) and truncates the two small parts (2^-11 * 2^-10 each); ieee rounds nothing but sums.
PER_PRODUCT = {"tf32": 2.0**-10 + 2.0**-22, "tf32x3": 2.0**-20 + 2.0**-22, "ieee": 0.0}
UNIT = 2.0**-24  # of an fp32 addition; tensor cores truncate where they add, which is 2 units


def matrices(M, N, K, device, seed=0):
    """a[M, K], b[K, N] inside larger NaN-filled ones: whatever is read beyond them shows."""
    generator = torch.Generator().manual_seed(seed)
    out = []
    for rows, columns in ((M, K), (K, N)):
        whole = torch.full((rows + 7, columns + 5), NAN)
        whole[3 : rows + 3, 2 : columns + 2] = torch.randn(rows, columns, generator=generator)
        out.append(whole.to(device)[3 : rows + 3, 2 : columns + 2])
    return out


def check(a, b, precision):
    return check_result(gemm.triton_matmul(a, b, precision), a, b, precision)


def check_result(out, a, b, precision):
    exact, scale = a.double() @ b.double(), a.double().abs() @ b.double().abs()
    bound = PER_PRODUCT[precision] + 2 * a.shape[1] * UNIT
    assert out.shape == exact.shape and out.dtype == torch.float32
    assert ((out.double() - exact).abs() <= bound * scale).all()
    return ((out.double() - exact).abs() / scale).max()


@pytest.mark.executed("ptx-33-17-31-tf32")
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "M, N, K", [(1, 1, 1), (33, 17, 31), (32, 64, 32), (129, 65, 40), (5, 3, 1100), (300, 1, 7)]
)
def test_values(M, N, K, precision, device):
    a, b = matrices(M, N, K, device)
    error = check(a, b, precision)
    if precision == "tf32" and K == 1100:
        assert error > 8 * PER_PRODUCT["tf32x3"], "computed more exactly than asked: slower, and hides a bug"


@pytest.mark.executed
@pytest.mark.parametrize("M, N, K", [(33, 17, 31), (5, 3, 1100)])
def test_several_products_in_one_launch(M, N, K, device):
    """P of them, of any strides, an expanded one in place"""
    pairs = [matrices(M, N, K, device, seed) for seed in range(3)]
    a, b = (torch.stack(column) for column in zip(*pairs))
    one = b[:1].expand(3, -1, -1)
    for many_a, many_b in ((a, b), (a.mT.contiguous().mT, b), (a, one), (a[:1].expand(3, -1, -1), b)):
        out = gemm.triton_matmul(many_a, many_b, "tf32x3")
        assert out.shape == (3, M, N)
        for got, left, right in zip(out, many_a, many_b, strict=True):
            check_result(got, left, right, "tf32x3")


@pytest.mark.executed
@pytest.mark.parametrize("precision", PRECISIONS)
def test_strides(precision, device):
    a, b = matrices(40, 36, 70, device)
    check(a.t().contiguous().t(), b, precision)
    check(a, b.t().contiguous().t(), precision)
    check(a[:, ::2], b[1::2, ::3], precision)
    check(a[:1].expand(9, -1), b, precision)
    check(a, b[:, :1].expand(-1, 50), precision)


@pytest.mark.parametrize("layout", ["nn", "tn", "nt", "tt"])
def test_values_read_in_vectors(layout, device):
    """Aligned rows of whole vectors, which end inside the last tile and the last split; more than one product"""
    g = torch.Generator().manual_seed(1)
    for P, M, N, K in ((1, 36, 44, 76), (2, 36, 12, 300)):
        a, b = torch.randn(P, M, K, generator=g), torch.randn(P, K, N, generator=g)
        a = a.mT.contiguous().mT if layout[0] == "t" else a
        b = b.mT.contiguous().mT if layout[1] == "t" else b
        a, b = (t.to(device) if P > 1 else t[0].to(device) for t in (a, b))
        constants, _ = gemm.arguments(a, b, gemm.tiling(M, N, K, 132, P), "ieee")
        assert constants["A_UNIT"] == constants["B_UNIT"] == constants["N_UNIT"] == 4
        assert constants["M_UNIT"] == (4 if layout[0] == "t" else 1)
        out = gemm.triton_matmul(a, b, "ieee")
        for got, left, right in zip(out.view(P, M, N), a.reshape(P, M, K), b.reshape(P, K, N), strict=True):
            check_result(got, left, right, "ieee")


def test_tf32_rounds_to_nearest(device):
    """The tensor core alone would cut 1 + 0.75 * 2^-10 down to 1."""
    a = torch.full((3, 40), 1 + 0.75 * 2.0**-10, device=device)
    out = gemm.triton_matmul(a, torch.eye(40, device=device)[:, :8], "tf32")
    assert torch.equal(out, torch.full_like(out, 1 + 2.0**-10))
    out = gemm.triton_matmul(torch.eye(40, device=device)[:8], a.t(), "tf32")
    assert torch.equal(out, torch.full_like(out, 1 + 2.0**-10))


def kernel_of(shape_a, stride_a, stride_b, offset=0):
    """The constexprs of a product with 20 columns of such operands, `offset` elements from an aligned address"""
    (*P, M, K) = shape_a
    a, b = Strided(shape_a, stride_a, offset), Strided((*P, K, 20), stride_b, offset)
    return gemm.arguments(a, b, gemm.Tiling(128, 64, 1, 64), "ieee")[0]


class Strided:
    """A matrix as far as `arguments` looks at it: strides without memory"""

    def __init__(self, shape, strides, offset):
        self.shape, self.strides, self.offset = shape, strides, offset

    def dim(self):
        return len(self.shape)

    def stride(self, dimension=None):
        return self.strides if dimension is None else self.strides[dimension]

    def data_ptr(self):
        return 4096 + 4 * self.offset


@pytest.mark.parametrize(
    "shape_a, stride_a, stride_b, expected",
    [
        # A_INNER, A_UNIT, B_INNER, B_UNIT, M_UNIT, N_UNIT, K_UNIT
        ((128, 40), (40, 1), (20, 1), ("k", 4, "n", 4, 1, 4, 4)),  # dx = da W
        ((40, 77), (1, 40), (20, 1), ("m", 4, "n", 4, 4, 4, 1)),  # dW = da^T x, of an odd T B
        ((77, 40), (40, 1), (1, 40), ("k", 4, "k", 4, 1, 4, 4)),  # u = x W^T
        ((128, 39), (40, 1), (20, 1), ("k", 1, "n", 4, 1, 4, 1)),  # a row ends inside a vector
        ((128, 40), (41, 1), (20, 1), ("k", 1, "n", 4, 1, 4, 1)),  # rows begin inside one
        ((128, 40), (80, 2), (20, 1), ("", 1, "n", 4, 1, 4, 1)),
        ((3, 128, 40), (5121, 40, 1), (800, 20, 1), ("k", 1, "n", 4, 1, 4, 1)),  # so do matrices
        ((3, 128, 40), (0, 40, 1), (800, 20, 1), ("k", 4, "n", 4, 1, 4, 4)),
    ],
)
def test_what_is_read_in_vectors(shape_a, stride_a, stride_b, expected):
    names = ("A_INNER", "A_UNIT", "B_INNER", "B_UNIT", "M_UNIT", "N_UNIT", "K_UNIT")
    found = kernel_of(shape_a, stride_a, stride_b)
    assert tuple(found[name] for name in names) == expected
    found = kernel_of(shape_a, stride_a, stride_b, offset=2)
    assert found["A_UNIT"] == found["B_UNIT"] == found["M_UNIT"] == found["K_UNIT"] == 1


@pytest.mark.parametrize(
    "shape_a, stride_a, stride_b, wide",
    [
        ((128, 40), (40, 1), (20, 1), False),
        ((128, 40), (16_000_000, 1), (20, 1), False),
        ((128, 40), (17_000_000, 1), (20, 1), True),
        ((128, 40), (1, 70_000_000), (20, 1), True),
        ((128, 40), (40, 1), (70_000_000, 1), True),
        ((128, 40), (40, 1), (1, 115_000_000), True),
    ],
)
def test_offsets_are_wide_where_a_tile_is(shape_a, stride_a, stride_b, wide):
    assert kernel_of(shape_a, stride_a, stride_b)["OFFSETS"] == (gemm.tl.int64 if wide else gemm.tl.int32)


@pytest.mark.executed
@pytest.mark.parametrize("apart", [2**30, 2**31])  # an argument of 32 bits, whose multiples have more, and one of 64
@pytest.mark.parametrize("which", ["rows of a", "k of a", "k of b", "columns of b"])
def test_wide_offsets(which, apart, device):
    """Elements that lie 2^31 from their tile's first, of either dimension of both operands, in rows of a vector"""
    n = 2**31 // apart + 1
    M, N, K = {"rows of a": (n, 4, 4), "k of a": (4, 4, n), "k of b": (4, 4, n), "columns of b": (4, n, 4)}[which]
    a, b = matrices(M, N, K, device)
    near = a if which.endswith("a") else b
    strides = (apart, 1) if near.shape[0] == n else (1, apart)
    far = reserved(2**31 + 8, device).as_strided(near.shape, strides).copy_(near)
    a, b = (far, b) if near is a else (a, far)
    constants, _ = gemm.arguments(a, b, gemm.tiling(M, N, K, 132), "ieee")
    assert constants["OFFSETS"] == gemm.tl.int64 and max(constants["A_UNIT"], constants["B_UNIT"]) == 4
    check(a, b, "ieee")


@pytest.mark.gpu
def test_more_than_2_to_31_elements():
    """12 GB: tiles that begin, and elements that lie in their tile, beyond what 32 bits can address."""
    M = 2**23 + 5
    a, b = torch.randn(M, 32, device="cuda"), torch.randn(32, 260, device="cuda")
    out = gemm.triton_matmul(a, b, "ieee")
    assert out.numel() > 2**31
    torch.testing.assert_close(out[-70:].double(), a[-70:].double() @ b.double(), rtol=0, atol=1e-3)
    spread = out.view(-1).as_strided((128, 40), (17_000_000, 1))
    check(spread, torch.randn(40, 20, device="cuda"), "ieee")


@pytest.mark.executed
def test_split_k_is_deterministic_and_right(device):
    a, b = matrices(20, 24, 5000, device)
    assert gemm.tiling(20, 24, 5000, 132, precision="tf32x3").splits > 9
    first = gemm.triton_matmul(a, b, "tf32x3")
    assert torch.equal(first, gemm.triton_matmul(a, b, "tf32x3"))
    check(a, b, "tf32x3")
    a[:, 4999] = NAN  # the last element of the last split is read
    assert gemm.triton_matmul(a, b, "ieee").isnan().all()


@pytest.mark.executed
@pytest.mark.parametrize("precision", PRECISIONS)
def test_not_finite(precision, device):
    a, b = torch.ones(4, 40, device=device), torch.ones(40, 3, device=device)
    a[0, 7], a[1, 8], a[2, 9] = float("inf"), -float("inf"), NAN
    out = gemm.triton_matmul(a, b, precision).tolist()
    assert out[0] == [float("inf")] * 3 and out[1] == [-float("inf")] * 3 and out[3] == [40.0] * 3
    assert all(value != value for value in out[2])


# Tiling: pure


@pytest.mark.parametrize("precision", PRECISIONS)
def test_tiling_covers_k_once(precision):
    sizes = [1, 31, 64, 200, 1024, 3_000_000], [1, 33, 256], [1, 31, 32, 511, 4096, 1_000_003, 50_000_000]
    for M, N, K, sms in itertools.product(*sizes, [1, 82, 132]):
        t = gemm.tiling(M, N, K, sms, precision=precision)
        assert t.split_k % gemm.BLOCK_K == 0
        assert (t.splits - 1) * t.split_k < K <= t.splits * t.split_k  # all of K, and no empty split
        tiles = -(-M // t.block_m) * -(-N // t.block_n)
        assert t.splits == 1 or tiles * t.splits <= 4 * sms
        assert t.splits == 1 or t.split_k >= gemm.MIN_SPLIT_K
        assert t.splits <= 65535 and tiles < 2**31
        assert (t.block_m, t.block_n) in TILES[precision]


def programs(t, M, N, products=1):
    return products * -(-M // t.block_m) * -(-N // t.block_n) * t.splits


@pytest.mark.parametrize("H", [64, 128, 256, 512, 1024])
@pytest.mark.parametrize("TB", [512, 4096, 32767, 1_000_000])
def test_tiling_of_weight_gradients(H, TB):
    """dw[H,H] over a sum of T B: as many programs as the device has SMs, or as K has parts that are worth one, and none of
    them alone in a last round"""
    t = gemm.tiling(H, H, TB, 132)
    n = programs(t, H, H)
    assert n >= min(100, TB // gemm.MIN_SPLIT_K)
    rounds = -(-n // 132)
    assert n >= 0.75 * rounds * 132 or rounds == 1
    # partial results: no more bytes than the operands, but for the least splits that fill the device
    assert t.splits <= 33 or t.splits * H * H <= 2 * TB * H or n <= 132


@pytest.mark.parametrize("H", [64, 128, 256, 512, 1024])
@pytest.mark.parametrize("TB", [512, 4096, 32767, 1_000_000])
def test_tiling_of_input_gradients(H, TB):
    """dx[T B,H] = da W: a program for each SM by small tiles where there are few, and large ones where there are many"""
    t = gemm.tiling(TB, H, H, 132)
    assert programs(t, TB, H) >= min(64, -(-TB // 32) * -(-H // 32))
    if TB == 1_000_000 and H >= 128:
        assert t == gemm.Tiling(128, 128, 1, H)


def test_tiling_shares_the_device_among_products():
    assert gemm.tiling(256, 256, 1_000_000, 132, products=64).splits <= 2
    assert gemm.tiling(256, 256, 1_000_000, 132).splits >= 33


# Which code runs


@pytest.fixture
def setting():
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    yield matmul
    matmul.fp32_precision = before


@pytest.mark.parametrize(
    "current, kernel_runs_for", [("ieee", {"tf32"}), ("none", {"tf32"}), ("tf32", {"tf32x3", "ieee"})]
)
def test_torch_where_its_setting_serves(monkeypatch, setting, current, kernel_runs_for):
    ran = []
    monkeypatch.setattr(gemm, "triton_matmul", lambda a, b, precision: ran.append(precision))
    setting.fp32_precision = current  # the newer switch alone: reading the older one raises now
    with FakeTensorMode():
        a, b = torch.empty(3, 4, device="cuda"), torch.empty(4, 5, device="cuda")
        for precision in PRECISIONS:
            gemm.matmul(a, b, precision)
            gemm.matmul(a.expand(2, -1, -1), b.expand(2, -1, -1), precision)
        for dtype in (torch.float16, torch.bfloat16, torch.float64):
            assert gemm.matmul(a.to(dtype), b.to(dtype), None).dtype == dtype
    assert set(ran) == kernel_runs_for and len(ran) == 2 * len(kernel_runs_for)
    assert setting.fp32_precision == current


def test_kernels_are_kept_for_each_device(monkeypatch):
    """Where one was launched first, its code is."""
    used = []
    monkeypatch.setattr(gemm.Launcher, "__call__", lambda self, *_: used.append(self))
    monkeypatch.setattr(gemm.hardware, "of", lambda _: gemm.hardware.RECORDS["sm_90"])
    for index in (0, 1, 0, 1):
        square = Strided((64, 64), (64, 1), 0)
        square.device, square.new_empty = torch.device("cuda", index), torch.empty
        gemm.triton_matmul(square, square, "tf32")
    assert used[0] is used[2] is not used[1] and used[1] is used[3]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_cpu_is_torchs(dtype):
    a, b = torch.randn(6, 7).to(dtype), torch.randn(7, 5).to(dtype)
    for precision in PRECISIONS if dtype == torch.float32 else (None,):
        assert torch.equal(gemm.matmul(a, b, precision), torch.mm(a, b))
        many = (a.expand(2, -1, -1), torch.stack([b, b.flip(0)]))
        assert torch.equal(gemm.matmul(*many, precision), torch.bmm(*many))


def test_autocast_does_not_reach_in():
    a, b = torch.randn(6, 7), torch.randn(7, 5)
    expected = gemm.matmul(a, b, "ieee")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.mm(a, b).dtype == torch.bfloat16
        assert torch.equal(gemm.matmul(a, b, "ieee"), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", PRECISIONS)
def test_gpu_follows_precision_not_settings(setting, precision):
    a, b = matrices(64, 48, 3000, "cuda")
    exact, scale = a.double() @ b.double(), a.double().abs() @ b.double().abs()
    for current in ("ieee", "tf32"):
        setting.fp32_precision = current
        error = ((gemm.matmul(a, b, precision).double() - exact).abs() / scale).max()
        assert error <= PER_PRODUCT[precision] + 2 * 3000 * UNIT


# The input projection

KINDS = {
    "bf16": (torch.bfloat16, None), "fp16": (torch.float16, None), "tf32": (torch.float32, "tf32"),
    "ieee": (torch.float32, "ieee"), "fp64": (torch.float64, None),
}  # fmt: skip


def layer(kind, T, B, I, H, device="cpu"):
    """x, w_ih, b_ih, b_hh"""
    generator = torch.Generator().manual_seed(T + I)
    shapes = (T, B, I), (H, I), (H,), (H,)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(KINDS[kind][0]).to(device) for s in shapes]


def check_projection(kind, x, w_ih, *biases):
    u = gemm.project(x, w_ih, *biases, KINDS[kind][1])
    exact, scale = x.double() @ w_ih.double().t(), x.double().abs() @ w_ih.double().abs().t()
    for b in biases:
        if b is not None:
            exact, scale = exact + b.double(), scale + b.double().abs()
    # products of 16-bit values are exact in fp32: rounding u itself to 16 bits would err by 2^-12 of it at least
    unit = 2.0**-53 if kind == "fp64" else UNIT
    bound = PER_PRODUCT.get(KINDS[kind][1], 0.0) + 2 * (x.shape[2] + 2) * unit
    assert u.shape == exact.shape and u.is_contiguous()
    assert u.dtype == (torch.float64 if kind == "fp64" else torch.float32)
    assert ((u.double() - exact).abs() <= bound * scale).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("T, B, I, H", [(1, 1, 1, 1), (3, 5, 40, 17)])
def test_projection(kind, T, B, I, H, device):
    x, w_ih, b_ih, b_hh = layer(kind, T, B, I, H, device)
    for biases in ((None, None), (b_ih, None), (None, b_hh), (b_ih, b_hh)):
        check_projection(kind, x, w_ih, *biases)


@pytest.mark.parametrize("kind", ["bf16", "tf32", "fp64"])
def test_projection_of_any_strides(kind, device):
    big, w_ih, b_ih, b_hh = layer(kind, 5, 4, 19, 6, device)
    w_ih = w_ih[:, :9].t().contiguous().t()
    for x in (
        big[:, :, :9],
        big[:, :, 1:10].transpose(0, 1),
        big[:, :, 1:18:2],
        big[:1, :, :9].expand(7, 4, 9),
        big[:, :1, :1].expand(5, 3, 9),
    ):
        check_projection(kind, x, w_ih, b_ih, b_hh)


def test_projection_changes_no_argument():
    arguments = layer("fp64", 2, 3, 4, 5)
    before = [t.clone() for t in arguments]
    gemm.project(*arguments, None)
    assert all(torch.equal(a, b) for a, b in zip(arguments, before, strict=True))


@pytest.mark.parametrize("kind", ["bf16", "ieee"])
def test_autocast_does_not_reach_into_the_projection(kind):
    x, w_ih, b_ih, b_hh = layer(kind, 2, 3, 70, 5)
    expected = gemm.project(x, w_ih, b_ih, b_hh, KINDS[kind][1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(gemm.project(x, w_ih, b_ih, b_hh, KINDS[kind][1]), expected)


@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_projection_of_16_bits_accumulates_into_fp32(kind):
    """On CUDA by one product of the 16-bit operands, with an output that was never 16 bits"""

    with FakeTensorMode(), Recorder() as recorder:
        x, w_ih = (torch.empty(s, dtype=KINDS[kind][0], device="cuda") for s in ((3, 4, 8), (16, 8)))
        u = gemm.project(x, w_ih, None, None, None)
    assert u.dtype == torch.float32 and u.shape == (3, 4, 16)
    assert [name for name in recorder.names if "mm" in name] == ["aten::mm.dtype"]
    assert "aten::_to_copy" not in recorder.names


# Gradients of the weights


def layer_of_gradients(T, B, I, H, dtype, device="cpu", models=()):
    g = torch.Generator().manual_seed(3)
    shapes = (T, B, I), (H, I), (H, H), (B, H), (T, B, H), (T, B, H)
    tensors = (torch.randn(*models, *s, generator=g).to(dtype) for s in shapes)
    x, w_ih, w_hh, h0, y, da = (torch.empty_like(t, device=device) if device != "cpu" else t for t in tensors)
    needs = gradients.DX | gradients.DW_IH | gradients.DW_HH | gradients.DB | gradients.DH0
    return gradients.Saved(x, w_ih, w_hh, h0, y, False, None, needs), da


@pytest.mark.parametrize("models", [(), (2,)])
@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_weight_gradients_of_16_bits_have_outputs_of_fp32(kind, models):
    """Torch lets cuBLAS round the parts of a long sum to the output's dtype, and add them up in it."""
    with FakeTensorMode(), Recorder() as recorder:
        layer, da = layer_of_gradients(9, 4, 24, 16, KINDS[kind][0], "cuda", models)
        results = layer.gradients(da)
    name = "aten::bmm" if models else "aten::mm"
    products = [n for n in recorder.names if n.startswith(name)]
    assert sorted(products) == sorted([f"{name}.dtype"] * 4 + [name]), "dw_ih, dw_hh, h0's part of it and dh0; dx"
    assert all(t.dtype == KINDS[kind][0] for t in results)


@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_weight_gradients_are_rounded_once(kind):
    dtype = KINDS[kind][0]
    layer, da = layer_of_gradients(9, 4, 24, 16, dtype)
    _, dw_ih, dw_hh, *_ = layer.gradients(da)
    x, h0, y, da = (t.double() for t in (layer.x, layer.h0, layer.y, da))
    before = torch.cat([h0[None], y[:-1]]).flatten(0, 1)
    for got, other in ((dw_ih, x.flatten(0, 1)), (dw_hh, before)):
        exact, scale = da.flatten(0, 1).t() @ other, da.flatten(0, 1).abs().t() @ other.abs()
        # half a unit of the result where its sum in fp32 may have been on the other side of the middle
        half = torch.finfo(dtype).eps / 2 * 2.0 ** exact.abs().log2().floor()
        assert ((got.double() - exact).abs() <= half + 2 * len(other) * UNIT * scale).all()


@pytest.mark.gpu
def test_projection_is_captured_and_repeats():
    x, w_ih, b_ih, b_hh = layer("bf16", 9, 4, 64, 48, "cuda")
    expected = gemm.project(x, w_ih, b_ih, b_hh, None)
    assert torch.equal(expected, gemm.project(x, w_ih, b_ih, b_hh, None))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        u = gemm.project(x, w_ih, b_ih, b_hh, None)
    u.fill_(NAN)
    graph.replay()
    assert torch.equal(u, expected)


# Compiled, without a GPU

TILES = {precision: list(gemm.TILES[precision != "tf32" :]) for precision in PRECISIONS}
LAYOUTS = {  # of dx, of dw, of the projection; rows that are no vectors
    "nn": lambda M, N, K: (torch.empty(M, K), torch.empty(K, N)),
    "tn": lambda M, N, K: (torch.empty(K, M).t(), torch.empty(K, N)),
    "nt": lambda M, N, K: (torch.empty(M, K), torch.empty(N, K).t()),
    "odd": lambda M, N, K: (torch.empty(K, M + 1)[:, 1:].t(), torch.empty(K, N + 1)[:, 1:]),
}


def compiled(capability, precision, tile, layout):
    a, b = LAYOUTS[layout](256, 256, 4096)
    kernel = gemm.compile_ahead(a, b, gemm.Tiling(*tile, 1, 4096), precision, capability)
    (_, stack, _), listing = resources._cuobjdump(kernel.asm["cubin"])
    opcodes = [instruction.opcode for instruction in machine_code.parse_sass(listing)]
    assert not [opcode for opcode in opcodes if opcode.startswith(("STL", "LDL"))] and stack == 0
    assert kernel.metadata.shared <= 99 * 1024  # what every device from sm_80 on has
    assert ("tf32" in kernel.asm["ptx"]) == (precision != "ieee")
    if layout != "odd":
        copies = {opcode for opcode in opcodes if opcode.startswith("LDGSTS")}
        assert copies and all("128" in opcode for opcode in copies), "narrow copies from global memory"
        assert all("128" in opcode for opcode in opcodes if opcode.startswith("STG"))


# the largest tiles of the H200, as dx and dw are, and the projection's
BY_DEFAULT = [(90, p, TILES[p][0], layout) for p in PRECISIONS for layout in ("nn", "tn")] + [(90, "tf32", (64, 64), "nt")]
KERNELS = [
    (capability, precision, tile, layout)
    for capability in (80, 90, 100) for precision in PRECISIONS for tile in TILES[precision] for layout in LAYOUTS
]  # fmt: skip


@pytest.mark.compiled
@pytest.mark.parametrize(
    "capability, precision, tile, layout",
    [pytest.param(*k, marks=() if k in BY_DEFAULT else pytest.mark.long, id="-".join(map(str, k))) for k in KERNELS],
)
def test_compiles_without_spills(capability, precision, tile, layout):
    compiled(capability, precision, tile, layout)


# What is launched without Triton's launch path


def test_one_kernel_for_all_sizes(monkeypatch):
    """The kept kernel runs where M, N, K, strides and splits are others, an odd T B too: with every argument in its place"""
    calls = []

    class Kernel:  # stands for triton's CompiledKernel
        def __getitem__(self, grid):
            return lambda *arguments: calls.append(("kept", grid, arguments))

    class Jit:
        arg_names = gemm.matmul_kernel.arg_names

        def __getitem__(self, grid):
            def run(*arguments, num_warps, num_stages, maxnreg, **constexprs):
                calls.append(("jit", grid, (*arguments, *constexprs.values())))
                return Kernel()

            return run

    monkeypatch.setattr(gemm, "matmul_kernel", Jit())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: None)  # a CPU tensor's index
    monkeypatch.setattr(gemm, "tiling", lambda M, N, K, *_: gemm.Tiling(64, 64, -(-K // 1024), 1024))
    gemm._launcher.cache_clear()
    try:
        for TB, H in ((4096, 128), (4095, 128), (513, 96)):
            da, x = torch.empty(TB, H), torch.empty(TB, 36)
            out = gemm.triton_matmul(da.t(), x, "tf32")
            kind, grid, got = calls[-1]
            splits = -(-TB // 1024)
            assert kind == ("jit" if len(calls) == 1 else "kept")
            assert grid == (H // 64 + (H % 64 > 0), splits, 1)
            assert [t.data_ptr() for t in got[:2]] == [da.data_ptr(), x.data_ptr()]
            assert got[3:13] == (H // 4, 9, TB, 0, 0, H // 4, 0, 9, 0, 32)
            assert got[13:] == ("tf32", gemm.tl.int32, "m", 4, "n", 4, 4, 4, 1, 64, 64, 32)
            assert len(got) == len(Jit.arg_names) and out.shape == (H, 36)
    finally:
        gemm._launcher.cache_clear()

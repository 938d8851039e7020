"""The package as it is built, as it lies in a checkout, and as other tools take it."""

import importlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import types
import zipfile
from pathlib import Path

import pytest
import torch

import rnn_triton

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("cells", "interpret", "launch", "modules", "op", "plan")
BENCH = ("cases", "records", "instruments", "providers", "measure", "first_run", "compiled", "model", "show", "tritonbench")
PACKAGES = {
    "rnn_triton": "rnn_triton", "rnn_triton/kernels": "kernels", "rnn_triton/bench": "bench",
    **{f"rnn_triton/{room}": f"rnn_triton/{room}" for room in ROOMS},
    **{f"rnn_triton/bench/{room}": f"bench/{room}" for room in BENCH},
}  # fmt: skip

DATA = {"rnn_triton/py.typed", "rnn_triton/plan/measured.json", "rnn_triton/bench/cases/published.csv", "rnn_triton/bench/first_run/listed.txt", "rnn_triton/bench/show/page.html"}


def run(*command, cwd=ROOT):
    done = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


IMPORTS = """
import os, time
began = time.process_time()
import torch
print(time.process_time() - began, flush=True)
for _ in range(5):  # each in a process that has not imported it yet
    if not os.fork():
        began = time.process_time()
        import rnn_triton
        print(time.process_time() - began, flush=True)
        os._exit(0)
    os.wait()
"""


def test_its_import_takes_a_part_of_torchs():
    """CPU seconds, the least of five: 0.4 where torch's own import takes one, and as much more where that is slower"""
    torchs, *ours = map(float, run(sys.executable, "-c", IMPORTS).split())
    assert len(ours) == 5 and min(ours) < 0.4 * max(1, torchs), (torchs, ours)


def test_kernels_are_a_relative_link():
    link = ROOT / "rnn_triton" / "kernels"
    assert link.is_symlink() and os.readlink(link) == "../kernels"


def test_kernels_refuse_to_be_a_top_level_package():
    run(sys.executable, "-c", "import rnn_triton.kernels")
    with pytest.raises(AssertionError, match="imported as rnn_triton.kernels"):
        run(sys.executable, "-c", "import kernels")


def test_versions_agree():
    pattern = r'^version(?: = |: )"?([\d.]+)"?$'
    for name in ("pyproject.toml", "CITATION.cff"):
        assert re.findall(pattern, (ROOT / name).read_text(), re.MULTILINE) == [rnn_triton.__version__], name


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(wheel, sdist, wheel out of the sdist): the names of what they hold; built from a copy of the checkout."""
    pytest.importorskip("setuptools", minversion="77")
    copy, out = tmp_path_factory.mktemp("copy") / "rnn_triton", tmp_path_factory.mktemp("out")
    left_out = shutil.ignore_patterns(".*", "out", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, copy, symlinks=True, ignore=left_out)

    def build(kind, tree):
        code = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(out)!r}))"
        return out / run(sys.executable, "-c", code, cwd=tree).splitlines()[-1]

    def in_wheel(path):
        with zipfile.ZipFile(path) as wheel:
            return set(wheel.namelist())

    sdist = build("sdist", copy)
    with tarfile.open(sdist) as archive:
        archive.extractall(out / "unpacked", filter="data")
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    wheel = in_wheel(build("wheel", copy))
    (unpacked,) = (out / "unpacked").iterdir()
    return wheel, in_sdist, in_wheel(build("wheel", unpacked))


def test_wheel_holds_the_packages_and_nothing_else(built):
    wheel, _, _ = built
    modules = {f"{package}/{path.name}" for package, at in PACKAGES.items() for path in (ROOT / at).glob("*.py")}
    assert {name for name in wheel if ".dist-info/" not in name} == modules | DATA
    assert any(name.endswith("/licenses/LICENSE") for name in wheel)


def test_sdist_builds_the_same_wheel_and_holds_the_tests(built):
    wheel, sdist, from_sdist = built
    assert from_sdist == wheel
    assert {"kernels/__init__.py", "tests/conftest.py", "examples/digits.py", "examples/data/digits.csv.gz"} <= sdist
    assert {"Makefile", "CONTRIBUTING.md", "docs/architecture.svg", "docs/derivation.md", "CITATION.cff", "rnn_triton/py.typed"} <= sdist
    assert not any(name.startswith("rnn_triton/kernels/") for name in sdist)


def test_a_users_program_has_every_public_name_in_it():
    """`make lint` reads that program as strictly as mypy --strict does."""
    import users_program

    text = Path(users_program.__file__).read_text(encoding="utf-8")
    assert {name for name in rnn_triton.__all__ if f"rnn_triton.{name}" not in text} == set()
    assert "per_step" in users_program.program() or "one a step" in users_program.program()


# Loads the kernel of folder argv[1] as a module, by `kernels` or as that does it; then the package, with operators of the same names.
LOADS_A_KERNEL = """
import importlib.util, json, pathlib, sys
import torch

folder = pathlib.Path(sys.argv[1])
if sys.argv[2] == "kernels":
    import kernels
    hub = kernels.get_local_kernel(folder, backend="cpu")
else:
    variant = folder / "build" / "torch-cpu"
    name = json.loads((variant / "metadata.json").read_text())["id"]
    spec = importlib.util.spec_from_file_location(name, variant / "__init__.py")
    hub = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hub)
assert hub.__file__.startswith(str(folder)) and "rnn_triton" not in sys.modules, hub.__file__
assert {str(op) for op in hub.onnx.decompositions()} == {f"{hub.__name__}.{name}.default" for name in ("forward", "matmul")}

torch.manual_seed(0)
layer = hub.LSTM(3, 5, num_layers=2)
x = torch.randn(7, 2, 3, requires_grad=True)
y, _ = layer(x)
y.square().sum().backward()
assert not hasattr(torch.ops.rnn_triton, "forward")

sys.path.insert(0, sys.argv[3])
import rnn_triton
twin = rnn_triton.LSTM(3, 5, num_layers=2)
twin.load_state_dict(layer.state_dict())
z, _ = twin(x)
assert torch.equal(y, z) and x.grad.abs().sum() > 0
print("loaded", hub.__name__)
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    run(sys.executable, str(ROOT / "hub" / "build.py"), str(folder))
    return folder


@pytest.mark.parametrize("loader", ["importlib", "kernels"])
def test_the_layout_of_the_hub_is_loaded_from_a_folder_beside_the_package(hub, loader):
    if loader == "kernels" and not list(importlib.metadata.distributions(name="kernels")):
        pytest.skip("the package kernels is not installed: pip install '.[hub]'")
    said = run(sys.executable, "-c", LOADS_A_KERNEL, str(hub), loader, str(ROOT), cwd=hub)  # where no folder is called kernels
    assert re.search(r"^loaded _rnn_triton_cpu_", said, re.MULTILINE)


def test_the_layout_of_the_hub_is_relative_and_alike_for_all_backends(hub):
    variants = sorted((hub / "build").iterdir())
    assert [variant.name for variant in variants] == ["torch-cpu", "torch-cuda"]
    cpu, cuda = ({p.relative_to(v): p for v in [variant] for p in v.rglob("*") if p.is_file() and p.suffix != ".pyc"} for variant in variants)
    assert set(cpu) == set(cuda) and Path("kernels/one_cta.py") in cpu and Path("plan/measured.json") in cpu
    for path in cpu.values():
        absolute = re.findall(r"^\s*(?:from|import) (?:rnn_triton|bench|kernels)\b.*", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert absolute == [], path


class Tritonbench:
    """What its BenchmarkOperator gives an operator"""

    mode, device, dtype = "fwd_bwd", "cpu", torch.float64

    def __init__(self, tb_args, extra_args):
        self.extra_args = extra_args


@pytest.mark.parametrize("cell", ["RNN", "GRU", "LSTM"])
def test_the_operator_of_tritonbench(monkeypatch, cell):
    """on a stand-in of tritonbench: both layers compute the same, in both passes"""
    marked = []
    decorator = lambda **options: lambda method: marked.append((method.__name__, options)) or method  # noqa: E731
    module = types.ModuleType("tritonbench.utils.triton_op")
    module.BenchmarkOperator, module.Mode = Tritonbench, types.SimpleNamespace(BWD="bwd", FWD_BWD="fwd_bwd")
    module.register_benchmark = module.register_metric = module.register_x_val = decorator
    for name in ("tritonbench", "tritonbench.utils"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "tritonbench.utils.triton_op", module)
    monkeypatch.delitem(sys.modules, "bench.tritonbench.operator", raising=False)
    monkeypatch.delitem(sys.modules, "bench.tritonbench", raising=False)
    operator = importlib.import_module("bench.tritonbench.operator")
    monkeypatch.setattr(operator, "SHAPES", ((4, 2, 3),))

    op = operator.Operator(None, ["--cell", cell, "--layers", "2"])
    (inputs,) = op.get_input_iter()
    results = []
    for name, options in [(name, options) for name, options in marked if name in ("torch_nn", "triton_persistent")]:
        fn = getattr(op, name)(*inputs)
        inputs[0].grad = None
        op.get_bwd_fn(fn)()
        results.append((fn(), inputs[0].grad))
        assert options == ({"baseline": True} if name == "torch_nn" else {})
    torch.testing.assert_close(*results, rtol=0, atol=1e-12)  # 2^-53 for some hundred terms below 1
    gates = {"RNN": 1, "GRU": 3, "LSTM": 4}[cell]
    assert op.get_x_val(inputs) == (4, 2, 3)
    assert op.flops("", inputs, None) == 3 * 2 * (4 * 2) * 2 * gates * (3 * 3 + 3 * 3)  # passes, T B, layers, weights
    assert op.us_per_step("", inputs, types.SimpleNamespace(latency=0.2)) == pytest.approx(50)

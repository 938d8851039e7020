"""The package as it is built and as it lies in a checkout."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import rnn_triton

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("cells", "interpret", "launch", "modules", "op", "plan")
BENCH = ("cases", "records", "instruments", "providers", "measure", "first_run", "compiled", "model", "show")
PACKAGES = {
    "rnn_triton": "rnn_triton", "rnn_triton/kernels": "kernels", "rnn_triton/bench": "bench",
    **{f"rnn_triton/{room}": f"rnn_triton/{room}" for room in ROOMS},
    **{f"rnn_triton/bench/{room}": f"bench/{room}" for room in BENCH},
}  # fmt: skip

DATA = {"rnn_triton/py.typed", "rnn_triton/plan/measured.json", "rnn_triton/bench/show/page.html"}


def run(*command, cwd=ROOT):
    done = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


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

"""The worker processes: pytest runs on small projects that share tests/conftest.py and tests/support."""

import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace

import pytest
from support import workers

HERE = Path(__file__).parent


class Result:
    def __init__(self, process, xml):
        self.code, self.output = process.returncode, process.stdout + process.stderr
        self.outcomes, self.texts, self.seconds = {}, {}, {}
        for case in ElementTree.parse(xml).iter("testcase"):
            problems = [child for child in case if child.tag in ("failure", "error", "skipped")]
            name = case.get("name")
            assert name not in self.outcomes, f"{name} reported twice"
            self.outcomes[name] = problems[0].tag if problems else "passed"
            self.texts[name] = "".join(f"{p.get('message')}\n{p.text}" for p in problems)
            self.seconds[name] = float(case.get("time"))


def run(directory, files, *arguments):
    """pytest on `files` {path: source} in `directory`, with this project's conftest."""
    shutil.copy(HERE / "conftest.py", directory)
    shutil.copytree(HERE / "support", directory / "support", dirs_exist_ok=True)
    for name, source in files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(dedent(source))
    xml = directory / "result.xml"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        f"--rootdir={directory}",
        f"--junitxml={xml}",
    ]
    process = subprocess.run(
        [*command, *arguments], cwd=directory, capture_output=True, text=True, timeout=1200, check=False
    )
    return Result(process, xml)


MIXED = """
    import ctypes, os, subprocess, sys, time
    import pytest

    interpret = pytest.mark.interpret

    @pytest.fixture(scope="module")
    def kept():
        return os.getpid()

    @pytest.fixture
    def broken():
        raise LookupError("broken fixture")

    def test_here(kept):
        assert "RNN_TRITON_TEST_WORKER" not in os.environ

    @interpret
    def test_environment():
        assert os.environ["TRITON_INTERPRET"] == "1"
        assert os.environ["RNN_TRITON_TEST_WORKER"] == "interpret"
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ""

    @interpret
    def test_fails():
        print("printed before")
        assert [1, 2, 3] == [1, 5, 3]

    @interpret
    def test_hangs():
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        with open("child.pid", "w") as file:
            file.write(str(child.pid))
        time.sleep(60)

    @interpret
    def test_exits():
        os._exit(7)

    @interpret
    def test_segfaults():
        ctypes.string_at(0)

    @interpret
    def test_setup(broken):
        pass

    @interpret
    def test_skips():
        pytest.skip("not here")

    @interpret
    @pytest.mark.xfail(reason="known")
    def test_xfails():
        raise ValueError

    @interpret
    @pytest.mark.parametrize("i", range(12))
    def test_many(i):
        time.sleep(0.05)
"""


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    files = {"test_a.py": MIXED, "test_b.py": "def test_after():\n    pass\n"}
    directory = tmp_path_factory.mktemp("mixed")
    result = run(directory, files, "-v", "--worker-timeout=2", "--worker-patience=4", "--durations=1")
    result.child = int((directory / "child.pid").read_text())
    return result


def test_every_test_is_reported_once_in_order(mixed):
    names = ["here", "environment", "fails", "hangs", "exits", "segfaults", "setup", "skips", "xfails"]
    names += [f"many[{i}]" for i in range(12)] + ["after"]
    assert list(mixed.outcomes) == [f"test_{name}" for name in names]
    verbose = [line.split("::")[1].split()[0] for line in mixed.output.splitlines() if line.endswith("%]")]
    assert verbose == list(mixed.outcomes)


def test_outcomes(mixed):
    special = dict.fromkeys(["fails", "hangs", "exits", "segfaults"], "failure")
    special |= {"setup": "error", "skips": "skipped", "xfails": "skipped"}
    expected = {name: special.get(name.removeprefix("test_"), "passed") for name in mixed.outcomes}
    assert mixed.outcomes == expected
    assert mixed.code == 1
    assert "4 failed, 15 passed, 1 skipped, 1 xfailed, 1 error" in mixed.output


def test_failure_text_comes_through(mixed):
    assert "At index 1 diff: 2 != 5" in mixed.texts["test_fails"]
    assert "printed before" in mixed.output
    assert "LookupError: broken fixture" in mixed.texts["test_setup"]


def test_hang_is_killed_and_says_where(mixed):
    assert "in test_hangs" in mixed.texts["test_hangs"]  # the stack it hung in
    wall = spent(mixed.texts["test_hangs"], "of 2 s of CPU time", "of 8 s of wall time")[1]
    assert wall >= 8 and mixed.seconds["test_hangs"] < 60  # which it would sleep
    assert "test_hangs" in mixed.output.split("slowest 1 durations")[1]


def test_hang_takes_its_children_along(mixed):
    state = Path(f"/proc/{mixed.child}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"  # Z: dead, not yet reaped by init


def test_crashes_are_that_tests_failure(mixed):
    assert "exit status 7" in mixed.texts["test_exits"]
    assert "SIGSEGV" in mixed.texts["test_segfaults"]
    assert "in test_segfaults" in mixed.texts["test_segfaults"]


SPENDS = """
    import os, subprocess, sys
    import pytest

    pytestmark = pytest.mark.interpret

    def test_spins():
        while True:
            pass

    def test_child_spins():
        subprocess.run([sys.executable, "-c", "while True: pass"])

    def test_stopped_for_a_while():
        subprocess.run(["sh", "-c", f"kill -STOP {os.getpid()}; sleep 2; kill -CONT {os.getpid()}"])
"""


def spent(text, cpu_limit, wall_limit):
    """Seconds of CPU and of wall time of a test that timed out"""
    found = re.search(rf"timed out: (\S+) {cpu_limit}, (\S+) {wall_limit};", text)
    return [float(seconds) for seconds in found.groups()]


def test_limit_is_of_cpu_time_whoever_spends_it(tmp_path):
    result = run(tmp_path, {"test_spends.py": SPENDS}, "--worker-timeout=1", "--worker-patience=200")
    assert list(result.outcomes.values()) == ["failure", "failure", "passed"]
    assert result.seconds["test_stopped_for_a_while"] >= 2
    for name in ("test_spins", "test_child_spins"):
        assert 1 <= spent(result.texts[name], "of 1 s of CPU time", "of 200 s of wall time")[0]
        assert f"in {name}" in result.texts[name]


class Standstill:
    """The connection to a worker that answers at the fourth look, and a clock that jumps by hours before the third"""

    def __init__(self):
        self.looks, self.seconds = 0, 0.0

    def poll(self, pause):
        self.looks += 1
        self.seconds += 20_000 if self.looks == 2 else pause
        return self.looks == 4

    def recv(self):
        return "answer"

    def monotonic(self):
        return self.seconds


def test_a_machine_that_stood_still_ends_no_test(monkeypatch):
    worker = workers.Worker([], None, None)
    worker.connection = clock = Standstill()
    worker.process = SimpleNamespace(pid=0)
    monkeypatch.setattr(workers, "time", clock)
    assert worker._exchange(workers.Limit(60, 600)) == "answer"


SMALL = """
    import os, pathlib, time
    import pytest

    pytestmark = pytest.mark.interpret

    @pytest.fixture(scope="module")
    def shared():
        with open("set_up", "a") as file:
            file.write("x")
        yield
        with open("torn_down", "a") as file:
            file.write("x")

    def meet(mine, other):
        pathlib.Path(mine).touch()
        limit = time.monotonic() + 100
        while not pathlib.Path(other).exists():
            assert time.monotonic() < limit, "alone"
            time.sleep(0.01)

    def test_one(shared):
        meet("one", "two")

    def test_two(shared):
        meet("two", "one")

    def test_three(shared):
        raise ValueError

    def test_four(shared):
        pass
"""


def test_two_workers_at_once(tmp_path):
    result = run(tmp_path, {"test_small.py": SMALL}, "--workers=2")
    assert list(result.outcomes.values()) == ["passed", "passed", "failure", "passed"]


def test_one_worker_keeps_module_fixtures(tmp_path):
    (tmp_path / "two").touch()
    result = run(tmp_path, {"test_small.py": SMALL}, "--workers=1")
    assert list(result.outcomes.values()) == ["passed", "passed", "failure", "passed"]
    assert (tmp_path / "set_up").read_text() == (tmp_path / "torn_down").read_text() == "x"


def test_k_and_x(tmp_path):
    result = run(tmp_path, {"test_small.py": SMALL}, "-k", "three or four", "-x")
    assert list(result.outcomes) == ["test_three"]
    assert "2 deselected" in result.output
    assert "stopping after 1 failures" in result.output


def test_worker_that_cannot_start_fails_its_tests(tmp_path):
    source = "import os, pytest\nif 'TRITON_INTERPRET' in os.environ:\n    {}\n" + dedent(SMALL)
    result = run(tmp_path, {"test_small.py": source.format("raise ImportError('only there')")})
    assert list(result.outcomes.values()) == ["failure"] * 4
    assert all("ImportError: only there" in text for text in result.texts.values())
    dies = source.format("open('starts', 'a').write('x'); os._exit(3)")
    result = run(tmp_path, {"test_small.py": dies}, "--workers=1")
    assert list(result.outcomes.values()) == ["failure"] * 4
    assert all("no worker" in text and "exit status 3" in text for text in result.texts.values())
    assert (tmp_path / "starts").read_text() == "x"  # not tried again for each test


LONG = """
    import time
    import pytest

    def test_short():
        pass

    @pytest.mark.long
    def test_long():
        pass

    @pytest.mark.long
    @pytest.mark.interpret
    def test_slow():
        began = time.process_time()
        while time.process_time() < began + 0.7:
            pass
"""


@pytest.mark.parametrize(
    "arguments, names",
    [
        ([], ["test_short"]),
        (["--long"], ["test_short", "test_long", "test_slow"]),
        (["-m", "long"], ["test_long", "test_slow"]),
    ],
)
def test_long_is_asked_for(tmp_path, arguments, names):
    result = run(tmp_path, {"test_long.py": LONG}, "--worker-timeout=0.4", *arguments)
    assert result.outcomes == dict.fromkeys(names, "passed")  # a long test may take three times the time-out


THIN = """
    import pytest

    @pytest.mark.thin(3)
    @pytest.mark.parametrize("n", range(30))
    def test_of_many(n):
        pass

    def test_always():
        pass

    @pytest.mark.long
    def test_long():
        pass
"""


def test_one_in_a_few_of_many_cases(tmp_path):
    arguments = ([], [], ["--cases=all"], ["--cases=others"], ["--long"])
    few, again, cases, others, every = (run(tmp_path, {"test_thin.py": THIN}, *more).outcomes for more in arguments)
    assert few == again and 6 <= len(few) <= 16 and few.keys() < cases.keys() < every.keys()
    assert every.keys() - cases.keys() == {"test_long"} and len(every) == 32
    assert others.keys() == every.keys() - few.keys()


def test_a_test_all_of_whose_cases_are_thinned_out_is_an_error(tmp_path):
    for n, found in ((1000, "test_of_many is marked thin, and none of its cases runs by default"), (1, "31 deselected")):
        result = run(tmp_path, {"test_thin.py": THIN.replace("thin(3)", f"thin({n})")}, "-k", "always or long")
        assert (result.code == 0) == (n == 1) and found in result.output


SHARED = """
    import pytest

    pytestmark = [pytest.mark.compiled, pytest.mark.together]

    @pytest.fixture(scope="module")
    def made(tmp_path_factory):
        with open("made", "a") as log:
            log.write("x")

    @pytest.mark.parametrize("n", range(6))
    def test_uses_it(made, n):
        pass
"""


def test_a_file_that_stays_together(tmp_path):
    run(tmp_path, {f"test_{name}.py": SHARED.replace("uses_it", name) for name in "ab"})
    assert (tmp_path / "made").read_text() == "xx"


DEVICE = """
    import os
    import pytest

    def test_device(device):
        worker = {"cpu": "interpret", "cuda": "gpu"}[device]
        assert os.environ["RNN_TRITON_TEST_WORKER"] == worker
        assert ("TRITON_INTERPRET" in os.environ) == (device == "cpu")

    @pytest.mark.gpu
    def test_warmed():
        with open("compiled") as file:
            assert sorted(file.read().split()) == ["1", "2"]

    @pytest.mark.gpu
    def test_hang():
        import time
        time.sleep(60)

    @pytest.mark.gpu
    def test_next():
        pass
"""
# stand-ins for a machine with a GPU and for the package's planner
GPU = {
    "torch.py": """
        class cuda:
            is_available = staticmethod(lambda: {available})
            get_device_capability = staticmethod(lambda: (9, 0))
    """,
    "rnn_triton/__init__.py": "",
    "rnn_triton/errors.py": "class UnsupportedError(NotImplementedError):\n    pass\n",
    "bench/__init__.py": "",
    "bench/compiled/__init__.py": "",
    "bench/compiled/planned.py": """
        from types import SimpleNamespace
        def planned():
            return [(i, SimpleNamespace(capability=80 if i == 5 else 90)) for i in range(1, 6)]
    """,
    "rnn_triton/plan/choose.py": """
        from ..errors import UnsupportedError
        def plan(problem, device):
            if problem == 3:
                raise UnsupportedError
            return problem
    """,
    "rnn_triton/launch/dispatch.py": """
        def compile_ahead(problem, plan, device):
            assert problem != 4, "does not compile"
            with open("compiled", "a") as file:
                file.write(f"{{problem}}\\n")
    """,
}


def test_gpu_tests_run_in_a_worker_after_the_warm_up(tmp_path):
    files = {name: source.format(available=True) for name, source in GPU.items()}
    result = run(tmp_path, {"test_gpu.py": DEVICE} | files, "--worker-timeout=2", "--worker-patience=4", "-v")
    names = ["test_device[cpu]", "test_device[cuda]", "test_warmed", "test_hang", "test_next"]
    assert result.outcomes == dict.fromkeys(names, "passed") | {"test_hang": "failure"}
    assert "does not compile" in result.output
    result = run(tmp_path, {}, "-k", "test_next")
    assert result.outcomes == {"test_next": "passed"}
    assert result.code == 1, "a kernel that does not compile ahead is a failure even where every test passes"


def test_gpu_tests_need_a_gpu(tmp_path):
    files = {name: source.format(available=False) for name, source in GPU.items()}
    result = run(tmp_path, {"test_gpu.py": DEVICE} | files)
    assert result.outcomes == {"test_device[cpu]": "passed"}
    assert "4 deselected" in result.output
    assert not (tmp_path / "compiled").exists()


def test_interpreter_tests_run_here_when_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    source = """
        import os, pytest

        @pytest.mark.interpret
        def test_interpreted():
            assert "RNN_TRITON_TEST_WORKER" not in os.environ

        def test_other():
            pass
    """
    assert run(tmp_path, {"test_x.py": source}).outcomes == {"test_interpreted": "passed"}

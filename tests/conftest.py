"""How tests run.

interpret   in a worker process with TRITON_INTERPRET=1, which must be set before Triton is imported
ptx         in a worker process in which kernels are compiled to PTX and that is executed on the CPU (tests/ptx_executor)
compiled    in a worker process, beside the others: they take as long as all that is not interpreted together
gpu         in one worker process, only where there is a CUDA device; kernels are compiled in parallel first
long        only with --long, --cases=others or -m long
together    in a module: all its tests in one worker, and with the time of long ones, for what its fixtures make takes long
thin(n)     of all its cases but those on a GPU or the executor about one in n, the same ones every time; the others
            with --cases or --long
others      here

A test that takes the argument `device` runs twice: "cpu" by the interpreter, "cuda" where there is a GPU.  Marked
`executed` it runs a third time, on CPU tensors by the executor: its name has "ptx" where the others have the device.  Most of
these cases are long; the marker's arguments are the names of those that are not.
With TRITON_INTERPRET=1 in the environment only the interpreter tests run, in this process (for a debugger).
"""

import os
import sys
import zlib

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tensors are tiny, and the workers are the parallelism

import pytest
from support import warmup, workers

MARKERS = {
    "compiled": "compiles kernels ahead of time and looks at the machine code, in a worker process",
    "executed": "runs on the executor of PTX, too: by default the cases with these names, with --long all",
    "gpu": "needs a CUDA device; runs in a worker process that is restarted after a time-out",
    "interpret": "runs kernels in Triton's interpreter, in a worker process with TRITON_INTERPRET=1",
    "long": "deselected unless --long, --cases=others or -m long is given",
    "together": "all tests of the file in one worker",
    "ptx": "runs kernels compiled to PTX on the executor, in a worker process",
    "thin": "about n - 1 in n cases deselected unless --cases or --long is given, told by a checksum of their names",
}
KINDS = ("gpu", "interpret", "ptx", "compiled")  # of workers
IN_WORKER = "RNN_TRITON_TEST_WORKER"  # set, to one of KINDS, in the workers' environment


EXECUTOR = pytest.StashKey()  # of tests marked ptx, in their worker


def pytest_addoption(parser):
    group = parser.getgroup("rnn_triton")
    group.addoption("--long", action="store_true", help="run the long tests too")
    meaning = "few (the default), every case of thin tests (all), or what is then left out, the long ones among it (others)"
    group.addoption("--cases", choices=("few", "all", "others"), default="few", help=meaning)
    group.addoption("--workers", type=int, default=2, metavar="N", help="processes for interpreter tests (2)")
    meaning = "seconds of CPU time for one test in a worker, three times that for a long one (60)"
    group.addoption("--worker-timeout", type=float, default=60, metavar="S", help=meaning)
    meaning = "seconds of wall time for each one of CPU time that a test in a worker may take (10)"
    group.addoption("--worker-patience", type=float, default=10, metavar="N", help=meaning)


def pytest_configure(config):
    for name, meaning in MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")
    if os.environ.get(IN_WORKER) == "ptx":
        from support import executed

        config.stash[EXECUTOR] = executed.install()


def pytest_generate_tests(metafunc):
    if "device" in metafunc.fixturenames:
        cases = [
            pytest.param("cpu", marks=pytest.mark.interpret),
            pytest.param("cuda", marks=pytest.mark.gpu),
        ]
        if metafunc.definition.get_closest_marker("executed"):
            cases.append(pytest.param("cpu", marks=pytest.mark.ptx, id="ptx"))
        metafunc.parametrize("device", cases)


def pytest_collectreport(report):
    """A name that `executed` has and no case would leave that case out, and `thin` a whole test, and nobody would know."""
    tests = {}
    for item in report.result or ():
        if isinstance(item, pytest.Function):
            tests.setdefault(item.originalname, []).append(item)
    for name, items in tests.items():
        executed = items[0].get_closest_marker("executed")
        if executed and (unknown := set(executed.args) - {item.callspec.id for item in items}):
            raise pytest.UsageError(f"{name} is marked executed with names that no case has: {sorted(unknown)}")
        if items[0].get_closest_marker("thin"):
            here = [item for item in items if kind(item) not in ("gpu", "ptx")]
            if all(is_long(item) or thinned_out(item) for item in here):
                raise pytest.UsageError(f"{name} is marked thin, and none of its cases runs by default")


@pytest.fixture(autouse=True)
def _schedules(request):
    """A test's launches on the executor have the same schedules whatever ran before."""
    if EXECUTOR in request.config.stash:
        request.config.stash[EXECUTOR].launches = zlib.crc32(request.node.name.encode()) % 65536


@pytest.fixture(autouse=True)
def _precision_of_cudnn():
    """A benchmark session sets the precision of cuDNN's RNNs for its process.  The next test finds it as it was."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    rnn = torch.backends.cudnn.rnn
    before = rnn.fp32_precision
    yield
    if rnn.fp32_precision != before:
        rnn.fp32_precision = before


def kind(item):
    """The worker a test needs, None for none."""
    return next((name for name in KINDS if item.get_closest_marker(name)), None)


def thinned_out(item):
    """Is this one of the cases that `thin` leaves out?  By its name: with strides some values would never be drawn."""
    thin = item.get_closest_marker("thin")
    return thin is not None and kind(item) not in ("gpu", "ptx") and zlib.crc32(item.name.encode()) % thin.args[0] != 0


def is_long(item):
    """Does it only run with --long?"""
    executed = item.get_closest_marker("executed")
    if executed and kind(item) == "ptx":
        return item.callspec.id not in executed.args
    return item.get_closest_marker("long") is not None


def has_cuda():
    import torch

    return torch.cuda.is_available()


@pytest.hookimpl(trylast=True)  # after -k and -m
def pytest_collection_modifyitems(config, items):
    if IN_WORKER in os.environ:
        return  # the parent has selected
    want_long = config.option.long or "long" in config.option.markexpr
    interpreting = os.environ.get("TRITON_INTERPRET") == "1"
    cuda = None

    def wanted(item):
        nonlocal cuda
        if config.option.cases == "others":
            if not (is_long(item) or thinned_out(item)):
                return False
        elif not want_long and (is_long(item) or config.option.cases == "few" and thinned_out(item)):
            return False
        if interpreting:
            return kind(item) == "interpret"
        if kind(item) == "gpu":
            cuda = has_cuda() if cuda is None else cuda
            return cuda
        return True

    selected = [item for item in items if wanted(item)]
    if len(selected) < len(items):
        kept = set(selected)
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = selected


def environment(name):
    """Of the worker for tests marked `name`."""
    settings = {**os.environ, IN_WORKER: name}
    if name in ("interpret", "ptx"):
        settings["CUDA_VISIBLE_DEVICES"] = ""  # no GPU in sight
    if name == "interpret":
        settings["TRITON_INTERPRET"] = "1"
    return settings


def open_pool(session, name, items, count):
    option = session.config.option
    arguments = [f"--rootdir={session.config.rootpath}", "-p", "no:cacheprovider", f"--tb={option.tbstyle}"]
    arguments += ["--continue-on-collection-errors", *["-v"] * option.verbose, *["-l"] * option.showlocals]
    if session.config.inipath:
        arguments += ["-c", str(session.config.inipath)]
    arguments += sorted({str(item.path) for item in items})
    patient = [item.get_closest_marker("together") or is_long(item) for item in items]  # three times the limit
    seconds = [option.worker_timeout * (3 if p else 1) for p in patient]
    limits = [workers.Limit(cpu, cpu * option.worker_patience) for cpu in seconds]
    tests = [(item.nodeid, limit) for item, limit in zip(items, limits, strict=True)]
    processes = [
        workers.Worker(arguments, session.config.rootpath, environment(name))
        for _ in range(min(count, len(items)))
    ]
    together = {workers.file_of(item.nodeid) for item in items if item.get_closest_marker("together")}
    return workers.Pool(tests, processes, together)


POOLS = pytest.StashKey[dict]()
WARMUP_FAILURES = pytest.StashKey[list]()


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session):
    pools = session.config.stash[POOLS] = {}
    if (
        IN_WORKER in os.environ
        or os.environ.get("TRITON_INTERPRET") == "1"
        or session.config.option.collectonly
    ):
        return
    groups = {name: [item for item in session.items if kind(item) == name] for name in KINDS}
    if groups["gpu"]:
        session.config.stash[WARMUP_FAILURES] = warmup.compile_planned()
        pools["gpu"] = open_pool(session, "gpu", groups["gpu"], 1)
    if groups["compiled"]:
        pools["compiled"] = open_pool(session, "compiled", groups["compiled"], 2)
    for name in ("interpret", "ptx"):
        if groups[name]:
            pools[name] = open_pool(session, name, groups[name], session.config.option.workers)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item, nextitem):
    pool = item.config.stash[POOLS].get(kind(item))
    if pool is None:
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    answer, seconds = pool.result(item.nodeid)
    if isinstance(answer, str):
        reports = [
            pytest.TestReport(item.nodeid, item.location, {}, "failed", answer, "call", duration=seconds)
        ]
    else:
        rebuild = item.config.hook.pytest_report_from_serializable
        reports = [rebuild(config=item.config, data=data) for data in answer]
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    # fixtures of this process that were kept for an item of the same module
    item.session._setupstate.teardown_exact(nextitem)
    return True


def pytest_sessionfinish(session):
    for pool in session.config.stash.get(POOLS, {}).values():
        pool.close()
    if session.config.stash.get(WARMUP_FAILURES, []):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    for failure in config.stash.get(WARMUP_FAILURES, []):
        terminalreporter.section("kernel failed to compile ahead of the GPU tests", red=True)
        terminalreporter.write_line(failure)

"""The host side of stuck launches, without a GPU: the tests store into the word as a kernel would."""

import importlib.util
import re
import threading
import time

import pytest
import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget

from rnn_triton.errors import ExchangeError
from rnn_triton.launch import faults

CPU = torch.device("cpu")


def report(launch, group, step):
    """What a kernel stores; int32 shifted as int64, as there."""
    return launch << 44 | group << 32 | step


@pytest.fixture(autouse=True)
def own_state(monkeypatch):
    """Words and launch ids of this test alone"""
    for name in ("_words", "_views", "_ids", "_descriptions"):
        monkeypatch.setattr(faults, name, {})
    monkeypatch.setattr(faults, "_registered", 0)


@pytest.fixture
def cuda_without_gpu(monkeypatch):
    """CUDA devices as far as faults.py looks at them; returns what was waited for, and which device was current."""
    calls = []
    current = [0]

    class Context:
        def __init__(self, device):
            self.index = device if isinstance(device, int) else device.index

        def __enter__(self):
            self.before, current[0] = current[0], self.index

        def __exit__(self, *_):
            current[0] = self.before

    zeros = torch.zeros

    def pinned(*shape, pin_memory=False, **options):
        if pin_memory:
            calls.append(("pinned", current[0]))
        return zeros(*shape, **options)

    monkeypatch.setattr(torch, "zeros", pinned)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    monkeypatch.setattr(torch.cuda, "device", Context)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: calls.append(("synchronize", device.index)))
    return calls


class TestWord:
    def test_is_one_int64_and_zero(self):
        word = faults.word(CPU)
        assert (word.dtype, word.shape, word.device, word.item()) == (torch.int64, (1,), CPU, 0)

    def test_is_always_the_same(self):
        assert faults.word(CPU) is faults.word(CPU) is faults.word(torch.device("cpu", 0))

    def test_ignores_the_default_device(self):
        with torch.device("meta"):
            assert faults.word(CPU).device == CPU

    def test_of_several_threads_is_one(self, monkeypatch):
        barrier = threading.Barrier(8)
        zeros = torch.zeros

        def slow(*arguments, **options):
            time.sleep(0.01)
            return zeros(*arguments, **options)

        monkeypatch.setattr(torch, "zeros", slow)
        words = []

        def work():
            barrier.wait()
            words.append(faults.word(CPU))

        in_threads(work, 8)
        assert len({id(word) for word in words}) == 1

    def test_of_cuda_devices(self, cuda_without_gpu):
        """Pinned, each by its own device's context; without an index it is the current device's."""
        words = [faults.word(torch.device("cuda", i)) for i in (0, 1)]
        assert cuda_without_gpu == [("pinned", 0), ("pinned", 1)]
        assert words[0] is not words[1]
        assert faults.word(torch.device("cuda")) is words[0]
        with torch.cuda.device(1):
            assert faults.word(torch.device("cuda")) is words[1]
        assert all(faults.word(CPU) is not word for word in words)


class TestRegister:
    def test_same_description_same_id(self):
        first, second = faults.register("first"), faults.register("second")
        assert 0 < first != second > 0
        assert (faults.register("first"), faults.register("second")) == (first, second)

    def test_ids_wrap_and_the_oldest_is_forgotten(self, monkeypatch):
        monkeypatch.setattr(faults, "_IDS", 3)
        assert [faults.register(name) for name in "abcd"] == [1, 2, 3, 1]
        assert len(faults._ids) == len(faults._descriptions) == 3
        assert faults.register("d") == 1
        assert faults.register("a") == 2  # anew; b is forgotten
        for i in range(100):
            faults.register(str(i))
        assert len(faults._ids) == len(faults._descriptions) == 3

    def test_every_id_fits_into_its_bits(self):
        assert 0 < faults._IDS < 2**19
        torch.tensor([report(faults._IDS, 2**12 - 1, 2**31 - 1)], dtype=torch.int64)

    def test_of_several_threads(self, monkeypatch):
        class Slow(dict):  # who finds nothing is overtaken
            def get(self, key):
                found = super().get(key)
                if found is None:
                    time.sleep(0.002)
                return found

        monkeypatch.setattr(faults, "_ids", Slow())
        barrier = threading.Barrier(8)
        got = []

        def work():
            barrier.wait()
            got.append([faults.register(f"{i}") for i in range(5)])

        in_threads(work, 8)
        assert all(ids == got[0] for ids in got)
        assert sorted(got[0]) == [1, 2, 3, 4, 5]


class TestCheck:
    def test_says_nothing_without_a_report(self):
        faults.check(CPU)  # there is no word yet
        faults.word(CPU)
        faults.check(CPU)

    @pytest.mark.parametrize("group, step", [(0, 0), (7, 3), (2**12 - 1, 2**31 - 1)])
    def test_names_launch_group_and_step_once(self, group, step):
        faults.register("another launch")
        launch = faults.register("forward of bf16 T=9 B=8 I=64 H=1024")
        faults.word(CPU)[0] = report(launch, group, step)
        text = rf"^forward of bf16 T=9 B=8 I=64 H=1024 got stuck on cpu: group {group} .* at time step {step} "
        with pytest.raises(ExchangeError, match=text) as caught:
            faults.check(CPU)
        assert "outputs are NaN" in str(caught.value)
        assert "the pass after it is unaffected" in str(caught.value)
        assert faults.word(CPU).item() == 0
        faults.check(CPU)

    def test_is_a_runtime_error(self):
        faults.word(CPU)[0] = report(faults.register("launch"), 0, 0)
        with pytest.raises(RuntimeError):
            faults.check(CPU)

    def test_the_last_of_several_is_named(self):
        for name in ("first", "second"):
            faults.word(CPU)[0] = report(faults.register(name), 1, 2)
        with pytest.raises(ExchangeError, match="^second got stuck .* this is the last of them"):
            faults.check(CPU)
        faults.check(CPU)

    def test_of_a_forgotten_launch(self):
        """A graph captured long ago may be replayed after its id is gone."""
        faults.word(CPU)[0] = report(77, 1, 2)
        with pytest.raises(ExchangeError, match="^launch 77, .* group 1 .* step 2 "):
            faults.check(CPU)

    def test_devices_are_separate(self, cuda_without_gpu):
        one, two = (torch.device("cuda", i) for i in (0, 1))
        faults.word(one)
        faults.word(two)[0] = report(faults.register("launch"), 0, 5)
        faults.check(one)
        faults.check(torch.device("cuda"))  # the current one, 0
        faults.check(CPU)
        with pytest.raises(ExchangeError, match="on cuda:1: "):
            faults.check(two)
        faults.word(one)[0] = report(faults.register("launch"), 0, 5)
        with pytest.raises(ExchangeError, match="on cuda:0: "):
            faults.check(torch.device("cuda"))

    def test_allocates_and_waits_for_nothing(self, cuda_without_gpu):
        faults.check(torch.device("cuda", 1))
        faults.check(torch.device("cuda"))
        assert cuda_without_gpu == []

    def test_one_thread_of_many_raises(self):
        launch = faults.register("launch")
        word = faults.word(CPU)
        for _ in range(50):
            word[0] = report(launch, 1, 2)
            barrier = threading.Barrier(8)
            raised = []

            def work(barrier=barrier, raised=raised):
                barrier.wait()
                try:
                    faults.check(CPU)
                except ExchangeError as error:
                    raised.append(error)

            in_threads(work, 8)
            assert len(raised) == 1

    def test_a_report_taken_by_another_thread_meanwhile_is_not_reported_twice(self):
        """`_report` after the word was seen set, and cleared by the other thread: nothing"""
        faults.word(CPU)
        faults._report(CPU, faults._views[CPU])

    def test_costs_next_to_nothing(self):
        """0.15 us measured"""
        faults.word(CPU)
        times = []
        for _ in range(5):
            began = time.process_time()
            for _ in range(1000):
                faults.check(CPU)
            times.append((time.process_time() - began) / 1000)
        assert min(times) < 5e-6


class TestSynchronize:
    def test_checks_the_cpu_where_there_is_no_gpu(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        faults.synchronize()
        faults.synchronize("cpu")
        faults.word(CPU)[0] = report(faults.register("launch"), 0, 0)
        with pytest.raises(ExchangeError):
            faults.synchronize()
        faults.word(CPU)[0] = report(faults.register("launch"), 0, 0)
        with pytest.raises(ExchangeError):
            faults.synchronize("cpu")

    def test_waits_for_the_current_cuda_device(self, cuda_without_gpu):
        with torch.cuda.device(1):
            faults.synchronize()
        assert cuda_without_gpu == [("synchronize", 1)]

    @pytest.mark.parametrize("which", ["cuda:1", torch.device("cuda:1")])
    def test_waits_before_it_looks(self, cuda_without_gpu, monkeypatch, which):
        word = faults.word(torch.device("cuda", 1))
        launch = faults.register("launch")
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: word.fill_(report(launch, 2, 3)))
        with pytest.raises(ExchangeError, match="^launch got stuck on cuda:1: group 2 "):
            faults.synchronize(which)

    @pytest.mark.parametrize("which", ["no such device", "meta"])
    def test_bad_device_gets_torchs_message(self, which):
        with pytest.raises(Exception) as theirs:
            torch.cuda.synchronize(torch.device(which))
        with pytest.raises(type(theirs.value), match=re.escape(str(theirs.value))):
            faults.synchronize(which)


class TestAfterLaunch:
    def test_does_nothing_by_default(self, cuda_without_gpu):
        device = torch.device("cuda", 0)
        faults.word(device)[0] = report(faults.register("launch"), 0, 0)
        cuda_without_gpu.clear()
        faults.after_launch(device)
        assert cuda_without_gpu == []
        assert faults.word(device).item() != 0

    def test_waits_and_checks_when_asked_to(self, cuda_without_gpu, monkeypatch):
        monkeypatch.setattr(faults, "_SYNC", True)
        device = torch.device("cuda", 1)
        faults.after_launch(device)
        assert cuda_without_gpu == [("synchronize", 1)]
        faults.word(device)[0] = report(faults.register("launch"), 0, 0)
        with pytest.raises(ExchangeError):
            faults.after_launch(device)

    def test_checks_the_cpu_when_asked_to(self, monkeypatch):
        monkeypatch.setattr(faults, "_SYNC", True)
        faults.after_launch(CPU)
        faults.word(CPU)[0] = report(faults.register("launch"), 0, 0)
        with pytest.raises(ExchangeError):
            faults.after_launch(CPU)

    def test_leaves_a_capture_alone(self, cuda_without_gpu, monkeypatch):
        """Of the device's own stream, not the current device's"""
        monkeypatch.setattr(faults, "_SYNC", True)
        capturing = lambda: torch.cuda.current_device() == 1  # noqa: E731
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", capturing)
        faults.after_launch(torch.device("cuda", 1))
        assert cuda_without_gpu == []
        faults.after_launch(torch.device("cuda", 0))
        assert cuda_without_gpu == [("synchronize", 0)]

    @pytest.mark.parametrize("value, expected", [(None, False), ("", False), ("0", False), ("1", True)])
    def test_is_asked_by_the_environment_at_import(self, monkeypatch, value, expected):
        if value is None:
            monkeypatch.delenv("RNN_TRITON_SYNC", raising=False)
        else:
            monkeypatch.setenv("RNN_TRITON_SYNC", value)
        spec = importlib.util.spec_from_file_location("rnn_triton.launch.faults_again", faults.__file__)
        again = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(again)
        assert again._SYNC == expected



def in_threads(work, count):
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@triton.jit(do_not_specialize=["launch", "group", "step"])  # as the kernels: the int 1 would be a constexpr, without .to
def _store_report(ptr, launch, group, step):
    tl.store(ptr, (launch.to(tl.int64) << 44) | (group.to(tl.int64) << 32) | step)


@pytest.mark.compiled
def test_the_kernel_of_these_tests_compiles_with_any_integer(monkeypatch):
    """as a launch on an H200 would compile it; the first id of a launch is 1"""

    class Driver:
        get_current_device = staticmethod(lambda: 0)
        get_current_stream = staticmethod(lambda device: 0)
        get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))

    monkeypatch.setattr(triton.runtime.driver, "_active", Driver())
    first = faults.register("launch")
    assert first == 1
    kernels = [_store_report.warmup(torch.int64, launch, 1, 16, grid=(1,)) for launch in (first, 2, 16)]
    assert len({kernel.hash for kernel in kernels}) == 1


@pytest.mark.gpu
def test_a_kernels_report_arrives():
    """Pinned memory is visible to a kernel, and its store to the host, once the kernel has ended."""
    device = torch.device("cuda", torch.cuda.current_device())
    assert faults.word(device).is_pinned()
    for launch, group, step in ((faults.register("launch"), 3, 70_000), (faults._IDS, 2**12 - 1, 2**31 - 1)):
        _store_report[(1,)](faults.word(device), launch, group, step)
        with pytest.raises(ExchangeError, match=f"group {group} .* time step {step} "):
            faults.synchronize()
        faults.synchronize()


@pytest.mark.gpu
def test_a_captured_kernels_report_arrives(monkeypatch):
    """At replay; with RNN_TRITON_SYNC=1 too, the capture itself is left alone."""
    monkeypatch.setattr(faults, "_SYNC", True)
    device = torch.device("cuda", torch.cuda.current_device())
    arguments = (faults.word(device), faults.register("launch"), 3, 5)
    _store_report[(1,)](*arguments)  # compiles
    with pytest.raises(ExchangeError):
        faults.after_launch(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        _store_report[(1,)](*arguments)
        faults.after_launch(device)
        faults.check(device)
    faults.synchronize()
    for _ in range(2):
        graph.replay()
        with pytest.raises(ExchangeError, match="group 3 .* time step 5 "):
            faults.synchronize(device)

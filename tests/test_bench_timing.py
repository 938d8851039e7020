"""What is timed, and how: on a GPU that logs what is done (support/bench_gpu.py), and by faults planted in the source."""

import itertools
import math
import statistics
from types import SimpleNamespace

import pytest
import torch
from support import bench_dry
from support.bench_gpu import CLOCK_GHZ, GPU, L2, Call
from support.bench_mutants import FAULTS, changed

from bench.cases import case as cases
from bench.cases import inputs, suites
from bench.instruments import timing
from bench.measure import run
from bench.providers import interface, registry, sessions, torch_nn
from rnn_triton.plan import hardware

CPU = torch.device("cpu")


def test_every_callable_has_an_equal_share_of_the_time():
    found = timing.counts({"fast": 1000.0, "slow": 10_000.0}, budget_s=0.5)
    assert found == {"fast": timing.MOST, "slow": 25}  # 0.25 s each
    assert timing.counts({"a": 50_000.0, "b": 1e6}, budget_s=0.1) == {"a": timing.FEWEST, "b": timing.FEWEST_LONG}
    assert timing.counts({}, 1.0) == {} and timing.counts({"a": 0.0}, 1.0) == {"a": timing.MOST}


@pytest.mark.parametrize("few, many", [(3, 200), (10, 64), (7, 7), (1, 5), (13, 100)])
def test_what_is_called_less_often_is_spread_over_the_whole_time(few, many):
    order = list(timing.turns({"few": few, "many": many}))
    assert (order.count("few"), order.count("many")) == (few, many)
    at = [i for i, name in enumerate(order) if name == "few"]
    gaps = [b - a for a, b in itertools.pairwise([-1, *at])]
    assert max(gaps) - min(gaps) <= 1 + math.ceil(many / few) - many // few
    assert order[-1] == "many" and "few" in order[-2:]  # to the end


def test_medians_of_what_nvidia_smi_says():
    lines = "1980, 3201, 400.5, 45\n1980, 3201, 500.5, 46\n[N/A], 3201, 600.5, 47\n345, 32"  # the last was cut short
    assert timing.telemetry_medians(lines) == {
        "sm_mhz": 1980.0, "memory_mhz": 3201.0, "power_w": 500.5, "temperature_c": 46.0,
    }  # fmt: skip
    assert timing.telemetry_medians("") == {} and "power_w" not in timing.telemetry_medians("1, 2, [N/A], 4")


# ---- what must hold of the measuring code, of its real modules and of those with a fault -----------------------------


def of_gpu(m, budget_s, *calls):
    """(GPU, what device_us gives) of calls, each the arguments of a Call"""
    gpu = GPU()
    with gpu.installed(m.timing):
        made = {how["name"]: Call(gpu, **how) for how in calls}
        return gpu, m.timing.device_us(made, m.timing.Flush("cuda"), budget_s)


def samples_are_device_time_of_a_cold_cache(m):
    _, found = of_gpu(m, 0.01, dict(name="a"), dict(name="b", us=300.0))
    assert len(found["a"].us) >= timing.FEWEST
    assert found["a"].us == pytest.approx([100 + Call.MISSES] * len(found["a"].us))
    assert found["b"].us == pytest.approx([300 + Call.MISSES] * len(found["b"].us))


def the_host_is_ahead_of_the_clock(m):
    """20 launches of 5 us that take the host 30 us each: 100 us of the device, 600 of the host"""
    gpu, found = of_gpu(m, 0.01, dict(name="a", kernels=20, us=5.0, host=30.0))
    assert found["a"].us == pytest.approx([100 + Call.MISSES] * len(found["a"].us))
    assert found["a"].late == 0 and found["a"].spin_us == pytest.approx(timing.SPIN * 600)
    assert gpu.log[-3:] == ["flush", "spin", "a"]


def what_cannot_be_queued_is_told(m):
    """A call that waits for the device is longer than any spin"""
    gpu = GPU()
    launch = Call(gpu, cold=0)

    def waits():
        launch()
        gpu.synchronize()

    with gpu.installed(m.timing):
        found = m.timing.device_us({"a": waits}, m.timing.Flush("cuda"), 0.01)["a"]
    assert found.late == len(found.us) and found.spin_us <= timing.LONGEST_SPIN_US
    _, found = of_gpu(m, 0.01, dict(name="a", kernels=100, us=1.0, host=1e3))  # 100 ms to queue
    assert found["a"].spin_us == timing.LONGEST_SPIN_US and found["a"].late == len(found["a"].us)


def callables_take_turns(m):
    assert "".join(m.timing.turns({"A": 3, "B": 3})) == "ABABAB" and list(m.timing.turns({})) == []
    gpu, found = of_gpu(m, 0.0, dict(name="A"), dict(name="B"))
    assert [name for name in gpu.log if name in "AB"][-2 * timing.FEWEST :] == ["A", "B"] * timing.FEWEST


def wall_time_ends_when_the_gpu_is_idle(m):
    gpu = GPU()
    with gpu.installed(m.timing):
        calls = {"a": Call(gpu, us=500.0, cold=1), "b": Call(gpu, us=50.0, cold=1)}

        def announce(name):
            gpu.launch(1e4)  # of someone else, still in the stream when the turn comes

        found = m.timing.wall_us(calls, 0.0, announce)
    assert found["a"] == pytest.approx([504.0] * timing.FEWEST) and found["b"] == pytest.approx([54.0] * timing.FEWEST)


def the_peak_is_that_of_the_call(m):
    gpu = GPU()
    gpu.allocate(10_000)
    gpu.allocate(-9_000)  # 1,000 bytes are held, and 10,000 were
    with gpu.installed(m.timing):
        assert m.timing.peak_bytes(Call(gpu, holds=300)) == 300


def a_graph_is_the_call_warmed_up_beside_the_stream(m):
    gpu = GPU()
    call, sides = Call(gpu, us=40.0), []

    def once():
        sides.append(gpu.side)
        call()
        return len(sides)

    with gpu.installed(m.timing):
        graph, result = m.timing.capture(once)
        assert sides == [True] * timing.WARMUP + [False]  # the last is the capture
        gpu.synchronize()
        before = gpu.now
        graph.replay()
        gpu.synchronize()
    assert gpu.now - before == pytest.approx(3 + 40) and result == timing.WARMUP + 1


class Clock:
    """bench_dry's, with graphs: a replay calls again what was captured, into the memory of its results, for all but `lost` of its
    tensors. device_us is 10 and a thousandth for each value of the results, and calls `meanwhile` when it has sampled."""

    def __init__(self, lost=(), meanwhile=lambda: None):
        self.lost, self.meanwhile, self.captured = lost, meanwhile, []

    def __getattr__(self, name):
        return getattr(bench_dry, name)

    def device_us(self, calls, flush, budget_s, announce=None):
        found = bench_dry.device_us(calls, flush, budget_s)
        self.meanwhile()
        return found

    def peak_bytes(self, call):
        return bench_dry._values(call())

    def capture(self, call):
        static = call()

        def replay():
            for i, (to, value) in enumerate(zip(run._tensors(static), run._tensors(call()), strict=True)):
                if i not in self.lost:
                    to.copy_(value)
            return static

        return SimpleNamespace(replay=replay), static


def measured(m, clock=None, name="h24-i10-b3-t20-fp32", chosen=("cudnn",), passes=cases.PASSES):
    found = m.run.measure(cases.Job(suites.parse(name), passes, chosen), CPU, clock or Clock())
    return {r["pass"]: r for r in found if r["provider"] == chosen[0]}


def every_time_is_of_the_call_it_names(m):
    for record in measured(m).values():
        assert record["status"] == "ok" and record["message"] == ""
        full, short = record["device_us"]["samples"], record["short_us"]["samples"]
        assert full > short and record["graph_us"]["samples"] == record["wall_us"]["samples"] == full
        assert record["peak_bytes"] == pytest.approx((full[0] - 10) * 1e3)
        assert (record["spin_us"], record["late"]) == (0.0, 0)


def a_replay_that_stops_early_has_no_time(m):
    for lost in (0, 1):  # y, hn
        for record in measured(m, Clock(lost=(lost,))).values():
            assert record["status"] == "ok" and record["device_us"]["samples"] and record["graph_us"]["samples"] == []
            assert record["message"].startswith(f"{run.WRONG_REPLAY}{'without gradients: ' * (record['pass'] == 'fwd')}{('y', 'hn')[lost]}:")
            assert run.fault(record)
    (record,) = measured(m, Clock(lost=(5,)), passes=("train",)).values()  # a gradient
    assert f"{run.WRONG_REPLAY}d" in record["message"] and record["graph_us"]["samples"] == []


def what_goes_wrong_while_timed_is_wrong(m):
    weights = []

    class Drifting(torch_nn.TorchRNN):
        def session(self, case, inputs):
            session = super().session(case, inputs)
            weights.append(session.module.weight_hh_l0.data)
            return session

    before = registry.PROVIDERS["loop"]
    registry.PROVIDERS["loop"] = Drifting()
    try:
        found = measured(m, Clock(meanwhile=lambda: weights[0].mul_(1.1)), chosen=("loop", "cudnn"))
    finally:
        registry.PROVIDERS["loop"] = before
    for record in found.values():
        assert record["status"] == "wrong" and record["message"].startswith("after it was timed: "), record["message"]


class Module(torch.nn.RNN):
    """Notes the modes it is called in"""

    def forward(self, *inputs):
        self.modes = self.training, torch.is_grad_enabled()
        return super().forward(*inputs)


def forward_is_in_eval_without_gradients(m):
    case = suites.parse("h8-b2-t3-fp32")
    module = Module(8, 8)
    session = m.sessions.ModuleSession(module, inputs.tensors(case, CPU))
    for _ in range(2):
        y, hn = session.forward()
        assert module.modes == (False, False) and not y.requires_grad and not hn.requires_grad
        session.train()
        assert module.modes == (True, True)


def a_session_sets_the_precision_of_its_case(m):
    rnn = torch.backends.cudnn.rnn
    before = rnn.fp32_precision
    try:
        for name, precision in (("h8-b2-t3-fp32", "tf32"), ("h8-b2-t3-fp32-ieee", "ieee"), ("h8-b2-t3-fp32", "tf32")):
            m.interface.set_precision(suites.parse(name))
            assert rnn.fp32_precision == precision
    finally:
        rnn.fp32_precision = before


CHECKS = {
    check.__name__: check
    for check in (
        samples_are_device_time_of_a_cold_cache, the_host_is_ahead_of_the_clock, what_cannot_be_queued_is_told,
        callables_take_turns, wall_time_ends_when_the_gpu_is_idle, the_peak_is_that_of_the_call,
        a_graph_is_the_call_warmed_up_beside_the_stream, every_time_is_of_the_call_it_names,
        a_replay_that_stops_early_has_no_time, what_goes_wrong_while_timed_is_wrong,
        forward_is_in_eval_without_gradients, a_session_sets_the_precision_of_its_case,
    )
}  # fmt: skip


@pytest.mark.parametrize("check", CHECKS)
def test_of_measuring(check):
    CHECKS[check](SimpleNamespace(timing=timing, run=run, sessions=sessions, interface=interface))


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_seen(name):
    fault = FAULTS[name]
    modules = SimpleNamespace(**({"timing": timing, "run": run, "sessions": sessions, "interface": interface} | {fault.file: changed(fault)}))
    with pytest.raises((AssertionError, RuntimeError)):
        CHECKS[fault.seen_by](modules)


def test_every_check_sees_a_fault():
    assert {fault.seen_by for fault in FAULTS.values()} == set(CHECKS)


def test_every_provider_sets_the_precision(monkeypatch):
    """of its own modules: what reads torch's switch runs in the case's precision"""
    case, seen = suites.parse("h8-b2-t3-l2-fp32-ieee"), []
    for name, provider in registry.PROVIDERS.items():
        monkeypatch.setattr(interface, "set_precision", lambda case, name=name: seen.append(name))
        if not provider.missing(CPU) and not provider.unsupported(case):
            provider.session(case, inputs.tensors(case, CPU))
    assert set(seen) == {"rnn_triton", "rnn_triton-layers", "cudnn", "cudnn-layers", "loop", "compile"}


@pytest.mark.gpu
def test_a_gpu_is_timed_right():
    """Spins of known length, bytes of a known number, a replay that is looked at"""
    cuda, flush = torch.device("cuda"), timing.Flush(torch.device("cuda"))
    calls = {f"{n}": lambda n=n: torch.cuda._sleep(n * 10**6) for n in (1, 3)}
    found = timing.device_us(calls, flush, 0.1)
    one, three = (statistics.median(found[name].us) for name in ("1", "3"))
    at_most = 1e6 / (hardware.of(cuda).clock_ghz * 1e3)  # a spin is no shorter than at the highest clock
    assert 0.98 * at_most < one < 4 * at_most and three == pytest.approx(3 * one, rel=0.05)
    assert all(timed.late == 0 and timed.spin_us > 0 for timed in found.values())
    # the host needs longer for 300 launches than the device, and none of its gaps is timed
    x = torch.zeros(1, device=cuda)
    many = timing.device_us({"many": lambda: [x.add_(1) for _ in range(300)]}, flush, 0.1)["many"]
    graph, _ = timing.capture(lambda: [x.add_(1) for _ in range(300)])
    replayed = timing.device_us({"graph": graph.replay}, flush, 0.1)["graph"]
    assert many.late == 0 and statistics.median(many.us) < 3 * statistics.median(replayed.us)
    assert timing.wall_us(calls, 0.05)["3"][0] > 0.98 * 3 * at_most
    held = torch.empty(2**24, dtype=torch.uint8, device=cuda)
    assert timing.peak_bytes(lambda: torch.empty(2**22, dtype=torch.uint8, device=cuda)) == 2**22 and held.numel()
    graph, result = timing.capture(lambda: x + 1)
    x.fill_(41)
    result.fill_(math.nan)
    graph.replay()
    assert result.item() == 42


def test_the_gpu_here_is_none_of_the_real_one():
    gpu = GPU()
    with gpu.installed(timing):
        timing.Flush("cuda")(10.0)
    assert gpu.log == ["flush", "spin"] and gpu.idle == pytest.approx(4 * L2 / 100 + 10) and CLOCK_GHZ == 2
    assert timing.torch is torch

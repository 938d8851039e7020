"""What is timed, and how: on a GPU that logs what is done (support/bench_gpu.py), and by faults planted in the source."""

import contextlib
import math
import os
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy
import pytest
import torch
from support import bench_dry, bench_records
from support.bench_gpu import CLOCK_GHZ, GPU, L2, Call
from support.bench_mutants import FAULTS, changed

from bench.cases import case as cases
from bench.cases import inputs, suites
from bench.instruments import timing
from bench.measure import check, run
from bench.providers import interface, registry, sessions, torch_nn
from bench.records import rows, schema
from bench.records import statistics as of_samples
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
    before = [order[:i].count("many") for i, name in enumerate(order) if name == "few"]
    rounds = [math.ceil(j * many / few) - 1 for j in range(1, few + 1)]
    assert all(n - i in (0, 1) for n, i in zip(before, rounds, strict=True))  # first or second in its round
    assert "few" in order[-2:]  # to the end


def test_numbers_of_what_nvidia_smi_says():
    lines = "1980, 3201, 400.5, 45, 0x0000000000000004\n[N/A], 3201, 600.5, 47, [N/A]\n345, 32"  # the last was cut short
    assert timing.columns_of(lines) == [[1980.0], [3201.0, 3201.0], [400.5, 600.5], [45.0, 47.0], [4.0]]
    assert timing.columns_of("") == [[]] * 5


@contextlib.contextmanager
def nvidia_smi(m, script):
    """A stand-in in PATH, and a GPU that need not be waited for"""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "nvidia-smi")
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)
        of = SimpleNamespace(cuda=SimpleNamespace(synchronize=lambda: None))
        path = f"{folder}{os.pathsep}{os.environ['PATH']}" if script else folder
        m.timing._reasons.cache_clear()
        with mock.patch.dict(os.environ, PATH=path), mock.patch.multiple(m.timing, torch=of, smi_name=lambda device: "GPU-1"):
            yield
        m.timing._reasons.cache_clear()


SMI = """case "$*" in
  *help-query*) echo '"clocks_event_reasons.active"' ;;
  *compute-apps*) printf '11\\n12\\n13\\n' ;;
  *temperature.gpu,clocks_event_reasons.active*lms*)
    while :; do echo "$(cat {state}), 3201, 400.5, 45, 0x0000000000000024"; sleep 0.02; done ;;
esac"""


def telemetry_is_of_one_provider_alone(m):
    """Clocks, reasons and joules of each, from the samples that came while it ran"""
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder, "mhz")
        state.write_text("100")
        with nvidia_smi(m, SMI.replace("{state}", str(state))), mock.patch.multiple(m.timing, SETTLING=0.0, STEADY=3):
            assert m.timing.others(CPU) == 2
            with m.timing.Telemetry(CPU) as telemetry:
                def said():
                    return sorted(line for lines in telemetry._columns.values() for line in lines)

                def more(lines):  # however slow this machine is
                    before = len(said())
                    while len(said()) < before + lines:
                        time.sleep(0.01)

                for name, mhz in (("a", "1500"), ("b", "1400")):
                    state.write_text(mhz)
                    while not (said() and said()[-1][1].startswith(mhz)):
                        time.sleep(0.01)
                    began = time.perf_counter()
                    telemetry.alone(name, lambda: more(1), 0.0, 1e3)  # ten calls a batch
                    seconds = time.perf_counter() - began
                    state.write_text("100")
                    watts = 10 * (telemetry.fields(name)["joules"] or 0.0) / seconds
                    assert 0.5 * 400.5 < watts < 1.01 * 400.5
                    more(25)
            found = {name: telemetry.fields(name) for name in ("a", "b", "nobody")}
    assert [found[name]["telemetry"]["sm_mhz"] for name in ("a", "b")] == [1500, 1400]
    assert found["a"]["telemetry"] == {"sm_mhz": 1500.0, "memory_mhz": 3201.0, "power_w": 400.5, "temperature_c": 45.0}
    assert found["b"]["throttled"] == ["power cap", "thermal"]
    assert found["nobody"] == {"telemetry": {}, "throttled": None, "joules": None}


def test_without_nvidia_smi_nothing_is_known():
    m, calls = SimpleNamespace(timing=timing), []
    with nvidia_smi(m, ""):
        with timing.Telemetry(CPU) as telemetry:
            telemetry.alone("a", lambda: calls.append(1), 0.0, 1e5)
        assert telemetry.fields("a") == {"telemetry": {}, "throttled": None, "joules": None} and timing.others(CPU) is None


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
    """in blocks of an order and its reverse, which is another one from block to block and the same from run to run"""
    order = list(m.timing.turns(dict.fromkeys("ABC", 24)))
    blocks = [order[i : i + 6] for i in range(0, 72, 6)]
    assert all(set(block[:3]) == set("ABC") and block[:3] == block[:2:-1] for block in blocks)
    assert len(set(map(tuple, blocks))) > 3 and order == list(m.timing.turns(dict.fromkeys("ABC", 24)))
    assert list(m.timing.turns({})) == []
    gpu, found = of_gpu(m, 0.0, dict(name="A"), dict(name="B"))
    turns = list(m.timing.turns(dict.fromkeys("AB", timing.FEWEST)))
    assert [name for name in gpu.log if name in "AB"][-2 * timing.FEWEST :] == turns


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


def gradients_that_miss_by_little_keep_their_time(m):
    """of peers, in training in 16 bits"""
    def verdict(whole=True, **over):
        return m.check.Verdict({name: dict(rel=share, rel_tol=1.0, max=6 * share, max_tol=6.0) for name, share in over.items()}, "missed", whole)

    bf16, fp32 = suites.parse("h8-b2-t3-bf16"), suites.parse("h8-b2-t3-fp32")
    near = verdict(y=0.5, dx=3.0)
    assert near.status(bf16, "train", "loop") == "inaccurate" and m.check.Verdict({}, "").status(bf16, "train", "loop") == "ok"
    assert near.status(bf16, "fwd", "loop") == near.status(fp32, "train", "loop") == "wrong"
    assert near.status(bf16, "train", "rnn_triton") == near.status(bf16, "train", "rnn_triton-layers") == "wrong"
    for other in (verdict(y=1.1, dx=3.0), verdict(y=0.5, dx=17.0), verdict(y=0.5, dx=math.nan), verdict(False, y=0.5, dx=3.0)):
        assert other.status(bf16, "train", "loop") == "wrong"


def intervals_cover_what_they_should(m):
    """of 200 samples 5 % apart: the deviation of a ratio of medians is 5 % sqrt(pi / 200)"""
    generator = numpy.random.default_rng(3)
    covered, width = 0, 0.0
    for seed in range(60):
        a, b = (100 * numpy.exp(0.05 * generator.standard_normal(200)) for _ in range(2))
        low, high = m.statistics.ends(m.statistics.drawn_ratios([a], [2 * b], seed)[0])
        covered, width = covered + (low < 2 < high), width + math.log(high / low) / 60
    assert covered >= 0.95 * 60 - 3 * math.sqrt(60 * 0.95 * 0.05)
    assert width == pytest.approx(2 * 1.96 * 0.05 * math.sqrt(math.pi / 200), rel=0.15)
    runs = [100 * (1 + 0.02 * i) * numpy.exp(0.001 * generator.standard_normal(20)) for i in (-1, 0, 1)]
    mixed = generator.permutation(numpy.concatenate(runs))
    few, many = (m.statistics.ends(m.statistics.drawn_ratios(side, side, 0)[0]) for side in (runs, [mixed]))
    assert math.log(few[1] / few[0]) > 10 * math.log(many[1] / many[0])  # three runs, 2 % apart, are no 60 independent samples
    assert m.statistics.discoveries([0.01, 0.04, 0.03, 0.02, 0.5]) == [True, True, True, True, False]


def a_speedup_is_over_the_fastest(m):
    case = suites.parse("h128-b16-t256-bf16")
    us = {"rnn_triton": 1.0, "cudnn": 3.0, "cudnn-layers": 2.0, "flashrnn": 1.5, "loop": 0.5, "xma": 0.4, "rnn_triton-layers": 0.3}
    status = {"loop": "wrong", "xma": "inaccurate"}
    apart = [0.9 + 0.02 * (7 * i % 11) for i in range(11)]  # in no order, so that neighbours are independent
    records = [
        bench_records.timing(case, "train", name, t, status=status.get(name, "ok"), device_us=schema.sampled([256 * t * a for a in apart]))
        for name, t in us.items()
    ]
    found = {row.provider: row for row in m.rows.rows(records)}
    ours = found["rnn_triton"]
    assert (ours.baseline, ours.speedup) == ("cudnn-layers", pytest.approx(2.0))
    assert (ours.peer, ours.peer_speedup) == ("flashrnn", pytest.approx(1.5))  # right ones alone, and none of ours
    assert found["xma"].us is None and found["xma"].speedup is None and found["xma"].inaccurate_us[1] == pytest.approx(0.4 * 256)
    assert found["loop"].inaccurate_us is None
    low, high = ours.speedup_interval
    assert low < 2 < high and (high - low) < 0.4  # of samples within 10 %
    other = m.rows.Row(ours.record | {"case": "another"}, speedup=8.0, sides=(ours.sides[0], [4 * us for us in ours.sides[1]]))
    mean, (least, most) = m.rows.geomean([ours, other, found["loop"]])
    assert mean == pytest.approx(4.0) and least < 4 < most
    assert math.log(most / least) == pytest.approx(math.log(high / low) / math.sqrt(2), rel=0.15)  # of two that are independent
    assert m.rows.geomean([found["loop"]]) is None
    assert m.rows.Row(ours.record, speedup=2.0, sides=([1.0] * 4, [2.0] * 4)).speedup_interval is None


REAL = {
    "timing": timing, "run": run, "sessions": sessions, "interface": interface, "check": check, "statistics": of_samples, "rows": rows,
}  # fmt: skip
CHECKS = {
    holds.__name__: holds
    for holds in (
        samples_are_device_time_of_a_cold_cache, the_host_is_ahead_of_the_clock, what_cannot_be_queued_is_told,
        callables_take_turns, wall_time_ends_when_the_gpu_is_idle, the_peak_is_that_of_the_call,
        a_graph_is_the_call_warmed_up_beside_the_stream, every_time_is_of_the_call_it_names,
        a_replay_that_stops_early_has_no_time, what_goes_wrong_while_timed_is_wrong,
        forward_is_in_eval_without_gradients, a_session_sets_the_precision_of_its_case, telemetry_is_of_one_provider_alone,
        gradients_that_miss_by_little_keep_their_time, intervals_cover_what_they_should, a_speedup_is_over_the_fastest,
    )
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKS)
def test_of_measuring(name):
    CHECKS[name](SimpleNamespace(**REAL))


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_seen(name):
    fault = FAULTS[name]
    modules = SimpleNamespace(**(REAL | {fault.file: changed(fault)}))
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
    assert set(seen) == {"rnn_triton", "rnn_triton-layers", "cudnn", "cudnn-layers", "loop", "hoisted", "compile"}


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

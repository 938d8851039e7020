"""Faults for the measuring code, each a change of its source: `FAULTS` says which check of test_bench_timing.py sees it."""

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

MODULES = {
    "timing": "instruments.timing", "run": "measure.run", "sessions": "providers.sessions", "interface": "providers.interface",
    "check": "measure.check", "statistics": "records.statistics", "rows": "records.rows",
}  # fmt: skip


@dataclass(frozen=True)
class Fault:
    file: str  # a key of MODULES
    old: str
    new: str
    seen_by: str


FAULTS = {
    "no flush": Fault("timing", "self._buffer.zero_()", "pass", "samples_are_device_time_of_a_cold_cache"),
    "a tiny flush": Fault("timing", "size = 4 *", "size = 4 + 0 *", "samples_are_device_time_of_a_cold_cache"),
    "no flush before what is timed": Fault(
        "timing", "flush(spins[name])", "torch.cuda._sleep(10**6)", "samples_are_device_time_of_a_cold_cache"
    ),
    "no warm-up": Fault("timing", "WARMUP = 3", "WARMUP = 1", "samples_are_device_time_of_a_cold_cache"),
    "milliseconds": Fault("timing", "* 1e3 for start, end", "* 1 for start, end", "samples_are_device_time_of_a_cold_cache"),
    "no synchronization": Fault(
        "timing", "    torch.cuda.synchronize()\n    samples =", "    samples =", "samples_are_device_time_of_a_cold_cache"
    ),
    "no spin": Fault("timing", "torch.cuda._sleep(int(spin_us * self._cycles))", "pass", "the_host_is_ahead_of_the_clock"),
    "a spin of nanoseconds": Fault("timing", "self._cycles = 1e3 *", "self._cycles = 1 *", "the_host_is_ahead_of_the_clock"),
    "a spin that is not measured": Fault("timing", "min(SPIN * queued,", "min(SPIN * 1.0,", "the_host_is_ahead_of_the_clock"),
    "a spin after the clock starts": Fault(
        "timing", "        start.record()\n", "        start.record()\n        flush(spins[name])\n", "the_host_is_ahead_of_the_clock"
    ),
    "late samples are not told": Fault("timing", "late[name] += start.query()", "start.query()", "what_cannot_be_queued_is_told"),
    "AAAA BBBB": Fault(
        "timing",
        "        yield from (name for name in order if (i + 1) * wanted[name] // rounds > i * wanted[name] // rounds)\n",
        "        yield from ()\n    yield from (name for name in wanted for _ in range(wanted[name]))\n",
        "callables_take_turns",
    ),
    "ABC ABC": Fault("timing", "generator.shuffle(order)", "order.sort()", "callables_take_turns"),
    "no reverse": Fault("timing", "order.reverse()", "pass", "callables_take_turns"),
    "wall time without waiting": Fault(
        "timing", "        calls[name]()\n        torch.cuda.synchronize()\n", "        calls[name]()\n", "wall_time_ends_when_the_gpu_is_idle"
    ),
    "wall time of what was queued before": Fault(
        "timing",
        "        announce(name)\n        torch.cuda.synchronize()\n        begin",
        "        announce(name)\n        begin",
        "wall_time_ends_when_the_gpu_is_idle",
    ),
    "no reset of the peak": Fault("timing", "torch.cuda.reset_peak_memory_stats()", "pass", "the_peak_is_that_of_the_call"),
    "the peak of everything": Fault("timing", "before = torch.cuda.memory_allocated()", "before = 0", "the_peak_is_that_of_the_call"),
    "an empty graph": Fault(
        "timing",
        "    with torch.cuda.graph(graph):\n        result = call()",
        "    result = call()\n    with torch.cuda.graph(graph):\n        pass",
        "a_graph_is_the_call_warmed_up_beside_the_stream",
    ),
    "a graph without a warm-up": Fault(
        "timing",
        "        for _ in range(WARMUP):\n            call()\n    torch",
        "        pass\n    torch",
        "a_graph_is_the_call_warmed_up_beside_the_stream",
    ),
    "a graph warmed up on the main stream": Fault(
        "timing", "with torch.cuda.stream(side):", "if True:", "a_graph_is_the_call_warmed_up_beside_the_stream"
    ),
    "graph times of the short case": Fault(
        "run", "{n: full for (n, p), (full, _)", "{n: full for (n, p), (_, full)", "every_time_is_of_the_call_it_names"
    ),
    "device times of the short case": Fault(
        "run", "clock.device_us(full, flush, SAMPLE_SECONDS, at)", "clock.device_us(brief, flush, SAMPLE_SECONDS, at)",
        "every_time_is_of_the_call_it_names",
    ),
    "wall time of the short case": Fault("run", "clock.wall_us(full,", "clock.wall_us(brief,", "every_time_is_of_the_call_it_names"),
    "memory of the short case": Fault(
        "run", "clock.peak_bytes(full[name])", "clock.peak_bytes(brief[name])", "every_time_is_of_the_call_it_names"
    ),
    "replays are not judged": Fault(
        "run", "if said := _against(records[name, pass_], case, check.judged(case, results[name], pass_, truth)):", "if said := '':",
        "a_replay_that_stops_early_has_no_time",
    ),
    "results of the capture are taken for those of a replay": Fault(
        "run", "tensor.fill_(math.nan)", "pass", "a_replay_that_stops_early_has_no_time"
    ),
    "nothing is judged after it was timed": Fault(
        "run", "if said := _against(records[name, pass_], case, check.judged(case, full(), pass_, truth)):", "if said := '':", "what_goes_wrong_while_timed_is_wrong"
    ),
    "forward with gradients": Fault(
        "sessions", "with torch.no_grad(), products_in_tf32", "with products_in_tf32", "forward_is_in_eval_without_gradients"
    ),
    "forward in training mode": Fault("sessions", "module.eval()", "module.train()", "forward_is_in_eval_without_gradients"),
    "training in eval mode": Fault("sessions", "module.train()", "module.eval()", "forward_is_in_eval_without_gradients"),
    "telemetry of nobody": Fault("timing", "self._who, begin, calls = key,", "self._who, begin, calls = None,", "telemetry_is_of_one_provider_alone"),
    "telemetry of all who follow": Fault("timing", "self._who, took = None,", "took =", "telemetry_is_of_one_provider_alone"),
    "the power of a call for its energy": Fault("timing", "* took / calls if", "if", "telemetry_is_of_one_provider_alone"),
    "any miss is a small one": Fault("check", "INACCURATE = 16.0", "INACCURATE = 1e9", "gradients_that_miss_by_little_keep_their_time"),
    "y may be inaccurate, too": Fault("check", "1.0 if name in OUTPUTS else", "", "gradients_that_miss_by_little_keep_their_time"),
    "ours may be inaccurate": Fault(
        "check", "and not provider.startswith(OURS)", "", "gradients_that_miss_by_little_keep_their_time"
    ),
    "NaN is accurate": Fault("check", "math.nan if math.isnan(", "0.0 if math.isnan(", "gradients_that_miss_by_little_keep_their_time"),
    "an interval of 80 %": Fault(
        "statistics", "drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]", "drawn, [0.1, 0.9]", "intervals_cover_what_they_should"
    ),
    "ends that are logarithms": Fault("statistics", "low, high = np.exp(np", "low, high = (np", "intervals_cover_what_they_should"),
    "one draw for both sides": Fault("statistics", "= of_b - of_a,", "= of_b - of_b,", "intervals_cover_what_they_should"),
    "runs are no units": Fault("statistics", "if len(runs) == 1:", "if runs:", "intervals_cover_what_they_should"),
    "every p is a discovery of its own": Fault(
        "statistics", "if p[i] <= rate * rank / len(p)", "if p[i] <= rate / len(p)", "intervals_cover_what_they_should"
    ),
    "over the slowest": Fault("rows", "min(theirs, key=", "max(theirs, key=", "a_speedup_is_over_the_fastest"),
    "an inverse speedup": Fault(
        "rows", 'best[field]["median"] / mine[field]["median"]', 'mine[field]["median"] / best[field]["median"]',
        "a_speedup_is_over_the_fastest",
    ),
    "ours as a peer": Fault("rows", "lambda other: not other.startswith(OURS)", "lambda other: other != OURS", "a_speedup_is_over_the_fastest"),
    "what is wrong has times": Fault("rows", 'if record["status"] == status and', "if", "a_speedup_is_over_the_fastest"),
    "all rows draw alike": Fault(
        "rows", 'f"{self.case} {self.pass_} {self.provider}".encode()', 'b""', "a_speedup_is_over_the_fastest"
    ),
    "the precision is not set": Fault(
        "interface", "    if case.precision is not None:", "    if False:", "a_session_sets_the_precision_of_its_case"
    ),
}  # fmt: skip


def changed(fault):
    """bench's module with the fault, beside the real one; AssertionError where its source no longer has the place"""
    real = importlib.import_module(f"bench.{MODULES[fault.file]}")
    source = Path(real.__file__).read_text()
    assert source.count(fault.old) == 1, f"{fault.old!r} is {source.count(fault.old)} times in {real.__file__}"
    module = importlib.util.module_from_spec(importlib.util.find_spec(real.__name__))
    exec(compile(source.replace(fault.old, fault.new), f"{real.__file__} with a fault", "exec"), module.__dict__)
    return module

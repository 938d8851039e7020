"""`python -m rnn_triton`."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import rnn_triton
from rnn_triton import __main__ as command
from rnn_triton.plan import hardware

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments):
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True)


def test_what_it_says_of_a_machine_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    first, *rest = command.machine()
    assert first.startswith(f"rnn_triton {rnn_triton.__version__}, torch {torch.__version__}, triton ")
    assert "none that torch can use" in rest[0] and "install a build of torch with CUDA" in rest[1]
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "nvidia-smi" in list(command.machine())[-1]


def test_what_it_says_of_gpus(monkeypatch):
    """One that the kernels run on, and one that is too old"""
    records = [hardware.RECORDS["sm_90"], hardware.Device("V100", 70, 80, 96 * 1024, 65536, 6 * 2**20, 1.5)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: records[device.index].name)
    monkeypatch.setattr(hardware, "_record", lambda device: records[device.index])
    _, good, old, advice = command.machine()
    assert good == "GPU 0: H200, compute capability 9.0, 132 SMs: the kernels run here"
    assert old == "GPU 1: V100: V100 has compute capability 7.0; the kernels need 8.0 (Ampere) or newer"
    assert "rnn_triton.restore(model)" in advice


def test_regimes():
    lines = list(command.regimes(hardware.RECORDS["sm_90"]))
    assert len(lines) == len(command.CELLS) * len(command.KINDS)
    assert lines[0].split() == "RNN bf16, fp16 one CTA to H = 256, a group of CTAs to H = 4096, then a launch for each step".split()


def test_trials_pass_and_can_fail(capsys, monkeypatch):
    assert command.test(torch.device("cpu"))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[0].startswith("  pass  RNN, H = 24, torch's operators: differs from torch.nn in fp64 by ")
    monkeypatch.setattr(command, "TRIALS", (("RNN", 8, 24, torch.float32, "one_cta", 1e-12), ("RNN", 8, -1, torch.float32, "one_cta", 1)))
    assert not command.test(torch.device("cpu"))
    lines = capsys.readouterr().out.splitlines()
    assert [line[:6] for line in lines] == ["  FAIL", "  FAIL"] and "ValueError: hidden_size must be greater than zero" in lines[1]

    class Lost(rnn_triton.LSTM):
        """One of whose gradients is NaN, as a launch that failed leaves it"""

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.bias_hh_l0.register_hook(lambda gradient: gradient * float("nan"))

    monkeypatch.setattr(command.modules, "LSTM", Lost)
    monkeypatch.setattr(command, "TRIALS", (("LSTM", 8, 24, torch.float32, "one_cta", 1e-5),))
    assert not command.test(torch.device("cpu"))
    assert "differs from torch.nn in fp64 by nan" in capsys.readouterr().out
    monkeypatch.setattr(command, "SECONDS", -1.0)
    assert command.test(torch.device("cpu"))
    assert all("not tried for want of time" in line for line in capsys.readouterr().out.splitlines())


@pytest.mark.interpret
def test_trials_by_the_kernels(capsys, monkeypatch):
    monkeypatch.setattr(command, "SECONDS", 1e9)
    assert command.test(torch.device("cpu"))
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        f"  pass  {name}, H = 24, one CTA" for name in ("RNN", "LSTM", "GRU")
    ]


@pytest.mark.long
def test_command():
    done = run("-m", "rnn_triton")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAIL" not in done.stdout and done.stdout.endswith("All that was tried passed.\n") and done.stderr == ""

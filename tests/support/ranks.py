"""Training on two gloo ranks; `python ranks.py RANK FOLDER` is one of them."""

import os
import subprocess
import sys
from pathlib import Path

import torch

RATE = 0.5


def train(model, x, steps):
    """Losses of so many steps of SGD: mean over rows, so that a mean over equal parts is the mean of the whole"""
    optimiser = torch.optim.SGD(model.parameters(), RATE)
    losses = []
    for _ in range(steps):
        y, hn = model(x)
        loss = (y - 1).pow(2).mean() + hn.pow(2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def run(state, x, steps, folder):
    """What each of two ranks found: losses (means over ranks), state (whole) and sharded, of "ddp" and "fsdp2" """
    torch.save(dict(state=state, x=x, steps=steps), folder / "given.pt")
    path = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path)), "OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)
    log = subprocess.PIPE
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(folder)], env=environment, stdout=log, stderr=subprocess.STDOUT, text=True
        )
        for rank in range(2)
    ]
    try:
        texts = [process.communicate(timeout=1200)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, text in zip(processes, texts, strict=True):
        assert process.returncode == 0, text
    return [torch.load(folder / f"found{rank}.pt") for rank in range(2)]


def main(rank, folder):
    import torch.distributed as dist
    from test_integration import Model
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor
    from torch.nn.parallel import DistributedDataParallel

    given = torch.load(folder / "given.pt")
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    found = {}
    for kind in ("ddp", "fsdp2"):
        model = Model(dtype=torch.float64)
        model.load_state_dict(given["state"])
        if kind == "ddp":
            run = DistributedDataParallel(model)
        else:
            mesh = dist.init_device_mesh("cpu", (2,))
            fully_shard(model.rnn, mesh=mesh)
            run = fully_shard(model, mesh=mesh)
        sharded = all(isinstance(p, DTensor) and p.to_local().shape != p.shape for p in model.parameters())
        losses = train(run, given["x"].chunk(2, 1)[rank], given["steps"])
        dist.all_reduce(losses)
        state = {k: t.full_tensor() if isinstance(t, DTensor) else t for k, t in model.state_dict().items()}
        found[kind] = dict(losses=losses / 2, state=state, sharded=sharded)
        del run, model
    torch.save(found, folder / f"found{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
    # a thread of gloo may outlive its group, and then aborts the process where the interpreter takes its modules down
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))

"""A small agent with a memory, whose games begin and end anywhere in the chunks that it learns from.

    python examples/agent.py [--device cuda] [--updates 80]

A game shows a cue, one of four, in its first step, then noise for some steps, and in its last step asks for the cue: the reward is 1
for the right answer. 64 games run side by side, and when one is over, the next begins in its place. The agent, a GRU with two linear
readouts, plays 20 steps of all of them, one call a step, and learns from these by policy gradients with a learned baseline (advantage
actor-critic): one call for the whole chunk, which is told where games begin (`reset`). The same agent learns once more by the loop that
is usual elsewhere, a call for each piece between two such steps. Both make the same steps. Exit status 1 where a check of `main` fails.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

try:
    import rnn_triton
except ModuleNotFoundError:  # a bare checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import rnn_triton

CUES, SHORTEST, LONGEST = 4, 3, 9  # steps of a game
GAMES, CHUNK, UPDATES, HIDDEN = 64, 20, 80, 32
RATE, CLIP, ENTROPY, CRITIC = 1e-2, 1.0, 0.01, 0.5


class Games:
    """Games side by side; a new one takes the place of each that is over."""

    def __init__(self, count: int, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self.age = torch.zeros(count, dtype=torch.long)
        self.length, self.cue = self._numbers(SHORTEST, LONGEST + 1), self._numbers(0, CUES)

    def _numbers(self, low: int, high: int) -> Tensor:
        return torch.randint(low, high, self.age.shape, generator=self._generator)

    def look(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns what is seen, [B,CUES+2] fp32, and where a game begins and where it asks, [B] bool each."""
        begins, asks = self.age == 0, self.age == self.length - 1
        cue = nn.functional.one_hot(self.cue, CUES) * begins.unsqueeze(1)
        noise = torch.rand(len(cue), 1, generator=self._generator)
        return torch.cat([cue, asks.unsqueeze(1), noise], 1), begins, asks

    def act(self, action: Tensor) -> Tensor:
        """Goes on by a step; returns the rewards, [B] fp32."""
        over = self.age == self.length - 1
        reward = (over & (action == self.cue)).float()
        self.age = torch.where(over, 0, self.age + 1)
        self.length = torch.where(over, self._numbers(SHORTEST, LONGEST + 1), self.length)
        self.cue = torch.where(over, self._numbers(0, CUES), self.cue)
        return reward


Memory = Callable[[nn.Module, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]  # (gru, x, h, reset) -> y and the last state


def in_one_call(gru: nn.Module, x: Tensor, h: Tensor, reset: Tensor) -> tuple[Tensor, Tensor]:
    """The state goes back to zero within the call, where reset[T,B] is True."""
    return gru(x, h, reset=reset)


def piece_by_piece(gru: nn.Module, x: Tensor, h: Tensor, reset: Tensor) -> tuple[Tensor, Tensor]:
    """The same by calls that know no resets: one for each piece of the chunk between two steps in which any game begins."""
    starts = sorted({0, *reset.any(1).nonzero().flatten().tolist()})  # waits for the device
    ys = []
    for start, end in zip(starts, [*starts[1:], len(x)]):
        y, h = gru(x[start:end], h * ~reset[start].unsqueeze(1))
        ys.append(y)
    return torch.cat(ys), h


class Agent(nn.Module):
    """Chooses an answer in every step, and guesses the reward it is going to get."""

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        self.gru, self.memory = rnn_triton.GRU(CUES + 2, HIDDEN), memory
        self.actor, self.critic = nn.Linear(HIDDEN, CUES), nn.Linear(HIDDEN, 1)

    def forward(self, x: Tensor, h: Tensor, reset: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns logits[T,B,CUES], values[T,B] and the last state[1,B,HIDDEN] of x[T,B,CUES+2], h[1,B,HIDDEN] and reset[T,B]."""
        y, h = self.memory(self.gru, x, h, reset)
        return self.actor(y), self.critic(y).squeeze(-1), h


def train(
    memory: Memory, seed: int, updates: int = UPDATES, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32,
    progress: Callable[[int, int, float], None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Trains an agent; the seed decides its first weights, the games and its choices.

    Returns losses and rewards (mean of the answers) of each chunk, the largest number of pieces of one, and seconds (wall time) of
    playing and of learning."""
    games, choices = Games(GAMES, seed), torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        agent = Agent(memory).to(device, dtype)
    optimiser = torch.optim.Adam(agent.parameters(), RATE)
    h = torch.zeros(1, GAMES, HIDDEN, device=device, dtype=dtype)
    found: dict[str, Any] = {"losses": [], "rewards": [], "pieces": 0, "playing": 0.0, "learning": 0.0}
    for update in range(1, updates + 1):
        began, first, steps = time.perf_counter(), h, []
        with torch.no_grad():
            for _ in range(CHUNK):
                x, begins, asks = games.look()
                x, begins = x.to(device, dtype), begins.to(device)
                logits, _, h = agent(x.unsqueeze(0), h, begins.unsqueeze(0))
                action = logits[0].softmax(-1).cpu().multinomial(1, generator=choices).squeeze(1)
                steps.append((x, begins, action.to(device), games.act(action).to(device, dtype), asks.to(device)))
        x, begins, action, reward, asked = map(torch.stack, zip(*steps))
        learning = time.perf_counter()

        logits, values, _ = agent(x, first, begins)
        chances = logits.log_softmax(-1)
        advantage = reward - values
        gain = chances.gather(-1, action.unsqueeze(-1)).squeeze(-1) * advantage.detach()
        surprise = -(chances.exp() * chances).sum(-1)
        each = CRITIC * advantage.square() - gain - ENTROPY * surprise
        loss = each[asked].mean()  # only what is answered when a game asks has a reward
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(agent.parameters(), CLIP)
        optimiser.step()

        found["losses"].append(loss.item())
        found["rewards"].append(reward[asked].mean().item())
        found["pieces"] = max(found["pieces"], int(begins.any(1).sum()))
        found["playing"] += learning - began
        found["learning"] += time.perf_counter() - learning
        if progress is not None:
            progress(update, updates, found["rewards"][-1])
    return found


def show(update: int, updates: int, reward: float) -> None:
    """Draws a progress bar on stderr, if that is a terminal."""
    if sys.stderr.isatty():
        done = 30 * update // updates
        end = "\n" if update == updates else ""
        print(f"\r[{'#' * done}{'.' * (30 - done)}] reward {reward:.2f}", end=end, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="An agent with a memory: resets within a call against a loop over pieces.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--updates", type=int, default=UPDATES)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # for sizes as small as these
    results = {}
    for name, memory in (("one call", in_one_call), ("by pieces", piece_by_piece)):
        results[name] = found = train(memory, 0, arguments.updates, arguments.device, progress=show)
        late = found["rewards"][-20:]
        print(
            f"{name:10}  reward {sum(late) / len(late):.2f} of 1 (guessing: {1 / CUES:.2f})  "
            f"playing {found['playing']:.1f} s, learning {found['learning']:.1f} s, at most {found['pieces']} pieces a chunk"
        )
    one, pieces = results.values()
    late = [sum(found["rewards"][-20:]) / len(found["rewards"][-20:]) for found in (one, pieces)]
    # fp32 sums of both ways differ in their last bits; once that changes an answer, the games differ, too
    first = max(abs(a - b) for a, b in zip(one["losses"][:5], pieces["losses"][:5]))
    passed = {
        "mean reward of the last 20 chunks >= 0.9": late[0] >= 0.9,
        "within 0.05 of that by pieces": abs(late[0] - late[1]) <= 0.05,
        "losses of the first 5 updates within 1e-4": first <= 1e-4,
    }
    for check, good in passed.items():
        print(f"{'pass' if good else 'FAIL'}  {check}")
    return 0 if all(passed.values()) else 1


if __name__ == "__main__":
    sys.exit(main())

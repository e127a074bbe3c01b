"""Trains the demo model on two CPU cores and writes its folder in the hub's format.

    python jobs/train_demo.py --out janus_hpc/demo

Deterministic for one machine and torch version: seed, thread count and every batch are fixed, and
a run that continues from its checkpoint computes what an undisturbed one computes.
"""

import argparse
import ctypes
import json
import math
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from demo_batches import BatchMaker
from demo_corpus import held_out_examples
from demo_eval import score
from demo_export import export
from demo_net import Net, NetConfig
from demo_tokenizer import build_tokenizer
from torch import Tensor

WARMUP_STEPS = 200
HORIZON_STEPS = 7000
RAMP_STEPS = 1500
BALANCE_WEIGHT = 0.01
WEIGHT_DECAY = 0.05
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def parse_args() -> argparse.Namespace:
    """Return the command line's options; the defaults made the shipped model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for the finished model")
    parser.add_argument("--checkpoint", type=Path, help="file to write now and then, and resume")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--length", type=int, default=96)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--eval-steps", type=int, default=250)
    parser.add_argument("--stop-at", type=int, help="end after this step, as a killed run would")
    return parser.parse_args()


def learning_rate(step: int, num_steps: int, peak: float) -> float:
    """Return a linear warm-up, then a cosine over HORIZON_STEPS, then a ramp to zero at the end."""
    if step < WARMUP_STEPS:
        return peak * (step + 1) / WARMUP_STEPS
    done = (step - WARMUP_STEPS) / (HORIZON_STEPS - WARMUP_STEPS)
    cosine = peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))
    return cosine * min(1.0, (num_steps - step) / RAMP_STEPS)


def make_optimizer(net: Net) -> torch.optim.AdamW:
    """Return AdamW; vectors and the embedding do not decay."""
    decayed = [p for n, p in net.named_parameters() if p.ndim > 1 and n != "embedding"]
    plain = [p for n, p in net.named_parameters() if p.ndim == 1 or n == "embedding"]
    groups = [
        {"params": decayed, "weight_decay": WEIGHT_DECAY},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), fused=True)


class Trainer:
    """One training run: net, optimizer, step counter and the checkpoint they are kept in."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        torch.manual_seed(args.seed)
        self.tokenizer = build_tokenizer()
        self.maker = BatchMaker(self.tokenizer, args.seed, args.rows, args.length)
        self.net = Net(NetConfig(vocab_size=self.tokenizer.get_vocab_size()))
        self.optimizer = make_optimizer(self.net)
        self.held_out = held_out_examples()
        self.step = 0
        self.load_E = torch.zeros(0)
        self.num_answers = 0
        self.seconds = 0.0

    def resume(self) -> None:
        """Take up the checkpoint, if there is one."""
        path = self.args.checkpoint
        if path is None or not path.exists():
            return
        state = torch.load(path, weights_only=True)
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.num_answers = state["step"], state["num_answers"]
        self.seconds = state["seconds"]

    def save(self) -> None:
        """Write the checkpoint, then rename it into place."""
        path = self.args.checkpoint
        if path is None:
            return
        beside = path.with_suffix(".part")
        state = {
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "num_answers": self.num_answers,
            "seconds": self.seconds,
        }
        torch.save(state, beside)
        beside.replace(path)

    def train_step(self) -> Tensor:
        """Make one batch, one update; return the answers' mean loss."""
        batch = self.maker.make(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.args.steps, self.args.lr)
        hidden_BTD, balance, self.load_E = self.net(batch.ids, batch.mask)
        hidden_MD = hidden_BTD.view(-1, hidden_BTD.shape[-1])[batch.positions]
        loss = F.cross_entropy(self.net.logits(hidden_MD), batch.targets)
        self.optimizer.zero_grad(set_to_none=True)
        (loss + BALANCE_WEIGHT * balance).backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        self.num_answers += batch.num_answers
        return loss.detach()

    def report(self, loss: float) -> None:
        """Print one line of JSON: loss, speed, routing and held-out score per task."""
        scores = score(self.net, self.maker, self.held_out, chat=False)
        in_chat = score(self.net, self.maker, self.held_out, chat=True)
        line = {
            "step": self.step,
            "seconds": round(self.seconds),
            "answers": self.num_answers,
            "loss": round(loss, 4),
            "load_max": [round(float(x) * self.load_E.shape[1], 2) for x in self.load_E.amax(1)],
            "held_out": {task: round(share, 3) for task, share in scores.items()},
            "held_out_chat": {task: round(share, 3) for task, share in in_chat.items()},
        }
        print(json.dumps(line), flush=True)

    def run(self) -> None:
        """Train to the last step, with a report and a checkpoint at every evaluation."""
        last = min(self.args.steps, self.args.stop_at or self.args.steps)
        losses: list[Tensor] = []
        started = time.monotonic()
        while self.step < last:
            losses.append(self.train_step())
            if self.step % self.args.eval_steps == 0 or self.step == last:
                self.seconds += time.monotonic() - started
                self.report(float(torch.stack(losses).mean()))
                self.save()
                losses, started = [], time.monotonic()


def keep_freed_memory() -> None:
    """Make glibc reuse large blocks: mapping them anew for every tensor costs a tenth of a step."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def main() -> int:
    """Run the training that the command line asks for; write the folder where it is finished."""
    args = parse_args()
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    trainer = Trainer(args)
    trainer.resume()
    trainer.run()
    if args.out is not None and trainer.step == args.steps:
        export(trainer.net, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())

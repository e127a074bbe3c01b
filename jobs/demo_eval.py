"""Greedy answers of the demo model in training, and the exact-match share per task."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from demo_batches import BatchMaker
from demo_corpus import Example
from demo_net import Net

MAX_ANSWER_TOKENS = 16


@torch.no_grad()
def greedy(net: Net, prompts: Sequence[list[int]], end_ids: set[int]) -> list[list[int]]:
    """Return each prompt's greedy answer ids without the end token; recomputes the whole text."""
    rows = [list(prompt) for prompt in prompts]
    running = list(range(len(rows)))
    for _ in range(MAX_ANSWER_TOKENS):
        lengths = torch.tensor([len(rows[i]) for i in running])
        longest = int(lengths.max())
        ids = torch.tensor([rows[i] + [0] * (longest - len(rows[i])) for i in running])
        # Padding stands behind every real token, so the causal mask hides it.
        mask = torch.ones(longest, longest, dtype=torch.bool).tril()[None, None]
        hidden = net(ids, mask)[0][torch.arange(len(running)), lengths - 1]
        chosen = net.logits(hidden).argmax(-1).tolist()
        for i, token in zip(running, chosen, strict=True):
            rows[i].append(token)
        running = [i for i in running if rows[i][-1] not in end_ids]
        if not running:
            break
    answers = [row[len(prompt) :] for row, prompt in zip(rows, prompts, strict=True)]
    return [a[:-1] if a and a[-1] in end_ids else a for a in answers]


def score(
    net: Net, maker: BatchMaker, examples: Sequence[Example], *, chat: bool
) -> dict[str, float]:
    """Return the share of exact answers per task and, under "all", over all examples."""
    encode = maker.chat_prompt if chat else maker.encode
    prompts = [encode(example.prompt) for example in examples]
    answers = greedy(net, prompts, {maker.end_of_text, maker.end_of_turn})
    hits: dict[str, list[bool]] = defaultdict(list)
    for example, answer in zip(examples, answers, strict=True):
        right = maker.tokenizer.decode(answer) == example.answer
        hits[example.task].append(right)
        hits["all"].append(right)
    return {task: sum(rights) / len(rights) for task, rights in hits.items()}

"""Training batches of the demo model: examples as raw prompts and as chats, packed into rows.

A batch depends on (seed, step) alone, so a resumed run sees what an undisturbed one sees.
Legend: B rows, T positions, M positions whose next token is part of an answer.
"""

import random
from typing import NamedTuple

import torch
from demo_corpus import Example, training_example
from demo_tokenizer import ASSISTANT, END_OF_TEXT, END_OF_TURN, SYSTEM, USER
from demo_words import SYSTEM_MESSAGES
from tokenizers import Tokenizer
from torch import Tensor

CHAT_SHARE = 0.35
SYSTEM_SHARE = 0.15
EXTRA_TURN_SHARE = 0.2

Document = list[tuple[int, bool]]


class Batch(NamedTuple):
    """Packed rows: ids (B, T), mask (B, 1, T, T), flat positions that predict (M), targets (M)."""

    ids: Tensor
    mask: Tensor
    positions: Tensor
    targets: Tensor
    num_answers: int


class BatchMaker:
    """Makes the batch of any step; owns nothing but the tokenizer and the sizes."""

    def __init__(self, tokenizer: Tokenizer, seed: int, num_rows: int, length: int) -> None:
        self.tokenizer = tokenizer
        self.seed = seed
        self.num_rows = num_rows
        self.length = length
        self.end_of_text = self.special(END_OF_TEXT)
        self.end_of_turn = self.special(END_OF_TURN)

    def special(self, token: str) -> int:
        """Return the id of a special token."""
        token_id = self.tokenizer.token_to_id(token)
        assert token_id is not None, f"{token=}"
        return token_id

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def chat_prompt(self, prompt: str) -> list[int]:
        """Return a user's turn and the start of the assistant's."""
        turn = [self.special(USER), *self.encode(prompt), self.end_of_turn]
        return [*turn, self.special(ASSISTANT)]

    def raw_document(self, example: Example) -> Document:
        """Return a prompt and its answer: (token id, is it part of an answer)."""
        answer = [*self.encode(example.answer), self.end_of_text]
        return [(t, False) for t in self.encode(example.prompt)] + [(t, True) for t in answer]

    def chat_document(self, rng: random.Random) -> tuple[Document, int]:
        """Return a conversation of one turn or a few, and its number of answers."""
        document: Document = []
        if rng.random() < SYSTEM_SHARE:
            message = self.encode(rng.choice(SYSTEM_MESSAGES))
            turn = [self.special(SYSTEM), *message, self.end_of_turn]
            document += [(t, False) for t in turn]
        num_turns = 1
        while num_turns < 3 and rng.random() < EXTRA_TURN_SHARE:
            num_turns += 1
        for _ in range(num_turns):
            example = training_example(rng)
            document += [(t, False) for t in self.chat_prompt(example.prompt)]
            document += [(t, True) for t in (*self.encode(example.answer), self.end_of_turn)]
        return document, num_turns

    def document(self, rng: random.Random) -> tuple[Document, int]:
        """Draw one document and its number of answers."""
        if rng.random() < CHAT_SHARE:
            return self.chat_document(rng)
        return self.raw_document(training_example(rng)), 1

    def row_of_documents(self, rng: random.Random) -> list[tuple[Document, int]]:
        """Draw documents until the next one does not fit behind them; at least one."""
        documents: list[tuple[Document, int]] = []
        room = self.length
        while True:
            document, num_answers = self.document(rng)
            if len(document) <= room:
                documents.append((document, num_answers))
                room -= len(document)
            elif documents:
                return documents

    def make(self, step: int) -> Batch:
        """Return the batch of `step`: each row holds documents until the next one does not fit."""
        rng = random.Random(f"train {self.seed} {step}")
        ids: list[int] = []
        owners: list[int] = []
        positions: list[int] = []
        targets: list[int] = []
        total_answers = 0
        for row in range(1, self.num_rows + 1):
            for index, (document, num_answers) in enumerate(self.row_of_documents(rng)):
                for token, answers in document:
                    if answers:
                        positions.append(len(ids) - 1)
                        targets.append(token)
                    ids.append(token)
                owners += [index] * len(document)
                total_answers += num_answers
            num_padding = row * self.length - len(ids)
            ids += [0] * num_padding
            owners += [-1] * num_padding
        ids_BT = torch.tensor(ids).view(-1, self.length)
        owners_BT = torch.tensor(owners).view(-1, self.length)
        causal = torch.ones(self.length, self.length, dtype=torch.bool).tril()
        mask = (owners_BT.unsqueeze(2) == owners_BT.unsqueeze(1)) & causal
        return Batch(
            ids_BT,
            mask.unsqueeze(1),
            torch.tensor(positions),
            torch.tensor(targets),
            total_answers,
        )

"""Packing and unpacking rows for the expert ranks that the gate chose, with the gate on the attention side.

Owns the way from choices to frames and back to rows; knows neither messages nor waits.
T: tokens of one attention rank, K: choices a token, R: rows, one a choice.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from janus_hpc.comm.exchange import RoutedRows, Routing
from janus_hpc.comm.plan.fabric import Fabric
from janus_hpc.comm.staged.frames import Frame


@dataclass(frozen=True)
class Choices:
    """One attention rank's choices as rows, sorted by expert rank, expert, token.

    `counts[e]`: rows of fabric.expert_ranks[e]; tokens_R are rows of x_TD.
    """

    tokens_R: Tensor
    ids_R: Tensor
    weights_R: Tensor
    counts: list[int]


class Router:
    """Sorts a rank's choices by the expert rank that serves them."""

    def __init__(self, fabric: Fabric) -> None:
        role_ranks = sorted(fabric.expert_ranks)
        places = [fabric.expert_ranks.index(world_rank) for world_rank in role_ranks]
        # Expert role rank -> place among fabric.expert_ranks.
        self._place_E = torch.tensor(places, dtype=torch.int64)

    def choices(self, routing: Routing) -> Choices:
        """Sort a rank's choices."""
        assert routing.owners_TK is not None, "rows travel to their experts: owners are needed"
        ids_R = routing.ids_TK.reshape(-1).cpu().long()
        places_R = self._place_E[routing.owners_TK.reshape(-1).cpu().long()]
        by_expert_R = ids_R.argsort(stable=True)
        order_R = by_expert_R[places_R[by_expert_R].argsort(stable=True)]
        counts = torch.bincount(places_R, minlength=len(self._place_E)).tolist()
        weights_R = routing.weights_TK.reshape(-1).cpu()[order_R]
        return Choices(order_R // routing.ids_TK.shape[1], ids_R[order_R], weights_R, counts)


def write_rows(
    frame: Frame,
    memory_B: Tensor,
    first_expert: int,
    attention: int,
    choices: Choices,
    x_TD: Tensor,
    first_token: int,
) -> None:
    """Write an attention rank's rows into a frame. `first_expert`: the frame's first expert rank in
    the fabric's order; `first_token`: where the rank's tokens begin in the microbatch.
    """
    rows_TB = x_TD.contiguous().view(torch.uint8)
    start = sum(choices.counts[:first_expert])
    for expert, counts in enumerate(frame.counts_EA):
        mine = slice(start, start + counts[attention])
        start = mine.stop
        if counts[attention] == 0:
            continue
        first = frame.first_row(expert, attention)
        ids, weights, tokens, rows = frame.columns(
            memory_B, slice(first, first + mine.stop - mine.start)
        )
        ids.copy_(choices.ids_R[mine])
        weights.copy_(choices.weights_R[mine])
        tokens.copy_(choices.tokens_R[mine] + first_token)
        torch.index_select(rows_TB, 0, choices.tokens_R[mine], out=rows)


def read_rows(
    frames: Sequence[tuple[Frame, Tensor]], expert: int, row_dtype: torch.dtype, hidden: int
) -> RoutedRows:
    """The rows of one expert rank, the `expert`-th of its group, from its frames and their memory."""
    columns = []
    for frame, memory_B in frames:
        first = frame.first_row(expert, 0)
        columns.append(frame.columns(memory_B, slice(first, first + sum(frame.counts_EA[expert]))))
    if not columns:
        none = torch.empty(0, dtype=torch.int64)
        return RoutedRows(torch.empty(0, hidden, dtype=row_dtype), none, none.float(), none)
    ids, weights, tokens, rows = (torch.cat(parts) for parts in zip(*columns, strict=True))
    return RoutedRows(rows.view(row_dtype), ids.long(), weights, tokens.long())

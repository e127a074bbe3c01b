"""Where the rows of a step lie in a group's memory, microbatch after microbatch.

Pure: worked out from the step's headers and the group; no MPI, no tensors.
"""

from itertools import accumulate

from janus_hpc.comm.layout import StepLayout
from janus_hpc.comm.plan.fabric import Fabric, Group
from janus_hpc.comm.plan.steps import Rows


class Places:
    """Slices of a group's areas for rows that are numbered within a microbatch.

    `own[m][a]`: rows of the group's attention rank a; `own_before[m]`: tokens of its attention
    ranks in the microbatches before m.
    """

    def __init__(self, fabric: Fabric, group: Group, layout: StepLayout) -> None:
        self._layout, self._holds_all = layout, bool(group.experts)
        self._ranks = fabric.attention_ranks
        place = {rank: i for i, rank in enumerate(self._ranks)}
        self.own: list[list[Rows]] = []
        for counts in layout.counts:
            ends = list(accumulate(counts))
            mine = [place[rank] for rank in group.attention]
            self.own.append([Rows(ends[i] - counts[i], ends[i]) for i in mine])
        sizes = [sum(rows.num_rows for rows in its) for its in self.own]
        self.own_before = [0, *accumulate(sizes)][:-1]

    def held(self, rows: Rows, microbatch: int) -> slice:
        """Rows of the area of tokens."""
        return self.all(rows, microbatch) if self._holds_all else self.back(rows, microbatch)

    def all(self, rows: Rows, microbatch: int) -> slice:
        """Rows of an area that has room for all attention ranks' rows."""
        base = self._layout.bases[microbatch]
        return slice(base + rows.first, base + rows.stop)

    def back(self, rows: Rows, microbatch: int) -> slice:
        """Rows of an area that has room for the rows of the group's own attention ranks."""
        base = self.own_before[microbatch] - self.own[microbatch][0].first
        return slice(base + rows.first, base + rows.stop)

    def source_tokens(self, fabric: Fabric, source: int) -> list[int]:
        """Tokens of a source group in each microbatch."""
        ranks = fabric.groups[source].attention
        first = self._ranks.index(ranks[0])
        return [sum(counts[first : first + len(ranks)]) for counts in self._layout.counts]

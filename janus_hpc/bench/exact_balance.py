"""The optimum that balancing policies are measured against: the smallest possible largest load, by maximum flow.

Needs scipy. Shares nothing with the kernels it judges.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

# Legend: A activated experts, R expert ranks, E experts.


def exact_a_max(active_ids: Sequence[int], hosts_ER: npt.NDArray[np.bool_]) -> int:
    """The least a_max over all choices of one replica for each activated expert.

    Restricted assignment with unit jobs: binary search over the largest load, each value tested by a flow
    source -> expert -> host -> sink with that capacity (METRO, arXiv 2512.09277, section on the optimum).
    """
    if not len(active_ids):
        return 0
    hosts_AR = hosts_ER[np.asarray(active_ids)]
    low: int = -(-len(hosts_AR) // hosts_AR.shape[1])
    high = len(hosts_AR)
    while low < high:
        middle = (low + high) // 2
        if _fits(hosts_AR, middle):
            high = middle
        else:
            low = middle + 1
    return low


def _fits(hosts_AR: npt.NDArray[np.bool_], most: int) -> bool:
    """Whether every expert finds a host that has at most `most` of them."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import maximum_flow

    num_active, num_ranks = hosts_AR.shape
    source, sink = num_active + num_ranks, num_active + num_ranks + 1
    experts, ranks = np.nonzero(hosts_AR)
    everyone, every_rank = np.arange(num_active), np.arange(num_ranks) + num_active
    tails = np.concatenate([np.full(num_active, source), experts, every_rank])
    heads = np.concatenate([everyone, ranks + num_active, np.full(num_ranks, sink)])
    capacities = np.concatenate([np.ones(num_active + len(experts)), np.full(num_ranks, most)])
    graph = csr_matrix((capacities.astype(np.int32), (tails, heads)), shape=(sink + 1, sink + 1))
    flow: int = maximum_flow(graph, source, sink).flow_value
    return bool(flow == num_active)

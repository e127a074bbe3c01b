"""An emulated cluster on one Linux machine: nodes are namespaces, joined by links of a given rate."""

from tests.cluster.bed import Bed, emulated_cluster
from tests.cluster.requirements import missing

__all__ = ["Bed", "emulated_cluster", "missing"]

"""Everything between ranks: the world, the exchange, waits. The only importer of mpi4py."""

"""Partitioners: one file per method, or per library whose methods differ in an argument.

Here stand functions of a `mldd.graph.Cut` that return the part of every node (`mldd.graph.Partitioner` is their
contract), each named in the table below. What balances, refines or judges partitions may not stand here. This room
imports `mldd.graph`; `mldd.graph.partition` looks the functions up by name when it needs them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

REGISTERED = {
    "metis": "mldd.graph.partitioners.metis:metis",
    "metis-volume": "mldd.graph.partitioners.metis:metis_volume",
    "mixed": "mldd.graph.partitioners.mixed:mixed",
    "kahypar": "mldd.graph.partitioners.kahypar:kahypar",
    "kahypar-km1": "mldd.graph.partitioners.kahypar:kahypar_km1",
    "kahip": "mldd.graph.partitioners.kahip:kahip",
    "petsc": "mldd.graph.partitioners.petsc:petsc",
    "geometric": "mldd.graph.partitioners.geometric:geometric",
    "spectral": "mldd.graph.partitioners.spectral:spectral",
    "contiguous": "mldd.graph.partitioners.contiguous:contiguous",
    "random": "mldd.graph.partitioners.random:random",
}

"""Kinds of graph layers, one file each: parameters, operator, and the function itself.

A new kind is a subclass of `Layer` in a file of its own and a line in the table below; whole graphs, shards, composite
graphs and coarse networks ask it. What several kinds are made of stands in `products`; networks may not stand here.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

REGISTERED = {
    "gcn": "mldd.problems.nets.layers.gcn:GCN",
    "sage": "mldd.problems.nets.layers.sage:SAGE",
    "gin": "mldd.problems.nets.layers.gin:GIN",
    "gat": "mldd.problems.nets.layers.gat:GAT",
    "gatv2": "mldd.problems.nets.layers.gatv2:GATv2",
    "transformer": "mldd.problems.nets.layers.transformer:Transformer",
}

"""Training on the nodes of a graph: whole, in shards, or by networks of the subdomains' own.

Here stand losses over nodes, coarse graphs as levels, and the problems made of them. Time series may not stand here.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

_DATA = ("cora", "citeseer", "photo", "physics", "minesweeper", "texas", "digits-graph", "sbm")
REGISTERED = {
    **{name: f"mldd.problems.graphs.node_classification:NodeClassification?name={name}" for name in _DATA},
    **{f"{name}-own": f"mldd.problems.graphs.subdomain_networks:SubdomainNetworks?name={name}" for name in _DATA},
    "synthetic": "mldd.problems.graphs.synthetic:SyntheticClassification",
}
MODELS = {"nodes": "mldd.problems.graphs.node_model:NodeModel"}

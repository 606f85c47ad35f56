"""Small graphs for tests: drawn at random, as dense matrices, grids."""

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st

import mldd
from mldd.graph import Graph
from mldd.problems.graphs import ShardedClassification
from mldd.ranks import SERIAL

few = settings(max_examples=40, deadline=None)


@st.composite
def graphs(draw, most=12):
    n = draw(st.integers(1, most))
    node = st.integers(0, n - 1)
    pairs = draw(st.lists(st.tuples(node, node), max_size=30))
    return n, torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T


def dense(n, edges):
    matrix = np.zeros((n, n))
    for i, j in edges.T.tolist():
        if i != j:
            matrix[i, j] = matrix[j, i] = 1
    return matrix


def grid(side):
    number = torch.arange(side * side).reshape(side, side)
    right = torch.stack([number[:, :-1].ravel(), number[:, 1:].ravel()])
    down = torch.stack([number[:-1].ravel(), number[1:].ravel()])
    return Graph.from_edges(torch.cat([right, down], 1), side * side)


def sharded(data, part, comm=SERIAL, **keys):
    """The problem on the shard of this rank, options by the keys of the command line."""
    shard = ShardedClassification.of(data, part, comm).shard
    return mldd.problem(ShardedClassification, folder=shard, comm=comm, **keys)

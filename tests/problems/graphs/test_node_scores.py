"""Scores of classified nodes by hand."""

import math

import numpy as np
import pytest
import torch

from mldd.problems.graphs.node_scores import NodeScores, area_under_curve

LABELS = torch.tensor([0, 1, 1, 0, -1])
OUTPUTS = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.5, 0.0], [0.0, 0.0]])


def scores(metric="accuracy", **masks):
    empty = torch.zeros(5, dtype=torch.bool)
    chosen = {name: empty.clone() for name in ("train", "validation", "test")}
    for name, nodes in masks.items():
        chosen[name][nodes] = True
    return NodeScores(LABELS, chosen, metric)


def test_accuracies_are_shares_of_the_nodes_of_a_split():
    found = scores(train=[0, 1], validation=[1, 2], test=[2, 3, 4]).metrics(OUTPUTS)
    assert found == {"train_accuracy": 1.0, "validation_accuracy": 0.5, "test_accuracy": 1 / 3}


def test_validation_by_hand():
    found = scores(validation=[0, 2]).validation(OUTPUTS)
    losses = [math.log(1 + math.exp(-2.0)), math.log(1 + math.exp(3.0))]
    assert found["validation_loss"] == pytest.approx(sum(losses) / 2)
    assert found["validation_accuracy"] == 0.5


def test_no_nodes_have_no_score():
    none = scores(metric="auc")
    values = [*none.metrics(OUTPUTS).values(), *none.validation(OUTPUTS).values()]
    assert len(values) == 6 and all(map(math.isnan, values))


def test_the_area_is_that_of_the_test_nodes():
    found = scores(metric="auc", test=[0, 1, 2, 3]).metrics(OUTPUTS)["test_auc"]
    assert found == pytest.approx(0.5)  # of the pairs (1, 0), (1, 3), (2, 0), (2, 3) the first two are in order


def test_area_under_curve():
    score, positive = torch.tensor([0.2, 0.2, 0.9, 0.1]), torch.tensor([0, 1, 1, 0])
    assert area_under_curve(score, positive) == pytest.approx(3.5 / 4)
    random = np.random.default_rng(0)
    score, positive = torch.from_numpy(random.integers(20, size=200)), torch.from_numpy(random.integers(2, size=200))
    pairs = np.sign(score[positive == 1].numpy()[:, None] - score[positive == 0].numpy())
    assert area_under_curve(score, positive) == pytest.approx((1 + pairs.mean()) / 2)
    assert np.isnan(area_under_curve(score, torch.ones(200)))

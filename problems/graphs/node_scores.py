"""How well the nodes of a graph are classified, on one rank or on all that hold nodes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mldd.problems.data import SPLITS
from mldd.ranks import SERIAL, Communicator


@dataclass(frozen=True, eq=False)
class NodeScores:
    """Scores of outputs at the nodes of this rank, over the nodes of all ranks.

    Parameters
    ----------
    labels : Tensor, shape (m,), int64
        Class of every node, -1 where there is none.
    masks : dict of str to Tensor, shape (m,), bool
        The nodes of the split: train, validation and test.
    metric : str
        "accuracy", or "auc" for the area under the ROC curve of two classes besides.
    comm : Communicator
        The ranks that hold nodes of one graph.
    """

    labels: Tensor
    masks: dict[str, Tensor]
    metric: str
    comm: Communicator = SERIAL

    @staticmethod
    def of(data: object, labels: Tensor, metric: str, comm: Communicator = SERIAL) -> NodeScores:
        """Return the scores for a record that has the masks of the split.

        Parameters
        ----------
        data : GraphData or NodeData
            Its masks are tensors or arrays.
        labels : Tensor, shape (m,), int64
            Class of every node, -1 where there is none.
        metric : str
            "accuracy" or "auc".
        comm : Communicator
            The ranks that hold nodes of one graph.
        """
        return NodeScores(labels, {name: torch.as_tensor(getattr(data, name)) for name in SPLITS}, metric, comm)

    def validation(self, outputs: Tensor) -> dict[str, float]:
        """Return the mean cross-entropy and the accuracy over the validation nodes; NaN where there are none.

        Parameters
        ----------
        outputs : Tensor, shape (m, C)
            Of the network, without dropout.
        """
        mask = self.masks["validation"]
        z, labels = outputs.cpu().double()[mask], self.labels[mask]
        lost = float(torch.nn.functional.cross_entropy(z, labels, reduction="sum"))
        loss, hits, count = self.comm.sum_scalars([lost, float((z.argmax(1) == labels).sum()), float(len(labels))])
        return {"validation_loss": _mean(loss, count), "validation_accuracy": _mean(hits, count)}

    def metrics(self, outputs: Tensor) -> dict[str, float]:
        """Return the accuracies over the nodes of the split, and `test_auc` where that is the metric.

        Parameters
        ----------
        outputs : Tensor, shape (m, C)
            Of the network, without dropout.
        """
        z = outputs.cpu().double()
        right = z.argmax(1) == self.labels
        counts = [float(v.sum()) for mask in self.masks.values() for v in (right[mask], mask)]
        total = self.comm.sum_scalars(counts)
        found = {f"{name}_accuracy": _mean(*total[2 * k : 2 * k + 2]) for k, name in enumerate(self.masks)}
        if self.metric == "auc":
            test = self.masks["test"]
            score = torch.stack([z[:, 1] - z[:, 0], self.labels.double()], 1)[test]
            found["test_auc"] = area_under_curve(*self.comm.gather(score.contiguous()).T)
        return found


def _mean(total: float, count: float) -> float:
    return total / count if count else float("nan")


def area_under_curve(score: Tensor, positive: Tensor) -> float:
    """Return the area under the ROC curve: the share of pairs in the right order, ties count one half.

    Parameters
    ----------
    score : Tensor, shape (m,)
        Higher where a node is thought to be positive.
    positive : Tensor, shape (m,)
        1 or true for positive nodes; without any, or without others, the area is NaN.

    Examples
    --------
    >>> area_under_curve(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([0, 0, 1, 1]))
    0.75
    """
    from sklearn.metrics import roc_auc_score

    of_class = positive.numpy() > 0
    return float(roc_auc_score(of_class, score.numpy())) if 0 < of_class.sum() < len(of_class) else float("nan")

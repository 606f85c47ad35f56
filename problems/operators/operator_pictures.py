"""Pictures of a learned operator: a rollout beside the equation, and errors after every interval."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from mldd.figures import maps

if TYPE_CHECKING:
    from mldd.problems.operators.operator_problem import OperatorProblem


def draw(problem: OperatorProblem, folder: Path, x: Tensor) -> list[Path]:
    """Draw the validation samples of this rank into `folder` and return the files.

    Parameters
    ----------
    problem : OperatorProblem
        What has been trained.
    folder : Path
        Where figures are written.
    x : Tensor, shape (N,)
        Parameters of the network.
    """
    rollouts, domain, evolution = problem.rollouts, problem.domain, problem.evolution
    truth, made, interval = rollouts.truth, rollouts.rollout(x), evolution.interval
    errors = ((made - truth) ** 2).mean(2)
    one, end = int(np.argsort(errors[-1])[errors.shape[1] // 2]), rollouts.leads * interval
    maps.fields(
        domain.places,
        {
            "state at time 0": truth[0, one],
            f"equation at time {end:g}": truth[-1, one],
            f"network at time {end:g}": made[-1, one],
            "network minus equation": made[-1, one] - truth[-1, one],
        },
        folder / "rollout.png",
        errors=("network minus equation",),
        grid=domain.grid,
        label=evolution.label,
        title=f"{domain.nodes} nodes, RMSE {np.sqrt(errors[-1, one]):.3g}, the median of the validation samples",
        axes=domain.axes,
    )
    still = ((truth[:1] - truth) ** 2).mean(2)
    curves = {"persistence": still, "network": errors}
    maps.skill(
        (interval * np.arange(1, rollouts.leads + 1)).tolist(),
        {evolution.label: {name: np.sqrt(found[1:].mean(1)) for name, found in curves.items()}},
        folder / "skill.png",
        unit="units of time",
        title="validation samples",
    )
    return [folder / "rollout.png", folder / "skill.png"]

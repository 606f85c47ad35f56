"""Pictures of a learned operator: a rollout beside the equation, and errors after every interval."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from mldd.figures import maps

if TYPE_CHECKING:
    from mldd.problems.operators.allen_cahn_operator import AllenCahnOperator


def draw(problem: AllenCahnOperator, folder: Path, x: Tensor) -> list[Path]:
    """Draw the validation samples of this rank into `folder` and return the files.

    Parameters
    ----------
    problem : AllenCahnOperator
        What has been trained.
    folder : Path
        Where figures are written.
    x : Tensor, shape (N,)
        Parameters of the network.
    """
    rollouts, equation, n = problem.rollouts, problem.equation, problem.n
    truth, made = rollouts.truth, rollouts.rollout(x).double().cpu().numpy()
    errors = ((made - truth) ** 2).mean(2)
    one, end = int(np.argsort(errors[-1])[errors.shape[1] // 2]), rollouts.leads * equation.time
    places = equation.spacing * np.stack(np.meshgrid(np.arange(n), np.arange(n), indexing="ij"), 2).reshape(-1, 2)
    maps.fields(
        places.astype(np.float64),
        {
            "state at time 0": truth[0, one],
            f"equation at time {end:g}": truth[-1, one],
            f"network at time {end:g}": made[-1, one],
            "network minus equation": made[-1, one] - truth[-1, one],
        },
        folder / "rollout.png",
        errors=("network minus equation",),
        grid=(n, n),
        label="u",
        title=f"{n} x {n} nodes, RMSE {np.sqrt(errors[-1, one]):.3g}, the median of the validation samples",
        axes=("y", "x"),
    )
    still = ((truth[:1] - truth) ** 2).mean(2)
    curves = {"persistence": still, "network": errors}
    maps.skill(
        (equation.time * np.arange(1, rollouts.leads + 1)).tolist(),
        {"u": {name: np.sqrt(found[1:].mean(1)) for name, found in curves.items()}},
        folder / "skill.png",
        unit="units of time",
        title="validation samples",
    )
    return [folder / "rollout.png", folder / "skill.png"]

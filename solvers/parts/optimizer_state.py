"""The memory of a solver in the state of an optimizer, in the form that torch and its checkpoints expect.

Every parameter has the name of the solver, and the first one the memory, as bytes: torch.distributed.checkpoint asks
for a state of every parameter, and reads values that are no tensors whatever a new optimizer has in their place.
"""

from __future__ import annotations

import io
from typing import Any

import torch


def with_memory(state_dict: dict[str, Any], solver: str, memory: dict[str, Any] | None) -> dict[str, Any]:
    """Return the state of an optimizer with the memory of its solver.

    Parameters
    ----------
    state_dict : dict
        Of torch's own part of the optimizer.
    solver : str
        The name of the solver.
    memory : dict or None
        Plain data; None before the first step.
    """
    buffer = io.BytesIO()
    torch.save(memory, buffer)
    entries: dict[Any, dict[str, Any]] = {key: {"solver": solver} for key in _keys(state_dict)}
    entries[_keys(state_dict)[0]]["memory"] = buffer.getvalue()
    return {**state_dict, "state": entries}


def memory_of(state_dict: dict[str, Any], solver: str) -> dict[str, Any] | None:
    """Return the memory of the solver in the state of an optimizer.

    Parameters
    ----------
    state_dict : dict
        As `with_memory` has made it, with numbers or names of the parameters.
    solver : str
        The name of the solver that is to go on.

    Raises
    ------
    ValueError
        The state of another solver, or of no solver of mldd.
    """
    entry = state_dict["state"].get(_keys(state_dict)[0], {})
    if entry.get("solver") != solver or "memory" not in entry:
        got = entry.get("solver", "that of another optimizer")
        raise ValueError(f"`state_dict` must be that of {solver}, got {got}; make the optimizer that was saved")
    memory: dict[str, Any] | None = torch.load(io.BytesIO(entry["memory"]), weights_only=True)
    return memory


def without_memory(state_dict: dict[str, Any]) -> dict[str, Any]:
    """Return torch's own part of the state: the groups, and an entry for every parameter.

    Parameters
    ----------
    state_dict : dict
        As `with_memory` has made it.
    """
    entries = {key: {"solver": entry["solver"]} for key, entry in state_dict["state"].items()}
    return {**state_dict, "state": entries}


def _keys(state_dict: dict[str, Any]) -> list[Any]:
    """Return the keys of the parameters: numbers, or names in states of torch.distributed.checkpoint."""
    return [key for group in state_dict["param_groups"] for key in group["params"]]

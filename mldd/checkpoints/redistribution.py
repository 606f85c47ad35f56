"""States of solvers on another number of ranks: whole subdomains move to the ranks that hold them now.

What a record keeps of subdomains is in fields marked `PER_SUBDOMAIN`, and the numbers of the subdomains in its field
`subdomains`. Such a field is a list with one entry per subdomain, or one batch (a tensor, or a record of tensors) whose
first axes count the subdomains and whose last axis may be padded to the longest of them. All else has to be the same on
all ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from mldd.loop import CheckpointError, pack, same

_SUMMED = ("accepted", "rejected", "evaluations")  # counts of a batch: two that become one have both


def redistributed(template: Any, states: Sequence[Any]) -> Any:
    """Return the packed state of this rank, made of those of all ranks that there were.

    Parameters
    ----------
    template : State
        A fresh one, which knows the subdomains of this rank.
    states : list
        Of all ranks, as `pack` has returned them.

    Raises
    ------
    CheckpointError
        A field that belongs to no subdomain and differs between the ranks, by its name.
    """
    return _merged(template, list(states), "state")


def _merged(template: Any, parts: list[Any], where: str) -> Any:
    names = {f.name for f in fields(template)} if is_dataclass(template) else set()
    if names and all(isinstance(part, dict) and set(part) == names for part in parts):
        found = _moved(template, parts, where) if hasattr(template, "subdomains") else {}
        for f in fields(template):
            mine, place = getattr(template, f.name), f"{where}.{f.name}"
            if f.metadata.get("scratch"):
                found[f.name] = pack(template, where)[f.name]
            elif f.name not in found:
                found[f.name] = _merged(mine, [part[f.name] for part in parts], place)
        return found
    if isinstance(template, list) and all(isinstance(p, list) and len(p) == len(template) for p in parts):
        return [_merged(t, [p[k] for p in parts], f"{where}[{k}]") for k, t in enumerate(template)]
    return _of_all(parts, where)


def _of_all(parts: list[Any], where: str) -> Any:
    if not all(same(parts[0], part) for part in parts[1:]):
        raise CheckpointError(
            f"`{where}` differs between the {len(parts)} ranks of the checkpoint and belongs to no subdomain, so that "
            f"it cannot be given to another number of ranks; resume with mpiexec -n {len(parts)}"
        )
    return parts[0]


def _moved(template: Any, parts: list[Any], where: str) -> dict[str, Any]:
    """Return the fields of the subdomains that are here now, and their numbers."""
    here, there = template.subdomains, [part["subdomains"] for part in parts]
    all_there = [k for numbers in there for k in numbers]
    if len(set(all_there)) != len(all_there) or not set(here) <= set(all_there):
        raise CheckpointError(
            f"`{where}.subdomains` must have the subdomains {here} once, got {there}; resume with the same parts"
        )
    batches = [_Batch(part["subdomains"], _width(part.get("weights"))) for part in parts]
    now = _Batch(here, _width(getattr(template, "weights", None)))
    found: dict[str, Any] = {"subdomains": list(here)}
    for f in fields(template):
        if f.metadata.get("per subdomain"):
            move = _Move(batches, now, f"{where}.{f.name}")
            fresh = pack(getattr(template, f.name), f.name)
            found[f.name] = move.of([part[f.name] for part in parts], fresh)
    return found


def _width(weights: Any) -> int:
    return weights.shape[-1] if isinstance(weights, Tensor) and weights.dim() == 2 else 0


class _Batch:
    """Subdomains on a rank, by their numbers, and the length to which their vectors are padded."""

    def __init__(self, numbers: Sequence[int], width: int) -> None:
        self.numbers, self.width = list(numbers), width


class _Move:
    """One field of the subdomains of all ranks on its way to this one."""

    def __init__(self, before: list[_Batch], now: _Batch, where: str) -> None:
        self.now, self.where = now, where
        self.before = [batch for batch in before if batch.numbers]
        self.filled = [k for k, batch in enumerate(before) if batch.numbers]
        self.place = {n: (r, k) for r, batch in enumerate(self.before) for k, n in enumerate(batch.numbers)}

    def of(self, parts: list[Any], fresh: Any) -> Any:
        """Return what this rank gets; `fresh` is the field of the template, packed."""
        mine = [parts[k] for k in self.filled]
        for batch, part in zip(self.before, mine, strict=True):
            if batch.numbers == self.now.numbers:
                return part
        if not self.now.numbers or not mine:
            return fresh
        if not isinstance(fresh, list):
            return self._rows(mine, fresh, self.where)
        lists = [*zip(mine, self.before, strict=True), (fresh, self.now)]
        if all(len(entries) == len(batch.numbers) for entries, batch in lists):
            return [mine[r][k] for r, k in (self.place[n] for n in self.now.numbers)]
        if all(len(entries) == 1 for entries, _ in lists):
            return [self._rows([part[0] for part in mine], fresh[0], f"{self.where}[0]")]
        return _of_all(mine, self.where)

    def _rows(self, parts: list[Any], fresh: Any, where: str) -> Any:
        """Return a batch of the subdomains that are here now."""
        if all(isinstance(part, dict) for part in parts):
            likes = fresh if isinstance(fresh, dict) else {}
            if set(likes) == {"!scratch"}:
                return fresh
            return {key: self._entry(key, [p[key] for p in parts], likes.get(key), where) for key in parts[0]}
        if all(isinstance(part, Tensor) for part in parts) and self._has_rows(parts, fresh):
            return self._stacked(parts, fresh if isinstance(fresh, Tensor) else None)
        if all(isinstance(part, list) and len(part) == len(parts[0]) for part in parts):
            return [self._rows([p[k] for p in parts], None, f"{where}[{k}]") for k in range(len(parts[0]))]
        return _of_all(parts, where)

    def _entry(self, key: str, parts: list[Any], fresh: Any, where: str) -> Any:
        if key in _SUMMED and all(type(part) is int for part in parts):
            return sum(parts)
        if key == "notes" and all(isinstance(part, dict) for part in parts):
            return {name: sum(part.get(name, 0) for part in parts) for part in parts for name in part}
        return self._rows(parts, fresh, f"{where}.{key}")

    def _has_rows(self, parts: list[Tensor], fresh: Any) -> bool:
        # An empty tensor is one that is allocated when it is first needed.
        if isinstance(fresh, Tensor) and fresh.dim() > 0 and len(fresh) not in (0, len(self.now.numbers)):
            return False
        return all(
            part.dim() > 0 and len(part) == len(batch.numbers) for part, batch in zip(parts, self.before, strict=True)
        )

    def _stacked(self, parts: list[Tensor], fresh: Tensor | None) -> Tensor:
        """Return one row per subdomain, padded like the template: with its numbers there, or zeros."""
        pairs = zip(parts, self.before, strict=True)
        padded = all(part.dim() > 1 and part.shape[-1] == batch.width for part, batch in pairs)
        like, shape = parts[0], [len(self.now.numbers), *parts[0].shape[1:]]
        if padded:
            shape[-1] = self.now.width
        fits = fresh is not None and list(fresh.shape) == shape
        out = fresh.clone() if fresh is not None and fits else torch.zeros(shape, dtype=like.dtype)
        for row, (r, k) in zip(out, (self.place[n] for n in self.now.numbers), strict=True):
            if padded:
                most = min(row.shape[-1], parts[r].shape[-1])
                row[..., :most] = parts[r][k, ..., :most]
            else:
                row.copy_(parts[r][k])
        return out

"""Checkpoints: iterate, full state of the solver, history and random state, in files that hold data only.

A checkpoint is the file of its name (`mldd.checkpoints.archive`), with the records of the run in a file beside it
(`mldd.checkpoints.journal`). The one before is kept as ``NAME.previous``, to which `load` turns where the newest is
damaged.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mldd.checkpoints import archive, journal
from mldd.checkpoints.archive import ArchiveError, Content
from mldd.checkpoints.journal import WrittenRecords
from mldd.checkpoints.redistribution import redistributed
from mldd.loop import CheckpointError, History, Validation, check_finite, pack, replacing, restore, same
from mldd.ranks import SERIAL, Communicator

FORMAT = "mldd checkpoint 4"
_PIECE = 2**28  # bytes of a tensor of another rank that are sent at once


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes
    ----------
    x : Tensor, shape (n,)
        The iterate.
    states : list of dict
        The solver's state: one for all ranks, or one per rank where ranks hold different ones.
    history : History
        Records up to there.
    meta : dict
        Problem, solver, options, seed, version: what has to be the same for the run to go on.
    random : dict
        State of torch's and NumPy's global generators.
    validation : dict
        What `Validation.state` has returned; empty where the run had none.
    memories : list
        What the objective remembers from step to step, as `states`; None where it remembers nothing.
    note : str
        What the user should know of where it comes from; empty for nothing.
    """

    x: Tensor
    states: list[dict[str, Any]]
    history: History
    meta: dict[str, Any]
    random: dict[str, Any]
    validation: dict[str, Any]
    memories: list[Any]
    note: str = ""

    def check(self, meta: dict[str, Any]) -> None:
        """Refuse to go on with another run than the one described by `meta` (its version may differ).

        Parameters
        ----------
        meta : dict
            What has to be the same, of the run that is to go on.

        Raises
        ------
        CheckpointError
            First entry that differs.
        """
        difference = _difference(pack(meta, "meta"), self.meta)
        if difference:
            key, expected, got = difference
            raise CheckpointError(
                f"the checkpoint must be one of the same run, with {key} {expected}, got one with {got}; give the same "
                f"{key}, or start anew without --resume"
            )

    def state(self, template: Any, comm: Communicator = SERIAL) -> Any:
        """Return this rank's state, filled into `template`; on another number of ranks whole subdomains move.

        Parameters
        ----------
        template : State
            A fresh one of the same solver.
        comm : Communicator
            The ranks, each of which gets its own.

        Raises
        ------
        CheckpointError
            A field does not fit, or cannot be given to another number of ranks.
        """
        states = self.states[comm.rank : comm.rank + 1] if len(self.states) == comm.ranks else self.states
        return restore(template, redistributed(template, states))

    def memory(self, comm: Communicator = SERIAL) -> Any:
        """Return what the objective remembers on this rank, None for nothing.

        Parameters
        ----------
        comm : Communicator
            The ranks, each of which gets its own.

        Raises
        ------
        CheckpointError
            There are more or fewer ranks than there were.
        """
        if len(self.memories) not in (1, comm.ranks):
            raise CheckpointError(
                f"the checkpoint holds the halos' memories of {len(self.memories)} ranks, got {comm.ranks}; resume "
                f"with mpiexec -n {len(self.memories)}"
            )
        return self.memories[comm.rank if len(self.memories) > 1 else 0]

    def restore_random(self) -> None:
        """Set torch's and NumPy's global generators to what they were."""
        if "torch" in self.random:
            torch.set_rng_state(self.random["torch"])
        if "numpy" in self.random:
            name, keys, *rest = self.random["numpy"]
            np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))


def previous(path: Path | str) -> Path:
    """Return the name of the checkpoint before the newest one.

    Parameters
    ----------
    path : Path or str
        Of the newest.
    """
    return Path(f"{path}.previous")


def save(
    path: Path | str,
    *,
    x: Tensor,
    state: Any,
    history: History,
    meta: dict[str, Any],
    comm: Communicator = SERIAL,
    validation: Validation | None = None,
    memory: Any = None,
) -> None:
    """Write a checkpoint whole or not at all, and keep the one before. Called by all ranks; rank 0 writes.

    Parameters
    ----------
    path : Path or str
        Of the file.
    x : Tensor, shape (n,)
        The iterate.
    state : State
        Of the solver, on this rank.
    history : History
        All records so far; those that are new since the last checkpoint are written.
    meta : dict
        What has to be the same for the checkpoint to be of a run.
    comm : Communicator
        The ranks.
    validation : Validation, optional
        That of the run.
    memory : record, optional
        What the objective remembers from step to step, on this rank.

    Raises
    ------
    CheckpointError
        The state says ``resumable = False`` or holds something else than data, or the iterate is not finite.
    OSError
        The file cannot be written; an older one of this name is kept.
    """
    path, kept = Path(path), pack(x, "x")
    check_finite(kept, "x")
    states = _of_ranks(Content.of({"state": pack(state, "state"), "memory": pack(memory, "memory")}, ""), comm)
    if comm.rank != 0:
        return
    last = journal.append(path, history.records, _kept(path, meta))
    rest = {
        "x": kept,
        "validation": {} if validation is None else pack(validation.state(), "validation"),
        "meta": pack(meta, "meta"),
        "random": _random_state(),
        "history": last.as_tree(),
    }
    content = Content.of(rest, "")
    content.tree["ranks"] = [one.tree for one in states]
    for one in states:
        content.tensors.update(one.tensors)
        content.entries.update(one.entries)
    with replacing(path, previous(path)) as new:
        archive.write(new, content, FORMAT)
    older = _tree(previous(path))
    journal.clean(path, {last.file, older["history"]["file"] if older else ""})


def load(path: Path | str) -> Checkpoint:
    """Return the checkpoint in a file, on the CPU, or the one before where it is damaged. Nothing in a file is run.

    Parameters
    ----------
    path : Path or str
        Of the file.

    Raises
    ------
    CheckpointError
        Not a checkpoint of mldd: truncated, damaged, foreign or malicious.
    FileNotFoundError
        No such file.
    """
    path, older = Path(path), previous(path)
    try:
        return _loaded(path)
    except (CheckpointError, FileNotFoundError) as error:
        if not older.is_file():
            raise
        try:
            found = _loaded(older)
        except CheckpointError:
            raise error from None
        reason = str(error).partition(";")[0]
        return replace(found, note=f"{reason}; going on from the one before it, {older} of step {_step(found)}")


def is_checkpoint(path: Path | str) -> bool:
    """Return whether a file begins as a checkpoint of this version does; its tensors are not read.

    Parameters
    ----------
    path : Path or str
        Of the file.
    """
    return _tree(Path(path)) is not None


def check_replacing(path: Path, meta: dict[str, Any], overwrite: bool, comm: Communicator = SERIAL) -> None:
    """Refuse to put the checkpoints of a new run in the place of something else: rank 0 looks, all refuse together.

    Parameters
    ----------
    path : Path
        Of the checkpoints to come.
    meta : dict
        Of the run.
    overwrite : bool
        Whether what is there may be replaced.
    comm : Communicator
        The ranks.

    Raises
    ------
    FileExistsError
        There is the checkpoint of another run, or a file that is no checkpoint.
    """
    found = comm.gather_items("" if comm.rank or overwrite or not path.exists() else _found(path, meta))[0]
    if found:
        raise FileExistsError(
            f"the checkpoint {path} must be free or of the same run, got {found}; give another name, or --overwrite"
        )


def _found(path: Path, meta: dict[str, Any]) -> str:
    """Return what a file is that would be lost, empty for an older checkpoint of the same run."""
    tree = _tree(path)
    if tree is None:
        return "a file that is no whole checkpoint of this version of mldd"
    difference = _difference(pack(meta, "meta"), tree["meta"])
    return f"one of another run ({difference[0]} {difference[2]} in place of {difference[1]})" if difference else ""


def _difference(expected: Mapping[str, Any], got: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """Return name and values of the first entry that differs: of a long text, the parts that do."""
    for key, value in expected.items():
        other = got.get(key)
        if key == "mldd" or same(other, value):
            continue
        mine, theirs = str(value), str(other)
        pieces, others = mine.split(","), theirs.split(",")
        if len(pieces) == len(others) and len(mine) > 60:
            pairs = [pair for pair in zip(pieces, others, strict=True) if pair[0] != pair[1]]
            mine, theirs = (",".join(parts) for parts in zip(*pairs, strict=True))
        return key, mine, theirs
    return None


def _tree(path: Path) -> dict[str, Any] | None:
    """Return the tree of a checkpoint without its tensors, None where there is no whole one."""
    try:
        tree = archive.read_tree(path, FORMAT)
        WrittenRecords(**tree["history"])
        return tree if isinstance(tree["meta"], dict) else None
    except (OSError, ArchiveError, KeyError, TypeError):
        return None


def _kept(path: Path, meta: dict[str, Any]) -> WrittenRecords | None:
    tree = _tree(path)
    return None if tree is None or not same(tree["meta"], pack(meta, "meta")) else WrittenRecords(**tree["history"])


def _step(found: Checkpoint) -> int:
    return found.history.records[-1].step if found.history.records else 0


# ------------------------------------------------------------------------------------------------ ranks


def _of_ranks(mine: Content, comm: Communicator) -> list[Content]:
    """Return on rank 0 the contents of all ranks, with one copy of what is equal; one where all are."""
    if comm.ranks == 1:
        return [mine]
    told = comm.gather_items((json.dumps(mine.tree), mine.entries))
    if all(other == told[0] for other in told[1:]):
        return [mine]
    known, contents = set(told[0][1].values()), [mine]
    for rank, (text, entries) in enumerate(told):
        tensors = {}
        for name, entry in entries.items():
            if rank > 0 and entry not in known:
                known.add(entry)
                tensors[name] = _sent(mine.tensors.get(name), entry, rank, comm)
        if rank > 0 and comm.rank == 0:
            contents.append(Content(json.loads(text), tensors, entries).under(f"rank {rank}: "))
    return contents


def _sent(tensor: Tensor | None, entry: archive.Entry, rank: int, comm: Communicator) -> Tensor:
    """Return the tensor of another rank, in pieces that a message can hold."""
    raw = bytearray()
    for begin in range(0, entry.bytes, _PIECE):
        piece = None if tensor is None or comm.rank != rank else archive.raw(tensor)[begin : begin + _PIECE].tobytes()
        sent = comm.gather_items(piece)[rank]
        if comm.rank == 0:
            raw += sent
    return entry.tensor(raw) if comm.rank == 0 else torch.empty(0)


def _random_state() -> dict[str, Any]:
    name, keys, *rest = np.random.get_state(legacy=True)
    numbers = [v.item() if isinstance(v, np.generic) else v for v in rest]
    return {
        "torch": torch.get_rng_state(),
        "numpy": [str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), *numbers],
    }


# ------------------------------------------------------------------------------------------------ reading


def _loaded(path: Path) -> Checkpoint:
    if not path.is_file():
        raise FileNotFoundError(f"the checkpoint {path} must be a file, got none; check the path")
    try:
        content = archive.read(path, FORMAT)
        records = journal.read(path, WrittenRecords(**content["history"]))
        return _checked(content, History(records))
    except ArchiveError as error:
        raise CheckpointError(
            f"{path} must be a whole checkpoint of mldd, but it cannot be read ({error}); give another one, or start "
            "anew without --resume"
        ) from error
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} must be a checkpoint written by mldd, got another file ({error})") from error


def _checked(content: Mapping[str, Any], history: History) -> Checkpoint:
    """Return the checkpoint, if its parts go together."""
    x, ranks, meta, random, last = (content[key] for key in ("x", "ranks", "meta", "random", "validation"))
    if not (isinstance(x, Tensor) and all(isinstance(part, dict) for part in (meta, random, last))):
        raise TypeError("a part has the wrong type")
    if not ranks or not all(isinstance(one["state"], dict) for one in ranks):
        raise TypeError("it has no state of a solver")
    size, dtype = meta.get("size", len(x)), meta.get("dtype", str(x.dtype))
    if x.shape != (size,) or str(x.dtype) != dtype:
        raise CheckpointError(
            f"`x` must be {dtype} of shape ({size},), got {x.dtype} of shape {tuple(x.shape)}; go on from an older "
            "checkpoint, or start anew without --resume"
        )
    check_finite(x, "x")
    for one in ranks:
        _check_step(one["state"].get("step"), history)
    memories = [one["memory"] for one in ranks]
    if all(same(memories[0], memory) for memory in memories[1:]):
        memories = memories[:1]
    return Checkpoint(x, [one["state"] for one in ranks], history, meta, random, last, memories)


def _check_step(step: Any, history: History) -> None:
    expected = history.records[-1].step if history.records else step
    if type(step) is not int or not 0 <= step < math.inf or step != expected:
        raise CheckpointError(
            f"`state.step` must be {expected}, that of its last record, got {step}; go on from an older checkpoint, or "
            "start anew without --resume"
        )

"""Data of any kind that torch knows, as samples that can be counted and taken by their numbers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
)

from mldd.problems.modules.user_modules import explained

_AT_ONCE = 1024  # samples that a module is called with together
_MANY = 10_000  # batches after which it is said that there are many
_KINDS = "a tuple of tensors, a Dataset, a DataLoader, or batches one after the other"


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples that are taken by their numbers; or batches of them, where only whole batches can be taken.

    Parameters
    ----------
    stacked : tensor, or tuple, list or dict of tensors, or None
        All samples, side by side along the first axis; None where there are batches.
    batches : tuple
        Batches as a loader has made them, each of which counts as one sample.
    batch : int
        Samples of a batch of the loader that the data came in, 0 where there was none.
    """

    stacked: Any
    batches: tuple[Any, ...] = ()
    batch: int = 0

    @staticmethod
    def of(data: Any, seed: int = 0) -> Samples:
        """Return the samples of data, all of which are read here, once.

        Parameters
        ----------
        data : tuple of Tensor, Dataset, DataLoader or iterable of batches
            What a loader with torch's own collate function makes is taken apart into samples. What is made by another
            one, or in an order that a sampler of its own chooses, is kept as batches or asked for once; a warning says
            so.
        seed : int
            Of torch's generator, with which the data are read.

        Raises
        ------
        ValueError
            No samples, or some that cannot be stacked.
        """
        with torch.random.fork_rng([]):
            torch.default_generator.manual_seed(seed)
            samples = _read(data)
        if len(samples) == 0:
            raise ValueError("the data must have a sample, got none")
        return samples

    @property
    def in_batches(self) -> bool:
        """Whether only whole batches can be taken."""
        return self.stacked is None

    def __len__(self) -> int:
        """Return the number of samples, or of batches where only whole ones can be taken."""
        return len(self.batches) if self.in_batches else len(next(_tensors(self.stacked)))

    def take(self, rows: Tensor) -> Any:
        """Return some samples side by side; where there are batches, `rows` names one.

        Parameters
        ----------
        rows : Tensor, shape (m,), int64
            Their numbers; a run of consecutive ones is not copied.
        """
        if self.in_batches:
            return self.batches[int(rows)]
        first, count = int(rows[0]), len(rows)
        if int(rows[-1]) == first + count - 1 and bool((rows.diff() == 1).all()):
            return _mapped(lambda t: t[first : first + count], self.stacked)
        return _mapped(lambda t: t[rows.to(t.device)], self.stacked)

    def permuted(self, order: Tensor) -> Samples:
        """Return the samples in another order.

        Parameters
        ----------
        order : Tensor, shape (n,), int64
            The number of every sample.
        """
        if self.in_batches:
            return replace(self, batches=tuple(self.batches[int(k)] for k in order))
        return replace(self, stacked=_mapped(lambda t: t[order], self.stacked))

    def to(self, like: Tensor) -> Samples:
        """Return the samples on the device of a tensor, in their own precision.

        Parameters
        ----------
        like : Tensor
            Parameters of the module.
        """
        return replace(
            self,
            stacked=None if self.in_batches else _moved(self.stacked, like.device),
            batches=tuple(_moved(batch, like.device) for batch in self.batches),
        )

    def outputs(self, net: nn.Module, batch: Any) -> Any:
        """Return what a module returns for a batch.

        Parameters
        ----------
        net : nn.Module
            The module.
        batch : tuple or list
            Inputs and targets, in the order ``*inputs, targets``.

        Raises
        ------
        ValueError
            A batch without targets.
        """
        given = _pair(batch)[:-1]
        with explained(net, given):
            return net(*given)

    @property
    def inputs(self) -> int:
        """Number of tensors of a sample that are inputs; 0 where the last one is not known to be the target."""
        first = self.take(torch.zeros(1, dtype=torch.int64))
        return len(first) - 1 if isinstance(first, tuple | list) else 0

    def predicted(self, net: nn.Module, inputs: int = 0) -> Tensor:
        """Return what a module returns for all samples, one after the other.

        Parameters
        ----------
        net : nn.Module
            The module, in the mode it has.
        inputs : int
            How many tensors of a sample are inputs, where the targets may be missing; 0: all but the last one.

        Raises
        ------
        ValueError
            Samples of more or fewer tensors.
        """
        rows = torch.split(torch.arange(len(self)), 1 if self.in_batches else _AT_ONCE)
        return torch.cat([self.outputs(net, _completed(self.take(of), inputs)) for of in rows])

    def targets(self, batch: Any) -> Any:
        """Return the targets of a batch.

        Parameters
        ----------
        batch : tuple or list
            Inputs and targets.

        Raises
        ------
        ValueError
            A batch without targets.
        """
        return _pair(batch)[-1]

    def summed(self, weights: Tensor | None) -> Tensor | None:
        """Return the weights of samples, given those of their targets: the same.

        Parameters
        ----------
        weights : Tensor, shape (n,), or None
            Of the targets of all samples.
        """
        return weights

    @property
    def units(self) -> str:
        """What is counted, for messages."""
        return "batches of the loader" if self.in_batches else "samples"

    def numbers(self, rows: Tensor) -> dict[int, Tensor]:
        """Return the numbers of the samples of a batch, by how many there are; none where there are batches.

        Parameters
        ----------
        rows : Tensor, shape (m,), int64
            The samples.
        """
        return {} if self.in_batches else {len(rows): rows}

    def scores(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return the accuracy where targets are classes, else nothing, and so where the axis of classes is not known.

        Parameters
        ----------
        outputs : Tensor, shape (m, ...)
            Of the module.
        targets : Tensor, shape (m, ...)
            Of the samples.
        """
        if targets.dtype != torch.int64 or outputs.dim() != targets.dim() + 1 or not outputs.is_floating_point():
            return {}
        # Classes are along the second axis, as the losses of torch have them, or along the last one.
        axes = [axis for axis in {1, outputs.dim() - 1} if outputs.select(axis, 0).shape == targets.shape]
        known = targets >= 0  # negative ones are left out by the losses of torch
        if len(axes) != 1 or not bool(known.any()):
            return {}
        return {"accuracy": float((outputs.argmax(axes[0]) == targets)[known].double().mean())}

    @property
    def notes(self) -> tuple[str, ...]:
        """What of the samples is not used: nothing."""
        return ()

    def arrays(self) -> Iterator[Any]:
        """Yield the samples as arrays of NumPy, for a checksum; of batches, the tensors that can be seen in them."""
        for tensor in _tensors(self.batches if self.in_batches else self.stacked):
            plain = tensor.detach().cpu()
            yield (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()


def _completed(batch: Any, inputs: int) -> Any:
    """Return a batch with something in the place of its targets, which may be missing."""
    given = (batch,) if isinstance(batch, Tensor) else batch
    if not inputs or not isinstance(given, tuple | list):
        return batch
    if len(given) not in (inputs, inputs + 1):
        raise ValueError(f"samples must have {inputs} inputs, and targets or none, got {len(given)} tensors")
    return (*given[:inputs], None)


def _pair(batch: Any) -> Any:
    """Return a batch of inputs and targets, refusing what has none."""
    if not isinstance(batch, tuple | list) or len(batch) < 2:
        raise ValueError(
            f"`loss(outputs, targets)` needs samples with targets, got {type(batch).__name__}; give `loss(net, batch)` "
            "with these names of arguments"
        )
    return batch


def _read(data: Any) -> Samples:
    if isinstance(data, DataLoader):
        return _of_loader(data)
    if isinstance(data, Tensor | np.ndarray | dict):
        return Samples(_stacked(data))
    if isinstance(data, tuple | list) and data and all(isinstance(part, Tensor | np.ndarray) for part in data):
        return Samples(_stacked(tuple(data)))
    if isinstance(data, IterableDataset):
        raise ValueError("the data must have a length or come in batches, got an IterableDataset; give a DataLoader")
    if isinstance(data, Dataset) or (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        return Samples(_of_dataset(data))
    if isinstance(data, Iterable):
        return _of_batches(_all(data), "data that are no Dataset come in batches")
    raise ValueError(f"the data must be {_KINDS}, got {type(data).__name__}")


def _of_dataset(data: Any) -> Any:
    """Return all samples of a dataset with a length, stacked."""
    if isinstance(data, TensorDataset):
        return _stacked(tuple(data.tensors))
    samples = [data[i] for i in range(len(data))]
    try:
        stacked = _stacked(default_collate(samples)) if samples else torch.zeros(0)
        again = default_collate([data[0]]) if samples else stacked
    except (TypeError, RuntimeError) as error:
        raise ValueError(
            f"the samples of {type(data).__name__} must be tensors of equal shapes, or numbers, got {error}; give a "
            "DataLoader with a collate_fn of your own"
        ) from error
    pairs = zip(_tensors(stacked), _tensors(again), strict=True)
    if any(not torch.equal(torch.nan_to_num(a[:1]), torch.nan_to_num(b)) for a, b in pairs if a.numel()):
        warnings.warn(
            f"samples of {type(data).__name__} change whenever they are asked for (augmentation?); each was asked for "
            "once, and stays as it came",
            stacklevel=5,
        )
    return stacked


def _of_loader(loader: DataLoader[Any]) -> Samples:
    """Take a loader apart where it only divides a dataset into batches, otherwise keep its batches."""
    own = loader.collate_fn is not default_collate
    if own or isinstance(loader.dataset, IterableDataset):
        why = "a collate_fn of your own" if own else "an IterableDataset"
        made = _of_batches(_all(loader), f"a loader with {why} was asked once", apart=not own)
        return replace(made, batch=0 if made.in_batches else loader.batch_size or 0)
    if is_plain(loader):
        stacked, kept = _of_dataset(loader.dataset), kept_of(loader)
        return Samples(_mapped(lambda t: t[:kept], stacked), batch=loader.batch_size or 0)
    made = _of_batches(_all(loader), "a loader with a sampler of its own was asked once", apart=True)
    return replace(made, batch=loader.batch_size or 0)


def is_plain(loader: DataLoader[Any]) -> bool:
    """Return whether a loader only divides its data set into batches, in any order.

    Parameters
    ----------
    loader : DataLoader
        Which one.
    """
    sampler = loader.sampler
    return loader.batch_size is not None and (
        isinstance(sampler, SequentialSampler)
        or (
            isinstance(sampler, RandomSampler)
            and not sampler.replacement
            and sampler.num_samples == len(loader.dataset)  # type: ignore[arg-type]
        )
    )


def kept_of(loader: DataLoader[Any]) -> int:
    """Return how many of the first samples a plain loader ever gives: those of whole batches with drop_last in order.

    Parameters
    ----------
    loader : DataLoader
        Which one.
    """
    count = len(loader.dataset)  # type: ignore[arg-type]
    in_order = loader.drop_last and isinstance(loader.sampler, SequentialSampler)
    return count - count % (loader.batch_size or 1) if in_order else count


def _all(batches: Iterable[Any]) -> list[Any]:
    """Return all batches, which have to be held; of many it is said, for there may be no end of them."""
    found = []
    for batch in batches:
        found.append(batch)
        if len(found) == _MANY:
            warnings.warn(
                f"the data have given {_MANY} batches and go on, all of which are kept; if they have no end, give a "
                "part of them (itertools.islice)",
                stacklevel=6,
            )
    return found


def _of_batches(batches: list[Any], why: str, *, apart: bool = False) -> Samples:
    """Keep batches as they are, or put their samples side by side where they may be taken apart."""
    if apart and batches:
        warnings.warn(f"{why}: the {len(batches)} batches that it gave are the data", stacklevel=5)
        return Samples(_joined([_stacked(batch) for batch in batches]))
    warnings.warn(
        f"{why}: the {len(batches)} batches that it gave are the data, each is used as a whole, and counts as one "
        "sample",
        stacklevel=5,
    )
    return Samples(None, tuple(batches))


def _stacked(data: Any) -> Any:
    """Return nested tensors, refusing different numbers of samples."""
    data = _mapped(lambda t: t, data)
    shapes = [tuple(t.shape) for t in _tensors(data)]
    if not shapes or any(not shape for shape in shapes) or len({shape[0] for shape in shapes}) > 1:
        raise ValueError(f"the data must be tensors with one row per sample, got shapes {shapes}")
    return data


def _mapped(change: Callable[[Tensor], Tensor], data: Any) -> Any:
    """Return the same nest of tuples, lists and dicts with changed tensors; arrays of NumPy become tensors."""
    if isinstance(data, Tensor | np.ndarray):
        return change(torch.as_tensor(data))
    if isinstance(data, dict):
        return {key: _mapped(change, value) for key, value in data.items()}
    if isinstance(data, tuple) and hasattr(data, "_fields"):
        return type(data)(*(_mapped(change, value) for value in data))
    if isinstance(data, tuple | list):
        return type(data)(_mapped(change, value) for value in data)
    raise ValueError(
        f"samples must be tensors, or tuples, lists and dicts of them, got {type(data).__name__}; give a DataLoader "
        "with a collate_fn of your own"
    )


def _joined(batches: Sequence[Any]) -> Any:
    """Return the samples of several batches side by side."""
    columns = zip(*(_tensors(batch) for batch in batches), strict=True)
    rows = iter([torch.cat(column) for column in columns])
    return _mapped(lambda _: next(rows), batches[0])


def _tensors(data: Any) -> Iterator[Tensor]:
    """Yield the tensors in a nest of tuples, lists and dicts; what else is in it is passed over."""
    if isinstance(data, Tensor):
        yield data
    elif isinstance(data, dict):
        for value in data.values():
            yield from _tensors(value)
    elif isinstance(data, tuple | list):
        for value in data:
            yield from _tensors(value)


def _moved(data: Any, device: torch.device) -> Any:
    """Return data on a device: tensors, what else has ``to``, and nests of them; the rest as it is."""
    if hasattr(data, "to"):
        return data.to(device)
    if isinstance(data, dict):
        return {key: _moved(value, device) for key, value in data.items()}
    if isinstance(data, tuple) and hasattr(data, "_fields"):
        return type(data)(*(_moved(value, device) for value in data))
    if isinstance(data, tuple | list):
        return type(data)(_moved(value, device) for value in data)
    return data

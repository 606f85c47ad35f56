"""What is asked of modules and losses of a user's own: kinds of losses, statistics, caches, and another start."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from mldd.algebra import FirstLayer, FlatModule, trainable
from mldd.problems.nets import places_of_linear
from mldd.ranks import SERIAL, Communicator

_NETWORK = ("net", "network", "model", "module")  # first argument of a loss that is given the network itself

# What a network raises when its arguments are not those it was written for.
_UNFIT = (RuntimeError, IndexError, TypeError, AttributeError, KeyError, AssertionError)


@contextmanager
def explained(net: nn.Module, given: Mapping[str, Any] | Sequence[Any]) -> Iterator[None]:
    """Return a context that says in one line what a network was called with, where it raises inside.

    Parameters
    ----------
    net : nn.Module
        The network.
    given : dict or sequence
        Its arguments.

    Raises
    ------
    ValueError
        It cannot be called with them, or has written to one of them.
    """
    try:
        with left_alone(f"forward of {type(net).__name__}", given):
            yield
    except torch.OutOfMemoryError:
        raise
    except _UNFIT as error:
        listed = given.items() if isinstance(given, Mapping) else (("", value) for value in given)
        own = f" with {_kind(first_parameter(net))} parameters" if any(True for _ in net.parameters()) else ""
        raise ValueError(
            f"{type(net).__name__}{own} must take "
            f"{', '.join(f'{name} {_shape(value)}'.strip() for name, value in listed)}, "
            f"got {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        ) from error


@contextmanager
def left_alone(what: str, given: Any) -> Iterator[None]:
    """Return a context that refuses what writes to tensors: evaluations share them, and the next one would see others.

    Parameters
    ----------
    what : str
        What is evaluated inside, in words.
    given : object
        Tensors, by name, in nests of tuples, lists and dicts, or as a graph of torch_geometric.

    Yields
    ------
    None
        To evaluate in between.

    Raises
    ------
    ValueError
        A tensor was written to.
    """
    before = [(name, value, value._version) for name, value in _tensors("", given) if not value.is_inference()]
    yield
    for name, value, version in before:
        if value._version != version:
            raise ValueError(
                f"{what} must leave its arguments as they are, got one that writes to {name or 'them'} in place; let "
                "it write to a copy (x = x.clone() first, or inplace=False)"
            )


def _tensors(name: str, given: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in a nest with their names, as far as they have any."""
    if isinstance(given, Tensor):
        yield name, given
    elif isinstance(given, Mapping) or hasattr(given, "to_dict"):
        for key, value in (given if isinstance(given, Mapping) else given.to_dict()).items():
            yield from _tensors(str(key), value)
    elif isinstance(given, tuple | list):
        for value in given:
            yield from _tensors(name, value)


def _shape(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{_kind(value)} {tuple(value.shape)}"


def _kind(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def is_loss_of_network(loss: Any) -> bool:
    """Return whether a loss is ``loss(net, data)`` and not ``loss(outputs, targets)``: by its first argument's name.

    Parameters
    ----------
    loss : callable or None
        Which one.
    """
    if loss is None or isinstance(loss, nn.Module):
        return False
    try:
        names = list(inspect.signature(loss).parameters)
    except (TypeError, ValueError):  # a function written in C has no signature
        return False
    return bool(names) and names[0] in _NETWORK


def first_parameter(net: nn.Module) -> Tensor:
    """Return a trainable parameter of a network, which has the device and the precision of the others.

    Counts and other whole numbers among the parameters say nothing of the precision, nor do frozen ones.

    Parameters
    ----------
    net : nn.Module
        The network.

    Raises
    ------
    ValueError
        It has none.
    """
    parameters = list(net.parameters())
    real = [p for p in parameters if p.dtype.is_floating_point]
    for p in (*(p for p in real if p.requires_grad), *real, *parameters):
        return p
    raise ValueError(f"the network must have a trainable parameter, got none in {type(net).__name__}")


def initialise(net: nn.Module, call: Callable[[], Any]) -> None:
    """Make the parameters of lazy modules inside by one call, which draws them from torch's generator.

    Parameters
    ----------
    net : nn.Module
        The network.
    call : callable
        Evaluates it.
    """
    if any(isinstance(p, UninitializedBuffer | UninitializedParameter) for p in (*net.parameters(), *net.buffers())):
        with torch.no_grad():
            call()


def has_statistics(module: nn.Module) -> TypeGuard[nn.modules.batchnorm._NormBase]:
    """Return whether a module normalises by statistics of a batch.

    Parameters
    ----------
    module : nn.Module
        Which one.
    """
    return isinstance(module, nn.modules.batchnorm._NormBase)


def check_uncached(net: nn.Module, other: str) -> None:
    """Refuse layers that keep what they have computed of a graph, where the network is called with another one.

    Parameters
    ----------
    net : nn.Module
        The network.
    other : str
        What it is called with besides, in words.

    Raises
    ------
    ValueError
        A layer of torch_geometric that was made with ``cached=True``.
    """
    for name, module in net.named_modules():
        if getattr(module, "cached", False) is True:
            raise ValueError(
                f"layer {name!r} of {type(net).__name__} keeps the edges of the first graph that it sees, got "
                f"{type(module).__name__} with cached=True, which would be wrong on {other}; make it with cached=False"
            )


def check_pairs(loss: Callable[..., Tensor], outputs: Any, targets: Any, whole: Any) -> None:
    """Refuse a loss that pairs every output with all targets, where outputs are a column and targets are none.

    Parameters
    ----------
    loss : callable
        ``loss(outputs, targets)``.
    outputs : Tensor, shape (m, 1)
        Others are fine.
    targets : Tensor, shape (m,)
        Others are fine.
    whole : Tensor, shape ()
        The loss.

    Raises
    ------
    ValueError
        It is another one for outputs of shape (m,).
    """
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor) or not isinstance(whole, Tensor):
        return
    if outputs.shape != (*targets.shape, 1) or targets.dim() != 1 or len(targets) < 2 or whole.numel() != 1:
        return
    try:
        with torch.no_grad():
            found = loss(outputs[:, 0], targets)
    except (*_UNFIT, ValueError):
        return
    if isinstance(found, Tensor) and found.numel() == 1 and not torch.allclose(found, whole.detach(), 1e-3, 1e-6):
        raise ValueError(
            f"`loss` must pair every output with its target, got outputs of shape {tuple(outputs.shape)} and targets "
            f"of {tuple(targets.shape)}, which it pairs each with all; take outputs[:, 0] in it, or targets[:, None]"
        )


def check_log_probabilities(loss: Any, outputs: Any) -> None:
    """Refuse outputs that are no logarithms of probabilities for the loss of torch that takes these.

    Of probabilities where logits are taken it warns: such a loss is flat, but it is a function of the parameters.

    Parameters
    ----------
    loss : callable
        Others than `NLLLoss` and its function take what they are given.
    outputs : Tensor, shape (m, C, ...)
        Of the network.

    Raises
    ------
    ValueError
        Their exponentials do not sum to one.
    """
    if not isinstance(outputs, Tensor) or outputs.dim() < 2:
        return
    of = getattr(loss, "func", loss)
    if isinstance(loss, nn.CrossEntropyLoss) or of is functional.cross_entropy:
        inside = bool(((outputs >= 0) & (outputs <= 1)).all()) and outputs.shape[1] > 1
        if inside and bool(((outputs.sum(1) - 1).abs() < 1e-3).all()):
            warnings.warn(
                "cross_entropy takes logits, got outputs that look like probabilities; leave out the last softmax",
                stacklevel=2,
            )
    if not isinstance(loss, nn.NLLLoss) and of is not functional.nll_loss:
        return
    total = outputs.detach().float().logsumexp(1)
    if not bool((total.abs() < 0.05).all()):
        raise ValueError(
            "nll_loss takes logarithms of probabilities, got outputs whose exponentials sum to "
            f"{float(total.exp().flatten()[0]):.3g}; end the network with log_softmax, or take cross_entropy"
        )


def weights_of(loss: Any, targets: Any) -> Tensor | None:
    """Return the weights of samples in the mean that torch's losses of classes are, shape (n,), float64.

    Parameters
    ----------
    loss : callable
        A `CrossEntropyLoss` or `NLLLoss`, or the function of one, maybe with keywords by `functools.partial`. Targets
        equal to its ``ignore_index`` have the weight zero, others that of their class.
    targets : Tensor, shape (n, ...)
        Classes.

    Returns
    -------
    Tensor or None
        None where the loss is another one, or the targets are no classes.
    """
    if not isinstance(targets, Tensor) or targets.dtype != torch.int64 or targets.dim() == 0:
        return None
    if isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss):
        weight, ignored, reduction = loss.weight, loss.ignore_index, loss.reduction
    else:
        given = loss.keywords if isinstance(loss, partial) and not loss.args else {}
        if (loss.func if given else loss) not in (functional.cross_entropy, functional.nll_loss):
            return None
        weight, ignored = given.get("weight"), given.get("ignore_index", -100)
        reduction = given.get("reduction", "mean")
    if reduction != "mean":
        return None
    targets = targets.cpu()
    known = targets != ignored
    weights = known.double()
    if weight is not None:
        weights *= weight.detach().cpu().double()[torch.where(known, targets, 0)]
    summed: Tensor = weights.flatten(1).sum(1) if weights.dim() > 1 else weights
    return summed


def restarted(net: nn.Module, seed: int) -> Tensor:
    """Return new parameters, as the modules inside a copy of `net` start from the seed, shape (N,).

    Parameters
    ----------
    net : nn.Module
        It is left alone.
    seed : int
        Of torch's generator.

    Raises
    ------
    ValueError
        A parameter that no module inside resets.
    """
    twin = copy.deepcopy(net)
    flat = FlatModule(twin)
    flat.flat.fill_(torch.nan)
    with torch.random.fork_rng([]), torch.no_grad():
        torch.manual_seed(seed)
        for module in twin.modules():
            reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
            if callable(reset):
                reset()
    for name, p in twin.named_parameters():
        if p.requires_grad and bool(p.isnan().any()):
            raise ValueError(
                f"another start needs `reset_parameters()` of every module inside, got none that sets {name}; add it, "
                "take the first seed, or make a network per seed"
            )
    return flat.flat


def first_linear(flat: FlatModule, called: Callable[[], Any], comm: Communicator = SERIAL) -> FirstLayer:
    """Return what the first linear map of a module is applied to, seen by a hook while the module is called.

    Parameters
    ----------
    flat : FlatModule
        The module.
    called : callable
        Calls the module on all data of this rank.
    comm : Communicator
        The ranks that call it with other data.

    Raises
    ------
    ValueError
        The first module with a matrix of parameters is no linear map.
    """
    seen: list[nn.Module] = []
    inputs: list[Tensor] = []

    def see(module: nn.Module, given: Any, out: Any) -> None:
        if not seen:
            seen.append(module)
        if module is seen[0]:
            _check_linear(module, given, out)
            inputs.append(given[0].detach().reshape(-1, given[0].shape[-1]).cpu().double())

    with_matrix = [m for m in flat.module.modules() if any(p.dim() > 1 for p in m.parameters(recurse=False))]
    hooks = [module.register_forward_hook(see) for module in with_matrix]
    try:
        called()
    finally:
        for hook in hooks:
            hook.remove()
    if not seen:
        raise ValueError("a metric of the inputs needs a network with a linear map, got none; leave it out")
    weight, bias = seen[0].get_parameter("weight"), getattr(seen[0], "bias", None)
    starts = dict(zip(map(id, trainable(flat.module)), flat.layout.offsets, strict=False))
    if id(weight) not in starts or (bias is not None and id(bias) not in starts):
        raise ValueError(
            "a metric of the inputs needs a first linear map that is trained, got a frozen one; unfreeze it"
        )
    where = None if bias is None else starts[id(bias)]
    places = places_of_linear(starts[id(weight)], weight.shape[1], weight.shape[0], where)
    rows = sum(map(len, inputs))
    return FirstLayer([block.numpy() for block in inputs], places, float(rows * comm.ranks * flat.size), comm.sum)


def _check_linear(module: nn.Module, given: Any, out: Any) -> None:
    """Refuse a module that is not ``x -> x W^T + b``."""
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    is_call = len(given) == 1 and isinstance(given[0], Tensor)
    if isinstance(weight, nn.Parameter) and weight.dim() == 2 and is_call and given[0].shape[-1:] == weight.shape[1:]:
        with torch.no_grad():
            wanted = functional.linear(given[0], weight, bias)
        if isinstance(out, Tensor) and out.shape == wanted.shape and torch.allclose(out, wanted, rtol=1e-3, atol=1e-4):
            return
    raise ValueError(
        f"a metric of the inputs needs a network whose first layer is a linear map (nn.Linear), got "
        f"{type(module).__name__}; leave the metric out"
    )

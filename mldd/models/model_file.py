"""Files of trained models: parameters by name and configuration; ``torch.load(weights_only=True)`` reads them."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mldd.algebra import loaded, registered
from mldd.checkpoints import is_checkpoint
from mldd.loop import UntrustedError, check_regular, check_torch_file, pack, replacing, unreadable
from mldd.models.model import Model

FORMAT = "mldd model 1"
MODEL, SOLUTION = "model.pt", "solution.npz"  # what a run keeps: a network, or the unknowns where there is none


class ModelError(ValueError):
    """A file that holds no model, or one that cannot be used here."""


def kinds() -> dict[str, str]:
    """Return names and classes of all kinds of models, those of other packages included; none is imported."""
    return registered("mldd.problems", "MODELS")


def save(path: Path | str, module: nn.Module, about: dict[str, Any]) -> None:
    """Write a trained module, whole or not at all; a reader needs nothing but torch.

    Parameters
    ----------
    path : Path or str
        Of the file.
    module : nn.Module
        A `Model`, whose configuration is kept, too, or any other module, of which the file has the ``state_dict``.
    about : dict
        What is known of the training.

    Raises
    ------
    ValueError
        The configuration holds something else than data.
    OSError
        The file cannot be written; an older one of this name is kept.
    """
    home = f"{type(module).__module__}:{type(module).__qualname__}"
    kind = next((name for name, target in kinds().items() if target == home), "")
    content = {
        "format": FORMAT,
        "kind": kind,
        "config": pack(module.config(), "config") if isinstance(module, Model) and kind else {},
        "state_dict": pack(dict(module.state_dict()), "state_dict"),
        "about": pack(about, "about"),
    }
    with replacing(Path(path)) as new, open(new, "wb") as stream:
        torch.save(content, stream)


def load(path: str | os.PathLike[str], module: nn.Module | None = None) -> Any:
    """Return a trained model from the file or folder of a run; nothing in the file is run.

    Parameters
    ----------
    path : str or path
        A file ``model.pt``, or the folder of ``--out`` that has one.
    module : nn.Module, optional
        A module of one's own that gets the parameters; without it the model is made as the file says.

    Returns
    -------
    Model or nn.Module
        With ``predict(data)`` where the file is of a kind of models that mldd knows; else `module`.

    Raises
    ------
    ModelError
        No model, or one of a kind that is not known here, or parameters that do not fit.
    FileNotFoundError
        There is no such file.

    Examples
    --------
    ::

        model = mldd.load("runs/cora")
        model.predict("other_graph.npz")["probability"]
    """
    file = found(Path(path).expanduser())
    content = _read(file)
    if module is None:
        module = _made(file, content)
    try:
        module.load_state_dict(content["state_dict"], assign=isinstance(module, Model))
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ModelError(
            f"the module must have the parameters of {file}, got others ({' '.join(str(error).split())[:200]}); give "
            "the module that was trained"
        ) from error
    if isinstance(module, Model):
        module.about = content["about"]
    return module.eval()


def about(path: Path | str) -> dict[str, Any]:
    """Return what a file says of the run that its model is from: problem, options, metrics, details.

    Parameters
    ----------
    path : path
        A file of `save`, or the folder of a run.

    Raises
    ------
    ModelError
        It is no whole model.
    """
    said: dict[str, Any] = _read(found(Path(path).expanduser()))["about"]
    return said


def found(path: Path) -> Path:
    """Return the file of a model.

    Parameters
    ----------
    path : Path
        Of the file, or of the folder of a run.

    Raises
    ------
    ModelError
        The run was one of a problem without a network.
    FileNotFoundError
        There is none.
    """
    if not path.is_dir():
        if path.name == SOLUTION and path.is_file():
            raise ModelError(_no_network(path))
        if not path.is_file():
            raise FileNotFoundError(f"the model {path} must be a file or the folder of a run, got none; check the path")
        return path
    if (path / MODEL).is_file():
        return path / MODEL
    if (path / SOLUTION).is_file():
        raise ModelError(_no_network(path / SOLUTION))
    raise FileNotFoundError(
        f"{path} must have a {MODEL}, got none; give the folder of `mldd train --out`, of a run that did not fail"
    )


def _no_network(path: Path) -> str:
    return (
        f"{path} holds the solution of a problem without a network, which predicts nothing; read it by "
        "numpy.load, or give the run of a network"
    )


def _read(path: Path) -> dict[str, Any]:
    """Return the content of a file, refusing what is no model."""
    if is_checkpoint(path):
        raise ModelError(f"{path} must be a model, got a checkpoint; give the {MODEL} in the folder of --out")
    try:
        check_regular(path)
        check_torch_file(path, str(path))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles of others
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except UntrustedError as error:
        raise ModelError(str(error)) from None
    except Exception as error:  # a hostile file may raise anything
        raise ModelError(
            f"{path} must be a whole model of mldd, but it cannot be read ({unreadable(error)}); give another one"
        ) from error
    given = content.get("format") if isinstance(content, dict) else None
    if given != FORMAT:
        raise ModelError(
            f"{path} must be a model written by mldd ({FORMAT}), got another file; give the {MODEL} of a run"
        )
    for key, kind in (("kind", str), ("config", dict), ("state_dict", dict), ("about", dict)):
        if not isinstance(content.get(key), kind):
            raise ModelError(f"{path} must be a whole model of mldd, got one with a broken {key}; write it anew")
    return dict(content)


def _made(path: Path, content: dict[str, Any]) -> Model:
    """Return the model that a file describes, with any parameters."""
    table = kinds()
    if content["kind"] not in table:
        what = f"the kind {content['kind']!r}, which is not known here" if content["kind"] else "a module of yours"
        way = f"make the module and give it: mldd.load({str(path)!r}, net)"
        raise ModelError(f"{path} must be of a kind of models in {', '.join(table)}, got {what}; {way}")
    kind: type[Model] = loaded(table[content["kind"]], "class")
    try:
        return kind.of(content["config"])
    except Exception as error:  # numbers of any size and sign may stand there
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ModelError(
            f"{path} must have the configuration of a {content['kind']} model, got another one ({reason}); write it "
            "with this version of mldd"
        ) from error

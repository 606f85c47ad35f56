"""Predictions of the command line: a trained network, data by name or file, and the file that gets them."""

from __future__ import annotations

import argparse
import hashlib
import inspect
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import mldd
from mldd.algebra import did_you_mean
from mldd.command.names import Spec, network_spec
from mldd.command.values import aligned, convert, split
from mldd.models import Model, Prediction, check_target, found, joined, load

_OF_ENSEMBLES = ("start", "steps", "members", "perturb", "seed")  # options of the command line, no keys of DATA


def run(options: argparse.Namespace) -> list[str]:
    """Predict, write the file, and return what was done in a few lines for people.

    Parameters
    ----------
    options : argparse.Namespace
        Of the command line.

    Raises
    ------
    ValueError
        No model, data of another kind, a key or an option that the model has no use for, or models that predict
        different things.
    OSError
        A file that is not there, or one that is and would be replaced.
    """
    check_target(options.out, options.overwrite)
    network = network_spec(options.of)
    if network is not None:
        return _by_network(network, options)
    files = [found(run.expanduser()) for run in options.run]
    models = [load(file) for file in files]
    made = [_predicted(model, file, options) for model, file in zip(models, files, strict=True)]
    one = made[0] if len(made) == 1 else joined(made)
    one = _with_provenance(one, files, ", ".join(dict.fromkeys(_trained(model) for model in models)))
    one.write(options.out)
    return _summary(one, models, options)


def _predicted(model: Model, file: Path, options: argparse.Namespace) -> Prediction:
    """Predict by one model."""
    name, keys = keys_of(options.of, model.predict, ("folder", *_OF_ENSEMBLES))
    takes = inspect.signature(model.predict).parameters
    if options.data is not None:
        if "folder" not in takes:
            raise ValueError(f"--data is of no use to the model in {file}, whose data need no folder; leave it out")
        keys["folder"] = options.data
    for option in _OF_ENSEMBLES:
        value = getattr(options, option)
        if value is not None and option not in takes:
            raise ValueError(f"--{option} is of forecasts, got the model in {file}, which is none; leave it out")
        keys |= {} if value is None else {option: value}
    return model.predict(name, **keys)


def _trained(model: Model) -> str:
    about = model.about
    return f"{about.get('problem')} by {about.get('solver')}, seed {about.get('seed')}"


def _with_provenance(made: Prediction, files: Sequence[Path], trained: str) -> Prediction:
    """Add who has made a prediction, by which program, models and command."""
    command = shlex.join(["mldd", *sys.argv[1:]])
    moment = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    digests = (hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
    of_run = {
        "source": f"mldd {mldd.__version__}: {trained}",
        "model_checksum": " ".join(f"sha256:{digest}" for digest in digests),
        "history": f"{moment} {command}",
    }
    return replace(made, attributes={**made.attributes, **of_run})


def _by_network(spec: Spec, options: argparse.Namespace) -> list[str]:
    """Predict by a network of the user's, whose class DATA names: a file that keeps a model names no code to be run."""
    given = {} if options.data is None else {"data": str(options.data)}
    if len(options.run) > 1 or any(getattr(options, option) is not None for option in _OF_ENSEMBLES):
        raise ValueError(
            f"several runs, {' '.join(f'--{option}' for option in _OF_ENSEMBLES)} are of models with a name of their "
            f"own, got a network of {spec.text}; give one run, and leave the options out"
        )
    (kept,) = options.run
    made: Prediction = spec.make(**given).prediction(kept)
    made = _with_provenance(made, [found(kept.expanduser())], f"{spec.text}, parameters of {kept}")
    made.write(options.out)
    shown = [("model", str(kept)), *_said(made), ("written", str(options.out))]
    return aligned(shown)


def _said(made: Prediction) -> list[tuple[str, str]]:
    """Return what was predicted, with its shape, and what the user should know."""
    sizes = made.sizes
    shapes = [
        f"{name} ({', '.join(f'{dim} {sizes[dim]}' for dim in field.dims)})" for name, field in made.fields.items()
    ]
    return [("predicted", "; ".join(shapes)), *(("data", note) for note in made.notes)]


def keys_of(text: str, function: Callable[..., Any], without: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Return name or path and keys of DATA, which are arguments of a function.

    Parameters
    ----------
    text : str
        ``NAME:key=value,...`` or a path in place of the name.
    function : callable
        Whose arguments by keyword the keys are.
    without : sequence of str
        Arguments that are no keys.

    Raises
    ------
    ValueError
        Another key, or a value of another type.
    """
    found = re.search(r":(?=[A-Za-z_]\w*=)", text)
    name, rest = (text, "") if found is None else (text[: found.start()], text[found.end() :])
    known = {
        key: bool if isinstance(argument.default, bool) else str
        for key, argument in inspect.signature(function).parameters.items()
        if argument.kind is argument.KEYWORD_ONLY and key not in without
    }
    keys: dict[str, Any] = {}
    for item in split(rest) if rest else []:
        key, _, value = item.partition("=")
        if key not in known:
            raise ValueError(
                f"{name} has no key {key!r}{did_you_mean(key, list(known))} here; its keys are "
                f"{' '.join(known) or 'none'}"
            )
        keys[key] = convert(value, known[key], f"{name}:{key}")
    return name, keys


def _summary(made: Prediction, models: Sequence[Model], options: argparse.Namespace) -> list[str]:
    texts = []
    for model in models:
        of = model.about
        texts.append(f"{of.get('problem')} by {of.get('solver')}, {of.get('kept')}, step {of.get('step')}")
    if len(models) > 1:
        texts = [f"{text}, seed {model.about.get('seed')}" for text, model in zip(texts, models, strict=True)]
    return aligned([("model", "; ".join(texts)), *_said(made), ("written", str(options.out))])

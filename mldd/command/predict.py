"""Predictions of the command line: a trained network, data by name or file, and the file that gets them."""

from __future__ import annotations

import argparse
import inspect
import re
from dataclasses import replace
from typing import Any

import mldd
from mldd.algebra import did_you_mean
from mldd.command.names import Spec, network_spec
from mldd.command.values import aligned, convert, split
from mldd.models import Model, Prediction, check_target, load


def run(options: argparse.Namespace) -> list[str]:
    """Predict, write the file, and return what was done in a few lines for people.

    Parameters
    ----------
    options : argparse.Namespace
        Of the command line.

    Raises
    ------
    ValueError
        No model, data of another kind, or a key that the model has no use for.
    OSError
        A file that is not there, or one that is and would be replaced.
    """
    check_target(options.out, options.overwrite)
    network = network_spec(options.of)
    if network is not None:
        return _by_network(network, options)
    model = load(options.run)
    name, keys = _keys(options.of, model)
    if options.data is not None:
        if "folder" not in inspect.signature(model.predict).parameters:
            raise ValueError(
                f"--data is of no use to the model in {options.run}, whose data need no folder; leave it out"
            )
        keys["folder"] = options.data
    made = model.predict(name, **keys)
    about = model.about
    source = f"mldd {mldd.__version__}: {about.get('problem')} by {about.get('solver')}, seed {about.get('seed')}"
    made = replace(made, attributes={**made.attributes, "source": source})
    made.write(options.out)
    return _summary(made, model, options)


def _by_network(spec: Spec, options: argparse.Namespace) -> list[str]:
    """Predict by a network of the user's, whose class DATA names: a file that keeps a model names no code to be run."""
    given = {} if options.data is None else {"data": str(options.data)}
    made: Prediction = spec.make(**given).prediction(options.run)
    source = f"mldd {mldd.__version__}: {spec.text}, parameters of {options.run}"
    made = replace(made, attributes={**made.attributes, "source": source})
    made.write(options.out)
    shown = [("model", str(options.run)), *_said(made), ("written", str(options.out))]
    return aligned(shown)


def _said(made: Prediction) -> list[tuple[str, str]]:
    """Return what was predicted, with its shape, and what the user should know."""
    sizes = made.sizes
    shapes = [
        f"{name} ({', '.join(f'{dim} {sizes[dim]}' for dim in field.dims)})" for name, field in made.fields.items()
    ]
    return [("predicted", "; ".join(shapes)), *(("data", note) for note in made.notes)]


def _keys(text: str, model: Model) -> tuple[str, dict[str, Any]]:
    """Return name or path and keys of DATA; a model takes the arguments of its ``predict``."""
    found = re.search(r":(?=[A-Za-z_]\w*=)", text)
    name, rest = (text, "") if found is None else (text[: found.start()], text[found.end() :])
    known = {
        key: bool if isinstance(argument.default, bool) else str
        for key, argument in inspect.signature(model.predict).parameters.items()
        if argument.kind is argument.KEYWORD_ONLY and key != "folder"
    }
    keys: dict[str, Any] = {}
    for item in split(rest) if rest else []:
        key, _, value = item.partition("=")
        if key not in known:
            raise ValueError(
                f"{name} has no key {key!r}{did_you_mean(key, list(known))} for a prediction; its keys are "
                f"{' '.join(known) or 'none'}"
            )
        keys[key] = convert(value, known[key], f"{name}:{key}")
    return name, keys


def _summary(made: Prediction, model: Model, options: argparse.Namespace) -> list[str]:
    about = model.about
    lines = [
        ("model", f"{about.get('problem')} by {about.get('solver')}, {about.get('kept')}, step {about.get('step')}"),
        *_said(made),
        ("written", str(options.out)),
    ]
    return aligned(lines)

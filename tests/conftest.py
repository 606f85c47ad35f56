"""Fixtures of several files."""

import pytest

from mldd.command.cli import main


@pytest.fixture
def run(capsys):
    """Run a command line; give exit status, standard output and error."""

    def call(text, *more):
        code = main([*text.split(), *map(str, more)])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def without_figures(monkeypatch):
    """Draw nothing: it takes longer than a run."""
    import mldd.command.plot  # noqa: F401 (it takes the true functions over, whichever test comes first)

    monkeypatch.setattr("mldd.figures.curves.convergence", lambda history, path, title: path.touch())

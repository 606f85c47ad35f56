"""Fixtures of several files, and how pytest-xdist shares the tests out."""

import os

import pytest

# Processes that share the processors take one thread each, so that they do not wait for each other; before torch loads.
if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Four ranks on two cores: one that waits for a message sleeps, where it would keep the core from the rank that sends
# it, ten milliseconds per collective (names of MPICH and of Open MPI).
for _name in ("MPIR_CVAR_ENABLE_HEAVY_YIELD", "MPIR_CVAR_POLLS_BEFORE_YIELD", "OMPI_MCA_mpi_yield_when_idle"):
    os.environ.setdefault(_name, "1")

from mldd.command.cli import main  # noqa: E402 (the environment is read when its libraries load)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Keep files together, for they have fixtures of their own, and all that starts ranks, which would be too many."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.partition("::")[0]
            return "tests/mpi" if file.startswith("tests/mpi/") else file

    return ByFile(config, log)


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

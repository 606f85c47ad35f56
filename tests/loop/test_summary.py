"""A result and a history on one screen: what is said is what the records hold, and nothing that they do not."""

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from xml.etree import ElementTree

import pytest
import torch

from mldd import Result, Status, Stop, minimise
from mldd.loop import Cost, History, Record
from mldd.problems.grids import Obstacle, Quadratic
from mldd.solvers import Adam, SchwarzAdaGrad, Sgd

RECORD = Record(0, 0, 1.0, 2.0, 0, 0, Cost(1, 1.0, 1.0))


def lines_of(shown):
    """Names and texts, broken lines put together."""
    joined = re.sub(r"\n {4,}", " ", repr(shown))
    pairs = (line.strip().split("  ", 1) for line in joined.splitlines()[1:])
    return {name: text.strip() for name, text in pairs}


def test_a_result_says_status_steps_loss_measure_and_cost():
    f = Quadratic(dim=1, n=15)
    result = minimise(f.objective(), f.initial(), Adam(0.1), stop=Stop(max_steps=7, norm=2.0), values=True)
    said, last, first = lines_of(result), result.record, result.history.records[0]
    assert said["status"] == f"max_steps: {Status.max_steps.advice}" and said["steps"] == "7"
    assert said["loss"].startswith(f"{last.value:.6g} (first {first.value:.6g}")
    assert said["measure"].startswith(f"{last.measure:.6g} (first {first.measure:.6g}")
    assert said["measure"].endswith("2-norm")
    assert (
        said["cost"].startswith("8 gradient evaluations, 8 work units, ") and said["x"] == "15 unknowns, float64 on cpu"
    )
    assert lines_of(result.history) == {key: text for key, text in said.items() if key != "x"}


def test_a_loss_that_was_not_computed_at_the_end_is_not_the_first_one():
    f = Quadratic(dim=1, n=15)
    first, *_, last = minimise(f.objective(), f.initial(), Adam(0.1), stop=Stop(max_steps=3)).history.records
    cut_short = History([first, replace(last, value=math.nan)])
    assert lines_of(cut_short)["loss"] == f"not known at the end (first {first.value:.6g})"
    assert lines_of(minimise(f.objective(), f.initial(), Adam(0.1), values=False))["loss"] == "not computed"


def test_a_history_that_goes_on_or_is_empty():
    assert lines_of(History())["records"] == "none"
    said = lines_of(History([RECORD, replace(RECORD, step=1, measure=0.5, value=3.0)]))
    assert said["status"] == "unknown, or it goes on"
    assert said["loss"] == "3 (first 2)" and said["measure"] == "0.5 (first 1)"
    rising = History([replace(RECORD, step=k, value=v) for k, v in enumerate((4.0, 1.0, 3.0))])
    assert lines_of(rising)["loss"] == "3 (first 4, lowest 1)"


def test_notes_exchange_and_set_up_are_said():
    f = Obstacle(n=15)
    solver = SchwarzAdaGrad(f.decomposition(parts=4, overlap=1), f.coarse_hierarchy(levels=2, parts=4))
    result = minimise(f.objective(), f.initial() - 1.0, solver, stop=Stop(max_steps=3), setup=Cost(setup_work=2.5))
    said = lines_of(result)
    assert said["exchange"].startswith(f"{result.record.cost.synchronisations} synchronisations")
    assert said["set-up"].startswith("2.5 work units") and "projected" in said["start"]


@pytest.mark.parametrize("status", list(Status))
def test_it_is_one_screen_whatever_was_noted(status):
    state = type("State", (), {"notes": {f"something happened {'often ' * k}": k for k in range(40)}})
    validation = {f"validation_{k}": 0.5 for k in range(30)}
    history = History([replace(RECORD, step=k, validation=validation) for k in range(2000)], math.inf, status)
    shown = repr(Result(torch.zeros(3), status, state, history))
    assert len(shown.splitlines()) <= 24 and max(map(len, shown.splitlines())) <= 100
    assert status.name in shown and "and 35 more in state.notes" in shown


def test_a_run_that_diverged():
    f = Quadratic(dim=1, n=7)
    result = minimise(f.objective(), f.initial(), Sgd(1e200), values=True)
    assert result.status is Status.diverged and "use a smaller step" in lines_of(result)["status"]


def test_html_is_a_table_of_the_same_lines():
    f = Quadratic(dim=1, n=7)
    result = minimise(f.objective(), f.initial(), Adam(0.1), stop=Stop(max_steps=3), values=True)
    result.state.note("a <b> & c")
    table = ElementTree.fromstring(result._repr_html_())
    cells = {row[0].text: row[1].text for row in table.iter("tr")}
    assert cells == lines_of(result) and cells["note"] == "a <b> & c: 1 times"
    assert ElementTree.fromstring(result.history._repr_html_()).tag == "table"


NOTEBOOK = """
import json, sys, nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(sys.argv[2])])
found = KernelSpecManager(kernel_dirs=[sys.argv[1]])
NotebookClient(notebook, timeout=100, km=AsyncKernelManager(kernel_name="here", kernel_spec_manager=found)).execute()
print(json.dumps(notebook.cells[0].outputs))
"""
CELL = """
from mldd import Stop, minimise
from mldd.loop import Progress
from mldd.problems.grids import Quadratic
from mldd.solvers import Adam
f = Quadratic(dim=1, n=7)
bar = Progress(3, "quadratic adam")
result = minimise(f.objective(), f.initial(), Adam(0.1), stop=Stop(max_steps=3), monitors=[bar])
result
"""


@pytest.mark.skipif(
    not all(map(find_spec, ("nbclient", "ipykernel", "ipywidgets"))),
    reason="needs a kernel of notebooks: pip install nbclient ipykernel ipywidgets",
)
def test_in_a_notebook_there_is_a_bar_and_a_table(tmp_path):
    place = tmp_path / "kernels" / "here"
    place.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (place / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "here", "language": "python"}))
    program = [sys.executable, "-c", NOTEBOOK, str(tmp_path / "kernels"), CELL]  # which leaves its sockets behind
    outputs = json.loads(subprocess.run(program, capture_output=True, text=True, timeout=120, check=True).stdout)
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert "application/vnd.jupyter.widget-view+json" in kinds, "the bar of tqdm.auto"
    assert any("<caption" in output.get("data", {}).get("text/html", "") for output in outputs)

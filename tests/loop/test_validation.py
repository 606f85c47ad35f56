"""Validation: numbers at their interval, the best iterate, patience, nothing counted, and runs that go on."""

import math

import pytest
import torch

from mldd.checkpoints import load, save
from mldd.loop import CsvWriter, History, Status, Stop, Validation, minimise, read_csv
from mldd.solvers import Adam, Sgd
from tests.helpers import quadratic


def bowl():
    """A function, and the distance to a point that the run passes on its way: a loss that first falls, then rises."""
    f = quadratic(5, condition=3.0)
    goal = 0.6 * f.solution()
    return f, lambda x: {"validation_loss": float((x - goal).norm()), "validation_accuracy": -float((x - goal).norm())}


def path(f, steps):
    """All iterates of a run, by runs of every length."""
    return [minimise(f, torch.zeros(5).double(), Sgd(0.1), stop=Stop(k)).x for k in range(steps + 1)]


def test_numbers_stand_in_the_history_at_their_interval_and_at_the_end(tmp_path):
    f, measures = bowl()
    writer = CsvWriter(tmp_path / "history.csv")
    validation = Validation(measures, every=3)
    result = minimise(f, torch.zeros(5).double(), Sgd(0.1), stop=Stop(10), monitors=[writer], validation=validation)
    writer.close()
    steps = [record.step for record in result.history.records if record.validation]
    assert steps == [0, 3, 6, 9, 10] and validation.times == 5 and validation.seconds > 0
    wanted = path(f, 10)
    for record in result.history.records:
        if record.validation:
            assert record.validation == measures(wanted[record.step])
    read = read_csv(tmp_path / "history.csv")
    assert repr(read.records) == repr(result.history.records) and read.validated == (
        "validation_loss",
        "validation_accuracy",
    )
    column = read.column("validation_loss")
    assert math.isnan(column[1]) and column[9] == measures(wanted[9])["validation_loss"]


def test_nothing_is_counted_and_the_iterates_are_the_same():
    f, measures = bowl()

    def heavy(x):
        for _ in range(5):
            f.gradient(x)
        return measures(x)

    plain = minimise(f, torch.zeros(5).double(), Adam(0.1), stop=Stop(8))
    seen = minimise(f, torch.zeros(5).double(), Adam(0.1), stop=Stop(8), validation=Validation(heavy))
    assert torch.equal(plain.x, seen.x)
    assert plain.record.cost.gradient_evaluations == seen.record.cost.gradient_evaluations
    assert plain.record.cost.work_total == seen.record.cost.work_total


@pytest.mark.parametrize("chosen", ["", "validation_loss", "validation_accuracy"])
def test_the_best_iterate_is_kept(chosen):
    f, measures = bowl()
    validation = Validation(measures, chosen=chosen)
    minimise(f, torch.zeros(5).double(), Sgd(0.1), stop=Stop(40), validation=validation)
    iterates = path(f, 40)
    losses = [measures(x)["validation_loss"] for x in iterates]
    best = losses.index(min(losses))
    assert 0 < best < 40, "the loss falls and rises"
    assert validation.step == best and torch.equal(validation.best, iterates[best])
    assert abs(validation.value) == losses[best]


@pytest.mark.parametrize(("every", "patience"), [(1, 1), (1, 4), (3, 2)])
def test_patience_ends_the_run(every, patience):
    f, measures = bowl()
    validation = Validation(measures, every=every, patience=patience)
    result = minimise(f, torch.zeros(5).double(), Sgd(0.1), stop=Stop(200), validation=validation)
    losses = [measures(x)["validation_loss"] for x in path(f, 60)[::every]]
    lowest, waited, end = math.inf, 0, 0
    for k, loss in enumerate(losses):
        waited, lowest = (0, loss) if loss < lowest else (waited + 1, lowest)
        if waited == patience:
            end = k * every
            break
    assert result.status is Status.stopped_early and result.record.step == end > 0
    assert "validation loss" in result.status.advice and not result.status.failed
    assert validation.step < end


def test_a_name_that_is_not_there_is_refused_before_the_first_step():
    f, measures = bowl()
    seen = History()
    with pytest.raises(ValueError, match=r"must be by one of validation_loss, validation_accuracy \(did you mean"):
        validation = Validation(measures, chosen="validation_acuracy")
        minimise(f, torch.zeros(5).double(), Sgd(0.1), stop=Stop(5), monitors=[seen], validation=validation)
    assert not seen.records


def test_numbers_that_are_none_are_never_the_best():
    numbers = iter([math.nan, 2.0, math.nan, 1.0])
    validation = Validation(lambda x: {"validation_loss": next(numbers)}, patience=2)
    for k in range(4):
        validation.see(torch.full((1,), float(k)), k)
    assert validation.value == 1.0 and validation.best.item() == 3.0 and validation.waited == 0


def test_a_run_that_goes_on_has_the_same_history_and_best(tmp_path):
    f, measures = bowl()
    start = torch.zeros(5).double()
    whole = Validation(measures, every=2, patience=5)
    uninterrupted = minimise(f, start, Adam(0.05), stop=Stop(100), validation=whole)
    first = Validation(measures, every=2, patience=5)
    half = minimise(f, start, Adam(0.05), stop=Stop(12), validation=first)
    save(tmp_path / "c.pt", x=half.x, state=half.state, history=half.history, meta={}, validation=first)
    kept = load(tmp_path / "c.pt")
    rest = Validation(measures, every=2, patience=5)
    rest.restore(kept.validation)
    end = minimise(
        f,
        kept.x,
        Adam(0.05),
        stop=Stop(100),
        state=kept.state(Adam(0.05).init(f, start)),
        past=kept.history,
        validation=rest,
    )
    assert end.record.step == uninterrupted.record.step and end.status is uninterrupted.status
    assert end.history.column("validation_loss")[14:] == uninterrupted.history.column("validation_loss")[14:]
    assert repr(kept.history.records) == repr(half.history.records)
    assert (rest.step, rest.value, rest.waited) == (whole.step, whole.value, whole.waited)
    assert torch.equal(rest.best, whole.best)
    other = Validation(measures, chosen="validation_accuracy")
    other.restore(kept.validation)
    assert other.best is None and other.lowest == first.lowest, "the best by another number is not known"

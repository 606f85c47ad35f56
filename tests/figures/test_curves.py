"""Figures: written whole, for every kind of history; all text on the canvas; the statistics and budgets behind them."""

import math
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure

from mldd import Status, Stop, minimise
from mldd.figures import comparison, convergence, figure_files
from mldd.figures.curves import Curve, band
from mldd.loop import Cost, History, Record
from mldd.problems.grids import Quadratic
from mldd.solvers import LBFGS, Adam
from tests.figures.boxes import outside, sizes

LONG = "dd-adagrad:local=ml-lbfgs(memory=7,search=backtracking),combine=wasm,varsigma=0.0123456789,damping=0.5"


def history(steps=20, rate=0.1, floor=0.1, work=1.0, syncs=0, values=True, **more):
    def record(k):
        value = floor + math.exp(-rate * k) if values else math.nan
        cost = Cost(k + 1, 1 + work * k, 1 + work * k, syncs * k, seconds=0.01 * k)
        return Record(k, 0, math.exp(-rate * k), value, 0, 0, cost)

    return History([record(k) for k in range(steps)], **more)


def size(path):
    """Width and height of a PNG, from its header."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and data[-8:-4] == b"IEND"
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def lines(ax):
    """The curves of a panel, without the signs at their ends."""
    return [line for line in ax.lines if len(line.get_xdata()) > 1]


@pytest.mark.parametrize(
    "shown",
    [
        history(status=Status.max_steps),
        history(syncs=3, floor=-2.0, norm=2.0, status=Status.stalled),
        history(steps=1),
        history(values=False, norm=math.inf),
        History([Record(0, 0, math.nan, math.nan, 0, 0, Cost())]),
        History([Record(k, 0, 0.0, 0.0, 0, 0, Cost()) for k in range(2)]),
        history(rate=-5.0, steps=100, status=Status.diverged),
        history(rate=1e-17, floor=-1.0, steps=100),
        history(rate=1e-16, floor=-1.5, steps=30),
    ],
    ids="positive,negative,one record,no values,nothing finite,zero,diverged,zero but rounding,rounding".split(","),
)
def test_convergence(tmp_path, shown, recwarn, monkeypatch):
    figure = convergence(shown, str(tmp_path / "c"), "obstacle:n=63 by adagrad_$x_, seed $0$: " + LONG)
    assert size(tmp_path / "c.png")[0] == 1020
    assert (tmp_path / "c.pdf").read_bytes().startswith(b"%PDF")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.pdf", "c.png"]
    assert isinstance(figure, Figure) and outside(figure, monkeypatch) == []
    assert not recwarn.list


ALL = ("seconds", "work_units", "gradient_evaluations", "step", "synchronisations")


@pytest.mark.parametrize(("solvers", "against"), [(1, ()), (3, ()), (20, ()), (3, ALL)])
def test_all_text_of_a_comparison_is_on_the_canvas(solvers, against, monkeypatch, recwarn):
    reasons = list(Status)
    runs = {
        f"{LONG if k == 2 else 'solver'}{k}:lr=0.{k}": [
            history(10 + 5 * s, syncs=k % 2, status=reasons[k % len(reasons)]) for s in range(3)
        ]
        for k in range(solvers)
    }
    runs["long"] = [history(3000, rate=0.001, syncs=2, norm=math.inf)]
    figure = comparison(runs, title="/a/path/to/some/data/of/mine/" * 5, against=against)
    assert figure.get_figwidth() == (7.0 if against else 3.4)
    assert outside(figure, monkeypatch) == []
    assert all(7 <= points <= 8 or points == 7 * 0.7 for points in sizes(figure))
    assert not recwarn.list


def test_the_canvas_is_really_looked_at(monkeypatch):
    figure = convergence(history())
    figure.text(0.99, 0.5, "too far to the right")
    assert [text for text, _ in outside(figure, monkeypatch)] == ["too far to the right"]


def test_panels_are_objective_gap_and_measure(recwarn):
    f = Quadratic(dim=1, n=15)
    solvers = {"adam": Adam(0.1), "lbfgs": LBFGS()}
    results = {
        name: minimise(f.objective(), f.initial(), solver, stop=Stop(max_steps=40, atol=1e-9, norm=2.0), values=True)
        for name, solver in solvers.items()
    }
    figure = comparison({name: [result.history] for name, result in results.items()}, against=("step", "work_units"))
    axes = np.array(figure.axes).reshape(3, 2)
    assert [ax.get_yscale() for ax in axes[1:, 0]] == ["log", "log"]
    assert axes[2, 0].get_ylabel() == r"$\Vert P(x - g) - x\,\Vert_{2}$"
    best = min(min(result.history.column("value")) for result in results.values())
    for row, name in zip(axes[1:], ("value", "measure"), strict=True):
        shift = best if name == "value" else 0.0
        for line, result in zip(lines(row[0]), results.values(), strict=True):
            np.testing.assert_allclose(line.get_ydata(), np.array(result.history.column(name)) - shift)
    assert results["lbfgs"].history.status is results["lbfgs"].status is Status.converged_atol
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["adam", "lbfgs", "steps used up", "converged"]


def test_the_best_objective_is_that_of_the_same_seed():
    def falls(to):
        values = (10.0, to + 1.0, to)
        return History([Record(k, 0, 1.0, v, 0, 0, Cost(work_units=k)) for k, v in enumerate(values)])

    runs = {"a": [falls(0.0), falls(5.0)], "b": [falls(2.0), falls(4.0)], "failed": [History(), falls(4.5)]}
    figure = comparison(runs, against=("work_units",), show=("gap",))
    ends = [line.get_ydata()[-1] for line in lines(figure.axes[0])]
    np.testing.assert_allclose(ends, [0.5, 1.0, 0.5])  # medians of (0, 1) and of (2, 0); seed 1 alone


def test_unequal_budgets_are_grey_and_said():
    def grey(runs):
        figure = comparison(runs, against=("work_units",), show=("measure",))
        said = "unequal budgets" in [text.get_text() for text in figure.legends[0].get_texts()]
        found = [
            patch.get_extents().transformed(figure.axes[0].transData.inverted()) for patch in figure.axes[0].patches
        ]
        assert said == bool(found)
        return [(round(box.x0), round(box.x1)) for box in found]

    cut, cheap = history(11, status=Status.max_steps), history(11, work=3.0, status=Status.max_steps)
    done = history(6, status=Status.converged_atol)
    assert grey({"a": [cut], "b": [cheap]}) == [(11, 31)]
    assert grey({"a": [cut], "b": [cut]}) == []
    assert grey({"a": [cut], "b": [done]}) == [], "who has converged needs no more"
    assert grey({"a": [done], "b": [history(9, status=Status.stalled)]}) == []
    assert grey({"a": [cut, history(4)], "b": [done]}) == [(4, 11)], "of an unknown end nothing good is assumed"


@pytest.mark.parametrize("statuses", [[Status.converged_rtol, Status.stalled], [Status.diverged, None]])
def test_every_run_has_a_sign_at_its_end(statuses):
    runs = {f"{k}": [history(5 + k, status=status)] for k, status in enumerate(statuses)}
    figure = comparison(runs, against=("work_units",), show=("measure",))
    signs = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 1]
    known = [row[0].records[-1] for row in runs.values() if row[0].status]
    assert [(s.get_xdata()[0], s.get_ydata()[0]) for s in signs] == [(r.cost.work_units, r.measure) for r in known]
    assert len({s.get_marker() for s in signs}) == len(known)


def test_a_run_that_rises_does_not_hide_the_others():
    runs = {"good": [history()], "bad": [history(rate=-3.0, steps=200)]}
    value, gap, measure = comparison(runs, against=("step",)).axes
    assert value.get_ylim()[1] < 1e3 and gap.get_ylim()[1] < 1e3 and measure.get_ylim()[1] < 1e3


def test_comparison_without_values_shows_the_measure():
    assert len(comparison({"a": [history(values=False)]}, against=("step",)).axes) == 1


@pytest.mark.parametrize(
    ("runs", "options", "message"),
    [
        ({"a": [history()]}, {"against": ["money"]}, "a cost of a figure must be one of step seconds .*, got money"),
        ({"a": [history()]}, {"show": ["loss"]}, "a quantity of a figure must be one of value gap measure, got loss"),
        ({"a": [history()]}, {"show": []}, "got none"),
        ({"a": [History()]}, {}, "a history with records"),
        ({"a": [history(norm=2.0)], "b": [history(norm=math.inf)]}, {}, "in one norm, got those in the norms 2 inf"),
        ({"a": [history()]}, {"path": "a.docx"}, "must end in one of .*, or have no suffix"),
    ],
)
def test_refusals(runs, options, message):
    with pytest.raises(ValueError, match=message) as error:
        comparison(runs, **options)
    assert "\n" not in str(error.value)


def test_numbers_of_the_validation_are_quantities():
    def record(k):
        return Record(k, 0, 1.0, 1.0, 0, 0, Cost(), {"validation_accuracy": 0.1 * k} if k % 3 == 0 else {})

    figure = comparison(
        {"a": [History([record(k) for k in range(10)])]}, against=["step"], show=["validation_accuracy"]
    )
    (line,) = lines(figure.axes[0])
    np.testing.assert_allclose(line.get_xydata(), [[0, 0], [3, 0.3], [6, 0.6], [9, 0.9]])
    assert figure.axes[0].get_ylabel().replace("\n", " ") == "validation accuracy"


def test_every_status_has_a_sign():
    for status in Status:
        convergence(history(3, status=status), against=["step"], show=["measure"])


def test_the_way_out_of_two_norms_is_one():
    runs = {"a": [history(norm=2.0)], "b": [history(norm=math.inf)]}
    assert len(comparison(runs, against=("step",), show=("value", "gap")).axes) == 2


def test_a_suffix_says_the_kind(tmp_path):
    assert figure_files("a/b.SVG") == figure_files(figure_files("a/b.SVG")[0])
    for name, begin in (("c.svg", b"<?xml"), ("c.pdf", b"%PDF"), ("c.png", b"\x89PNG")):
        convergence(history(), tmp_path / name, against=["step"])
        assert (tmp_path / name).read_bytes().startswith(begin)


def test_a_failure_leaves_the_old_figure(tmp_path, monkeypatch):
    (tmp_path / "c.png").write_text("old")
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        convergence(history(), tmp_path / "c.png")
    assert (tmp_path / "c.png").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_band_is_of_quartiles_and_ended_runs_keep_their_last_value():
    def constant(steps, value):
        return Curve(np.arange(steps, dtype=float), np.full(steps, value), None)

    grid, low, middle, high = band([constant(3, 0.0), constant(5, 1.0), constant(5, 4.0)])
    assert list(grid) == [0, 1, 2, 3, 4]
    np.testing.assert_allclose([low[-1], middle[-1], high[-1]], [0.5, 1.0, 2.5])
    np.testing.assert_allclose(low, 0.5)


def test_band_thins_long_histories_and_keeps_their_ends():
    steps = np.arange(10_000.0)
    grid, _, middle, _ = band([Curve(steps, np.exp(-1e-3 * steps), None)])
    assert len(grid) <= 600 and (grid[0], grid[-1]) == (0, 9999)
    np.testing.assert_allclose(middle, np.exp(-1e-3 * grid))


def test_band_of_nothing():
    assert all(len(part) == 0 for part in band([]))


def test_numbers_of_the_validation_are_drawn_where_there_are_some(tmp_path, monkeypatch):
    names = ("validation_loss", "validation_accuracy")

    def validated(every):
        records = history(10, syncs=2).records
        found = {k: dict(zip(names, (1.0 / (k + 1), 0.1 * k), strict=True)) for k in range(0, 10, every)}
        return History([replace(r, validation=found.get(r.step, {})) for r in records])

    alone = convergence(validated(3), tmp_path / "c.png")
    assert [ax.get_ylabel().replace("\n", " ") for ax in alone.axes[4::2]] == ["validation loss", "validation accuracy"]
    (curve,) = lines(alone.axes[6])
    assert curve.get_xdata().tolist() == [0, 3, 6, 9] and curve.get_ydata() == pytest.approx([0, 0.3, 0.6, 0.9])
    both = comparison({"a": [validated(3)], "b": [history(10)]}, against=("step",))
    assert len(both.axes) == 5 and [len(lines(ax)) for ax in both.axes] == [2, 2, 2, 1, 1]
    assert both.axes[4].get_ylim()[1] > 0.9 and both.axes[3].get_ylim()[1] < 2  # what has grown is not cut off
    assert outside(alone, monkeypatch) == outside(both, monkeypatch) == []
    assert len(convergence(history()).axes) == 4


def test_records_without_a_number_hide_none_at_the_same_cost():
    records = [replace(r, validation={"loss": 1.0} if r.step == 1 else {}) for r in history(3).records]
    records[2] = replace(records[2], cost=records[1].cost)  # a step that cost nothing, and was not validated
    (ax,) = comparison({"a": [History(records)]}, against=("work_units",), show=("loss",)).axes
    assert [line.get_ydata().tolist() for line in ax.lines] == [[1.0]]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("numbers", [[math.nan, math.inf, -math.inf], [1e308, -1e308, 1.0], [5e-324, 0.0, 5e-324]])
def test_numbers_of_any_size_are_drawn(numbers):
    records = [Record(k, 0, v, v, 0, 0, Cost(k, float(k), float(k), seconds=abs(v))) for k, v in enumerate(numbers)]
    figure = comparison({"a": [history(3)], "b": [History(records)]}, show=("value", "measure"))
    assert all(len(lines(ax)) >= 1 for ax in figure.axes)


def test_a_title_may_hold_anything(tmp_path):
    convergence(history(3), tmp_path / "a.png", "half a pair \udcff, a bell \x07, a zero \x00\n, $\\frac{")
    assert size(tmp_path / "a.png")[0] > 100

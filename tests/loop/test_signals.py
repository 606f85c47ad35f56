"""Signals end a run at a safe point, on all ranks; a second one of the same kind ends it at once."""

import signal
import time

import pytest
import torch

from mldd.loop import Detection, Status, Stop, Terminated, deferred, minimise, terminable
from mldd.ranks import Communicator
from mldd.solvers import Sgd
from tests.helpers import quadratic

X = torch.ones(6, dtype=torch.float64)
STATUS = {
    signal.SIGINT: Status.interrupted,
    signal.SIGTERM: Status.terminated,
    signal.SIGUSR1: Status.terminated,
}


def run(at, number, **options):
    def send(x, state, history):
        if state.step == at:
            signal.raise_signal(number)

    return minimise(quadratic(6), X, Sgd(0.001), stop=Stop(9), after_step=send, **options)


@pytest.mark.parametrize("number", STATUS)
def test_a_signal_ends_the_run_after_its_step(number):
    before = signal.getsignal(number)
    result = run(3, number)
    assert (result.status, result.record.step) == (STATUS[number], 4)
    assert result.status.is_unfinished and result.status.exit_code == (130 if number == signal.SIGINT else 143)
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", STATUS)
def test_an_echo_is_not_meant_and_a_second_one_is(number, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with deferred() as signals:
        signal.raise_signal(number)
        now[0] = 0.9
        signal.raise_signal(number)  # mpiexec and the terminal both send it
        now[0] = 5.0
        signal.raise_signal(signal.SIGINT if number != signal.SIGINT else signal.SIGTERM)  # of another kind
        assert signals.interrupted and signals.terminated
        with pytest.raises(KeyboardInterrupt) as caught:
            signal.raise_signal(number)
    assert isinstance(caught.value, Terminated) is (number != signal.SIGINT)


def test_a_signal_between_two_runs_is_one_for_the_next():
    with deferred():
        signal.raise_signal(signal.SIGTERM)
        result = run(-1, signal.SIGTERM)
    assert (result.status, result.record.step) == (Status.terminated, 0)
    assert run(-1, signal.SIGTERM).status is Status.max_steps


def test_a_signal_of_another_rank_ends_this_one():
    """What rank 1 adds to the sums here, one that has had USR1 adds in a real run."""

    class Two(Communicator):
        calls = 0

        def sum_scalars(self, values):
            Two.calls += 1
            return [v + (k == 11 and Two.calls == 3) for k, v in enumerate(values)]

    result = minimise(quadratic(6), X, Sgd(0.001), stop=Stop(9), comm=Two(), detection=Detection(share=0.0))
    assert (result.status, result.record.step) == (Status.terminated, 2)


def test_the_checkpoint_of_the_end_is_written():
    from mldd.loop import Schedule

    found = []
    result = run(3, signal.SIGUSR1, schedule=Schedule(keep=lambda x, state, history: found.append(state.step)))
    assert result.status is Status.terminated and found == [0, 4]


def test_before_a_run_usr1_is_what_term_is():
    found = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: found.append(number))
    try:
        with terminable():
            signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert found == [signal.SIGTERM]

"""Networks by latency and bandwidth: what they are called, and how long messages are held back."""

import pytest
import torch

from mldd.ranks import NETWORKS, Communicator, EmulatedCommunicator, Interconnect, with_network
from mldd.ranks.emulated import HeldBack


def test_numbers_with_units():
    assert Interconnect.of("latency=10ms,bandwidth=1Gb/s") == NETWORKS["sites"] == Interconnect(0.01, 125e6)
    assert Interconnect.of("bandwidth=25GB/s,latency=10us") == NETWORKS["infiniband"]
    assert Interconnect.of("latency=0s,bandwidth=2e3kB/s") == Interconnect(0.0, 2e6)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("infinband", "one of nvlink, infiniband, ethernet, sites, or have both numbers, got 'infinband'"),
        ("latency=1ms", "have both numbers"),
        ("latency=1ms,bandwidth=1Gb/s,loss=2", "have both numbers"),
        ("latency=10,bandwidth=1Gb/s", "must have units, got '10'"),
        ("latency=1ms,bandwidth=1Gbit", "must have units, got '1Gbit'"),
        ("latency=1ms,bandwidth=0B/s", "a bandwidth > 0"),
    ],
)
def test_what_is_no_network(text, said):
    with pytest.raises(ValueError, match=said):
        Interconnect.of(text)


def test_times_of_collectives_by_hand():
    network = Interconnect(latency=1.0, bandwidth=10.0)
    assert network.exchange_seconds(3, 50) == 3 + 5
    assert network.sum_seconds(40, ranks=2) == 2 * 1 + 40 / 10
    assert network.sum_seconds(40, ranks=8) == 2 * 3 + 2 * 7 / 8 * 40 / 10
    assert network.gather_seconds(80, ranks=8) == 3 + 7 / 8 * 8


def test_one_rank_has_no_network():
    with pytest.raises(ValueError, match="got one rank; start with mpiexec -n 2, or leave sites out"):
        with_network(Communicator(), "sites")


class Clock:
    """Seconds that go on where somebody waits."""

    def __init__(self):
        self.time, self.pauses = 100.0, []

    def now(self):
        return self.time

    def pause(self, seconds):
        self.pauses.append(seconds)
        self.time += max(seconds, 0.0)


class Messages:
    """Messages that are there when somebody waits for them."""

    def start(self, send, receive, *, back):
        return lambda: receive.copy_(send)


@pytest.mark.parametrize("worked", [0.0, 2.0, 9.0])
def test_work_hides_an_exchange(worked):
    clock = Clock()
    comm = EmulatedCommunicator(network=Interconnect(1.0, 8.0), now=clock.now, pause=clock.pause)
    slices = ((1, slice(0, 2)), (2, slice(2, 4)))
    held = HeldBack(Messages(), comm, slices, slices)
    sent, got = torch.arange(4.0).view(4, 1), torch.zeros(4, 1)
    wait = held.start(sent, got, back=False)
    clock.time += worked
    wait()
    assert (got == sent).all()
    assert clock.pauses == [2 * 1.0 + 4 * 4 / 8 - worked]
    assert clock.time == 100.0 + max(worked, 4.0)
    assert (comm.booked.exchanges, comm.booked.exchange_seconds) == (1, 4.0)

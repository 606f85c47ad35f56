"""The ledger: what is counted where, and what is not."""

import threading

import pytest

from mldd.algebra import Ledger, Price, count, counting, on_this_rank, uncounted


def test_nothing_is_counted_outside_a_block():
    count(gradients=1)
    with counting() as cost:
        pass
    count(gradients=1)
    assert cost == Ledger()


def test_all_columns():
    with counting() as cost:
        count(gradients=1, values=2, work=3.5, synchronisations=5, scalar_synchronisations=4, sent=6)
        count(halo_rows=7, halo_bytes=8, exchanges=9)
        count(gradients=1)
    assert cost == Ledger(2, 2, 3.5, 5, 4, 6, 7, 8, 9)


def test_a_ledger_can_be_continued_and_inner_ones_are_apart():
    cost = Ledger(gradients=7)
    with counting(cost):
        count(gradients=1)
        with counting() as inner:
            count(gradients=10)
        count(gradients=1)
    assert (cost.gradients, inner.gradients) == (9, 10)


def test_uncounted():
    with counting() as cost:
        with uncounted():
            count(gradients=1)
            with on_this_rank():
                count(work=1.0)
        count(values=1)
    assert cost == Ledger(values=1)


def test_the_ledger_is_restored_after_an_error():
    with counting() as cost:
        with pytest.raises(RuntimeError), uncounted():
            raise RuntimeError
        count(gradients=1)
    assert cost.gradients == 1


def test_on_this_rank_counts_no_fine_gradients():
    with counting() as cost, on_this_rank():
        Price().of_gradient(2)
        Price(gradient=0.25, fine=False).of_gradient()
        with on_this_rank():
            Price().of_gradient()
    assert cost == Ledger(work=3.25)


def test_what_subdomains_send_is_counted():
    with counting() as cost, on_this_rank():
        count(halo_rows=3, halo_bytes=24, exchanges=1, synchronisations=2, scalar_synchronisations=4, sent=8)
    expected = Ledger(halo_rows=3, halo_bytes=24, exchanges=1, synchronisations=2, scalar_synchronisations=4, bytes=8)
    assert cost == expected


def test_prices():
    fine, coarse = Price(value=0.5, product=2.0), Price(gradient=0.25, fine=False, value=0.5, product=2.0)
    with counting() as cost:
        fine.of_gradient()
        fine.of_value(2)
        fine.of_product()
        coarse.of_gradient(4)
        coarse.of_value()
        coarse.of_product()
    assert cost == Ledger(gradients=1, values=2, work=1 + 1 + 2 + 1 + 0.125 + 0.5)


def test_a_share_of_the_fine_objective_is_a_fine_gradient_of_less_work():
    with counting() as cost:
        Price().scaled(0.25).of_gradient()
        Price(product=4.0).scaled(0.5).of_product()
    assert cost == Ledger(gradients=1, work=0.25 + 2.0)


def test_threads_have_ledgers_of_their_own():
    with counting() as cost:
        thread = threading.Thread(target=lambda: count(gradients=1))
        thread.start()
        thread.join()
    assert cost.gradients == 0

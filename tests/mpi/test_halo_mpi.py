"""Halos on ranks: what arrives, its adjoint, both carriers of messages, what is counted and what is refused."""

import pytest

from tests.helpers import agree, needs_mpi, together

SCRIPT = """
    import torch
    from mldd.algebra import counting
    from mldd.ranks import Halo, timed
    from mldd.ranks import Communicator, world

    def make(comm, own, each, **options):
        # `each` random rows of every other rank; of four ranks the last reads nobody and is read by nobody.
        g = torch.Generator().manual_seed(comm.rank)
        active = range(min(comm.ranks, 3))
        others = [k for k in active if k != comm.rank] if comm.rank in active else []
        picks = [torch.randperm(own + k, generator=g)[:each] for k in others]
        ranks = torch.tensor([k for k in others for _ in range(each)], dtype=torch.int64)
        return Halo(comm, own + comm.rank, ranks, torch.cat([torch.empty(0, dtype=torch.int64), *picks]), **options)

    def rows_of(rank, own, shape, dtype):
        numbers = torch.arange((own + rank) * max(1, torch.tensor(shape).prod().item())) % 251
        return (numbers.view(own + rank, *shape) + 300 * (rank % 2)).to(dtype)

    def check(comm, messages, staged):
        own, each = 9, 4
        halo = make(comm, own, each, messages=messages, staged=staged)
        kinds = (torch.float64, torch.float32, torch.int64, torch.bfloat16)
        everyone = {(k, dtype, shape): rows_of(k, own, shape, dtype) for k in range(comm.ranks)
                    for dtype in kinds for shape in ((), (3,), (2, 2))}
        for (k, dtype, shape), rows in everyone.items():
            if k == comm.rank:
                expected = torch.stack([everyone[int(r), dtype, shape][i] for r, i in zip(halo.ranks, halo.indices)]) \\
                    if halo.size else rows[:0]
                for _ in range(2):  # buffers are used again
                    with counting() as cost, timed() as time:
                        got = halo.exchange(rows)
                    assert torch.equal(got, expected), (messages, dtype, shape)
                    width = rows[0].numel()
                    assert (cost.halo_rows, cost.exchanges, time.exchanges) == (len(halo.index), 1, 1)
                    assert cost.halo_bytes == len(halo.index) * width * rows.element_size()
        # the adjoint: <E x, y> = <x, E^T y> over all ranks, and the dense matrix of E
        x = torch.rand(halo.own, 3, dtype=torch.float64)
        y = torch.rand(halo.size, 3, dtype=torch.float64)
        back = halo.end_back(halo.begin_back(y), torch.zeros_like(x))
        left, right = comm.sum_scalars([float((halo.exchange(x) * y).sum()), float((x * back).sum())])
        assert abs(left - right) < 1e-12 * abs(left), (left, right)
        # derivatives, twice: f = sum (E x)^3 / 6, so H v = E^T (E x * E v)
        x.requires_grad_()
        v = torch.rand_like(x)
        (g,) = torch.autograd.grad((halo.exchange(x) ** 3).sum() / 6, x, create_graph=True)
        z = halo.exchange(x.detach())
        assert torch.allclose(g, halo.end_back(halo.begin_back(z * z / 2), torch.zeros_like(v)))
        (h,) = torch.autograd.grad((g * v).sum(), x)
        product = halo.end_back(halo.begin_back(z * halo.exchange(v).detach()), torch.zeros_like(v))
        assert torch.allclose(h, product, rtol=1e-14)
        return g.detach()

    def refuse(comm):
        one, two = torch.tensor([1 - comm.rank % 2]), torch.tensor([1 - comm.rank % 2] * 2)
        cases = [
            ("must be among the 3 of rank", lambda: Halo(comm, 3, one, torch.tensor([7 if comm.rank else 0]))),
            ("must be the other of 2 ranks", lambda: Halo(comm, 3, torch.tensor([0]), torch.tensor([0]))),
            ("must hold every row once", lambda: Halo(comm, 3, two, torch.tensor([1, 1 + comm.rank]))),
            ("`messages` must be one of", lambda: Halo(comm, 3, one, one, messages="pigeons")),
        ]
        for text, build in cases:
            try:
                build()
            except ValueError as error:  # on both ranks, though only one is wrong
                assert text in str(error), error
            else:
                raise AssertionError(text)

    import importlib.util
    carriers = ["mpi"] + ["petsc"] * (importlib.util.find_spec("petsc4py") is not None)
    pair = Communicator(world().mpi.Split(world().rank // 2))
    for comm in (pair, world()):
        found = [check(comm, messages, staged) for messages in carriers for staged in (False, True)]
        assert len(found) == 2 * len(carriers)
    refuse(pair)
    # messages of two halos under way at once are not mixed up, whatever the order in which they end
    first, second = make(world(), 9, 4), make(world(), 9, 2)
    a, b = first.begin(torch.full((first.own, 2), 1.0)), second.begin(torch.full((second.own, 2), 2.0))
    assert bool((second.end(b) == 2).all()) and bool((first.end(a) == 1).all())
    if world().rank == 0:
        print("all the same")
"""

ORDER = """
    import torch
    from mldd.ranks import Halo
    from mldd.ranks import world

    comm = world()
    owner = torch.zeros(3 if comm.rank else 0, dtype=torch.int64)
    halo = Halo(comm, 3, owner, torch.arange(len(owner)))
    gradient = torch.tensor([[1e17], [1.0], [-1e17]])[torch.tensor([comm.rank, comm.rank, comm.rank]) % 3].double()
    totals = {tuple(halo.end_back(halo.begin_back(gradient[: halo.size]), torch.ones(3, 1).double()).flatten().tolist())
              for _ in range(20)}
    assert len(totals) == 1, totals
    if comm.rank == 0:
        print(totals)
"""


@needs_mpi
@pytest.mark.mpi
def test_exchanges_and_their_adjoints():
    agree(4, SCRIPT)


@needs_mpi
@pytest.mark.mpi
def test_gradients_are_added_in_the_order_of_ranks():
    """Rank by rank: 1 + 1 (rank 1) - 1e17 (rank 2) + 1e17 (rank 3) is 0, where another order gives 1 or 2."""
    assert "(0.0, 0.0, 0.0)" in together(4, ORDER)

"""Optimizers on two ranks of torch.distributed: equal on both, and equal to one process with all samples."""

import datetime
import re
import warnings

import pytest
import torch
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from mldd.loop import Status
from mldd.solvers import LBFGS, AdaGrad, NonlinearSchwarz, Optimizer, Sgd, TrustRegion

RANKS = 2
STEPS = 8
SOLVERS = {
    "lbfgs": LBFGS(),
    "trust-region": TrustRegion(),
    "sgd": Sgd(0.1),
    "adagrad": AdaGrad(rate=0.1, curvature="exact"),
    "lbfgs with decay": LBFGS(),
    "schwarz": lambda d: NonlinearSchwarz(d, local=LBFGS(), local_steps=2),
}
OPTIONS = {"lbfgs with decay": {"weight_decay": 0.1}}
REFUSED = {
    "not wrapped": "LBFGS needs the loss over all 2 ranks .* got a module without a synchr.*`group`",
    "not averaged": "gradients must be the same on all 2 ranks, got norms from .* average them over the group",
    "wrapped and not called": "gradients must be the same on all 2 ranks, got norms from",
    "no_sync": "TrustRegion needs the loss over all 2 ranks .* got a module without a synchronised",
    "no_sync inside": "gradients must be the same on all 2 ranks, got norms from",
    "fully_shard after": r"a step needs gradients of its parameters, got none; .* \(fully_shard exchanges them",
}


def network(norm=False):
    torch.manual_seed(0)
    layers = [nn.BatchNorm1d(6)] if norm else []
    return nn.Sequential(nn.Linear(3, 6), *layers, nn.Tanh(), nn.Linear(6, 1)).double()


def data(rank=None):
    """All samples, or those of a rank: very different ones, so that its own loss says nothing of the mean."""
    inputs = torch.randn(24, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    inputs[12:] *= 3
    targets = inputs.prod(1, keepdim=True)
    rows = slice(None) if rank is None else slice(12 * rank, 12 * rank + 12)
    return inputs[rows], targets[rows]


def closure_of(module, optimizer, inputs, targets, after=lambda: None):
    def closure():
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(module(inputs), targets)
        loss.backward()
        after()
        return loss

    return closure


def flat(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def trained(solver, module, called, inputs, targets, after=lambda: None, **options):
    """Losses, parameters and calls of the closure of a few steps."""
    optimizer = Optimizer(module.parameters(), solver, **options)
    closure, calls = closure_of(called, optimizer, inputs, targets, after), []

    def counted():
        calls.append(1)
        return closure()

    losses = [float(optimizer.step(counted)) for _ in range(STEPS)]
    return losses, flat(module), len(calls)


def data_parallel(rank, name, how):
    module = network()
    inputs, targets = data(rank)
    if how == "wrapped anew":  # by one group of ranks, then by another
        DistributedDataParallel(module, process_group=distributed.new_group())(inputs).sum().backward()
    if how.startswith("wrapped"):
        parallel = DistributedDataParallel(module)
        return trained(SOLVERS[name], module, parallel, inputs, targets, **OPTIONS.get(name, {}))

    def average():
        for p in module.parameters():
            distributed.all_reduce(p.grad)
            p.grad /= RANKS

    options = {"group": distributed.group.WORLD, **OPTIONS.get(name, {})}
    return trained(SOLVERS[name], module, module, inputs, targets, average, **options)


def alone(rank, name):
    module = network()
    return trained(SOLVERS[name], module, module, *data(rank), group=None)


def message(rank, case):
    """What a run that must not go on says."""
    torch.manual_seed(0)
    module = network()
    inputs, targets = data(rank)
    parallel = None if case == "not wrapped" or case.startswith("fully") else DistributedDataParallel(module)
    before = flat(module)
    try:
        if case == "not wrapped":
            trained(LBFGS(), module, module, inputs, targets)
        elif case == "not averaged":
            trained(LBFGS(), module, module, inputs, targets, group=distributed.group.WORLD)
        elif case == "wrapped and not called":
            trained(LBFGS(), module, module, inputs, targets)
        elif case == "no_sync":
            with parallel.no_sync():
                trained(TrustRegion(), module, parallel, inputs, targets)
        elif case == "no_sync inside":
            optimizer = Optimizer(module.parameters(), TrustRegion())

            def closure():
                with parallel.no_sync():
                    return closure_of(parallel, optimizer, inputs, targets)()

            optimizer.step(closure)
        else:
            sharded(module)
    except ValueError as error:
        return str(error), torch.equal(flat(module), before) if not case.startswith("fully") else True
    return "", False


def sharded(module):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    optimizer = Optimizer(module.parameters(), Sgd(0.1))
    fully_shard(module, mesh=init_device_mesh("cpu", (RANKS,)))
    optimizer.step(closure_of(module, optimizer, *data(0)))


def norms(rank, solver):
    """Statistics of a BatchNorm after a step, and after the first evaluation of that step alone."""
    inputs, targets = data(rank)
    found = []
    for steps in (1, 0):
        module = network(norm=True)
        parallel = DistributedDataParallel(module)
        optimizer = Optimizer(module.parameters(), solver)
        closure = closure_of(parallel, optimizer, inputs, targets)
        optimizer.step(closure) if steps else closure()
        found.append([buffer.clone() for buffer in module.buffers()])
    return found


def diverging(rank):
    """The second rank alone meets an infinite sample in its third step."""
    module = network()
    inputs, targets = data(rank)
    optimizer = Optimizer(module.parameters(), LBFGS())
    statuses, parallel = [], DistributedDataParallel(module)
    for step in range(5):
        factor = torch.inf if (rank, step) == (1, 2) else 1.0
        optimizer.step(closure_of(parallel, optimizer, factor * inputs, targets))
        statuses.append(optimizer.status)
    return statuses, flat(module)


JOBS = {
    **{f"{name}, {how}": (data_parallel, name, how) for name in SOLVERS for how in ("wrapped", "by hand")},
    "lbfgs, wrapped anew": (data_parallel, "lbfgs", "wrapped anew"),
    **{case: (message, case) for case in REFUSED},
    "alone": (alone, "lbfgs"),
    "diverging": (diverging,),
    "norms": (norms, LBFGS()),
}


def worker(rank, store, queue):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    limit = datetime.timedelta(seconds=60)  # ranks that part would wait for each other
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS, timeout=limit)
    try:
        queue.put((rank, {job: work(rank, *arguments) for job, (work, *arguments) in JOBS.items()}))
    finally:
        distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What both ranks found in all jobs; they are started once."""
    queue = multiprocessing.get_context("spawn").Manager().Queue()
    multiprocessing.spawn(worker, (str(tmp_path_factory.mktemp("ranks") / "store"), queue), nprocs=RANKS)
    outs = dict(queue.get() for _ in range(RANKS))
    return {job: [outs[rank][job] for rank in range(RANKS)] for job in JOBS}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("how", ["wrapped", "by hand"])
@pytest.mark.parametrize("name", SOLVERS)
def test_ranks_are_equal_and_equal_to_one_process(found, name, how):
    (losses, x, calls), (other_losses, y, other_calls) = found[f"{name}, {how}"]
    assert losses == other_losses and torch.equal(x, y) and calls == other_calls
    module = network()
    expected, z, _ = trained(SOLVERS[name], module, module, *data(), **OPTIONS.get(name, {}))
    assert expected[-1] < 0.9 * expected[0]
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(x, z, rtol=1e-4, atol=1e-5)


def test_a_wrapper_that_was_dropped_has_no_say(found):
    for anew, once in zip(found["lbfgs, wrapped anew"], found["lbfgs, wrapped"], strict=True):
        assert anew[0] == once[0] and torch.equal(anew[1], once[1])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_ranks_may_train_alone(found):
    for rank in range(RANKS):
        module = network()
        losses, x, calls = found["alone"][rank]
        assert (losses, calls) == trained(LBFGS(), module, module, *data(rank))[::2]
        assert torch.equal(x, flat(module))
    assert found["alone"][0][0] != found["alone"][1][0]


def test_ranks_go_back_together(found):
    (statuses, x), (others, y) = found["diverging"]
    assert statuses == others == [None, None, Status.diverged, None, None]
    assert torch.equal(x, y) and bool(torch.isfinite(x).all())


@pytest.mark.parametrize("case", REFUSED)
def test_ranks_that_would_part_are_refused_on_all(found, case):
    for words, untouched in found[case]:
        assert re.search(REFUSED[case], words)
        assert untouched


def test_batch_norm_keeps_what_the_first_evaluation_left(found):
    for rank in range(RANKS):
        after_step, after_call = found["norms"][rank]
        assert int(after_call[2]) == 1
        for buffer, expected in zip(after_step, after_call, strict=True):
            torch.testing.assert_close(buffer, expected, rtol=1e-12, atol=0)

"""Optimizers on parameters in pieces on two ranks (FSDP2): as one process with all samples, to rounding."""

import datetime
import re
import shutil
import tempfile
import warnings
from functools import partial

import pytest
import torch
from torch import distributed, multiprocessing, nn

from mldd.algebra import counting
from mldd.solvers import (
    LBFGS,
    AdaGrad,
    Adam,
    NonlinearSchwarz,
    Optimizer,
    SchwarzAdaGrad,
    SchwarzLBFGS,
    Sgd,
    TrustRegion,
)

RANKS = 2
STEPS = 10
SOLVERS = {
    "adam": Adam(0.01),
    "adagrad": AdaGrad(rate=0.1),
    "adagrad with curvature": AdaGrad(rate=0.1, curvature="lbfgs"),
    "lbfgs": LBFGS(),
    "trust-region": TrustRegion(),
    "schwarz": lambda d: NonlinearSchwarz(d, local=LBFGS(), local_steps=2),
    "schwarz, multiplicative": lambda d: SchwarzLBFGS(d, order="multiplicative"),
    "dd-adagrad": partial(SchwarzAdaGrad, local=AdaGrad(rate=0.1), local_steps=3),
}
SHARDINGS = ("whole", "by layer", "second axis", "copies", "pieces and copies")
REFUSED = {
    "some whole": r"all parameters must be in pieces \(DTensor\) or none, got 2 of 6 whole; shard the whole module",
    "FSDP1": "every rank must hold all parameters, or pieces by fully_shard, got FullyShardedDataParallel",
    "left whole": "parameters must be in pieces where others of their module are, got whole ones in FSDPSeq.*`group`",
    "cut twice": r"parameters must be cut along one axis of a mesh, got \(_StridedShard.*\); shard the whole module by",
    "tensor parallel": "parameters in pieces must be those of fully_shard, got DTensor without it; shard the",
    "group": "`group` must be left out for parameters in pieces",
    "no synchronisation": r"a step needs gradients of its parameters, got none; .*set_requires_gradient_sync\(True\)",
    "accumulated": "the closure must clear all gradients before it computes new ones",
}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 1)).double()


def data(*ranks):
    """The samples of ranks, in pairs: very different ones, so that the loss of one says nothing of the mean."""
    inputs = torch.randn(24, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    inputs[12:] *= 2
    targets = inputs.sin().prod(1, keepdim=True)
    return [(inputs[12 * rank : 12 * rank + 12], targets[12 * rank : 12 * rank + 12]) for rank in ranks]


def sharded(how):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard

    module, mesh = network(), init_device_mesh("cpu", (RANKS,))
    if "copies" in how:
        shape = (RANKS, 1) if how == "copies" else (1, RANKS)
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("copies", "pieces"))
    even = {"shard_placement_fn": lambda p: Shard(int(p.shape[-1] == 6 and p.dim() == 2))}
    if how == "by layer":
        for k in (0, 2):
            fully_shard(module[k], mesh=mesh)
    return fully_shard(module, mesh=mesh, **(even if how == "second axis" else {}))


def groups(module, options):
    """Groups for the layers, the options for the second one."""
    return [{"params": module[k].parameters(), **(options if k == 2 else {})} for k in (0, 2, 4)]


def flat(module):
    return torch.cat([getattr(p, "full_tensor", lambda p=p: p)().detach().flatten() for p in module.parameters()])


def closure_of(module, optimizer, shares, clears=True):
    """The mean of the losses of shares: of one on a rank, of both in one process, with the same arithmetic."""

    def closure():
        if clears:
            optimizer.zero_grad()
        loss = sum(nn.functional.mse_loss(module(inputs), targets) for inputs, targets in shares) / len(shares)
        loss.backward()
        return loss

    return closure


def trained(module, name, shares, steps=STEPS, **options):
    """Losses and parameters of a few steps, and the optimizer."""
    optimizer = Optimizer(groups(module, options), SOLVERS[name])
    closure = closure_of(module, optimizer, shares)
    return [float(optimizer.step(closure)) for _ in range(steps)], flat(module), optimizer


def whole_run(rank, name, how="by layer", **options):
    module = sharded(how)
    losses, x, _ = trained(module, name, data(rank), **options)
    held = sum(p.to_local().numel() for p in module.parameters())
    return losses, x, held


def after_a_forecast(rank):
    """An evaluation without backward leaves whole parameters in the module; the bounds then move the pieces."""
    module = sharded("whole")
    with torch.no_grad():
        module(data(rank)[0][0])
    module.reshard()
    optimizer = Optimizer(groups(module, {"lower": -0.1, "upper": 0.1}), SOLVERS["adagrad"])
    with torch.no_grad():
        module(data(rank)[0][0])
    closure = closure_of(module, optimizer, data(rank))
    losses = [float(optimizer.step(closure)) for _ in range(STEPS)]
    return losses, flat(module), 0


def without_a_closure(rank):
    module = sharded("by layer")
    optimizer = Optimizer(module.parameters(), Sgd(0.1, 0.9))
    closure = closure_of(module, optimizer, data(rank))
    with counting() as cost:
        for _ in range(STEPS):
            closure()
            optimizer.step()
    return [], flat(module), cost.synchronisations


def norms(rank):
    """Statistics of a BatchNorm after a step of many evaluations, and after its first evaluation alone."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    found = []
    for steps in (1, 0):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 1)).double()
        fully_shard(module, mesh=init_device_mesh("cpu", (RANKS,)))
        optimizer = Optimizer(module.parameters(), LBFGS())
        closure = closure_of(module, optimizer, data(rank))
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            optimizer.step(closure) if steps else closure()
        said = sum("3 buffers of the module change with every evaluation" in str(w.message) for w in told)
        found.append((said, [buffer.clone() for buffer in module.buffers()]))
    return found


def resumed(rank):
    """Five steps, and five more in another sharding from a checkpoint of torch on files."""
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    folder = [tempfile.mkdtemp()]
    distributed.broadcast_object_list(folder)
    module, again = sharded("by layer"), sharded("whole")
    losses, _, optimizer = trained(module, "lbfgs", data(rank), steps=5)
    optimizer.zero_grad()  # torch would then do a step of an optimizer that has no state
    checkpoint.save(
        dict(zip(("model", "optimizer"), get_state_dict(module, optimizer), strict=True)), checkpoint_id=folder[0]
    )
    with torch.no_grad():
        for p in again.parameters():
            p.zero_()
    optimizer = Optimizer(groups(again, {}), SOLVERS["lbfgs"])
    states = dict(zip(("model", "optimizer"), get_state_dict(again, optimizer), strict=True))
    checkpoint.load(states, checkpoint_id=folder[0])
    set_state_dict(again, optimizer, model_state_dict=states["model"], optim_state_dict=states["optimizer"])
    distributed.barrier()
    if rank == 0:
        shutil.rmtree(folder[0])
    closure = closure_of(again, optimizer, data(rank))
    return losses + [float(optimizer.step(closure)) for _ in range(5)], flat(again), 0


def message(rank, case):
    """What a run that cannot be right says."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    module, solver, options = network(), LBFGS(), {}
    chosen = None
    if case == "FSDP1":
        module, solver = FullyShardedDataParallel(module, device_id=torch.device("cpu")), Sgd(0.1)
    elif case == "left whole":
        fully_shard(module, mesh=init_device_mesh("cpu", (RANKS,)), ignored_params=set(module[2].parameters()))
        chosen = module[2].parameters()
    elif case == "some whole":
        fully_shard(module, mesh=init_device_mesh("cpu", (RANKS,)), ignored_params=set(module[2].parameters()))
    elif case == "cut twice":
        mesh = init_device_mesh("cpu", (1, RANKS), mesh_dim_names=("data", "tensor"))
        module = parallelize_module(network()[:1], mesh["tensor"], {"0": ColwiseParallel()})
        fully_shard(module, mesh=mesh["data"])
    elif case == "tensor parallel":
        plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
        module = parallelize_module(module[:3], init_device_mesh("cpu", (RANKS,)), plan)
    else:
        fully_shard(module, mesh=init_device_mesh("cpu", (RANKS,)))
        module.set_requires_gradient_sync(case != "no synchronisation")
        options = {"group": distributed.group.WORLD} if case == "group" else {}
    try:
        optimizer = Optimizer(chosen or module.parameters(), solver, **options)
        optimizer.step(closure_of(module, optimizer, data(rank), clears=case != "accumulated"))
    except ValueError as error:
        return str(error)
    return ""


RUNS = {
    **{f"{name}, by layer": (name, "by layer", {}) for name in SOLVERS},
    **{f"lbfgs, {how}": ("lbfgs", how, {}) for how in SHARDINGS},
    "rates and decay": ("adam", "by layer", {"lr": 0.003, "weight_decay": 0.1}),
    "bounds": ("adagrad", "whole", {"lower": -0.1, "upper": 0.1}),
    "lbfgs with decay": ("lbfgs", "whole", {"weight_decay": 0.1}),
}
JOBS = {
    **{job: partial(whole_run, name=name, how=how, **options) for job, (name, how, options) in RUNS.items()},
    **{case: partial(message, case=case) for case in REFUSED},
    "without a closure": without_a_closure,
    "after a forecast": after_a_forecast,
    "resumed": resumed,
    "norms": norms,
}


def worker(rank, store, queue):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    limit = datetime.timedelta(seconds=60)  # ranks that part would wait for each other
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS, timeout=limit)
    try:
        queue.put((rank, {job: work(rank) for job, work in JOBS.items()}))
    finally:
        distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What both ranks found in all jobs; they are started once."""
    queue = multiprocessing.get_context("spawn").Manager().Queue()
    multiprocessing.spawn(worker, (str(tmp_path_factory.mktemp("ranks") / "store"), queue), nprocs=RANKS)
    outs = dict(queue.get() for _ in range(RANKS))
    return {job: [outs[rank][job] for rank in range(RANKS)] for job in JOBS}


def check(pair, losses, x):
    (found, y, _), (others, z, _) = pair
    assert found == others and torch.equal(y, z)
    torch.testing.assert_close(found, losses, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(y, x, rtol=1e-10, atol=1e-10)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("job", RUNS)
def test_ranks_with_pieces_are_one_process(found, job):
    name, how, options = RUNS[job]
    losses, x, _ = trained(network(), name, data(0, 1), **options)
    assert losses[-1] < 0.98 * losses[0]
    check(found[job], losses, x)
    held = [out[2] for out in found[job]]
    if how == "copies":
        assert held == [len(x)] * RANKS
    else:
        assert sum(held) == len(x) and max(held) < 0.7 * len(x)  # the module stays in pieces


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_steps_without_a_closure(found):
    module = network()
    theirs = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    for _ in range(STEPS):
        theirs.step(closure_of(module, theirs, data(0, 1)))
    check(found["without a closure"], [], flat(module))
    assert all(out[2] == 2 * STEPS for out in found["without a closure"])  # parameters and gradient, once each


def test_batch_norm_keeps_what_the_first_evaluation_left(found):
    for (said, after_step), (silent, after_call) in found["norms"]:
        assert (said, silent) == (1, 0) and int(after_call[2]) == 1
        for buffer, expected in zip(after_step, after_call, strict=True):
            torch.testing.assert_close(buffer, expected, rtol=1e-12, atol=0)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_whole_parameters_left_behind_are_forgotten(found):
    losses, x, _ = trained(network(), "adagrad", data(0, 1), lower=-0.1, upper=0.1)
    check(found["after a forecast"], losses, x)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_was_saved_fits_another_sharding(found):
    losses, x, _ = trained(network(), "lbfgs", data(0, 1))
    check(found["resumed"], losses, x)


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_supported_is_refused_on_all_ranks(found, case):
    for words in found[case]:
        assert re.search(REFUSED[case], words)
        assert "\n" not in words

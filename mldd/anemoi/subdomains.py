"""A Lightning callback that gives an optimizer of mldd the groups of its parameters, and refuses what does not fit."""

from __future__ import annotations

from typing import Any

from mldd.anemoi.grouping import Groups, check_groups, grouped
from mldd.anemoi.lightning import Callback, around_optimizers, check_lightning, check_trainer, mldd_optimizer
from mldd.solvers import Optimizer


class Subdomains(Callback):
    """Groups of named parameters as subdomains of a Schwarz method, in Anemoi and in any Lightning module.

    The optimizer is `mldd.anemoi.optimizer`, made in ``configure_optimizers`` of the module, which may know nothing of
    groups: Anemoi hands over parameters without their names. Losses are averaged over data-parallel ranks by the
    optimizer itself, and its memory is in Lightning's checkpoints.

    Parameters
    ----------
    groups : {"parts", "blocks"} or dict of str to str
        Encoder, processor and decoder; these with every block of the processor alone; or regular expressions by the
        name of the group, of which the first that is found in a parameter's name counts. What fits nowhere is a last
        group, ``rest``.

    Raises
    ------
    ValueError
        Groups that are none, and at the start of a training: accumulated or clipped gradients, a loss that is scaled
        for float16, or an optimizer of another kind.

    Examples
    --------
    >>> Subdomains({"ends": "encoder|decoder", "middle": "processor"}).groups["middle"]
    'processor'
    """

    def __init__(self, groups: Groups = "parts") -> None:
        check_lightning("Subdomains")
        check_groups(groups)
        self.groups: Groups = groups if isinstance(groups, str) else dict(groups)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Put the groups around what makes the optimizers, which is called next."""
        if stage != "fit":
            return
        named = {name: p for name, p in pl_module.named_parameters() if p.requires_grad}

        def regroup(parameters: list[Any]) -> list[dict[str, Any]]:
            mine = {id(p) for p in parameters}
            return grouped({name: p for name, p in named.items() if id(p) in mine}, self.groups)

        around_optimizers(pl_module, regroup)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Say how large the groups are, and refuse what does not fit."""
        made = _ours(trainer)
        check_trainer(trainer, made)
        if trainer.is_global_zero:
            sizes = (f"{group['name']} {sum(p.numel() for p in group['params'])}" for group in made.param_groups)
            print(f"mldd: subdomains (parameters): {', '.join(sizes)}", flush=True)


def _ours(trainer: Any) -> Optimizer:
    made = mldd_optimizer(trainer)
    if made is None:
        raise ValueError(
            "mldd.anemoi.Subdomains needs the optimizer mldd.anemoi.optimizer, got "
            f"{type(trainer.optimizers[0]).__name__}; name it as `_target_` of the optimizer, or leave out the callback"
        )
    return made

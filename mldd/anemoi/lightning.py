"""What the callbacks know of Lightning: its base class where it is installed, and settings that solvers do not bear."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from mldd.algebra import way_to_install
from mldd.anemoi.grouping import Regroup, regrouping
from mldd.solvers import Optimizer

if TYPE_CHECKING:
    from pytorch_lightning import Callback as Callback
else:
    try:
        from pytorch_lightning import Callback as Callback
    except ModuleNotFoundError:
        Callback = object  # who makes a callback without Lightning is told so


class Hooks(Protocol):
    """What Lightning calls of the callbacks here, by its names and in this order."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Be called before optimizers are made.

        Parameters
        ----------
        trainer : Trainer
            Of Lightning.
        pl_module : LightningModule
            What is trained.
        stage : str
            "fit" for a training.
        """

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Be called once there are optimizers, before a checkpoint is loaded into them.

        Parameters
        ----------
        trainer : Trainer
            Of Lightning.
        pl_module : LightningModule
            What is trained.
        """

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Be called before the first step.

        Parameters
        ----------
        trainer : Trainer
            Of Lightning.
        pl_module : LightningModule
            What is trained.
        """

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Be called before a batch.

        Parameters
        ----------
        trainer : Trainer
            Of Lightning.
        pl_module : LightningModule
            What is trained.
        batch : object
            What is evaluated.
        batch_idx : int
            Its number in the epoch.
        """

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        """Be called in every evaluation, before its gradient.

        Parameters
        ----------
        trainer : Trainer
            Of Lightning.
        pl_module : LightningModule
            What is trained.
        loss : Tensor, shape ()
            Divided by the number of batches that are accumulated.
        """

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Be called in every evaluation of a step, behind its gradient.

        Parameters
        ----------
        trainer : Trainer
            Of Lightning.
        pl_module : LightningModule
            What is trained.
        optimizer : Optimizer
            Which is doing a step.
        """

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Be called after a batch.

        Parameters
        ----------
        trainer : Trainer
            Of Lightning.
        pl_module : LightningModule
            What is trained.
        outputs : object
            What the module returned.
        batch : object
            What was evaluated.
        batch_idx : int
            Its number in the epoch.
        """

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Be called before a validation.

        Parameters
        ----------
        trainer : Trainer
            Of Lightning.
        pl_module : LightningModule
            What is trained.
        """

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Be called after a validation.

        Parameters
        ----------
        trainer : Trainer
            Of Lightning.
        pl_module : LightningModule
            What is trained.
        """

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Be called after the last step.

        Parameters
        ----------
        trainer : Trainer
            Of Lightning.
        pl_module : LightningModule
            What is trained.
        """

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Be called where a training fails.

        Parameters
        ----------
        trainer : Trainer
            Of Lightning.
        pl_module : LightningModule
            What is trained.
        exception : BaseException
            Why.
        """


def check_lightning(name: str) -> None:
    """Refuse to make a callback where Lightning is missing.

    Parameters
    ----------
    name : str
        Of the callback.

    Raises
    ------
    ImportError
        It is not installed.
    """
    if Callback is object:
        raise ImportError(f"{name} is a callback of Lightning, which is missing; {way_to_install('pytorch_lightning')}")


def around_optimizers(pl_module: Any, regroup: Regroup | None) -> None:
    """Make a module's optimizers, when they are asked for, with the groups of a callback.

    Parameters
    ----------
    pl_module : LightningModule
        Its ``configure_optimizers`` is called by Lightning later, and is as it was from then on.
    regroup : callable or None
        Puts parameters into groups; None leaves them as they are.
    """
    make, own = pl_module.configure_optimizers, vars(pl_module).get("configure_optimizers")

    def configure_optimizers() -> Any:
        del pl_module.configure_optimizers
        if own is not None:
            pl_module.configure_optimizers = own
        with regrouping(regroup):
            return make()

    pl_module.configure_optimizers = configure_optimizers


def mldd_optimizer(trainer: Any) -> Optimizer | None:
    """Return the optimizer of a trainer if it is one of mldd, without what a strategy has put around it.

    Parameters
    ----------
    trainer : Trainer
        Of Lightning, once it has optimizers.

    Raises
    ------
    ValueError
        Several optimizers, one of mldd among them.
    """
    made = [getattr(optimizer, "optimizer", optimizer) for optimizer in trainer.optimizers]
    ours = [optimizer for optimizer in made if isinstance(optimizer, Optimizer)]
    if ours and len(made) > 1:
        raise ValueError(f"there must be one optimizer, got {len(made)}; give all parameters to mldd.anemoi.optimizer")
    return ours[0] if ours else None


def check_trainer(trainer: Any, optimizer: Optimizer) -> None:
    """Refuse settings under which the losses and gradients of a step do not belong together.

    Parameters
    ----------
    trainer : Trainer
        Of Lightning.
    optimizer : Optimizer
        Of mldd; one that needs one gradient a step and no loss bears all of them.

    Raises
    ------
    ValueError
        Clipped or accumulated gradients, or a loss that is scaled for float16.
    """
    if optimizer.entrywise:
        return
    why = "by a solver that compares losses"
    if trainer.gradient_clip_val:
        raise ValueError(
            f"gradients must not be clipped at every evaluation {why}, got gradient_clip_val="
            f"{trainer.gradient_clip_val}; set it to 0 (training.gradient_clip.val=0.0 in Anemoi)"
        )
    batches = trainer.accumulate_grad_batches
    schedule = [c for c in trainer.callbacks if type(c).__name__ == "GradientAccumulationScheduler"]
    if batches != 1 or any(set(c.scheduling.values()) != {1} for c in schedule):
        raise ValueError(
            f"gradients must not be accumulated over batches {why}, got accumulate_grad_batches={batches}; set it to 1 "
            "(training.accum_grad_batches=1 in Anemoi)"
        )
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        raise ValueError(
            f"the loss must not be scaled {why}, got precision {trainer.precision} with a GradScaler, which evaluates "
            "it once; set precision to bf16-mixed or 32-true (training.precision in Anemoi)"
        )

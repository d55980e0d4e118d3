"""Which checkpoint is meant, and whether a run can resume from it."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from makemore_pl.checkpoint import BrokenCheckpointError, check_resume, read, refuse_url
from makemore_pl.commands.messages import say
from makemore_pl.durable.checkpoints import find, stopped_early
from makemore_pl.model import MLP
from makemore_pl.optimization import Schedule


def find_checkpoint(ckpt_path: str | None, root: str | None) -> tuple[str, dict[str, Any]]:
    """Finds and reads the checkpoint that is meant. Where it is broken, the one before takes its place, and says so.

    Args:
        ckpt_path: a file; or `best` (as None) or `last`, of the newest run.
        root: the folder that holds `lightning_logs`; None for the current one.

    Returns:
        Its path and what it holds.

    Raises:
        ValueError: if there is no such file, or no whole one.
    """
    name = ckpt_path or "best"
    if name not in ("best", "last"):
        refuse_url(name)
        if Path(name).is_dir():
            raise ValueError(f"--ckpt_path {name}: is a folder; name a file in its checkpoints")
        if not Path(name).is_file():
            what = "is no file, but a device" if Path(name).exists() else "no such file"
            raise ValueError(f"--ckpt_path {name}: {what}")
        return name, read(name)
    problem: ValueError | None = None
    for path in find(name, root or "."):
        try:
            checkpoint = read(path)
        except (BrokenCheckpointError, FileNotFoundError) as error:
            missing = f"the newest run, {path.parent.parent}, has no {path.name}"
            problem = problem or (error if isinstance(error, ValueError) else ValueError(missing))
            continue
        if problem is not None:
            say(f"warning: {problem}; taking {path}, step {checkpoint.get('global_step', 0):,}, instead")
        return str(path), checkpoint
    logs = Path(root or "") / "lightning_logs"
    raise problem or ValueError(
        f"no checkpoint under {logs}: train first (python -m makemore_pl fit) or name a file with --ckpt_path"
    )


def require_resumable(path: str, checkpoint: dict[str, Any], model: MLP, trainer: Trainer) -> None:
    """Refuses a checkpoint that this training cannot resume from, or whose run is finished.

    Args:
        path: of the checkpoint, for the errors.
        checkpoint: what it holds.
        model: the model that would be trained.
        trainer: that would train it, not yet run.

    Raises:
        ValueError: if so; it says why.
    """
    optimizer = model.make_optimizer()
    schedule = Schedule(optimizer, "constant", 1, lambda: 1.0)
    check_resume(
        path,
        checkpoint,
        trainer.fit_loop.state_dict(),
        optimizer.state_dict() if type(model).configure_optimizers is MLP.configure_optimizers else None,
        schedule.state_dict(),
        {each.state_key: each.state_dict() for each in trainer.checkpoint_callbacks},
        [name for name, _ in model.named_parameters()],
    )
    model.on_load_checkpoint(checkpoint)  # refuses another alphabet, and blocks where there were none
    step = checkpoint["global_step"]
    for name, state in checkpoint["callbacks"].items():
        if name.startswith("EarlyStopping") and stopped_early(state):
            raise ValueError(f"{path}: this run is finished: EarlyStopping ended it at step {step:,}")
    loop = checkpoint["loops"]["fit_loop"]
    # With the validation at its end, an epoch is not yet counted as processed.
    counted = "ready" if loop["epoch_loop.batch_progress"]["is_last_batch"] else "processed"
    epochs = loop["epoch_progress"]["current"][counted]
    for limit, at, done in [("max_steps", trainer.max_steps, step), ("max_epochs", trainer.max_epochs, epochs)]:
        if 0 < (at or 0) <= done:
            raise ValueError(f"{path}: this run is finished, at step {step:,}; to resume it, raise --trainer.{limit}")

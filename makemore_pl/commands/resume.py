"""Which checkpoint is used, and whether a run can resume from it."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, StochasticWeightAveraging
from torch import Tensor, zeros

from makemore_pl.checkpoint import FLOATS, BrokenCheckpointError, find_tensors, read, refuse_url
from makemore_pl.commands.messages import say
from makemore_pl.durable.checkpoints import RunFolder, WholeCheckpoints, stopped_early
from makemore_pl.durable.runs import PLACES, find
from makemore_pl.model import MLP
from makemore_pl.optimization import Schedule, make_optimizer


def find_checkpoint(ckpt_path: str | None, root: str | None, besides: Sequence[str] = ()) -> tuple[str, dict[str, Any]]:
    """Finds and reads a checkpoint. If `best` or `last` is broken, the one before it is used, with a warning.

    Args:
        ckpt_path: a file; or `best` (as None) or `last`, of the newest run.
        root: the folder that holds the runs; None for the current one.
        besides: checkpoints whose runs are skipped.

    Returns:
        Its path and its content.

    Raises:
        ValueError: if there is no such file, or no intact one.
    """
    name = ckpt_path or "best"
    if name not in ("best", "last"):
        refuse_url(name)
        if Path(name).is_dir():
            raise ValueError(f"--ckpt_path {name}: is a folder; name a file in its checkpoints")
        if not Path(name).is_file():
            what = "is not a file, but a device" if Path(name).exists() else "no such file"
            raise ValueError(f"--ckpt_path {name}: {what}")
        return name, read(name)
    problem: ValueError | None = None
    for path in find(name, root or ".", besides):
        try:
            checkpoint = read(path)
        except (BrokenCheckpointError, FileNotFoundError) as error:
            missing = f"the newest run, {path.parent.parent}, has no {path.name}"
            problem = problem or (error if isinstance(error, ValueError) else ValueError(missing))
            continue
        if problem is not None:
            say(f"warning: {problem}; taking {path}, step {checkpoint.get('global_step', 0):,}, instead")
        return str(path), checkpoint
    if besides and problem is None:
        raise ValueError(
            f"{name}: found no other run than that of {', '.join(besides)}; "
            "train another (python -m makemore_pl fit --model.seed 1), or name a file"
        )
    raise problem or ValueError(
        f"no checkpoint found: looked in {', '.join(str(Path(root or '', place)) for place in PLACES)}; "
        "train first (python -m makemore_pl fit), or name a file with --ckpt_path"
    )


def find_others(names: Iterable[str], path: str, root: str | None) -> list[str]:
    """Finds the checkpoints that a checkpoint is averaged with.

    Args:
        names: of files; or `best` or `last`, each of the newest run that is not among the checkpoints yet.
        path: the first checkpoint.
        root: the folder that holds the runs; None for the current one.

    Raises:
        ValueError: if there are not enough runs.
    """
    found = [path]
    for name in names:
        found.append(find_checkpoint(name, root, found)[0] if name in ("best", "last") else name)
    return found[1:]


NOT_REQUESTED = (
    "Lightning would resume from this checkpoint of an earlier run; "
    "request it with --ckpt_path, or move it to another folder"
)


class RequestedCheckpoints(WholeCheckpoints):
    """Lets the Trainer load the checkpoint that the command names, and those that this process saved; no others.

    Lightning looks for checkpoints by itself: under SLURM, and if there is an OnExceptionCheckpoint.

    Args:
        requested: the checkpoint that the command names, if any.
    """

    def __init__(self, requested: str | None) -> None:
        self.allowed = {requested}

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        super().save_checkpoint(checkpoint, path, storage_options)
        self.allowed.add(str(path))  # Lightning's finders restore what they saved

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Loads a checkpoint.

        Raises:
            ValueError: if it was not requested.
        """
        spawned = Path(path).name == ".temp.ckpt"  # in which ddp_spawn returns the weights to this process
        if str(path) not in self.allowed and not spawned:
            raise ValueError(f"{path}: {NOT_REQUESTED}")
        return super().load_checkpoint(path, *args, **kwargs)


def avoid_requeued(root: str | None, requested: str | None, writes: bool, run: RunFolder | None) -> str | None:
    """Returns a `default_root_dir` that holds no checkpoint which Lightning would load by itself.

    Under SLURM, Lightning saves `hpc_ckpt_N.ckpt` there when a job is requeued (SIGUSR1), and loads it in every later
    command instead of the requested checkpoint. In the folder of a run's checkpoints there is none when it begins, and
    `--ckpt_path last` finds it later. Where a logger of the user decides about folders, `RequestedCheckpoints` refuses.

    Args:
        root: the folder that holds the runs; None for the current one.
        requested: the checkpoint that the command names, if any.
        writes: whether the command writes a run.
        run: the logger of a training; None for loggers of the user.
    """
    if not SLURMEnvironment.detect() or (writes and run is None):
        return root
    for path in Path(root or ".").glob("hpc_ckpt_*.ckpt"):
        if path.resolve() != Path(requested or "").resolve():
            say(f"not used: {path}, saved when a job was requeued; --ckpt_path {path} requests it")
    return str(Path(run.log_dir, "checkpoints") if run is not None else Path(root or ".", "lightning_logs"))


def require_resumable(path: str, checkpoint: dict[str, Any], model: MLP, trainer: Trainer) -> None:
    """Refuses a checkpoint that this training could not have saved, or whose run is finished.

    Args:
        path: of the checkpoint, for the errors.
        checkpoint: its content, accepted by `checkpoint.check`.
        model: the model to train.
        trainer: the Trainer to train it with, which has not started.

    Raises:
        ValueError: if so; it names the cause.
    """
    if "optimizer_states" not in checkpoint:  # as in those that `export` writes
        raise ValueError(f"{path}: this checkpoint has no optimizer state to resume with")
    model.on_load_checkpoint(checkpoint)  # refuses another alphabet, and blocks where there were none
    require_saved_state(path, checkpoint, model, trainer)
    step = checkpoint["global_step"]
    for name, state in checkpoint["callbacks"].items():
        if name.startswith("EarlyStopping") and stopped_early(state):
            raise ValueError(f"{path}: this run is finished: EarlyStopping ended it at step {step:,}")
    loop = checkpoint["loops"]["fit_loop"]
    # If the validation comes at the end of an epoch, that epoch is not yet counted as processed.
    counted = "ready" if loop["epoch_loop.batch_progress"]["is_last_batch"] else "processed"
    epochs = loop["epoch_progress"]["current"][counted]
    for limit, at, done in [("max_steps", trainer.max_steps, step), ("max_epochs", trainer.max_epochs, epochs)]:
        if 0 < (at or 0) <= done:
            raise ValueError(f"{path}: this run is finished, at step {step:,}; to resume it, raise --trainer.{limit}")


def require_saved_state(path: str, checkpoint: dict[str, Any], model: MLP, trainer: Trainer) -> None:
    """Refuses a state that differs in form from that of this training. Fused optimizers check no shapes themselves.

    Raises:
        ValueError: if it does; it names the first part that differs.
    """

    def require(fits: bool, place: str) -> None:
        if not fits:
            raise ValueError(
                f"{path}: not a checkpoint to resume from: its {place} is not what this training would save"
            )

    def require_form(place: str, found: Any, form: Any) -> None:
        """Compares names, types and shapes with an example. {} means any plain values, None any single one."""
        inside: Iterable[tuple[Any, Any]] = []
        if isinstance(form, type):
            fits = isinstance(found, form)
        elif form is None:
            fits = isinstance(found, str | int | float | None) or (isinstance(found, Tensor) and found.ndim == 0)
        elif isinstance(form, Tensor):
            fits = isinstance(found, Tensor) and found.shape == form.shape and found.dtype in FLOATS
            fits = fits and found.is_contiguous()
        elif isinstance(form, dict):
            fits = isinstance(found, dict) and all(isinstance(key, str) for key in found)
            fits = fits and (not form or found.keys() == form.keys())
            inside = (form or dict.fromkeys(found)).items() if fits else []
        elif isinstance(form, list):
            fits, inside = isinstance(found, list) and len(found) == len(form), enumerate(form)
        else:
            fits = type(found) is type(form) and (type(form) is not int or 0 <= found < 2**53)
        require(fits, place)
        for key, part in inside:
            require_form(f"{place}.{str(key)[:60]}", found[key], part)

    names = "global_step", "loops", "callbacks", "lr_schedulers", "optimizer_states"
    parts: list[Any] = [checkpoint.get(name) for name in names]
    step, loops, callbacks, schedules, states = parts
    version = str(checkpoint.get("pytorch-lightning_version"))  # Lightning would convert the state of older ones
    require(re.fullmatch(r"2(\.\d+)+\w*", version) is not None, "pytorch-lightning_version")
    require_form("global_step", step, 0)
    require_form("loops", loops, dict)
    require_form("loops.fit_loop", loops.get("fit_loop"), trainer.fit_loop.state_dict())
    require_form("callbacks", callbacks, dict)
    theirs = [*trainer.checkpoint_callbacks, *trainer.early_stopping_callbacks]
    forms = {each.state_key: each.state_dict() for each in theirs}
    for key, state in callbacks.items():
        require(isinstance(key, str), "callbacks")
        other = EarlyStopping("").state_dict() if key.startswith("EarlyStopping") else dict
        if key == "KeepMetrics":
            other = {name: 0.0 for name in state if isinstance(name, str)} if isinstance(state, dict) else {}
        require_form(f"callbacks.{key[:60]}", state, forms.get(key, other))
    averages = any(isinstance(each, StochasticWeightAveraging) for each in trainer.callbacks)  # type: ignore[attr-defined]
    if averages or type(model).configure_optimizers is not MLP.configure_optimizers:
        return  # the form of the optimizers and schedulers is not known

    optimizer = make_optimizer(model)
    require_form("lr_schedulers", schedules, [Schedule(optimizer, "constant", 1, lambda: 1.0).state_dict()])
    require(schedules[0]["last_epoch"] == step, "lr_schedulers.0.last_epoch")
    require_form("optimizer_states", states, [{"state": dict, "param_groups": [dict]}])
    (group,), (ours,) = states[0]["param_groups"], optimizer.param_groups
    numbers = {"lr", "initial_lr", "weight_decay"}  # this run's own replace them, and the betas
    same = ours.keys() - numbers - {"betas", "params"}  # a newer version of torch may have more options
    fits = ours.keys() <= group.keys() and not any(True for _ in find_tensors(group))
    fits = fits and all(type(group[name]) in (int, float) for name in numbers & ours.keys())
    fits = fits and group["params"] == list(range(len(ours["params"])))
    require(fits and all(group[name] == ours[name] for name in same), "optimizer_states.0.param_groups")
    for place, moments in states[0]["state"].items():
        require(type(place) is int and 0 <= place < len(ours["params"]), "optimizer_states.0.state")
        tensor = ours["params"][place]
        adamw = {"step": zeros(()), "exp_avg": tensor, "exp_avg_sq": tensor}
        require_form(f"optimizer_states.0.state.{place}", moments, adamw if "betas" in ours else {})

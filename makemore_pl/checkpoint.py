"""A checkpoint file -> plain values and tensors: nothing in it runs, and none takes more memory than it has bytes.

Over 300 lines: everything that may be wrong with a file is looked for, and named, by itself.
"""

import hashlib
import io
import pickletools
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import dropwhile, islice
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from makemore_pl.memory import require_memory

ARCHITECTURE = ["vocabulary", "block_size", "embedding_dim", "hidden_size"]
"""The hyperparameters that give the five tensors their shapes and meaning."""

SEAL = b"makemore_pl sha256 "
"""Begins the comment of the zip archive; the digest of all bytes before it follows, in hexadecimal."""

DIGEST = 64
"""Its digits."""

CALLS = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v2|parameter)"
    r"|torch (Double|Float|Half|BFloat16|Long|Int|Short|Char|Byte|Bool)Storage"
)
"""What the pickle in a checkpoint may name; torch lets more pass, some of which takes any amount of memory."""

FLOATS = torch.float16, torch.bfloat16, torch.float32, torch.float64

NOT_DOWNLOADED = ": is a URL, and nothing is downloaded; download it and name the file"
"""What is said of a URL where a file is expected."""

PARAMETERS = "C", "W1", "b1", "W2", "b2"
"""In the order that the optimizer knows them by."""


class BrokenCheckpointError(ValueError):
    """A file that is not what was written."""


def load(path: str | Path) -> dict[str, Any]:
    """Loads a checkpoint onto the CPU, tensors and plain values only, if it is what was written.

    Args:
        path: a file; one without a seal, as other programs write it, must be free of errors as a zip archive.

    Raises:
        BrokenCheckpointError: if it is not.
        ValueError: if it is no file but a URL.
        OSError: if it cannot be read.
    """
    refuse_url(path)
    size = Path(path).stat().st_size
    if not Path(path).is_file():
        raise ValueError(f"{path}: not a checkpoint, but a folder or a device; name a file")
    require_memory(3 * size, f"{path}: reading it")  # the bytes, those of the pickle's reader, and the tensors
    return unpack(Path(path).read_bytes(), path)


def read(path: str | Path) -> dict[str, Any]:
    """Loads a checkpoint and checks that it is one of this project's.

    Raises:
        BrokenCheckpointError: if it is not what was written.
        ValueError: if it is none, or not one of this project's.
        OSError: if it cannot be read.
    """
    checkpoint = load(path)
    forget_maker(checkpoint)
    check(path, checkpoint)
    return checkpoint


def forget_maker(checkpoint: Any) -> None:
    """Drops what stock LightningCLI writes among the hyperparameters: the function to call, which is always its own."""
    for group in ("hyper_parameters", "datamodule_hyper_parameters"):
        hparams = checkpoint.get(group) if isinstance(checkpoint, dict) else None
        if isinstance(hparams, dict) and hparams.get("_instantiator") == "lightning.pytorch.cli.instantiate_module":
            del hparams["_instantiator"]


def unpack(content: bytes, path: str | Path) -> dict[str, Any]:
    """Loads a checkpoint from the content of a file; the path is for the errors."""
    sealed = content[:-DIGEST].endswith(SEAL)
    if sealed and hashlib.sha256(content[:-DIGEST]).hexdigest().encode() != content[-DIGEST:]:
        raise BrokenCheckpointError(f"{path}: this checkpoint is broken: its checksum is another")
    try:
        # What is no zip archive could only be a pickle of old, which takes memory for what it says of itself.
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            records = archive.infolist()
            packed = any(record.compress_type != zipfile.ZIP_STORED for record in records)
            if packed or sum(record.file_size for record in records) > len(content):
                raise BrokenCheckpointError(f"{path}: not a checkpoint: it would unpack to more than it is")
            bad = None if sealed else archive.testzip()
        refuse_calls(content, path)
        # Said explicitly, it also holds where TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set.
        checkpoint = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except BrokenCheckpointError:
        raise
    except Exception as error:
        # Whatever a broken file throws: a dozen types, from zip, pickle and torch.
        raise BrokenCheckpointError(f"{path}: cannot read this checkpoint ({type(error).__name__})") from None
    if bad or (not sealed and isinstance(checkpoint, dict) and checkpoint.get("sealed")):
        raise BrokenCheckpointError(f"{path}: this checkpoint is broken: it has lost its checksum")
    return checkpoint


def refuse_calls(content: bytes, path: str | Path) -> None:
    """Refuses a pickle that names more than tensors and plain values need.

    Raises:
        BrokenCheckpointError: if it does.
    """
    if not content.startswith(b"PK\3\4"):
        raise BrokenCheckpointError(f"{path}: not a checkpoint: it does not begin as a zip archive")
    # As torch finds the pickle in the archive: other readers may see another one.
    pickled = torch._C.PyTorchFileReader(io.BytesIO(content)).get_record("data.pkl")
    for operation, name, _ in pickletools.genops(pickled):
        # torch.save writes no other operation that names something, and torch.load takes none.
        if operation.name in ("GLOBAL", "STACK_GLOBAL", "INST") and not CALLS.fullmatch(str(name)):
            raise BrokenCheckpointError(f"{path}: not a checkpoint of makemore_pl: it calls {str(name)[:60]!r}")


def refuse_url(path: str | Path) -> None:
    """Refuses a URL.

    Raises:
        ValueError: if it is one.
    """
    if "://" in str(path):
        raise ValueError(f"{path}{NOT_DOWNLOADED}")


def check(path: str | Path, checkpoint: Any) -> None:
    """Refuses what is no checkpoint of this project, does not fit together, or reaches for more than itself.

    Raises:
        ValueError: if so; it says what it is.
    """
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise ValueError(f"{path}: not a checkpoint of makemore_pl")
    hparams, tensors = checkpoint.get("hyper_parameters"), checkpoint["state_dict"]
    if not isinstance(hparams, dict) or not {"vocabulary", "block_size"} & hparams.keys():
        raise ValueError(
            f"{path}: not a checkpoint of makemore_pl, but of another model (its first tensors: {some_of(tensors)})"
        )
    missing = [name for name in ARCHITECTURE if name not in hparams]
    if missing:
        raise ValueError(
            f"{path}: a checkpoint of another version of makemore_pl, without {', '.join(missing)}: train again"
        )
    for group in (hparams, checkpoint.get("datamodule_hyper_parameters", {})):
        check_values(path, group)
    if type(checkpoint.get("global_step", 0)) is not int:
        raise ValueError(f"{path}: not a checkpoint of makemore_pl: its global_step is no whole number")
    V, (T, E, H) = len(hparams["vocabulary"] or "") + 1, (hparams[name] for name in ARCHITECTURE[1:])
    shapes = dict(zip(PARAMETERS, [(V, E), (T * E, H), (H,), (H, V), (V,)], strict=True))
    if not tensors.keys() >= shapes.keys():
        require_tensors(path, tensors, shapes)
    for tensor in find_tensors(checkpoint):
        # Of the others, some do not even have a shape.
        plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided and not tensor.is_meta
        plain = plain and not tensor.is_nested and not tensor.is_quantized
        if not plain or tensor.nbytes > tensor.untyped_storage().nbytes():
            raise ValueError(f"{path}: not a checkpoint of makemore_pl: a tensor claims numbers that are not there")
    for name, shape in shapes.items():
        found = tuple(getattr(tensors[name], "shape", ()))
        if found != shape:
            raise ValueError(
                f"{path}: this checkpoint does not fit together: {name} is {found}, "
                f"and its hyperparameters make that {shape}"
            )
        if tensors[name].dtype not in FLOATS:
            raise ValueError(f"{path}: not a checkpoint of makemore_pl: {name} is of {tensors[name].dtype}")
    if not all(isinstance(tensor, Tensor) for tensor in tensors.values()):  # a subclass of MLP may have more of them
        raise ValueError(f"{path}: not a checkpoint of makemore_pl: not all of its weights are tensors")
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise ValueError(f"{path}: not all weights are finite numbers: that training failed; try a smaller --model.lr")
    for name in find_saved_paths(checkpoint):
        raise ValueError(
            f"{path}: not a checkpoint of makemore_pl: it names a file outside of its folder, {some_of([name])}"
        )


def require_tensors(path: str | Path, tensors: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Refuses other tensors than those of a model: a subclass of MLP may have more than the five.

    Raises:
        ValueError: if so.
    """
    if tensors.keys() != ours.keys():
        raise ValueError(
            f"{path}: a checkpoint of another version of makemore_pl, with the tensors {some_of(tensors)}: train again"
        )


def check_values(path: str | Path, hparams: Any) -> None:
    """Refuses hyperparameters that are more than names with plain values: Lightning imports what some of them name.

    Raises:
        ValueError: if there is one, or one of the architecture is of another type or below 1.
    """
    if not isinstance(hparams, dict):
        raise ValueError(f"{path}: not a checkpoint of makemore_pl: its hyperparameters have no names")
    for name, value in hparams.items():
        if name in ARCHITECTURE[1:]:
            fits = type(value) is int and value >= 1
        elif name == "vocabulary":
            fits = value is None or (isinstance(value, str) and list(value) == sorted(set(value)))
        else:
            special = not isinstance(name, str) or name.startswith(("_", "class_path", "init_args", "dict_kwargs"))
            fits = isinstance(value, str | int | float | None) and not special
        if not fits:
            raise ValueError(f"{path}: not a checkpoint of makemore_pl: {some_of([name])} is not what a model takes")


def some_of(names: Iterable[Any]) -> str:
    """Escapes and shortens the first of some names: they come from an unknown file and go to a terminal."""
    return ", ".join(ascii(str(name)[:40])[1:-1] for name in islice(names, 5)) or "none"


def find_tensors(checkpoint: Any) -> Iterator[Tensor]:
    """Finds all tensors, however deep; what hangs together in several ways is seen once."""
    found, seen = [checkpoint], set[int]()
    while found:
        value = found.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict):
            found += value.values()
        elif isinstance(value, list | tuple | set):
            found += value


def find_saved_paths(checkpoint: dict[str, Any]) -> Iterator[str]:
    """Finds the files that a ModelCheckpoint would take for its own, and remove, though they lie elsewhere.

    Lightning removes what begins with the name of its folder, also where `..` then leads out of it.
    """
    callbacks = checkpoint.get("callbacks", {})
    for state in callbacks.values() if isinstance(callbacks, dict) else ():
        if not isinstance(state, dict) or "dirpath" not in state:
            continue
        saved = [state.get(name) for name in ("best_model_path", "kth_best_model_path", "last_model_path")]
        kept = state.get("best_k_models") or {}
        saved += kept if isinstance(kept, dict) else [str(kept)]
        for path in map(str, filter(None, saved)):
            # A folder named relative to the current one may begin with it.
            parts = Path(path.removeprefix(str(state["dirpath"]))).parts
            if ".." in list(dropwhile("..".__eq__, parts)):
                yield path


class FromCheckpoint:
    """Gives a module or a data module a `load_from_checkpoint` that runs no code from the file."""

    CHECKPOINT_HYPER_PARAMS_KEY: str

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: str | Path,
        map_location: Any = None,
        *,
        weights_only: Literal[True] = True,
        **hparams: Any,
    ) -> Self:
        """Loads a model as it was saved, or makes the data that it was trained on.

        Args:
            checkpoint_path: the file.
            map_location: the device for the weights; that of the CPU if omitted.
            weights_only: has to be true.
            hparams: hyperparameters that replace those of the checkpoint.

        Raises:
            ValueError: if it is not a checkpoint of this project, is broken, or its hyperparameters are not accepted.
        """
        if not weights_only:
            raise ValueError("weights_only is False: expected True, as no code is run from a file")
        checkpoint = read(checkpoint_path)
        try:
            made = cls(**{**checkpoint.get(cls.CHECKPOINT_HYPER_PARAMS_KEY, {}), **hparams})
        except (TypeError, ValueError, RuntimeError) as error:
            why = ascii(str(error)[:200])[1:-1]  # it may quote them
            raise ValueError(f"{checkpoint_path}: its hyperparameters do not make a {cls.__name__} ({why})") from None
        if isinstance(made, nn.Module):
            require_tensors(checkpoint_path, checkpoint["state_dict"], made.state_dict())
            made.load_state_dict(checkpoint["state_dict"])
            made.to(map_location)
        return made


def check_resume(
    path: str | Path,
    checkpoint: Mapping[str, Any],
    loop: Mapping[str, Any],
    optimizer: Mapping[str, Any] | None,
    schedule: Mapping[str, Any],
    callbacks: Mapping[str, Mapping[str, Any]],
    parameters: Sequence[str] = PARAMETERS,
) -> None:
    """Refuses what a training cannot resume from, of what `check` let pass: fused optimizers check no shapes.

    Args:
        path: of the checkpoint, for the errors.
        checkpoint: what it holds.
        loop: what the training's loop would save before the first step: the checkpoint's must be of that form.
        optimizer: what its optimizer would; None for optimizers and schedulers of one's own, of which nothing is known.
        schedule: what its learning-rate scheduler would.
        callbacks: what its ModelCheckpoints would, by their keys.
        parameters: the names of the model's parameters, in the order in which the optimizer has them.

    Raises:
        ValueError: if so; it says what it is.
    """
    if "optimizer_states" not in checkpoint:  # as in those that `export` writes
        raise ValueError(f"{path}: this checkpoint has no optimizer state to resume with")
    misfit = next(find_misfits(checkpoint, loop, optimizer, schedule, callbacks, parameters), None)
    if misfit is not None:
        raise ValueError(f"{path}: not a checkpoint to resume from: its {misfit} is not what this training would save")


def find_misfits(
    checkpoint: Mapping[str, Any],
    loop: Mapping[str, Any],
    optimizer: Mapping[str, Any] | None,
    schedule: Mapping[str, Any],
    callbacks: Mapping[str, Mapping[str, Any]],
    parameters: Sequence[str],
) -> Iterator[str]:
    """Finds what does not fit. Only the first is sure to be there: what follows relies on what was looked at before."""
    forms: dict[str, Any] = {"global_step": 0, "loops": {}, "callbacks": {}}
    for name, form in (forms if optimizer is None else forms | {"lr_schedulers": [schedule]}).items():
        yield from compare(checkpoint.get(name), form, name)
    version = checkpoint.get("pytorch-lightning_version")
    if not isinstance(version, str) or not re.fullmatch(r"2(\.\d+)+\w*", version):
        yield "version of Lightning"

    found = checkpoint["loops"].get("fit_loop")
    yield from compare(found, loop, "fit_loop")
    if "combined_loader" in found["state_dict"]:
        yield "combined_loader"
    for key in callbacks.keys() & checkpoint["callbacks"].keys():
        saved = checkpoint["callbacks"][key]
        yield from compare(saved, callbacks[key], "ModelCheckpoint")
        for item in saved["best_k_models"].items():
            yield from compare(list(item), ["", None], "best_k_models")

    if optimizer is None:
        return
    states, tensors = checkpoint["optimizer_states"], checkpoint["state_dict"]
    yield from compare(states, [{"state": {}, "param_groups": [{}]}], "optimizer")
    (group,), (options,) = states[0]["param_groups"], optimizer["param_groups"]
    free = dict.fromkeys(("lr", "initial_lr", "weight_decay"), 0.0)
    if any(type(group.get(name)) not in (int, float) for name in free) or any(True for _ in find_tensors(group)):
        yield "param_groups"
    # A newer version of torch may know more options.
    ours = options.keys() - free.keys() - {"betas"}
    if not options.keys() <= group.keys() or any(group[name] != options[name] for name in ours):
        yield "param_groups"
    for place, state in states[0]["state"].items():
        if type(place) is not int or place not in options["params"]:
            yield "optimizer"
        tensor = tensors[parameters[place]]
        adamw = {"step": torch.zeros(()), "exp_avg": tensor, "exp_avg_sq": tensor}
        yield from compare(state, adamw if "betas" in options else {}, "optimizer")
    if checkpoint["lr_schedulers"][0]["last_epoch"] != checkpoint["global_step"]:
        yield "lr_schedulers"
    kept = checkpoint["callbacks"].get("KeepMetrics", {})
    yield from compare(kept, {}, "KeepMetrics")
    if not all(isinstance(name, str) and type(value) is float for name, value in kept.items()):
        yield "KeepMetrics"
    form = {"wait_count": 0, "stopped_epoch": 0, "best_score": torch.zeros(()), "patience": 0}
    for key, state in checkpoint["callbacks"].items():
        if str(key).startswith("EarlyStopping"):  # which may know more
            yield from compare({name: state.get(name) for name in form} if isinstance(state, dict) else None, form, key)


def compare(found: Any, form: Any, name: str) -> Iterator[str]:
    """Finds where something is not of a form: the same keys, kinds of values, shapes of tensors.

    What is empty in the form may be filled, and what is None a plain value or a single number.
    """
    match form:
        case dict():
            fits = isinstance(found, dict) and (not form or found.keys() == form.keys())
            inside = [(found[key], form[key]) for key in form] if fits else []
        case list():
            fits = isinstance(found, list) and len(found) == len(form)
            inside = list(zip(found, form, strict=True)) if fits else []
        case Tensor():
            fits = isinstance(found, Tensor) and found.shape == form.shape and found.dtype in FLOATS
            fits, inside = fits and found.is_contiguous(), []
        case None:
            fits, inside = isinstance(found, str | float | None) or (isinstance(found, Tensor) and found.ndim == 0), []
        case _:
            fits, inside = type(found) is type(form) and not (type(form) is int and not 0 <= found < 2**53), []
    if not fits:
        yield name
    for part, its_form in inside:
        yield from compare(part, its_form, name)

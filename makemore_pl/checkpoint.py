"""A checkpoint file -> plain values and tensors. No code in it runs, and it takes no more memory than it has bytes.

Over 300 lines: reading and checking are in one file, since nothing of a checkpoint is used before it is checked.
"""

import hashlib
import io
import math
import pickletools
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import dropwhile, islice
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from makemore_pl.memory import require_memory
from makemore_pl.wordlist import STANDARD, UNPRINTABLE, describe_character

ARCHITECTURE = ["vocabulary", "block_size", "embedding_dim", "hidden_size"]
"""The hyperparameters that determine the shapes and the meaning of the five tensors."""

SEAL = b"makemore_pl sha256 "
"""Begins the comment of the zip archive; the SHA-256 of all bytes before it follows, in hexadecimal."""

DIGEST = 64
"""Length of that checksum, in digits."""

CALLS = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v2|parameter)"
    r"|torch (Double|Float|Half|BFloat16|Long|Int|Short|Char|Byte|Bool)Storage"
)
"""Names that the pickle in a checkpoint may contain; torch allows more, some of which take any amount of memory."""

FLOATS = torch.float16, torch.bfloat16, torch.float32, torch.float64

NOT_DOWNLOADED = ": is a URL, and nothing is downloaded; download it and name the file"
"""The error for a URL where a file to read is expected."""

NOT_UPLOADED = ": is a URL, and nothing is uploaded; name a file"
"""The error for a URL where a file to write is expected."""


class BrokenCheckpointError(ValueError):
    """A file whose bytes are not those that were written."""


def read(path: str | Path) -> dict[str, Any]:
    """Loads a checkpoint and checks that it is one of this project's.

    Raises:
        ValueError: if it is not one of this project's, or broken.
        OSError: if it cannot be read.
    """
    checkpoint = load(path)
    for group in ("hyper_parameters", "datamodule_hyper_parameters"):
        hparams = checkpoint.get(group) if isinstance(checkpoint, dict) else None
        # Stock LightningCLI saves the name of a function to call; we call none, and ignore Lightning's own.
        if isinstance(hparams, dict) and hparams.get("_instantiator") == "lightning.pytorch.cli.instantiate_module":
            del hparams["_instantiator"]
    check(path, checkpoint)
    return checkpoint


def load(path: str | Path) -> dict[str, Any]:
    """Loads a file onto the CPU, plain values and tensors only, if its bytes are those that were written.

    Args:
        path: a file; without a checksum, as other programs write it, it must be an intact zip archive.

    Raises:
        BrokenCheckpointError: if it is not intact.
        ValueError: if it is a URL, a folder or a device, or larger than the memory.
        OSError: if it cannot be read.
    """
    refuse_url(path)
    size = Path(path).stat().st_size
    if not Path(path).is_file():
        raise ValueError(f"{path}: not a checkpoint, but a folder or a device; name a file")
    require_memory(3 * size, f"{path}: reading it")  # the bytes, those of the pickle's reader, and the tensors
    return unpack(Path(path).read_bytes(), path)


def unpack(content: bytes, path: str | Path) -> dict[str, Any]:
    """Loads the content of a file; `path` is for the errors.

    Raises:
        BrokenCheckpointError: if it is not intact.
    """
    if not content.startswith(b"PK\3\4"):
        raise BrokenCheckpointError(f"{path}: not a checkpoint: it does not begin as a zip archive")
    sealed = content[:-DIGEST].endswith(SEAL)
    if sealed and hashlib.sha256(content[:-DIGEST]).hexdigest().encode() != content[-DIGEST:]:
        raise BrokenCheckpointError(f"{path}: this checkpoint is broken: its checksum does not match")
    try:
        # Anything but a zip archive could only be a legacy pickle, which allocates whatever size it claims.
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            records = archive.infolist()
            packed = any(record.compress_type != zipfile.ZIP_STORED for record in records)
            if packed or sum(record.file_size for record in records) > len(content):
                raise BrokenCheckpointError(f"{path}: not a checkpoint: it would unpack to more than its size")
            bad = None if sealed else archive.testzip()
        refuse_calls(content, path)
        # An explicit weights_only overrides TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD.
        checkpoint = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except BrokenCheckpointError:
        raise
    except Exception as error:
        # A broken file raises any of a dozen types, from zip, pickle and torch.
        raise BrokenCheckpointError(f"{path}: cannot read this checkpoint ({type(error).__name__})") from None
    if bad or (not sealed and isinstance(checkpoint, dict) and checkpoint.get("sealed")):
        raise BrokenCheckpointError(f"{path}: this checkpoint is broken: its checksum is missing")
    return checkpoint


def refuse_calls(content: bytes, path: str | Path) -> None:
    """Refuses a pickle that calls more than tensors and plain values need.

    Raises:
        BrokenCheckpointError: if it does.
    """
    # Torch's own archive reader: of two pickles in one archive, another reader may find the other.
    pickled = torch._C.PyTorchFileReader(io.BytesIO(content)).get_record("data.pkl")
    for operation, name, _ in pickletools.genops(pickled):
        # torch.load executes no other operation that imports a name.
        if operation.name in ("GLOBAL", "STACK_GLOBAL", "INST") and not CALLS.fullmatch(str(name)):
            raise BrokenCheckpointError(f"{path}: not a checkpoint of makemore_pl: it calls {str(name)[:60]!r}")


def refuse_url(path: str | Path, remedy: str = NOT_DOWNLOADED) -> None:
    """Raises a ValueError if a path is a URL."""
    if "://" in str(path):
        raise ValueError(f"{path}{remedy}")


def check(path: str | Path, checkpoint: Any) -> None:
    """Refuses a checkpoint of another program or version, inconsistent sizes, and paths outside its folder.

    Raises:
        ValueError: if so; it names the cause.
    """
    not_ours = f"{path}: not a checkpoint of makemore_pl"
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise ValueError(not_ours)
    hparams, tensors = checkpoint.get("hyper_parameters"), checkpoint["state_dict"]
    if not isinstance(hparams, dict) or not {"vocabulary", "block_size"} & hparams.keys():
        raise ValueError(f"{not_ours}, but of another model (its first tensors: {some_of(tensors)})")
    missing = [name for name in ARCHITECTURE if name not in hparams]
    if missing:
        raise ValueError(
            f"{path}: a checkpoint of another version of makemore_pl, without {', '.join(missing)}: train again"
        )
    for group in (hparams, checkpoint.get("datamodule_hyper_parameters", {})):
        check_values(path, group)
    if type(checkpoint.get("global_step", 0)) is not int:
        raise ValueError(f"{not_ours}: its global_step is not a whole number")
    V, (T, E, H) = len(hparams["vocabulary"] or "") + 1, (hparams[name] for name in ARCHITECTURE[1:])
    shapes = {"C": (V, E), "W1": (T * E, H), "b1": (H,), "W2": (H, V), "b2": (V,)}
    if not tensors.keys() >= shapes.keys():
        require_tensors(path, tensors, shapes)
    for tensor in find_tensors(checkpoint):
        # Tensors of other kinds may not even have a shape.
        plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided and not tensor.is_meta
        plain = plain and not tensor.is_nested and not tensor.is_quantized
        if not plain or tensor.nbytes > tensor.untyped_storage().nbytes():
            raise ValueError(f"{not_ours}: a tensor claims more numbers than the file contains")
    for name, shape in shapes.items():
        found = tuple(getattr(tensors[name], "shape", ()))
        if found != shape:
            raise ValueError(
                f"{path}: this checkpoint is inconsistent: {name} is {found}, but its hyperparameters give {shape}"
            )
        if tensors[name].dtype not in FLOATS:
            raise ValueError(f"{not_ours}: {name} is of {tensors[name].dtype}")
    if not all(isinstance(tensor, Tensor) for tensor in tensors.values()):  # a subclass of MLP may have more of them
        raise ValueError(f"{not_ours}: not all of its weights are tensors")
    narrow = (tensor.float() if tensor.dtype == torch.float64 else tensor for tensor in tensors.values())
    if not all(tensor.isfinite().all() for tensor in narrow):
        raise ValueError(f"{path}: not all weights are finite numbers: that training failed; try a smaller --model.lr")
    if largest_sum(*(tensors[name] for name in shapes)) > torch.finfo(torch.float32).max:
        raise ValueError(f"{path}: weights too large for 32 bits: that training failed; try a smaller --model.lr")
    for name in find_saved_paths(checkpoint):
        raise ValueError(f"{not_ours}: it names a file outside its folder, {some_of([name])}")


def largest_sum(C: Tensor, W1: Tensor, b1: Tensor, W2: Tensor, b2: Tensor) -> float:
    """Computes a bound of the sums in the forward pass: if 32 bits can hold it, all logits are finite numbers."""
    norm = partial(torch.linalg.vector_norm, dtype=torch.float64)
    hidden = norm(C, math.inf) * norm(W1, 1, dim=0).max() + norm(b1, math.inf)
    return max(hidden.item(), (norm(W2, 1, dim=0).max() + norm(b2, math.inf)).item())


def require_tensors(path: str | Path, tensors: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Refuses tensors with other names than those of the model, which may be a subclass of MLP with more than five.

    Raises:
        ValueError: if so.
    """
    if tensors.keys() != ours.keys():
        raise ValueError(
            f"{path}: a checkpoint of another version of makemore_pl, with the tensors {some_of(tensors)}: train again"
        )


def check_values(path: str | Path, hparams: Any) -> None:
    """Refuses hyperparameters other than names with plain values: Lightning imports classes that some of them name.

    Raises:
        ValueError: if there is one, or one of the architecture has another type or is below 1.
    """
    if not isinstance(hparams, dict):
        raise ValueError(f"{path}: not a checkpoint of makemore_pl: its hyperparameters have no names")
    for name, value in hparams.items():
        if name in ARCHITECTURE[1:]:
            fits = type(value) is int and value >= 1
        elif name == "vocabulary":
            fits = value is None or (isinstance(value, str) and list(value) == sorted(set(value)))
            if fits and (match := UNPRINTABLE.search(value or "")):
                found = f"its vocabulary has {describe_character(match[0])}, which no list may have"
                raise ValueError(f"{path}: not a checkpoint of makemore_pl: {found}")
        else:
            special = not isinstance(name, str) or name.startswith(("_", "class_path", "init_args", "dict_kwargs"))
            fits = isinstance(value, str | int | float | None) and not special
            if name == "path":  # what this process has on stdin is no list of a run before it
                fits = fits and value != "-" and not str(value).startswith(STANDARD)
        if not fits:
            raise ValueError(
                f"{path}: not a checkpoint of makemore_pl: {some_of([name])} is not a valid hyperparameter"
            )


def some_of(names: Iterable[Any]) -> str:
    """Joins the first names, escaped and shortened: they come from an unknown file and go to a terminal."""
    return ", ".join(ascii(str(name)[:40])[1:-1] for name in islice(names, 5)) or "none"


def find_tensors(checkpoint: Any) -> Iterator[Tensor]:
    """Yields all tensors in nested dictionaries and lists. Each container is visited once: a pickle may have cycles."""
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
    """Yields paths outside its folder that a ModelCheckpoint would remove as its own files.

    Lightning removes a path that begins with the name of the folder, even if `..` then leads out of it.
    """
    callbacks = checkpoint.get("callbacks", {})
    for state in callbacks.values() if isinstance(callbacks, dict) else ():
        if not isinstance(state, dict) or "dirpath" not in state:
            continue
        saved = [state.get(name) for name in ("best_model_path", "kth_best_model_path", "last_model_path")]
        kept = state.get("best_k_models") or {}
        saved += kept if isinstance(kept, dict) else [str(kept)]
        for path in map(str, filter(None, saved)):
            # A relative folder may itself begin with `..`.
            parts = Path(path.removeprefix(str(state["dirpath"]))).parts
            if ".." in list(dropwhile("..".__eq__, parts)):
                yield path


class FromCheckpoint:
    """Gives a module or a data module a `load_from_checkpoint` that runs no code from the file."""

    CHECKPOINT_HYPER_PARAMS_KEY: str

    def continue_from(self, path: str | Path, checkpoint: Mapping[str, Any]) -> None:
        """Takes what a module needs from a checkpoint beside its hyperparameters and weights."""

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
        made.continue_from(checkpoint_path, checkpoint)
        return made

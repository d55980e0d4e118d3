"""A checkpoint file -> plain values and tensors: nothing in it runs, and none takes more memory than it has bytes."""

import hashlib
import io
import zipfile
from collections.abc import Iterator
from itertools import dropwhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ARCHITECTURE = ["vocabulary", "block_size", "embedding_dim", "hidden_size"]
"""The hyperparameters that give the five tensors their shapes and meaning."""

SEAL = b"makemore_pl sha256 "
"""Begins the comment of the zip archive; the digest of all bytes before it follows, in hexadecimal."""

DIGEST = 64
"""Its digits."""


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
    return unpack(Path(path).read_bytes(), path)


def unpack(content: bytes, path: str | Path) -> dict[str, Any]:
    """Does so with the content of a file; the path is for the errors."""
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


def refuse_url(path: str | Path) -> None:
    """Refuses an address: nothing is fetched.

    Raises:
        ValueError: if it is one.
    """
    if "://" in str(path):
        raise ValueError(f"{path}: this is an address, and nothing is fetched; download it and name the file")


def check(path: str | Path, checkpoint: Any) -> None:
    """Refuses what is no checkpoint of this project, does not fit together, or reaches for more than itself.

    Raises:
        ValueError: if so; it says what it is.
    """
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise ValueError(f"{path}: not a checkpoint of makemore_pl")
    hparams, tensors = checkpoint.get("hyper_parameters"), checkpoint["state_dict"]
    if not isinstance(hparams, dict) or not {"vocabulary", "block_size"} & hparams.keys():
        names = ", ".join(map(str, list(tensors)[:3])) or "none"
        raise ValueError(f"{path}: not a checkpoint of makemore_pl, but of another model (its first tensors: {names})")
    missing = [name for name in ARCHITECTURE if name not in hparams]
    if missing:
        raise ValueError(
            f"{path}: a checkpoint of another version of makemore_pl, without {', '.join(missing)}: train again"
        )
    for group in (hparams, checkpoint.get("datamodule_hyper_parameters", {})):
        check_values(path, group)
    V, (T, E, H) = len(hparams["vocabulary"] or "") + 1, (hparams[name] for name in ARCHITECTURE[1:])
    shapes = {"C": (V, E), "W1": (T * E, H), "b1": (H,), "W2": (H, V), "b2": (V,)}
    if tensors.keys() != shapes.keys():
        raise ValueError(
            f"{path}: a checkpoint of another version of makemore_pl, with the tensors {', '.join(map(str, tensors))}: "
            "train again"
        )
    for name, shape in shapes.items():
        found = tuple(getattr(tensors[name], "shape", ()))
        if found != shape:
            raise ValueError(
                f"{path}: this checkpoint does not fit together: {name} is {found}, "
                f"and its hyperparameters make that {shape}"
            )
    for tensor in find_tensors(checkpoint):
        if tensor.layout != torch.strided or tensor.is_meta or tensor.nbytes > tensor.untyped_storage().nbytes():
            raise ValueError(f"{path}: not a checkpoint of makemore_pl: a tensor claims numbers that are not there")
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise ValueError(f"{path}: not all weights are finite numbers: that training failed; try a smaller --model.lr")
    for name in find_saved_paths(checkpoint):
        raise ValueError(f"{path}: not a checkpoint of makemore_pl: it names a file outside of its folder, {name}")


def check_values(path: str | Path, hparams: Any) -> None:
    """Refuses hyperparameters that are more than names with plain values: Lightning imports what some of them name.

    Raises:
        ValueError: if there is one, or one of the architecture is of another type or below 1.
    """
    for name, value in hparams.items() if isinstance(hparams, dict) else [("hyper_parameters", hparams)]:
        if name in ARCHITECTURE[1:]:
            fits = type(value) is int and value >= 1
        elif name == "vocabulary":
            fits = isinstance(value, str | None)
        else:
            special = str(name).startswith(("_", "class_path", "init_args", "dict_kwargs"))
            fits = isinstance(value, str | int | float | None) and not special
        if not fits:
            raise ValueError(f"{path}: not a checkpoint of makemore_pl: {str(name)[:40]} is not what a model takes")


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
        saved += state.get("best_k_models") or {}
        for path in map(str, filter(None, saved)):
            # A folder named relative to the current one may begin with it.
            parts = Path(path.removeprefix(str(state["dirpath"]))).parts
            if ".." in list(dropwhile("..".__eq__, parts)):
                yield path

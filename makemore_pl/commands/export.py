"""A trained model -> one file for others: a page to play with, ONNX, safetensors, a checkpoint."""

import base64
import json
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import lightning
import torch

from makemore_pl.checkpoint import ARCHITECTURE
from makemore_pl.commands.ensemble import average as combine
from makemore_pl.durable.checkpoints import pack, write_whole
from makemore_pl.model import MLP
from makemore_pl.pictures.figures import flatten
from makemore_pl.split import require_same_split


def export_average(model: MLP, data: Mapping[str, Any], output: str, average: Sequence[str] | None = None) -> None:
    """Writes a model in another form, or the average of several.

    Args:
        model: with its weights.
        data: the hyperparameters of what it was trained on.
        output: a file whose ending says the form: .html, a page to play with; .onnx; .safetensors; .ckpt.
        average: further checkpoints, of networks trained on the same words; what is written is one network that is
            the average of all.

    Raises:
        ValueError: if a network does not fit the others, or the file cannot be written.
    """
    models = [model]
    for path in average or []:
        models.append(MLP.load_from_checkpoint(path, "cpu"))
        require_same_split(path, data)
    export(combine(models) if average else model, output, data)


def export(model: MLP, output: str | Path, data: Mapping[str, Any] | None = None) -> None:
    """Writes the model into one file, of the kind that its name ends in.

    `.html`: a page to play with, in any browser, without a network or a server. `.onnx`: X (B, T) int64 -> logits
    (B, V) float32 for any batch size B, the architecture among its metadata. `.safetensors`: the five tensors as they
    are, the same metadata. `.ckpt`: a checkpoint to sample from and to test, not to resume. The file appears when
    it is complete, and replaces one of its name.

    Args:
        model: a trained one, on any device.
        output: the file to write.
        data: the hyperparameters of its NamesDataModule, which a checkpoint keeps.

    Raises:
        ValueError: if the name ends otherwise, the file cannot be written, a package is missing, or a weight is not a
            finite number.
    """
    output = Path(output)
    formats: dict[str, Callable[[MLP], bytes | memoryview]] = {
        ".html": as_page,
        ".onnx": as_onnx,
        ".safetensors": as_safetensors,
        ".ckpt": partial(as_checkpoint, data=data or {}),
    }
    if output.suffix.lower() not in formats:
        raise ValueError(f"{output}: expected a name that ends in {', '.join(formats)}")
    if not output.parent.is_dir():
        raise ValueError(f"{output}: there is no folder {output.parent}")
    if not all(tensor.isfinite().all() for tensor in model.parameters()):
        raise ValueError("the model's weights are not all finite numbers; try a smaller --model.lr")
    content = formats[output.suffix.lower()](model)
    try:
        write_whole(output, content)
    except OSError as error:
        raise ValueError(f"{output}: cannot be written ({error.strerror})") from None


def as_page(model: MLP) -> bytes:
    """Fills the weights and the vocabulary into `playground.html`."""
    tensors = [tensor.detach().float().cpu() for tensor in model.parameters()]  # C, W1, b1, W2, b2
    points, share = flatten(tensors[0].double())
    weights = torch.cat([tensor.flatten() for tensor in tensors]).numpy().astype("<f4")
    data = {
        "vocabulary": model.vocabulary.characters,
        "block_size": model.block_size,
        "embedding_dim": tensors[0].shape[1],
        "hidden_size": len(tensors[2]),
        "weights": base64.b64encode(weights.tobytes()).decode(),
        "map": [[round(x, 4) for x in point] for point in points.tolist()],
        "map_share": round(share, 4),
    }
    # Inside of a script element a `<` could begin its end; what is not ASCII, json escapes by itself.
    text = json.dumps(data).replace("<", "\\u003c")
    template = resources.files("makemore_pl.pictures").joinpath("playground.html").read_text(encoding="utf-8")
    before, after = template.split("{{model}}")
    return f"{before}{text}{after}".encode()


def as_checkpoint(model: MLP, data: Mapping[str, Any]) -> memoryview:
    """The model and the hyperparameters of its data as Lightning keeps them, without the training's state."""
    checkpoint = {
        "state_dict": model.state_dict(),
        "hyper_parameters": dict(model.hparams),
        "datamodule_hyper_parameters": dict(data),
        "pytorch-lightning_version": lightning.__version__,
        "epoch": 0,
        "global_step": 0,
    }
    return pack(checkpoint)


def as_safetensors(model: MLP) -> bytes:
    """The five tensors, the architecture as metadata."""
    try:
        from safetensors.torch import save
    except ImportError:
        raise missing("safetensors") from None
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.named_parameters()}
    return save(tensors, metadata(model))


def as_onnx(model: MLP) -> bytes:
    """The network as torch's exporter writes it, in float32, the architecture as metadata properties."""
    try:
        import onnxscript  # noqa: F401 (torch's exporter wants it)
        from onnx import ModelProto
    except ImportError:
        raise missing("onnx and onnxscript") from None
    twin = MLP(**architecture(model))  # on the CPU, without a Trainer
    twin.load_state_dict(model.state_dict())
    X = torch.zeros((2, model.block_size), dtype=torch.int64)
    registry = logging.getLogger("torch.onnx._internal.exporter._registration")
    registry.addFilter(no_word_of_torchvision)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated")  # torch's own
            program = torch.onnx.export(
                twin.eval(),
                (X,),
                dynamo=True,
                input_names=["X"],
                output_names=["logits"],
                dynamic_shapes={"X": {0: torch.export.Dim("B")}},
                verbose=False,
            )
    finally:
        registry.removeFilter(no_word_of_torchvision)
    assert program is not None
    proto: ModelProto = program.model_proto
    for key, value in metadata(model).items():
        proto.metadata_props.add(key=key, value=value)
    return proto.SerializeToString()


def no_word_of_torchvision(record: logging.LogRecord) -> bool:
    """Drops what torch's exporter says of a package that is not needed here."""
    return not record.getMessage().startswith("torchvision is not installed")


def architecture(model: MLP) -> dict[str, Any]:
    """The hyperparameters that give the five tensors their shapes and meaning."""
    return {name: model.hparams[name] for name in ARCHITECTURE}


def metadata(model: MLP) -> dict[str, str]:
    """The same as strings."""
    return {name: str(value) for name, value in architecture(model).items()}


def missing(packages: str) -> ValueError:
    """The error of an extra that is not installed."""
    return ValueError(f"this format needs {packages}: pip install 'makemore_pl[export]'")

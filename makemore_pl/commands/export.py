"""`export`: a trained model -> one file for other programs: an interactive page, ONNX, safetensors, a checkpoint."""

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
from lightning.pytorch import Trainer

from makemore_pl.checkpoint import ARCHITECTURE, NOT_UPLOADED, refuse_url
from makemore_pl.commands.ensemble import average as combine
from makemore_pl.commands.messages import say
from makemore_pl.datamodule import NamesDataModule
from makemore_pl.durable.checkpoints import pack
from makemore_pl.durable.files import write_whole
from makemore_pl.model import MLP
from makemore_pl.pictures.plane import flatten
from makemore_pl.terminal import counted
from makemore_pl.trained_on import KEY, Record, record, require_same_split


def export_average(
    trainer: Trainer, model: MLP, datamodule: NamesDataModule, output: str, average: list[str] | None = None
) -> None:
    """Writes the model, or the average of several, in another format.

    Args:
        trainer: whose first rank writes.
        model: with its weights.
        datamodule: its data.
        output: a file whose ending names the format: .html, an interactive page; .onnx; .safetensors; .ckpt.
        average: further checkpoints, of networks trained on the same words; the average of all is written. `best` or
            `last` is that of the newest run that is not among them yet.

    Raises:
        ValueError: if a network does not fit the others, or the file cannot be written.
    """
    if not trainer.is_global_zero:
        return
    data: Mapping[str, Any] = datamodule.hparams
    trained_on = datamodule.trained_on or [record(data, None)]
    models = [model]
    for path in average or []:
        models.append(MLP.load_from_checkpoint(path, "cpu"))
        require_same_split(path, trained_on)
    export(combine(models) if average else model, output, data, trained_on)
    say(f"{output}: {counted(Path(output).stat().st_size, 'byte')}")


def export(
    model: MLP, output: str | Path, data: Mapping[str, Any] | None = None, trained_on: Sequence[Record] = ()
) -> None:
    """Writes the model into one file, in the format that its ending names.

    `.html`: an interactive page for any browser, without a network or a server. `.onnx`: X (B, T) int64 -> logits
    (B, V) float32 for any batch size B, the architecture among its metadata. `.safetensors`: the five tensors as they
    are, the same metadata. `.ckpt`: a checkpoint to sample from and to test, not to resume. The file is complete
    or absent, and replaces one of its name.

    Args:
        model: a trained one, on any device.
        output: the file to write.
        data: the hyperparameters of its NamesDataModule, which a checkpoint keeps.
        trained_on: the records of the words that it was trained on, which a checkpoint keeps.

    Raises:
        ValueError: if the name ends otherwise, the file cannot be written, a package is missing, or a weight is not a
            finite number.
    """
    refuse_url(output, NOT_UPLOADED)
    output = Path(output)
    formats: dict[str, Callable[[MLP], bytes | memoryview]] = {
        ".html": as_page,
        ".onnx": as_onnx,
        ".safetensors": as_safetensors,
        ".ckpt": partial(as_checkpoint, data=data or {}, trained_on=trained_on),
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
    # Inside of a script element a `<` could begin its end; json escapes all that is not ASCII.
    text = json.dumps(data).replace("<", "\\u003c")
    template = resources.files("makemore_pl.pictures").joinpath("playground.html").read_text(encoding="utf-8")
    before, after = template.split("{{model}}")
    return f"{before}{text}{after}".encode()


def as_checkpoint(model: MLP, data: Mapping[str, Any], trained_on: Sequence[Record]) -> memoryview:
    """Packs the model, the hyperparameters of its data and its records as Lightning does, without the optimizer."""
    checkpoint = {
        "state_dict": model.state_dict(),
        "hyper_parameters": dict(model.hparams),
        "datamodule_hyper_parameters": dict(data),
        **({NamesDataModule.__qualname__: {KEY: list(trained_on)}} if trained_on else {}),
        "pytorch-lightning_version": lightning.__version__,
        "epoch": 0,
        "global_step": 0,
    }
    return pack(checkpoint)


def as_safetensors(model: MLP) -> bytes:
    """Packs the five tensors, the architecture as metadata."""
    try:
        from safetensors.torch import save
    except ImportError:
        raise missing("safetensors") from None
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.named_parameters()}
    return save(tensors, metadata(model))


def as_onnx(model: MLP) -> bytes:
    """Exports the network in float32 by torch's exporter, the architecture as metadata properties."""
    try:
        import onnxscript  # noqa: F401 (torch's exporter needs it)
        from onnx import ModelProto
    except ImportError:
        raise missing("onnx and onnxscript") from None
    twin = MLP(**architecture(model))  # on the CPU, without a Trainer
    twin.load_state_dict(model.state_dict())
    X = torch.zeros((2, model.block_size), dtype=torch.int64)
    registry = logging.getLogger("torch.onnx._internal.exporter._registration")
    registry.addFilter(not_about_torchvision)
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
        registry.removeFilter(not_about_torchvision)
    assert program is not None
    proto: ModelProto = program.model_proto
    for key, value in metadata(model).items():
        proto.metadata_props.add(key=key, value=value)
    return proto.SerializeToString()


def not_about_torchvision(record: logging.LogRecord) -> bool:
    """Drops a line of torch's exporter about a package that is not needed here."""
    return not record.getMessage().startswith("torchvision is not installed")


def architecture(model: MLP) -> dict[str, Any]:
    """Picks the hyperparameters that give the five tensors their shapes and meaning."""
    return {name: model.hparams[name] for name in ARCHITECTURE}


def metadata(model: MLP) -> dict[str, str]:
    """Writes the architecture as strings."""
    return {name: str(value) for name, value in architecture(model).items()}


def missing(packages: str) -> ValueError:
    """Makes the error about an extra that is not installed."""
    return ValueError(f"this format needs {packages}: pip install 'makemore_pl[export]'")

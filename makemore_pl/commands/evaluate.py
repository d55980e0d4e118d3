"""`validate` and `test`: the network beside counting, on the words of a split."""

from lightning.pytorch import Trainer
from torch import Tensor

from makemore_pl.comparison import Comparison, show
from makemore_pl.datamodule import NamesDataModule
from makemore_pl.model import MLP
from makemore_pl.terminal import counted
from makemore_pl.windows import Counts, count_words

COUNTED_WORDS = 2**22
"""The longest list that is held and compared as words; a longer one would take too much memory."""


def print_comparison(trainer: Trainer, kind: type[MLP], path: str, data: NamesDataModule, split: str) -> None:
    """Prints the table of losses, on the first rank.

    Args:
        trainer: says on which device and in which precision.
        kind: the class of the model.
        path: its checkpoint.
        data: its words.
        split: `train`, `val` or `test`.
    """
    if trainer.is_global_zero:
        compared, sets = compare(kind.load_from_checkpoint(path, "cpu"), data, trainer, split)
        print(show(compared.score(*sets.values()), list(sets)), flush=True)


def compare(model: MLP, data: NamesDataModule, trainer: Trainer, *splits: str) -> tuple[Comparison, dict[str, Counts]]:
    """Compares a network with counting, and both mixed, on the words of splits and on those not in train.

    Args:
        model: the network.
        data: its words.
        trainer: says on which device and in which precision.
        splits: of `train`, `val` and `test`.

    Returns:
        The comparison, and the windows of each set of words by its name.
    """
    device = trainer.strategy.root_device
    trainer.precision_plugin.convert_module(model.eval().to(device))

    def network(X: Tensor) -> Tensor:
        with trainer.precision_plugin.forward_context():
            return model(X.to(device))

    few = not data.in_pieces and len(data.words) <= COUNTED_WORDS
    counting = ["train", "val"] if few or data.hparams["counted"] else []  # further counts may not fit into memory
    counts = data.count(*dict.fromkeys([*counting, *splits]), together=False)
    sets = {}
    for split in splits:
        sets[f"{split}, all words"] = counts[split]
        unseen = data.unseen(split) if few and split != "train" else None
        if unseen and len(unseen) < len(data.splits[split]):
            name = f"{split}, {counted(len(unseen), 'word')} not in train"
            sets[name] = count_words(unseen, model.vocabulary, model.block_size)
    held_out = counts.get("val") if data.hparams["val_fraction"] else None
    return Comparison(network, counts.get("train"), held_out), sets

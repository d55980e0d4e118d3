"""makemore_pl: more words like yours, by the language model of Bengio et al. 2003 under PyTorch Lightning."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from makemore_pl.datamodule import NamesDataModule
    from makemore_pl.model import MLP
    from makemore_pl.ngram import NGram
    from makemore_pl.sampling import Sampler
    from makemore_pl.vocabulary import Vocabulary

__all__ = ["MLP", "NGram", "NamesDataModule", "Sampler", "Vocabulary"]
__version__ = "0.1.0"

_MODULES = {
    "MLP": "model",
    "NGram": "ngram",
    "NamesDataModule": "datamodule",
    "Sampler": "sampling",
    "Vocabulary": "vocabulary",
}


def __getattr__(name: str) -> Any:
    # On demand: Lightning takes seconds to import, and the vocabulary alone does not need it.
    if name in _MODULES:
        return getattr(import_module(f"makemore_pl.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

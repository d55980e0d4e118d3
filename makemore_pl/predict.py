"""`predict`: its options, and the writing of names, or of the scores of words, to stdout."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Callback, Trainer

from makemore_pl.comparison import Comparison, perplexity
from makemore_pl.datamodule import NamesDataModule
from makemore_pl.model import MLP
from makemore_pl.report import say
from makemore_pl.sampling import Sampler
from makemore_pl.words import read_words

SCORED = 2**12  # words at a time: their windows fit into any memory


@dataclass(eq=False)
class Request(Sampler):
    """Names to draw, or words to score.

    Args:
        counting: draw and score from the mixture of the network and Kneser-Ney counting, most often with a lower loss.
            The words are read from the list of the run; the shares are those that are best on its validation words.
        score: a list of words to score instead of drawing names, or `-` for stdin. Prints log-probability (natural, of
            the whole word and its end), perplexity and word, separated by tabs.
    """

    counting: bool = False
    score: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.score is not None and (self.prompt or self.unique or self.novel or self.pattern):
            raise ValueError("score cannot be combined with prompt, unique, novel or pattern; omit these")
        self.words: list[str] = []

    def __iter__(self) -> Iterator[Any]:
        """Yields the numbers of the chunks to draw, or chunks of words to score."""
        if self.score is None:
            return super().__iter__()
        return (self.words[start : start + SCORED] for start in range(0, len(self.words), SCORED))


def mix_with_counting(model: MLP, data: NamesDataModule) -> None:
    """Has a model draw and score from its mixture with counting, in the shares that are best on val."""
    compared = Comparison(model.eval(), data.count("train"), data.count("val"))
    name, model.mixture = list(compared.predictors.items())[-1]
    say(f"using the {name}")


class NamesWriter(Callback):
    """Writes names or scores as they come; of several processes, which all have them, the first one writes."""

    def __init__(self, request: Request) -> None:
        self.request = request

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Gives all ranks the same words to score or the same seed, and says how to repeat the names."""
        request = self.request
        if request.score is not None and trainer.is_global_zero:
            request.words = read_words(request.score)
        request.seed, request.words = trainer.strategy.broadcast((request.seed, request.words))
        if request.score is None:
            say(f"seed {request.seed}; --sample.seed random draws other names")

    def on_predict_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        if self.request.score is not None:
            pairs = zip(outputs, batch, strict=True)
            outputs = [f"{score:.4f}\t{perplexity(-score / (len(word) + 1)):.4f}\t{word}" for score, word in pairs]
        if outputs and trainer.is_global_zero:
            print("\n".join(outputs), flush=True)

    def on_predict_end(self, trainer: Trainer, pl_module: Any) -> None:
        words, vocabulary = self.request.words, pl_module.vocabulary
        odd = [odd for word in words if (odd := set(vocabulary.in_its_case(word)) - vocabulary.stoi.keys())]
        if odd:
            say(f"-inf for {len(odd):,} of {len(words):,} words: the network does not know, say, {min(odd[0])!r}")

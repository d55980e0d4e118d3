"""`predict`: its options, and the writing of names to stdout or a file."""

import csv
import json
import math
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Literal, TextIO

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.distributed import recv_object_list, send_object_list

from makemore_pl.checkpoint import NOT_UPLOADED, refuse_url
from makemore_pl.commands.messages import say
from makemore_pl.comparison import Mixture, best_weight
from makemore_pl.datamodule import NamesDataModule
from makemore_pl.durable.files import writing
from makemore_pl.memory import require_memory_to_read
from makemore_pl.model import MLP
from makemore_pl.ngram import NGram
from makemore_pl.sampling import SEED, Sampler
from makemore_pl.terminal import brief
from makemore_pl.vocabulary import Vocabulary, describe_case
from makemore_pl.wordlist import Normalization, normalize, read_words

SCORED = 2**12
"""Words scored at a time: their windows fit into any memory."""

FORMULA = tuple("=+-@\t\r\uff1d\uff0b\uff0d\uff20'")
"""The first characters of cells that spreadsheets execute, full-width ones included; and the mark of text."""

LARGEST = 700.0
"""A float has room for e to this power."""

COLUMNS = ["name", "log_probability", "perplexity", "where"]


class Request(Sampler):
    """Names to draw or words to score, and their output.

    Args:
        format: `text`, a name a line; `jsonl` or `csv`, with each name's log-probability (natural, of the whole name
            including its end, at temperature 1), its perplexity per character, and its split: train, val, test, new.
            In csv, a name that begins with = + - @ or an apostrophe has an apostrophe before it, so that spreadsheets
            do not execute it; remove one leading apostrophe to read it back.
        output: the file to write to; stdout if omitted.
        counting: draw and score from the network mixed with Kneser-Ney counting, most often with a lower loss.
            The training words are read from the list of the run, and the shares are those that are best on its
            validation words.
        score: score the words of this list, or of stdin (`-`), instead of drawing new ones. As `text`:
            log-probability, perplexity and word, separated by tabs. Only format, output and counting apply to it.

    Raises:
        ValueError: if an option of `Sampler` is out of its range, or does not apply to scoring.
    """

    def __init__(
        self,
        *args: Any,
        format: Literal["text", "jsonl", "csv"] = "text",
        output: str | None = None,
        counting: bool = False,
        score: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if score is not None and (self.prompt or self.is_picky):
            raise ValueError(
                "score takes words as they are: omit prompt, unique, novel and pattern, which are for new ones"
            )
        refuse_url(score or "")
        refuse_url(output or "", NOT_UPLOADED)
        self.format = format
        self.output = output
        self.counting = counting
        self.words: list[str] | None = None
        self.score = score

    def __iter__(self) -> Iterator[Any]:
        """Yields the numbers of the chunks to draw, or chunks of words to score."""
        if self.words is None:
            return super().__iter__()
        return (self.words[start : start + SCORED] for start in range(0, len(self.words), SCORED))

    def prepare(self, vocabulary: Vocabulary, normalization: Normalization, source: Path) -> None:
        """Normalizes the prompt, reads and normalizes the words to score, and checks both before any output.

        Args:
            vocabulary: of the model.
            normalization: the Unicode form of its list.
            source: the list in which names are looked up.

        Raises:
            ValueError: if the model does not know a character, a list cannot be read, or the output is a list.
        """
        self.prompt = normalize(self.prompt, normalization)
        for path in [source, Path(self.score or "-")]:
            if self.output is not None and path.exists() and Path(self.output).resolve() == path.resolve():
                raise ValueError(f"output {self.output} is the list of words: give it another name")
        if self.score is not None:
            require_memory_to_read(self.score)
            self.words = read_words(self.score, normalization)
        given = [([self.prompt], "prompt"), (self.words or [], "word")]
        cases = [describe_case(texts, vocabulary, what) for texts, what in given]
        self.prompt = vocabulary.in_its_case(self.prompt)
        self.words = self.words and [vocabulary.in_its_case(word) for word in self.words]
        self.encode_prompt(vocabulary)
        try:
            vocabulary.encode_words(self.words or [])
        except ValueError as error:
            raise ValueError(f"{self.score}: {error}: {brief(vocabulary.characters)}") from None
        if (self.novel or self.format != "text") and self.where is not None:
            try:
                self.where([""])
            except ValueError as error:
                raise ValueError(
                    f"{error} (novel, jsonl and csv look names up in the list; --data.path, if it was moved)"
                ) from None
        for line in filter(None, cases):
            say(line)


def mix_with_counting(model: MLP, data: NamesDataModule) -> None:
    """Has a model draw and score from its mixture with counting.

    Raises:
        ValueError: if the list cannot be read, or its words are not those that the model was trained on.
    """
    data.require_same_words()
    has_val = data.hparams["val_fraction"] > 0
    counts = data.count("train", *["val"] * has_val, together=False)
    counting = NGram(counts["train"])
    weight = best_weight(model, counting, counts["val"]) if has_val else 0.5
    model.mixture = Mixture(model, counting, weight)
    say(f"mixed: {weight:.2f} of the network, {1 - weight:.2f} of Kneser-Ney")


def as_cell(name: str) -> str:
    """Marks a name as text if spreadsheets would execute it; `cell.removeprefix("'")` is the name again."""
    return f"'{name}" if name.startswith(FORMULA) else name


class NamesWriter(Callback):
    """Writes names in order as they come, from whichever device drew them.

    Args:
        request: the names, their format and the output.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.opened: ExitStack | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the output, whose file is replaced only when it is complete, and tells how to repeat the names.

        Raises:
            ValueError: if it cannot be written.
        """
        request = self.request
        request.seed = trainer.strategy.broadcast(request.seed)  # all devices draw from one seed
        if trainer.is_global_zero and request.words is None:
            if request.is_new_seed:
                say(f"seed {request.seed}: --sample.seed {request.seed} draws these names again")
            elif request.seed == SEED:
                say(f"seed {SEED}: the same names each time; --sample.seed random draws others")
        self.file: TextIO = sys.stdout
        output = request.output
        if trainer.is_global_zero and output is not None:
            self.opened = ExitStack()
            try:
                binary = self.opened.enter_context(writing(output))
            except OSError as error:
                raise ValueError(f"output {output}: cannot be written ({error.strerror})") from None
            self.file = TextIOWrapper(binary, encoding="utf-8", newline="\n")
        if trainer.is_global_zero and request.format == "csv":
            self._write_csv([COLUMNS])

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Writes one chunk, which another rank may have to send to the first."""
        owner = batch_idx % trainer.world_size
        if owner and owner == trainer.global_rank:
            send_object_list([outputs], dst=0, device=pl_module.device)
        elif owner and trainer.is_global_zero:
            received: list[Any] = [None]
            recv_object_list(received, src=owner, device=pl_module.device)
            outputs = received[0]
        if trainer.is_global_zero:
            self.write(pl_module, *((outputs, None) if self.request.words is None else (batch, outputs)))

    def write(self, model: Any, names: list[str], scores: list[float] | None) -> None:
        """Writes names, with log-probabilities if they are given or the format contains them."""
        if self.request.format == "text" and scores is None:
            self.file.writelines(f"{name}\n" for name in names)
            return
        rows = [
            (name, round(score, 4), round(math.exp(min(-score / (len(name) + 1), LARGEST)), 4))
            for name, score in zip(names, scores or model.score(names), strict=True)
        ]
        if self.request.format == "text":
            self.file.writelines(f"{score:.4f}\t{perplexity:.4f}\t{name}\n" for name, score, perplexity in rows)
            return
        assert self.request.where is not None
        full = [(*row, where) for row, where in zip(rows, self.request.where(names), strict=True)]
        if self.request.format == "csv":
            self._write_csv(full)
        else:
            lines = (json.dumps(dict(zip(COLUMNS, row, strict=True)), ensure_ascii=False) for row in full)
            self.file.writelines(f"{line}\n" for line in lines)

    def _write_csv(self, rows: Any) -> None:
        # All names are quoted: where a semicolon separates cells, one in a name could begin a formula.
        writer = csv.writer(self.file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        writer.writerows((as_cell(name), *others) for name, *others in rows)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Moves the complete file to its name."""
        if self.opened is not None:
            self.file.flush()
            self.opened.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keeps the file that was there before."""
        if self.opened is not None:
            self.opened.__exit__(type(exception), exception, exception.__traceback__)

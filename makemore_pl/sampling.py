"""Next-character distributions -> words, and words -> their probability. Any callable that gives logits will do.

Shapes: B words drawn side by side, T block size (context length), V vocabulary size.

Over 300 lines: a sixth of it documents the options.
"""

import math
import random
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import count, takewhile
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from makemore_pl.terminal import brief
from makemore_pl.vocabulary import BOUNDARY, Vocabulary, as_in_list
from makemore_pl.windows import CELLS_AT_ONCE, build_windows, rows_at_once

NextLogits = Callable[[Tensor], Tensor]
"""Contexts (B, T) int64 -> logits (B, V): all that a sampler needs of a model."""

CHUNK = 2**16
"""Words drawn side by side. A word depends only on the seed and its place: the first of many are those of a few."""

EMPTY_CHUNKS = 16
"""Chunks drawn one after the other without a name that matches the pattern, before it is given up."""

SEED = 2147483647
"""The notebook's."""

TABLE_CONTEXTS = 2**16
"""Up to this number of contexts, V**T in all, their distributions are computed once, unless V is large."""


class Sampler:
    """Draws words character by character until the boundary comes up (makemore part 2, "sampling from the model").

    It holds options only. Iterating gives the numbers of the chunks to draw, as a Trainer expects of a loader; without
    end if names are rejected, since only a `Draw` knows when there are enough.

    Args:
        num_names: how many names to draw.
        prompt: how every name begins; in small letters if the list has no capitals.
        unique: no duplicates.
        novel: only names that are not in the list.
        pattern: only names that match this regular expression from beginning to end: `.*ette`, `[aeiou].{4}`.
        temperature: divides the logits: below 1, names are more like the list; above 1, more diverse.
        top_k: draw each character only from the N most likely; from all if omitted.
        top_p: draw each character only from the most likely that make up this share of the probability.
        min_length: the fewest characters of a name.
        max_length: names are cut off at this many characters.
        seed: random seed; the same seed gives the same names, and fewer names are the first of more. `random` takes a
            new one.
        where: names -> the split of each, or `new`: `NamesDataModule.where`, for `novel`.

    Raises:
        ValueError: if an option is out of range, min_length is above max_length, or the prompt is longer than that.
    """

    def __init__(
        self,
        num_names: int = 20,
        prompt: str = "",
        unique: bool = False,
        novel: bool = False,
        pattern: str | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        min_length: int = 1,
        max_length: int = 100,
        seed: int | Literal["random"] = SEED,
        where: Callable[[list[str]], list[str]] | None = None,
    ) -> None:
        if num_names < 1:
            raise ValueError(f"num_names is {num_names}: expected 1 or more")
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature is {temperature:g}: expected a number above 0")
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k is {top_k}: expected 1 or more")
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p is {top_p:g}: expected a share above 0, at most 1")
        if not 1 <= min_length <= max_length:
            raise ValueError(f"min_length is {min_length}: expected 1 or more, no more than max_length, {max_length}")
        if max_length < len(prompt):
            raise ValueError(f"max_length is {max_length}: expected room for the prompt {prompt!r}")
        self.num_names = num_names
        self.prompt = prompt
        self.unique = unique
        self.novel = novel
        try:
            self.pattern = None if pattern is None else re.compile(pattern)
        except (re.error, OverflowError) as error:
            raise ValueError(f"pattern {pattern!r} is not a regular expression: {error}") from None
        self.temperature = temperature
        self.top_k = top_k
        self.top_p = top_p
        self.min_length = min_length
        self.max_length = max_length
        self.is_new_seed = seed == "random"
        self.seed = random.SystemRandom().randrange(2**31) if seed == "random" else seed
        self.where = where

    @property
    def batch_size(self) -> int:
        """The most words that are drawn side by side."""
        return min(self.num_names, CHUNK)

    @property
    def is_picky(self) -> bool:
        """Whether names are rejected, so that the number of chunks is not known beforehand."""
        return self.unique or self.novel or self.pattern is not None

    def encode_prompt(self, vocabulary: Vocabulary) -> list[int]:
        """Returns the ids of the prompt, in small letters if the vocabulary has no others.

        Raises:
            ValueError: if it holds a character that is not in the vocabulary.
        """
        try:
            return vocabulary.encode(as_in_list([self.prompt], vocabulary, "prompt")[0])
        except ValueError as error:
            raise ValueError(f"prompt {error}: {brief(vocabulary.characters)}") from None

    def __iter__(self) -> Iterator[int]:
        return count() if self.is_picky else iter(range(math.ceil(self.num_names / CHUNK)))


class Draw:
    """Draws the words of a sampler from a model, once. `missing` counts the names still to come if some are rejected.

    Args:
        sampler: what to draw.
        next_logits: contexts (B, T) int64 -> logits (B, V).
        vocabulary: of the V tokens.
        block_size: T.
        device: where `next_logits` computes.

    Raises:
        ValueError: if the prompt holds a character that is not in the vocabulary, or `novel` has no `where`.
    """

    def __init__(
        self,
        sampler: Sampler,
        next_logits: NextLogits,
        vocabulary: Vocabulary,
        block_size: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.prompt = sampler.encode_prompt(vocabulary)
        if sampler.novel and sampler.where is None:
            raise ValueError("novel compares names with a list; pass `where`, that of a NamesDataModule")
        self.sampler = sampler
        self.missing = sampler.num_names
        self.next_logits = next_logits
        self.vocabulary = vocabulary
        self.block_size = block_size
        self.device = device
        self.contexts = len(vocabulary) ** block_size
        self.looks_up = self.contexts <= min(TABLE_CONTEXTS, CELLS_AT_ONCE // len(vocabulary))
        self.tables: dict[bool, Tensor] = {}
        self.seen: set[str] = set()
        self.empty = 0  # chunks without a name, one after the other

    def table(self, may_end: bool) -> Tensor:
        """The distributions (V**T, V) of all contexts, as `cdf` gives them; computed once."""
        if may_end not in self.tables:
            V = len(self.vocabulary)
            number = torch.arange(self.contexts, device=self.device)
            digits = [number // V**t % V for t in reversed(range(self.block_size))]
            self.tables[may_end] = self.cdf(torch.stack(digits, dim=1), may_end)
        return self.tables[may_end]

    @torch.no_grad()
    def cdf(self, context: Tensor, may_end: bool) -> Tensor:
        """Computes the cumulative distributions (B, V) of the next character after contexts (B, T), up to rounding."""
        logits = self.next_logits(context).to(self.device).float()
        if not may_end:
            logits[:, BOUNDARY].fill_(-torch.inf)
        temperature = min(max(self.sampler.temperature, 1e-30), 1e30)  # beyond, it is 0 or infinite in float32
        logits = (logits - logits.amax(dim=1, keepdim=True)) / temperature
        if self.sampler.top_k is not None:
            least = logits.topk(min(self.sampler.top_k, logits.shape[1])).values[:, -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        probabilities = torch.softmax(logits, dim=1)
        if self.sampler.top_p < 1:
            likeliest, place = probabilities.sort(dim=1, descending=True, stable=True)
            spare = likeliest.cumsum(dim=1) - likeliest >= self.sampler.top_p  # the likelier ones are enough
            spare[:, 0].fill_(False)  # also where top_p is 0 in float32
            probabilities = probabilities.masked_fill(torch.zeros_like(spare).scatter(1, place, spare), 0.0)
        return probabilities.cumsum(dim=1)

    def chunk(self, number: int) -> list[str]:
        """Draws one chunk. Unless names are rejected, chunks can be drawn in any order, on any device."""
        if self.sampler.is_picky:
            return self.pick(number)
        return self.draw(number, self.sampler.num_names - number * CHUNK)

    def pick(self, number: int) -> list[str]:
        """Draws one chunk and keeps the names that are asked for; the chunks must be drawn in order.

        Raises:
            ValueError: if it keeps no name of a whole chunk; of `EMPTY_CHUNKS` where there is a pattern.
        """
        sampler, kept, drawn = self.sampler, list[str](), 0
        for size in (8 * self.missing, CHUNK):  # the first few of the chunk are often enough
            if not self.missing:
                break
            names = self.draw(number, size)[drawn:]
            drawn += len(names)
            if sampler.pattern is not None:
                names = [name for name in names if sampler.pattern.fullmatch(name)]
            if sampler.unique:
                names = [name for name in dict.fromkeys(names) if name not in self.seen]
            if sampler.novel:
                assert sampler.where is not None
                names = [name for name, where in zip(names, sampler.where(names), strict=True) if where == "new"]
            names = names[: self.missing]
            self.missing -= len(names)
            self.seen.update(names if sampler.unique else ())
            kept += names
        self.empty = self.empty + 1 if drawn == CHUNK and not kept else 0
        if self.empty == (1 if sampler.pattern is None else EMPTY_CHUNKS):
            asked = " and ".join(name for name in ("unique", "novel") if getattr(sampler, name))
            pattern = f" that matches {sampler.pattern.pattern!a}" if sampler.pattern is not None else ""
            one = f"{asked} one" if asked else "one"
            raise ValueError(
                f"{sampler.num_names - self.missing:,} of {sampler.num_names:,} names: no other {one}{pattern} among "
                f"{self.empty * CHUNK:,} drawn; lower num_names, or raise temperature, top_k, top_p or max_length"
            )
        return kept

    def draw(self, number: int, size: int) -> list[str]:
        """Draws the first names of a chunk, at most `CHUNK`."""
        V, T, device = len(self.vocabulary), self.block_size, self.device
        B = min(CHUNK, size)
        start = ([BOUNDARY] * T + self.prompt)[-T:]
        if self.looks_up:
            context = torch.full((B,), sum(x * V**t for t, x in enumerate(reversed(start))), device=device)  # numbers
        else:
            context = torch.tensor([start], device=device).repeat(B, 1)  # (alive, T)
        alive = torch.arange(B, device=device)  # the words that have not reached the boundary
        columns = [torch.full((B,), token, device=device) for token in self.prompt]
        while len(columns) < self.sampler.max_length and len(alive):
            # Seeding with a string mixes its numbers well: neighbouring seeds, chunks and positions share nothing.
            seed = random.Random(f"{self.sampler.seed} {number} {len(columns)}").getrandbits(63)
            u = torch.rand(len(alive), generator=torch.Generator().manual_seed(seed)).to(device)
            token, context = self.step(context, u, may_end=len(columns) >= self.sampler.min_length)
            columns.append(torch.zeros(B, dtype=torch.int64, device=device).index_copy_(0, alive, token))
            # The host waits for the device here only: once per character of a chunk.
            unfinished = token.nonzero()[:, 0]
            alive, context = alive.index_select(0, unfinished), context.index_select(0, unfinished)
        columns.append(torch.zeros(B, dtype=torch.int64, device=device))
        ids = torch.stack(columns, dim=1).cpu()
        lengths = ids.count_nonzero(dim=1)
        return self.vocabulary.decode_words(ids[torch.arange(ids.shape[1]) <= lengths[:, None]])

    def step(self, context: Tensor, u: Tensor, may_end: bool = True) -> tuple[Tensor, Tensor]:
        """Draws the next character of each word.

        Args:
            context: (B, T) int64, or their numbers (B,) int64 where there is a table.
            u: (B,) uniform random numbers in [0, 1).
            may_end: whether the boundary may come up; not at first, since a list holds no empty words.

        Returns:
            The characters (B,) int64 and the contexts that follow.
        """
        V = len(self.vocabulary)
        parts = zip(*(torch.split(each, rows_at_once(V, CHUNK)) for each in (context, u)), strict=True)
        if self.looks_up:
            token = torch.cat([invert(F.embedding(x, self.table(may_end)), part) for x, part in parts])
            return token, (context * V + token) % self.contexts
        token = torch.cat([invert(self.cdf(x, may_end), part) for x, part in parts])
        return token, torch.cat([context[:, 1:], token[:, None]], dim=1)

    def names(self) -> Iterator[str]:
        """Draws all names, one after the other."""
        for number in takewhile(lambda _: self.missing, self.sampler):
            yield from self.chunk(number)


def invert(cdf: Tensor, u: Tensor) -> Tensor:
    """Looks up which characters (B,) uniform numbers u (B,) fall on in cumulative distributions (B, V)."""
    # A u close to 1 may round up to the total: then take the last character with a probability above 0.
    target = torch.minimum(u * cdf[:, -1], torch.nextafter(cdf[:, -1], torch.zeros_like(u)))
    return torch.searchsorted(cdf, target[:, None], right=True)[:, 0]


@torch.no_grad()
def score_words(
    words: Sequence[str],
    next_logits: NextLogits,
    vocabulary: Vocabulary,
    block_size: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Computes the log-probability of each word: of all its characters and of its end.

    Words are put into small letters if the vocabulary has no others.

    Args:
        words: any number N of words.
        next_logits: contexts (B, T) int64 -> logits (B, V).
        vocabulary: of the V tokens.
        block_size: T.
        device: where `next_logits` computes.

    Returns:
        (N,) float64 natural logarithms, on the CPU.

    Raises:
        ValueError: if a word holds a character that is not in the vocabulary.
    """
    X, Y = build_windows(as_in_list(words, vocabulary, "word"), vocabulary, block_size)
    parts = [torch.zeros(0, dtype=torch.float64)]
    for x, y in zip(*(torch.split(each, rows_at_once(len(vocabulary))) for each in (X, Y)), strict=True):
        logprobs = torch.log_softmax(next_logits(x.to(device)).float(), dim=1)
        parts.append(logprobs.cpu().gather(1, y[:, None])[:, 0].double())
    ends = (Y == BOUNDARY).nonzero()[:, 0]
    sums = torch.cat(parts).cumsum(0)[ends]
    return sums.diff(prepend=torch.zeros(1, dtype=torch.float64))

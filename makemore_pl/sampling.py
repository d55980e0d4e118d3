"""Next-character distributions -> words, and words -> their probability. Any callable that gives logits will do.

Shapes: B words drawn side by side, T block size (context length), V vocabulary size.
"""

import math
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal
from unicodedata import normalize

import torch
import torch.nn.functional as F
from torch import Tensor

from makemore_pl.vocabulary import BOUNDARY, Vocabulary
from makemore_pl.windows import build_windows, rows_at_once

NextLogits = Callable[[Tensor], Tensor]
"""Contexts (B, T) int64 -> logits (B, V): all that a sampler needs of a model."""

SEED = 2147483647  # the notebook's
LONGEST = 100  # characters, where names are cut off: an untrained model may never end one
CHUNK = 2**14  # words drawn side by side, at most; a word depends only on the seed and its place
EMPTY_CHUNKS = 64  # in a row without a name to keep: then the Draw gives up
TABLE_CONTEXTS = 2**16  # up to this number, V**T in all, their distributions are computed once, unless V is large


@dataclass(eq=False)
class Sampler:
    """Draws words character by character until the boundary comes up (makemore part 2, "sampling from the model").

    It holds options only. A Trainer takes it as a loader, of numbers without end: the model knows when it has enough.

    Args:
        num_names: how many names to draw.
        prompt: how every name begins; lowercased if the list has no capitals.
        temperature: divides the logits: below 1, names are more like the list; above 1, more diverse; at 0 each
            character is the likeliest.
        top_k: draw each character only from the N most likely; from all if omitted.
        unique: no duplicates.
        novel: only names that are not in the list.
        pattern: only names that match this regular expression from beginning to end: `.*ette`, `[aeiou].*`; names of
            three to eight characters: `.{3,8}`.
        seed: random seed; the same seed gives the same names, and fewer names are the first of more. `random` takes a
            new one.
        where: names -> the split of each, or `new`: `NamesDataModule.where`, for `novel`.

    Raises:
        ValueError: if an option is out of range, or the pattern is not a regular expression.
    """

    num_names: int = 20
    prompt: str = ""
    temperature: float = 1.0
    top_k: int | None = None
    unique: bool = False
    novel: bool = False
    pattern: str | None = None
    seed: int | Literal["random"] = SEED
    where: Callable[[list[str]], list[str]] | None = None

    def __post_init__(self) -> None:
        if self.num_names < 1:
            raise ValueError(f"num_names is {self.num_names}: expected 1 or more")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature is {self.temperature:g}: expected 0 or more")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}: expected 1 or more")
        self.regex = None if self.pattern is None else compile_pattern(self.pattern)
        if self.seed == "random":
            self.seed = random.SystemRandom().randrange(2**31)

    def __iter__(self) -> Iterator[Any]:
        return count()


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Compiles a regular expression for whole names; a shell's `*ette` and a bare `ette` are told the right form."""
    if pattern == re.escape(pattern):
        raise ValueError(f"pattern {pattern!r} is for the whole name: write '.*{pattern}.*' for a part of it")
    try:
        return re.compile(pattern)
    except (re.error, OverflowError) as error:
        meant = f"; did you mean {pattern.replace('*', '.*')!r}?" if pattern.startswith("*") else ""
        raise ValueError(f"pattern {pattern!r} is not a regular expression: {error}{meant}") from None


class Draw:
    """Draws the words of a sampler: iterating gives lists of names, some of them empty.

    The model is `next_logits`, contexts (B, T) -> logits (B, V), computed on a device.
    """

    def __init__(
        self,
        sampler: Sampler,
        next_logits: NextLogits,
        vocabulary: Vocabulary,
        block_size: int,
        device: torch.device | str = "cpu",
    ) -> None:
        if sampler.novel and sampler.where is None:
            raise ValueError("novel compares names with a list: pass `where`, that of a NamesDataModule")
        try:
            self.prompt = vocabulary.encode(vocabulary.in_its_case(normalize("NFC", sampler.prompt)))
        except ValueError as error:
            raise ValueError(f"prompt {error}") from None
        self.sampler = sampler
        self.next_logits = next_logits
        self.V, self.T = len(vocabulary), block_size
        self.device = device
        self.looks_up = rows_at_once(self.V, TABLE_CONTEXTS) >= self.V**self.T
        self.chunk = rows_at_once(self.V, CHUNK)
        self.tables: dict[bool, Tensor] = {}  # for `may_end`: the distributions of all contexts
        self.code_points = torch.tensor([0, *map(ord, vocabulary.characters)], dtype=torch.int32, device=device)

    def __iter__(self) -> Iterator[list[str]]:
        """Draws chunk by chunk, and yields the names of each that are kept, until there are enough."""
        sampler, missing, empty, seen = self.sampler, self.sampler.num_names, 0, set[str]()
        rejects = sampler.unique or sampler.novel or sampler.regex is not None
        for number in count():
            names = self.draw(number, self.chunk if rejects else min(self.chunk, missing))
            if sampler.regex is not None:
                names = [name for name in names if sampler.regex.fullmatch(name)]
            if sampler.unique:
                names = [name for name in dict.fromkeys(names) if name not in seen]
                seen.update(names)
            if sampler.where is not None and sampler.novel:
                names = [name for name, where in zip(names, sampler.where(names), strict=True) if where == "new"]
            names = names[:missing]
            missing -= len(names)
            yield names
            if not missing:
                return
            empty = 0 if names else empty + 1
            if empty == EMPTY_CHUNKS:
                raise ValueError(
                    f"found {sampler.num_names - missing:,} of {sampler.num_names:,} names, and no other in "
                    f"{empty * self.chunk:,} drawn; lower num_names, raise temperature or top_k, or allow more "
                    "(a pattern is for the whole name, and .* stands for any characters)"
                )

    def draw(self, number: int, B: int) -> list[str]:
        """Draws the first B names of a chunk."""
        device = self.device
        start = ([BOUNDARY] * self.T + self.prompt)[-self.T :]
        context = torch.tensor([start], device=device).repeat(B, 1)
        alive = torch.arange(B, device=device)  # the words that have not reached the boundary
        columns = [self.code_points[token].expand(B) for token in self.prompt]
        while len(columns) < LONGEST and len(alive):
            # Seeding with a string mixes its numbers well: neighbouring seeds, chunks and positions share nothing.
            seed = random.Random(f"{self.sampler.seed} {number} {len(columns)}").getrandbits(63)
            u = torch.rand(len(alive), generator=torch.Generator().manual_seed(seed)).to(device)
            token = self.next(context, u, may_end=len(columns) > 0)  # a list holds no empty words
            columns.append(self.code_points.new_zeros(B).index_copy_(0, alive, self.code_points[token]))
            context = torch.cat([context[:, 1:], token[:, None]], dim=1)
            # The host waits for the device here only: once per character of a chunk.
            unfinished = token.nonzero()[:, 0]
            alive, context = alive.index_select(0, unfinished), context.index_select(0, unfinished)
        # numpy reads a row of code points as a text, without the zeros at its end.
        return torch.stack(columns, dim=1).cpu().numpy().view(f"U{len(columns)}")[:, 0].tolist()

    def next(self, context: Tensor, u: Tensor, may_end: bool = True) -> Tensor:
        """Draws the next characters (B,) after contexts (B, T) by uniform random numbers u (B,) in [0, 1)."""
        if not self.looks_up:
            return invert(self.cdf(context, may_end), u)
        if may_end not in self.tables:
            contexts = torch.cartesian_prod(*[torch.arange(self.V, device=self.device)] * self.T)
            self.tables[may_end] = self.cdf(contexts.view(-1, self.T), may_end)  # (V**T, V)
        row = torch.zeros_like(context[:, 0])
        for column in context.unbind(dim=1):
            row = row * self.V + column
        return invert(F.embedding(row, self.tables[may_end]), u)

    @torch.no_grad()
    def cdf(self, context: Tensor, may_end: bool) -> Tensor:
        """Computes the cumulative distributions (B, V) of the next character after contexts (B, T), up to rounding."""
        logits = self.next_logits(context).to(self.device).float()
        if not may_end:
            logits[:, BOUNDARY].fill_(-torch.inf)
        # 0 keeps only the likeliest; beyond these bounds it would be 0 or infinite in float32.
        temperature = min(max(self.sampler.temperature, 1e-30), 1e30)
        logits = (logits - logits.amax(dim=1, keepdim=True)) / temperature
        if self.sampler.top_k is not None:
            least = logits.topk(min(self.sampler.top_k, self.V)).values[:, -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        return torch.softmax(logits, dim=1).cumsum(dim=1)


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
    """Computes the log-probability of each of N words, of all its characters and of its end.

    Words are put into small letters if the vocabulary has no others.

    Returns:
        (N,) float64 natural logarithms, on the CPU; -inf for a word with a character that is not in the vocabulary.
    """
    words = [vocabulary.in_its_case(word) for word in words]
    known = torch.tensor([vocabulary.stoi.keys() >= set(word) for word in words], dtype=torch.bool)
    X, Y = build_windows([words[i] for i in known.nonzero()[:, 0]], vocabulary, block_size)
    rows, parts = rows_at_once(len(vocabulary)), [torch.zeros(0, dtype=torch.float64)]
    for x, y in zip(torch.split(X, rows), torch.split(Y, rows), strict=True):
        logprobs = torch.log_softmax(next_logits(x.to(device)).float(), dim=1)
        parts.append(logprobs.cpu().gather(1, y[:, None])[:, 0].double())
    scores = torch.full((len(words),), -torch.inf, dtype=torch.float64).masked_fill_(known, 0)
    ends = Y == BOUNDARY
    word = known.nonzero()[ends.cumsum(0) - ends.long(), 0]  # of each window
    return scores.index_add_(0, word, torch.cat(parts))

"""Next-character distributions -> words. Knows no Lightning: any callable that gives logits will do.

Shapes: B words drawn side by side, T block size (context length), V vocabulary size.
"""

import random
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from makemore_pl.vocabulary import BOUNDARY, Vocabulary

NextLogits = Callable[[Tensor], Tensor]
"""Contexts (B, T) int64 -> logits (B, V): what a sampler needs to know of a model."""

CHUNK = 4096
"""Words drawn side by side, and the unit of randomness: a word depends on the seed and on its place, nothing else."""


class Sampler:
    """Draws words character by character until the boundary comes up (makemore part 2, "sampling from the model").

    Args:
        num_names: how many names to draw.
        prompt: how every name begins.
        temperature: divides the logits: below 1 more like the list, above 1 more daring.
        max_length: names are cut off at this many characters.
        seed: the same seed gives the same names, and fewer names are the first of more.

    Raises:
        ValueError: if num_names or max_length is below 1, or temperature is not above 0.
    """

    def __init__(
        self,
        num_names: int = 20,
        prompt: str = "",
        temperature: float = 1.0,
        max_length: int = 100,
        seed: int = 2147483647,
    ) -> None:
        if num_names < 1:
            raise ValueError(f"num_names is {num_names}: expected 1 or more")
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature is {temperature:g}: expected a number above 0")
        if max_length < max(1, len(prompt)):
            raise ValueError(f"max_length is {max_length}: expected 1 or more, and room for the prompt {prompt!r}")
        self.num_names = num_names
        self.prompt = prompt
        self.temperature = temperature
        self.max_length = max_length
        self.seed = seed

    def __len__(self) -> int:
        """The number of chunks that make up all names."""
        return -(-self.num_names // CHUNK)

    def __iter__(self) -> Iterator[tuple["Sampler", int]]:
        """Gives (sampler, chunk) for each chunk: what a Trainer hands to `predict_step`."""
        return ((self, chunk) for chunk in range(len(self)))

    @torch.no_grad()
    def draw(
        self,
        chunk: int,
        next_logits: NextLogits,
        vocabulary: Vocabulary,
        block_size: int,
        device: torch.device | str = "cpu",
    ) -> list[str]:
        """Draws one chunk of names.

        Args:
            chunk: which one, from 0; each can be drawn alone, in any order, on any device.
            next_logits: contexts (B, T) int64 -> logits (B, V).
            vocabulary: of the V tokens.
            block_size: T.
            device: where `next_logits` computes.

        Returns:
            At most `CHUNK` names.

        Raises:
            ValueError: if the prompt holds a character that the vocabulary does not.
        """
        try:
            prompt = vocabulary.encode(self.prompt)
        except ValueError as error:
            raise ValueError(f"prompt {error}: {vocabulary.characters!r}") from None
        B = min(CHUNK, self.num_names - chunk * CHUNK)

        # A string as the seed mixes its two numbers well: neighbouring seeds and chunks share nothing.
        generator = torch.Generator().manual_seed(random.Random(f"{self.seed} {chunk}").getrandbits(63))
        start = ([BOUNDARY] * block_size + prompt)[-block_size:]
        context = torch.tensor([start], device=device).repeat(B, 1)  # (alive, T)
        alive = torch.arange(B)  # the rows that have not met the boundary
        ids = torch.full((B, self.max_length + 1), BOUNDARY)
        ids[:, : len(prompt)] = torch.tensor(prompt, dtype=torch.int64)
        for position in range(len(prompt), self.max_length):
            # As many draws as a full chunk takes, so that a name does not depend on how many are asked for.
            u = torch.rand(CHUNK, generator=generator)[alive].to(device)
            logits = next_logits(context).float() / self.temperature  # (alive, V)
            if position == 0:
                logits[:, BOUNDARY] = -torch.inf  # a list holds no empty words, and neither does what we draw
            cdf = torch.softmax(logits, dim=1).cumsum(dim=1)
            token = torch.searchsorted(cdf, (u * cdf[:, -1])[:, None], right=True)  # (alive, 1)
            token = token.clamp(max=len(vocabulary) - 1)  # u * total may round up to total
            ids[alive, position] = token[:, 0].cpu()
            goes_on = token[:, 0] != BOUNDARY
            context = torch.cat([context[:, 1:], token], dim=1)[goes_on]
            alive = alive[goes_on.cpu()]
            if len(alive) == 0:
                break
        lengths = (ids != BOUNDARY).sum(dim=1, keepdim=True)
        return vocabulary.decode_words(ids[torch.arange(ids.shape[1]) <= lengths])

    def names(
        self, next_logits: NextLogits, vocabulary: Vocabulary, block_size: int, device: torch.device | str = "cpu"
    ) -> Iterator[str]:
        """Draws all names, one after the other; the arguments are those of `draw`."""
        for _, chunk in self:
            yield from self.draw(chunk, next_logits, vocabulary, block_size, device)

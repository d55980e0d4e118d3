"""A network, counting, their mixture and chance, over the same windows. Knows no Lightning.

Shapes: B and M distinct contexts, T block size (context length), V vocabulary size.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from makemore_pl.ngram import NGram
from makemore_pl.sampling import NextLogits
from makemore_pl.windows import align_counts

Counted = tuple[Tensor, Tensor]
"""Contexts (M, T) int64 and how often each character came next (M, V) int64, as `count_windows` returns them."""

CONTEXTS_AT_ONCE = 2**15
"""Contexts predicted at a time."""


@dataclass(frozen=True)
class Score:
    """How well next characters were predicted.

    Args:
        loss: the mean negative log likelihood, natural.
        top1: the share of next characters that were predicted as the likeliest.
        top5: the share that were among the five likeliest.
    """

    loss: float
    top1: float
    top5: float

    @property
    def perplexity(self) -> float:
        """exp(loss): the number of equally likely characters with the same loss."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def bits_per_character(self) -> float:
        """The loss to base 2."""
        return self.loss / math.log(2)


class Mixture:
    """The probabilities of two predictors, mixed (Bengio et al. 2003, section 4.2, where the other is a trigram).

    Args:
        first: contexts (B, T) int64 -> logits (B, V).
        second: the same.
        weight: the share of the first.
    """

    def __init__(self, first: NextLogits, second: NextLogits, weight: float) -> None:
        self.first, self.second, self.weight = first, second, weight

    def __call__(self, context: Tensor) -> Tensor:
        """Computes the logarithms of the mixed probabilities, (B, V) float64."""
        first, second = log_probabilities(self.first, context), log_probabilities(self.second, context)
        # log(w p + (1 - w) q) from log p and log q: a probability may be too small for a float.
        weight = torch.tensor([self.weight, 1 - self.weight], dtype=torch.float64).log()
        return torch.logaddexp(first + weight[0], second + weight[1])


class Comparison:
    """A network, Kneser-Ney over its training windows, and the two mixed.

    Args:
        network: contexts (B, T) int64 -> logits (B, V).
        train: the training windows of the network, to count; None to omit counting.
        val: the windows to choose the weight of the mixture on; None to omit the mixture.
    """

    def __init__(self, network: NextLogits, train: Counted | None, val: Counted | None) -> None:
        self.predictors = {"network": network}
        self.weight: float | None = None  # of the network in the mixture
        if train is None:
            return
        counting = self.predictors["Kneser-Ney"] = NGram(*train)
        if val is not None:
            self.weight = best_weight(network, counting, val)
            mixture = Mixture(network, counting, self.weight)
            self.predictors[f"mixed, {self.weight:.2f} of the network"] = mixture

    def score(self, *counted: Counted) -> dict[str, list[Score]]:
        """Scores each predictor, and the uniform distribution, on sets of windows: its name -> a score for each set."""
        scores = {name: measure(predictor, *counted) for name, predictor in self.predictors.items()}
        V = counted[0][1].shape[1]
        return scores | {"uniform": [Score(math.log(V), 1 / V, min(5, V) / V)] * len(counted)}


def log_probabilities(predictor: NextLogits, context: Tensor) -> Tensor:
    """Computes the logarithms of the probabilities of the next character, (B, V) float64 on the CPU."""
    return torch.log_softmax(predictor(context).cpu().double(), dim=1)


@torch.no_grad()
def measure(predictor: NextLogits, *counted: Counted) -> list[Score]:
    """Scores a predictor on sets of windows; each context is predicted once."""
    X, counts = align_counts(*counted)
    sums = torch.zeros(len(counted), 3, dtype=torch.float64)
    for part in range(0, len(X), CONTEXTS_AT_ONCE):
        rows = slice(part, part + CONTEXTS_AT_ONCE)
        log_p = log_probabilities(predictor, X[rows])
        likeliest = log_p.topk(min(5, log_p.shape[1]), dim=1).indices
        for total, Y in zip(sums, counts, strict=True):
            nll, hits = cross_entropy(log_p, Y[rows]), Y[rows].gather(1, likeliest)
            total += torch.stack([nll, hits[:, 0].sum().double(), hits.sum().double()])
    return [Score(*(total / Y.sum()).tolist()) for total, Y in zip(sums, counts, strict=True)]


def cross_entropy(log_p: Tensor, counts: Tensor) -> Tensor:
    """Sums the negative log likelihoods. A count of 0 adds 0, even if the log-probability is minus infinity."""
    return -torch.where(counts > 0, counts * log_p, 0.0).sum()


def entropy(counts: Tensor) -> float:
    """Computes the conditional entropy of next characters (M, V) given their contexts.

    It is the floor: no predictor from these contexts has a smaller mean loss on them.
    """
    log_p = (counts.double() / counts.sum(dim=1, keepdim=True)).log()
    return float(cross_entropy(log_p, counts) / counts.sum())


@torch.no_grad()
def best_weight(first: NextLogits, second: NextLogits, counted: Counted) -> float:
    """Finds the share of the first predictor in the mixture with the smallest loss, by expectation maximisation.

    No step increases the loss, which is convex in the share and so has one minimum.
    """
    X, counts = counted
    row, y = counts.nonzero(as_tuple=True)
    n = counts[row, y].double()

    def log_likelihoods(predictor: NextLogits) -> Tensor:
        parts = [log_probabilities(predictor, x) for x in torch.split(X, CONTEXTS_AT_ONCE)]
        return torch.cat(parts)[row, y]

    ratio, weight = (log_likelihoods(second) - log_likelihoods(first)).exp(), 0.5
    for _ in range(200):
        before, weight = weight, float((n / (1 + (1 / weight - 1) * ratio)).sum() / n.sum())
        if abs(weight - before) < 1e-6 or weight < 1e-6:
            break
    return weight


def show(scores: dict[str, list[Score]], sets: Sequence[str]) -> str:
    """Formats scores as a table, a block for each set."""
    blocks = []
    for place, name in enumerate(sets):
        lines = [f"{name:30}{'loss':>8}{'perplexity':>12}{'bits':>8}{'top 1':>8}{'top 5':>8}"]
        for predictor, its_scores in scores.items():
            score = its_scores[place]
            lines.append(
                f"{predictor:30}{score.loss:8.4f}{score.perplexity:12.2f}{score.bits_per_character:8.3f}"
                f"{score.top1:8.1%}{score.top5:8.1%}"
            )
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)

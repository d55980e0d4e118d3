"""A network, counting, their mixture and chance, over the same windows. Knows no Lightning.

Shapes: B contexts, P distinct pairs of a context and the character that came next, T block size (context length),
V vocabulary size.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from makemore_pl.ngram import NGram
from makemore_pl.sampling import NextLogits
from makemore_pl.windows import Counts, align_counts, rows_at_once


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
        return mix(log_probabilities(self.first, context), log_probabilities(self.second, context), self.weight)


class Comparison:
    """A network, Kneser-Ney over its training windows, and the two mixed.

    Args:
        network: contexts (B, T) int64 -> logits (B, V).
        train: the training windows of the network, to count; None to omit counting.
        val: the windows to choose the weight of the mixture on; None to omit the mixture.
    """

    def __init__(self, network: NextLogits, train: Counts | None, val: Counts | None) -> None:
        self.predictors = {"network": network}
        self.weight: float | None = None  # of the network in the mixture
        if train is None:
            return
        counting = self.predictors["Kneser-Ney"] = NGram(train)
        if val is not None:
            self.weight = best_weight(network, counting, val)
            mixture = Mixture(network, counting, self.weight)
            self.predictors[f"mixed, {self.weight:.2f} of the network"] = mixture

    def losses(self, *counted: Counts) -> dict[str, list[float]]:
        """Computes the losses of the predictors on sets of windows, in less time than `score`."""
        sets = align_counts(*counted)
        found = [log_likelihoods(predictor, sets[0]) for predictor in list(self.predictors.values())[:2]]
        if self.weight is not None:
            found.append(mix(found[0], found[1], self.weight))
        return {
            name: [mean_nll(log_p, own.n) for own in sets] for name, log_p in zip(self.predictors, found, strict=True)
        }

    def score(self, *counted: Counts) -> dict[str, list[Score]]:
        """Scores each predictor, and the uniform distribution, on sets of windows: its name -> a score for each set."""
        scores = {name: measure(predictor, *counted) for name, predictor in self.predictors.items()}
        V = counted[0].vocab_size
        return scores | {"uniform": [Score(math.log(V), 1 / V, min(5, V) / V)] * len(counted)}


def log_probabilities(predictor: NextLogits, context: Tensor) -> Tensor:
    """Computes the logarithms of the probabilities of the next character, (B, V) float64 on the CPU."""
    return torch.log_softmax(predictor(context).cpu().double(), dim=1)


def mix(first: Tensor, second: Tensor, weight: float) -> Tensor:
    """Computes log(w p + (1 - w) q) from log p and log q of any shape: a probability may be too small for a float."""
    shares = torch.tensor([weight, 1 - weight], dtype=torch.float64).log()
    return torch.logaddexp(first + shares[0], second + shares[1])


@torch.no_grad()
def measure(predictor: NextLogits, *counted: Counts) -> list[Score]:
    """Scores a predictor on sets of windows; each context is predicted once."""
    sets = align_counts(*counted)
    every, sums = sets[0], torch.zeros(len(counted), 3, dtype=torch.float64)
    for start, stop in parts(every):
        log_p, pairs = log_probabilities(predictor, every.contexts[start:stop]), every.pairs(start, stop)
        row, y = every.row[pairs] - start, every.y[pairs]
        hit = log_p.topk(min(5, log_p.shape[1]), dim=1).indices[row] == y[:, None]
        for total, own in zip(sums, sets, strict=True):
            n = own.n[pairs]
            nll, hits = sum_nll(log_p[row, y], n), (n[:, None] * hit).sum(dim=0)
            total += torch.stack([nll, hits[0].double(), hits.sum().double()])
    return [Score(*(total / own.n.sum()).tolist()) for total, own in zip(sums, sets, strict=True)]


@torch.no_grad()
def log_likelihoods(predictor: NextLogits, counts: Counts) -> Tensor:
    """Computes the log-probability of each pair of a context and the character that came next, (P,) float64."""
    if isinstance(predictor, NGram):
        return predictor.log_likelihoods(counts.contexts[counts.row], counts.y)
    # Made beforehand: a list of small results, each beside large temporary ones, would leave memory in pieces.
    found = torch.empty(len(counts.n), dtype=torch.float64)
    for start, stop in parts(counts):
        pairs = counts.pairs(start, stop)
        log_p = log_probabilities(predictor, counts.contexts[start:stop])
        found[pairs] = log_p[counts.row[pairs] - start, counts.y[pairs]]
    return found


def loss(predictor: NextLogits, counts: Counts) -> float:
    """Computes the mean negative log likelihood of what came next."""
    return mean_nll(log_likelihoods(predictor, counts), counts.n)


def parts(counts: Counts) -> list[tuple[int, int]]:
    """Lists where each part of the contexts starts and stops: as many as are predicted at a time."""
    size = rows_at_once(counts.vocab_size)
    return [(start, min(start + size, len(counts))) for start in range(0, len(counts), size)]


def sum_nll(log_p: Tensor, n: Tensor) -> Tensor:
    """Sums the negative log likelihoods of pairs (P,) that came n times; an impossible one that never came adds 0."""
    return -torch.where(n > 0, n * log_p, 0.0).sum()


def mean_nll(log_p: Tensor, n: Tensor) -> float:
    """Computes the loss from the log-probabilities of pairs (P,) that came n times."""
    return float(sum_nll(log_p, n) / n.sum())


def entropy(counts: Counts) -> float:
    """Computes the conditional entropy of next characters given their contexts.

    It is the floor: no predictor from these contexts has a smaller mean loss on them.
    """
    return mean_nll((counts.n.double() / counts.totals()[counts.row]).log(), counts.n)


@torch.no_grad()
def best_weight(first: NextLogits, second: NextLogits, counts: Counts) -> float:
    """Finds the share of the first predictor in the mixture with the smallest loss.

    The loss is convex in the share, so its slope rises, and is zero at one place: halved down to it.
    """
    log_p, log_q = (log_likelihoods(predictor, counts) for predictor in (first, second))
    highest = torch.maximum(log_p, log_q)
    p, q = (log_p - highest).exp(), (log_q - highest).exp()
    low, high = 0.0, 1.0
    for _ in range(40):
        weight = (low + high) / 2
        falls = (counts.n * (p - q) / (weight * p + (1 - weight) * q)).sum() > 0
        low, high = (weight, high) if falls else (low, weight)
    return (low + high) / 2


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

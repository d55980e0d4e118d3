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


def perplexity(loss: float) -> float:
    """exp(loss): the number of equally likely characters with the same loss."""
    return math.exp(loss) if loss < 700 else math.inf


@dataclass(frozen=True)
class Mixture:
    """The probabilities of two predictors, mixed (Bengio et al. 2003, section 4.2, where the other is a trigram).

    Args:
        first: contexts (B, T) int64 -> logits (B, V).
        second: the same.
        weight: the share of the first.
    """

    first: NextLogits
    second: NextLogits
    weight: float

    def __call__(self, context: Tensor) -> Tensor:
        """Computes the logarithms of the mixed probabilities, (B, V) float64."""
        # As logarithms, since a probability may be too small for a float.
        shares = torch.tensor([self.weight, 1 - self.weight], dtype=torch.float64).log()
        first, second = (log_probabilities(each, context) for each in (self.first, self.second))
        return torch.logaddexp(first + shares[0], second + shares[1])


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
        if train is not None:
            counting = self.predictors["Kneser-Ney"] = NGram(train)
            if val is not None:
                self.weight = best_weight(network, counting, val)
                mixture = Mixture(network, counting, self.weight)
                self.predictors[f"mixture ({100 * self.weight:.0f} % network)"] = mixture

    def losses(self, *counted: Counts) -> dict[str, list[float]]:
        """Computes the losses of the predictors on sets of windows: the name of each -> a loss for each set."""
        return {name: [each.loss for each in measure(it, *counted)] for name, it in self.predictors.items()}

    def score(self, *counted: Counts) -> dict[str, list[Score]]:
        """Scores the predictors, and the uniform distribution: the name of each -> a score for each set."""
        scores = {name: measure(it, *counted) for name, it in self.predictors.items()}
        V = counted[0].vocab_size
        return scores | {"uniform": [Score(math.log(V), 1 / V, min(5, V) / V)] * len(counted)}


def log_probabilities(predictor: NextLogits, context: Tensor) -> Tensor:
    """Computes the logarithms of the probabilities of the next character, (B, V) float64 on the CPU."""
    return torch.log_softmax(predictor(context).cpu().double(), dim=1)


@torch.no_grad()
def look_up(predictor: NextLogits, counts: Counts) -> tuple[Tensor, Tensor]:
    """Predicts each context, and looks up the characters that came next.

    Returns:
        Their log-probabilities, (P,) float64; and whether each is the likeliest, ... the fifth, (P, 5) bool.
    """
    log_p, hits = [], []
    size = rows_at_once(counts.vocab_size)
    for start in range(0, len(counts), size):
        pairs = counts.pairs(start, min(start + size, len(counts)))
        row, y = counts.row[pairs] - start, counts.y[pairs]
        predicted = log_probabilities(predictor, counts.contexts[start : start + size])
        log_p.append(predicted[row, y])
        hits.append(predicted.topk(min(5, counts.vocab_size)).indices[row] == y[:, None])
    return torch.cat(log_p), torch.cat(hits)


def measure(predictor: NextLogits, *counted: Counts) -> list[Score]:
    """Scores a predictor on sets of windows; each context is predicted once."""
    sets = align_counts(*counted)
    log_p, hits = look_up(predictor, sets[0])
    scores = []
    for n in (own.n for own in sets):
        top1, top5 = ((n * hit).sum().item() / n.sum().item() for hit in (hits[:, 0], hits.any(dim=1)))
        scores.append(Score(mean_nll(log_p, n), top1, top5))
    return scores


def loss(predictor: NextLogits, counts: Counts) -> float:
    """Computes the mean negative log likelihood of what came next."""
    return mean_nll(look_up(predictor, counts)[0], counts.n)


def mean_nll(log_p: Tensor, n: Tensor) -> float:
    """Computes the loss from the log-probabilities of pairs (P,) that came n times."""
    # An impossible pair that never came adds 0.
    return -torch.where(n > 0, n * log_p, 0.0).sum().item() / n.sum().item()


def entropy(counts: Counts) -> float:
    """Computes the conditional entropy of next characters given their contexts.

    It is the floor: no predictor from these contexts has a smaller mean loss on them.
    """
    return mean_nll((counts.n.double() / counts.totals()[counts.row]).log(), counts.n)


def best_weight(first: NextLogits, second: NextLogits, counts: Counts) -> float:
    """Finds the share of the first predictor in the mixture with the smallest loss.

    The loss is convex in the share, so its slope rises, and is zero at one place: halved down to it.
    """
    log_p, log_q = (look_up(predictor, counts)[0] for predictor in (first, second))
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
        lines = [f"{name:30}{'loss':>8}{'perplexity':>12}{'top 1':>8}{'top 5':>8}"]
        for predictor, its_scores in scores.items():
            s = its_scores[place]
            lines.append(f"{predictor:30}{s.loss:8.4f}{perplexity(s.loss):12.2f}{s.top1:8.1%}{s.top5:8.1%}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)

"""A network, counting and their mixture over the same windows. Knows no Lightning.

Shapes: B contexts, P distinct pairs of a context and the character that came next, T block size (context length),
V vocabulary size.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from makemore_pl.ngram import NGram
from makemore_pl.sampling import NextLogits
from makemore_pl.windows import Counts, rows_at_once


def perplexity(loss: float) -> float:
    """exp(loss): the number of equally likely characters with the same loss."""
    return math.exp(loss) if loss < 700 else math.inf


@dataclass(frozen=True)
class Mixture:
    """Two predictors, the first with a weight (Bengio et al. 2003, section 4.2, where the second is a trigram)."""

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
    """A network, Kneser-Ney over its training windows, and the two mixed in the shares that are best on val."""

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
        return {name: [loss(predictor, each) for each in counted] for name, predictor in self.predictors.items()}


def log_probabilities(predictor: NextLogits, context: Tensor) -> Tensor:
    """Computes the logarithms of the probabilities of the next character, (B, V) float64 on the CPU."""
    return torch.log_softmax(predictor(context).cpu().double(), dim=1)


@torch.no_grad()
def look_up(predictor: NextLogits, counts: Counts) -> Tensor:
    """Predicts each context, and looks up the log-probabilities of the characters that came next: (P,) float64."""
    found, size = [], rows_at_once(counts.vocab_size)
    for start in range(0, len(counts), size):
        pairs = counts.pairs(start, min(start + size, len(counts)))
        predicted = log_probabilities(predictor, counts.contexts[start : start + size])
        found.append(predicted[counts.row[pairs] - start, counts.y[pairs]])
    return torch.cat(found)


def loss(predictor: NextLogits, counts: Counts) -> float:
    """Computes the mean negative log likelihood of what came next."""
    return -(counts.n * look_up(predictor, counts)).sum().item() / counts.n.sum().item()


def best_weight(first: NextLogits, second: NextLogits, counts: Counts) -> float:
    """Finds the share of the first predictor in the mixture with the smallest loss.

    The loss is convex in the share, so bisection on its slope finds it.
    """
    log_p, log_q = (look_up(predictor, counts) for predictor in (first, second))
    highest = torch.maximum(log_p, log_q)
    p, q = (log_p - highest).exp(), (log_q - highest).exp()
    low, high = 0.0, 1.0
    for _ in range(40):
        weight = (low + high) / 2
        falls = (counts.n * (p - q) / (weight * p + (1 - weight) * q)).sum() > 0
        low, high = (weight, high) if falls else (low, weight)
    return (low + high) / 2

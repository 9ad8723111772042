"""Analysis of embeddings: effective rank, similarity to other embeddings, linear probes."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def effective_rank(x: Floats) -> float:
    """Return the number of directions that the rows of ``x`` really use, about their mean.

    The exponential of the entropy of the singular values, divided by their sum (Roy and Vetterli,
    EUSIPCO 2007): k for k directions of equal size, and 0 for rows that are all the same.

    Args:
        x: (rows, dim).
    """
    values = np.linalg.svd(x - x.mean(0), compute_uv=False)
    if values[0] <= 1e-12 * np.abs(x).max():
        return 0.0
    shares = values[values > 0] / values.sum()
    return float(np.exp(-np.sum(shares * np.log(shares))))


def linear_cka(x: Floats, y: Floats) -> float:
    """Return the linear centred kernel alignment of two embeddings of the same rows, 0 to 1.

    ‖Yᵀ X‖² / (‖Xᵀ X‖ ‖Yᵀ Y‖) of centred columns, Frobenius norms (Kornblith et al. 2019,
    arXiv:1905.00414). It does not notice rotations, shifts and a common factor.

    Args:
        x: (rows, dim).
        y: (rows, dim of its own).

    Raises:
        ValueError: The rows of one of them are all the same.
    """
    x, y = x - x.mean(0), y - y.mean(0)
    norms = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    if norms == 0:
        raise ValueError("Rows that are all the same are like nothing: CKA is undefined.")
    return float(np.linalg.norm(y.T @ x) ** 2 / norms)


class Probe(NamedTuple):
    """A linear classifier of embeddings."""

    mean: Floats
    """(dim) of the rows it was fitted to."""
    scale: Floats
    """(dim) their standard deviation."""
    weights: Floats
    """(dim + 1, classes), the last row for a constant."""

    def predict(self, x: Floats) -> Ints:
        """Return the class of each row of ``x`` (rows, dim)."""
        found: Ints = np.argmax(_features(x, self.mean, self.scale) @ self.weights, axis=1)
        return found


def _features(x: Floats, mean: Floats, scale: Floats) -> Floats:
    """Return standardised columns and one of ones, (rows, dim + 1)."""
    return np.column_stack([(x - mean) / scale, np.ones(len(x))])


def fit_probe(x: Floats, classes: Ints, penalty: float = 1e-3) -> Probe:
    """Fit a multinomial logistic regression in which every class counts the same.

    Args:
        x: (rows, dim) embeddings.
        classes: (rows) numbers 0 to n − 1, each of which occurs.
        penalty: Half of it times the sum of squared weights, the constants left out, is added to
            the mean negative log-likelihood.

    Raises:
        ValueError: A class does not occur, or there is only one.
    """
    counts = np.bincount(classes)
    if len(counts) < 2 or not counts.all():
        raise ValueError(
            f"The classes 0 to {len(counts) - 1} occur {counts.tolist()} times; a probe needs two "
            "or more, and rows of each."
        )
    scale = x.std(0)
    scale = np.where(scale > 1e-12, scale, 1.0)
    features = _features(x, x.mean(0), scale)
    shares = 1 / (len(counts) * counts[classes])
    target = np.zeros((len(x), len(counts)))
    target[np.arange(len(x)), classes] = shares

    def loss(flat: Floats) -> tuple[float, Floats]:
        weights = flat.reshape(-1, len(counts))
        log_p = log_softmax(features @ weights, axis=1)
        shrunk = np.vstack([penalty * weights[:-1], np.zeros((1, len(counts)))])
        gradient = features.T @ (np.exp(log_p) * shares[:, None] - target) + shrunk
        return -np.sum(target * log_p) + 0.5 * np.sum(shrunk * weights), gradient.ravel()

    start = np.zeros(features.shape[1] * len(counts))
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 300}).x
    return Probe(x.mean(0), scale, found.reshape(-1, len(counts)))


def balanced_accuracy(predicted: Ints, classes: Ints) -> float:
    """Return the mean over the classes of the share of their rows that is recognised.

    Guessing, or naming the commonest class, has 1 over the number of classes.
    """
    shares = [np.mean(predicted[classes == k] == k) for k in np.unique(classes)]
    return float(np.mean(shares))

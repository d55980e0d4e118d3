"""Where points and their labels lie in a plane.

Needs no Lightning. Shapes: V vocabulary size, E embedding dimension, N points.
"""

import numpy as np
import torch
from torch import Tensor


def flatten(C: Tensor, near: Tensor | None = None) -> tuple[Tensor, float]:
    """Projects embeddings to two dimensions: by principal components if they have more, else unchanged.

    Args:
        C: (V, E).
        near: (V, 2), the points of the previous picture. The signs and the rotation of principal components are
            arbitrary, so pictures of one run would jump; the points are rotated and mirrored to lie nearest to these.

    Returns:
        (V, 2), and their share of the variance.
    """
    if C.shape[1] <= 2:
        return torch.cat([C, C.new_zeros(len(C), 2 - C.shape[1])], dim=1), 1.0
    centred = C - C.mean(dim=0)
    U, S, _ = torch.linalg.svd(centred, full_matrices=False)
    points = U[:, :2] * S[:2]
    if near is None:
        points *= points.gather(0, points.abs().argmax(dim=0, keepdim=True)).sign()  # the furthest letter is positive
    else:
        P, _, Q = torch.linalg.svd(points.T @ (near - near.mean(dim=0)))  # orthogonal Procrustes
        points = points @ P @ Q
    variance = S.square()
    return points, float(variance[:2].sum() / variance.sum()) if variance.any() else 1.0


def move_apart(xy: np.ndarray, disc: float) -> np.ndarray:
    """Moves overlapping discs apart until they can be read: (N, 2) -> (N, 2)."""
    xy = xy.copy()
    for _ in range(20):
        gap = xy[:, None] - xy
        distance = np.hypot(*gap.T).T
        first, second = np.nonzero(np.triu(distance < 0.95 * disc, 1))
        if not len(first):
            break
        turn = first + second  # equal points have no direction of their own
        some = np.stack([np.cos(turn), np.sin(turn)], axis=1)
        near = np.maximum(distance[first, second, None], 1e-9)
        push = np.where(near > 1e-6, gap[first, second] / near, some) * (disc - near) / 2
        np.add.at(xy, first, push)
        np.add.at(xy, second, -push)
    return xy


def uncovered(xy: np.ndarray, box: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """Chooses the labels that cover none that was chosen before.

    Args:
        xy: (N, 2) their middles, the most important first.
        box: (N, 2) their widths and heights.
        fixed: (N,) bool, those that are chosen in any case.

    Returns:
        (N,) bool.
    """
    chosen = fixed.copy()
    for i in np.flatnonzero(~fixed):
        covers = (np.abs(xy[chosen] - xy[i]) < (box[chosen] + box[i]) / 2).all(axis=1)
        chosen[i] = not covers.any()
    return chosen

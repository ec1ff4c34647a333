r"""The best projection of a bond to a lower dimension in its environment.

With :math:`Y_{kl,mn} = \langle W_{kl}, W_{mn}\rangle`, a matrix M on the bond changes the weight by the squared norm
:math:`\sum (1 - M)_{kl} Y_{kl,mn} (1 - M)_{mn}`. It is minimised over :math:`M = U V^\top` with r columns by
alternating least squares (full-environment truncation), which begin at the product of Gram matrices that is nearest to
Y. Where Y is that product, as on trees in the Frobenius norm, this is the truncated Schmidt decomposition already.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .._typing import Float

_SWEEPS = 30
_LEAST = 1e-9  # relative improvement of a sweep
_RIDGE = 1e-13  # of directions that the environment does not see


@dataclass(frozen=True, kw_only=True)
class Projection:
    """Two factors of a matrix on a bond, and what they cost.

    Parameters
    ----------
    factors : tuple of array, (dim, r) and (r, dim)
    loss : float
        The squared norm of the change of the weight.
    """

    factors: tuple[Float[np.ndarray, "dim r"], Float[np.ndarray, "r dim"]]
    loss: float


def schmidt_projection(r_a: Float[np.ndarray, "p dim"], r_b: Float[np.ndarray, "q dim"], rank: int) -> Projection:
    r"""Keep the largest Schmidt components, for the triangular factors of both sides.

    With :math:`R_A R_B^\top = u s v^\top`, the matrix is :math:`R_B^\top v_r s_r^{-1} u_r^\top R_A`.
    """
    u, s, vt = np.linalg.svd(r_a @ r_b.T, full_matrices=False)
    kept = min(rank, int((s > 1e-15 * s[0]).sum())) if s.size and s[0] > 0.0 else 0
    root = np.zeros(rank)
    root[:kept] = s[:kept] ** -0.5
    columns = min(rank, len(s))
    first, second = np.zeros((r_a.shape[1], rank)), np.zeros((rank, r_b.shape[1]))
    first[:, :columns] = r_b.T @ vt[:columns].T * root[:columns]
    second[:columns] = root[:columns, None] * (u[:, :columns].T @ r_a)
    return Projection(factors=(first, second), loss=float((s[rank:] ** 2).sum()))


def nearest_product(
    y: Float[np.ndarray, "k l m n"],
) -> tuple[Float[np.ndarray, "dim dim"], Float[np.ndarray, "dim dim"]]:
    """Return triangular factors of both sides of the product of Gram matrices that is nearest to an environment."""
    d = y.shape[0]
    u, s, vt = np.linalg.svd(y.transpose(0, 2, 1, 3).reshape(d * d, d * d))
    grams = [x.reshape(d, d) for x in (u[:, 0], s[0] * vt[0])]
    sign = 1.0 if np.trace(grams[0]) >= 0.0 else -1.0
    factors: list[np.ndarray] = []
    for gram in grams:
        values, vectors = np.linalg.eigh(sign * (gram + gram.T) / 2.0)
        factors.append(np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T)
    return factors[0], factors[1]


def environment_projection(y: Float[np.ndarray, "k l m n"], rank: int) -> Projection:
    """Find the least change of the weight over matrices of a rank."""
    d = y.shape[0]
    left, right = schmidt_projection(*nearest_product(y), rank).factors
    identity = np.eye(d)
    ridge = _RIDGE * max(float(np.einsum("klkl->", y)) / d, 1e-300)
    target = np.einsum("klmm->kl", y)
    loss = cost(y, left @ right)
    for _ in range(_SWEEPS):
        gram = np.einsum("al,klmn,bn->kamb", right, y, right, optimize=True).reshape(d * rank, d * rank)
        left = _solved(gram, (target @ right.T).reshape(-1), ridge).reshape(d, rank)
        gram = np.einsum("ka,klmn,mb->albn", left, y, left, optimize=True).reshape(rank * d, rank * d)
        right = _solved(gram, (left.T @ target).reshape(-1), ridge).reshape(rank, d)
        before, loss = loss, cost(y, left @ right)
        if before - loss <= _LEAST * before:
            break
    scale = np.sqrt(max(float(np.linalg.norm(right)), 1e-300) / max(float(np.linalg.norm(left)), 1e-300))
    whole = max(cost(y, np.zeros_like(identity)), 0.0)
    return Projection(factors=(left * scale, right / scale), loss=min(max(loss, 0.0), whole))


def cost(y: Float[np.ndarray, "k l m n"], matrix: Float[np.ndarray, "dim dim"]) -> float:
    """Return the squared norm of the change of the weight by a matrix on the bond."""
    change = np.eye(len(matrix)) - matrix
    return float(np.einsum("kl,klmn,mn->", change, y, change, optimize=True))


def _solved(gram: Float[np.ndarray, "n n"], target: Float[np.ndarray, " n"], ridge: float) -> Float[np.ndarray, " n"]:
    return np.linalg.lstsq(gram + ridge * np.eye(len(gram)), target, rcond=1e-14)[0]

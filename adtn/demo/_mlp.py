"""A multilayer perceptron with one generated layer, forward and backward, written once for all backends."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from autoray import do

from .._typing import Array, Params
from ..optim import Task
from ._data import Images


@dataclass(frozen=True)
class MLP:
    """A ReLU network with cross-entropy loss, in which the weight of one layer is an argument.

    Parameters
    ----------
    sizes : tuple of int
        Units per layer, input and output included.
    replaced : int
        Index of the generated layer; layer ``l`` maps ``sizes[l]`` to ``sizes[l + 1]``.
    """

    sizes: tuple[int, ...]
    replaced: int

    @property
    def depth(self) -> int:
        """The number of layers."""
        return len(self.sizes) - 1

    @property
    def generated_shape(self) -> tuple[int, int]:
        """The shape ``(n_out, n_in)`` of the generated weight."""
        return self.sizes[self.replaced + 1], self.sizes[self.replaced]

    def initial(self, seed: int) -> dict[str, np.ndarray]:
        """Draw uniform weights of standard deviation ``1 / sqrt(3 n_in)``, as in ``nn.Linear``, with zero biases."""
        params: dict[str, np.ndarray] = {}
        for layer, (n_in, n_out) in enumerate(zip(self.sizes, self.sizes[1:], strict=False)):
            key = np.array([seed, layer], dtype=np.uint64)
            uniform = np.random.Generator(np.random.Philox(key=key)).uniform(-1.0, 1.0, (n_out, n_in))
            if layer != self.replaced:
                params[f"weight{layer}"] = (uniform / math.sqrt(n_in)).astype(np.float32)
            params[f"bias{layer}"] = np.zeros(n_out, np.float32)
        return params

    def loss(
        self, weight: Array, params: Params, x: Array, labels: Array
    ) -> tuple[Array, tuple[Array, dict[str, Array]]]:
        """Compute the mean cross-entropy and its gradients in the generated weight and all parameters.

        Parameters
        ----------
        weight : array
            The generated weight, ``(n_out, n_in)``.
        params : mapping of str to array
            The parameters of :meth:`initial`.
        x : array
            Inputs, ``(batch, sizes[0])``.
        labels : array
            One-hot labels, ``(batch, sizes[-1])``.
        """
        weights = [weight if k == self.replaced else params[f"weight{k}"] for k in range(self.depth)]
        states, h = [x], x
        for k, w in enumerate(weights):
            z = do("matmul", h, do("transpose", w, (1, 0))) + params[f"bias{k}"]
            h = do("where", z > 0, z, z * 0.0) if k < self.depth - 1 else z
            states.append(h)
        n = x.shape[0]
        logits = h - do("reshape", do("max", h, 1), (n, 1))
        exp = do("exp", logits)
        total = do("reshape", do("sum", exp, 1), (n, 1))
        loss = (do("sum", do("log", total)) - do("sum", logits * labels)) * (1.0 / n)
        zbar = (exp / total - labels) * (1.0 / n)
        grads: dict[str, Any] = {}
        for k in reversed(range(self.depth)):
            grads[f"bias{k}"] = do("sum", zbar, 0)
            grads[f"weight{k}"] = do("matmul", do("transpose", zbar, (1, 0)), states[k])
            if k:
                hbar = do("matmul", zbar, weights[k])
                zbar = do("where", states[k] > 0, hbar, hbar * 0.0)
        return loss, (grads.pop(f"weight{self.replaced}"), grads)

    def task(self, data: Images, seed: int, batch: int) -> Task:
        """Create the training task on a data set."""
        onehot = np.eye(self.sizes[-1], dtype=np.float32)

        def batches(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
            indices = rng.integers(0, len(data.x_train), batch)
            return data.x_train[indices], onehot[data.y_train[indices]]

        return Task(self.loss, params=self.initial(seed), batches=batches, differentiated=True)

    def accuracy(self, weight: np.ndarray, params: Params, x: np.ndarray, y: np.ndarray) -> float:
        """Compute the fraction of correct predictions with NumPy."""
        h = x
        for k in range(self.depth):
            w = weight if k == self.replaced else params[f"weight{k}"]
            h = h @ w.T + params[f"bias{k}"]
            if k < self.depth - 1:
                h = np.maximum(h, 0.0)
        return float(np.mean(np.argmax(h, axis=1) == y))

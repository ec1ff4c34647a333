"""The training of a Flax NNX module, or of some of its variables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from adtn.compression import Tuning
from flax import nnx

from ..shared._model import rate_of, refuse_nothing
from ..shared._training_file import Data, cosine, run

NO_FACTORS: Mapping[str, float] = MappingProxyType({})


class Training:
    """The state of a training of some variables of a module.

    Parameters
    ----------
    module : flax.nnx.Module
        The module; :meth:`finish` writes the values to it.
    chosen : mapping of str to flax.nnx.Param
        The trained variables, by name.
    loss : callable
        ``loss(module, batch)``, which is traced.
    tuning : Tuning
        The options of the training.
    factors : mapping of str to float
        Factors of the learning rates beside those of ``tuning``.

    Raises
    ------
    CompressError
        If nothing is trained.
    """

    def __init__(
        self,
        module: Any,
        chosen: Mapping[str, Any],
        loss: Callable[[Any, Any], Any],
        tuning: Tuning,
        factors: Mapping[str, float],
    ) -> None:
        self.module, self.tuning, self.loss = module, tuning, loss
        self.data = Data(tuning.checkpoint)
        names = {id(v): name for name, v in chosen.items()}
        rates = {name: rate_of(name, tuning.rates) * factors.get(name, 1.0) for name in chosen}
        self._rates = {name: rate for name, rate in rates.items() if rate}
        refuse_nothing(self._rates)
        self._places = {path: names[id(v)] for path, v in nnx.iter_graph(module) if names.get(id(v)) in self._rates}
        self._graph, state, rest = nnx.split(module, self._is_trained, ...)
        self._trained = {self._places[path]: (path, v) for path, v in nnx.to_flat_state(state)}
        clip = [optax.clip_by_global_norm(tuning.clip)] if tuning.clip is not None else []
        rule = optax.trace(0.9) if tuning.optimizer == "sgd" else optax.scale_by_adam()
        self._optimizer = optax.chain(*clip, rule)
        values = {name: v[...] for name, (_, v) in self._trained.items()}
        self._state: tuple[Any, Any, Any] = (values, rest, self._optimizer.init(values))
        self._compiled = jax.jit(self._update)

    def step(self, batch: Any, n: int) -> float:
        """Do update ``n``, counted from 0, and return the loss before it."""
        rate = jnp.float32(self.tuning.lr * cosine(n, self.tuning.steps))
        *state, loss = self._compiled(*self._state, rate, batch)
        self._state = (state[0], state[1], state[2])
        return float(loss)

    def finish(self) -> None:
        """Write all values to the module."""
        values, rest, _ = self._state
        nnx.update(self.module, self._packed(values), rest)

    def _is_trained(self, path: Any, _: Any) -> bool:
        return path in self._places

    def _packed(self, values: Mapping[str, Any]) -> Any:
        return nnx.from_flat_state([(path, v.replace(values[name])) for name, (path, v) in self._trained.items()])

    def _update(self, values: Any, rest: Any, moments: Any, rate: Any, batch: Any) -> Any:
        def loss_of(values: Any) -> Any:
            model = nnx.merge(self._graph, self._packed(values), rest, copy=True)
            loss = self.loss(model, batch)
            return loss, nnx.split(model, self._is_trained, ...)[2]

        (loss, rest), grads = jax.value_and_grad(loss_of, has_aux=True)(values)
        updates: Any
        updates, moments = self._optimizer.update(grads, moments)
        values = {k: (x - rate * self._rates[k] * updates[k]).astype(x.dtype) for k, x in values.items()}
        return values, rest, moments, loss

    def write(self, losses: list[float]) -> None:
        """Write a checkpoint: all leaves of the state, numbered, and the losses."""
        from safetensors.flax import save

        leaves = {str(n): _plain(leaf) for n, leaf in enumerate(jax.tree.leaves(self._state))}
        self.data.write(save({**leaves, "losses": jnp.asarray(np.asarray(losses, np.float32))}, self.data.metadata()))

    def read(self) -> list[float]:
        """Restore a checkpoint, and return its losses; none where there is no file.

        Raises
        ------
        ModelFileError
            If the file is damaged, or not a checkpoint of this training.
        """
        from safetensors.flax import load

        content = self.data.read()
        if content is None:
            return []
        leaves, tree = jax.tree.flatten(self._state)
        try:
            stored = load(content)
            losses = [float(x) for x in stored.pop("losses")]
            if [stored[str(n)].shape for n in range(len(stored))] != [_plain(leaf).shape for leaf in leaves]:
                raise KeyError("other shapes")
        except Exception as error:  # the file is of another model, or was edited
            raise self.data.unreadable(error) from error
        self._state = jax.tree.unflatten(tree, [_like(leaf, stored[str(n)]) for n, leaf in enumerate(leaves)])
        return losses

    def restore_random(self) -> None:
        """Do nothing, as the states of random numbers are variables of the module."""


def train(
    module: Any,
    chosen: Mapping[str, Any],
    loss: Callable[[Any, Any], Any],
    batches: Iterable[Any],
    tuning: Tuning,
    report: Callable[[int, float], bool | None],
    factors: Mapping[str, float] = NO_FACTORS,
) -> list[float]:
    """Train with a cosine schedule of the learning rate, and return the losses; layers update their statistics as well.

    Parameters
    ----------
    module : flax.nnx.Module
        The module, which is changed when all steps are done, and where ``tuning.observe_every`` says so.
    chosen : mapping of str to flax.nnx.Param
        The trained variables, by name.
    loss : callable
        ``loss(module, batch)``, which is traced.
    batches : iterable
        One batch per step.
    tuning : Tuning
        The options of the training.
    report : callable
        ``report(step, loss)`` is called after each step; a true result ends the training.
    factors : mapping of str to float
        Factors of the learning rates beside those of ``tuning``.

    Raises
    ------
    CompressError
        If a loss is not finite, or nothing is trained.
    """
    training = Training(module, chosen, loss, tuning, factors)

    def reported(step: int, loss: float) -> bool | None:
        if tuning.observe_every and (step % tuning.observe_every == 0 or step == tuning.steps):
            training.finish()
        return report(step, loss)

    losses = run(training, training.step, iter(batches), tuning, reported)
    training.finish()
    return losses


def root_mean_square(x: Any) -> float:
    """Return the root mean square of the entries of an array."""
    return float(jnp.sqrt(jnp.mean(jnp.square(jnp.asarray(x, jnp.float32))))) if x.size else 0.0


def _like(leaf: Any, stored: Any) -> Any:
    """Return a stored leaf, converted to keys of random numbers where the original is one."""
    return jax.random.wrap_key_data(stored, impl=jax.random.key_impl(leaf)) if _is_key(leaf) else stored


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(leaf: Any) -> Any:
    """Return a leaf as an array; keys of random numbers as integers."""
    return jax.random.key_data(leaf) if _is_key(leaf) else jnp.asarray(leaf)

"""Training of some variables of a Flax NNX module."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from adtn.compression import Tuning
from adtn.errors import CompressError
from flax import nnx

from ..shared._training_file import Data


def train(
    module: Any,
    chosen: Mapping[str, Any],
    loss: Callable[[Any, Any], Any],
    batches: Iterable[Any],
    tuning: Tuning,
    report: Callable[[int, float], None],
) -> list[float]:
    """With a cosine; statistics of layers change along.

    Parameters
    ----------
    module : flax.nnx.Module
        Changed when all steps are done.
    chosen : mapping of str to flax.nnx.Param
        What is trained, by name.
    loss : callable
        ``loss(module, batch)``, traced.
    batches : iterable
    tuning : Tuning
    report : callable
        ``report(step, loss)`` after each.

    Raises
    ------
    CompressError
        If a loss is not finite, or nothing is trained.
    """
    names = {id(v): name for name, v in chosen.items()}
    rates = {name: next((r for p, r in tuning.rates.items() if fnmatchcase(name, p)), 1.0) for name in chosen}
    if not any(rates.values()):
        raise CompressError("Got rates that leave nothing to train; give some parameters a rate above 0.")
    wanted = {id(v) for name, v in chosen.items() if rates[name]}
    places = {path: names[id(v)] for path, v in nnx.iter_graph(module) if id(v) in wanted}
    graph, state, rest = nnx.split(module, lambda path, _: path in places, ...)
    own = {places[path]: (path, v) for path, v in nnx.to_flat_state(state)}
    clip = [optax.clip_by_global_norm(tuning.clip)] if tuning.clip is not None else []
    rule = optax.trace(0.9) if tuning.optimizer == "sgd" else optax.scale_by_adam()
    optimizer = optax.chain(*clip, rule)

    def packed(numbers: Mapping[str, Any]) -> Any:
        return nnx.from_flat_state([(path, v.replace(numbers[name])) for name, (path, v) in own.items()])

    @jax.jit
    def step(numbers: Any, rest: Any, moments: Any, rate: Any, batch: Any) -> Any:
        def value(numbers: Any) -> Any:
            model = nnx.merge(graph, packed(numbers), rest, copy=True)
            found = loss(model, batch)
            return found, nnx.split(model, lambda path, _: path in places, ...)[2]

        (found, rest), slopes = jax.value_and_grad(value, has_aux=True)(numbers)
        changes: Any
        changes, moments = optimizer.update(slopes, moments)
        numbers = {k: (x - rate * rates[k] * changes[k]).astype(x.dtype) for k, x in numbers.items()}
        return numbers, rest, moments, found

    numbers = {name: v[...] for name, (_, v) in own.items()}
    moments = optimizer.init(numbers)
    data = Data(tuning.checkpoint)
    (numbers, rest, moments), losses = _read(data, (numbers, rest, moments))
    for n, batch in enumerate(batches):
        data.see(batch)
        if n < len(losses):  # the data draw what they drew
            continue
        rate = tuning.lr * 0.5 * (1.0 + math.cos(math.pi * n / max(tuning.steps, 1)))
        numbers, rest, moments, found = step(numbers, rest, moments, jnp.float32(rate), batch)
        losses.append(float(found))
        tuning.check(losses)
        report(len(losses), losses[-1])
        if tuning.checkpoint is not None and len(losses) % tuning.every == 0:
            _write(data, (numbers, rest, moments), losses)
    nnx.update(module, packed(numbers), rest)
    return losses


def _write(data: Data, state: Any, losses: list[float]) -> None:
    """All leaves in their order; whole or not at all."""
    from safetensors.flax import save

    leaves = {str(n): _plain(leaf) for n, leaf in enumerate(jax.tree.leaves(state))}
    data.write(save({**leaves, "losses": jnp.asarray(np.asarray(losses, np.float32))}, data.metadata()))


def _read(data: Data, like: Any) -> tuple[Any, list[float]]:
    """What a checkpoint holds; what is there already where there is none."""
    from safetensors.flax import load

    content = data.read()
    if content is None:
        return like, []
    leaves, tree = jax.tree.flatten(like)
    try:
        found = load(content)
        losses = [float(x) for x in found.pop("losses")]
        if [found[str(n)].shape for n in range(len(found))] != [_plain(leaf).shape for leaf in leaves]:
            raise KeyError("other shapes")
    except Exception as error:  # of another model, or of a hand
        raise data.unreadable(error) from error
    new = [
        jax.random.wrap_key_data(found[str(n)], impl=jax.random.key_impl(leaf)) if _is_key(leaf) else found[str(n)]
        for n, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(tree, new), losses


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(leaf: Any) -> Any:
    """Keys of random numbers as integers."""
    return jax.random.key_data(leaf) if _is_key(leaf) else jnp.asarray(leaf)

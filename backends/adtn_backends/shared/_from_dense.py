"""Constructors of generated layers from dense ones, for every framework: only the last step is the framework's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Self, TypeAlias

import numpy as np
from adtn import Generator, Layout, Topology
from adtn.weight import Mode

from ._fitted import Base, fitted

Fit: TypeAlias = Callable[[np.ndarray], Generator]
"""The values of a dense weight to a generator of them."""


class FromDense:
    """A generated layer that can take the place of a dense one."""

    @classmethod
    def _in_place_of(cls, dense: Any, fit: Fit, **options: Any) -> Self:
        """Make the layer of the framework.

        Parameters
        ----------
        dense : object
            Layer of the framework.
        fit : callable
            Makes the generator of its weight.
        **options
            Arguments of the constructor that the dense layer does not decide.
        """
        raise NotImplementedError


class FromLinear(FromDense):
    """A generated linear layer."""

    @classmethod
    def from_linear(
        cls,
        linear: Any,
        topology: Topology,
        layout: Layout | None = None,
        *,
        seed: int = 0,
        base: Base = None,
        mode: Mode | None = None,
        steps: int = 0,
        **options: Any,
    ) -> Self:
        """Make a layer in place of a dense one, with its bias, device and dtype.

        Parameters
        ----------
        linear : torch.nn.Linear, transformers.pytorch_utils.Conv1D or flax.nnx.Linear
            Of the same framework; the ``Conv1D`` of GPT-2 has its weight as ``(n_in, n_out)``.
        topology, layout, seed, base
            See :class:`adtn.Generator`.
        mode
            See the class.
        steps : int
            Of a fit to the dense weight; without one only its spread is taken over.
        **options
            Of :func:`adtn.fit`.

        Raises
        ------
        LayoutError
            For other layers, subclasses with a forward of their own, and layers with functions of their own.
        """
        fit = partial(fitted, topology=topology, layout=layout, seed=seed, base=base, steps=steps, options=options)
        return cls._in_place_of(linear, fit, mode=mode)


class FromConv(FromDense):
    """A generated convolution."""

    @classmethod
    def from_conv(
        cls,
        conv: Any,
        topology: Topology,
        layout: Layout | None = None,
        *,
        seed: int = 0,
        base: Base = None,
        steps: int = 0,
        **options: Any,
    ) -> Self:
        """Make a layer in place of a dense one, with its bias, geometry, device and dtype.

        Parameters
        ----------
        conv : torch.nn.Conv1d, Conv2d, Conv3d or flax.nnx.Conv
            Of the same framework.
        topology, layout, seed, base
            See :class:`adtn.Generator`; the weight has shape ``(out, in / groups, *kernel)``.
        steps : int
            Of a fit to the dense weight; without one only its spread is taken over.
        **options
            Of :func:`adtn.fit`.

        Raises
        ------
        LayoutError
            If it has another number of axes, is a subclass with a forward of its own, or has no generated form.
        """
        fit = partial(fitted, topology=topology, layout=layout, seed=seed, base=base, steps=steps, options=options)
        return cls._in_place_of(conv, fit)


class FromEmbedding(FromDense):
    """A generated embedding."""

    @classmethod
    def from_embedding(
        cls,
        embedding: Any,
        topology: Topology,
        layout: Layout | None = None,
        *,
        seed: int = 0,
        base: Base = None,
        steps: int = 0,
        **options: Any,
    ) -> Self:
        """Make a table in place of a dense one; parameters as of ``ADTNLinear.from_linear``.

        Raises
        ------
        LayoutError
            If the dense one does what this one cannot: subclasses with a forward of their own, ``max_norm``, sparse
            gradients.
        """
        fit = partial(fitted, topology=topology, layout=layout, seed=seed, base=base, steps=steps, options=options)
        return cls._in_place_of(embedding, fit)

"""Constructors of generated layers from dense ones; each framework adds only the last step."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Self, TypeAlias

import numpy as np
from adtn import Generator, Layout, Topology
from adtn.weight import Mode

from ._fitted import Base, fitted
from ._geometry import ConvMode

Fit: TypeAlias = Callable[[np.ndarray], Generator]
"""A function from the values of a dense weight to a generator of them."""


class FromDense:
    """A generated layer that can replace a dense one."""

    @classmethod
    def _in_place_of(cls, dense: Any, fit: Fit, **options: Any) -> Self:
        """Make the layer of the framework.

        Parameters
        ----------
        dense : object
            The dense layer, of this framework.
        fit : callable
            A function that makes the generator of its weight.
        **options
            Arguments of the constructor that do not follow from the dense layer.
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
        """Make a generated layer from a dense one, with its bias, device and dtype.

        Parameters
        ----------
        linear : torch.nn.Linear, transformers.pytorch_utils.Conv1D or flax.nnx.Linear
            The dense layer, of the same framework; a ``Conv1D`` of GPT-2 stores its weight as ``(n_in, n_out)``.
        topology, layout, seed, base
            See :class:`adtn.Generator`.
        mode
            See the class.
        steps : int
            The steps of a fit to the dense weight; with none, only its standard deviation is matched.
        **options
            Options of :func:`adtn.fit`.

        Raises
        ------
        LayoutError
            If it is another layer, a subclass that overrides ``forward``, or a layer with custom functions.
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
        mode: ConvMode | None = None,
        steps: int = 0,
        **options: Any,
    ) -> Self:
        """Make a generated convolution from a dense one, with its bias, geometry, device and dtype.

        Parameters
        ----------
        conv : torch.nn.Conv1d, Conv2d, Conv3d or flax.nnx.Conv
            The dense layer, of the same framework.
        topology, layout, seed, base
            See :class:`adtn.Generator`; the weight has shape ``(out, in / groups, *kernel)``.
        mode
            See the class.
        steps : int
            The steps of a fit to the dense weight; with none, only its standard deviation is matched.
        **options
            Options of :func:`adtn.fit`.

        Raises
        ------
        LayoutError
            If it has another number of axes, is a subclass that overrides ``forward``, or has no generated form.
        """
        fit = partial(fitted, topology=topology, layout=layout, seed=seed, base=base, steps=steps, options=options)
        return cls._in_place_of(conv, fit, mode=mode)


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
        """Make a generated embedding from a dense one; for the parameters see ``ADTNLinear.from_linear``.

        Raises
        ------
        LayoutError
            If the dense one has no generated form: a subclass that overrides ``forward``, ``max_norm``, or sparse
            gradients.
        """
        fit = partial(fitted, topology=topology, layout=layout, seed=seed, base=base, steps=steps, options=options)
        return cls._in_place_of(embedding, fit)

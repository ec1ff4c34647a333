r"""Statistics of what is on bonds, over many batches, in memory that does not grow with them.

One batch of n samples gives feature matrices X and Y, ``(n, features)``, with Gram matrices K and L without diagonals.

- Variances of components: the covariance of the vectors on a bond, over samples and everything else that is open.
- Separability: the variance between classes over that within them, summed over features.
- CKA: :math:`\mathrm{HSIC}(K, L) / \sqrt{\mathrm{HSIC}(K, K)\, \mathrm{HSIC}(L, L)}`, each an unbiased estimate per
  batch, averaged over batches before the division, so its bias does not depend on the size of batches.
- SVCCA: the mean canonical correlation of the principal components with 99 % of the variance. Features beyond 256 are
  projected at random, which keeps inner products approximately.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from autoray import do, get_dtype_name

from .._checks import Range, checked, shown
from .._typing import Array, Float, Int
from ..errors import TopologyError
from ._probe import probe

_FEATURES = 256  # of SVCCA
_LEAST_BATCH = 4  # samples of the unbiased estimate


@dataclass(kw_only=True)
class BondStatistics:
    """The statistics of one bond, or of other activations; see :func:`watch`.

    Parameters
    ----------
    samples : int
        The number of samples.
    """

    samples: int = 0
    _vectors: int = 0
    _sum: Any = 0.0
    _products: Any = 0.0
    _squares: float = 0.0
    _features: Any = 0.0
    _classes: dict[Any, tuple[int, Any]] = field(default_factory=dict)

    def add(self, value: Float[np.ndarray, "batch *rest bond"], labels: Int[np.ndarray, " batch"] | None) -> None:
        """Add one batch."""
        vectors, features = value.reshape(-1, value.shape[-1]), value.reshape(len(value), -1)
        if self.samples and features.shape[1] != len(self._features):
            raise TopologyError(
                f"Got a batch with {features.shape[1]} values per sample on a bond, after {len(self._features)}; "
                "expected samples of one length. Watch those of each length on their own."
            )
        if labels is not None and len(labels) != len(value):
            raise TopologyError(f"Got {len(labels)} labels for {len(value)} samples; expected one per sample.")
        self.samples += len(value)
        self._vectors += len(vectors)
        self._sum = self._sum + vectors.sum(0)
        self._products = self._products + vectors.T @ vectors
        self._squares += float(np.vdot(features, features))
        self._features = self._features + features.sum(0)
        for label in () if labels is None else np.unique(labels):
            n, total = self._classes.get(label.item(), (0, 0.0))
            own = labels == label
            self._classes[label.item()] = n + int(own.sum()), total + features[own].sum(0)

    @property
    def mean(self) -> Float[np.ndarray, " bond"]:
        """The mean of the vectors on the bond."""
        return self._sum / self._vectors

    @property
    def covariance(self) -> Float[np.ndarray, "bond bond"]:
        """The covariance of the vectors on the bond."""
        return self._products / self._vectors - np.outer(self.mean, self.mean)

    def pca(self) -> tuple[Float[np.ndarray, " bond"], Float[np.ndarray, "bond bond"]]:
        """Return the variances of the principal components, in descending order, and the components as columns."""
        values, vectors = np.linalg.eigh(self.covariance)
        return np.maximum(values[::-1], 0.0), vectors[:, ::-1]

    @property
    def effective_rank(self) -> float:
        """The exponential of the entropy of the variances."""
        values = self.pca()[0]
        p = values[values > 0.0] / max(values.sum(), 1e-300)
        return float(np.exp(-(p * np.log(p)).sum()))

    @property
    def has_labels(self) -> bool:
        """Whether batches came with labels."""
        return bool(self._classes)

    @property
    def separability(self) -> float:
        """The variance between classes over that within them.

        Raises
        ------
        TopologyError
            If there were no labels.
        """
        if not self._classes:
            raise TopologyError("Got batches without labels; expected pairs of inputs and labels.")
        mean = self._features / self.samples
        between = sum(n * float(((total / n - mean) ** 2).sum()) for n, total in self._classes.values())
        within = self._squares - sum(float((total**2).sum()) / n for n, total in self._classes.values())
        return between / max(within, 1e-300)


@dataclass(kw_only=True)
class _Pair:
    """What two feature matrices have in common."""

    hsic: np.ndarray = field(default_factory=lambda: np.zeros(3))
    samples: int = 0
    sums: Any = 0.0
    products: Any = 0.0

    def add(self, x: Float[np.ndarray, "n p"], y: Float[np.ndarray, "n q"]) -> None:
        if len(x) >= _LEAST_BATCH:
            k, m = (a @ a.T for a in (x, y))
            self.hsic += len(x) * np.array([_hsic(k, m), _hsic(k, k), _hsic(m, m)])
        both = np.concatenate([_projected(x), _projected(y)], 1)
        self.samples += len(x)
        self.sums = self.sums + both.sum(0)
        self.products = self.products + both.T @ both


def _hsic(k: Float[np.ndarray, "n n"], m: Float[np.ndarray, "n n"]) -> float:
    """Return the unbiased estimate of Song et al. (2012)."""
    n = len(k)
    k, m = (a - np.diag(np.diag(a)) for a in (k, m))
    crossed = float((k.sum(0) * m.sum(0)).sum())
    total = float(np.vdot(k, m)) + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2.0 * crossed / (n - 2)
    return total / (n * (n - 3))


def _projected(x: Float[np.ndarray, "n p"]) -> Float[np.ndarray, "n q"]:
    if x.shape[1] <= _FEATURES:
        return x
    return x @ np.random.default_rng(0).standard_normal((x.shape[1], _FEATURES)) / np.sqrt(_FEATURES)


@dataclass(kw_only=True)
class Watched(Mapping[str, BondStatistics]):
    """The statistics by the names of bonds and other activations; see :func:`watch`."""

    _own: dict[str, BondStatistics]
    _pairs: dict[tuple[str, str], _Pair]
    _sizes: dict[str, int]

    def __getitem__(self, name: str) -> BondStatistics:
        """Return the statistics of a bond."""
        return self._own[name]

    def __iter__(self) -> Any:
        """Iterate over names."""
        return iter(self._own)

    def __len__(self) -> int:
        """Return their number."""
        return len(self._own)

    def cka(self, first: str, second: str) -> float:
        """Return the linear CKA of two of them, at most 1; 0 if they have nothing in common.

        Raises
        ------
        TopologyError
            If this pair was not asked for, or all batches had less than four samples.
        """
        pair, _ = self._pair(first, second)
        if not pair.hsic.any():
            raise TopologyError(f"Got batches of less than {_LEAST_BATCH} samples; expected larger ones for CKA.")
        return float(pair.hsic[0] / np.sqrt(max(pair.hsic[1] * pair.hsic[2], 1e-300)))

    def svcca(self, first: str, second: str, variance: Annotated[float, Range(0, 1, above=True)] = 0.99) -> float:
        """Return the mean canonical correlation of the components with that part of the variance.

        Raises
        ------
        TopologyError
            If this pair was not asked for.
        """
        pair, (a, _) = self._pair(first, second)
        mean = pair.sums / pair.samples
        c = pair.products / pair.samples - np.outer(mean, mean)
        roots = [_whitening(x, variance) for x in (c[:a, :a], c[a:, a:])]
        return float(np.linalg.svd(roots[0].T @ c[:a, a:] @ roots[1], compute_uv=False).clip(0.0, 1.0).mean())

    def _pair(self, first: str, second: str) -> tuple[_Pair, tuple[int, int]]:
        found = self._pairs.get((first, second))
        if found is None:
            listed = "; ".join(map(", ".join, self._pairs)) or "none"
            raise TopologyError(f"Got the pair {first}, {second}; expected one of pairs={listed}.")
        return found, (self._sizes[first], self._sizes[second])


def _whitening(c: Float[np.ndarray, "p p"], variance: float) -> Float[np.ndarray, "p r"]:
    values, vectors = np.linalg.eigh(c)
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    shares = values.cumsum() / max(values.sum(), 1e-300)
    r = int(np.searchsorted(shares, variance - 1e-12)) + 1
    return vectors[:, :r] / np.sqrt(np.maximum(values[:r], 1e-300))


@checked(TopologyError)
def watch(
    model: Any,
    batches: Annotated[Iterable[Any], "batches of inputs, or pairs of inputs and labels"],
    names: Annotated[str | Sequence[str], "patterns of bonds"] = "*",
    *,
    others: Annotated[Mapping[str, Callable[[Any], Array]], "functions of a batch of inputs"] | None = None,
    pairs: Annotated[Sequence[tuple[str, str]], "pairs of names"] = (),
    call: Callable[[Any, Any], Any] | None = None,
) -> Watched:
    """Compute statistics of what is on bonds while a model reads batches.

    Parameters
    ----------
    model : torch.nn.Module or flax.nnx.Module
        In evaluation mode, if it should be. Of layers that are called several times, the last call counts.
    batches : iterable
        Inputs, or pairs of inputs and labels, as for ``model(x)``.
    names : str or sequence of str
        Patterns of bonds, see :func:`adtn.probe`.
    others : mapping of str to callable, optional
        Other activations by name: functions of the inputs of a batch, ``(batch, ...)``, such as a dense layer.
    pairs : sequence of pairs of str
        Names of bonds or of others that are compared.
    call : callable, optional
        ``call(model, x)`` in place of ``model(x)``.

    Returns
    -------
    Watched
        A mapping of names to statistics, with ``cka`` and ``svcca`` of pairs.

    Raises
    ------
    TopologyError
        If a name fits no bond, there are no batches, or a value is NaN or infinite.

    References
    ----------
    S. Kornblith et al. (2019), arXiv:1905.00414 (CKA). T. Nguyen et al. (2021), arXiv:2010.15327 (in batches).
    M. Raghu et al. (2017), arXiv:1706.05806 (SVCCA).

    Examples
    --------
    >>> import adtn, torch
    >>> from adtn.bondspace import watch
    >>> from adtn_backends.torch import ADTNLinear
    >>> model = ADTNLinear(adtn.Generator((64, 36), adtn.LowRank(bond=4)))
    >>> found = watch(model, [torch.randn(50, 36) for _ in range(4)], others={"inputs": lambda x: x},
    ...               pairs=[("bonds.r", "inputs")])
    >>> found["bonds.r"].samples, found["bonds.r"].covariance.shape, found.svcca("bonds.r", "inputs") > 0.99
    (200, (4, 4), True)
    """
    run = (lambda own, x: own(x)) if call is None else call
    given = dict(others or {})
    statistics: dict[str, BondStatistics] = {}
    common = {(a, b): _Pair() for a, b in pairs}
    sizes: dict[str, int] = {}
    with probe(model, names) as found:
        known = {*found.names, *given}
        if unknown := [name for pair in pairs for name in pair if name not in known]:
            raise TopologyError(
                f"Got pairs with {', '.join(unknown)}; expected names among {', '.join(sorted(known))}."
            )
        for batch in batches:
            x, labels = batch if isinstance(batch, tuple | list) and len(batch) == 2 else (batch, None)
            run(model, x)
            values = {name: _host(found[name]) for name in found.names if name in found}
            values |= {name: _host(fn(x)) for name, fn in given.items()}
            found.clear()
            if wrong := [name for name, value in values.items() if not np.isfinite(value).all()]:
                raise TopologyError(
                    f"Got values on {', '.join(wrong)} that are NaN or infinite; expected finite numbers. Check the "
                    "data and the dtype of the model."
                )
            own = None if labels is None else np.asarray(do("to_numpy", labels)).reshape(-1)
            for name, value in values.items():
                statistics.setdefault(name, BondStatistics()).add(value, own)
                sizes[name] = min(int(np.prod(value.shape[1:])), _FEATURES)
            for (a, b), pair in common.items():
                if a not in values or b not in values:
                    raise TopologyError(f"Got the pair {a}, {b}, of which one was not passed in a batch.")
                pair.add(*(values[name].reshape(len(values[name]), -1) for name in (a, b)))
    if not statistics:
        raise TopologyError(f"Got batches={shown(batches)} and names={shown(names)}; expected at least one of each.")
    return Watched(_own=statistics, _pairs=common, _sizes=sizes)


def _host(x: Any) -> Float[np.ndarray, "..."]:
    if get_dtype_name(x) == "bfloat16":  # which NumPy does not have
        x = do("astype", x, "float32")
    return np.asarray(do("to_numpy", x), np.float64)

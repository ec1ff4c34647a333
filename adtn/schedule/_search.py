"""Which contraction order: candidates from cotengra and from sweeps over fused cores, ranked by predicted time."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from .._backend import Op
from .._typing import Inds
from ..network import PairStep, Path, Segment, arrange, contraction_nodes, plan_steps
from ._path_cache import PathCache, path_key
from ._profile import DeviceProfile, itemsize_of

_OUTER = 10  # operands up to which all trees are searched, outer products included
_SAMPLES = 12
_SAMPLED_TERMS = 120  # samples times operands: planning stays short for large networks
_FUSED = (1 << 10, 1 << 12, 1 << 14)
_CACHE = PathCache()


def terms_of(segment: Segment) -> tuple[Inds, ...]:
    """Indices of the operands of a segment: the state, then the cores."""
    return ((segment.inputs,) if segment.inputs else ()) + tuple(core.inds for core in segment.cores)


def best_path(
    segment: Segment, sizes: dict[str, int], profile: DeviceProfile, *, cache: PathCache | None = None
) -> Path:
    """The contraction order of a segment with the least predicted time.

    Parameters
    ----------
    segment : Segment
        With its outputs in the wanted order.
    sizes : dict of str to int
        Dimension of each index.
    profile : DeviceProfile
        Of the device and dtype.
    cache : PathCache, optional
        The user's when not given.
    """
    terms = terms_of(segment)
    if len(terms) < 3:
        return ((0, 1),) * (len(terms) - 1)
    from ._tree_cost import OBJECTIVE_VERSION

    key = path_key(
        terms, segment.outputs, sizes, OBJECTIVE_VERSION, profile.name, profile.dtype, hash_of(profile), segment.inputs
    )
    store = cache if cache is not None else _CACHE

    def search() -> Path:
        found = candidates(segment, sizes, profile)
        return min(found, key=lambda path: path_seconds(segment, sizes, profile, path))

    return store.find(key, len(terms), search)


def hash_of(profile: DeviceProfile) -> str:
    """What distinguishes two profiles of one device."""
    return f"{sum(map(math.log, profile.gemm_seconds)):.6f}/{profile.permute_seconds}/{profile.launch_s}"


def candidates(segment: Segment, sizes: dict[str, int], profile: DeviceProfile) -> list[Path]:
    """Contraction orders worth comparing."""
    found = _searched(segment, sizes, profile)
    if segment.inputs:
        found += [_sweep(segment, sizes, bound, by_legs) for by_legs in (True, False) for bound in _FUSED]
    return [path for path in dict.fromkeys(found) if len(path) == len(terms_of(segment)) - 1]


def path_seconds(segment: Segment, sizes: dict[str, int], profile: DeviceProfile, path: Path) -> float:
    """Predicted time of a segment, forward, with the indices of intermediates arranged as they will be."""
    terms = terms_of(segment)
    stored: list[Inds | None] = [*terms, *(None for _ in path)]
    stored[-1] = segment.outputs
    if segment.inputs:
        stored[0] = None
    nodes, orders = arrange(contraction_nodes(terms, segment.outputs, path), stored, sizes, {})
    steps = plan_steps(nodes, orders, defaultdict(bool), sizes)
    return sum(profile.seconds(op) for step in steps for op in step_ops(step, profile.dtype))


def step_ops(step: PairStep, dtype: str) -> Iterable[Op]:
    """The permuting copies of a contraction, then its product."""
    itemsize = itemsize_of(dtype)
    b, m, n, k = step.bmnk
    entries = (b * m * k, b * k * n, b * m * n)
    for view, size in zip((step.a, step.b, step.c), entries, strict=True):
        if view.moves:
            yield Op("permute", dtype, view.copied(written=view is step.c), *(size * itemsize,) * 3)
    shape = (b, n, m, k) if step.c.swapped else (b, m, n, k)  # as it is computed
    yield Op("matmul", dtype, shape, (entries[0] + entries[1]) * itemsize, entries[2] * itemsize)


def _searched(segment: Segment, sizes: dict[str, int], profile: DeviceProfile) -> list[Path]:
    """Dynamic programming for few operands, randomised greedy with reconfiguration for many."""
    import cotengra as ctg
    from cotengra.pathfinders.path_basic import OptimalOptimizer

    from ._tree_cost import DeviceTime

    terms = terms_of(segment)
    objective = DeviceTime(profile)
    # cotengrust wants single characters
    names = dict.fromkeys(i for inds in (*terms, segment.outputs) for i in inds)
    symbol = {i: ctg.get_symbol(n) for n, i in enumerate(names)}
    inputs = [tuple(symbol[i] for i in inds) for inds in terms]
    output = tuple(symbol[i] for i in segment.outputs)
    dims = {symbol[i]: d for i, d in sizes.items() if i in symbol}

    def tree_of(optimizer: Any) -> Any:
        return ctg.array_contract_tree(inputs, output, size_dict=dims, optimize=optimizer, canonicalize=False)

    trees: list[Any] = []
    if len(terms) <= _OUTER:
        # the fixed factor and not the profile's: a thin product costs more than its operations
        trees.append(tree_of(OptimalOptimizer(minimize="limit-64", search_outer=True, simplify=False)))
    else:
        # False is meant: cotengra annotates the default's type
        greedy: Any = ctg.RandomGreedyOptimizer(max_repeats=32, seed=0, parallel=False)  # pyright: ignore[reportArgumentType]
        tree = tree_of(greedy)
        trees.append(tree.copy())
        tree.subtree_reconfigure_(minimize=objective, maxiter=4, seed=0)
        trees.append(tree)
    found = [tree.get_path() for tree in trees]
    # no cost that knows sizes alone finds what permutes little: many orders, and the full cost to choose
    words, word = ["".join(inds) for inds in inputs], "".join(output)
    for seed in range(min(_SAMPLES, _SAMPLED_TERMS // len(terms))):
        options: dict[str, Any] = {"parallel": False, "temperature": (0.01, 3.0), "costmod": (0.1, 4.0)}
        sampler = ctg.RandomGreedyOptimizer(max_repeats=1, seed=seed, **options)
        found.append(sampler(words, word, dims))
    return [tuple((min(p), max(p)) for p in path if len(p) == 2) for path in found]


def _sweep(segment: Segment, sizes: dict[str, int], bound: int, by_legs: bool) -> Path:
    """Fuse neighbouring cores up to ``bound`` entries, then apply the fused ones to the state one after the other.

    Applying several gates or leaves at once is one pass over the state instead of several. In the order of the legs
    the last ones also put the last legs where they belong; in the order of the network neighbours share indices.
    """
    terms = terms_of(segment)
    place = {i: p for p, i in enumerate(segment.outputs)}

    def position(slot: int) -> float:
        own = [place[i] for i in terms[slot] if i in place]
        return min(own) if own else _reach(slot, terms, place)

    order = sorted(range(1, len(terms)), key=position) if by_legs else list(range(1, len(terms)))
    users: dict[str, int] = {}
    for inds in terms:
        for i in inds:
            users[i] = users.get(i, 0) + 1
    groups: list[tuple[list[int], frozenset[str]]] = []
    for slot in order:
        inds = frozenset(terms[slot])
        if groups:
            members, legs = groups[-1]
            closed = {i for i in legs & inds if users[i] == 2 and i not in place}
            merged = (legs | inds) - closed
            if math.prod(sizes[i] for i in merged) <= bound:
                groups[-1] = ([*members, slot], merged)
                continue
        groups.append(([slot], inds))
    ssa: list[tuple[int, int]] = []
    nxt = len(terms)
    fused: list[int] = []
    for members, _ in groups:
        at = members[0]
        for other in members[1:]:
            ssa.append((at, other))
            at, nxt = nxt, nxt + 1
        fused.append(at)
    at = 0
    for other in fused:
        ssa.append((at, other))
        at, nxt = nxt, nxt + 1
    return _linear(ssa, len(terms))


def _reach(slot: int, terms: tuple[Inds, ...], place: dict[str, int]) -> float:
    """Mean position of the legs that a core without own ones leads to."""
    seen, front = {slot}, set(terms[slot])
    while True:
        near = [s for s in range(1, len(terms)) if s not in seen and front & set(terms[s])]
        if not near:
            return float(len(place))
        found = [place[i] for s in near for i in terms[s] if i in place]
        if found:
            return sum(found) / len(found)
        seen |= set(near)
        front = {i for s in near for i in terms[s]}


def _linear(ssa: list[tuple[int, int]], n: int) -> Path:
    """From slots that count upwards to positions in a shrinking list."""
    live = list(range(n))
    out: list[tuple[int, int]] = []
    for step, (a, b) in enumerate(ssa):
        i, j = sorted((live.index(a), live.index(b)))
        out.append((i, j))
        live.pop(j)
        live.pop(i)
        live.append(n + step)
    return tuple(out)

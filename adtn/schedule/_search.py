"""The search for contraction orders: candidates from cotengra and from sweeps, ranked by predicted time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import lru_cache
from typing import Any, Literal

from .._typing import Inds
from ..backends import Op
from ..device import DeviceProfile, itemsize_of
from ..program import (
    STATE,
    MatrixView,
    PairStep,
    Path,
    arrange,
    contraction_nodes,
    cut_legs,
    default_path,
    plan_steps,
    product_order,
    tile_program,
)
from ..topology import Core, Segment
from ._path_cache import PathCache, path_key
from ._recombine import Estimate

Cost = Literal["forward", "adjoint", "projected", "small"]

_OUTER = 10  # number of operands up to which all trees are searched, including outer products
_SAMPLES = 64
_SAMPLED_TERMS = 1200  # samples times operands, so that planning is fast for large networks
_RECOMBINED = 2
_PRICED = 8
_FUSED = (1 << 10, 1 << 12, 1 << 14)
_CACHE = PathCache()


def best_path(
    segment: Segment,
    sizes: dict[str, int],
    profile: DeviceProfile,
    cost: Cost = "forward",
    *,
    cache: PathCache | None = None,
) -> Path:
    """Find the contraction order of a segment with the least predicted time.

    Parameters
    ----------
    segment : Segment
        The segment, with its outputs in the requested order.
    sizes : dict of str to int
        Dimension of each index.
    profile : DeviceProfile
        The profile of the device and dtype.
    cost : {"forward", "adjoint", "projected", "small"}
        See :func:`path_seconds`; ``"small"`` uses the default order if every order is cheap.
    cache : PathCache, optional
        The cache; by default, that of the user.
    """

    def search() -> Path:
        if cost == "small":
            return default_path(segment, sizes)
        paths = candidates(segment, sizes, profile, cost)
        return min(paths, key=lambda path: path_seconds(segment, sizes, profile, path, cost))

    return _found(segment, sizes, profile, (cost,), search, cache if cache is not None else _CACHE)


def _found(
    segment: Segment,
    sizes: dict[str, int],
    profile: DeviceProfile,
    context: tuple[object, ...],
    search: Callable[[], Path],
    cache: PathCache,
) -> Path:
    """Return the cached path of a segment in some context, or search it; with two operands there is no choice."""
    terms = segment.terms
    if len(terms) < 3:
        return ((0, 1),) * (len(terms) - 1)
    from ._tree_cost import OBJECTIVE_VERSION

    key = path_key(
        terms,
        segment.outputs,
        sizes,
        OBJECTIVE_VERSION,
        profile.name,
        profile.dtype,
        hash_of(profile),
        segment.inputs,
        *(core.trainable for core in segment.cores),
        *context,
    )
    return cache.find(key, len(terms), search)


def hash_of(profile: DeviceProfile) -> str:
    """Return a hash that distinguishes two profiles of one device."""
    tables = (*profile.gemm_seconds, *profile.transposed_factors, *profile.permute_seconds)
    return f"{sum(map(math.log, tables)):.6f}/{profile.permute_many}/{profile.launch_s}"


def best_tiled_path(segment: Segment, sizes: dict[str, int], profile: DeviceProfile, cost: Cost, tiles: int) -> Path:
    """Find the order with the least predicted time if the result is computed in tiles of its first legs.

    Parameters
    ----------
    segment : Segment
        The segment, with its outputs in the order in which they are traversed.
    sizes, profile, cost
        See :func:`best_path`.
    tiles : int
        The number of tiles.
    """
    # the state is treated as one more core, as only this segment is priced
    state = Core(
        name=STATE, inds=segment.inputs, shape=tuple(sizes[i] for i in segment.inputs), param=STATE, kind="state"
    )
    cores = (state, *segment.cores) if segment.inputs else segment.cores
    alone = replace(segment, inputs=(), cores=cores)

    def seconds(path: Path) -> float:
        tiled = tile_program((alone,), (path,), segment.outputs, tiles)
        steps = [(step, 1) for step in tiled.last.steps] + [(step, tiles) for step in tiled.steps]
        ops = [(op, n) for step, n in steps for op in step_ops(step, profile.dtype)]
        if cost != "forward":
            ops += [(op, n) for step, n in steps for op in adjoint_ops(step, profile.dtype)]
        return sum(n * profile.seconds(op) for op, n in ops)

    def search() -> Path:
        whole = best_path(segment, sizes, profile, cost)
        return min([whole, *candidates(segment, sizes, profile, cost, tiles)], key=seconds)

    return _found(segment, sizes, profile, (cost, tiles), search, _CACHE)


def candidates(
    segment: Segment, sizes: dict[str, int], profile: DeviceProfile, cost: Cost = "forward", tiles: int = 1
) -> list[Path]:
    """Return orders worth a full price: the best of many by estimate, and recombinations of their subtrees."""
    terms = segment.terms
    used = {i for inds in terms for i in inds}
    # the order of the outputs does not matter here, so that one search serves all orders and costs
    dimensions = tuple((i, d) for i, d in sizes.items() if i in used)
    paths = list(_searched(terms, frozenset(segment.outputs), dimensions, profile))
    if segment.inputs:
        paths += [_sweep(segment, sizes, bound, by_legs) for by_legs in (True, False) for bound in _FUSED]
    paths = [path for path in dict.fromkeys(paths) if len(path) == len(terms) - 1]
    trained = trained_slots(segment) if cost != "forward" else ()
    inside = cut_legs(segment.outputs, sizes, tiles)
    estimate = Estimate(
        terms, segment.outputs, sizes, profile, trained, projected=cost == "projected", tiles=tiles, inside=inside
    )
    trees = [estimate.pairs(path) for path in paths]
    ranked = sorted(range(len(paths)), key=[estimate.seconds(tree) for tree in trees].__getitem__)
    return list(dict.fromkeys([*estimate.best(trees, _RECOMBINED), *(paths[n] for n in ranked[:_PRICED])]))


def trained_slots(segment: Segment) -> set[int]:
    """List the operands that need an adjoint: the state and the trained cores."""
    slots = {slot for slot, core in enumerate(segment.cores, bool(segment.inputs)) if core.trainable}
    return slots | ({0} if segment.inputs else set())


def path_seconds(
    segment: Segment, sizes: dict[str, int], profile: DeviceProfile, path: Path, cost: Cost = "forward"
) -> float:
    """Predict the seconds of a segment, with the indices of intermediates arranged as in the program.

    Parameters
    ----------
    segment, sizes, profile
        See :func:`best_path`.
    path : path
        The contraction order.
    cost : {"forward", "adjoint", "projected"}
        - ``"forward"``: the contractions
        - ``"adjoint"``: the contractions and all environments
        - ``"projected"``: the same with the last product replaced by projections of a target, see :func:`project`
    """
    terms = segment.terms
    projected = cost == "projected"
    stored: list[Inds | None] = [*terms, *(None for _ in path)]
    stored[-1] = product_order(segment, path, sizes, 1) if projected else segment.outputs
    if segment.inputs:
        stored[0] = None
    for slot, core in enumerate(segment.cores, bool(segment.inputs)):
        stored[slot] = None if core.kind == "moment" else stored[slot]
    nodes, orders = arrange(contraction_nodes(terms, segment.outputs, path), stored, sizes, {})
    trained = trained_slots(segment)
    steps = plan_steps(nodes, orders, {slot: slot in trained for slot in range(len(terms))}, sizes)
    ops = [op for step in (steps[:-1] if projected else steps) for op in step_ops(step, profile.dtype)]
    if cost != "forward":
        ops += [op for step in (steps[:-1] if projected else steps) for op in adjoint_ops(step, profile.dtype)]
    if projected:
        ops += projection_ops(steps[-1], profile.dtype)
    return sum(map(profile.seconds, ops))


def step_ops(step: PairStep, dtype: str) -> Iterable[Op]:
    """Yield the permuting copies of a contraction, then its product."""
    b, m, n, k = step.bmnk
    for view, size in zip((step.a, step.b, step.c), (b * m * k, b * k * n, b * m * n), strict=True):
        if view.moves:
            yield _copy(view, size, dtype, written=view is step.c)
    yield _written(step.transposed[0], dtype, b, (m, n, k), step.a.swapped, step.b.swapped)


def adjoint_ops(step: PairStep, dtype: str) -> Iterable[Op]:
    """Yield the operations of the adjoints of a contraction."""
    b, m, n, k = step.bmnk
    if step.c.moves and (step.need_a or step.need_b):
        yield _copy(step.c, b * m * n, dtype, written=False)
    if step.need_a:
        yield _written(step.transposed[1], dtype, b, (m, k, n), step.c.swapped, not step.b.swapped)
        if step.a.moves:
            yield _copy(step.a, b * m * k, dtype, written=True)
    if step.need_b:
        yield _written(step.transposed[2], dtype, b, (k, n, m), not step.a.swapped, step.c.swapped)
        if step.b.moves:
            yield _copy(step.b, b * k * n, dtype, written=True)


def projection_ops(step: PairStep, dtype: str) -> Iterable[Op]:
    """Yield the operations of the two projections of a target on the operands of the last product."""
    b, m, n, k = step.bmnk
    for view, size in ((step.a, b * m * k), (step.b, b * k * n)):
        if view.moves:
            yield _copy(view, size, dtype, written=False)
    if step.need_a:  # computed in the order in which the target is stored
        yield _written(step.c.swapped, dtype, b, (m, k, n), step.c.swapped, not step.b.swapped)
    if step.need_b:
        yield _written(step.c.swapped, dtype, b, (k, n, m), not step.a.swapped, step.c.swapped)
    for view, size, need in ((step.a, b * m * k, step.need_a), (step.b, b * k * n, step.need_b)):
        if view.moves and need:
            yield _copy(view, size, dtype, written=True)


def _written(swapped: bool, dtype: str, b: int, mnk: tuple[int, int, int], left: bool, right: bool) -> Op:
    """Return a product whose operands may be transposed, or which is computed as its transpose."""
    m, n, k = mnk
    if swapped:
        m, n, left, right = n, m, not right, not left
    return _product(dtype, b, m, n, k, left + 2 * right)


def _product(dtype: str, b: int, m: int, n: int, k: int, transposed: int = 0) -> Op:
    itemsize = itemsize_of(dtype)
    if min(m, k) == 1:
        transposed &= 2
    if min(k, n) == 1:
        transposed &= 1
    read, written = b * k * (m + n) * itemsize, b * m * n * itemsize
    return Op(
        kind="matmul", dtype=dtype, shape=(b, m, n, k), read_bytes=read, written_bytes=written, transposed=transposed
    )


def _copy(view: MatrixView, size: int, dtype: str, *, written: bool) -> Op:
    nbytes = size * itemsize_of(dtype)
    return Op(
        kind="permute",
        dtype=dtype,
        shape=view.copied(written=written),
        read_bytes=nbytes,
        written_bytes=nbytes,
        fresh_bytes=nbytes,
    )


@lru_cache(maxsize=32)
def _searched(
    terms: tuple[Inds, ...], outputs: frozenset[str], dimensions: tuple[tuple[str, int], ...], profile: DeviceProfile
) -> list[Path]:
    """Search by dynamic programming for few operands, and randomised greedy with reconfiguration for many."""
    import cotengra as ctg
    from cotengra.pathfinders.path_basic import OptimalOptimizer

    from ._tree_cost import DeviceTime

    objective, sizes = DeviceTime(profile), dict(dimensions)
    # cotengrust requires single characters
    names = dict.fromkeys(i for inds in terms for i in inds)
    symbol = {i: ctg.get_symbol(n) for n, i in enumerate(names)}
    inputs = [tuple(symbol[i] for i in inds) for inds in terms]
    output = tuple(symbol[i] for i in names if i in outputs)
    dims = {symbol[i]: d for i, d in sizes.items() if i in symbol}

    def tree_of(optimizer: Any) -> Any:
        return ctg.array_contract_tree(inputs, output, size_dict=dims, optimize=optimizer, canonicalize=False)

    trees: list[Any] = []
    if len(terms) <= _OUTER:
        # the fixed factor, not the profile's, as a thin product costs more than its operations
        trees.append(tree_of(OptimalOptimizer(minimize="limit-64", search_outer=False, simplify=False)))
    else:
        # False is valid: cotengra annotates only the type of the default
        greedy: Any = ctg.RandomGreedyOptimizer(max_repeats=32, seed=0, parallel=False)  # pyright: ignore[reportArgumentType]
        tree = tree_of(greedy)
        trees.append(tree.copy())
        tree.subtree_reconfigure_(minimize=objective, maxiter=4, seed=0)
        trees.append(tree)
    paths = [tree.get_path() for tree in trees]
    # a cost of sizes alone does not find orders with few permutations, so sample many and choose by the full cost
    words, word = ["".join(inds) for inds in inputs], "".join(output)
    for seed in range(min(_SAMPLES, _SAMPLED_TERMS // len(terms))):
        options: dict[str, Any] = {"parallel": False, "temperature": (0.01, 3.0), "costmod": (0.1, 4.0)}
        sampler = ctg.RandomGreedyOptimizer(max_repeats=1, seed=seed, **options)
        paths.append(sampler(words, word, dims))
    return [tuple((min(p), max(p)) for p in path if len(p) == 2) for path in paths]


def _sweep(segment: Segment, sizes: dict[str, int], bound: int, by_legs: bool) -> Path:
    """Fuse neighbouring cores up to ``bound`` entries, then apply the fused ones to the state one after the other.

    Applying several gates or leaves at once takes one pass over the state instead of several. In the order of the legs,
    the last ones also put the last legs in their places; in the order of the network, neighbours share indices.
    """
    terms = segment.terms
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
    """Return the mean position of the legs to which a core without legs leads."""
    seen, front = {slot}, set(terms[slot])
    while True:
        near = [s for s in range(1, len(terms)) if s not in seen and front & set(terms[s])]
        if not near:
            return float(len(place))
        places = [place[i] for s in near for i in terms[s] if i in place]
        if places:
            return sum(places) / len(places)
        seen |= set(near)
        front = {i for s in near for i in terms[s]}


def _linear(ssa: list[tuple[int, int]], n: int) -> Path:
    """Convert increasing slots to positions in a shrinking list."""
    live = list(range(n))
    out: list[tuple[int, int]] = []
    for step, (a, b) in enumerate(ssa):
        i, j = sorted((live.index(a), live.index(b)))
        out.append((i, j))
        live.pop(j)
        live.pop(i)
        live.append(n + step)
    return tuple(out)

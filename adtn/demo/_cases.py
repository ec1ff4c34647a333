"""What the demo compares: topologies at about the same number of parameters, and the controls."""

from __future__ import annotations

from dataclasses import dataclass

from ..network import (
    ATTN,
    MERA,
    MPO,
    TTN,
    BrickWall,
    Dense,
    Generator,
    Layout,
    RandomFeatures,
    ScaledIdentity,
    ScaledRandom,
    Topology,
    Tucker,
)


@dataclass(frozen=True)
class Problem:
    """A network with one layer to replace.

    Parameters
    ----------
    data : str
        Name of the data set.
    sizes : tuple of int
        Units per layer.
    replaced : int
        Which weight.
    title : str
        For people.
    steps, batch : int
        Of the training.
    """

    data: str
    sizes: tuple[int, ...]
    replaced: int
    title: str
    steps: int
    batch: int


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Parameters
    ----------
    name : str
        For people.
    topology : Topology
    layout : Layout
    lr : float
        Learning rate of the generator; the rest of the network has its own.
    is_control : bool
        Dense, identity and random.
    """

    name: str
    topology: Topology
    layout: Layout
    lr: float = 1e-2
    is_control: bool = False

    def generator(self, seed: int) -> Generator:
        """First values for a seed."""
        return Generator(self.layout.shape, self.topology, layout=self.layout, seed=seed)


PROBLEMS = {
    "digits": (
        Problem("digits", (64, 256, 256, 10), 1, "hidden layer 256x256", 200, 128),
        Problem("digits", (64, 256, 256, 10), 0, "first layer 256x64", 200, 128),
    ),
    "mnist": (
        Problem("mnist", (784, 1024, 1024, 10), 1, "hidden layer 1024x1024", 800, 256),
        Problem("mnist", (784, 1024, 1024, 10), 0, "first layer 1024x784", 800, 256),
    ),
}


def cases_for(problem: Problem, seed: int) -> list[Case]:
    """Controls first, then generators; the budget is a thousandth of the weight on MNIST."""
    shape = problem.sizes[problem.replaced + 1], problem.sizes[problem.replaced]
    whole = Layout.from_factors(shape, [_halves(n) for n in shape])
    fine = Layout.from_factors(shape, [_quarters(n) for n in shape])
    mixed = Layout.from_factors(shape, fine.factors, "interleaved")
    middle = len(fine.factors[0])
    large = shape[0] == 1024
    controls = [
        Case("dense", Dense(), whole, 1e-3, True),
        Case("scaled identity", ScaledIdentity(), whole, 1e-2, True),
        Case("frozen random", ScaledRandom(seed=seed), whole, 1e-2, True),
    ]
    bonds = {"ttn": 4, "attn": 3, "mera": 4, "wall": 3, "mpo": 4, "tucker": 4} if large else {
        "ttn": 4, "attn": 2, "mera": 3, "wall": 1, "mpo": 3, "tucker": 3,
    }  # fmt: skip
    if large and shape[1] == 784:
        bonds |= {"attn": 2, "mera": 3, "wall": 2, "mpo": 2}
    generators = [
        Case("TTN", TTN(bond=bonds["ttn"]), whole),
        Case("aTTN", ATTN(bond=bonds["attn"], pairs=((middle - 1, middle),)), fine),
        Case("MERA", MERA(bond=bonds["mera"]), whole),
        Case("brick wall", BrickWall(layers=bonds["wall"]), BrickWall().default_layout(shape)),
        Case("MPO", MPO(bond=bonds["mpo"]), mixed),
        Case("Tucker", Tucker(bond=bonds["tucker"]), whole),
    ]
    if problem.replaced == 0:
        # input legs are the rows and columns of the image, output legs the position and the kind of a feature
        side = int(shape[1] ** 0.5)
        grid = (8, 8, shape[0] // 64) if large else (4, 4, shape[0] // 16)
        image = Layout.from_factors(shape, (grid, (side, side)))
        generators.append(Case("random features", RandomFeatures(bond=side // 2, seed=seed), image))
    return controls + generators


def _halves(n: int) -> tuple[int, ...]:
    root = int(round(n**0.5))
    return (root, root) if root * root == n else (n,)


def _quarters(n: int) -> tuple[int, ...]:
    return (4, 7, 4, 7) if n == 784 else Layout.of((n,), leg=4).factors[0]

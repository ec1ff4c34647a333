"""What the demo compares: topologies at about the same number of parameters, and the controls."""

from __future__ import annotations

from dataclasses import dataclass

from ..generator import Generator
from ..layout import Layout
from ..topology import (
    ATTN,
    MERA,
    MPO,
    TTN,
    BrickWall,
    Dense,
    RandomFeatures,
    ScaledIdentity,
    ScaledRandom,
    Topology,
    Tucker,
)

LR = 1e-2


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
    network_lr : float
        Learning rate of the layers that are not generated.
    """

    data: str
    sizes: tuple[int, ...]
    replaced: int
    title: str
    steps: int
    batch: int
    network_lr: float = 1e-3


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
    lr: float = LR
    is_control: bool = False

    def generator(self, seed: int) -> Generator:
        """First values for a seed."""
        return Generator(self.layout.shape, self.topology, layout=self.layout, seed=seed)


PROBLEMS = {
    "digits": (
        Problem("digits", (64, 256, 256, 10), 1, "hidden layer 256x256", 250, 128),
        Problem("digits", (64, 256, 256, 10), 0, "first layer 256x64", 250, 128),
    ),
    "mnist": (
        Problem("mnist", (784, 1024, 1024, 10), 1, "hidden layer 1024x1024", 800, 256, 2e-3),
        Problem("mnist", (784, 1024, 1024, 10), 0, "first layer 1024x784", 800, 256),
    ),
}


def cases_for(problem: Problem, seed: int) -> list[Case]:
    """Controls first, then generators; the budget is a thousandth of the weight on MNIST."""
    shape = problem.sizes[problem.replaced + 1], problem.sizes[problem.replaced]
    # interleaved legs: neighbours in the tree are a row leg and a column leg, so the matrix can have full rank
    coarse = Layout.from_factors(shape, [_halves(n) for n in shape], "interleaved")
    fine = Layout.from_factors(shape, [_quarters(n) for n in shape], "interleaved")
    qubits = BrickWall().default_layout(shape)
    controls = [
        # its entries are the weight's up to the scale: this is the learning rate of the other layers
        Case(
            "dense",
            Dense(),
            coarse,
            problem.network_lr / Generator(shape, Dense(), layout=coarse).scale,
            True,
        ),
        Case("scaled identity", ScaledIdentity(), coarse, is_control=True),
        Case("frozen random", ScaledRandom(seed=seed), coarse, is_control=True),
    ]
    large, first = shape[0] == 1024, problem.replaced == 0
    pairs = ((1, 2),)  # a straddling pair of small legs: a disentangler of 4 * 4 legs has 256 entries
    generators = [
        Case("TTN", TTN(bond=4), fine),
        Case("aTTN", ATTN(bond=3 if large and not first else 2, pairs=pairs), fine),
        Case("MERA", MERA(bond=3 if large else 2), fine),
        Case("brick wall", BrickWall(layers=2 if large else 1), qubits),
        Case("MPO", MPO(bond=4 if large and not first else 3 if not large else 2), fine),
        Case("Tucker", Tucker(bond=4 if large else 3), coarse),
    ]
    if problem.replaced == 0:
        # input legs are the rows and columns of the image, output legs the position and the kind of a feature
        side = int(shape[1] ** 0.5)
        grid = (8, 8, shape[0] // 64) if large else (4, 4, shape[0] // 16)
        image = Layout.from_factors(shape, (grid, (side, side)))
        generators.append(Case("random features", RandomFeatures(bond=side // 2, seed=seed), image))
    return controls + generators


def _halves(n: int) -> tuple[int, ...]:
    root = round(n**0.5)
    return (root, root) if root * root == n else (n,)


def _quarters(n: int) -> tuple[int, ...]:
    return (4, 7, 4, 7) if n == 784 else Layout.of((n,), leg=4).factors[0]

"""The cases of the demo: topologies with about the same number of parameters, and the controls."""

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


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A network with one layer to replace.

    Parameters
    ----------
    data : str
        Name of the data set.
    sizes : tuple of int
        Units per layer.
    replaced : int
        Index of the weight to replace.
    title : str
        Title in tables.
    steps, batch : int
        Training steps and batch size.
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


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row of the table.

    Parameters
    ----------
    name : str
        Name in tables.
    topology : Topology
        The topology.
    layout : Layout
        The layout.
    lr : float
        Learning rate of the generator; the other layers have their own.
    is_control : bool
        Whether the case is the dense baseline or a control.
    """

    name: str
    topology: Topology
    layout: Layout
    lr: float = LR
    is_control: bool = False

    def generator(self, seed: int) -> Generator:
        """Create the generator with the initial values of a seed."""
        return Generator(self.layout.shape, self.topology, layout=self.layout, seed=seed)


PROBLEMS = {
    "digits": (
        Problem(
            data="digits", sizes=(64, 256, 256, 10), replaced=1, title="hidden layer 256x256", steps=250, batch=128
        ),
        Problem(data="digits", sizes=(64, 256, 256, 10), replaced=0, title="first layer 256x64", steps=250, batch=128),
    ),
    "mnist": (
        Problem(
            data="mnist",
            sizes=(784, 1024, 1024, 10),
            replaced=1,
            title="hidden layer 1024x1024",
            steps=800,
            batch=256,
            network_lr=2e-3,
        ),
        Problem(
            data="mnist", sizes=(784, 1024, 1024, 10), replaced=0, title="first layer 1024x784", steps=800, batch=256
        ),
    ),
}


def cases_for(problem: Problem, seed: int) -> list[Case]:
    """List the controls, then the generators; on MNIST these have about a thousandth of the entries of the weight."""
    shape = problem.sizes[problem.replaced + 1], problem.sizes[problem.replaced]
    # with interleaved legs, neighbours in the tree are a row leg and a column leg, so the matrix can have full rank
    coarse = Layout.from_factors(shape, [_halves(n) for n in shape], "interleaved")
    fine = Layout.from_factors(shape, [_quarters(n) for n in shape], "interleaved")
    qubits = BrickWall().default_layout(shape)
    controls = [
        # the core is the weight up to the scale, so this is the learning rate of the other layers
        Case(
            name="dense",
            topology=Dense(),
            layout=coarse,
            lr=problem.network_lr / Generator(shape, Dense(), layout=coarse).scale,
            is_control=True,
        ),
        Case(name="scaled identity", topology=ScaledIdentity(), layout=coarse, is_control=True),
        Case(name="frozen random", topology=ScaledRandom(seed=seed), layout=coarse, is_control=True),
    ]
    large, first = shape[0] == 1024, problem.replaced == 0
    pairs = ((1, 2),)  # a straddling pair of small legs, on which a disentangler has 256 entries
    generators = [
        Case(name="TTN", topology=TTN(bond=4), layout=fine),
        Case(name="aTTN", topology=ATTN(bond=3 if large and not first else 2, pairs=pairs), layout=fine),
        Case(name="MERA", topology=MERA(bond=3 if large else 2), layout=fine),
        Case(name="brick wall", topology=BrickWall(layers=2 if large else 1), layout=qubits),
        Case(name="MPO", topology=MPO(bond=4 if large and not first else 3 if not large else 2), layout=fine),
        Case(name="Tucker", topology=Tucker(bond=4 if large else 3), layout=coarse),
    ]
    if problem.replaced == 0:
        # input legs are the rows and columns of the image, output legs the position and the type of a feature
        side = int(shape[1] ** 0.5)
        grid = (8, 8, shape[0] // 64) if large else (4, 4, shape[0] // 16)
        image = Layout.from_factors(shape, (grid, (side, side)))
        generators.append(
            Case(name="random features", topology=RandomFeatures(bond=side // 2, seed=seed), layout=image)
        )
    return controls + generators


def _halves(n: int) -> tuple[int, ...]:
    root = round(n**0.5)
    return (root, root) if root * root == n else (n,)


def _quarters(n: int) -> tuple[int, ...]:
    return (4, 7, 4, 7) if n == 784 else Layout.of((n,), leg=4).factors[0]

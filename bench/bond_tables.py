"""Tables of benchmarks of bonds and of training: recipes, scaling, autoencoders, importance of components."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from statistics import mean, stdev

import numpy as np

RESULTS = Path(__file__).parent / "results"


def page() -> list[str]:
    """Return the sections of docs/results.md about recipes, scaling, autoencoders and importance."""
    lines: list[str] = []
    for title, (name, text, table) in SECTIONS.items():
        content = json.loads((RESULTS / f"{name}.json").read_text())
        lines += [f"## {title}", "", text, "", *table(content)]
    return lines


def table_of(content: dict) -> list[str]:
    """Choose the table that fits the content."""
    for name, _, table in SECTIONS.values():
        if name.replace("-", "_") in content:
            return table(content)
    return []


def recipes_table(content: dict) -> list[str]:
    """Tabulate recipes of training by format, size and start: means over seeds with their standard errors."""
    rows = [row for row in content["compress_recipes"] if row["seed"] >= 0]
    recipes = ("none", "global", "local", "local, global")
    lines = [
        "Accuracy in %, mean ± standard error over seeds; every parameter has the same number of updates.",
        "",
        f"| model | format | parameters | start | seeds | updates | {' | '.join(recipes)} |",
        "|---" * (6 + len(recipes)) + "|",
    ]
    keys = dict.fromkeys((r["case"], r["format"], r["ratio"], r["start"]) for r in rows)
    for case, form, ratio, start in keys:
        own = [r for r in rows if (r["case"], r["format"], r["ratio"], r["start"]) == (case, form, ratio, start)]
        size = f"{own[0]['params']:,} of {own[0]['dense params']:,}"
        cells = [_spread([r["quality"]["accuracy"] for r in own if r["recipe"] == recipe]) for recipe in recipes]
        seeds = len({r["seed"] for r in own if r["recipe"] != "none"})
        lines.append(f"| {case} | {form} | {size} | {start} | {seeds} | {own[0]['steps']} | {' | '.join(cells)} |")
    return [*lines, ""]


def _spread(values: list[float]) -> str:
    if not values:
        return ""
    error = f" ± {stdev(values) / len(values) ** 0.5:.2f}" if len(values) > 1 else ""
    return f"{mean(values):.2f}{error}"


def scaling_table(content: dict) -> list[str]:
    """Tabulate test losses by parameters, and the exponents of power laws through them."""
    rows = [row for row in content["scaling"] if row["seed"] < 100]
    lines: list[str] = []
    for task in dict.fromkeys(row["task"] for row in rows):
        of_task = [row for row in rows if row["task"] == task]
        lines += [
            f"`{task}`: cross entropy on test data, mean ± standard error over seeds",
            "",
            "| layers | bond | width | depth | parameters of hidden layers | seeds | test loss |",
            "|---" * 7 + "|",
        ]
        for key in dict.fromkeys((r["form"], r["bond"], r["width"], r["depth"]) for r in of_task):
            own = [r for r in of_task if (r["form"], r["bond"], r["width"], r["depth"]) == key]
            losses = [r["test loss"] for r in own]
            error = f" ± {stdev(losses) / len(losses) ** 0.5:.4f}" if len(losses) > 1 else ""
            form, bond, width, depth = key
            lines.append(
                f"| {form} | {bond or ''} | {width} | {depth} | {own[0]['params']:,} | {len(own)} "
                f"| {mean(losses):.4f}{error} |"
            )
        lines += ["", f"`{task}`: exponents of loss ~ parameters^-a, fitted to the sizes in one row", ""]
        lines += ["| layers | sizes | a | largest deviation from the line |", "|---|---|---|---|"]
        for form, sizes, exponent, away in exponents(of_task):
            lines.append(f"| {form} | {sizes} | {exponent:.3f} | {100 * away:.0f} % |")
        lines.append("")
    return lines


def exponents(rows: list[dict]) -> list[tuple[str, int, float, float]]:
    """Fit a power law per kind of layer: by bond at the common width and depth, and by width if it is dense."""
    width = max((r["width"] for r in rows if r["form"] == "low rank"), default=0)
    found: list[tuple[str, int, float, float]] = []
    for form in dict.fromkeys(row["form"] for row in rows):
        own = [r for r in rows if r["form"] == form and r["depth"] == 2 and (form == "dense" or r["width"] == width)]
        sizes = sorted({r["params"] for r in own})
        if len(sizes) < 3:
            continue
        x = np.log(sizes)
        y = np.log([mean(r["test loss"] for r in own if r["params"] == size) for size in sizes])
        slope, offset = np.polyfit(x, y, 1)
        found.append((form, len(sizes), -float(slope), float(np.expm1(np.abs(y - slope * x - offset).max()))))
    return found


def autoencoder_table(content: dict) -> list[str]:
    """Tabulate what features keep of activations: means over seeds."""
    rows = content["autoencoder"]
    lines = [
        "| features | method | parameters | seeds | relative error | between over within classes | accuracy in % |",
        "|---" * 7 + "|",
    ]
    keys = dict.fromkeys((r["features"], r["method"], r["params"]) for r in rows)
    for features, method, params in sorted(keys, key=lambda key: key[0]):
        own = [r for r in rows if (r["features"], r["method"], r["params"]) == (features, method, params)]
        cells = [mean(r[name] for r in own) for name in ("relative error", "separability", "accuracy")]
        error, separability, accuracy = cells
        seeds = len({r["seed"] for r in own})
        lines.append(
            f"| {features} | {method} | {params:,} | {seeds} | {error:.3f} | {separability:.2f} | {accuracy:.1f} |"
        )
    return [*lines, ""]


def importance_table(content: dict) -> list[str]:
    """Tabulate Spearman's correlations of scores with what the loss grows by: means over seeds."""
    rows = content["importance"]
    scores = ("weight", "outputs", "metric", "Taylor")
    lines = [
        f"| network | seeds | components | {' | '.join(f'{s}, {w}' for s, w in product(scores, ('all', 'within')))} |",
        "|---" * (3 + 2 * len(scores)) + "|",
    ]
    for name in dict.fromkeys(row["topology"] for row in rows):
        own = [row for row in rows if row["topology"] == name]
        cells = [f"{mean(r[s][where] for r in own):.2f}" for s in scores for where in ("all", "within bonds")]
        lines.append(f"| {name} | {len(own)} | {own[0]['components']} | {' | '.join(cells)} |")
    return [*lines, ""]


SECTIONS: Mapping[str, tuple[str, str, Callable[[dict], list[str]]]] = {
    "Recipes of training": (
        "compress-recipes",
        """The claims of arXiv:2605.19842 about local and global training, on ResNets and CIFAR-10: convolutions become
Tucker or MPO networks, from decompositions in the metric of their inputs or from random cores. *Local*
trains one layer after the other to reproduce its dense outputs, *global* the whole model by its labels and
the dense outputs (share 0.9), *local, global* half of the updates each; rates are chosen per format, start
and recipe on held-out training images. Running statistics are corrected after decompositions and after
local training. *None* is the decomposition as it is. `python bench/compress/recipes.py`. Batches of 32, and
few updates. On ResNet-20, three seeds, global training is best or level. Local training alone is level with
it from decompositions with half of the parameters, two to fifteen points behind with a quarter, and 9 to 28
behind from random cores: that local beats global training was not seen. Local before global training gains
nothing beyond the errors, and costs up to 4.5 points.
On ResNet-56, from decompositions, local training does beat global training: 91.1 against 89.4 (Tucker, half
of the parameters; 90.6 before training), 88.8 against 85.4 (MPO; 87.7) and 84.1 against 83.3 (Tucker, a
quarter; 81.8). With rates that were chosen on ResNet-20, global updates make the larger ones worse. From
random cores global training is 12 to 37 points ahead of local, and local before global gains 3 to 6 more
for Tucker networks. MPOs with a quarter of the parameters, whose decompositions are far off (46.2), gain more
from global training: 73.6 against 56.8 (local training has one seed there).""",
        recipes_table,
    ),
    "Scaling with parameters": (
        "scaling",
        """Networks trained from scratch with layers of one kind, for the same number of steps on the same batches;
rates are chosen per kind of layer at a middle size on held-out data. Exponents are for rows of one width
and depth, or for dense layers of several widths. `python bench/scaling.py`. On MNIST, an MPO with 2,128
parameters is as good as a dense network of 54,400, and beyond bonds of 16 it gets worse at this rate, so
that no power law describes it; nor does one describe the trees. In small transformers on the characters of
Shakespeare, MPO layers have the lowest loss for their parameters at every size from 6,744 on: 2.08 with
36,424, where low-rank pairs have 2.25 with 35,072 and dense layers 2.04 with 99,456; with a bond of 32 and
137,800, 1.97, where dense layers have 2.00 with 395,520 and low-rank pairs 2.02 with 133,376. Trees are level
with dense layers of as many parameters or better. Power laws describe all of them within two percent; in the
exponents, low-rank pairs gain most from more parameters. 400 steps of batches of 32 pieces: nothing here says
what longer trainings do.""",
        scaling_table,
    ),
    "Autoencoders of activations": (
        "autoencoder",
        """The outputs of the last stage of ResNet-20, ``(64, 8, 8)`` per image, through an MPO encoder and an MPO
decoder, which start at random or as decompositions of principal components and are trained for 600 steps.
What the bond between them keeps is judged on 5,000 test images. `python bench/compress/autoencoder.py`.
With as many features, MPO encoders classify nearly as well as principal components with 15 times as many
parameters, and reconstruct less; components of as many parameters are far behind.""",
        autoencoder_table,
    ),
    "Importance of components": (
        "importance",
        """Spearman's correlation of scores with what the loss grows by when one component of a bond is removed, over
all components of a network, and within bonds on average: the norm of the change of the weight, of the
outputs on data, in the damped metric of inputs and gradients, and the first-order change. First layer of
784-1024-1024-10 on MNIST. `Bond.ablation(inputs=...)` is the second. `python bench/importance.py`.""",
        importance_table,
    ),
}

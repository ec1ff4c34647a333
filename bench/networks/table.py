"""Write docs/results.md, and its pictures, from the JSON: ``python bench/networks/table.py``."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from statistics import mean, stdev
from typing import Any

RESULTS = Path(__file__).parent / "results"
CASES = Path(__file__).parent / "cases"
DOCS = Path(__file__).parents[2] / "docs"
CONTROLS = ("scaled identity", "scaled random")
_INTRO = """# Published networks, measured

Layers of trained networks are replaced, and what replaces them is trained through the loss of the network. Everything
before the first replaced layer stays as it was and is computed once; biases and the layers behind are trained along, by
every method alike, with the same steps, learning rates and batches (dense layers: a smaller learning rate).
In cases named "end-to-end" all layers are trained along. Another machine trains another network from the same seed:
each table states the dense accuracy that it belongs to.
`bench/networks/cases/` holds the settings, `bench/networks/results/` every run with its seed, command and machine.
`python bench/networks/table.py` writes this page.

Two **controls** stand in every table: an identity (cut to shape) and a frozen random matrix, each with one trained
factor. A layer **matters** when both cost more than one point. A layer that does not matter compresses by itself,
whatever replaces it.

"Active" parameters can influence the weight; in newer runs they are counted for up to 1,000 parameters, above that all
are called active. Where a method cannot be as small as the budget, it is as small as it can be. Legs "by meaning"
follow the axis: rows and columns of an image, channels, places.
"""
_GOALS = (
    "Of every case with a goal the best method within the budget, chosen by the accuracy that is shown; means over the "
    "seeds. Where a control does as well, the layers are redundant and the goal says little."
)
_NOTE = (
    "Accuracy, and in brackets how much of the gap between the random control and the dense layer is closed. Entries "
    "that are wholly in brackets are larger than the ratio allows: the method has nothing smaller. One seed, or two "
    "or three where there is a spread."
)


def main() -> None:
    """Write the page."""
    (DOCS / "results.md").write_text(page(DOCS))
    print(DOCS / "results.md")


def page(folder: Path) -> str:
    """The text; its pictures go to a folder."""
    found = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    parts = [_INTRO, *_goals(found), *_dense()]
    for content in sorted(found, key=lambda content: "baseline" in content["case"]):
        kind = _curve if content["case"].get("ratios") else _ablation if "baseline" in content["case"] else _case
        parts += kind(content, folder)
    return "\n".join(parts).rstrip() + "\n"


def _goals(found: list[dict[str, Any]]) -> list[str]:
    """Of every case with a largest loss: the best generator within the budget, beside both controls."""
    columns = ("case", "allowed loss", "method", "numbers", "accuracy", "dense", *CONTROLS, "goal", "seeds")
    lines = ["## Goals", "", _GOALS, "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for content in found:
        case = content["case"]
        if "most_loss" not in case:
            continue
        rows = [r for r in content["rows"] if "accuracy" in r and r["options"].get("kind") not in ("dense", "frozen")]
        methods = {r["method"]: r for r in rows if r["method"] not in CONTROLS and _within(case, r)}
        if not methods:
            lines.append(f"| {case['name']} | {case['most_loss']} | none is small enough | | | | | | | |")
            continue
        best = max(methods, key=lambda method: mean(_accuracies(content, method)))
        values = _accuracies(content, best)
        away = mean(values) - content["dense"]
        goal = "reached" if away >= -case["most_loss"] else f"missed by {-away - case['most_loss']:.2f}"
        controls = [_accuracies(content, name) for name in CONTROLS]
        told = " | ".join(f"{mean(own):.2f}" if own else "-" for own in controls)
        lines.append(
            f"| {case['name']} | {case['most_loss']} | {best} | {methods[best]['params']:,} | {mean(values):.2f} | "
            f"{content['dense']:.2f} | {told} | {goal} | {len(values)} |"
        )
    return [*lines, ""]


def _within(case: dict[str, Any], row: dict[str, Any]) -> bool:
    """Whether no layer has more active numbers than its budget."""
    return all(n["active"] <= case.get("budget", {}).get(k, 0) for k, n in row["layers"].items())


def _dense() -> list[str]:
    lines = ["## Dense networks", "", "| network | data | test accuracy | command |", "|---|---|---|---|"]
    for path in sorted((RESULTS / "dense").glob("*.json")):
        c = json.loads(path.read_text())
        lines.append(f"| {c['network']} | {c['data']} | {c['accuracy']:.2f} % | `{c['command']}` |")
    return [*lines, ""]


def _head(content: dict[str, Any]) -> list[str]:
    case = content["case"]
    lines = [f"## {case['name']}", ""]
    what = (
        f"{case['network']} on {case['data']}, dense {content['dense']:.2f} %; replaced: {', '.join(case['replaced'])}."
    )
    part = case.get("distill", 0.0)
    taught = f"; the outputs of the dense network are {part:.0%} of the loss" if part else ""
    lines.append(f"{what} Goal: {case['goal']}. {case['steps']:,} steps of {case['batch']} images{taught}.")
    own = {name: _accuracies(content, name) for name in CONTROLS}
    if any(own.values()):
        costs = {name: content["dense"] - mean(values) for name, values in own.items() if values}
        told = ", ".join(f"{name} costs {cost:.2f} points" for name, cost in costs.items())
        verdict = "One control is missing" if len(costs) == 1 else "The replaced layers do **not** matter"
        if len(costs) == len(own) and min(costs.values()) > 1.0:
            verdict = "The replaced layers **matter**"
        lines.append(f"{verdict}: {told}.")
    note = tomllib.loads((CASES / f"{case['name']}.toml").read_text()).get("note")
    if note:
        lines += ["", note]
    return [*lines, ""]


def _accuracies(content: dict[str, Any], method: str) -> list[float]:
    return [r["accuracy"] for r in content["rows"] if r["method"] == method and "accuracy" in r]


def _case(content: dict[str, Any], _: Path) -> list[str]:
    case, rows = content["case"], content["rows"]
    lines = [*_head(content), "| method | parameters | active | ratio per layer | accuracy | against dense | seeds |"]
    lines.append("|---|---|---|---|---|---|---|")
    for method in dict.fromkeys(r["method"] for r in rows):
        good = [r for r in rows if r["method"] == method and "accuracy" in r]
        failed = [r for r in rows if r["method"] == method and "error" in r]
        if not good:
            lines.append(f"| {method} | failed: {failed[0]['error']} | | | | | {len(failed)} |")
            continue
        values = [r["accuracy"] for r in good]
        away = mean(values) - content["dense"]
        one = good[0]
        ratios = ", ".join(f"{layer['ratio']:,.0f}x" for layer in one["layers"].values())
        spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
        mark = (
            " **reached**"
            if _within(case, one) and method not in CONTROLS and away >= -case.get("most_loss", -99.0)
            else ""
        )
        lines.append(
            f"| {method} | {one['params']:,} | {one['active']:,} | {ratios} | {mean(values):.2f}{spread} | "
            f"{away:+.2f}{mark} | {len(values)} |"
        )
    return [*lines, ""]


def _curve(content: dict[str, Any], folder: Path) -> list[str]:
    """Rows of methods, columns of ratios: accuracy, and the part of the gap between the random control and dense."""
    case, dense = content["case"], content["dense"]
    ratios = case["ratios"]
    random = mean(_accuracies(content, "scaled random") or [float("nan")])
    lines = _head(content)
    columns = " | ".join(f"{ratio:,}x" for ratio in ratios)
    lines += [f"| method | {columns} |", "|---" * (len(ratios) + 1) + "|"]
    curves: dict[str, list[tuple[int, float]]] = {}
    for name in dict.fromkeys(r["method"].rpartition(" ")[0] for r in content["rows"] if "ratio" in r["options"]):
        cells: list[str] = []
        found: list[dict[str, Any]] = []
        for ratio in ratios:  # a method that has nothing smaller was not run again, or in vain: the seeds of one size
            at = [r for r in content["rows"] if r["method"] == f"{name} {ratio}x" and "accuracy" in r] or found
            sizes = {r["params"] for r in at}
            own = (r for r in content["rows"] if r["method"].rpartition(" ")[0] == name and r.get("params") in sizes)
            found = list({r["seed"]: r for r in own}.values())
            if not found:
                cells.append("-")
                continue
            value, params = mean(r["accuracy"] for r in found), found[0]["params"]
            entries = sum(layer["ratio"] * layer["params"] for layer in found[0]["layers"].values())
            if params > 1.05 * entries / ratio:
                cells.append(f"({value:.2f}, {params:,} numbers)")
                continue
            closed = (value - random) / (dense - random)
            told = f"{closed:.0%}" if closed >= 0.0 else "worse than random"
            spread = f" ± {stdev(r['accuracy'] for r in found):.2f}" if len(found) > 1 else ""
            cells.append(f"{value:.2f}{spread}" + (f" ({told})" if dense - random > 1.0 else ""))
            curves.setdefault(name, []).append((params, value))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", _NOTE]
    picture = f"results-{case['name']}.png"
    _draw(curves, dense, random, folder / picture)
    return [*lines, "", f"![accuracy against parameters]({picture})", ""]


def _ablation(content: dict[str, Any], folder: Path) -> list[str]:
    """What one choice at a time changes."""
    case = content["case"]
    found: dict[str, list[float]] = {}
    for r in content["rows"]:
        if "accuracy" in r:
            found.setdefault(r["method"], []).append(r["accuracy"])
    own = found[case["baseline"]]
    names = [name for name in found if name != case["baseline"]]
    lines = [*_head(content), f"Beside {case['baseline']}, {mean(own):.2f} %, one choice differs:", ""]
    lines += ["| choice | accuracy | change | parameters | seeds |", "|---|---|---|---|---|"]
    sizes = {r["method"]: r["params"] for r in content["rows"] if "params" in r}
    for name in names:
        values = found[name]
        spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
        away = mean(values) - mean(own)
        lines.append(f"| {name} | {mean(values):.2f}{spread} | {away:+.2f} | {sizes[name]} | {len(values)} |")
    picture = f"results-{case['name']}.png"
    _bars({n: found[n] for n in names}, own, folder / picture)
    return [*lines, "", f"![what one choice changes]({picture})", ""]


def _bars(found: dict[str, list[float]], own: list[float], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(found)
    figure, axis = plt.subplots(figsize=(7.5, 0.25 * len(names) + 1.0), layout="constrained")
    kinds = list(dict.fromkeys(n.partition(":")[0] for n in names))
    for y, name in enumerate(reversed(names)):
        away = [v - mean(own) for v in found[name]]
        axis.barh(y, mean(away), color=f"C{kinds.index(name.partition(':')[0]) % 10}", height=0.7)
        axis.plot(away, [y] * len(away), "k.", ms=3)
    if len(own) > 1:
        axis.axvspan(-stdev(own), stdev(own), color="0.9", zorder=0)
    axis.set_yticks(range(len(names)), list(reversed(names)), fontsize=7)
    axis.axvline(0.0, color="k", lw=1)
    axis.set_xscale("symlog", linthresh=1.0)
    low, high = axis.get_xlim()
    ticks = [t for t in (-20, -10, -5, -2, -1, -0.5, 0, 0.5, 1, 2, 5) if low <= t <= high]
    axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axis.minorticks_off()
    axis.grid(axis="x", alpha=0.3)
    axis.set_xlabel("points of test accuracy gained or lost (dots: seeds; grey: spread of the baseline)", fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _family(method: str) -> str:
    if method.startswith("mpo"):
        return "MPO"
    return "trees" if "ttn" in method or "mera" in method else "others"


def _draw(curves: dict[str, list[tuple[int, float]]], dense: float, random: float, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    families: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for name, points in curves.items():
        families.setdefault(_family(name), {})[name] = sorted(dict(sorted(points)).items())
    entries = max(map(len, families.values())) + 4  # of the longest legend
    figure, panels = plt.subplots(
        1,
        len(families),
        squeeze=False,
        sharex=True,
        sharey=True,
        layout="constrained",
        figsize=(4.2 * len(families), 3.6 + 0.19 * entries),
    )
    span = max(dense - random, 1.0)
    for axis, (family, own) in zip(
        panels.flat, sorted(families.items(), key=lambda one: "tMo".index(one[0][0])), strict=True
    ):
        for n, (name, points) in enumerate(own.items()):
            axis.semilogx(*zip(*points, strict=True), "osD^v<>"[n % 7] + "-", ms=5, lw=1, color=f"C{n}", label=name)
        axis.axhline(dense, color="k", lw=1, label="dense")
        axis.axhline(random, color="k", lw=1, ls=":", label="random, one factor")
        for part in (0.5, 0.9) if dense - random > 1.0 else ():
            axis.axhline(random + part * span, color="0.6", lw=1, ls="--", label=f"{part:.0%} of the gap closed")
        axis.axhspan(random - 2 * span, random, color="0.93", zorder=0)
        axis.set(title=family, xlabel="trained numbers in the replaced layers")
        axis.set_ylim(random - 0.35 * span, dense + 0.08 * span)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 0.0), borderaxespad=5.0)
    panels[0, 0].set_ylabel("test accuracy, %")
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


if __name__ == "__main__":
    main()

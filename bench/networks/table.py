"""Write docs/results.md and its pictures from the JSON: ``python bench/networks/table.py``."""

from __future__ import annotations

import importlib.util
import json
import tomllib
from pathlib import Path
from statistics import mean, stdev
from typing import Any

RESULTS = Path(__file__).parent / "results"
CASES = Path(__file__).parent / "cases"
DOCS = Path(__file__).parents[2] / "docs"
CONTROLS = ("scaled identity", "scaled random")
_CURVES = """# Results

## Bytes against quality, without training

Whole trained models, stored in a given number of bytes by `adtn.compress` with a budget (*automatic*), the same without
entropy codes (*fixed length*, measured by an earlier version), and by single
methods, which are listed for each model: low-rank, spatial, Tucker-2 and tensor-train forms, whose ranks are allocated
over the layers by the same search, in float32 or as integers; the dense weights as integers, rounded with error
feedback or to the nearest; integers of torchao and decompositions of TensorLy. Nothing is trained: only a few batches
of data are used, for second moments of inputs, for statistics of batch normalisation and to compare outputs.

The automatic choice includes the stage `"compensate"`, in which layers answer to the errors of the layers before them;
single methods are as their users know them, each layer by itself.

Bytes are those of the layers that are compressed: codes, scales and zero points, against float32. *Best single method*
is the best of all others that takes no more bytes than the budget. It is chosen by the test data that are shown, which
favours it. *Above* and *below* are differences of more than one standard error of the automatic choice over the test
data. `python bench/compress/pareto.py CASE` writes `bench/results/compress-CASE.json`.
"""
_INTRO = """## Published networks, trained through generators

Layers of trained networks are replaced, and the replacements are trained by the loss of the network. Everything before
the first replaced layer is frozen and computed once; biases and later layers are fine-tuned as well, with every method,
and with the same steps, learning rates and batches (dense layers: a smaller learning rate). In cases named
"end-to-end", all layers are fine-tuned as well. Another machine trains another network from the same seed, so each
table states the dense accuracy to which it belongs.
`bench/networks/cases/` contains the settings, `bench/networks/results/` every run with its seed, command and machine.
`python bench/networks/table.py` writes this page.

Every table has two **controls**: an identity (truncated to the shape) and a frozen random matrix, each with one trained
factor. A layer **matters** if both cost more than one point. A layer that does not matter can be compressed by any
method.

"Active" parameters can influence the weight; in newer runs, they are counted for up to 1,000 parameters, and above that
all count as active. A method that cannot be as small as the budget has its smallest size. Legs "by meaning" follow the
structure of the axis: rows and columns of an image, channels, positions.
"""
_GOALS = (
    "For every case with a goal, the best method within the budget, chosen by the accuracy that is shown; means over "
    "the seeds. Where a control does as well, the layers are redundant, and the goal says little."
)
_NOTE = (
    "Accuracy, and in brackets the share of the gap between the random control and the dense layer that is closed. "
    "Entries that are entirely in brackets are larger than the ratio allows, as the method has no smaller size. One "
    "seed, or two or three where a standard deviation is given."
)


def main() -> None:
    """Write the page."""
    (DOCS / "results.md").write_text(page(DOCS))
    print(DOCS / "results.md")


def page(folder: Path) -> str:
    """Return the text of the page, and write its pictures to a folder."""
    results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    parts = [
        _CURVES,
        *_loaded("compress/plot.py").page(folder),
        *_loaded("bond_tables.py").page(),
        _INTRO,
        *_goals(results),
        *_dense(),
    ]
    for content in sorted(results, key=lambda content: "baseline" in content["case"]):
        kind = _curve if content["case"].get("ratios") else _ablation if "baseline" in content["case"] else _case
        parts += kind(content, folder)
    return "\n".join(parts).rstrip() + "\n"


def _loaded(name: str) -> Any:
    """Load a script of ``bench`` without its folder on the path, where names of modules would be hidden."""
    path = Path(__file__).parents[1] / name
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None, "it is part of the benchmarks"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _goals(results: list[dict[str, Any]]) -> list[str]:
    """Tabulate the best generator within the budget and both controls, for every case with a largest loss."""
    columns = ("case", "allowed loss", "method", "parameters", "accuracy", "dense", *CONTROLS, "goal", "seeds")
    lines = ["## Goals", "", _GOALS, "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for content in results:
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
        change = mean(values) - content["dense"]
        goal = "reached" if change >= -case["most_loss"] else f"missed by {-change - case['most_loss']:.2f}"
        controls = [_accuracies(content, name) for name in CONTROLS]
        cells = " | ".join(f"{mean(accuracies):.2f}" if accuracies else "-" for accuracies in controls)
        lines.append(
            f"| {case['name']} | {case['most_loss']} | {best} | {methods[best]['params']:,} | {mean(values):.2f} | "
            f"{content['dense']:.2f} | {cells} | {goal} | {len(values)} |"
        )
    return [*lines, ""]


def _within(case: dict[str, Any], row: dict[str, Any]) -> bool:
    """Return whether no layer has more active parameters than its budget."""
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
    teacher = f"; the outputs of the dense network are {part:.0%} of the loss" if part else ""
    lines.append(f"{what} Goal: {case['goal']}. {case['steps']:,} steps of {case['batch']} images{teacher}.")
    controls = {name: _accuracies(content, name) for name in CONTROLS}
    if any(controls.values()):
        costs = {name: content["dense"] - mean(values) for name, values in controls.items() if values}
        reasons = ", ".join(f"{name} costs {cost:.2f} points" for name, cost in costs.items())
        verdict = "One control is missing" if len(costs) == 1 else "The replaced layers do **not** matter"
        if len(costs) == len(controls) and min(costs.values()) > 1.0:
            verdict = "The replaced layers **matter**"
        lines.append(f"{verdict}: {reasons}.")
    note = tomllib.loads((CASES / f"{case['name']}.toml").read_text()).get("note")
    if note:
        lines += ["", note]
    return [*lines, ""]


def _accuracies(content: dict[str, Any], method: str) -> list[float]:
    return [r["accuracy"] for r in content["rows"] if r["method"] == method and "accuracy" in r]


def _case(content: dict[str, Any], _: Path) -> list[str]:
    case, rows = content["case"], content["rows"]
    lines = [*_head(content), "| method | parameters | active | ratio per layer | accuracy | change | seeds |"]
    lines.append("|---|---|---|---|---|---|---|")
    for method in dict.fromkeys(r["method"] for r in rows):
        good = [r for r in rows if r["method"] == method and "accuracy" in r]
        failed = [r for r in rows if r["method"] == method and "error" in r]
        if not good:
            lines.append(f"| {method} | failed: {failed[0]['error']} | | | | | {len(failed)} |")
            continue
        values = [r["accuracy"] for r in good]
        change = mean(values) - content["dense"]
        first = good[0]
        ratios = ", ".join(f"{layer['ratio']:,.0f}x" for layer in first["layers"].values())
        spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
        mark = (
            " **reached**"
            if _within(case, first) and method not in CONTROLS and change >= -case.get("most_loss", -99.0)
            else ""
        )
        lines.append(
            f"| {method} | {first['params']:,} | {first['active']:,} | {ratios} | {mean(values):.2f}{spread} | "
            f"{change:+.2f}{mark} | {len(values)} |"
        )
    return [*lines, ""]


def _curve(content: dict[str, Any], folder: Path) -> list[str]:
    """Tabulate accuracy, and the share of the gap that is closed, by method and ratio, and draw the curves."""
    case, dense = content["case"], content["dense"]
    ratios = case["ratios"]
    random = mean(_accuracies(content, "scaled random") or [float("nan")])
    lines = _head(content)
    columns = " | ".join(f"{ratio:,}x" for ratio in ratios)
    lines += [f"| method | {columns} |", "|---" * (len(ratios) + 1) + "|"]
    curves: dict[str, list[tuple[int, float]]] = {}
    for name in dict.fromkeys(r["method"].rpartition(" ")[0] for r in content["rows"] if "ratio" in r["options"]):
        cells: list[str] = []
        runs: list[dict[str, Any]] = []
        for ratio in ratios:  # a method without a smaller size has the runs of its smallest one, with all seeds
            at_ratio = [r for r in content["rows"] if r["method"] == f"{name} {ratio}x" and "accuracy" in r] or runs
            sizes = {r["params"] for r in at_ratio}
            same = (r for r in content["rows"] if r["method"].rpartition(" ")[0] == name and r.get("params") in sizes)
            runs = list({r["seed"]: r for r in same}.values())
            if not runs:
                cells.append("-")
                continue
            value, params = mean(r["accuracy"] for r in runs), runs[0]["params"]
            entries = sum(layer["ratio"] * layer["params"] for layer in runs[0]["layers"].values())
            if params > 1.05 * entries / ratio:
                cells.append(f"({value:.2f}, {params:,} parameters)")
                continue
            closed = (value - random) / (dense - random)
            share = f"{closed:.0%}" if closed >= 0.0 else "worse than random"
            spread = f" ± {stdev(r['accuracy'] for r in runs):.2f}" if len(runs) > 1 else ""
            cells.append(f"{value:.2f}{spread}" + (f" ({share})" if dense - random > 1.0 else ""))
            curves.setdefault(name, []).append((params, value))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", _NOTE]
    picture = f"results-{case['name']}.png"
    _draw(curves, dense, random, folder / picture)
    return [*lines, "", f"![accuracy against parameters]({picture})", ""]


def _ablation(content: dict[str, Any], folder: Path) -> list[str]:
    """Tabulate and draw the change of accuracy by one choice at a time."""
    case = content["case"]
    accuracies: dict[str, list[float]] = {}
    for r in content["rows"]:
        if "accuracy" in r:
            accuracies.setdefault(r["method"], []).append(r["accuracy"])
    baseline = accuracies[case["baseline"]]
    names = [name for name in accuracies if name != case["baseline"]]
    lines = [*_head(content), f"One choice differs from {case['baseline']}, {mean(baseline):.2f} %:", ""]
    lines += ["| choice | accuracy | change | parameters | seeds |", "|---|---|---|---|---|"]
    sizes = {r["method"]: r["params"] for r in content["rows"] if "params" in r}
    for name in names:
        values = accuracies[name]
        spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
        change = mean(values) - mean(baseline)
        lines.append(f"| {name} | {mean(values):.2f}{spread} | {change:+.2f} | {sizes[name]} | {len(values)} |")
    picture = f"results-{case['name']}.png"
    _bars({n: accuracies[n] for n in names}, baseline, folder / picture)
    return [*lines, "", f"![change of accuracy by one choice]({picture})", ""]


def _bars(accuracies: dict[str, list[float]], baseline: list[float], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(accuracies)
    figure, axis = plt.subplots(figsize=(7.5, 0.25 * len(names) + 1.0), layout="constrained")
    kinds = list(dict.fromkeys(n.partition(":")[0] for n in names))
    for y, name in enumerate(reversed(names)):
        changes = [v - mean(baseline) for v in accuracies[name]]
        axis.barh(y, mean(changes), color=f"C{kinds.index(name.partition(':')[0]) % 10}", height=0.7)
        axis.plot(changes, [y] * len(changes), "k.", ms=3)
    if len(baseline) > 1:
        axis.axvspan(-stdev(baseline), stdev(baseline), color="0.9", zorder=0)
    axis.set_yticks(range(len(names)), list(reversed(names)), fontsize=7)
    axis.axvline(0.0, color="k", lw=1)
    axis.set_xscale("symlog", linthresh=1.0)
    low, high = axis.get_xlim()
    ticks = [t for t in (-20, -10, -5, -2, -1, -0.5, 0, 0.5, 1, 2, 5) if low <= t <= high]
    axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axis.minorticks_off()
    axis.grid(axis="x", alpha=0.3)
    axis.set_xlabel("change of test accuracy in points (dots: seeds; grey: spread of the baseline)", fontsize=8)
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
    for axis, (family, lines) in zip(
        panels.flat, sorted(families.items(), key=lambda item: "tMo".index(item[0][0])), strict=True
    ):
        for n, (name, points) in enumerate(lines.items()):
            axis.semilogx(*zip(*points, strict=True), "osD^v<>"[n % 7] + "-", ms=5, lw=1, color=f"C{n}", label=name)
        axis.axhline(dense, color="k", lw=1, label="dense")
        axis.axhline(random, color="k", lw=1, ls=":", label="random, one factor")
        for part in (0.5, 0.9) if dense - random > 1.0 else ():
            axis.axhline(random + part * span, color="0.6", lw=1, ls="--", label=f"{part:.0%} of the gap closed")
        axis.axhspan(random - 2 * span, random, color="0.93", zorder=0)
        axis.set(title=family, xlabel="parameters in the replaced layers")
        axis.set_ylim(random - 0.35 * span, dense + 0.08 * span)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 0.0), borderaxespad=5.0)
    panels[0, 0].set_ylabel("test accuracy, %")
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


if __name__ == "__main__":
    main()

"""Curves of bytes against quality, and the automatic choice beside the best single method within the same bytes.

``python bench/compress/plot.py`` draws ``bench/results/compress-CASE.png`` from the JSON beside it;
``python bench/networks/table.py`` writes the tables to ``docs/results.md``.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"
AUTOMATIC, FIXED = "automatic", "fixed length"
BUDGETS = (1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0)
_SLACK = 1.001  # of ratios: a budget is a whole number of bytes
_NAMES = {
    "lenet5": "LeNet-5",
    "resnet20": "ResNet-20",
    "resnet56": "ResNet-56",
    "minilm": "MiniLM-L6",
    "smollm2": "SmolLM2-135M",
    "stories260k": "stories260K",
}
_ABOUT = {
    "lenet5": "All layers, on MNIST; the first one, of 150 entries, stays in float32. The network is the one below.",
    "resnet20": "All layers, on CIFAR-10; calibrated by 3,072 training images.",
    "resnet56": "All layers, on CIFAR-10; calibrated by 3,072 training images.",
    "stories260k": (
        "All projections of a decoder with 260,032 parameters, without its embedding. Its data are stories that it "
        "generates itself, for the test 512 of 64 tokens; equal probabilities for all tokens would have -6.24."
    ),
    "smollm2": "All projections of SmolLM2-135M-Instruct, whose weights are on a grid of 4 bits, on WikiText-2.",
    "minilm": "All projections, on sentences of WikiText-2.",
}
_MEASURES = {
    "accuracy": "test accuracy, %",
    "log-likelihood": "test log-likelihood per token, nats",
    "cosine": "mean cosine with the embeddings of the dense model",
}
_PUBLISHED = """Numbers of others are for other networks and trainings, and by their authors:

- Tucker and tensor-train layers of a ResNet-32 (dense 92.49 %) with 3 times fewer parameters have 93.29 to 93.44 % and
  93.05 to 93.07 % after 200 epochs of ADMM (M. Yin, Y. Sui, S. Liao, B. Yuan 2021, arXiv:2107.12422, and its code).
- HALOC's Tucker-2 form of a ResNet-20 gains 0.07 points with 72 % fewer operations, after a full training (J. Xiao et
  al. 2023, arXiv:2301.09422).
- BALF (arXiv:2509.25136) allocates the ranks of whitened low-rank convolutions without training, as *low rank* here.
- SVD-LLM gives LLaMA-7B a perplexity of 7.94, 13.11 and 42.30 on WikiText-2 with 20, 40 and 60 % fewer parameters,
  whitened and without training (X. Wang, Y. Zheng, Z. Wan, M. Zhang 2024, arXiv:2403.07378).
"""
_SPAN = {"accuracy": 20.0, "log-likelihood": 3.0}  # below the best, where a model is still of some use
Row = dict[str, Any]


def main() -> None:
    """Draw the curves of every case."""
    for content in contents():
        path = RESULTS / f"compress-{name_of(content)}.png"
        draw(content, path)
        print(path)


def contents() -> list[dict[str, Any]]:
    """Read the results of all models."""
    found = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("compress-*.json"))]
    return [content for content in found if "compress_models" in content]


def name_of(content: dict[str, Any]) -> str:
    """Return the name of the case."""
    return content["compress_models"][0]["case"]


def page(folder: Path) -> list[str]:
    """Return the lines of a page, and draw its pictures to a folder."""
    lines: list[str] = []
    for content in contents():
        if len(_untrained(content)) < 3:
            continue
        name = name_of(content)
        picture = f"results-compress-{name}.png"
        draw(content, folder / picture)
        lines += [
            f"### {_NAMES.get(name, name)}",
            "",
            _ABOUT[name],
            "",
            *table(content),
            f"![quality against bytes]({picture})",
            "",
        ]
    return [*lines, *parameters()]


def _settings(row: Row) -> str:
    """Describe the settings of a training."""
    if row.get("lr") is None:
        return "default settings"
    return f"rate {row['lr']:g}, dense outputs {row['distill'] or 0.0:.0%} of the loss"


def parameters() -> list[str]:
    """Tabulate the results of budgets of parameters, means over the seeds."""
    cells: dict[tuple[Any, ...], list[Row]] = {}
    dense: dict[str, float] = {}
    for path in sorted(RESULTS.glob("compress-*.json")):
        content = json.loads(path.read_text())
        for row in content.get("compress_models", []):
            if row["method"] == "dense":
                dense[row["case"]] = _value(row)
            elif row["unit"] == "parameters" and "quality" in row:
                cells.setdefault((row["case"], row["ratio"], row["steps"], _settings(row)), []).append(row)
        for row in content.get("compress_full", []):
            if row["params"] is not None:
                cells.setdefault((row["case"], row["params"], row["steps"], _settings(row)), []).append(row)
    lines = ["| model | parameters of its layers | training | quality | dense | seeds |", "|---" * 6 + "|"]
    for (case, ratio, steps, settings), rows in sorted(cells.items()):
        measure = next(iter(rows[0]["quality"]))
        digits = 2 if measure == "accuracy" else 3
        values = [_value(row) for row in rows]
        spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
        before = f"{dense[case]:.{digits}f}" if case in dense else "-"
        trained = f"{steps:,} steps, {settings}" if steps else "none"
        lines.append(
            f"| {_NAMES.get(case, case)} | {ratio:g} times fewer | {trained} | "
            f"{mean(values):.{digits}f}{spread} ({_MEASURES.get(measure, measure)}) | {before} | {len(values)} |"
        )
    about = "In float32, with a budget of parameters, as low-rank, spatial, Tucker-2 and tensor-train forms or dense:"
    return ["### Parameters", "", about, "", *lines, "", _PUBLISHED]


def table(content: dict[str, Any]) -> list[str]:
    """Tabulate the automatic choice and the best single method that takes no more bytes, for every budget."""
    rows = _untrained(content)
    measure = _measure(content)
    dense = next((r for r in rows if r["method"] == "dense"), None)
    single = [r for r in rows if r["method"] not in (AUTOMATIC, FIXED, "dense", "float32")]
    budgets = sorted({r["ratio"] for r in rows if r["ratio"] is not None}.union(BUDGETS))
    digits = 2 if measure == "accuracy" else 3
    lines: list[str] = []
    if dense is not None:
        spread = dense["standard errors"][measure]
        lines += [f"Dense: {_value(dense):.{digits}f} ± {spread:.{digits}f} ({_MEASURES.get(measure, measure)}).", ""]
    lines += [f"Single methods that were measured: {', '.join(dict.fromkeys(r['method'] for r in single))}.", ""]
    lines += ["| times smaller | automatic | fixed length | best single method | | difference | |", "|---" * 7 + "|"]
    for budget in budgets:
        own = [r for r in rows if r["method"] == AUTOMATIC and r["ratio"] == budget]
        others = [r for r in single if r["ratio of bytes"] * _SLACK >= budget]
        best = max(others, key=_value, default=None)
        cells = ["not run", "not run", "-", "none is as small", "", ""]
        value = sum(map(_value, own)) / max(len(own), 1)
        error = max((r["standard errors"][measure] for r in own), default=0.0)
        if own:
            cells[0] = f"{value:.{digits}f} ± {error:.{digits}f}"
        fixed = [_value(r) for r in rows if r["method"] == FIXED and r["ratio"] == budget]
        if fixed:
            cells[1] = f"{mean(fixed):.{digits}f}"
        if best is not None:
            cells[2:4] = f"{_value(best):.{digits}f}", f"{best['method']}, {best['ratio of bytes']:.1f}x"
        if own and best is not None:
            change = value - _value(best)
            verdict = "above" if change > error else "**below**" if change < -error else "level"
            cells[4:] = f"{change:+.{digits}f}", verdict
        lines.append(f"| {budget:g}x | {' | '.join(cells)} |")
    return [*lines, ""]


def _untrained(content: dict[str, Any]) -> list[Row]:
    """Return the rows without training and with a budget in bytes that did not fail."""
    return [r for r in _done(content) if r["steps"] == 0 and r["unit"] == "bytes"]


def _done(content: dict[str, Any]) -> list[Row]:
    return [r for r in content["compress_models"] if "quality" in r]


def _measure(content: dict[str, Any]) -> str:
    return next(iter(_done(content)[0]["quality"]))


def _value(row: Row) -> float:
    return next(iter(row["quality"].values()))


def _curve(row: Row) -> str:
    """Return the name of the curve that a row is on: formats of the same kind are one curve."""
    method: str = row["method"]
    if row["steps"]:
        return f"{method}, {row['steps']} steps"
    for start in ("torchao HQQ", "torchao", "nearest coded", "nearest"):
        if method.startswith(start):
            return f"{start} integers"
    if method.startswith("coded"):
        return "entropy codes"
    return "integers with feedback" if method.startswith("int") else method


def envelope(rows: list[Row]) -> list[tuple[float, float]]:
    """Return the best quality of rows that are at least that many times smaller, from small to large ratios."""
    found: list[tuple[float, float]] = []
    best = float("-inf")
    for row in sorted(rows, key=lambda r: -r["ratio of bytes"]):
        best = max(best, _value(row))
        found.append((row["ratio of bytes"], best))
    return found[::-1]


def draw(content: dict[str, Any], path: Path) -> None:
    """Draw quality against bytes for every method."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows, measure = [r for r in _done(content) if r["unit"] == "bytes"], _measure(content)
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        curves.setdefault(_curve(row), []).append((row["ratio of bytes"], _value(row)))
    dense = curves.pop("dense", None)
    figure, axis = plt.subplots(figsize=(8.0, 4.4), layout="constrained")
    single = [r for r in _untrained(content) if r["method"] not in (AUTOMATIC, FIXED, "dense", "float32")]
    border = [(x, y) for x, y in envelope(single) if x <= 1.05 * 32.0]
    if border:
        axis.step(*zip(*border, strict=True), where="pre", color="0.75", lw=5, zorder=1, label="best single method")
    names = sorted(curves, key=lambda name: not name.startswith(AUTOMATIC))
    colors = plt.get_cmap("tab20").colors  # pyright: ignore[reportAttributeAccessIssue]
    order = [*range(0, 20, 2), *range(1, 20, 2)]  # dark ones first
    for n, name in enumerate(names):
        is_own = name.startswith(AUTOMATIC)
        axis.plot(
            *zip(*sorted(curves[name]), strict=True),
            "osD^v<>"[n % 7] + ("-" if name == AUTOMATIC else "--" if is_own else "-"),
            color="k" if is_own else "0.45" if name == FIXED else colors[order[n % 20]],
            lw=2.5 if is_own else 1.0,
            ms=6 if is_own else 4,
            zorder=3 if is_own else 2,
            label=name,
        )
    top = max(y for points in curves.values() for _, y in points)
    if dense:
        axis.axhline(dense[0][1], color="k", lw=0.8, ls=":", label="dense")
        top = max(top, dense[0][1])
    shown = [y for _, y in border] + [y for name in names if name.startswith(AUTOMATIC) for _, y in curves[name]]
    low = max(min(shown, default=top - 1.0), top - _SPAN.get(measure, 1.0))
    axis.set_ylim(low - 0.1 * (top - low), top + 0.05 * (top - low))  # methods that are far worse are cut off
    axis.set_xscale("log")
    axis.set_xlim(1.2, 36.0)
    axis.set_xticks(BUDGETS, [f"{ratio:g}" for ratio in BUDGETS])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.set(xlabel="times smaller (bytes)", ylabel=_MEASURES.get(measure, measure))
    figure.legend(fontsize=8, loc="outside right upper")
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()

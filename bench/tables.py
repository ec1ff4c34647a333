"""Write bench/results/README.md from the JSON beside it."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, stdev

RESULTS = Path(__file__).parent / "results"


def accuracy_table(content: dict) -> list[str]:
    """Accuracy of every case of a demo: mean, and standard deviation where there are several seeds."""
    rows = content["results"]
    lines: list[str] = []
    for layer in dict.fromkeys(r["layer"] for r in rows):
        own = [r for r in rows if r["layer"] == layer]
        devices = list(dict.fromkeys(r["device"] for r in own))
        lines += [f"**{layer}**", "", f"| layer is | params | active | ratio | bytes | {' | '.join(devices)} |"]
        lines.append("|---" * (5 + len(devices)) + "|")
        for case in dict.fromkeys(r["case"] for r in own):
            found = [r for r in own if r["case"] == case]
            cells = [_accuracy([r["accuracy"] for r in found if r["device"] == d]) for d in devices]
            one = found[0]
            lines.append(
                f"| {case} | {one['params']:,} | {one['active_params']:,} | {one['ratio']:,.0f}x | {one['bytes']:,} "
                f"| {' | '.join(cells)} |"
            )
        lines.append("")
    return lines


def _accuracy(values: list[float]) -> str:
    if not values:
        return "-"
    spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{mean(values):.2f}{spread} ({len(values)} seed{'s' * (len(values) > 1)})"


def side_by_side_table(content: dict) -> list[str]:
    """Ratios of the devices; absolute times of a shared machine say little."""
    lines = ["| work | device | mode | time, first device = 1 | relative error |", "|---|---|---|---|---|"]
    first: dict[tuple, float] = {}
    for r in content["results"]:
        work = (r["case"], r["task"], r["batch"], r["dtype"])
        name = " ".join(str(x) for x in work if x is not None)
        if r["error"]:
            lines.append(f"| {name} | {r['device']} | {r['error']} | | |")
            continue
        base = first.setdefault(work, r["seconds"])
        mode = r["mode"] + (f", {r['tiles']} tiles" if r["tiles"] > 1 else "")
        lines.append(f"| {name} | {r['device']} | {mode} | {r['seconds'] / base:.2f} | {r['relative_error']:.1e} |")
    return [*lines, ""]


def peers_table(content: dict) -> list[str]:
    """One column per generator: time relative to the best peer, and peak memory."""
    cases = content["peers"]
    methods = list(dict.fromkeys(m for c in cases for m in c["methods"]))
    lines = [
        "Time relative to the fastest peer (all but adtn and the products alone; below 1 is faster), and in brackets",
        "the peak of extra memory in weights.",
        "",
        f"| method | {' | '.join(c['case'] + ' ' + str(c['n']) for c in cases)} |",
        "|---" * (1 + len(cases)) + "|",
    ]
    for method in methods:
        cells: list[str] = []
        for case in cases:
            row = case["methods"].get(method, {"error": "not run"})
            if "error" in row:
                cells.append(row["error"][:60])
                continue
            peak = row["peak_over_weight"]
            cells.append(f"{1 / row['best_peer_over_this']:.2f}" + (f" ({peak:.2f})" if peak is not None else ""))
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return [*lines, ""]


def summary_table(content: dict) -> list[str]:
    """What a run says of itself."""
    rows = content["summary"]
    columns = list(next(iter(rows.values())))
    lines = [f"| | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    for name, row in rows.items():
        cells = [str(x) if isinstance(x, int) else f"{x:.2f}" for x in row.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, ""]


def apply_table(content: dict) -> list[str]:
    """Ratios to the dense layer."""
    rows = content["apply"]
    batches = list(dict.fromkeys(r["batch"] for r in rows))
    lines = [
        "Time relative to a dense layer with its weight at hand.",
        "",
        f"| layer | device | {' | '.join(f'batch {b}' for b in batches)} |",
        "|---" * (2 + len(batches)) + "|",
    ]
    for case, device in dict.fromkeys((r["case"], r["device"]) for r in rows):
        own = {r["batch"]: r for r in rows if (r["case"], r["device"]) == (case, device)}
        cells = [f"{own[b]['adtn_over_dense']:.2f} {own[b]['mode'][0]}" for b in batches]
        lines.append(f"| {case} | {device} | {' | '.join(cells)} |")
    return [*lines, "", "f: factored, m: materialise, s: stream.", ""]


def growth_table(content: dict) -> list[str]:
    """Time and memory against size."""
    lines = ["| entries | device | parameters | tiles | ms | predicted ms | extra MiB | weight MiB |", "|---" * 8 + "|"]
    for r in content["growth"]:
        peak = "" if r["peak_bytes"] is None else f"{r['peak_bytes'] / 2**20:.1f}"
        lines.append(
            f"| 2^{r['bits']} | {r['device']} | {r['params']} | {r['tiles']} | {r['seconds'] * 1e3:.3g} "
            f"| {r['predicted'] * 1e3:.3g} | {peak} | {2 ** r['bits'] / 2**18:.3g} |"
        )
    exponents = ", ".join(f"{k} {v:.2f}" for k, v in content["exponents_from_2^20"].items())
    return [*lines, "", f"Exponents from 2^20 entries on: {exponents}.", ""]


def table_of(content: dict) -> list[str]:
    """The table that fits the content."""
    for key, make in {
        "growth": growth_table, "apply": apply_table, "peers": peers_table, "summary": summary_table,
        "config": side_by_side_table, "results": accuracy_table,
    }.items():  # fmt: skip
        if key in content:
            return make(content)
    return []


def main() -> None:
    """Rewrite the page."""
    lines = ["# Results", "", "Written by `python bench/tables.py`; do not edit.", ""]
    for path in sorted(RESULTS.glob("*.json")):
        content = json.loads(path.read_text())
        machine = content["machine"]
        versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items() if v != "not installed")
        lines += [
            f"## {path.stem}",
            "",
            f"`{content['command']}`; {machine['cpus']} CPUs, {machine['machine']}; {versions}.",
            "",
        ]
        lines += table_of(content)
        picture = path.with_suffix(".png")
        if picture.exists():
            lines += [f"![{path.stem}]({picture.name})", ""]
    (RESULTS / "README.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()

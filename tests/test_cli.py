"""The command line, as a person would use it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import adtn
import numpy as np
import pytest
from adtn.optim import svd_error
from safetensors.numpy import save_file

WEIGHT = np.add.outer(np.sin(np.arange(24) / 5), np.cos(np.arange(36) / 7))


def run(*args: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, "-m", "adtn", *map(str, args)], capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr
    return done


def test_help_and_version() -> None:
    text = run("--help").stdout
    assert all(command in text for command in ("demo", "devices", "fit", "inspect", "bench"))
    assert run("--version").stdout.strip() == adtn.__version__


def test_devices() -> None:
    assert "numpy:cpu" in run("devices").stdout
    listed = json.loads(run("devices", "--json").stdout)
    assert {"name", "memory_bytes", "dtypes", "usable", "reason"} <= set(listed[0])


@pytest.mark.parametrize("kind", ["npy", "npz", "safetensors"])
def test_fit_and_inspect(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"w.{kind}"
    if kind == "npy":
        np.save(path, WEIGHT)
    elif kind == "npz":
        np.savez(path, fc=WEIGHT, bias=np.float64(1.0))
    else:
        save_file({"fc": WEIGHT.astype(np.float32)}, path)
    shown = run(
        "fit",
        path,
        "--topology",
        "mpo",
        "--bond",
        "4",
        "--leg",
        "4",
        "--steps",
        "300",
        "--start",
        "decomposition",
    ).stdout
    assert "relative error 0.0" in shown and "FINISHED" in shown
    target = tmp_path / "w.adtn.safetensors"
    gen = adtn.load(target)
    beside = f"(a truncated SVD of equal size {svd_error(WEIGHT, gen.num_params):.4f})"
    assert beside in shown
    error = np.linalg.norm(gen.weight() - WEIGHT) / np.linalg.norm(WEIGHT)
    key = () if kind == "npy" else ("--key", "fc")
    told = run("inspect", target, "--weight", path, *key).stdout
    assert f"relative error {error:.4f} of {'w' if kind == 'npy' else 'fc'} {beside}" in told
    assert np.linalg.norm(gen.weight() - WEIGHT) < 0.05 * np.linalg.norm(WEIGHT)
    text = run("inspect", target).stdout
    assert "MPO" in text and "site0" in text
    plain = run("inspect", path).stdout
    assert "24x36" in plain and "rank for 99 %" in plain


@pytest.mark.parametrize(
    ("base", "shown"),
    [(None, "none"), (np.ones((24, 36), np.float32), "array (24, 36)"), (adtn.SeededBase(3), "SeededBase(")],
    ids=["none", "array", "rule"],
)
def test_inspect_names_the_base(base: object, shown: str, tmp_path: Path) -> None:
    adtn.save(tmp_path / "g.safetensors", adtn.Generator((24, 36), adtn.TTN(bond=2), base=base))  # type: ignore[arg-type]
    assert f"base {shown}" in run("inspect", tmp_path / "g.safetensors").stdout


def test_fit_on_another_device_gives_the_same(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    np.save(tmp_path / "w.npy", WEIGHT)
    outputs = []
    for device in ("numpy:cpu", "torch:cpu"):
        out = tmp_path / device.replace(":", "-")
        run(
            "fit",
            tmp_path / "w.npy",
            "--bond",
            "2",
            "--leg",
            "6",
            "--steps",
            "50",
            "--device",
            device,
            "--out",
            out,
        )
        outputs.append(adtn.load(out).weight())
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["fit", "nothing.npy"], "Cannot read nothing.npy"),
        (["fit", "w.txt"], "expected a .npy, .npz or .safetensors"),
        (["fit", "two.npz"], "choose one with --key"),
        (["fit", "two.npz", "--key", "c"], "has no array 'c'; it has a, b"),
        (["fit", "w.npy", "--topology", "peps"], "expected one of"),
        (["fit", "w.npy", "--topology", "tt", "--layers", "2"], "TT has no option --layers"),
        (["fit", "w.npy", "--device", "tpu:0"], "registered are"),
        (["fit", "objects.npy"], "without pickled objects"),
        (["inspect", "g.safetensors", "--weight", "w.npy"], "expected (8, 8), that of the generator"),
        (["inspect", "broken.safetensors"], "is not an adtn file"),
        (["demo", "--data", "letters"], "'digits' or 'mnist'"),
        (["demo", "--data", "mnist"], "ADTN_DATA"),
    ],
)
def test_errors_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ADTN_DATA", raising=False)
    np.save("w.npy", WEIGHT)
    np.savez("two.npz", a=WEIGHT, b=WEIGHT)
    np.save("objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    Path("w.txt").write_text("1 2 3")
    adtn.save("g.safetensors", adtn.Generator((8, 8), adtn.TTN(bond=2)))
    Path("broken.safetensors").write_bytes(b"\xff" * 100)
    done = run(*args, code=1)
    assert message in done.stderr
    assert done.stderr.startswith("adtn: ") and done.stderr.count("\n") == 1
    assert not done.stdout


def test_demo_without_matplotlib_says_what_to_install(tmp_path: Path) -> None:
    args = [
        "demo",
        "--steps",
        "2",
        "--device",
        "numpy:cpu",
        "--only",
        "TTN",
        "--layer",
        "first",
        "--out",
        str(tmp_path),
    ]
    program = f"""
import sys
sys.modules["matplotlib"] = None
sys.argv = ["adtn", *{args!r}]
from adtn.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert "pip install 'adtn[plot]'" in done.stdout
    assert (tmp_path / "demo-digits-first.json").exists()
    assert (tmp_path / "first-layer-256x64-TTN.safetensors").exists()


def test_bench(tmp_path: Path) -> None:
    config, out = tmp_path / "b.toml", tmp_path / "b.json"
    config.write_text(
        'topologies = ["TTN 2", "MPO 8"]\nshapes = [[256, 256]]\nbatches = [4]\n'
        'tasks = ["generate", "apply", "train", "fit"]\n'
    )
    devices = ("--device", "numpy:cpu", "--device", "numpy:gpu")
    text = run("bench", config, *devices, "--seconds", "0.01", "--out", out).stdout
    assert "relative error" in text
    content = json.loads(out.read_text())
    rows = content["results"]
    assert {(r["case"], r["task"]) for r in rows} == {
        (case, task) for case in ("TTN 2 256x256", "MPO 8 256x256") for task in ("generate", "apply", "train", "fit")
    }
    assert all(r["error"] for r in rows if r["device"] == "numpy:gpu"), "failed runs are in the results"
    good = [r for r in rows if r["device"] == "numpy:cpu"]
    assert all(r["seconds"] > 0 and r["relative_error"] < 1e-5 and not r["error"] for r in good)
    assert content["machine"]["versions"]["numpy"] == np.__version__
    assert out.with_suffix(".png").stat().st_size > 1000


def test_bench_refuses_a_config_it_does_not_understand(tmp_path: Path) -> None:
    config = tmp_path / "b.toml"
    config.write_text("topology = 3\n")
    assert "expected some of topologies, shapes" in run("bench", config, code=1).stderr


def test_plan_prints_a_table_and_json() -> None:
    text = run("plan", "4096x4096", "--leg", "8", "--task", "fit", "--profile", "h200").stdout
    assert "profile h200 (datasheet)" in text
    assert "why not" in text
    found = json.loads(run("plan", "256x256", "--bond", "2", "--batch", "16", "--json").stdout)
    assert found["task"] == "apply"
    assert found["batch"] == 16
    assert found["contractions"]


def test_plan_of_a_saved_generator(tmp_path: Path) -> None:
    adtn.save(tmp_path / "g.safetensors", adtn.Generator((64, 32), adtn.MPO(bond=2)))
    assert "64x32" in run("plan", tmp_path / "g.safetensors", "--mode", "factored").stdout


def test_plan_says_what_is_wrong() -> None:
    assert "neither a file nor a shape" in run("plan", "large", code=1).stderr
    assert "smallest that works" in run("plan", "512x512", "--memory", "1KiB", code=1).stderr

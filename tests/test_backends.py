"""Backends, devices, the registry, and the logic for hardware that is not present."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import adtn
import numpy as np
import pytest
from adtn import backends
from adtn.backends import Backend, DeviceInfo, backend_names, backend_of, check_device, get_backend, split_device
from adtn.errors import BackendError, DeviceError, MissingDependencyError


def test_registered_backends() -> None:
    assert {"numpy", "torch", "jax", "null"} <= set(backend_names())


@pytest.mark.parametrize("name", ["numpy", "torch", "jax", "null"])
def test_backends_follow_the_protocol(name: str) -> None:
    pytest.importorskip(name if name != "null" else "numpy")
    backend = get_backend(name)
    assert isinstance(backend, Backend)
    assert backend.name == name
    assert all(d.name.startswith(name + ":") for d in backend.devices())


@pytest.mark.parametrize(
    ("device", "parts"),
    [
        ("numpy:cpu", ("numpy", "cpu")),
        ("torch:cuda:0", ("torch", "cuda:0")),
        ("jax:gpu:0", ("jax", "gpu:0")),
        ("torch", ("torch", "cpu")),
    ],
)
def test_device_strings(device: str, parts: tuple[str, str]) -> None:
    assert split_device(device) == parts


def test_arrays_go_there_and_back(device_dtype: tuple[str, str]) -> None:
    device, dtype = device_dtype
    backend, where = check_device(device, dtype)
    x = np.array([[0.0, 1.5], [-2.0, 0.25]])
    y = backend.asarray(x, where, dtype)
    assert backend_of(y) is backend
    assert backend.dtype_of(y) == dtype
    assert backend.device_of(y).startswith(where.partition(":")[0])
    assert np.array_equal(backend.to_numpy(y), x)
    backend.synchronize(where)


def test_errors_name_what_there_is() -> None:
    with pytest.raises(DeviceError, match=r"Got a device of backend 'tpu'; registered are .*numpy"):
        check_device("tpu:0", "float32")
    with pytest.raises(DeviceError, match="numpy has numpy:cpu here"):
        check_device("numpy:gpu", "float32")
    with pytest.raises(DeviceError, match="Got dtype 'bfloat16' on 'numpy:cpu', which has float64, float32, float16"):
        check_device("numpy:cpu", "bfloat16")
    with pytest.raises(DeviceError, match="expected one of float64"):
        check_device("numpy:cpu", "int8")
    with pytest.raises(DeviceError, match="backend:device"):
        check_device(":cpu", "float32")
    with pytest.raises(BackendError, match="no backend is registered"):
        backend_of([1.0])
    pytest.importorskip("torch")
    if not any(d.usable for d in get_backend("torch").devices() if d.name == "torch:cuda:0"):
        with pytest.raises(DeviceError, match="'torch:cuda:0' is not usable: .*CUDA"):
            check_device("torch:cuda:0", "float32")


def test_missing_framework_names_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = next(ep for ep in backends._entry_points().values() if ep.name == "jax")
    monkeypatch.setitem(sys.modules, "jax", None)
    monkeypatch.delitem(sys.modules, "adtn_backends.jax.backend", raising=False)
    assert isinstance(entry, EntryPoint)
    get_backend.cache_clear()
    try:
        with pytest.raises(MissingDependencyError, match=r"pip install 'adtn\[jax\]'"):
            adtn.Generator((8, 8), adtn.TTN(bond=2)).weight("jax:cpu")
        listed = {d.name: d for d in adtn.devices()}
        assert not listed["jax:cpu"].usable
        assert "adtn[jax]" in listed["jax:cpu"].reason
    finally:
        get_backend.cache_clear()


def cuda(count: int, capability: tuple[int, int] = (8, 0)) -> SimpleNamespace:
    properties = SimpleNamespace(name="A card", total_memory=2**34, major=capability[0], minor=capability[1])
    return SimpleNamespace(
        is_available=lambda: count > 0, device_count=lambda: count, get_device_properties=lambda i: properties
    )


def test_cuda_selection_without_the_hardware() -> None:
    from adtn_backends.torch.backend import cuda_devices

    new, old, none = cuda_devices(cuda(2)), cuda_devices(cuda(1, (7, 5))), cuda_devices(cuda(0))
    assert [d.name for d in new] == ["torch:cuda:0", "torch:cuda:1"]
    assert new[0].dtypes == ("float64", "float32", "bfloat16", "float16")
    assert new[0].memory_bytes == 2**34
    assert old[0].dtypes == ("float64", "float32", "float16"), "a T4 has no bfloat16"
    assert not none[0].usable and none[0].reason


def mps(available: bool, built: bool = True) -> tuple[SimpleNamespace, SimpleNamespace]:
    return (
        SimpleNamespace(is_available=lambda: available, is_built=lambda: built),
        SimpleNamespace(recommended_max_memory=lambda: 2**35),
    )


def test_mps_selection_without_the_hardware() -> None:
    from adtn_backends.torch.backend import mps_devices

    assert mps_devices(*mps(True), "14.5")[0].dtypes == ("float32", "bfloat16", "float16")
    assert mps_devices(*mps(True), "13.6")[0].dtypes == ("float32", "float16")
    assert "macOS 12.3" in mps_devices(*mps(False), "")[0].reason
    assert "without MPS" in mps_devices(*mps(False, built=False), "")[0].reason


def test_mps_refuses_float64_and_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = get_backend("torch")
    info = DeviceInfo(
        name="torch:mps", description="Apple MPS", memory_bytes=2**35, dtypes=("float32", "bfloat16", "float16")
    )
    monkeypatch.setattr(type(backend), "devices", lambda self: [info])
    with pytest.raises(DeviceError, match="float64.*Pass dtype='float32', or run on 'torch:cpu'"):
        check_device("torch:mps", "float64")
    assert check_device("torch:mps", "float32")[1] == "mps"
    with pytest.raises(DeviceError, match="does not support it"):
        backend.asarray(np.ones(2), "mps", "float64")


def test_jax_gpu_is_described_without_the_hardware() -> None:
    from adtn_backends.jax.backend import describe

    card = SimpleNamespace(platform="gpu", id=1, device_kind="A card", memory_stats=lambda: {"bytes_limit": 2**33})
    info = describe(card)
    assert (info.name, info.memory_bytes) == ("jax:gpu:1", 2**33)


def test_devices_print_as_a_table() -> None:
    text = repr(adtn.devices(null=True))
    assert text.splitlines()[0].split() == ["device", "description", "memory", "dtypes"]
    assert "numpy:cpu" in text and "null:cpu" in text
    assert all("not usable: " in line for line in text.splitlines()[1:] if "float" not in line)


PLUGIN = {
    "pyproject.toml": """
        [build-system]
        requires = ["hatchling"]
        build-backend = "hatchling.build"
        [project]
        name = "adtn-toy"
        version = "0.1"
        [project.entry-points."adtn.backends"]
        toy = "adtn_toy:ToyBackend"
        [tool.hatch.build.targets.wheel]
        packages = ["adtn_toy"]
    """,
    "adtn_toy/__init__.py": """
        from adtn.backends import DeviceInfo
        from adtn_backends.numpy.backend import NumpyBackend

        class ToyBackend(NumpyBackend):
            name = "toy"

            def owns(self, kind):
                return False

            def devices(self):
                return [DeviceInfo(name="toy:cpu", description="a toy", memory_bytes=1, dtypes=("float32",))]
    """,
}


def test_a_backend_of_another_distribution_is_found(tmp_path) -> None:
    for name, text in PLUGIN.items():
        path = tmp_path / "src" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    target = tmp_path / "site"
    build = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        str(target),
    ]
    pytest.importorskip("hatchling")
    subprocess.run([*build, str(tmp_path / "src")], check=True, capture_output=True, timeout=120)
    program = (
        "import adtn; print(adtn.Generator((8, 8), adtn.TTN(bond=2)).weight('toy:cpu').shape); print(adtn.devices())"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(target)!r}); {program}"],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "(8, 8)" in done.stdout
    assert "toy:cpu" in done.stdout


def test_jax_multiplies_in_the_dtype_that_was_asked_for() -> None:
    jax = pytest.importorskip("jax")
    seen: list[object] = []

    def product(x):
        seen.append(jax.config.jax_default_matmul_precision)
        return x @ x

    get_backend("jax").compile(product)(jax.numpy.ones((2, 2)))
    with get_backend("jax").scope("float32"):  # code that is not compiled, such as a layer with a cached weight
        product(jax.numpy.ones((2, 2)))
    assert seen == ["highest", "highest"]  # otherwise GPUs use TF32, and CPU and GPU disagree in the fourth digit


def test_the_memory_of_the_host_is_what_the_system_says() -> None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        pytest.skip("no /proc/meminfo here")
    (kib,) = (int(line.split()[1]) for line in lines if line.startswith("MemTotal:"))
    (device,) = get_backend("numpy").devices()
    assert device.memory_bytes == pytest.approx(1024 * kib, rel=0.1)

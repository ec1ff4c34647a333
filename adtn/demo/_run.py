"""Execution of the demo: every case on every device, with a report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .._atomic import write_atomic
from .._checks import Count, checked
from .._files import check_writable, write_or_rescue
from ..backends import check_device
from ..bench import machine
from ..compression import save
from ..device import devices as list_devices
from ..errors import ADTNError
from ..generator import Generator
from ..optim import FitOptions, run_fit
from ._cases import LR, PROBLEMS, Case, Problem, cases_for
from ._data import Images, load_images
from ._mlp import MLP


@dataclass(kw_only=True)
class Result:
    """The result of one trained network.

    Parameters
    ----------
    layer, case, device : str
        The replaced layer, the case and the device.
    seed : int
        Seed of the training.
    accuracy : float
        Accuracy on the test set, in percent.
    params, active_params : int
        Parameters of the replaced layer, nominal and active.
    entries : int
        Entries of its weight.
    bytes : int
        Size of the file of the generator.
    seconds : float
        Training time.
    is_control : bool
        Whether the case is the dense baseline or a control.
    history : list of float
        Training losses.
    """

    layer: str
    case: str
    device: str
    seed: int
    accuracy: float
    params: int
    active_params: int
    entries: int
    bytes: int
    seconds: float
    is_control: bool
    history: list[float] = field(default_factory=list, repr=False)

    @property
    def ratio(self) -> float:
        """The compression ratio: entries per parameter."""
        return self.entries / self.params


@dataclass
class Report:
    """The results of a demo.

    Parameters
    ----------
    data : str
        Name of the data set.
    results : list of Result
        The results.
    weights : dict
        Generated weights of the first seed on the first device, by layer and case, for the figure.
    """

    data: str
    results: list[Result]
    weights: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)

    def to_json(self, command: str) -> dict[str, Any]:
        """Convert to a dictionary without the weights, with the versions and the machine."""
        rows = [
            {**asdict(r), "ratio": r.ratio, "history": [round(x, 5) for x in r.history[::10]]} for r in self.results
        ]
        return {"command": command, "data": self.data, "machine": machine(), "results": rows}


@checked(ADTNError)
def run_demo(
    data: Literal["digits", "mnist"] = "digits",
    *,
    devices: Sequence[str] | None = None,
    seeds: Count = 1,
    steps: Count | None = None,
    only: Sequence[str] = (),
    layer: str = "",
    out: Path | None = None,
    on_result: Callable[[Result], None] | None = None,
    command: str = "adtn demo",
) -> Report:
    """Train through every generator and control, on every device.

    Parameters
    ----------
    data : {"digits", "mnist"}
        Name of the data set.
    devices : sequence of str, optional
        Devices to run on; all usable ones by default.
    seeds : int
        Number of repetitions, which differ in the initial values and in the order of the data.
    steps : int, optional
        Training steps; the default depends on the problem.
    only : sequence of str
        Names of cases to run; all if empty.
    layer : str
        Run only problems whose title starts with this, such as ``"first"``.
    out : pathlib.Path, optional
        Folder for generators and JSON. Existing JSON there is replaced after every result.
    on_result : callable, optional
        Function that is called with every result.
    command : str
        The command line, recorded in the JSON.

    Returns
    -------
    Report

    Raises
    ------
    ADTNError
        If the data cannot be read.
    OutputError
        If ``out`` cannot be written to.
    """
    if out is not None:
        check_writable(out, "out", "folder")
    images = load_images(data)
    where = list(devices) if devices else [d.name for d in list_devices().usable]
    report = Report(f"{data}-{layer}" if layer else data, [])
    problems = [problem for problem in PROBLEMS[data] if problem.title.startswith(layer)]
    if not problems:
        raise ADTNError(f"Got layer={layer!r}; expected one of {', '.join(p.title for p in PROBLEMS[data])}.")
    case_names = list(dict.fromkeys(case.name for problem in problems for case in cases_for(problem, 0)))
    if unknown := [name for name in only if name not in case_names]:
        raise ADTNError(f"Got only={unknown}; expected some of {', '.join(case_names)}.")
    for device in where:
        check_device(device, "float32")
    for problem in problems:
        settings = problem if steps is None else replace(problem, steps=steps)
        for device in where:
            for seed in range(seeds):
                for case in cases_for(problem, seed):
                    if only and case.name not in only:
                        continue
                    result, generator = train(settings, case, images, device, seed)
                    report.results.append(result)
                    if device == where[0] and seed == 0:
                        report.weights[problem.title, case.name] = generator.weight()
                    if out is not None:
                        save_weights = device == where[0] and seed == 0
                        write = partial(_write, report=report, result=result, generator=generator, command=command)
                        write_or_rescue(out, partial(write, keep=save_weights))
                    if on_result is not None:
                        on_result(result)
    return report


def train(problem: Problem, case: Case, images: Images, device: str, seed: int) -> tuple[Result, Generator]:
    """Train the network of a problem through the generator of a case.

    Parameters
    ----------
    problem : Problem
        The network and its training.
    case : Case
        The generator.
    images : Images
        The data set.
    device : str
        The device to train on.
    seed : int
        Seed of the initial values and of the order of the data.

    Returns
    -------
    tuple of Result and Generator
    """
    mlp = MLP(problem.sizes, problem.replaced)
    factors = {"task/": problem.network_lr / LR}
    start = case.generator(seed)
    factors |= {name: case.lr / LR for name in start.params if case.lr != LR}
    options = FitOptions(device=device, steps=problem.steps, lr=LR, lr_factors=factors, seed=seed, progress=False)
    start_time = time.perf_counter()
    solution = run_fit(start, mlp.task(images, seed, problem.batch), options).uninterrupted()
    seconds = time.perf_counter() - start_time
    generator = solution.generator
    accuracy = mlp.accuracy(generator.weight(), solution.params, images.x_test, images.y_test)
    result = Result(
        layer=problem.title,
        case=case.name,
        device=device,
        seed=seed,
        accuracy=100.0 * accuracy,
        params=generator.num_params,
        active_params=generator.num_active_params,
        entries=generator.layout.size,
        bytes=_file_size(generator),
        seconds=seconds,
        is_control=case.is_control,
        history=solution.history.tolist(),
    )
    return result, generator


def _file_size(generator: Generator) -> int:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layer.safetensors"
        save(path, generator)
        return path.stat().st_size


def _write(out: Path, report: Report, result: Result, generator: Generator, command: str, keep: bool) -> None:
    out.mkdir(parents=True, exist_ok=True)
    if keep and result.case != "dense":
        name = f"{result.layer} {result.case}".replace(" ", "-")
        save(out / f"{name}.safetensors", generator)
    write_atomic(out / f"demo-{report.data}.json", (json.dumps(report.to_json(command), indent=1) + "\n").encode())

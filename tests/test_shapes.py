"""Arrays have the shapes that annotations name, on every backend."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import adtn
import pytest

pytest.importorskip("jaxtyping")
pytest.importorskip("beartype")

HERE = Path(__file__).parent
ROOT = Path(adtn.__file__).parent
FRAMEWORKS = {"numpy", "torch", "jax"}
ON_THE_HOST = (
    *("_initial.", "_moments.", "_moment.", "_active.", ".probes", ".to_state", ".moment_to_generated_order"),
    *(".arrange_moment", "Streamed.write"),
    *(".isometric_jacobian", ".stored_isometries", ".canonical", ".unit_isometries"),
)
NOT_CALLED = {
    "_executable.Layer.__call__": "abstract",
    "_executable.Layer.pullback": "abstract",
    "_executable.FitExecutable.arrange": "abstract",
    "_executable.FitExecutable.evaluate": "abstract",
    "_traced.TracedApply.__call__": "called by compilers, which cannot follow the wrapper",
}
WITHOUT_ARRAYS = (".fixed", "._arrays_of", "._records")  # they return functions or iterators: arrays come later
NAMED = re.compile(r"(?:Float|Int|Bool|Shaped)\[[^\]]*\]")
ARRAY = re.compile(r"\b(?:Array|np\.ndarray)\b")


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    folders = (HERE, ROOT.parent, ROOT.parent / "backends", os.environ.get("PYTHONPATH", ""))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    command = [sys.executable, str(program), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=500)


def test_every_call_has_the_annotated_shapes(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("flax")
    out = tmp_path / "calls.json"
    done = run(HERE / "shape_calls.py", str(out))
    assert done.returncode == 0, done.stderr[-3000:]
    calls = json.loads(out.read_text())
    own = {name: seen for name, seen in calls.items() if name.startswith(("adtn.calculus.", "adtn.weight."))}
    assert len(own) > 80
    for name, seen in own.items():
        reason = next((NOT_CALLED[end] for end in NOT_CALLED if name.endswith(end)), "")
        assert bool(seen) == (not reason), name
        if seen and not any(part in name for part in ON_THE_HOST) and not name.endswith(WITHOUT_ARRAYS):
            assert set(seen) >= FRAMEWORKS, (name, seen)


PLANTED = """
from __future__ import annotations

from typing import Any as Array

import numpy as np

def weight(x: Float[Array, "batch n_in"]) -> {annotation}:
    return {result}
"""
USE = """
import importlib.util
import sys

import numpy as np
import shapes

for path in sys.argv[1:]:
    spec = importlib.util.spec_from_file_location("adtn.planted", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    shapes.wrap_all(module)
    try:
        module.weight(np.ones((2, 4)))
        print("right")
    except Exception as error:
        print(type(error).__name__)
"""


def test_wrong_shapes_are_seen(tmp_path: Path) -> None:
    cases = [
        ('Float[Array, "n_out n_in"]', "np.ones((3, 4))", True),
        ('Float[Array, "n_out n_in"]', "np.ones((3, 4, 5))", False),
        ('Float[Array, "n_in n_out"]', "np.ones((3, 4))", False),  # the input has 4
        ('Int[Array, "n_out n_in"]', "np.ones((3, 4))", False),
        ('dict[str, Float[Array, "n_out n_in"]]', '{"W": np.ones((3, 5))}', False),
        ('Float[Array, "n_out n_in"] | None', "None", True),
    ]
    program = tmp_path / "use.py"
    program.write_text(USE)
    planted: list[str] = []
    for n, (annotation, result, _) in enumerate(cases):
        file = tmp_path / f"planted{n}.py"
        file.write_text(textwrap.dedent(PLANTED).replace("{annotation}", annotation).replace("{result}", result))
        planted.append(str(file))
    done = run(program, *planted)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["right" if right else "TypeCheckError" for *_, right in cases]


@pytest.mark.parametrize("package", ["calculus", "weight"])
def test_no_array_is_without_its_axes(package: str) -> None:
    bare: list[str] = []
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                annotations = [ast.unparse(a) for a in (*(x.annotation for x in arguments), node.returns) if a]
                bare += [f"{path.name}:{node.lineno} {a}" for a in annotations if ARRAY.search(NAMED.sub("", a))]
    assert not bare

"""Planted faults change the program, and are the same every time."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import plant


@pytest.fixture(scope="module")
def faults() -> list[plant.Fault]:
    return plant.chosen(0)


def test_every_fault_changes_its_module(faults: list[plant.Fault], tmp_path: Path) -> None:
    assert faults == plant.chosen(0)
    assert len({fault.file for fault in faults}) == len(faults) > 50
    for fault in faults:
        text = (plant.ROOT / fault.file).read_text()
        copy = tmp_path / fault.file
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(text)
        fault.plant(tmp_path)
        assert ast.dump(ast.parse(copy.read_text())) != ast.dump(ast.parse(text)), fault


def test_a_sample_is_seeded_and_not_renumbered(faults: list[plant.Fault]) -> None:
    numbers = plant.sampled(faults, 40, 0)
    assert numbers == plant.sampled(faults, 40, 0) == sorted(set(numbers))
    assert len(numbers) == 40 and numbers != plant.sampled(faults, 40, 1)
    assert plant.sampled(faults, None, 0) == plant.sampled(faults, 10**6, 0) == list(range(len(faults)))


@pytest.mark.parametrize("near_only", [True, False])
def test_only_a_run_of_all_tests_says_that_a_fault_survived(
    near_only: bool, faults: list[plant.Fault], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(plant, "pytest", lambda checkout, env, args, seconds: ran.append(args) or ("passed", ""))
    found = plant.tried(faults[0], 60.0, near_only)
    near = found["near"]
    assert ran == ([near] if near_only else [near, [f"--ignore={name}" for name in near]])
    assert found["verdict"] == ("survived the nearest" if near_only else "survived")


def test_expressions_without_behaviour_are_not_changed(tmp_path: Path) -> None:
    (tmp_path / "adtn").mkdir()
    (tmp_path / "adtn" / "x.py").write_text(
        '''
def f(x: int = 1, *, cache_size: "Literal[3]" = None) -> Annotated[int, 4]:
    """1 + 2"""
    if x < 0:
        raise ValueError(f"Got {x + 1}, expected {2 * 3}.")
    kept = 5 * 6
    return x

class A:
    def __repr__(self) -> str:
        return self.x - 1
'''
    )
    found = {fault.before for fault in plant.faults_of(tmp_path / "adtn" / "x.py", tmp_path)}
    assert found == {"1", "x < 0", "0"}


def test_the_page_of_faults_names_tests_that_exist() -> None:
    page = (plant.ROOT / "docs/developer/planted-faults.md").read_text()
    names = re.findall(r"(test_\w+\.py)::(\w+)", page)
    assert len(names) > 40
    for file, name in names:
        assert f"def {name}(" in (Path(__file__).parent / file).read_text(), f"{file}::{name}"

"""Plant small faults, one per module, and find the tests that detect them.

``python tests/plant.py --list --seed 0`` prints the faults; the generator that chooses them reads no test.
``python tests/plant.py --run 3 7`` (or ``--run all``) plants each in a copy of the checkout, runs the tests that are
nearest to the module, and all others if those pass (not with ``--near``); verdicts go to a JSON file. A fault that
survives is either no fault (the same behaviour in other words) or a gap in the tests: a person reads it.
``--sample 40`` limits ``--list`` and ``--run all`` to a seeded choice of 40 faults.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("adtn", "backends")
NEAREST = 6  # number of test files that are run before the whole suite
COMPARISONS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
ONLY_RAISE = ("isinstance", "issubclass", "hasattr", "getattr", "setattr")  # fail if their arguments are swapped
DEFINITIONS = (ast.FunctionDef, ast.ClassDef)
SIZES_OF_CACHES = re.compile("cache|kept|pool|maxsize", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A change of one expression; columns count bytes, as in :mod:`ast`."""

    file: str
    line: int
    column: int
    end_line: int
    end_column: int
    kind: str
    before: str
    after: str

    def plant(self, root: Path) -> None:
        """Plant the fault in a copy of a checkout."""
        path = root / self.file
        lines = path.read_bytes().splitlines(keepends=True)
        head, tail = lines[self.line - 1][: self.column], lines[self.end_line - 1][self.end_column :]
        lines[self.line - 1 : self.end_line] = [head + self.after.encode() + tail]
        path.write_bytes(b"".join(lines))


# --- faults ---


def expressions(tree: ast.AST) -> Iterator[ast.expr]:
    """Yield expressions whose value matters; not annotations, messages, decorators, type aliases and cache sizes."""
    if isinstance(tree, ast.Raise | ast.Assert | ast.JoinedStr | ast.Import | ast.ImportFrom):
        return
    if isinstance(tree, ast.FunctionDef) and tree.name in ("__repr__", "__str__", "extra_repr"):
        return
    if isinstance(tree, ast.Assign | ast.AnnAssign):
        targets = tree.targets if isinstance(tree, ast.Assign) else [tree.target]
        if any(SIZES_OF_CACHES.search(ast.unparse(t)) for t in targets):
            return
    if isinstance(tree, ast.Subscript) and ast.unparse(tree.value) in ("Literal", "Annotated", "Callable"):
        return
    if isinstance(tree, ast.Call) and ast.unparse(tree.func) in ("warnings.warn", "cast"):
        return
    if isinstance(tree, ast.keyword) and (tree.arg == "strict" or SIZES_OF_CACHES.search(tree.arg or "")):
        return
    if isinstance(tree, ast.If) and ast.unparse(tree.test) in ("TYPE_CHECKING", "__name__ == '__main__'"):
        return
    if isinstance(tree, ast.expr):
        yield tree
    for name, value in ast.iter_fields(tree):
        if name in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from expressions(child)


def joins(node: ast.BinOp) -> bool:
    """Return whether a sum or product joins strings or lists, where a fault would only lead to a crash."""
    sequences = (ast.List, ast.Tuple, ast.JoinedStr, ast.ListComp)
    return any(
        isinstance(x, sequences) or (isinstance(x, ast.Constant) and isinstance(x.value, str | bytes))
        for x in (node.left, node.right)
    )


def changed(node: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    """Yield expressions that replace an expression, each with a description of the change."""
    new: Any = copy.deepcopy(node)
    match node:
        case ast.BinOp(op=ast.Add() | ast.Sub()) if not joins(node):
            new.op = ast.Sub() if isinstance(node.op, ast.Add) else ast.Add()
            yield "sign", new
        case ast.BinOp(op=ast.Mult() | ast.Div()) if not joins(node):
            yield "dropped factor", new.left
        case ast.UnaryOp(op=ast.USub()):
            yield "sign", new.operand
        case ast.UnaryOp(op=ast.Not()):
            yield "dropped not", new.operand
        case ast.Constant(value=bool(value)):
            yield "truth", ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield "off by one", ast.Constant(value + 1)
        case ast.Compare(ops=[op]):
            new.ops = [COMPARISONS[type(op)]()]
            yield "comparison", new
        case ast.Call(func=ast.Name(id="min" | "max" as name)):
            new.func.id = {"min": "max", "max": "min"}[name]
            yield "extreme", new
        case ast.Call(args=[first, second, *_]) if not any(isinstance(a, ast.Starred) for a in node.args):
            if ast.dump(first) != ast.dump(second) and ast.unparse(node.func) not in ONLY_RAISE:
                new.args[:2] = new.args[1::-1]
                yield "swapped arguments", new
        case _:
            return


def faults_of(path: Path, root: Path) -> list[Fault]:
    """List all faults of one file."""
    text = path.read_text()
    tree, lines = ast.parse(text), text.encode().splitlines(keepends=True)
    found: list[Fault] = []
    if not any(isinstance(node, ast.FunctionDef) for node in ast.walk(tree)):
        return found
    for node in expressions(tree):
        for kind, new in changed(node):
            after = ast.unparse(new)
            if isinstance(new, ast.BinOp | ast.Compare | ast.UnaryOp | ast.BoolOp | ast.IfExp):
                after = f"({after})"
            end_line, end_column = node.end_lineno or 0, node.end_col_offset or 0
            own = lines[node.lineno - 1 : end_line]
            before = b"".join([*own[:-1], own[-1][:end_column]])[node.col_offset :].decode()
            found.append(
                Fault(
                    file=str(path.relative_to(root)),
                    line=node.lineno,
                    column=node.col_offset,
                    end_line=end_line,
                    end_column=end_column,
                    kind=kind,
                    before=before,
                    after=after,
                )
            )
    return found


def chosen(seed: int, root: Path = ROOT) -> list[Fault]:
    """Choose one fault per module, independently of other modules."""
    picked: list[Fault] = []
    for path in sorted(p for folder in SOURCES for p in (root / folder).rglob("*.py")):
        by_kind: dict[str, list[Fault]] = defaultdict(list)
        for fault in faults_of(path, root):
            by_kind[fault.kind].append(fault)
        if by_kind:  # choose a kind first, as most expressions are calls and numbers
            draw = random.Random(f"{seed} {path.relative_to(root)}")
            picked.append(draw.choice(by_kind[draw.choice(sorted(by_kind))]))
    return picked


def sampled(faults: list[Fault], most: int | None, seed: int) -> list[int]:
    """Return the numbers of all faults, or of a seeded choice; a choice does not renumber them."""
    everyone = range(len(faults))
    return sorted(random.Random(seed).sample(everyone, min(most, len(faults)))) if most else list(everyone)


# --- nearest tests ---


def module_name(path: Path, root: Path) -> str:
    parts = list(path.relative_to(root).with_suffix("").parts)
    parts = parts[1:] if parts[0] == "backends" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path, name: str) -> set[str]:
    """List the modules, and the names in modules, that a file imports."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            up = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*up, *([node.module] if node.module else [])])
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return found


def near_tests(file: str, root: Path = ROOT) -> list[str]:
    """List the test files that use most names of a module, or of modules that import it, with short files first."""
    paths = {module_name(p, root): p for folder in SOURCES for p in (root / folder).rglob("*.py")}
    importers: dict[str, set[str]] = defaultdict(set)
    for name, path in paths.items():
        for other in imported(path, name):
            if other in paths and other != name:
                importers[other].add(name)
    start = module_name(root / file, root)
    distance, queue = {start: 0}, [start]
    for name in queue:
        for other in sorted(importers[name]):
            if other not in distance and distance[name] < 2:
                distance[other] = distance[name] + 1
                queue.append(other)
    texts = {path.name: path.read_text() for path in sorted((root / "tests").glob("test_*.py"))}
    words = {test: set(re.findall(r"\w+", text)) for test, text in texts.items()}
    spread = Counter(word for own in words.values() for word in own)
    scores = dict.fromkeys(texts, 0.0)
    for name, steps in distance.items():
        defined = {n.name for n in ast.walk(ast.parse(paths[name].read_text())) if isinstance(n, DEFINITIONS)}
        for test, text in texts.items():
            # a name that few tests use is more specific than one that all use
            named = sum(1.0 / spread[word] for word in defined & words[test] if not word.startswith("__"))
            whole = re.search(rf"\b{re.escape(name)}\b", text) and "." in name
            called_alike = test == f"test_{name.rpartition('.')[2].strip('_')}.py"
            scores[test] += (named + 0.5 * bool(whole) + 4.0 * called_alike) / 8**steps
    best = sorted((name for name in scores if scores[name] > 0), key=lambda name: -scores[name])[:NEAREST]
    return [f"tests/{name}" for name in sorted(best, key=lambda name: len(texts[name]))]  # short files are fast


# --- runs ---


def copied(root: Path, to: Path) -> None:
    """Copy the files that Git tracks, in their present state."""
    listed = subprocess.run(["git", "-C", str(root), "ls-files", "-z"], capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        if (root / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            (to / name).write_bytes((root / name).read_bytes())


def pytest(checkout: Path, env: dict[str, str], args: list[str], seconds: float) -> tuple[str, str]:
    """Run tests; return "passed", "failed" or "too slow", and the first failure."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *args]
    process = subprocess.Popen(
        command,
        cwd=checkout,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        out, _ = process.communicate(timeout=max(seconds, 1.0))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # including processes that tests started
        process.communicate()
        return "too slow", ""
    if process.returncode in (0, 5):  # 5: nothing was collected
        return "passed", ""
    failed = re.search(r"^(?:FAILED|ERROR) (\S+::\S.*?|\S+)(?: - .*)?$", out, re.MULTILINE)
    return "failed", failed[1] if failed else out[-300:]


def tried(fault: Fault, limit: float, near_only: bool) -> dict[str, Any]:
    """Plant a fault, and look for a test that detects it."""
    sys.path.insert(0, str(ROOT / "bench"))
    from house import python_path

    began = time.monotonic()
    near = near_tests(fault.file)
    found: dict[str, Any] = {**asdict(fault), "near": near}
    with tempfile.TemporaryDirectory(prefix="adtn-plant-") as folder:
        checkout = Path(folder) / "checkout"
        copied(ROOT, checkout)
        path = python_path(checkout, Path(folder) / "metadata")
        env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        clean = (checkout / fault.file).read_bytes()
        fault.plant(checkout)
        ast.parse((checkout / fault.file).read_text())
        stages = [("near", near)] if near else []  # without files, pytest would run all of them
        stages += [] if near_only else [("all", [f"--ignore={name}" for name in near])]
        found |= {"verdict": "survived the nearest" if near_only else "survived", "by": "", "stage": "near"}
        failed: list[str] = []
        for stage, args in stages:
            verdict, by = pytest(checkout, env, args, limit - (time.monotonic() - began))
            found["stage"] = stage
            if verdict != "passed":
                found |= {"verdict": {"failed": "killed"}.get(verdict, verdict), "by": by}
                failed = args if verdict == "failed" else []
                break
        if failed:  # is it the fault that was detected?
            (checkout / fault.file).write_bytes(clean)
            by = str(found["by"])
            alone = [by] if "::" in by else failed
            if pytest(checkout, env, alone, limit)[0] != "passed":
                found["verdict"] = "fails without the fault, too"
    return {**found, "seconds": round(time.monotonic() - began, 1)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print the faults")
    parser.add_argument("--run", nargs="+", metavar="N", help="numbers in the list, or 'all' that are listed")
    parser.add_argument("--sample", type=int, metavar="K", help="list a seeded choice of K faults only")
    parser.add_argument("--near", action="store_true", help="run the nearest tests only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=1800.0, help="time limit per fault in seconds")
    parser.add_argument("--out", type=Path, default=Path("planted.json"))
    args = parser.parse_args()
    faults = chosen(args.seed)
    listed = sampled(faults, args.sample, args.seed)
    if args.list or not args.run:
        for n in listed:
            fault = faults[n]
            print(f"{n:4} {fault.file}:{fault.line}: {fault.kind}: {fault.before!r} -> {fault.after!r}")
    numbers = listed if args.run == ["all"] else [int(n) for n in args.run or ()]
    results: dict[str, Any] = json.loads(args.out.read_text()) if args.run and args.out.exists() else {}
    for n in numbers:
        found = tried(faults[n], args.limit, args.near)
        results[f"{args.seed}/{n}"] = found
        args.out.write_text(json.dumps(results, indent=1) + "\n")
        print(n, found["file"], found["line"], found["verdict"], found["by"], f"{found['seconds']} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Look for code that the folders of two frameworks share word for word, and that belongs to ``shared/``.

Run as ``python .ci/duplicated_lines.py [FOLDER]``. Files of different frameworks are compared line by line, without
blank lines, comments, docstrings and imports. Names that a framework has for itself are the same for all: whatever is
reached through a module of the framework (``torch.Tensor``, ``nnx.Module``), and classes defined in its folder. Runs of
more than ``LONGEST`` equal lines are printed, the longest first; exit status 1 then.
"""

from __future__ import annotations

import ast
import io
import itertools
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LONGEST = 12  # equal lines in a row that may stay
FOLDER = Path(__file__).resolve().parents[1] / "backends" / "adtn_backends"
OWN = "_"  # stands for all names that a framework has for itself
COMMON = "shared"  # what lies here belongs to all frameworks
ROOTS = frozenset({"torch", "jax", "flax", "optax", "numpy", "peft", "transformers", "safetensors", "autoray"})
SKIPPED = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


@dataclass(frozen=True)
class Source:
    """A file as lines to compare, and where they stand in it."""

    path: Path
    lines: tuple[str, ...]
    numbers: tuple[int, ...]


@dataclass(frozen=True, order=True)
class Run:
    """A run of equal lines in a row of two files."""

    length: int
    first: tuple[Path, int]
    second: tuple[Path, int]


def aliases(tree: ast.Module) -> set[str]:
    """Names by which a file calls modules, classes and functions of a framework."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {(one.asname or one.name).partition(".")[0] for one in node.names if _is_framework(one.name)}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and _is_framework(node.module or ""):
            names |= {one.asname or one.name for one in node.names}
    return names


def _is_framework(module: str) -> bool:
    return module.partition(".")[0] in ROOTS


def ignored_lines(tree: ast.Module) -> set[int]:
    """Return the lines of imports and docstrings."""
    ignored: set[int] = set()
    for node in ast.walk(tree):
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        if text or isinstance(node, ast.Import | ast.ImportFrom):
            ignored |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return ignored


def source_of(path: Path, classes: set[str]) -> Source:
    """The lines of a file that count, with one name for all that a framework names for itself."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    ignored = ignored_lines(tree)
    own = aliases(tree) | classes
    words: dict[int, list[str]] = {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in SKIPPED or token.start[0] in ignored:
            continue
        line = words.setdefault(token.start[0], [])
        if line[-2:] == [OWN, "."] and token.type == tokenize.NAME:
            line.pop()  # what is reached through a name of the framework is one, too
        elif token.type == tokenize.NAME and token.string in own and line[-1:] != ["."]:
            line.append(OWN)
        else:
            line.append(token.string)
    lines = {n: " ".join(line) for n, line in sorted(words.items())}
    return Source(path, tuple(lines.values()), tuple(lines))


def sources(folder: Path) -> list[Source]:
    """All files of one framework."""
    paths = sorted(folder.rglob("*.py"))
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in paths]
    classes = {node.name for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}
    return [source_of(path, classes) for path in paths]


def runs(one: Source, other: Source, longest: int = LONGEST) -> Iterator[Run]:
    """Runs of more than so many equal lines, each as long as it is."""
    before = [0] * (len(other.lines) + 1)
    ended: list[tuple[int, int, int]] = []
    for i, line in enumerate(one.lines):
        now = [0] * (len(other.lines) + 1)
        for j, there in enumerate(other.lines):
            if line == there:
                now[j + 1] = before[j] + 1
                last = i + 1 == len(one.lines) or j + 1 == len(other.lines) or one.lines[i + 1] != other.lines[j + 1]
                if last and now[j + 1] > longest:
                    ended.append((now[j + 1], i, j))
        before = now
    for n, i, j in ended:
        yield Run(n, (one.path, one.numbers[i - n + 1]), (other.path, other.numbers[j - n + 1]))


def duplicated(folder: Path = FOLDER, longest: int = LONGEST) -> list[Run]:
    """Runs between files of any two frameworks of a package, the longest first."""
    frameworks = sorted(path for path in folder.iterdir() if path.is_dir() and path.name not in (COMMON, "__pycache__"))
    by_framework = [sources(path) for path in frameworks]
    pairs = (pair for left, right in itertools.combinations(by_framework, 2) for pair in itertools.product(left, right))
    return sorted((run for one, other in pairs for run in runs(one, other, longest)), reverse=True)


def main(arguments: list[str]) -> int:
    """Print what is there twice; 1 if there is something."""
    folder = Path(arguments[0]) if arguments else FOLDER
    found = duplicated(folder)
    for run in found:
        (one, n), (other, m) = run.first, run.second
        print(f"{run.length} lines: {one.relative_to(folder)}:{n} and {other.relative_to(folder)}:{m}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

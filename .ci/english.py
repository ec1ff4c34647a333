"""Refuse prose that is not plain English: ``python .ci/english.py [PATH ...]``.

Words of the project's former dialect are refused in docstrings, comments, strings and Markdown. The first line of a
docstring must stand alone in ``help()``. Faults in paths under ``PENDING`` are counted, but not refused. A line that is
right despite a match ends with ``english: ok`` in a comment.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PATHS = ("adtn", "backends", "tests", "bench", ".ci", "docs", "README.md", "CHANGELOG.md", "CONTRIBUTING.md")
PENDING: tuple[str, ...] = ()
ALLOWED = "english: ok"

_QUANTITY = r"(?:\d[\d,.]*|few|hundred|thousand|million|trained|frozen|stored|its|their|whose|same|active|nominal)"
WORDS = {
    rf"\b{_QUANTITY} numbers\b": "write 'parameters' or 'entries'",
    r"\bnumbers (?:of|in) (?:the |every |all )?(?:core|layer|model)s?\b": "write 'parameters' or 'entries'",
    r"\bwished\b": "write 'target' or 'requested'",
    r"\btaught\b": "write 'distilled'",
    r"\b(?:train|trains|trained|training) along\b": "write 'fine-tuned as well'",
    r"\b(?:is|are|was|were) kept (?:on disk|in the cache|with the generator)\b": "write 'cached' or 'stored'",
    r"\bkept (?:weight|entry|entries|one)s?\b": "write 'cached' or 'stored'",
    r"\bfirst values\b": "write 'initial values'",
    r"\bturned\b(?! (?:on|off|out|into|to)\b)|\blies? transposed\b": "write 'transposed'",
    r"\banew\b": "write 'again', 'recomputed' or 'recreated'",
    r"\bby (?:its|their) own\b|\bcompress(?:es)? by itself\b": "write 'on its own', or what is meant",
    r"\bputs? out\b": "write 'outputs', 'returns' or 'generates'",
    r"\bcut to shape\b": "write 'truncated to the shape'",
    r"\b(?:which|it|this|value|target|text|that) (?:is|are|was) no (?!longer\b|more\b|less\b)\w+": "write 'is not a'",
    r"\b(?:a|one|the|two|of) texts?\b(?= (?:for|or|of at least|that))": "write 'string'",
    r"\bas it stands\b": "write what is meant",
}
STARTS = (
    "Of",
    "The same",
    "None.",
    "It is",
    "As",
    "For",
    "With",
    "Without",
    "That",
    "Those",
    "These",
    "What",
    "Which",
    "How",
    "Where",
    "When",
    "Whether",
    "If",
    "By",
    "In",
    "On",
    "At",
    "From",
    "To",
    "Also",
    "Like",
    "Who",
    "Why",
)
ARTICLES = frozenset(("A", "An", "The", "One", "Two", "Every", "Each", "All", "Any", "No", "Both"))
# imperatives; the third person is accepted as well
VERBS = frozenset(
    re.findall(
        r"\w+",
        """
    Abort Accept Accumulate Adapt Add Allocate Allow Append Apply Approximate Arrange Ask Assemble Attach
    Backpropagate Begin Bind Bound Build Cache Calibrate Call Capture Cast Check Choose Clear Clip Close Collect
    Combine Compare Compile Compress Compute Concatenate Configure Continue Contract Convert Copy Correct Count
    Create Crop Damage Decide Declare Decode Decompose Decorate Decrease Delete Derive Describe Detach Detect
    Differentiate Discard Distil Distill Divide Do Download Draw Drop Emit Encode End Ensure Enumerate Estimate
    Evaluate Evict Exclude Execute Expand Export Express Extend Extract Factorise Fail Fill Filter Find Fit Flatten
    Flush Forget Format Forward Free Freeze Gather Generate Get Give Group Guard Handle Hash Hold Identify Ignore
    Import Improve Include Increase Index Infer Inherit Initialise Inject Insert Inspect Install Interpolate
    Interrupt Introduce Invalidate Invert Iterate Join Keep Kill Let Limit Link List Load Lock Look Make Map Mark
    Match Materialise Measure Merge Mount Move Multiply Name Normalise Note Notice Open Order Pad Pair Parse Pass
    Patch Perform Permute Persist Place Plan Plant Plot Predict Prepare Preserve Price Print Process Produce Project
    Propagate Propose Provide Prune Publish Pull Push Put Quantise Query Raise Rank Read Rebuild Recompute Record
    Redirect Reduce Refuse Register Release Remember Remove Rename Render Reorder Repeat Replace Replay Report
    Require Rescale Reset Reshape Resolve Restore Resume Return Reuse Rotate Round Run Sample Save Say Scale Scan
    Schedule Seal Search Select Send Separate Serialise Serve Set Shard Share Shift Shorten Show Shuffle Silence
    Simulate Skip Slice Solve Sort Split Squeeze Stack Start Stop Store Stream Subtract Sum Summarise Swap Switch
    Synchronise Tabulate Take Test Tie Time Touch Trace Track Train Transform Translate Transpose Traverse Truncate
    Try Turn Unflatten Unfold Unmerge Unpack Update Use Validate Verify View Visit Wait Walk Warn Wrap Write Yield
    """,
    )
)


class Fault(NamedTuple):
    """A line of prose to be rewritten."""

    path: Path
    line: int
    message: str


def check_words(text: str) -> Iterator[str]:
    """Name the words of a line that are not plain English; code in backquotes does not count."""
    text = re.sub(r"``.*?``|`.*?`", "code", text)
    for pattern, advice in WORDS.items():
        for match in re.finditer(pattern, text, re.IGNORECASE):
            yield f"{match[0]!r}: {advice}"


def check_summary(text: str, *, kind: str, is_flag: bool = False) -> str:
    """Return what is wrong with the first line of a docstring, or an empty string."""
    summary = text.strip().partition("\n")[0]
    start = next((s for s in STARTS if re.match(rf"{re.escape(s)}(?!\w)", summary)), None)
    if start == "Whether" and is_flag:
        return ""
    if start is not None:
        return f"the docstring begins with {start!r}; begin with a verb, or a noun with its article"
    word = re.split(r"[^\w'-]", summary, maxsplit=1)[0]
    if kind == "module" or word in ARTICLES:
        return ""
    if kind == "function" and any(form in VERBS for form in (word, word[:-1], word[:-2], f"{word[:-3]}y")):
        return ""
    wanted = "a noun with its article" if kind == "class" else "a verb (see VERBS), or a noun with its article"
    return f"the docstring begins with {word or summary[:20]!r}; begin with {wanted}"


def _definitions(node: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """List public functions, classes and methods."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if child.name.startswith("_"):
                continue
            yield child
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _definitions(child)


def _is_flag(node: ast.AST) -> bool:
    """Return whether a definition is a property that holds a truth value."""
    if not isinstance(node, ast.FunctionDef) or node.returns is None:
        return False
    names = {getattr(d, "id", getattr(d, "attr", "")) for d in node.decorator_list}
    return bool(names & {"property", "cached_property"}) and ast.unparse(node.returns).strip("'\"") == "bool"


def _texts(source: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """List comments and lines of strings that hold prose, with their numbers; headings of parameters do not count."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value.strip():
            lines = node.value.splitlines()
            for number, line in enumerate(lines, node.lineno):
                if not re.match(r"\s*[\w*]+(?:, [\w*]+)* : ", line):
                    yield min(number, node.end_lineno or number), line


def check_python(path: Path) -> Iterator[Fault]:
    """Check docstrings, comments and strings of a Python file."""
    source = path.read_text()
    tree = ast.parse(source)
    nodes: list[ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef] = [tree, *_definitions(tree)]
    for node in nodes:
        text = ast.get_docstring(node)
        if text is None:
            continue
        kind = {ast.Module: "module", ast.ClassDef: "class"}.get(type(node), "function")
        if fault := check_summary(text, kind=kind, is_flag=_is_flag(node)):
            yield Fault(path, node.body[0].lineno, fault)
    for line, text in _texts(source, tree):
        for fault in check_words(text):
            yield Fault(path, line, fault)


def check_markdown(path: Path) -> Iterator[Fault]:
    """Check the prose of a Markdown file; blocks of code do not count."""
    fenced = False
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced:
            for fault in check_words(line):
                yield Fault(path, number, fault)


def check(path: Path) -> list[Fault]:
    """Check a file, or all files in a folder."""
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix in (".py", ".md") and "_build" not in p.parts)
        return [fault for file in files for fault in check(file)]
    if path.name.removeprefix("test_") == Path(__file__).name:
        return []  # this file and its test name the words
    lines = path.read_text().splitlines()
    faults = check_python(path) if path.suffix == ".py" else check_markdown(path)
    return sorted({fault for fault in faults if ALLOWED not in lines[fault.line - 1]}, key=lambda f: (f.path, f.line))


def pending(path: Path) -> str:
    """Return the entry of ``PENDING`` that a path is under, or an empty string."""
    try:
        name = path.resolve().relative_to(ROOT).as_posix()
    except ValueError:
        return ""
    return next((p for p in PENDING if name == p or name.startswith(f"{p}/")), "")


def main(arguments: list[str] | None = None) -> int:
    """Check paths, print what is refused and count what is pending; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("paths", nargs="*", type=Path, default=[ROOT / p for p in PATHS])
    parser.add_argument("--pending", action="store_true", help="print the faults of pending paths as well")
    options = parser.parse_args(arguments)
    faults = [fault for path in options.paths for fault in check(path)]
    waiting = Counter(pending(fault.path) for fault in faults)
    refused = waiting.pop("", 0)
    for fault in faults:
        if options.pending or not pending(fault.path):
            path = fault.path.relative_to(ROOT) if fault.path.is_relative_to(ROOT) else fault.path
            print(f"{path}:{fault.line}: {fault.message}")
    for name, count in sorted(waiting.items()):
        print(f"pending, not refused: {name} ({count})")
    return int(refused > 0)


if __name__ == "__main__":
    raise SystemExit(main())

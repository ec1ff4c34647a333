"""The progress of a compression: lines for a function, or a bar per stage on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

_LINE = 70  # characters of the last line that stand beside a bar


class Progress:
    """The place where a compression tells what it does; call it with a line.

    Parameters
    ----------
    show : callable or bool or None
        A function of a line; whether to show bars with the time left on standard error; ``None`` shows them on a
        terminal only.

    Examples
    --------
    >>> lines = []
    >>> with Progress(lines.append) as progress:
    ...     progress.stage("local fits", 2)
    ...     progress("fc1: relative error 0.1")
    ...     progress.advance()
    >>> lines
    ['fc1: relative error 0.1']
    """

    def __init__(self, show: Callable[[str], None] | bool | None = None) -> None:
        self._function = show if callable(show) else None
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}
        self._now: Any = None
        if show is True or (show is None and sys.stderr.isatty()):
            self._bars = _bars()

    def __enter__(self) -> Progress:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            if kind is None:
                self._finish()
            self._bars.stop()

    def __call__(self, line: str) -> None:
        """Tell a line."""
        if self._function is not None:
            self._function(line)
        if self._bars is not None and self._now is not None:
            self._bars.update(self._now, line=line[:_LINE])

    def stage(self, name: str, total: int | None = None) -> None:
        """Begin a stage of so many parts, or of an unknown number; the one before is finished."""
        if self._bars is None:
            return
        self._finish()
        if name in self._tasks:  # a stage that is repeated keeps its bar, as there may be dozens
            self._now = self._tasks[name]
            self._bars.reset(self._now, total=total, line="")
        else:
            self._now = self._tasks[name] = self._bars.add_task(name, total=total, line="")

    def advance(self, to: int | None = None) -> None:
        """Note that one more part of this stage is done, or so many in all."""
        if self._bars is None or self._now is None:
            return
        if to is None:
            self._bars.advance(self._now)
        else:
            self._bars.update(self._now, completed=to)

    def _finish(self) -> None:
        if self._now is not None:
            task = self._bars.tasks[self._now]
            total = task.total or 1
            self._bars.update(self._now, total=total, completed=total, line="")


def _bars() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[line]}", markup=False),  # names of layers may look like markup
        console=Console(stderr=True),
    )

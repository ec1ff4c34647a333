"""A progress bar that is shown on terminals only."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any


class ProgressBar:
    """A progress bar with loss and speed of a fit on standard error.

    Parameters
    ----------
    show : bool or None
        Whether to show it; ``None`` shows it on a terminal only.
    steps : int
        The total number of steps.
    start : int
        The number of steps already taken.
    label : str
        The text in front of the bar.
    """

    def __init__(self, show: bool | None, steps: int, start: int, label: str) -> None:
        self._bar: Any = None
        self._task: Any = None
        if show is None:
            show = sys.stderr.isatty()
        if show:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("loss {task.fields[loss]:.4g}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(label, total=steps, completed=start, loss=float("nan"))

    def __enter__(self) -> ProgressBar:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, step: int, loss: float) -> None:
        """Show a step."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step, loss=loss)

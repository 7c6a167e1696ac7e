"""A bar of progress for whatever takes more than a moment: on a terminal, and nowhere else."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Bar:
    """A bar that is being shown, or none.

    Args:
        shown: rich's `Progress` and the task in it; None: nothing is shown.
    """

    def __init__(self, shown: tuple[Any, Any] | None = None) -> None:
        self._shown = shown

    def advance(self, count: int = 1) -> None:
        """So much more is done."""
        if self._shown:
            progress, task = self._shown
            progress.advance(task, count)

    def show(self, what: str, done: int, total: int | None) -> None:
        """What is under way, how much of it is done, and how much there is; None: as it was."""
        if self._shown:
            progress, task = self._shown
            progress.update(task, description=what, completed=done, total=total)


@contextmanager
def bar(title: str, total: int | None = None, in_bytes: bool = False) -> Iterator[Bar]:
    """A bar on stderr where that is a terminal; it goes when the block ends.

    Args:
        title: what is under way.
        total: how much there is; None: it is not known yet.
        in_bytes: what is counted is bytes, shown as such and with the speed.
    """
    if not sys.stderr.isatty():
        yield Bar()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    counts = (DownloadColumn(), TransferSpeedColumn()) if in_bytes else (MofNCompleteColumn(),)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *counts,
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as progress:
        yield Bar((progress, progress.add_task(title, total=total)))

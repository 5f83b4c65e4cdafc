"""Progress bars of long work, on standard error."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import TypeVar

T = TypeVar("T")


def progress_bar(steps: Iterable[T], text: str, total: int, enabled: bool = True, *, done: int = 0) -> Generator[T]:
    """The steps, with a bar, a count and the time left drawn on a terminal; nothing is drawn into a file or
    pipe. ``done`` of the ``total`` steps were taken before."""
    if not enabled:
        yield from steps
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(text, total=total, completed=done)
        for step in steps:
            yield step
            bar.advance(task)

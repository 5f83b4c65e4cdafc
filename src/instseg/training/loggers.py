"""What a run reports: lines on the screen and in log.txt, a progress bar, metrics.csv, TensorBoard."""

import csv
import io
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instseg.core.errors import ConfigError
from instseg.training.checkpoint import replace_file

if TYPE_CHECKING:
    from rich.console import Console

Row = Mapping[str, float | int | None]


def write_metrics(path: Path, history: Sequence[Row]) -> None:
    """All epochs so far as CSV; rewritten as a whole, so that a resumed run repeats and loses no row."""
    columns = list(dict.fromkeys(key for row in history for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in history:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    replace_file(path, lambda file: file.write(text.getvalue().encode()))


class _Screen:
    """stderr, as far as it is there: a terminal that was closed, or a reader that has gone, does not end a run."""

    def __init__(self) -> None:
        self.stream = sys.stderr  # which a progress bar replaces by itself while it is shown

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self.stream.flush()

    def isatty(self) -> bool:
        return self.stream.isatty()

    def fileno(self) -> int:
        return self.stream.fileno()

    @property
    def encoding(self) -> str:
        return self.stream.encoding or "utf-8"


class RunLog:
    """The voice of a run; on all but the main process it is silent (``folder=None``)."""

    def __init__(self, folder: Path | None, *, progress: bool, tensorboard: bool, purge_step: int = 0) -> None:
        self.file = open(folder / "log.txt", "a", encoding="utf-8") if folder else None  # noqa: SIM115  # closed in close
        self.console: Console | None = None
        self.events: Any = None
        if folder is not None and progress:
            from rich.console import Console as RichConsole

            screen: Any = _Screen()
            self.console = RichConsole(file=screen, highlight=False, soft_wrap=True)
        if folder is not None and tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise ConfigError("tensorboard=true needs a package: pip install 'instseg[tensorboard]'") from None

            self.events = SummaryWriter(str(folder / "tensorboard"), purge_step=purge_step)

    def line(self, text: str) -> None:
        """A line for the screen and log.txt, there with the time."""
        self.record(text)
        if self.console is not None:
            self.console.print(text, markup=False)

    def record(self, text: str) -> None:
        """A line for log.txt alone."""
        if self.file is not None:
            with suppress(OSError):  # a full disk is reported where a checkpoint cannot be written
                self.file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
                self.file.flush()

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Curves for TensorBoard, where it is on."""
        if self.events is not None:
            for name, value in values.items():
                self.events.add_scalar(name, value, step)

    @contextmanager
    def bar(self, total: int, done: int, title: str) -> Iterator[Callable[[str], None]]:
        """A progress bar on a terminal; what it yields moves it by one and sets the text behind it."""
        if self.console is None or not self.console.is_terminal:
            yield lambda text: None
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
        )
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task(title, total=total, completed=done, text="")
            yield lambda text: progress.update(task, advance=1, text=text)

    def close(self) -> None:
        """Close log.txt and the event file."""
        if self.file is not None:
            with suppress(OSError):
                self.file.close()
        if self.events is not None:
            self.events.close()

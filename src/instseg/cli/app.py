"""The program `instseg`: its verbs, its exit status, and one line for everything that goes wrong."""

import functools
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TextIO

import typer

from instseg.cli import benchmark, convert, data, demo, explain, models, predict, train, val
from instseg.cli.options import Debug
from instseg.cli.stopping import Stopped
from instseg.core.errors import InstsegError

app = typer.Typer(
    name="instseg",
    help="Instance segmentation without boxes: train, evaluate and run SOLO, SOLOv2 and relatives.",
    epilog="Start with `instseg demo`; every verb has its own --help with examples.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class _Interrupted(Exception):
    """Ctrl-C or a signal stopped a verb; the text is a line with the word `interrupted`."""


def _stoppable(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb, whose interruption the parser does not swallow."""

    @functools.wraps(verb)
    def run(*arguments: Any, **options: Any) -> None:
        try:
            verb(*arguments, **options)
        except KeyboardInterrupt as stopped:
            raise _Interrupted(str(stopped) or "interrupted") from None

    return run


app.command("demo")(_stoppable(demo.demo))
app.command("models")(_stoppable(models.models))
app.command("train")(_stoppable(train.train))
app.command("val")(_stoppable(val.val))
app.command("predict")(_stoppable(predict.predict))
app.command("explain")(_stoppable(explain.explain))
app.command("convert")(_stoppable(convert.convert))
app.command("benchmark")(_stoppable(benchmark.benchmark))
app.add_typer(data.app, name="data")


def _version(asked: bool) -> None:
    if asked:
        from instseg.core.environment import environment

        for name, value in environment().items():
            typer.echo(f"{name} {value}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Versions, devices and cores, then exit."),
    ] = False,
    debug: Debug = False,
) -> None:
    """Options that stand before the verb."""


def run(arguments: Sequence[str] | None, stopped: Stopped) -> int:
    """Run the program; returns its exit status. ``stopped`` handles the signals."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            status = app(words, prog_name="instseg", standalone_mode=False)
        sys.stdout.flush()
        if status == 130 and stopped.asked:  # an interruption that reached the parser, which says nothing
            return _fail("interrupted", 130)
    except _Interrupted as interrupted:
        return _fail(str(interrupted), 130)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader is gone: nothing left to flush
        return 1
    except Exception as error:
        if stopped.asked:  # the import that was interrupted failed
            return _fail("interrupted", 130)
        if hasattr(error, "format_message"):  # the parser's own errors, whose class differs between typer's versions
            return _usage(error)
        if debug:
            traceback.print_exc()
            return 1
        return _fail(_describe(error), 1)
    return status if isinstance(status, int) else 0


def _usage(error: Exception) -> int:
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":  # the help has been printed in its place
        return 2
    program = context.command_path if context is not None else "instseg"
    message = " ".join(error.format_message().split())  # type: ignore[attr-defined]  # asked for by the caller
    return _fail(f"{message.rstrip('.')} (see {program} --help)", getattr(error, "exit_code", 2))


def _describe(error: Exception) -> str:
    """One line: what happened and what to do."""
    message = " ".join(str(error).split())
    if isinstance(error, InstsegError):
        return message
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename}" if error.filename is not None else "")
    if type(error).__name__ == "OutOfMemoryError":
        return "the device is out of memory: use a smaller --batch, a smaller input_short, or --device cpu"
    return f"unexpected {type(error).__name__}: {message[:300]} (run again with --debug for the traceback)"


def _fail(message: str, status: int) -> int:
    print(f"error: {message}" if status != 130 else message, file=sys.stderr)
    return status


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    print(f"warning: {' '.join(str(message).split())}", file=file or sys.stderr)

"""Stop signals while the program starts."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from instseg.cli import main

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def _instead(monkeypatch: pytest.MonkeyPatch, what: Callable[[], None]) -> None:
    """Something happens where the verb `models` begins."""
    from instseg.cli import app

    command = next(c for c in app.app.registered_commands if c.name == "models")
    monkeypatch.setattr(command, "callback", app._stoppable(lambda: what()))


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_ends_a_verb_that_does_not_handle_it_with_130_and_interrupted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    _instead(monkeypatch, lambda: os.kill(os.getpid(), number))
    assert main(["models"]) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_signal_while_words_are_parsed_is_interrupted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from instseg.cli import app

    command = next(c for c in app.app.registered_commands if c.name == "models")
    monkeypatch.setattr(command, "callback", lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert main(["models"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_import_that_fails_because_it_was_interrupted_is_interrupted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def imports() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt:
            raise ImportError("half of a module") from None

    _instead(monkeypatch, imports)
    assert main(["models"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_ignored_signals_stay_ignored(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        _instead(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGHUP))
        assert main(["models"]) == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_main_outside_the_main_thread_leaves_signals_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    _instead(monkeypatch, lambda: seen.append(signal.getsignal(signal.SIGTERM)))
    thread = threading.Thread(target=lambda: seen.append(main(["models"])))
    before = signal.getsignal(signal.SIGTERM)
    thread.start()
    thread.join()
    assert seen == [before, 0]


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_while_the_program_is_imported_is_interrupted(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "typer.py").write_text(f"import os\nos.kill(os.getpid(), {int(number)})\nraise ImportError\n")
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from instseg.cli import main; sys.exit(main(['models']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")

"""Errors that a user can fix. The command line prints their text, one line, and nothing else."""

import difflib
from collections.abc import Iterable


class InstsegError(Exception):
    """Something the user can fix. ``str(error)`` is one line: what was found, where, and what to do."""


class DataError(InstsegError):
    """An image, an annotation file or a data set cannot be used as it is."""


class ConfigError(InstsegError):
    """A model name, recipe field or option does not exist or has an impossible value."""


class CheckpointError(InstsegError):
    """A weights or checkpoint file is missing, torn, not ours, or of another model."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The nearest known word as a sentence to append to an error, or an empty string.

    >>> did_you_mean("epoch", ["epochs", "seed"])
    ' Did you mean "epochs"?'
    """
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f' Did you mean "{near[0]}"?' if near else ""

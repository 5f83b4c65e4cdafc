"""The `instseg` program: one file a verb; each parses, calls the library and prints."""

from instseg.cli.app import main

__all__ = ["main"]

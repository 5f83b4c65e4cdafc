"""The one place that states the version; the build and `instseg.__version__` read it here."""

__version__ = "0.1.0"

"""Values as people type them: what stands behind the equals sign of ``key=value``, and in a YAML file."""

import re
from collections.abc import Mapping
from typing import Any

import yaml


class Loader(yaml.SafeLoader):
    """YAML as people write it: ``1e-3`` is a number although YAML 1.1 wants a dot in it."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse_value(text: str) -> Any:
    """The value behind the equals sign of ``key=value``: ``3``, ``1e-3``, ``true``, ``[9, 11]``, ``null``, a word."""
    try:
        return yaml.load(text, Loader=Loader)  # a SafeLoader
    except yaml.YAMLError:
        return text


def parse_names(text: str) -> Any:
    """The value of a field that holds names, ``[car, no, 007]`` or ``car``: every name stays as it is written."""
    if text.strip() in ("", "null", "~", "None"):
        return None
    try:
        value = yaml.load(text, Loader=yaml.BaseLoader)
    except yaml.YAMLError:
        value = None
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return value
    inner = text.strip()
    return [name.strip() for name in inner[1:-1].split(",")] if inner.startswith("[") else inner


def parsed(overrides: Mapping[str, object]) -> dict[str, Any]:
    """Overrides with their text values read as YAML, the names of classes as they are written."""
    return {key: _parsed(key, v) if isinstance(v, str) else v for key, v in overrides.items()}


def _parsed(key: str, text: str) -> Any:
    return parse_names(text) if key == "classes" else parse_value(text)

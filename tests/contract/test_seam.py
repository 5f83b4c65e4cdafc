"""Nothing outside ``models/`` asks which method runs."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import instseg
from instseg.models.zoo import MODELS

PACKAGE = Path(instseg.__file__).parent
# What names of the zoo, classes and keys of a state are made of.
WORDS = ("solo", "sodar", "decoupled", "aggregation", "condinst", "tensormask", "meinst", "dynamask", "rcnn")
METHODS = {entry.net.__name__ for entry in MODELS.values()} | {entry.config.__name__ for entry in MODELS.values()}
# Rooms that see objects of other libraries, or of users, and ask what these can do; no network comes there. `nn`
# asks blocks of timm.
FOREIGN = ("core/", "cli/", "data/", "sources/", "nn/")
ALLOWED = {
    ("training/recipe.py", '"solov2_tiny_r50"'),  # what is trained where nobody names a model
}


def is_a_table(name: str) -> bool:
    """Conversion of published weights, whose keys name their methods, and the catalogue of published files."""
    return name.startswith("weights/")


def _names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The strings of a file that are names or keys: prose and documentation have spaces."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"[\w.*?-]+", node.value):
            yield node.lineno, node.value


def _asks(source: str, foreign: bool = False) -> list[tuple[int, str]]:
    """Where a file asks for a method, and how: by its name or class, or by what it happens to have."""
    tree = ast.parse(source)
    found = [(line, f'"{text}"') for line, text in _names(tree) if any(word in text.lower() for word in WORDS)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            if node.id == "hasattr" and not foreign:
                found.append((node.lineno, "hasattr"))
            if node.id in METHODS:
                found.append((node.lineno, node.id))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("instseg.models"):
            rooms = [node.module.split(".")[2]] if node.module.count(".") > 1 else [a.name for a in node.names]
            if not {*rooms} <= {"base", "config", "zoo"}:
                found.append((node.lineno, f"import of {node.module}"))
    return found


def test_no_room_but_models_knows_a_method() -> None:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if not name.startswith("models/") and not is_a_table(name):
            asks = _asks(path.read_text("utf-8"), name.startswith(FOREIGN))
            found += [f"{name}:{line} {what}" for line, what in asks if (name, what) not in ALLOWED]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "line",
    [
        'if name.startswith("solov2"): pass',
        "if isinstance(model.net, SOLO): pass",
        'if hasattr(net, "fuse"): pass',
        "from instseg.models.solo.net import GridNet",
        "def f():\n    from instseg.models import sodar",
        'head = {k for k in state if k.startswith("aggregation.")}',
    ],
)
def test_what_asks_for_a_method_is_seen(line: str) -> None:
    assert _asks(line)


@pytest.mark.parametrize(
    "line", ['"""As SOLO does."""', 'help = "Train SOLO and its relatives."', "from instseg.models.base import Net"]
)
def test_prose_may_name_methods(line: str) -> None:
    assert not _asks(line)

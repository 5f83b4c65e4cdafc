"""The pages say where things are: every file that they name exists, and defines what they say it does."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "benchmarks" / "README.md"])
CODE = re.compile(r"`([^`\n]+)`")
FILE = re.compile(r"(?:[\w.]+/)*\w+\.py")
NAME = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")


def file_of(name: str) -> Path | None:
    """The file that a page calls ``name``: seen from the package, from the root, or from the tests."""
    places = (ROOT / "src" / "instseg" / name, ROOT / name, ROOT / "tests" / name)
    return next((place for place in places if place.is_file()), None)


def wrong_references(text: str) -> list[str]:
    """Files that do not exist, and names that the file before them in the same cell of a table does not define."""
    wrong = []
    for cell in re.split(r"[|\n]", text):
        source = ""
        for token in CODE.findall(cell):
            if FILE.fullmatch(token) and "/" in token:
                found = file_of(token)
                source = "" if found is None else found.read_text(encoding="utf-8")
                if found is None:
                    wrong.append(token)
            elif source and NAME.fullmatch(token) and "|" in text and not token.endswith(".py"):
                last = re.escape(token.split(".")[-1])
                if not re.search(rf"(?:def|class) {last}\b|^\s*{last}\b.*[:=]", source, flags=re.MULTILINE):
                    wrong.append(f"{token} (not in the file before it)")
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_names_of_a_page_exist(page: Path) -> None:
    assert wrong_references(page.read_text(encoding="utf-8")) == []


def test_a_file_or_a_name_that_is_gone_is_seen() -> None:
    assert wrong_references("| a | `core/gone.py` |") == ["core/gone.py"]
    assert wrong_references("| a | `core/errors.py`: `InstsegError`, `Nothing` |") == [
        "Nothing (not in the file before it)"
    ]

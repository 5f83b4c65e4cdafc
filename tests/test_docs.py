"""The pages say where things are and what to type: every file that they name exists and defines what they say it does,
and every command line and field is accepted."""

import inspect
import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from instseg.cli.app import app
from instseg.cli.options import parse_overrides
from instseg.core.errors import InstsegError
from instseg.core.values import parsed
from instseg.models.zoo import MODELS, build_config, config_fields
from instseg.training.recipe import Recipe, read_recipe, recipe_names, split_fields
from instseg.weights.catalogue import CATALOGUE

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


# What a page tells a reader to type: command lines, and fields with their values.

COMMAND = re.compile(r"(?:^|&& |-m |time )instseg( [^|]*)?$")
FIELD = re.compile(r"^[a-z_]\w*=\S+$")
FURTHER = re.compile(r"(?: \([^)`]*\))?(?:, | or |, or | to )`([^`=\s]+)`")
# Whose fields a page of a method speaks of; other pages speak of all.
METHODS = {
    "solo.md": ["solo_r50"],
    "decoupled-solo.md": ["decoupled_solo_r50", "decoupled_solo_light_r50"],
    "solov2.md": ["solov2_r50"],
    "sodar.md": ["sodar_r50", "sodar_solov2_r50"],
}
ANY = ["solo_r50", "decoupled_solo_r50", "solov2_r50", "sodar_r50", "sodar_solov2_r50"]


def typed(text: str) -> tuple[list[str], list[str], str]:
    """Command lines in blocks of code, those within a sentence (which may leave arguments out), and the rest."""
    blocks = re.findall(r"^```(?:bash|sh|text)?\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return (
        [m[0] for m in map(COMMAND.search, lines) if m],
        [m[0] for m in map(COMMAND.search, CODE.findall(rest)) if m],
        rest,
    )


def is_place(word: str) -> bool:
    """A path, a file, or a word in capitals that stands for one."""
    return any(sign in word for sign in "/.[*") or word.isupper()


def refused(models: list[str], words: list[str]) -> str | None:
    """Why no one of ``models`` and its recipe take the fields; None where one does."""
    fields = parsed(parse_overrides(words))
    known = {key: value for key, value in fields.items() if "..." not in str(value)}
    for name in fields:
        if name not in Recipe.model_fields and not any(name in config_fields(model) for model in models):
            return f"no field {name}"
    why = "no model"
    for model in models:
        try:
            recipe, theirs = split_fields({"model": model, **known}, config_fields, "page")
            build_config(recipe.model, theirs)
        except InstsegError as error:
            why = str(error)
        else:
            return None
    return why


def wrong_command(line: str, complete: bool) -> str | None:
    """What is wrong with a command line: its verb, an option, a name, or a field."""
    command, words = get_command(app), shlex.split(line[line.index("instseg") :], comments=True)[1:]
    while words and hasattr(command, "commands"):
        if words[0].startswith("-"):
            return None if words[0] in ("--help", "--version", "--debug", "-h") else f"no option {words[0]}"
        if words[0] not in command.commands:
            return f"no verb {words[0]}"
        command, words = command.commands[words[0]], words[1:]
    if "..." in words:
        words, complete = [word for word in words if word != "..."], False
    try:
        given = command.make_context("instseg", list(words), resilient_parsing=not complete).params
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    names = [given.get("model"), given.get("weights"), given.get("name")]
    for name in [name for name in names if name is not None and not is_place(name)]:
        if name not in MODELS and name not in CATALOGUE and name != "nuclei":
            return f"no model {name}"
    config = given.get("config")
    if config is not None and not is_place(config) and config not in recipe_names():
        return f"no recipe {config}"
    data = given.get("data")
    if data is not None and not is_place(data) and data not in ("shapes", "nuclei-mini"):
        return f"no data {data}"
    own = [read_recipe(config)["model"]] if config in recipe_names() else []
    named = [CATALOGUE[n].model if n in CATALOGUE else n for n in names if n in CATALOGUE or n in MODELS]
    fields = [word for word in words if FIELD.match(word)]
    return refused(named or own or ANY, fields) if fields else None


def wrong_instructions(text: str, models: list[str]) -> list[str]:
    """Command lines and fields of a page that do not work, each with the reason."""
    blocks, inline, rest = typed(text)
    lines = [(line, True) for line in blocks] + [(line, False) for line in inline]
    found = [(line, wrong_command(line, complete)) for line, complete in lines]
    for at in CODE.finditer(rest):
        first, *more = at[1].replace(r"\|", "|").split() or [""]
        fields = more if first in MODELS or first in recipe_names() else [first, *more]
        # Python's own True and False are those of a call, not of a field.
        if not fields or not all(FIELD.match(f) and not f.endswith(("=True", "=False")) for f in fields):
            continue
        if fields == ["key=value"]:
            continue
        of = [first] if first in MODELS else models
        name, _, values = fields[-1].partition("=")
        alternatives, end = values.split("|"), at.end()
        while (further := FURTHER.match(rest, end)) is not None:
            alternatives, end = [*alternatives, further[1]], further.end()
        for value in alternatives:
            words = [*fields[:-1], f"{name}={value}"]
            found.append((" ".join(words), refused(of, words)))
    return [f"{line}: {why}" for line, why in found if why is not None]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_what_a_page_says_to_type_is_accepted(page: Path) -> None:
    models = METHODS.get(page.name, ANY) if page.parent.name == "methods" else ANY
    assert wrong_instructions(page.read_text(encoding="utf-8"), models) == []


def test_examples_of_the_help_are_accepted() -> None:
    verbs = dict(get_command(app).commands)
    verbs |= {f"data {name}": verb for name, verb in verbs.pop("data").commands.items()}
    pages = {name: inspect.getdoc(verb.callback) or "" for name, verb in verbs.items()}
    assert all(typed(page)[0] for page in pages.values())
    assert {name: wrong for name, page in pages.items() if (wrong := wrong_instructions(page, ANY))} == {}


def test_commands_in_the_heads_of_recipes_train_that_recipe() -> None:
    for path in sorted((ROOT / "src" / "instseg" / "recipes").glob("*.yaml")):
        lines = [line[2:] for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# ")]
        commands = [line for line in lines if COMMAND.search(line)]
        assert [wrong_command(line, complete=True) for line in commands] == [None] * len(commands), path.name
        assert all(f"--config {path.stem}" in line for line in commands if "accelerate" in line), path.name


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("```bash\ninstseg trian folder/\n```", "no verb trian"),
        ("```bash\ninstseg train folder/ --modle solo_r50\n```", "--modle"),
        ("```bash\ninstseg val solo_r50 # forgot the data\n```", "MissingParameter"),
        ("`instseg train folder/ --model solo_r5`", "no model solo_r5"),
        ("```bash\naccelerate launch -m instseg train COCO --config solo_4x\n```", "no recipe solo_4x"),
        ("```bash\npip install . && instseg train shape --model solo_r50\n```", "no data shape"),
        ("`instseg train folder/ --model solo_r50 mask_group=2`", "no field mask_group"),
        ("`instseg train folder/ --model solo_r50 mask_groups=2`", "no field mask_groups"),
        ("`instseg val nuclei folder/ nms_sigma=x`", "nms_sigma"),
        ("`pyramid=false grids=[24]`", "scale_ranges must have one entry"),
        ("| `nms=matrix`, `hard`, `sofd` |", "nms=sofd"),
        ("| `tower_convs=4` to `800` |", "tower_convs=800"),
        ("`solo_3x epoch=72`", "no field epoch"),
    ],
)
def test_an_instruction_that_fails_is_seen(text: str, why: str) -> None:
    (found,) = wrong_instructions(text, ["solo_r50"])
    assert why in found


def test_the_fields_of_a_single_scale_are_those_of_its_model() -> None:
    page = (ROOT / "docs" / "methods" / "solo.md").read_text(encoding="utf-8")
    (fields,) = re.findall(r"`solo_r50_single_12`, `_24`, `_36` \(`([^`]+)`\)", page)
    ours = build_config("solo_r50", parsed(parse_overrides(fields.split())))
    assert ours == build_config("solo_r50_single_24", {})


# Sections, equations and tables of "SOLO: A Simple Framework for Instance Segmentation" beside what they are about. A
# line that speaks of the subject and cites something cites this, or something beside it that is about another subject.
CITED = {
    r"\b[Dd]ice\b": r"equations? \(?(4|6|7)\b|3\.3\.2|section 4\.2\.1|table 4c",
    r"Matrix NMS": r"equations? \(?(8|9)\b|3\.3\.4|table 5e|figure 4",
    r"Decoupled Dynamic": r"section 3\.2\.4|equation \(3\)|table 6c",
    r"SOLOv2\+": r"section 4\.3|tables? (6a|6b|1\b)",
    r"[Mm]ulti-scale testing|[Ss]everal scales": r"section 4\.3|table 6d",
    r"[Pp]oint NMS": r"the released code's",
}
CITES = re.compile(r"(?i)\b(?:sections?|equations?|tables?|figures?)\s\(?\d")
SOLO_PAGES = [
    *(ROOT / "src" / "instseg").rglob("*.py"),
    *(ROOT / "src" / "instseg" / "recipes").glob("*.yaml"),
    *(ROOT / "benchmarks").glob("*.py"),
    *PAGES,
]


def wrong_citations(text: str) -> list[str]:
    """Lines that cite the SOLO paper for one of the subjects above at another place than the right one."""
    return [
        line.strip()
        for line in text.splitlines()
        for subject, place in CITED.items()
        if re.search(subject, line) and CITES.search(line) and not re.search(place, line)
    ]


def test_the_solo_paper_is_cited_at_the_right_places() -> None:
    found = {str(p.relative_to(ROOT)): wrong_citations(p.read_text(encoding="utf-8")) for p in SOLO_PAGES}
    assert {page: lines for page, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "line",
    [
        "| dice, equations (5) and (6) | `losses/dice.py` |",
        "Matrix NMS: SOLO (journal) section 3.3.3",
        "Decoupled Dynamic SOLO, section 4.3",
        "and SOLOv2+, section 4.5",
        "Multi-scale testing: SOLO (journal) section 4.5",
        "| point NMS, maskness, section 3.3.3 | `ops/point_nms.py` |",
    ],
)
def test_a_citation_of_another_place_is_seen(line: str) -> None:
    assert wrong_citations(line) == [line]

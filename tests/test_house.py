"""The house rules: imports point one way, files and functions stay readable, `import instseg` is cheap."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "instseg"
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
MAX_FOLDER_LINES = 2000
MAX_LINES = 25_000

# room -> the rooms it may import; every room may import itself.
CORE = {"core", "_version"}
TENSORS = CORE | {"ops"}
NET = TENSORS | {"nn", "losses"}
SHOWN = TENSORS | {"data", "metrics", "vis", "sources", "results"}
MODEL = NET | SHOWN | {"models", "weights"}
ALLOWED = {
    "_version": set(),
    "core": {"_version"},
    "ops": CORE,
    "nn": TENSORS,
    "losses": TENSORS,
    "models": NET,
    "weights": NET | {"models"},
    "data": TENSORS,
    "metrics": TENSORS,
    "vis": TENSORS,
    "inspect": TENSORS | {"data", "vis"},
    "sources": TENSORS | {"data"},
    "results": TENSORS | {"data", "vis", "sources"},
    "model": MODEL,
    "predict": MODEL | {"model"},
    "evaluation": MODEL | {"model"},
    "training": MODEL | {"model", "evaluation"},
    "apps": MODEL | {"model", "predict", "evaluation", "training", "inspect"},
    "api": MODEL | {"model", "predict", "evaluation", "training", "apps"},
    "cli": MODEL | {"model", "predict", "evaluation", "training", "inspect", "apps", "api"},
    "__main__": {"cli"},
}
HEAVY = ("torch", "torchvision", "timm", "accelerate", "matplotlib", "pycocotools", "hotcoco", "tensorboard")


def _room(module: str) -> str:
    """`instseg.core.rle` -> `core`; the package itself -> ``."""
    return module.split(".")[1] if "." in module else ""


def _imported(path: Path) -> list[tuple[int, str]]:
    """Line and dotted name of every import of ours in a file, also those inside functions."""
    package = ["instseg", *path.relative_to(PACKAGE).parts[:-1]]
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            # `from instseg import core` names the room in the alias
            found += [(node.lineno, f"{module}.{a.name}" if module == "instseg" else module) for a in node.names]
    return [(line, name) for line, name in found if name.split(".")[0] == "instseg"]


def _backward_arrows(path: Path) -> list[str]:
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return [
        f"{path.relative_to(PACKAGE)}:{line} imports {name}"
        for line, name in _imported(path)
        if _room(name) not in {room, *ALLOWED[room]}
    ]


def _file_of(module: str) -> Path | None:
    """The file of a dotted name of ours, the package's for a name that it defines; None for the package `instseg`."""
    parts = module.split(".")[1:]
    for length in range(len(parts), 0, -1):
        path = PACKAGE.joinpath(*parts[:length])
        if path.with_suffix(".py").is_file():
            return path.with_suffix(".py")
        if (path / "__init__.py").is_file():
            return path / "__init__.py"
    return None


def _import_graph() -> dict[Path, set[Path]]:
    """File -> the files that it imports, also within functions and for type checking alone."""
    graph: dict[Path, set[Path]] = {}
    for path in _sources():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = []
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names += [f"{node.module}.{alias.name}" for alias in node.names]
        found = (_file_of(name) for name in names if name.split(".")[0] == "instseg")
        graph[path] = {file for file in found if file is not None and file != path}
    return graph


def _circles(graph: dict[Path, set[Path]]) -> list[list[str]]:
    """Files that import each other, directly or round a corner: the strongly connected parts of the graph (Tarjan)."""
    order: dict[Path, int] = {}
    low: dict[Path, int] = {}
    stack: list[Path] = []
    circles = []

    def visit(file: Path) -> None:
        order[file] = low[file] = len(order)
        stack.append(file)
        for other in graph.get(file, ()):
            if other not in order:
                visit(other)
                low[file] = min(low[file], low[other])
            elif other in stack:
                low[file] = min(low[file], order[other])
        if low[file] == order[file]:
            part = [stack.pop()]
            while part[-1] != file:
                part.append(stack.pop())
            if len(part) > 1:
                circles.append(sorted(str(f.relative_to(PACKAGE)) for f in part))

    for file in graph:
        if file not in order:
            visit(file)
    return circles


def _sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def _tree() -> list[Path]:
    """The text files of the checkout: what git tracks, or, without git, the source, tests and pages."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0 and listed.stdout:
        files = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:
        files = [p for folder in ("src", "tests", "docs", "benchmarks") for p in (ROOT / folder).rglob("*")]
    binary = {".png", ".jpg", ".tif", ".npz", ".npy", ".pt", ".safetensors", ".pyc", ".gz"}
    return [p for p in files if p.is_file() and p.suffix.lower() not in binary]


def test_imports_point_one_way() -> None:
    arrows = [
        arrow
        for path in _sources()
        if path.name != "__init__.py" or path.parent != PACKAGE
        for arrow in _backward_arrows(path)
    ]
    assert not arrows, "\n".join(arrows)


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("core", "from instseg.ops import resize"),
        ("ops", "import instseg.nn.fpn"),
        ("data", "from instseg import models"),
        ("models", "def f():\n    from ..model.instance_model import load"),
        ("evaluation", "from instseg.training import run"),
    ],
)
def test_an_arrow_that_points_back_is_seen(
    room: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    path = tmp_path / room / "example.py"
    path.parent.mkdir()
    path.write_text(line)
    assert len(_backward_arrows(path)) == 1


def test_no_two_files_import_each_other() -> None:
    assert _circles(_import_graph()) == []


def test_a_circle_round_a_corner_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "a.py").write_text("from instseg.core.b import x")
    (tmp_path / "core" / "b.py").write_text("def f():\n    from instseg.core import c")
    (tmp_path / "core" / "c.py").write_text("if TYPE_CHECKING:\n    from instseg.core.a import y")
    assert _circles(_import_graph()) == [["core/a.py", "core/b.py", "core/c.py"]]


def test_every_room_is_on_the_plan() -> None:
    rooms = {p.name.removesuffix(".py") for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert rooms - {"__init__"} <= set(ALLOWED)


def test_files_stay_under_500_lines() -> None:
    long = {
        str(p.relative_to(ROOT)): n
        for p in _sources()
        if (n := len(p.read_text("utf-8").splitlines())) > MAX_FILE_LINES
    }
    assert not long


def test_folders_stay_under_2000_lines() -> None:
    """Of a folder's own files; a room that grows beyond that is split."""
    lines: dict[str, int] = {}
    for path in _sources():
        folder = str(path.parent.relative_to(ROOT))
        lines[folder] = lines.get(folder, 0) + len(path.read_text("utf-8").splitlines())
    assert {folder: n for folder, n in lines.items() if n > MAX_FOLDER_LINES} == {}
    assert sum(lines.values()) <= MAX_LINES


def test_functions_stay_under_60_lines() -> None:
    """Counted from `def` to the last line without the docstring, which may be as long as the shapes need."""
    long = []
    for path in _sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if ast.get_docstring(node):
                    lines -= (node.body[0].end_lineno or 0) - node.body[0].lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name} ({lines} lines)")
    assert not long, "\n".join(long)


def _modules_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_instseg_loads_no_heavy_library() -> None:
    assert not _modules_after("import instseg").intersection(HEAVY)


def test_help_of_the_program_loads_no_heavy_library() -> None:
    code = (
        "import contextlib, io\nfrom instseg.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()): main(['--help'])"
    )
    assert not _modules_after(code).intersection({*HEAVY, "numpy", "pydantic", "PIL"})


def test_no_machine_path_in_the_tree() -> None:
    pattern = re.compile(r"(?<![\w.])/(?:home|root|work|Users|mnt|farm)/\w|file:///|(?<![\w./])/opt/")
    found = [
        f"{path.relative_to(ROOT)}:{number} {line.strip()[:100]}"
        for path in _tree()
        for number, line in enumerate(path.read_text("utf-8", errors="replace").splitlines(), 1)
        if path != Path(__file__) and pattern.search(line)
    ]
    assert not found, "\n".join(found)

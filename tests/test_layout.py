"""Imports run one way, no file is too long, and the commands work from any folder."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter

import pytest
from conftest import ROOT

LAYERS = [  # from the bottom to the top: each may import those before it, and its own files
    ("runtime",),
    ("reading",),
    ("dataset",),
    ("modules",),
    ("networks",),
    ("scoring",),
    ("report",),
    ("inference",),
    ("training",),
    ("train", "predict", "app", "hubconf"),
]
LAYER_OF = {name: number for number, names in enumerate(LAYERS) for name in names}
FILES = {  # module name -> its file
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for name in LAYER_OF
    for path in [ROOT / f"{name}.py", *ROOT.glob(f"{name}/*.py")]
    if path.is_file()
}


def imported(path) -> set[str]:
    """All that a file imports, wherever in the file: modules, and what may be modules."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def imports(path) -> set[str]:
    """Modules of this repository that a file imports."""
    return imported(path) & FILES.keys()


def test_every_file_belongs_to_a_layer():
    folders = {path.parent.name for path in ROOT.glob("*/*.py")} - {"tests", "benchmarks"}
    assert folders | {path.stem for path in ROOT.glob("*.py")} == LAYER_OF.keys()


def test_imports_go_down_without_circles():
    graph = {name: imports(path) for name, path in FILES.items()}
    layer = {name: LAYER_OF[name.split(".")[0]] for name in FILES}
    assert not [(name, other) for name, others in graph.items() for other in others if layer[other] > layer[name]]
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_no_file_is_too_long():
    """500 lines; the method's own page, modules.py, has 700."""
    lines = {name: len(path.read_text().splitlines()) for name, path in FILES.items()}
    assert not [name for name, count in lines.items() if count > (700 if name == "modules" else 500)]


@pytest.mark.parametrize(
    ("package", "unwanted"),
    [
        ("reading", {"torch"}),
        ("report", {"torch", "modules", "networks"}),
        ("train", {"sklearn", "torchvision", "nilearn"}),  # each takes seconds to import
    ],
)
def test_no_needless_imports_even_indirectly(package, unwanted):
    names = ", ".join(name for name in FILES if name.split(".")[0] == package)
    code = f"import sys, {names}; print(*{unwanted} & {{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("command", ["train", "predict", "dataset", "app"])
def test_commands_work_from_another_folder(command, tmp_path):
    call = [sys.executable, str(ROOT / f"{command}.py"), "--help"]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"usage: {command}.py" in done.stdout

"""The layout: imports run one way, no file is too long, and the commands work from anywhere."""

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter

import pytest
from conftest import ROOT

LAYERS = [  # from the bottom to the top: each may import those before it, and its own files
    ("runtime",),
    ("reading",),
    ("dataset",),
    ("networks",),
    ("modules",),
    ("scoring",),
    ("report",),
    ("inference",),
    ("training",),
    ("train", "predict", "app", "hubconf"),
]
HEIGHT = {name: height for height, names in enumerate(LAYERS) for name in names}
ROOT_FILES = sorted(ROOT.glob("*.py"))
FILES = ROOT_FILES + sorted(file for folder in HEIGHT for file in ROOT.glob(f"{folder}/*.py"))
NEVER = {  # a folder -> what nothing in it may import, at first or second hand
    "reading": {"torch"},
    "report": {"torch", "modules", "networks"},
}


def name_of(file):
    """reading/cache.py -> reading.cache"""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


@cache
def imports():
    """Module -> the modules of ours that its file imports, wherever in the file."""
    modules = {name_of(file) for file in FILES}
    found = {}
    for file in FILES:
        named = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                named |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        found[name_of(file)] = named & modules
    return found


def test_every_file_has_its_layer():
    assert {file.stem for file in ROOT_FILES} <= set(HEIGHT)
    code = {path.parent.name for path in ROOT.glob("*/*.py")} - {"tests", "benchmarks"}
    assert code <= set(HEIGHT)


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_go_down(file):
    name = name_of(file)
    height = HEIGHT[name.split(".")[0]]
    assert not [other for other in imports()[name] if HEIGHT[other.split(".")[0]] > height]


def test_imports_have_no_circle():
    assert len(list(TopologicalSorter(imports()).static_order())) == len(FILES)


@pytest.mark.parametrize("folder", NEVER)
def test_a_folder_never_loads_what_it_does_not_need(folder):
    names = [name_of(file) for file in FILES if file.parent.name == folder]
    loaded = f"{{name.split('.')[0] for name in sys.modules}} & {NEVER[folder]}"
    code = f"import sys, {', '.join(names)}; found = {loaded}; sys.exit(f'loads {{found}}' if found else 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_training_starts_without_the_judge():
    """scikit-learn, torchvision and torchmetrics take seconds to import."""
    slow = {"sklearn", "torchvision", "torchmetrics", "prdc", "nilearn"}
    code = f"import sys, train; found = {slow} & set(sys.modules); sys.exit(f'loads {{found}}' if found else 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_a_file_answers_one_question(file):
    """Its docstring opens with it, and the answer takes no more than 500 lines."""
    text = file.read_text()
    assert "?" in ast.get_docstring(ast.parse(text)).split("\n\n")[0]
    assert len(text.splitlines()) <= 500


def test_few_files_at_the_root():
    assert len(ROOT_FILES) <= 6


@pytest.mark.parametrize("command", ["train", "predict", "dataset", "app"])
def test_commands_work_from_another_folder(command, tmp_path):
    call = [sys.executable, str(ROOT / f"{command}.py"), "--help"]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"usage: {command}.py" in done.stdout

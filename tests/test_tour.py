"""The notebook resources/tour.ipynb, run from a folder of its own as a reader runs it; and what is committed of it."""

import json

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient

from reading import demo

TOUR = ROOT / "resources" / "tour.ipynb"


@pytest.fixture(scope="module")
def slices(tmp_path_factory):
    """A smaller demo set: the notebook's own has 40 people, and takes as long to make as the rest to run."""
    folder = tmp_path_factory.mktemp("demo") / "set"
    demo.make(folder, people=8, seed=1)
    return folder


def test_every_cell_runs_and_says_what_it_should(slices, tmp_path, monkeypatch):
    for name, value in (("XDG_CACHE_HOME", str(tmp_path / "cache")), ("OMP_NUM_THREADS", "1"), ("PYTHONPATH", "")):
        monkeypatch.setenv(name, value)
    (tmp_path / "here").mkdir()
    tour = nbformat.read(TOUR, as_version=4)
    settings = next(cell for cell in tour.cells if cell.cell_type == "code")
    assert settings.source.startswith('clone = ".."')
    settings.source = f"clone, data = {str(ROOT)!r}, {str(slices)!r}"
    before = {path: path.stat().st_mtime_ns for path in (ROOT / "resources").rglob("*")}
    where = {"metadata": {"path": str(tmp_path / "here")}}
    NotebookClient(tour, timeout=240, kernel_name="python3", resources=where).execute()

    outputs = [output for cell in tour.cells for output in cell.get("outputs", [])]
    text = "".join(output.get("text", "") for output in outputs)
    assert "8 grids of (" in text
    for space in ("pca", "randconv", "folds"):
        assert any(line.startswith(space) and len(line.split()) == 3 for line in text.splitlines())
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert not list((tmp_path / "here").iterdir())
    assert {path: path.stat().st_mtime_ns for path in (ROOT / "resources").rglob("*")} == before


def test_what_is_committed_was_run_from_top_to_bottom_and_is_small():
    cells = [cell for cell in json.loads(TOUR.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert TOUR.stat().st_size < 300_000
    for private in ("/root", "/home", "/tmp", "/work"):
        assert private not in json.dumps([cell["source"] for cell in cells])
        assert not any(private in "".join(output.get("text", [])) for cell in cells for output in cell["outputs"])

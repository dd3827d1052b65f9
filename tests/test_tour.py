"""The notebook resources/tour.ipynb, run from a folder of its own as a reader runs it; and its committed outputs."""

import json

import nbformat
import pytest
from conftest import LEVELS, ROOT, blob
from nbclient import NotebookClient
from PIL import Image

TOUR = ROOT / "resources" / "tour.ipynb"


@pytest.fixture
def slices(tmp_path):
    """A data set with enough people for the judge: four to train on, and four to test."""
    for split, people in (("train", range(1, 5)), ("validate", [5]), ("test", range(6, 10))):
        (tmp_path / "data" / split).mkdir(parents=True)
        for person in people:
            for level in range(LEVELS):
                picture = Image.fromarray(blob(person, level))
                picture.save(tmp_path / "data" / split / f"case_{person:03d}_slice_{level}.nii.png")
    return tmp_path / "data"


def test_every_cell_runs_and_prints_what_it_should(slices, tiny_run, tmp_path, monkeypatch):
    """On small weights and slices: the shipped weights are tested elsewhere."""
    for name, value in (("XDG_CACHE_HOME", str(tmp_path / "cache")), ("OMP_NUM_THREADS", "1"), ("PYTHONPATH", "")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the scripts' own, which shows no figures in a notebook
    (tmp_path / "here").mkdir()
    tour = nbformat.read(TOUR, as_version=4)
    settings = next(cell for cell in tour.cells if cell.cell_type == "code")
    assert 'clone = ".."' in settings.source
    settings.source = f"clone, data, weights = {str(ROOT)!r}, {str(slices)!r}, {str(tiny_run / 'vqvae.pth')!r}"
    before = {path: path.stat().st_mtime_ns for path in (ROOT / "resources").rglob("*")}
    where = {"metadata": {"path": str(tmp_path / "here")}}
    NotebookClient(tour, timeout=240, kernel_name="python3", resources=where).execute()

    outputs = [output for cell in tour.cells for output in cell.get("outputs", [])]
    text = "".join(output.get("text", "") for output in outputs)
    assert "1 x " in text
    for space in ("pca", "randconv", "folds"):
        assert any(line.startswith(space) and len(line.split()) == 3 for line in text.splitlines())
    assert sum("image/jpeg" in output.get("data", {}) for output in outputs) == 2
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

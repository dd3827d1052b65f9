"""Three lines in a notebook: what goes in and comes out, what is refused, and what is left of it for the caller."""

import json
import re
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from conftest import ROOT
from test_layout import FILES, LAYER_OF, imported, imports

import hubconf
from inference.codec import to_uint8
from inference.model import TrainedModel
from runtime.cli import LARGEST_SEED
from runtime.compute import cpu_has_bf16
from runtime.errors import InputError

OWN = ("__init__", "images")  # files of a caller's packages
WEIGHTS = ROOT / "resources" / "pretrained" / "vqvae.pth"


def python(code: str, folder, cache) -> str:
    """What a script in `folder` prints."""
    run = ["-c", f"CLONE = {str(ROOT)!r}\n{textwrap.dedent(code)}"]
    environment = {"XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, *run], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def model():
    return TrainedModel.load(WEIGHTS, device="cpu")


@pytest.fixture(scope="module")
def slices(model):
    """uint8 [3, 256, 256]: samples, so that the model knows such slices."""
    return to_uint8(model.sample(seeds=range(3), level=12))


# ---------------------------------------------------------------------------------------- from a folder of one's own


def test_three_lines_from_an_empty_folder(tmp_path, tiny_cache, model, slices):
    np.save(tmp_path / "slices.npy", slices)
    (tmp_path / "empty").mkdir()
    code = """
        import json, sys
        import numpy as np, torch
        slices, path = np.load("../slices.npy"), list(sys.path)
        model = torch.hub.load(CLONE, "brain_vqvae", source="local", device="cpu")
        codes = model.encode(slices); pictures = model.decode(codes); novel = model.sample(seeds=range(3), level=12)
        files = {name: str(getattr(module, "__file__", "")) for name, module in sys.modules.items()}
        left = [name for name, file in files.items() if CLONE in file and sys.prefix not in file]  # .venv may be in it
        same = bool((np.round(novel * 255) == slices).all())
        print(json.dumps({"left": left, "path": path == sys.path, "same": same, "codes": float(sum(map(np.sum, codes))),
                          "pictures": float(pictures.sum()), "model": repr(model)}))
    """
    found = json.loads(python(code, tmp_path / "empty", tiny_cache))
    assert not list((tmp_path / "empty").iterdir())
    assert (found["left"], found["path"], found["same"]) == ([], True, True)
    codes = model.encode(slices)
    assert found["codes"] == sum(map(np.sum, codes))
    assert found["pictures"] == pytest.approx(float(model.decode(codes).sum()))
    assert found["model"] == repr(model)
    assert "8 of 18x22" in repr(model)


def test_callers_own_modules_of_the_same_names_stay_theirs(tmp_path, tiny_cache, tiny_data):
    """Those imported before and after; files, and packages with files. All entries, one of them twice."""
    for name in ("dataset", "modules", "report", *(f"{p}/{n}" for p in ("reading", "training") for n in OWN)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.py").write_text("mine = True\n")
    code = f"""
        import sys
        import torch
        hub = lambda entry, *arguments, **options: torch.hub.load(CLONE, entry, *arguments, source="local", **options)
        first = hub("brain_vqvae", device="cpu")
        import dataset, modules, report, training, reading.images
        theirs = (dataset, modules, report, training, reading, reading.images)
        second = hub("brain_vqvae", prior=CLONE + "/resources/pretrained/pixelcnn.pth", device="cpu")
        data = hub("brain_slices", {str(tiny_data)!r})
        judge = hub("brain_judge", data.splits["train"], data.splits["test"])
        for module in theirs:
            assert module.mine, module
            assert module is sys.modules[module.__name__]
        import training.images
        assert training.images.mine
        images = data.splits["test"].images[:2]
        assert all((a == b).all() for a, b in zip(first.encode(images), second.encode(images)))
        assert first.sampler.title != second.sampler.title
        print(len(judge.fidelity(data.splits["train"].images[:100])))
        try:
            hub("brain_judge", data.splits["test"], data.splits["train"])
        except ValueError as error:
            print(error)
    """
    number, complaint = python(code, tmp_path, tiny_cache).splitlines()[-2:]
    assert number == "3"  # feature spaces
    assert "people" in complaint


def test_entries_are_those_that_the_help_tells_of():
    entries = [name for name in dir(hubconf) if callable(getattr(hubconf, name)) and not name.startswith("_")]
    assert entries == ["brain_judge", "brain_slices", "brain_vqvae"]  # as torch.hub.list sees them
    for name in entries:
        assert all(f"\n    {word}:\n" in getattr(hubconf, name).__doc__ for word in ("Args", "Returns", "Raises"))


def test_dependencies_are_the_packages_that_the_entries_import():
    """Followed through the project's own modules; a package that one of them imports must be named, and no other."""
    seen, left = set(), {"hubconf"}
    while left:
        seen.add(name := left.pop())
        left |= imports(FILES[name]) - seen
    packages = {name.partition(".")[0] for module in seen for name in imported(FILES[module])}
    found = packages - sys.stdlib_module_names - LAYER_OF.keys()
    assert sorted(found, key=str.lower) == hubconf.dependencies


# ---------------------------------------------------------------------------------------- what goes in and comes out


def test_numpy_and_torch_and_integers_and_floats_give_the_same_codes(model, slices):
    expected = model.encode(slices)
    assert [(grid.shape, grid.dtype) for grid in expected] == [((3, 18, 22), np.int16)] * 8
    as_float = (slices / np.float32(255)).astype(np.float32)
    others = torch.from_numpy(slices), torch.from_numpy(as_float), as_float.astype(">f4")
    for given in (as_float, slices / 255.0, *others):
        codes = model.encode(given)
        assert {type(grid) for grid in codes} == {type(given)}
        assert all(np.array_equal(a, b) for a, b in zip(codes, expected, strict=True))
    for few_bits in (torch.bfloat16, torch.float16):
        codes = model.encode(torch.from_numpy(as_float).to(few_bits))
        assert (codes[0].numpy() == expected[0]).mean() > 0.9


def test_pictures_are_floats_of_the_kind_that_the_codes_are(model, slices):
    codes = model.encode(slices)
    pictures = model.decode(codes)
    assert (pictures.shape, pictures.dtype) == ((3, 256, 256), np.float32)
    assert 0 <= pictures.min() < pictures.max() <= 1
    assert np.abs(pictures - slices / 255).mean() < 0.01
    np.testing.assert_allclose(model.decode([grid.astype(">i4") for grid in codes]), pictures, atol=1e-6)
    again = model.decode([torch.from_numpy(grid).long() for grid in codes])
    assert (type(again), again.dtype) == (torch.Tensor, torch.float32)
    np.testing.assert_allclose(again.numpy(), pictures, atol=1e-6)
    weight = torch.ones(256, 256, requires_grad=True)
    (again * weight).sum().backward()  # no tensors of inference mode
    assert weight.grad.sum() > 0


def test_samples_are_their_codes_pictures_and_depend_on_their_seed_only(model, monkeypatch):
    monkeypatch.setattr("inference.sampling.WALK", 3)
    codes = model.sample_codes([5, 6], level=3)
    assert [(grid.shape, grid.dtype) for grid in codes] == [((2, 18, 22), np.int16)]  # the first of 8
    painted = model.sample([5, 6], level=3)
    np.testing.assert_array_equal(painted, model.codec.paint(codes, [5, 6]))
    assert np.abs(painted - model.decode(codes)).mean() < 0.02  # the plain picture, and texture
    alone = model.sample_codes(np.array([6]), level=3)
    assert np.mean([a[0] == b[1] for a, b in zip(alone, codes, strict=True)]) > 0.99  # rounding may tip a code
    assert np.abs(painted[0] - model.sample([5], level=20)[0]).mean() > 0.01
    walk = model.walk((5, 6), level=3)
    assert (walk.shape, walk.dtype) == ((3, 256, 256), np.float32)
    ends = model.codec.paint(codes, [5, 5])  # of one noise, all the way
    for i, end in ((0, 0), (-1, 1)):
        assert np.abs(walk[i] - ends[end]).mean() < 0.005


def test_codes_are_exact_and_painting_is_fast_unless_asked_otherwise(model):
    assert (model.codec.on.bf16, model.codec.paint_on.bf16) == (False, cpu_has_bf16())
    exact = TrainedModel.load(WEIGHTS, "none", "cpu", "fp32")
    assert (exact.codec.on.bf16, exact.codec.paint_on.bf16) == (False, False)
    codes = model.sample_codes([0], level=16)
    assert np.abs(model.codec.paint(codes, [0]) - exact.codec.paint(codes, [0])).mean() < 0.001


def test_slices_of_any_size_come_back_where_they_were(model, slices):
    odd = np.pad(slices[:, 60:190, 50:213], ((0, 0), (37, 0), (0, 110)))  # 167x273
    codes = model.encode(odd)
    assert all(grid.shape[1:] == (codes.box.height // 8, codes.box.width // 8) for grid in codes)
    pictures = model.decode(codes)
    assert pictures.shape == odd.shape
    assert not pictures[:, :30].any()
    assert np.abs(pictures - odd / 255).mean() < 0.02


def test_the_first_codes_alone_will_do(model, slices):
    noise = np.random.default_rng(0).normal(0, 20, slices.shape)  # the samples are of few codes themselves
    textured = np.where(slices > 0, (slices + noise).clip(0, 255), 0).astype(np.uint8)
    codes, unit = model.encode(textured), textured / 255
    errors = [np.abs(model.decode(codes[:depth]) - unit).mean() for depth in (1, 2, 8)]
    assert errors[0] > errors[1] > errors[2]
    np.testing.assert_array_equal(model.decode(codes[:2]), model.decode(list(codes)[:2]))  # on the training's grid


# ---------------------------------------------------------------------------------------- what is refused


def test_what_cant_be_used_is_a_value_error_of_one_line(model, slices, tmp_path):
    codes, unit = model.encode(slices), slices / 255
    shutil.copy(WEIGHTS, tmp_path)
    alone = TrainedModel.load(tmp_path / "vqvae.pth", device="cpu")
    dcgan, baseline = (
        TrainedModel.load(WEIGHTS, WEIGHTS.with_name(f"{name}.pth"), "cpu") for name in ("dcgan", "course_gan")
    )
    cases = [  # what is done, what the line says
        (lambda: model.encode(slices[0]), "[N, H, W], N at least 1, not uint8 [256, 256]"),
        (lambda: model.encode(slices.tolist()), "not a list"),
        (lambda: model.encode(slices[:0]), "N at least 1, not uint8 [0, 256, 256]"),
        (lambda: model.encode(np.zeros((1, 1025, 9), np.uint8)), "sides of 1 to 1024 pixels, not uint8 [1, 1025, 9]"),
        (lambda: model.encode(torch.from_numpy(slices).long()), "not int64 [3, 256, 256] from 0 to"),
        (lambda: model.encode(unit * 255), "float in [0, 1], not float64 [3, 256, 256] from 0 to"),
        (lambda: model.encode(np.where(unit > 0.5, np.nan, unit)), "from nan to nan"),
        (lambda: model.decode(codes[0]), "a list of 1 to 8 integer arrays"),
        (lambda: model.decode([grid / 1 for grid in codes]), "integer arrays [N, h, w], not float64 [3, 18, 22]"),
        (lambda: model.decode([codes[0][:, :9], *codes[1:]]), "[N, 18, 22]"),
        (lambda: model.decode([codes[0][:2], *codes[1:]]), "the same for all grids"),
        (lambda: model.decode([grid + np.int16(512) for grid in codes]), "from 0 to 511"),
        (lambda: model.sample([]), "at least one"),
        (lambda: model.sample([LARGEST_SEED + 1]), "whole numbers from 0"),
        (lambda: model.sample([0], level=32), "knows slice levels 0 to 31"),
        (lambda: baseline.sample([0], level=3), "was trained without slice levels"),
        (lambda: dcgan.sample([0], temperature=0.5), "a DCGAN has no temperature"),
        (lambda: model.sample([0], nucleus=0), "the nucleus must be above 0"),
        (lambda: model.sample([0], temperature=float("nan")), "the temperature must be at least 0.01"),
        (lambda: model.walk([1, 2, 3]), "between 2 seeds, not 3"),
        (lambda: alone.sample([0]), f"no prior beside {tmp_path / 'vqvae.pth'}"),
    ]
    for do, words in cases:
        with pytest.raises(ValueError, match=re.escape(words)) as caught:
            do()
        assert isinstance(caught.value, InputError), words
        assert "\n" not in str(caught.value)

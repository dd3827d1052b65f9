"""What priors can be asked for: the table's columns and the brain's own size, as training gets them."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from conftest import run_script

from dataset import DataSet
from reading.participants import Covariate, Participants
from runtime.errors import InputError
from scoring.volumes import SizeMeasure
from training.augment import Variation
from training.covariates import Covariates, hide


@pytest.fixture
def data() -> DataSet:
    """Six people for training, with a table of age and sex that lacks one of them, and two to validate."""
    values = {f"case_{i:03d}": [60.0 + i, i % 2] for i in (1, 2, 3, 4, 5, 7, 8)} | {"case_004": [np.nan, 0]}
    table = Participants([Covariate("age", "years", None), Covariate("sex", None, ("F", "M"))], values, [])
    splits = {"train": tiny.slices(6, 8), "validate": tiny.slices(2, 8, first=7)}
    return replace(tiny.data_set(), splits=splits, participants=table)


def test_columns_of_the_table_and_sizes_of_the_brain(data):
    found = Covariates(data, None)
    assert [each["name"] for each in found.described] == ["age", "sex", "ventricles", "brain"]
    age, sex, ventricles, brain = found.described
    assert (age["low"], age["high"], age["unit"], age["categories"]) == (61, 65, "years", None)
    assert sex == sex | {"categories": ["F", "M"], "mean": 0, "deviation": 1}
    values = found.values["train"].reshape(6, 8, 4)
    assert np.array_equal(np.isnan(values[:, 0, 0]), [False, False, False, True, False, True])
    assert np.array_equal(values[:5, 0, 1], [1, 0, 1, 0, 1])
    known = values[[0, 1, 2, 4], :, 0]
    np.testing.assert_allclose([known.mean(), known.std()], [0, 1], atol=1e-6)
    np.testing.assert_allclose(known[:, 0] * age["deviation"] + age["mean"], [61, 62, 63, 65], rtol=1e-6)

    measure = SizeMeasure(data.splits["train"])
    of_two = measure(measure.box.crop(data.splits["validate"].images.reshape(2, 8, tiny.SIZE, tiny.SIZE)))
    for i, described in ((2, ventricles), (3, brain)):
        own = found.values["validate"].reshape(2, 8, 4)[:, :, i] * described["deviation"] + described["mean"]
        np.testing.assert_allclose(own, of_two[described["name"]][:, None].repeat(8, 1), rtol=1e-4)


def test_a_category_that_no_training_person_has_is_unknown(data):
    values = data.participants.values | {"case_007": [67.0, 2]}
    columns = [Covariate("age", "years", None), Covariate("sex", None, ("M", "F", "X"))]
    found = Covariates(replace(data, participants=Participants(columns, values, [])), "sex")
    assert found.described[0]["categories"] == ["M", "F"]
    assert np.isnan(found.values["validate"][:8]).all()
    assert np.array_equal(found.values["validate"][8:], np.zeros((8, 1)))


def test_without_a_table_brains_still_have_a_size(data):
    assert [each["name"] for each in Covariates(replace(data, participants=None), None).described] == [
        "ventricles",
        "brain",
    ]


def test_some_are_chosen(data):
    assert [each["name"] for each in Covariates(data, "brain,age").described] == ["brain", "age"]
    none = Covariates(data, "none")
    assert none.described == []
    assert none.values["train"].shape == (48, 0)
    with pytest.raises(InputError, match="--covariates weight: training people differ in age, sex, ventricles, brain"):
        Covariates(data, "age,weight")


def test_single_slices_have_no_size(data):
    slices = data.splits["train"]
    alone = replace(slices, levels=np.full(len(slices), -1))
    found = Covariates(replace(data, splits={"train": alone, "validate": alone}), None)
    assert [each["name"] for each in found.described] == ["age", "sex"]


def test_an_enlarged_brain_has_a_larger_area(data):
    found = Covariates(data, "age,brain")
    augmented, zoom = torch.tensor([True, False]).view(2, 1, 1, 1), torch.full((2, 1, 1, 1), 1.1)
    variation = Variation(*[None] * len(Variation._fields))._replace(augmented=augmented, zoom=zoom)
    before = torch.tensor(found.values["train"][:2])
    after = found.scaled(before, variation)
    brain = found.described[1]
    area = [values[:, 1].double() * brain["deviation"] + brain["mean"] for values in (before, after)]
    torch.testing.assert_close(area[1] / area[0], torch.tensor([1.21, 1.0]).double(), rtol=1e-4, atol=0)
    assert torch.equal(after[:, 0], before[:, 0])


def test_any_of_them_may_be_unknown_in_training():
    torch.manual_seed(0)
    hidden = hide(torch.ones(20_000, 2))
    unknown = hidden.isnan()
    assert unknown.float().mean().item() == pytest.approx(0.2 + 0.8 * 0.3, abs=0.01)
    assert unknown.all(1).float().mean().item() == pytest.approx(0.2 + 0.8 * 0.09, abs=0.01)
    assert hidden.nanmean().item() == pytest.approx(1, abs=0.01)
    assert hidden[~unknown].std().item() == pytest.approx(0.1, abs=0.005)


def test_the_lines_of_the_readme_on_a_table_of_ones_own(tiny_data, tmp_path):
    """Made-up pictures, synthetic by their marker, with invented ages: checked, learnt, asked for, refused."""
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    ages = "".join(f"case_{person:03d}\t{20 + 10 * person}\t{'FM'[person % 2]}\n" for person in range(1, 7))
    ages = ages.replace("\t40\t", "\tn/a\t")  # of a training person, whose age is unknown
    (data / "participants.tsv").write_text(f"participant_id\tinvented_age\tsex\n{ages}")

    def run(*arguments: object) -> str:
        done = run_script(*arguments, cache=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "invented_age: 30 to 80" in run("dataset.py", "check", data)
    sizes = "--width=8", "--depth=2", "--codebook-size=16", "--epochs=1", "--painter-slices=0", "--prior-epochs=1"
    run("train.py", "--data", data, "--prior", "transformer", *sizes, "--out", tmp_path / "runs")
    [weights] = tmp_path.glob("runs/*/vqvae.pth")
    sample = "predict.py", weights, "--samples-only", "--samples", 2, "--volumes", 1, "--where"
    assert "invented_age=40, sex=F" in run(*sample, "invented_age=40", "sex=F")
    refused = run_script(*sample, "invented_age=99", cache=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.strip().endswith("invented_age=99: it can be from 30 to 60")

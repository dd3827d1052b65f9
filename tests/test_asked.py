"""benchmarks/covariates.py: its figures where the truth is known, on made-up brains."""

from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import covariates
from benchmarks.covariates import Brains, Drawing, agreement, ask, compare_ratings, intervals, learn, order
from dataset import Box


def brains(rating: np.ndarray, size: np.ndarray, seed: int = 0) -> Brains:
    """Brains [V, 4, 16, 16] with a dark square of `size`, and noise."""
    pooled = np.random.default_rng(seed).normal(0.6, 0.02, (len(size), 4, 16, 16)).astype(np.float32)
    for brain, side in zip(pooled, size, strict=True):
        brain[:, 4 : 4 + side, 4 : 4 + side] -= 0.5
    ventricles = np.tile(size[:, None] ** 2, 4)
    return Brains(1000 - ventricles, ventricles, pooled, rating)


def test_agreement_of_a_line_is_its_own():
    found = agreement(np.array([1.0, 2, 3]), np.array([3.0, 5, 7]))
    figures = {"correlation": 1, "slope": 2, "error": 3, "deviation": (2 / 3) ** 0.5}
    assert found == pytest.approx(figures | {"low": 1, "high": 3, "brains": 3})


def test_asked_are_values_of_the_middle_of_people_each_with_a_seed_of_its_own():
    seen = []

    def draw(name: str, values: np.ndarray, first_seed: int) -> np.ndarray:
        seen.extend(range(first_seed, first_seed + len(values)))
        return values

    real = {"ventricles": np.linspace(0, 1, 101), "brain": np.linspace(0, 1000, 101)}
    found = ask(draw, lambda images: {"ventricles": images, "brain": images / 2}, real, 50)
    figures = [found["ventricles"][key] for key in ("low", "high", "slope", "error", "brains")]
    assert figures == pytest.approx([0.05, 0.95, 1, 0, 50])
    assert found["brain"]["slope"] == pytest.approx(0.5)
    assert len(set(seen)) == len(seen) == 66


def test_brains_are_drawn_once_for_the_same_weights(tmp_path):
    drawn = []

    def sample_volumes(seeds: range, where: dict) -> np.ndarray:
        drawn.extend(seeds)
        return np.broadcast_to(where["cdr"][:, None, None, None] / 4, (len(seeds), 2, 8, 8))

    def drawing() -> Drawing:
        sampler = SimpleNamespace(path=tmp_path / "transformer.pth")
        model = SimpleNamespace(path=tmp_path / "vqvae.pth", sampler=sampler, sample_volumes=sample_volumes)
        return Drawing(model, SimpleNamespace(box=Box(0, 4, 8, 4)), tmp_path / "brains")

    (tmp_path / "vqvae.pth").write_bytes(b"a")
    for _ in range(2):
        found = drawing()("cdr", np.array([0.5, 0.5, 0.5, 1, 1]), 7)
        assert found.shape == (5, 2, 8, 4)
        assert found[:, 0, 0, 0].tolist() == [round(0.125 * 255)] * 3 + [round(0.25 * 255)] * 2
        assert drawn == [7, 8, 9, 10, 11]
    (tmp_path / "vqvae.pth").write_bytes(b"b")
    drawing()("cdr", np.ones(40), 0)
    assert len(drawn) == 45


def test_ratings_are_compared_by_the_size_of_ventricles():
    people = brains(np.repeat([0, 0.5, 1], 4), np.tile([2, 3, 4, 5], 3) + np.repeat([0, 1, 4], 4))
    found = compare_ratings(people, brains(people.rating, np.full(12, 3)))
    assert [row["auc_people"] for row in found] == [0.5, pytest.approx(order(np.arange(4), np.arange(4) + 1).mean()), 1]
    assert [row["auc_brains"] for row in found] == [0.5] * 3
    assert found[0]["mean_people"] == 4 * np.mean([4, 9, 16, 25])
    assert found[0]["distance"] == 4 * np.mean([5, 0, 7, 16])


def test_intervals_hold_the_area_and_are_those_of_differences():
    labels = np.repeat([False, True], 20)
    noise = np.random.default_rng(0).normal(size=40)
    found = intervals({"people": labels + noise, "same": labels + noise, "perfect": labels.astype(float)}, labels)
    mean, low, high = found["auc"]["people"]
    assert low < mean < high < 1
    assert found["auc"]["perfect"] == [1, 1, 1]
    assert found["difference"]["same"] == [0, 0, 0]
    assert found["difference"]["perfect"] == pytest.approx([1 - mean, 1 - high, 1 - low])
    assert found["numbers"] == [20, 20]


@pytest.fixture
def people() -> Brains:
    rating = np.tile([0, 1.0], 20)
    return brains(rating, (3 + 3 * rating).astype(int) + np.random.default_rng(1).integers(0, 2, 40))


def test_a_classifier_learns_what_its_brains_carry(people, monkeypatch):
    monkeypatch.setattr(covariates, "CLASSIFIERS", {"linear": covariates.linear_scores})
    backwards = people._replace(rating=1 - people.rating)
    for sampled, expected in ((people, 1), (backwards, 0)):
        for found in learn(people, np.arange(40) >= 28, sampled):
            assert found["numbers"] == ([6, 6] if found["test"] == "new" else [20, 20])
            assert {name: area[0] for name, area in found["auc"].items() if name != "both"} == {
                "people": 1,
                "brains": expected,
            }


def test_a_network_learns_the_size_of_ventricles(people, monkeypatch):
    monkeypatch.setattr(covariates, "STEPS", 30)
    monkeypatch.setattr(covariates, "SEEDS", 1)
    others = brains(people.rating, np.sqrt(people.ventricles[:, 0]).astype(int), seed=5)
    scores = covariates.network_scores(people, others)
    assert order(scores[others.rating == 0], scores[others.rating == 1]).mean() > 0.9

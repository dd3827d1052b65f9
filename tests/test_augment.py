import pytest
import torch

from dataset import Box
from training import augment as module
from training.augment import Draws, augment

BOX = Box(16, 24, 96, 64)


def slices(n: int = 6) -> torch.Tensor:
    """A bright bar that says where it is: 1 at its upper end, 0.5 at its lower."""
    pictures = torch.zeros(n, 1, 128, 128)
    pictures[:, :, 30:90, 50:60] = torch.linspace(1, 0.5, 60)[:, None]
    return (pictures * 255).round() / 255


def draws(seed: int = 0, n: int = 6, rank: int = 0, world_size: int = 1) -> Draws:
    return Draws(n, torch.Generator().manual_seed(seed), torch.device("cpu"), rank, world_size)


def test_the_same_state_gives_the_same_pictures():
    first, second = (augment(slices(), BOX, draws(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, augment(slices(), BOX, draws(5)))


def test_processes_share_the_pictures_that_one_would_make():
    pictures = slices() * torch.linspace(0.5, 1, 6)[:, None, None, None]
    for seed in range(6):
        alone = augment(pictures, BOX, draws(seed))
        shares = [augment(pictures[3 * i : 3 * i + 3], BOX, draws(seed, 3, i, 2)) for i in range(2)]
        assert torch.equal(alone, torch.cat(shares))


def test_pictures_are_grey_values_in_windows_of_about_the_boxs_area():
    shapes = set()
    for seed in range(40):
        made = augment(slices(), BOX, draws(seed))
        shapes.add(tuple(made.shape[2:]))
        assert made.min() >= 0
        assert made.max() <= 1
        torch.testing.assert_close(made * 255, (made * 255).round(), atol=1e-4, rtol=0)
    assert len(shapes) > 3
    for height, width in shapes:
        assert height % 16 == width % 16 == 0
        assert 0.7 < height * width / (BOX.height * BOX.width) < 1.3


def test_half_of_the_batches_are_mirrored_at_most():
    upright = BOX.crop(slices())
    unchanged = mirrored = 0
    for seed in range(200):
        made = augment(slices(), BOX, draws(seed))
        if made.shape != upright.shape or not all(
            torch.equal(x, y) or torch.equal(x, y.flip(1)) for x, y in zip(made, upright, strict=True)
        ):
            continue
        unchanged += 1
        mirrored += sum(torch.equal(x, y.flip(1)) for x, y in zip(made, upright, strict=True))
    assert 75 <= unchanged <= 125  # 4 standard deviations and more
    assert 0.4 < mirrored / (6 * unchanged) < 0.6


@pytest.fixture
def still(monkeypatch):
    """Every draw is the middle of its range, every chance is not taken."""
    monkeypatch.setattr(Draws, "uniform", lambda self, low, high: torch.full((self.n, 1, 1, 1), (low + high) / 2))
    monkeypatch.setattr(Draws, "chance", lambda self, share: torch.zeros(self.n, 1, 1, 1, dtype=torch.bool))


def test_a_window_that_does_not_move_is_the_box(still):
    moved = module._moved(slices(), BOX, (96, 64), draws())
    torch.testing.assert_close(moved, BOX.crop(slices()), atol=1e-5, rtol=0)


def test_a_quarter_turn_turns_the_box(still, monkeypatch):
    monkeypatch.setattr(Draws, "uniform", lambda self, low, high: torch.full((self.n, 1, 1, 1), 0.5 * (low == -1)))
    square = Box(30, 20, 64, 64)
    draw = draws()
    moved = module._moved(slices(), square, (64, 64), draw)
    torch.testing.assert_close(moved, square.crop(slices()).rot90(1, (2, 3)), atol=1e-4, rtol=0)


def test_nothing_is_made_of_nothing():
    black = torch.zeros(4, 1, 128, 128)
    draw = draws(n=4)
    assert not module._moved(black, BOX, (96, 64), draw).any()
    assert not module._crowded(black, draw).any()

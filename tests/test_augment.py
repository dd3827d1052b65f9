"""Augmented slices: windows, grey values, how many are changed; and that still transforms are the identity."""

import pytest
import torch

from dataset import Box
from training.augment import CONTROL, Variation, augment, draw_window

BOX, CPU = Box(16, 24, 96, 64), torch.device("cpu")


def slices(n: int = 6) -> torch.Tensor:
    """A bar that shows which end is up: 1 at its upper end, 0.5 at its lower."""
    pictures = torch.zeros(n, 1, 128, 128)
    pictures[:, :, 30:90, 50:60] = torch.linspace(1, 0.5, 60)[:, None]
    return (pictures * 255).round() / 255


def test_half_of_the_batches_are_at_most_mirrored_and_the_others_fill_windows_of_about_the_boxs_area():
    torch.manual_seed(0)
    upright, shapes, plain, mirrored = BOX.crop(slices()), set(), 0, 0
    for _ in range(200):
        made = augment(slices(), BOX, draw_window(BOX))
        assert 0 <= made.min() <= made.max() <= 1
        torch.testing.assert_close(made * 255, (made * 255).round(), atol=1e-4, rtol=0)
        shapes.add(tuple(made.shape[2:]))
        flips = []
        if made.shape == upright.shape:
            flips = [torch.equal(x, y.flip(1)) for x, y in zip(made, upright, strict=True)]
            same = [torch.equal(x, y) for x, y in zip(made, upright, strict=True)]
            if all(a or b for a, b in zip(flips, same, strict=True)):
                plain += 1
                mirrored += sum(flips)
    assert 75 <= plain <= 125  # 3.5 standard deviations
    assert 0.4 < mirrored / (6 * plain) < 0.6
    assert len(shapes) > 3
    for height, width in shapes:
        assert height % 16 == width % 16 == 0
        assert 0.7 < height * width / (BOX.height * BOX.width) < 1.3


def test_the_default_generator_alone_decides():
    """It is saved in last.pth, so that a resumed run draws the same pictures."""
    state = torch.get_rng_state()
    first = augment(slices(), BOX, draw_window(BOX, share=1.0))
    assert not torch.equal(first.mean(), augment(slices(), BOX, draw_window(BOX, share=1.0)).mean())
    torch.set_rng_state(state)
    assert torch.equal(first, augment(slices(), BOX, draw_window(BOX, share=1.0)))


# ----------------------------------------------------------------------------------------------------
# Varied brains, for the priors


def variation(n: int, **changes: float) -> Variation:
    """Augmented, but by nothing except `changes`."""
    still = {"augmented": True, "mirrored": 1, "down": 0, "across": 0, "zoom": 1, "stretch": 1, "brightness": 1}
    warp = torch.zeros(n, 2, *CONTROL) + torch.tensor(changes.pop("warp", [0.0, 0.0])).view(2, 1, 1)
    return Variation(*(torch.full((n, 1, 1, 1), value) for value in (still | changes).values()), warp)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, lambda s: BOX.crop(s)),
        ({"augmented": False, "down": 3}, lambda s: BOX.crop(s)),
        ({"mirrored": -1}, lambda s: BOX.crop(s).flip(2)),
        ({"down": 3, "across": -2}, lambda s: BOX.crop(s.roll((-3, 2), (2, 3)))),
        ({"warp": [-2.0, 3.0]}, lambda s: BOX.crop(s.roll((-3, 2), (2, 3)))),
        ({"brightness": 0.5}, lambda s: BOX.crop((0.5 * s * 255).round() / 255)),
    ],
    ids=["as it is", "not augmented", "mirrored", "shifted", "warped by the same everywhere", "dimmed"],
)
def test_a_varied_slice_in_closed_form(changes, expected):
    varied = variation(6, **changes).apply(slices(), BOX)
    torch.testing.assert_close(varied, expected(slices()), atol=1.01 / 255, rtol=0)


def test_drawn_variations_are_small_and_of_whole_brains():
    drawn = Variation.draw(4000, 0.6, CPU, torch.Generator().manual_seed(0))
    assert drawn.augmented.float().mean().item() == pytest.approx(0.6, abs=0.03)
    assert (drawn.mirrored == -1).float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert torch.equal(drawn.down, drawn.down.round())
    assert max(drawn.down.abs().max(), drawn.across.abs().max()) <= 4
    assert 0.94 < drawn.zoom.min() < drawn.zoom.max() < 1.07
    assert (drawn.zoom == 1).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(drawn.zoom.flatten() == 1, drawn.warp.flatten(1).eq(0).all(1))
    assert drawn.warp.std(dim=(1, 2, 3)).max() < 4
    same = drawn.of(torch.tensor([7, 7, 9]))
    assert all(
        torch.equal(part[0], part[1]) and torch.equal(part[2], whole[9])
        for part, whole in zip(same, drawn, strict=True)
    )

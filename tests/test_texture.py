"""A decoder that draws texture: what its critic says, how losses are balanced, and what stays frozen."""

import pytest
import tiny
import torch

from dataset import content_box
from inference.loading import identity, load_autoencoder
from modules import RQVAE
from networks.critic import PatchCritic, feature_distance, hinge
from runtime.compute import Compute
from training.augment import Draws, variation, vary
from training.texture import MARGIN, TextureLearner, direction, lead_of, share_out

CPU = Compute(torch.device("cpu"), bf16=False)


@pytest.fixture
def learner():
    torch.manual_seed(0)
    return TextureLearner(RQVAE(codebook_size=16, depth=4, width=8, blocks=1, dim=4), CPU)


def pictures(n: int, side: int = 32) -> torch.Tensor:
    return torch.rand(n, 1, side, side, generator=torch.Generator().manual_seed(3))


def test_a_step_moves_decoder_and_critic_and_nothing_else(learner):
    model = learner.autoencoder
    before = {name: value.clone() for name, value in model.state_dict().items()}
    spoken = identity(model)
    critic = [parameter.clone() for parameter in learner.critic.parameters()]
    values = learner.step(pictures(6), pictures(2), torch.tensor([3, 4]))
    assert all(torch.isfinite(value) for value in values.values())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == (not name.startswith("decoder.")) or "told" in name, name
    assert identity(model) == spoken
    assert any(not torch.equal(a, b) for a, b in zip(critic, learner.critic.parameters(), strict=True))


def test_the_average_is_lent_and_given_back(learner):
    learner.step(pictures(6), pictures(2), torch.tensor([3, 4]))
    own = learner.autoencoder.decoder
    with learner.averaged() as model:
        assert model.decoder is learner.average.module
    assert learner.autoencoder.decoder is own


def test_the_critic_learns_to_tell_a_blur():
    torch.manual_seed(0)
    critic, real = PatchCritic(width=8), pictures(8)
    blurred = torch.nn.functional.avg_pool2d(real, 3, 1, 1)
    optimizer = torch.optim.Adam(critic.parameters(), 2e-3)
    for _ in range(60):
        scores = critic(real)[0], critic(blurred)[0]
        loss = hinge(*scores)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5
    assert lead_of(*scores).item() == 1


def test_hinge_lead_and_feature_distance_in_closed_form():
    real, fake = [torch.full((2, 1, 3, 3), 0.5)], [torch.full((2, 1, 3, 3), -2.0)]
    assert hinge(real, fake).item() == pytest.approx(0.5)  # 1 - 0.5, and nothing beyond the margin
    assert hinge(fake, real).item() == pytest.approx(3 + 1.5)
    assert lead_of(fake, real).item() == 0
    assert lead_of([torch.full((1,), MARGIN / 4)], [torch.zeros(1)]).item() == pytest.approx(0.25)
    a, b = torch.zeros(1, 1, 8, 4), torch.zeros(1, 1, 8, 4)
    a[..., :4, :], a[..., 4:, :] = 1, 3
    b[0, 0, 0, 0] = 16  # a mean of 1 in the upper window, and of 0 in the lower
    assert feature_distance([a], [b]).item() == pytest.approx(1.5 / 2)


def test_direction_has_norm_one_and_the_gradients_own():
    picture = pictures(2).requires_grad_()
    given = direction(100 * (picture**2).sum(), picture)
    assert given.norm().item() == pytest.approx(1)
    torch.testing.assert_close(given, (picture / picture.norm()).detach())


def test_the_batch_is_shared_out():
    images = torch.zeros(8, 1, 48, 48)
    images[:, :, 8:40, 8:40] = pictures(8)
    box = content_box((images[:, 0] * 255).byte().numpy())
    draw = Draws(8, torch.Generator().manual_seed(0), torch.device("cpu"))
    drawn, others, kept = share_out(images, box, draw, depth=8)
    assert drawn.shape == (4, 1, box.height, box.width)
    assert len(others) == len(kept) == 4
    assert ((kept > 2) & (kept <= 8)).all()
    upright = box.crop(images[4:])
    for one, whole in zip(drawn, upright, strict=True):
        assert torch.equal(one, whole) or torch.equal(one, whole.flip(1))


def test_slices_are_varied_a_little_or_not_at_all():
    images = torch.zeros(64, 1, 48, 48)
    images[:, :, 8:40, 8:40] = pictures(64)
    box = content_box((images[:, 0] * 255).byte().numpy())
    how = variation(Draws(64, torch.Generator().manual_seed(0), torch.device("cpu")))
    varied, changed = vary(images, box, how), how.changed.flatten()
    assert varied.shape == (64, 1, box.height, box.width)
    assert 0.4 < changed.float().mean() < 0.8
    assert torch.equal(varied[~changed], box.crop(images)[~changed])
    assert all(not torch.equal(a, b) for a, b in zip(varied[changed], box.crop(images)[changed], strict=True))
    assert varied.min() >= 0
    assert varied.max() <= 1


def test_texture_keeps_the_codes_and_writes_the_decoder(tmp_path, monkeypatch):
    """The stage goes through train.py: the autoencoder's codes stay, its decoder is another."""
    trainer = tiny.Trainer(tmp_path, monkeypatch)
    options = {"model": "rqvae", "width": 8, "blocks": 1, "depth": 3}
    status, plain = trainer(**options)
    assert status == 0
    status, drawn = trainer(**options, texture_epochs=1)
    assert status == 0
    (before, _), (after, description) = (load_autoencoder(folder / "vqvae.pth") for folder in (plain, drawn))
    assert identity(before) == identity(after)
    for name, value in after.encoder.state_dict().items():
        assert torch.equal(value, before.encoder.state_dict()[name])
    changed = [
        not torch.equal(a, b) for a, b in zip(before.decoder.parameters(), after.decoder.parameters(), strict=True)
    ]
    assert any(changed)
    text = (drawn / "metrics.csv").read_text()
    assert "texture,1" in text
    assert f"{description['validation_ssim']:.6f}"[:6] in text

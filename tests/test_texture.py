"""A decoder that draws texture: what its critic says, how losses are balanced, and what stays frozen."""

import pytest
import tiny
import torch

from dataset import content_box
from inference.loading import identity, load_autoencoder
from modules import RQVAE
from networks.critic import PatchCritic
from runtime.compute import Compute
from training.augment import Draws, variation, vary
from training.losses import r3gan_losses
from training.texture import GAMMA, RATES, TextureLearner, blurred_l1, share_out

CPU = Compute(torch.device("cpu"), bf16=False)


@pytest.fixture
def learner():
    torch.manual_seed(0)
    return TextureLearner(RQVAE(codebook_size=16, depth=4, width=8, blocks=1, dim=4), CPU)


def pictures(n: int, side: int = 32) -> torch.Tensor:
    return torch.rand(n, 1, side, side, generator=torch.Generator().manual_seed(3))


def test_a_step_moves_painter_and_critic_and_nothing_else(learner):
    model = learner.autoencoder
    before = {name: value.clone() for name, value in model.state_dict().items()}
    spoken = identity(model)
    critic = [parameter.clone() for parameter in learner.critic.parameters()]
    values = learner.step(pictures(6), pictures(2))
    assert all(torch.isfinite(value) for value in values.values())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == (not name.startswith("painter.")) or "told" in name, name
    assert identity(model) == spoken
    assert any(not torch.equal(a, b) for a, b in zip(critic, learner.critic.parameters(), strict=True))


def test_the_average_is_lent_and_given_back(learner):
    learner.step(pictures(6), pictures(2))
    own = learner.autoencoder.painter
    with learner.averaged() as model:
        assert model.painter is learner.average.module
    assert learner.autoencoder.painter is own


def test_the_critic_learns_alone_first(learner):
    learner.anneal(0, 1000)
    before = [parameter.clone() for parameter in learner.painter.parameters()]
    critic = [parameter.clone() for parameter in learner.critic.parameters()]
    learner.step(pictures(6), pictures(2))
    assert all(torch.equal(a, b) for a, b in zip(before, learner.painter.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(critic, learner.critic.parameters(), strict=True))
    learner.anneal(100, 1000)
    learner.step(pictures(6), pictures(2))
    assert any(not torch.equal(a, b) for a, b in zip(before, learner.painter.parameters(), strict=True))


def test_rates_and_penalties_fall(learner):
    learner.anneal(500, 1000)
    assert [optimizer.param_groups[0]["lr"] for optimizer in learner.optimizers] == pytest.approx(list(RATES))
    learner.anneal(1000, 1000)
    assert learner.gamma == pytest.approx(GAMMA / 3)
    assert [optimizer.param_groups[0]["lr"] for optimizer in learner.optimizers] == pytest.approx(
        [0.02 * rate for rate in RATES]
    )


def test_the_critic_learns_to_tell_a_blur():
    torch.manual_seed(0)
    critic, real = PatchCritic(width=8), pictures(8)
    blurred = torch.nn.functional.avg_pool2d(real, 3, 1, 1)
    assert [score.shape for score in critic(real)] == [(8, 1, 4, 4), (8, 1, 2, 2)]
    optimizer = torch.optim.Adam(critic.parameters(), 2e-3)
    for _ in range(60):
        pairs = zip(critic(real), critic(blurred), strict=True)
        loss = sum(r3gan_losses(*pair)[1] for pair in pairs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5


def test_blurred_l1_in_closed_form():
    image = torch.zeros(1, 1, 8, 8)
    checks = image.clone()
    checks[..., ::2, ::2], checks[..., 1::2, 1::2] = 1, -1  # nothing of it is left at a quarter of the size
    assert blurred_l1(checks, image).item() == pytest.approx(0.5 * 0.5)
    assert blurred_l1(image + 0.2, image).item() == pytest.approx(1.5 * 0.2)


def test_the_batch_is_shared_out():
    images = torch.zeros(8, 1, 48, 48)
    images[:, :, 8:40, 8:40] = pictures(8)
    box = content_box((images[:, 0] * 255).byte().numpy())
    draw = Draws(8, torch.Generator().manual_seed(0), torch.device("cpu"))
    drawn, others = share_out(images, box, draw)
    assert drawn.shape == (7, 1, box.height, box.width)
    assert len(others) == 1
    places = [images[1:].roll((down, across), (2, 3)) for down in range(-4, 5) for across in range(-4, 5)]
    upright = torch.stack([box.crop(moved) for moved in places])
    as_seen = torch.cat([upright, upright.flip(3)])  # [shifts and mirrors, 7, 1, h, w]
    assert (as_seen == drawn).flatten(2).all(2).any(0).all()


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


def test_few_codes_are_painted_and_more_reconstructed():
    torch.manual_seed(0)
    model = RQVAE(codebook_size=16, depth=4, width=8, blocks=1, dim=4).eval()
    codes = model.encode(pictures(2))
    before = [model.decode(codes[:n]) for n in range(1, 5)]
    model.add_painter(2)
    for n in range(1, 5):  # at first it does what the decoder does
        assert torch.equal(model.decode(codes[:n]), before[n - 1])
    torch.nn.init.normal_(model.painter.first.weight)
    same = [torch.equal(model.decode(codes[:n]), before[n - 1]) for n in range(1, 5)]
    assert same == [False, False, True, True]
    again = RQVAE(**model.arguments).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.decode(codes[:1]), model.decode(codes[:1]))


def test_texture_adds_a_painter_and_keeps_the_rest(tmp_path, monkeypatch):
    """The stage goes through train.py: all that was there stays, and a painter that has learnt comes to it."""
    trainer = tiny.Trainer(tmp_path, monkeypatch)
    options = {"model": "rqvae", "width": 8, "blocks": 1, "depth": 3}
    status, plain = trainer(**options)
    assert status == 0
    status, drawn = trainer(**options, texture_epochs=1)
    assert status == 0
    (before, _), (after, _) = (load_autoencoder(folder / "vqvae.pth") for folder in (plain, drawn))
    assert identity(before) == identity(after)
    assert (before.drawn, after.drawn) == (0, 2)
    kept = after.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in before.state_dict().items())
    pairs = zip(after.decoder.parameters(), after.painter.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)
    text = (drawn / "metrics.csv").read_text()
    assert "texture,1" in text
    assert "validation_ssim_2" in text

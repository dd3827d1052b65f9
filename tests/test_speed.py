"""The plain way that speed is compared with computes the same."""

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from benchmarks import plain
from modules import VQVAE
from scoring import metrics


def test_the_same_weights_give_the_same_codes_reconstruction_and_ssim():
    torch.manual_seed(0)
    ours, other = VQVAE().eval(), plain.PlainVQVAE().eval()
    other.encoder.load_state_dict(ours.encoder.state_dict())
    other.decoder.load_state_dict(ours.decoder.state_dict())
    images = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        ours.initialise_codebooks(torch.rand(16, 1, 64, 64))
        other.quantizer.codebook.copy_(ours.embed([torch.arange(512).view(1, 1, 512)])[0, :, 0].t())
        expected, (expected_codes,), expected_loss = ours(images)
        reconstruction, codes, loss = other(images)
        assert (codes == expected_codes).float().mean() > 0.99  # a latent may lie between two codes
        torch.testing.assert_close(loss, expected_loss)
        torch.testing.assert_close(reconstruction, expected, atol=1e-3, rtol=0)
        found = plain.validation_ssim(other, [images], torch.device("cpu"))
    pairs = zip(images[:, 0].numpy(), reconstruction[:, 0].clamp(0, 1).numpy(), strict=True)
    assert found == pytest.approx(np.mean([structural_similarity(*pair, data_range=1.0) for pair in pairs]), abs=1e-6)
    assert found == pytest.approx(metrics.ssim(images, reconstruction.clamp(0, 1)).mean().item(), abs=1e-4)

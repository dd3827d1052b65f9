"""What is the plain way to train the course baseline's VQ-VAE? The one that speed.py compares with.

    python benchmarks/plain.py --data DIR [--epochs 12] [--batch-size 32] [--workers 0] [--device cuda]

The layers are those of `modules.VQVAE`. All else is as common implementations have it: a DataLoader that decodes each
picture anew with Pillow, whole pictures, float32 in the default memory layout, distances to all codes at once, one-hot
matrices for look-up and moving averages, squared error, `.item()` after every step, and scikit-image's SSIM picture by
picture. Prints the validation SSIM and the seconds of each epoch.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from skimage.metrics import structural_similarity
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from modules import VQVAE


class Pictures(Dataset):
    """Picture files, each decoded when it is asked for: float32 [1, H, W] in [0, 1]."""

    def __init__(self, paths: list[Path]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        pixels = np.asarray(Image.open(self.paths[index]).convert("L"), dtype=np.float32) / 255
        return torch.from_numpy(pixels)[None]


class OneHotQuantizer(nn.Module):
    """EMA quantiser with one-hot matrices."""

    def __init__(self, codebook_size: int = 512, dim: int = 64, beta: float = 0.25, decay: float = 0.99):
        super().__init__()
        self.codebook_size, self.beta, self.decay = codebook_size, beta, decay
        codebook = torch.randn(codebook_size, dim)
        self.register_buffer("codebook", codebook)
        self.register_buffer("cluster_size", torch.ones(codebook_size))
        self.register_buffer("cluster_sum", codebook.clone())

    def forward(self, z_e: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z_e [B, D, h, w] -> z_q [B, D, h, w], codes int64 [B, h, w], commitment loss."""
        rows = z_e.permute(0, 2, 3, 1).contiguous()
        flat = rows.flatten(0, 2)
        distances = flat.pow(2).sum(1, keepdim=True) + self.codebook.pow(2).sum(1) - 2 * flat @ self.codebook.t()
        codes = distances.argmin(1)
        one_hot = torch.zeros_like(distances).scatter_(1, codes[:, None], 1)
        quantised = (one_hot @ self.codebook).view_as(rows)
        loss = self.beta * F.mse_loss(quantised.detach(), rows)
        if self.training:
            with torch.no_grad():
                self.cluster_size.mul_(self.decay).add_(one_hot.sum(0), alpha=1 - self.decay)
                self.cluster_sum.mul_(self.decay).add_(one_hot.t() @ flat, alpha=1 - self.decay)
                total = self.cluster_size.sum()
                smoothed = (self.cluster_size + 1e-5) / (total + self.codebook_size * 1e-5) * total
                self.codebook.copy_(self.cluster_sum / smoothed[:, None])
        quantised = rows + (quantised - rows).detach()
        return quantised.permute(0, 3, 1, 2).contiguous(), codes.view(rows.shape[:-1]), loss


class PlainVQVAE(nn.Module):
    """The course baseline's layers around the plain quantiser."""

    def __init__(self) -> None:
        super().__init__()
        baseline = VQVAE()
        self.encoder, self.quantizer, self.decoder = baseline.encoder, OneHotQuantizer(), baseline.decoder

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """images [B, 1, H, W] -> reconstruction [B, 1, H, W], codes int64 [B, h, w], commitment loss."""
        z_q, codes, loss = self.quantizer(self.encoder(images))
        return self.decoder(z_q), codes, loss


def step(model: PlainVQVAE, optimizer: torch.optim.Optimizer, images: Tensor) -> tuple[float, float]:
    """One training step on images [B, 1, H, W]: reconstruction loss and commitment loss."""
    optimizer.zero_grad()
    reconstruction, _, commitment_loss = model(images)
    reconstruction_loss = F.mse_loss(reconstruction, images)
    (reconstruction_loss + commitment_loss).backward()
    optimizer.step()
    return reconstruction_loss.item(), commitment_loss.item()


@torch.no_grad()
def validation_ssim(model: PlainVQVAE, batches: DataLoader, device: torch.device) -> float:
    """Mean SSIM of a split, picture by picture."""
    model.eval()
    scores = []
    for images in batches:
        reconstructions = model(images.to(device))[0].clamp(0, 1).cpu().numpy()
        for image, reconstruction in zip(images.numpy(), reconstructions, strict=True):
            scores.append(structural_similarity(image[0], reconstruction[0], data_range=1.0))
    return float(np.mean(scores))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with keras_png_slices_train and _validate")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=0, help="processes that decode")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    train, validate = (
        DataLoader(
            Pictures(sorted((args.data / f"keras_png_slices_{split}").glob("*.png"))),
            args.batch_size,
            shuffle=split == "train",
            num_workers=args.workers,
            pin_memory=args.device == "cuda",
        )
        for split in ("train", "validate")
    )
    model = PlainVQVAE().to(device)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for epoch in range(1, args.epochs + 1):
        start = time.monotonic()
        model.train()
        losses = [step(model, optimizer, images.to(device)) for images in train]
        score = validation_ssim(model, validate, device)
        seconds = time.monotonic() - start
        print(f"epoch {epoch}: loss {np.mean(losses, axis=0)[0]:.4f}, validation SSIM {score:.4f}, {seconds:.0f} s")


if __name__ == "__main__":
    main()

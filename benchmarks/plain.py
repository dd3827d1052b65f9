"""What do the course reports do? The plain way of each stage, written well, to measure against.

    python benchmarks/plain.py --data DIR --epochs 12 --prior-epochs 25       its whole training

The architectures are those of modules.py; everything around them is plain: a DataLoader that decodes each picture
with Pillow each time, whole pictures, float32 in the default memory layout, the quantiser with one-hot matrices of
the common implementations, scikit-image's SSIM picture by picture, and `.item()` after every step.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from skimage.metrics import structural_similarity
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from modules import VQVAE, Discriminator, Generator
from runtime.cli import Parser
from runtime.errors import exit_on_input_error

GRID, CODES, DIM = (64, 64), 512, 64  # the course baseline's: 256x256 slices, 64x64 codes of 512, each a vector of 64


@contextmanager
def torch_defaults() -> Iterator[None]:
    """PyTorch as it comes: no TF32 in matrix products, no search for the fastest convolution."""
    precision, search = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.benchmark = search


# ------------------------------------------------------------------------------------------- data


class Pictures(Dataset):
    """A split of picture files, each decoded when it is asked for: float32 [1, H, W] in [0, 1]."""

    def __init__(self, paths: list[Path]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        pixels = np.asarray(Image.open(self.paths[index]).convert("L"), dtype=np.float32) / 255
        return torch.from_numpy(pixels)[None]


def loader(paths: list[Path], batch_size: int, device: torch.device, workers: int, shuffle: bool) -> DataLoader:
    """Batches float32 [B, 1, H, W] on the CPU, the incomplete last one dropped when shuffled."""
    pinned = device.type == "cuda"
    return DataLoader(
        Pictures(paths), batch_size, shuffle, num_workers=workers, drop_last=shuffle, pin_memory=pinned,
        persistent_workers=workers > 0,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------- VQ-VAE


class OneHotQuantizer(nn.Module):
    """The EMA quantiser of the common implementations, with modules.VectorQuantizer's interface."""

    def __init__(self, codebook_size: int = CODES, dim: int = DIM, beta: float = 0.25, decay: float = 0.99):
        super().__init__()
        self.codebook_size, self.dim, self.beta, self.decay = codebook_size, dim, beta, decay
        codebook = torch.randn(codebook_size, dim)
        self.register_buffer("codebook", codebook)
        self.register_buffer("cluster_size", torch.ones(codebook_size))
        self.register_buffer("cluster_sum", codebook.clone())
        self.perplexity = torch.zeros(())

    def forward(self, z_e: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z_e [B, D, h, w] -> z_q [B, D, h, w], codes int64 [B, h, w], commitment loss."""
        rows = z_e.permute(0, 2, 3, 1).contiguous()
        flat = rows.view(-1, self.dim)
        distances = flat.pow(2).sum(1, keepdim=True) + self.codebook.pow(2).sum(1) - 2 * flat @ self.codebook.t()
        codes = distances.argmin(1)
        one_hot = torch.zeros(len(flat), self.codebook_size, device=flat.device).scatter_(1, codes[:, None], 1)
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
        shares = one_hot.mean(0)
        self.perplexity = torch.exp(-torch.sum(shares * torch.log(shares + 1e-10)))
        return quantised.permute(0, 3, 1, 2).contiguous(), codes.view(rows.shape[:-1]), loss


class PlainVQVAE(VQVAE):
    """The course baseline's layers around the plain quantiser."""

    def __init__(self) -> None:
        super().__init__()
        self.quantizers = nn.ModuleList([OneHotQuantizer()])


def vqvae_step(model: PlainVQVAE, optimizer: torch.optim.Optimizer, images: Tensor) -> tuple[float, float, float]:
    """One step on images [B, 1, H, W]: reconstruction loss, commitment loss, perplexity."""
    optimizer.zero_grad()
    reconstruction, _, latent_loss = model(images)
    reconstruction_loss = F.mse_loss(reconstruction, images)
    (reconstruction_loss + latent_loss).backward()
    optimizer.step()
    return reconstruction_loss.item(), latent_loss.item(), model.quantizers[0].perplexity.item()


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


# ------------------------------------------------------------------------------------------- DCGAN


def gan_step(
    autoencoder: PlainVQVAE,
    networks: tuple[Generator, Discriminator],
    optimizers: tuple[torch.optim.Optimizer, torch.optim.Optimizer],
    images: Tensor,
) -> tuple[float, float]:
    """One step of the discriminator and one of the generator; every batch is encoded anew."""
    generator, discriminator = networks
    criterion = nn.BCELoss()
    ones, zeros = torch.ones(len(images), device=images.device), torch.zeros(len(images), device=images.device)
    no_level = torch.zeros(len(images), dtype=torch.long, device=images.device)  # the course baseline's knows no levels
    with torch.no_grad():
        real = autoencoder.quantizers[0](autoencoder.encoder(images))[0]

    optimizers[0].zero_grad()
    real_loss = criterion(torch.sigmoid(discriminator(real, no_level)), ones)
    fake = generator(torch.randn(len(images), generator.z_dim, device=images.device), no_level)
    fake_loss = criterion(torch.sigmoid(discriminator(fake.detach(), no_level)), zeros)
    (real_loss + fake_loss).backward()
    optimizers[0].step()

    optimizers[1].zero_grad()
    generator_loss = criterion(torch.sigmoid(discriminator(fake, no_level)), ones)
    generator_loss.backward()
    optimizers[1].step()
    return generator_loss.item(), (real_loss + fake_loss).item()


def make_gan(device: torch.device) -> tuple[tuple[Generator, Discriminator], tuple]:
    """Generator and discriminator, and the discriminator's and the generator's Adam."""
    generator, discriminator = Generator(GRID, DIM).to(device), Discriminator(GRID, DIM).to(device)
    optimizers = tuple(torch.optim.Adam(net.parameters(), 2e-4, (0.5, 0.999)) for net in (discriminator, generator))
    return (generator, discriminator), optimizers


@torch.no_grad()
def gan_sample(autoencoder: PlainVQVAE, generator: Generator, n: int, device: torch.device) -> Tensor:
    """n pictures [n, 1, H, W]: the generator's latents, snapped and decoded."""
    no_level = torch.zeros(n, dtype=torch.long, device=device)
    latents = autoencoder.quantizers[0](generator(torch.randn(n, generator.z_dim, device=device), no_level))[0]
    return autoencoder.decode_latents(latents).clamp(0, 1)


# ------------------------------------------------------------------------------------------- PixelCNN


class MaskedConv2d(nn.Conv2d):
    """3x3 convolution that sees only the positions before its own in raster order; with `own`, that one too."""

    def __init__(self, n_in: int, n_out: int, own: bool):
        super().__init__(n_in, n_out, 3, padding=1)
        mask = torch.ones(1, 1, 3, 3)
        mask[:, :, 1, 1 + own :] = 0
        mask[:, :, 2] = 0
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=1)


class MaskedPixelCNN(nn.Module):
    """Gated PixelCNN of one grid with masked convolutions, as wide and deep as pixelcnn.PixelCNN."""

    def __init__(self, codebook_size: int = CODES, width: int = 96, layers: int = 8, dropout: float = 0.2):
        super().__init__()
        self.embedding = nn.Embedding(codebook_size, width)
        self.layers = nn.ModuleList([MaskedConv2d(width, 2 * width, own=i > 0) for i in range(layers)])
        self.out = nn.ModuleList([nn.Conv2d(width, width, 1) for _ in range(layers)])
        self.head = nn.Sequential(
            nn.ReLU(), nn.Conv2d(width, width, 1), nn.ReLU(), nn.Dropout(dropout), nn.Conv2d(width, codebook_size, 1)
        )

    def forward(self, codes: Tensor) -> Tensor:
        """codes int64 [B, h, w] -> logits [B, K, h, w]."""
        x = self.embedding(codes).permute(0, 3, 1, 2).contiguous()
        for i, (layer, out) in enumerate(zip(self.layers, self.out, strict=True)):
            value, gate = layer(x).chunk(2, dim=1)
            gated = out(torch.tanh(value) * torch.sigmoid(gate))
            x = x + gated if i else gated  # the first layer's own place would see itself past the mask
        return self.head(x)


def pixelcnn_step(prior: MaskedPixelCNN, optimizer: torch.optim.Optimizer, codes: Tensor) -> float:
    """One step on codes [B, h, w]; the cross-entropy in nats per code."""
    optimizer.zero_grad()
    loss = F.cross_entropy(prior(codes), codes)
    loss.backward()
    optimizer.step()
    return loss.item()


@torch.no_grad()
def pixelcnn_sample(prior: MaskedPixelCNN, n: int, grid: tuple[int, int], drawn: int, device: torch.device) -> Tensor:
    """The first `drawn` codes of n grids [n, h, w], a whole forward pass for each."""
    prior.eval()
    codes = torch.zeros(n, *grid, dtype=torch.long, device=device)
    for position in range(drawn):
        row, column = divmod(position, grid[1])
        probabilities = F.softmax(prior(codes)[:, :, row, column], dim=1)
        codes[:, row, column] = torch.multinomial(probabilities, 1)[:, 0]
    return codes


# ------------------------------------------------------------------------------------------- the whole training


def train(data: str, epochs: int, prior_epochs: int, batch_size: int, workers: int, device: torch.device) -> None:
    """VQ-VAE with a validation each epoch, then DCGAN, on a folder in the layout of the published OASIS set."""
    train, validate = (sorted(Path(data).glob(f"*{split}/*.png")) for split in ("train", "validate"))
    batches = loader(train, batch_size, device, workers, shuffle=True)
    held_out = loader(validate, batch_size, device, workers, shuffle=False)
    model = PlainVQVAE().to(device)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for epoch in range(1, epochs + 1):
        model.train()
        losses = [vqvae_step(model, optimizer, images.to(device)) for images in batches]
        score = validation_ssim(model, held_out, device)
        print(f"VQ-VAE {epoch}/{epochs}: loss {np.mean(losses, axis=0)[0]:.4f}, SSIM {score:.4f}", flush=True)
    model.eval()
    networks, optimizers = make_gan(device)
    for epoch in range(1, prior_epochs + 1):
        losses = [gan_step(model, networks, optimizers, images.to(device)) for images in batches]
        print(f"DCGAN {epoch}/{prior_epochs}: losses {np.mean(losses, axis=0)}", flush=True)


@exit_on_input_error
def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with keras_png_slices_train and _validate")
    parser.add_argument("--epochs", type=int, default=12, help="of the VQ-VAE (default: 12)")
    parser.add_argument("--prior-epochs", type=int, default=25, help="of the DCGAN (default: 25)")
    parser.add_argument("--batch-size", type=int, default=32, help="slices a step (default: 32)")
    parser.add_argument("--workers", type=int, default=0, help="processes that decode (default: 0)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = parser.parse_args()
    train(args.data, args.epochs, args.prior_epochs, args.batch_size, args.workers, torch.device(args.device))
    return 0


if __name__ == "__main__":
    sys.exit(main())

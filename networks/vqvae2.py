"""What is the two-level autoencoder? VQ-VAE-2: a bottom grid of codes, given a top grid of half its size."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules import Autoencoder, ClassicResidual, Codes, VectorQuantizer


class VQVAE2(Autoencoder):
    """Two-level VQ-VAE-2 (Razavi et al. 2019, algorithm 1): the bottom grid is coded given the top grid.

    A 256x256 slice becomes a 32x32 top and a 64x64 bottom grid. The bottom encoder sees the decoded top, and the
    decoder sees both: these aren't two autoencoders side by side.
    """

    downsample, factor = 4, 8

    def __init__(self, codebook_size: int = 512, beta: float = 0.25, ema: bool = True):
        super().__init__(codebook_size=codebook_size, beta=beta, ema=ema)
        width, dim = 128, 64
        self.dim = dim

        def residuals() -> list[nn.Module]:
            return [ClassicResidual(width, 32), ClassicResidual(width, 32), nn.ReLU()]

        self.encoder_bottom = nn.Sequential(
            nn.Conv2d(1, width // 2, 4, stride=2, padding=1),  # [B, width/2, H/2, W/2]
            nn.ReLU(),
            nn.Conv2d(width // 2, width, 4, stride=2, padding=1),  # [B, width, H/4, W/4]
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            *residuals(),
        )
        self.encoder_top = nn.Sequential(
            nn.Conv2d(width, width // 2, 4, stride=2, padding=1),  # [B, width/2, H/8, W/8]
            nn.ReLU(),
            nn.Conv2d(width // 2, width, 3, padding=1),
            *residuals(),
        )
        self.to_top = nn.Conv2d(width, dim, 1)
        self.decoder_top = nn.Sequential(
            nn.Conv2d(dim, width, 3, padding=1),
            *residuals(),
            nn.ConvTranspose2d(width, dim, 4, stride=2, padding=1),  # [B, dim, H/4, W/4]
        )
        self.to_bottom = nn.Conv2d(dim + width, dim, 1)
        self.quantizer_top = VectorQuantizer(codebook_size, dim, beta=beta, ema=ema)
        self.quantizer_bottom = VectorQuantizer(codebook_size, dim, beta=beta, ema=ema)
        self.upsample_top = nn.ConvTranspose2d(dim, dim, 4, stride=2, padding=1)  # [B, dim, H/4, W/4]
        self.decoder = nn.Sequential(
            nn.Conv2d(2 * dim, width, 3, padding=1),
            *residuals(),
            nn.ConvTranspose2d(width, width // 2, 4, stride=2, padding=1),  # [B, width/2, H/2, W/2]
            nn.ReLU(),
            nn.ConvTranspose2d(width // 2, 1, 4, stride=2, padding=1),  # [B, 1, H, W]
        )

    def forward(self, images: Tensor, num_codes: Tensor | None = None) -> tuple[Tensor, Codes, Tensor]:
        features, top = self._top(images)
        top, top_codes, top_loss = self.quantizer_top(top)
        bottom, bottom_codes, bottom_loss = self.quantizer_bottom(self._bottom(features, top))
        return self._decode(top, bottom), top_codes + bottom_codes, top_loss + bottom_loss

    def _top(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The bottom encoder's features, and the top grid's latents."""
        features = self.encoder_bottom(images)
        return features, self.to_top(self.encoder_top(features))

    def _bottom(self, features: Tensor, top: Tensor) -> Tensor:
        """The bottom grid's latents, given the top grid's quantised ones."""
        return self.to_bottom(torch.cat([self.decoder_top(top), features], dim=1))

    def _decode(self, top: Tensor, bottom: Tensor) -> Tensor:
        return self.decoder(torch.cat([self.upsample_top(top), bottom], dim=1))

    def grid_shapes(self, height: int, width: int) -> list[tuple[int, int]]:
        return [(height // 8, width // 8), (height // 4, width // 4)]

    def latents(self, images: Tensor) -> Tensor:
        features, top = self._top(images)
        quantised = self.quantizer_top.embed(self.quantizer_top.encode(top))
        return torch.cat([F.interpolate(top.float(), scale_factor=2), self._bottom(features, quantised).float()], dim=1)

    def quantise(self, z_e: Tensor) -> Codes:
        top, bottom = z_e.split(self.dim, dim=1)
        return self.quantizer_top.encode(F.avg_pool2d(top, 2)) + self.quantizer_bottom.encode(bottom)

    def embed(self, codes: Codes) -> Tensor:
        top, bottom = self.quantizer_top.embed(codes[:1]), self.quantizer_bottom.embed(codes[1:])
        return torch.cat([F.interpolate(top, scale_factor=2), bottom], dim=1)

    def decode_latents(self, z_q: Tensor, num_codes: Tensor | int | None = None) -> Tensor:
        top, bottom = z_q.split(self.dim, dim=1)
        return self._decode(F.avg_pool2d(top, 2), bottom)

    @torch.no_grad()
    def initialise_codebooks(self, images: Tensor) -> None:
        features, top = self._top(images)
        self.quantizer_top.initialise(top)
        quantised = self.quantizer_top.embed(self.quantizer_top.encode(top))
        self.quantizer_bottom.initialise(self._bottom(features, quantised))

    @property
    def quantizers(self) -> list[VectorQuantizer]:
        return [self.quantizer_top, self.quantizer_bottom]

"""What do latents look like at first sight? A Gaussian for each slice level, along their principal components.

Probabilistic PCA (Tipping and Bishop 1999) with a mean and a covariance for each level: aligned brains differ in
few ways, so that this alone draws a plausible, if blurred, brain. What the components leave out is white noise.
"""

import torch
from torch import Tensor, nn

COMPONENTS = 192
NOISE = 1.2  # times what the components leave out: a decoder smoothes noise that it has never seen
EXAMPLES = 64_000_000  # numbers of the latents from which the components are found: 256 MB


class LatentGaussian(nn.Module):
    """p(latents | level) for latents [C, h, w]; level `levels` is that of slices whose level isn't known."""

    def __init__(self, shape: tuple[int, int, int], levels: int, components: int = COMPONENTS):
        super().__init__()
        size = shape[0] * shape[1] * shape[2]
        self.shape, self.levels = shape, levels
        self.z_dim = components + size
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("components", torch.zeros(components, size, dtype=torch.float16))  # scaled
        self.register_buffer("centre", torch.zeros(levels + 1, components))  # of each level, in components
        self.register_buffer("spread", torch.zeros(levels + 1, components, components, dtype=torch.float16))  # Cholesky
        self.register_buffer("noise", torch.zeros(*shape))  # deviation of what the components leave out

    @torch.no_grad()
    def fit(self, latents: Tensor, levels: Tensor, weight: Tensor) -> None:
        """Fit to latents [N, C, h, w] of levels int64 [N]; components explain most of `weight` x latents.

        A level's covariance is that of slices at most one level away, each seen from its own level's mean, shrunk
        as Ledoit and Wolf (2004) say.
        """
        from sklearn.covariance import ledoit_wolf  # here, since it takes a second to import, and few need it

        weight = weight.expand(self.shape).flatten()
        rows = latents.flatten(1)
        self.mean.copy_(rows.mean(0))
        few = rows[:: -(-rows.numel() // EXAMPLES)]
        found = min(len(self.components), few.shape[0] - 1, few.shape[1])
        _, _, axes = torch.pca_lowrank((few - self.mean) * weight, found, center=False, niter=4)
        scores = torch.cat([((part - self.mean) * weight) @ axes for part in rows.split(512)])
        present = levels.unique()
        centre = torch.zeros(self.levels + 1, found, device=rows.device)
        centre[present] = torch.stack([scores[levels == level].mean(0) for level in present])
        within = scores - centre[levels]
        scale = within.std(0).clamp_min(1e-6)
        within, centre = within / scale, centre / scale
        self.components[:found] = (axes * scale).t() / weight
        self.centre[:, :found] = centre
        for level in present.tolist():
            near = within[(levels - level).abs() <= 1 if level < self.levels else levels == level]
            near = near if len(near) > 1 else within
            covariance, _ = ledoit_wolf(near.double().cpu().numpy(), assume_centered=True)
            covariance = torch.from_numpy(covariance) + 1e-6 * torch.eye(found)  # positive, however few there are
            self.spread[level, :found, :found] = torch.linalg.cholesky(covariance).to(rows.device)
        rest = (
            part - self.mean - score @ self.components[:found].float()
            for part, score in zip(rows.split(512), (centre[levels] + within).split(512), strict=True)
        )
        deviation = (sum(part.square().sum(0) for part in rest) / len(rows)).sqrt()
        self.noise.copy_(NOISE * deviation.view(self.shape))

    def forward(self, z: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        """z [B, z_dim] of N(0, 1), levels int64 [B] -> the components' part and the noise, each [B, C, h, w]."""
        z, rest = z.split([len(self.components), len(self.mean)], dim=1)
        with torch.autocast(z.device.type, enabled=False):
            scores = self.centre[levels] + torch.einsum("bij,bj->bi", self.spread[levels].float(), z.float())
            smooth = self.mean + scores @ self.components.float()
        return smooth.view(-1, *self.shape), rest.view(-1, *self.shape) * self.noise

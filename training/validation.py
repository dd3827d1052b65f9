"""How well does an autoencoder reconstruct the validation people? The score that checkpoints are chosen by."""

import math

import torch
import torch.distributed as dist
from tqdm import tqdm

from dataset import Box, DataSet
from inference.codec import rows_by_box
from modules import Autoencoder
from runtime.compute import Compute
from scoring.metrics import WINDOW, has_foreground, ssim_in_black


@torch.no_grad()
def validation_ssim(model: Autoencoder, data: DataSet, box: Box, on: Compute) -> float:
    """Mean SSIM over the full pictures of the validation split, each slice counted once and empty ones not at all.

    As predict.py does, it codes each slice in `box`, or in a larger one where its content lies outside. SSIM is
    computed around that box only: all other windows are black in both pictures. 0 if all slices are empty.
    """
    model.eval()
    images = data.splits["validate"].images
    counts, shape = has_foreground(images), images.shape[1:]
    windows = math.prod(side - WINDOW + 1 for side in shape)
    total = torch.zeros((), dtype=torch.float64, device=on.device)
    batch, silent = on.scoring_batch, None if on.rank == 0 else True  # None: unless it is a terminal
    with tqdm(total=counts.sum(), desc="validation", disable=silent, delay=2, leave=False) as bar:
        for coded, rows in rows_by_box(images, box).items():
            seen = coded.around(WINDOW - 1, shape)
            inner = coded.inside(seen)
            own = rows[counts[rows]][on.rank :: on.world_size]
            for part in (own[start : start + batch] for start in range(0, len(own), batch)):
                original = torch.from_numpy(seen.crop(images)[part])[:, None].to(on.device).float() / 255
                with on.autocast():
                    reconstruction = model(inner.crop(original))[0]
                reconstruction = inner.paste(reconstruction.float().clamp(0, 1), original.shape[2:])
                total += ssim_in_black(reconstruction, original, windows).sum()
                bar.update(len(part) * on.world_size)
    if dist.is_initialized():
        dist.all_reduce(total)
    return total.item() / max(int(counts.sum()), 1)

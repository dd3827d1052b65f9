"""How well does an autoencoder reconstruct the validation people? What its checkpoints are chosen by."""

import math

import torch
import torch.distributed as dist
from tqdm import tqdm

from dataset import Batches, Box, DataSet, content_box
from modules import Autoencoder
from runtime.compute import Compute
from scoring.metrics import WINDOW, ssim_in_black

BATCH = 16  # few, so that SSIM's intermediate results stay in a processor's cache


@torch.no_grad()
def validation_ssim(model: Autoencoder, data: DataSet, box: Box, on: Compute) -> float:
    """Mean SSIM over the full pictures of the whole validation split, each slice counted once.

    Only what holds content is looked at: all other windows of SSIM see black in both pictures.
    """
    model.eval()
    slices = data.splits["validate"]
    shape = slices.images.shape[1:]
    box = content_box(slices.images, box)  # as predict.py has it: nothing is cut
    seen = box.around(WINDOW - 1, shape)
    inner, windows = box.inside(seen), math.prod(side - WINDOW + 1 for side in shape)
    total = torch.zeros((), dtype=torch.float64, device=on.device)
    batches = Batches(slices, BATCH, on.device, seen, on.rank, on.world_size).in_order()
    for images, _ in tqdm(batches, "validation", disable=None if on.rank == 0 else True, delay=2, leave=False):
        with on.autocast():
            inside = inner.crop(images)
            reconstruction = model(inside)[0]
        reconstruction = inner.paste(reconstruction.float().clamp(0, 1), images.shape[2:])
        total += ssim_in_black(reconstruction, images, windows).sum()
    if dist.is_initialized():
        dist.all_reduce(total)
    return total.item() / len(slices)

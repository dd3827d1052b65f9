"""How are many slices measured at once? Each on one core, as float batches."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from tqdm import tqdm


def on_all_cores(function: Callable, items: Sequence, title: str) -> list:
    """`[function(item) for item in items]`, each item on one core, with a progress bar on a terminal.

    PyTorch would split every small operation over the cores instead, and wait for the slowest each time, which takes
    many times as long on a machine that does other work, too.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            return list(tqdm(pool.map(function, items), title, len(items), leave=False, disable=None))
    finally:
        torch.set_num_threads(threads)


def unit_batch(images: np.ndarray, device: torch.device | str = "cpu") -> torch.Tensor:
    """uint8 [N, H, W] -> float32 [N, 1, H, W] in [0, 1]."""
    return torch.tensor(images, device=device)[:, None].float() / 255  # a copy: the slices may be read-only

"""train.py, which also leaves the autoencoder and the generator that this process has trained in $SHOW/RANK.pth."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch.nn.modules.module import register_module_forward_hook

import train
from modules import Autoencoder
from networks.baseline_gan import BaselineGenerator

NETWORKS = Autoencoder, BaselineGenerator
used = {}  # of each kind the network that is used first: the one that is trained


def remember(module: torch.nn.Module, *_: object) -> None:
    for kind in NETWORKS:
        if isinstance(module, kind) and module.training:
            used.setdefault(kind, module)


if __name__ == "__main__":
    register_module_forward_hook(remember)
    try:
        sys.exit(train.main())
    finally:
        weights = {kind.__name__: network.state_dict() for kind, network in used.items()}
        torch.save(weights, Path(os.environ["SHOW"]) / f"{os.environ['RANK']}.pth")

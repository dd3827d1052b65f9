"""Every network knows its own sizes, so that a changed default leaves old checkpoints loadable."""

import inspect

import pytest
import torch

from inference.loading import AUTOENCODERS
from modules import DCGAN, VQVAE
from networks.baseline_gan import BaselineGAN
from networks.pixelcnn import PixelCNN

SMALL = {"rqvae": {"codebook_size": 8, "depth": 2, "width": 8, "blocks": 1, "dim": 4}}


SHAPE = {"grid": (4, 6), "channels": 3, "levels": 2, "codes": 1, "width": 8}
MODELS = [network(**SMALL.get(name, {"codebook_size": 8})) for name, network in AUTOENCODERS.items()]
PRIORS = [DCGAN(VQVAE(), **SHAPE), BaselineGAN(VQVAE(), **SHAPE, network="baseline"), PixelCNN([(4, 6)], [8], 2, 8, 2)]


@pytest.mark.parametrize("network", MODELS + PRIORS, ids=lambda network: type(network).__name__)
def test_arguments_are_all_that_the_network_is_built_from(network):
    needed = set(inspect.signature(type(network)).parameters) - {"autoencoder"}
    assert set(network.arguments) == needed
    given = [VQVAE()] if isinstance(network, DCGAN) else []
    again = type(network)(*given, **network.arguments)
    again.load_state_dict(network.state_dict())  # raises where a shape differs
    assert again.arguments == network.arguments


@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
def test_grid_shapes_are_those_of_the_codes(model):
    codes = model.eval().encode(torch.rand(2, 1, 32, 48))
    assert model.grid_shapes(32, 48) == [tuple(grid.shape[1:]) for grid in codes]

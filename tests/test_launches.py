"""A training step launches few kernels: each takes 25 to 45 us of the host's time, and a GPU a small part of that.

Counted on the CPU, in train.py's own loops with the default networks: the operators that PyTorch dispatches, each as
the kernels that it launches on CUDA.
"""

import pytest
import torch
import torch.nn.functional as F
from tiny import Trainer
from torch.utils._python_dispatch import TorchDispatchMode

import modules
import train
from networks.painter import ChannelRMSNorm
from networks.pixelcnn import PixelCNN
from networks.transformer import Transformer
from runtime import compute
from training import likelihood, painter, run

FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "alias", "_unsafe_view"}
GROUPED = 36  # tensors that one kernel of a fused or `foreach` operator takes
KERNELS = {  # of operators that launch several
    "convolution": lambda args: 1 + (args[2] is not None),  # the bias
    "convolution_backward": lambda args: sum(args[10]),  # data, weight, bias
    "native_layer_norm_backward": lambda args: 2,
    "_scaled_dot_product_flash_attention_for_cpu_backward": lambda args: 3,
    "embedding_dense_backward": lambda args: 2,
    "nll_loss_backward": lambda args: 2,
    "cumsum": lambda args: 2,
    "_index_put_impl_": lambda args: 9,  # it sorts
}


class Launches(TorchDispatchMode):
    """Counts the kernels of a step."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        namespace, _, name = func._schema.name.partition("::")
        if name.startswith(("_foreach", "_fused")):
            self.count += -(-len(args[0]) // GROUPED)
        elif namespace == "aten" and not func.is_view and name not in FREE:
            self.count += KERNELS.get(name, lambda args: 1)(args)
        return func(*args, **(kwargs or {}))


def as_on_cuda(norm: ChannelRMSNorm, x: torch.Tensor) -> torch.Tensor:
    """Another normalisation, of as many kernels as `F.rms_norm` has on CUDA."""
    return F.layer_norm(x.movedim(1, -1), norm.gain.shape, norm.gain.to(x.dtype)).movedim(-1, 1)


@pytest.mark.parametrize(
    ("stage", "most", "options"),
    [
        ("autoencoder", 380, {"model": "vqvae"}),
        ("autoencoder", 730, {"model": "rqvae"}),
        ("painter", 820, {"model": "rqvae", "painter_slices": "64", "painter_width": "128"}),
        ("dcgan", 1200, {"model": "rqvae", "prior": "dcgan"}),
        ("transformer", 1060, {"prior": "transformer"}),
        ("pixelcnn", 730, {"prior": "pixelcnn"}),
    ],
    ids=["vqvae", "rqvae", "painter", "dcgan", "transformer", "pixelcnn"],
)
def test_launches_of_a_step(stage, most, options, tmp_path, monkeypatch):
    trainer, counters, steps_of = Trainer(tmp_path, monkeypatch), [], run.Stage.steps
    monkeypatch.setitem(train.GANS, "residual", modules.DCGAN)
    monkeypatch.setattr(modules, "Discriminator", modules.Discriminator.func)
    monkeypatch.setattr(likelihood, "PixelCNN", PixelCNN)
    monkeypatch.setattr(likelihood, "Transformer", Transformer)
    monkeypatch.setattr(compute, "cpu_has_bf16", lambda: True)
    monkeypatch.setattr(train, "draw_window", lambda box: (box.height, box.width))  # every batch is augmented
    monkeypatch.setattr(ChannelRMSNorm, "forward", as_on_cuda)
    monkeypatch.setattr(painter, "train_student", lambda *args: None)
    monkeypatch.setattr(painter, "fit_noise_scale", lambda *args: None)

    def steps(own, *args):
        for batch in steps_of(own, *args):
            counters.append(Launches())
            with counters[-1]:
                yield batch

    monkeypatch.setattr(run.Stage, "steps", steps)
    assert trainer(**options, epochs="1", prior_epochs="1", precision="bf16")[0] == 0
    assert 0 < counters[-1].count <= most

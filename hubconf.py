"""How do I load it in a notebook? With torch.hub: no installation, and nothing of it left on the import path.

    model = torch.hub.load("path/of/clone", "brain_vqvae", source="local")

Entries: `brain_vqvae`, a trained autoencoder (RQ-VAE, VQ-VAE or VQ-VAE-2) with its prior (transformer, DCGAN or
PixelCNN); `brain_slices`, a data set; `brain_judge`, the judge of novel slices. `torch.hub.list` and `torch.hub.help`
know repositories on GitHub only; `pydoc path/of/clone/hubconf.py` shows the help of a local clone.

The modules behind the entries have names such as `dataset` and `modules`, which the caller's own may have, too. They
are therefore imported aside: before and after, those names are the caller's. The price: what the entries return can't
be pickled, by `torch.save(model)` or to another process, since pickle finds a class by its module's name. Keep the
path of the weights instead.
"""

import contextlib as _contextlib
import pathlib as _pathlib
import sys as _sys
from collections.abc import Iterator as _Iterator
from collections.abc import Sequence as _Sequence

# What has to be installed for the entries (`requirements.txt` has more, for training and for figures).
dependencies = ["nibabel", "nilearn", "numpy", "PIL", "pydantic", "scipy", "skimage", "sklearn", "torch", "tqdm"]

_CLONE = _pathlib.Path(__file__).resolve().parent
_OURS = {path.stem for path in _CLONE.glob("*.py")} | {path.parent.name for path in _CLONE.glob("*/*.py")}


@_contextlib.contextmanager
def _imports_from_clone() -> _Iterator[None]:
    """Within, `import dataset` is this clone's; afterwards it is the caller's again."""

    def take() -> dict:
        names = [name for name in _sys.modules if name.partition(".")[0] in _OURS]
        return {name: _sys.modules.pop(name) for name in names}

    theirs = take()
    _sys.path.insert(0, str(_CLONE))
    try:
        yield
    finally:
        _sys.path.remove(str(_CLONE))
        take()
        _sys.modules.update(theirs)


def brain_vqvae(weights: str | None = None, prior: str | None = None, device: str = "auto"):
    """A trained autoencoder of brain slices, and the prior that samples novel ones.

        model = torch.hub.load(CLONE, "brain_vqvae", source="local")
        codes = model.encode(slices)                        slices: uint8 or float in [0, 1], [N, H, W]
        pictures = model.decode(codes)                      float32 in [0, 1]; codes[:2] gives them from fewer codes
        novel = model.sample(seeds=range(16), level=12)     model.sample_codes for the codes alone
        steps = model.walk(seeds=(0, 1))                    24 pictures on the way
        brain = model.sample_volume(seed=0)                 [levels, H, W]; a transformer samples whole brains

    Args:
        weights: vqvae.pth of a run of train.py; None for the one that comes with the clone.
        prior: transformer.pth, dcgan.pth or pixelcnn.pth of the same run, or "none"; None for the best beside the
            weights, in that order.
        device: "cuda", "cpu" or "auto". On CUDA, convolutions are in full float32 from then on in this process.
    Returns:
        TrainedModel, of inference/model.py. It takes NumPy arrays and PyTorch tensors, and returns the same kind.
    Raises:
        ValueError: a file, or an array given to a method, isn't what it should be. The message is one line.
    """
    with _imports_from_clone():
        from inference.model import TrainedModel
    return TrainedModel.load(weights or _CLONE / "resources/pretrained/vqvae.pth", prior, device)


def brain_slices(data: str = "demo", splits: _Sequence[str] = ("train", "validate", "test"), people: int | None = None):
    """A data set of brain slices: `.splits["test"].images` is uint8 [N, H, W].

    Args:
        data: a folder that train.py takes, or "demo": 40 synthetic people, made on first use.
        splits: those to load.
        people: load only this many people of each split, the first ones.
    Returns:
        DataSet, of dataset.py; each split has images, names, people and levels.
    Raises:
        ValueError: there is no such data set, or a file in it can't be read.
    """
    with _imports_from_clone():
        import dataset
    return dataset.load(data, splits, limit_people=people)


def brain_judge(train, held_out):
    """The judge of novel slices: how close to real people's, how varied, and whether any are copies.

        judge = torch.hub.load(CLONE, "brain_judge", data.splits["train"], data.splits["test"], source="local")
        verdict = judge.score(samples)     uint8 [N, H, W], at least 100

    Args:
        train, held_out: splits of `brain_slices`, of different people.
    Returns:
        Judge, of scoring/judge.py.
    Raises:
        ValueError: too few slices or people.
    """
    with _imports_from_clone():
        from scoring.judge import Judge
    return Judge(train, held_out)

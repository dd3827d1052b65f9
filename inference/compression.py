"""How do codes become files, and files pictures? By a range coder, with a transformer's probabilities where it knows.

The first codes of slices that lie as the training's did are coded with the transformer's probabilities, all others with
the share that training counted of each code. Writer and reader compute the same in the same batches: in double
precision, and from logits rounded to `STEPS`, so that machines whose last digits differ may read each other's files.
"""

import base64
import copy
import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dataset import Box, Slices
from inference.codec import PlacedCodes
from inference.model import TrainedModel
from inference.reconstruction import Reconstruction
from inference.sampling import BATCH, Sampler
from networks.transformer import Transformer
from reading import nifti
from reading.codes import Header, Volume, checksum, pack, unpack
from runtime.errors import InputError

STEPS = 1024  # of a logit
Grids = list[np.ndarray]  # int32 [n, h, w], coarse to fine
Step = Callable[[np.ndarray, np.ndarray], np.ndarray]  # codes [n], and probabilities [n, K] or [K] -> the codes


class Coder:
    """Files of the codes of a model's autoencoder.

    `prior`: the file of a transformer, "none", or None for the one beside the model, where there is one. Raises
    InputError when it is another network, or constriction isn't installed.
    """

    def __init__(self, model: TrainedModel, prior: str | None = None):
        try:
            from constriction import stream  # an extra requirement
        except ImportError as error:
            raise InputError("files of codes take constriction: pip install -r requirements-extra.txt") from error
        self.stream, self.model, self.codec = stream, model, model.codec
        self.name, self.prior, self.prior_name = model.description["identity"][:16], None, None
        path = Path(prior or model.path.with_name("transformer.pth"))
        if prior != "none" and (prior or path.is_file()):
            network = Sampler(path, model.codec).prior
            if not isinstance(network, Transformer):
                raise InputError(f"--prior {path} is no transformer, by which codes are coded: give one, or none")
            self.prior = copy.deepcopy(network).double()
            self.prior_name = hashlib.sha256(path.read_bytes()).hexdigest()[:16]

    def write(self, slices: Slices, made: Reconstruction, cut: nifti.Cut) -> list[bytes]:
        """A file of codes for each file that slices came from, in their order, which was cut so."""
        placed = {row: (codes, i) for rows, codes in made.groups for i, row in enumerate(rows.tolist())}
        written, canvas = [], slices.images.shape[1:]
        for path in dict.fromkeys(slices.paths):
            rows = [row for row, source in enumerate(slices.paths) if source == path]
            boxes, volume = [placed[row][0].box for row in rows], None
            if slices.ranges is not None:
                header = base64.b64encode(nifti.load(path, voxels=False).header.binaryblock).decode()
                volume = Volume(header=header, span=tuple(slices.ranges[rows[0]].tolist()), cut=tuple(cut))
            usual = canvas == self.codec.size and set(boxes) == {self.codec.box}
            header = Header(
                autoencoder=self.name,
                prior=self.prior_name if canvas == self.codec.size and self.codec.box in boxes else None,
                grids=len(made.groups[0][1]),
                shape=tuple(side.stop - side.start for side in slices.frames[rows[0]]),
                levels=slices.levels[rows].tolist(),
                **({} if usual else {"canvas": canvas, "boxes": boxes}),
                volume=volume,
            )
            groups = []
            for _, own in self._groups(header):
                parts = [placed[rows[i]] for i in own]
                groups.append([np.stack([c[k][i] for c, i in parts], dtype=np.int32) for k in range(header.grids)])
            coder = self.stream.queue.RangeEncoder()

            def put(symbols: np.ndarray, probabilities: np.ndarray, coder: Any = coder) -> np.ndarray:
                coder.encode(symbols, *self._model(probabilities))
                return symbols

            self._code(header, groups, put)
            payload = coder.get_compressed().astype("<u4").tobytes()
            written.append(pack(header, _content(groups), payload))
        return written

    def read(self, path: Path) -> tuple[Header, list[tuple[np.ndarray, PlacedCodes]]]:
        """A file's header, and codes of its slices as `Reconstruction.groups` has them.

        Raises InputError when the file is damaged, another model's, or decodes to other codes than were written.
        """
        try:
            header, check, payload = unpack(path)
        except OSError as error:
            raise InputError(f"can't read {path}: {error.strerror or error}") from error
        except ValueError as error:
            raise InputError(f"{path} {error}") from error
        if header.autoencoder != self.name:
            raise InputError(f"{path} was written with another autoencoder: give that one's vqvae.pth")
        if header.prior not in (None, self.prior_name):
            raise InputError(f"{path} was written with another transformer.pth: give that one as --prior")
        if header.grids > len(self.codec.autoencoder.codebooks):
            raise InputError(f"{path} is damaged (it claims {header.grids} grids of codes)")
        coder = self.stream.queue.RangeDecoder(np.frombuffer(payload[: len(payload) // 4 * 4], "<u4").astype(np.uint32))

        def get(symbols: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
            model = self._model(probabilities)
            return coder.decode(*model, *[len(symbols)] * (len(model) == 1))

        groups = []
        for box, own in (places := self._groups(header)):
            shapes = self.codec.grid_shapes(box)[: header.grids]
            groups.append([np.zeros((len(own), *shape), np.int32) for shape in shapes])
        with suppress(AssertionError):  # constriction's, where no code is possible: then the checksum is wrong, too
            self._code(header, groups, get)
        if checksum(header, _content(groups)) != check:
            other = ", or this machine computes other probabilities than the one that wrote it" * bool(header.prior)
            raise InputError(f"{path} doesn't decode to the codes that were written: it is damaged{other}")
        size = header.canvas or self.codec.size
        return header, [(own, PlacedCodes(grids, box, size)) for (box, own), grids in zip(places, groups, strict=True)]

    def _groups(self, header: Header) -> list[tuple[Box, np.ndarray]]:
        """The boxes in which slices are coded, and the slices of each."""
        boxes = [Box(*box) for box in header.boxes or [self.codec.box] * len(header.levels)]
        return [(box, np.flatnonzero([box == other for other in boxes])) for box in dict.fromkeys(boxes)]

    @torch.no_grad()
    def _code(self, header: Header, groups: list[Grids], step: Step) -> None:
        """Put all codes through `step`, in the order in which they lie in a file, and keep what it returns."""
        quantizers = self.codec.autoencoder.quantizers
        shares = [getattr(q, "cluster_size", torch.ones(q.depth, q.codebook_size)) for q in quantizers]
        shares = torch.cat(list(shares)).double().cpu().numpy()
        for (box, own), grids in zip(self._groups(header), groups, strict=True):
            known = len(self.prior.output_embeddings) if self._knows(header, box) else 0
            for start in range(0, len(own) if known else 0, BATCH):
                self._code_batch(header, own, grids, slice(start, start + BATCH), step)
            for grid, share in zip(grids[known:], shares[known:], strict=False):
                grid[...] = step(grid.ravel(), share / share.sum()).reshape(grid.shape)

    def _knows(self, header: Header, box: Box) -> bool:
        at_home = box == self.codec.box and (header.canvas or self.codec.size) == self.codec.size
        return header.prior is not None and at_home and header.grids >= len(self.prior.output_embeddings)

    def _code_batch(self, header: Header, own: np.ndarray, grids: Grids, rows: slice, step: Step) -> None:
        """The codes that the transformer knows, of some of the slices in the training's box."""
        levels = torch.tensor(header.levels)[own[rows]]
        levels = torch.where((levels < 0) | (levels > self.prior.levels), self.prior.levels, levels)

        def choose(logits: Tensor, place: tuple[int, int, int]) -> Tensor:
            row, column, k = place
            probabilities = ((logits * STEPS).round() / STEPS).softmax(1).cpu().numpy()
            grids[k][rows, row, column] = step(np.ascontiguousarray(grids[k][rows, row, column]), probabilities)
            return torch.from_numpy(grids[k][rows, row, column]).long().to(logits.device)

        self.prior.sample(range(len(levels)), levels, self.prior.unknown(len(levels)), choose=choose)

    def _model(self, probabilities: np.ndarray) -> tuple:
        """The arguments of constriction's coders for a table of probabilities for each code, or for all."""
        categorical = self.stream.model.Categorical
        if probabilities.ndim == 1:
            return (categorical(probabilities, perfect=False),)
        return categorical(perfect=False), probabilities


def _content(groups: list[Grids]) -> bytes:
    return b"".join(grid.astype("<i2").tobytes() for grids in groups for grid in grids)

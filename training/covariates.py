"""What can be asked of a brain besides its slice level? Columns of participants.tsv, and what is measured on it."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dataset import DataSet
from reading.names import volume_of
from reading.participants import Covariate
from runtime.errors import InputError
from training.augment import Variation

MEASURED = Covariate("ventricles", "share of the brain", None), Covariate("brain", "pixels a slice", None)
MOST = 8  # covariates, unless they are chosen
HIDDEN, EACH_HIDDEN = 0.2, 0.3  # share of the slices that nothing is known of; of the values of the others
NOISE = 0.1  # standard deviations, added to numbers: exact values would tell each training person from all others


class Covariates:
    """The covariates that a prior learns, of a data set's people.

    Attributes:
        described: of each its name, unit, categories (None for a number), and a number's lowest, highest and mean value
            and standard deviation, over the training slices; "values", each training brain's, standardised. All are
            plain values, for `modules.CovariateEmbedding` and `Prior.draw_covariates`.
        values: of each split, float32 [N, n]: numbers standardised, categories as index, NaN where unknown.
    """

    def __init__(self, data: DataSet, chosen: str | None):
        """`chosen`: names with commas between, "none", or None for those of the data set, `MOST` at most.

        Raises InputError when a chosen one isn't there.
        """
        found, raw = [*(data.participants.covariates if data.participants else ()), *MEASURED], _values(data)
        for i, covariate in enumerate(found):
            if covariate.categories:  # those of other people only can't be learnt: unknown
                seen = np.unique(known(raw["train"][:, i]))
                found[i] = covariate._replace(categories=tuple(covariate.categories[int(index)] for index in seen))
                for values in raw.values():
                    kept = np.isin(values[:, i], seen)
                    values[:, i] = np.where(kept, np.searchsorted(seen, values[:, i]), np.nan)
        varying = [i for i in range(len(found)) if len(np.unique(known(raw["train"][:, i]))) > 1]
        names = [found[i].name for i in varying]
        wanted = names[:MOST] if chosen is None else [] if chosen == "none" else chosen.split(",")
        for name in wanted:
            if name not in names:
                raise InputError(f"--covariates {name}: training people differ in {', '.join(names) or 'none'} only")
        columns = [varying[names.index(name)] for name in wanted]
        self.described = [_describe(found[i], known(raw["train"][:, i])) for i in columns]
        shift = np.array([each["mean"] for each in self.described])
        scale = np.array([each["deviation"] for each in self.described])
        self.values = {name: ((each[:, columns] - shift) / scale).astype(np.float32) for name, each in raw.items()}
        brains = list({volume_of(name): row for row, name in enumerate(data.splits["train"].names)}.values())
        for about, values in zip(self.described, self.values["train"][brains].T, strict=True):
            about["values"] = values.tolist()

    def scaled(self, values: Tensor, variation: Variation) -> Tensor:
        """The values [B, n] of brains that are augmented so: the brain's area grows with its scale."""
        for i, each in enumerate(self.described):
            if each["name"] == "brain":
                area = torch.where(variation.augmented, variation.zoom**2, 1.0).flatten()
                mean = each["mean"] / each["deviation"]
                values = values.clone()
                values[:, i] = (values[:, i] + mean) * area - mean
        return values


def hide(values: Tensor) -> Tensor:
    """Values [B, n] as a prior learns from them: with some noise, and some unknown, so that any may be left open."""
    hidden = (torch.rand_like(values[:, :1]) < HIDDEN) | (torch.rand_like(values) < EACH_HIDDEN)
    return torch.where(hidden, torch.nan, values + NOISE * torch.randn_like(values))


def known(values: np.ndarray) -> np.ndarray:
    """Those that aren't NaN."""
    return values[~np.isnan(values)]


def _values(data: DataSet) -> dict[str, np.ndarray]:
    """Every covariate of every slice's person or scan, of each split, as they are: float64 [N, n]."""
    from scoring.volumes import SizeMeasure  # here, since this import takes seconds

    table = data.participants
    missing = [np.nan] * len(table.covariates) if table else []
    try:
        measure = SizeMeasure(data.splits["train"])
    except InputError:  # single slices, say, or too few people
        measure = None
    found = {}
    for split, slices in data.splits.items():
        rows = [table.values.get(person, missing) if table else [] for person in slices.people]
        sizes = measure.of_slices(slices) if measure else {}
        measured = [sizes.get(each.name, np.full(len(slices), np.nan)) for each in MEASURED]
        found[split] = np.column_stack([np.array(rows, np.float64), *measured])
    return found


def _describe(covariate: Covariate, values: np.ndarray) -> dict[str, Any]:
    """The plain values of `Covariates.described`; of a category, mean 0 and deviation 1 leave its index as it is."""
    about = {"name": covariate.name, "unit": covariate.unit, "low": float(values.min()), "high": float(values.max())}
    if covariate.categories:
        return about | {"categories": list(covariate.categories), "mean": 0.0, "deviation": 1.0}
    return about | {"categories": None, "mean": float(values.mean()), "deviation": float(values.std())}

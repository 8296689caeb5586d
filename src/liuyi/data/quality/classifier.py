"""The classifier: logistic regression over hashed n-grams, its margin turned into a probability, two small files.

    classifier = Classifier.load(folder)
    classifier.score(["Some text."])      # float32 [texts], 0 … 1

A score is the probability that a document is good if good and bad ones are as many; so 0.5 is the border, and what a
threshold keeps does not change with the mixture of the examples.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import expit

from liuyi.core.errors import ArtifactError
from liuyi.data.quality.features import BUCKETS, features

WEIGHTS = "weights.safetensors"
ABOUT = "classifier.json"
FEATURES = 1
"""The form of the features; a classifier of another form is refused."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Classifier:
    """A trained classifier."""

    weights: Floats
    """[BUCKETS] what one unit of each feature adds to the margin."""
    bias: float
    slope: float
    """The score is expit(slope · margin + offset) (Platt 1999)."""
    offset: float
    l2: float
    """The strength of the penalty that cross-validation chose."""

    def score(self, texts: Sequence[str]) -> Floats:
        """[texts] the scores of texts."""
        return self.probabilities(features(texts))

    def probabilities(self, rows: sparse.csr_matrix) -> Floats:
        """[texts] the scores of rows of `features`."""
        margins = rows @ self.weights.astype(np.float64) + self.bias
        return np.asarray(expit(self.slope * margins + self.offset), np.float32)

    def save(self, folder: Path) -> None:
        """Write the classifier's two files."""
        from safetensors.numpy import save_file

        save_file({"weights": self.weights}, folder / WEIGHTS)
        about = {name: value for name, value in asdict(self).items() if name != "weights"}
        (folder / ABOUT).write_text(json.dumps({"features": FEATURES, **about}, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Classifier:
        """Read a classifier. Raises ArtifactError where its files are not those of one."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
            weights = load_file(folder / WEIGHTS)["weights"]
            form = about.pop("features")
            made = cls(weights=weights, **{name: float(value) for name, value in about.items()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise ArtifactError(f"not a classifier: {error}", where=str(folder)) from error
        if form != FEATURES or weights.shape != (BUCKETS,):
            raise ArtifactError(
                "the classifier was trained on other features than are computed here",
                where=str(folder),
                hint="train it again with data.train_classifier",
            )
        return made

"""Which templates are held out: whole families, so that what is tested was never a sentence pattern in training.

Each intent gives up about the asked share of its families. A family is held out only while another one in training
says the same thing (the same intent with the same slots), so the test asks for understanding of new wording, not of
functions that nobody ever described.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Literal

from liuyi.data.desk.templates import Template

Part = Literal["train", "practice", "dev", "test"]
HELD_OUT: tuple[Part, ...] = ("test", "dev", "practice")


def split_families(templates: Iterable[Template], shares: Mapping[Part, float], seed: int) -> dict[str, Part]:
    """The part of every family, by cluster id. Families of each language and intent are drawn by `seed`."""
    signatures: dict[str, set[str]] = defaultdict(set)
    families: dict[tuple[str, str], set[str]] = defaultdict(set)
    for template in templates:
        signatures[template.cluster].add(f"{template.language} {template.signature}")
        families[template.language, template.intent].add(template.cluster)
    in_training = Counter(signature for found in signatures.values() for signature in found)
    parts: dict[str, Part] = dict.fromkeys(signatures, "train")
    for (language, intent), clusters in sorted(families.items()):
        rng = random.Random(f"split/{seed}/{language}/{intent}")
        order = sorted(clusters)
        rng.shuffle(order)
        for part in HELD_OUT:
            wanted = int(shares.get(part, 0.0) * len(order) + rng.random())
            for cluster in order:
                if wanted == 0:
                    break
                if parts[cluster] == "train" and all(in_training[found] > 1 for found in signatures[cluster]):
                    parts[cluster] = part
                    in_training.subtract(signatures[cluster])
                    wanted -= 1
    return parts

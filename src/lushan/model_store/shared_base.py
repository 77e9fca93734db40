"""Pretrained models in memory whose layers several models use: what was tuned from them, and they themselves.

Two models have the same base where not only the weights are equal, but also all that says how they are used: the
configuration, the tokenizer and the chat template.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from weakref import WeakValueDictionary

from lushan.backbones.inspect import describe
from lushan.backbones.load import Backbone, WeightForm, load_backbone
from lushan.backbones.many_adapters import ManyAdapters, has_plain_layers
from lushan.backbones.packed import BITS, arithmetic_of, pack_weights, weight_bytes
from lushan.backbones.sources import RECORD_FILE
from lushan.inference.mixed import SharedLayers

CheckRoom = Callable[[int], None]
"""Called with the bytes that are about to be taken; raises where they would be too many."""


@dataclass(slots=True, eq=False, weakref_slot=True)
class Base:
    """A pretrained model that others share; it is in memory as long as one of them is."""

    folder: Path
    layers: SharedLayers
    num_bytes: int


class Apart(NamedTuple):
    """Why a model shares its layers with no other."""

    why: str
    backbone: Backbone | None = None
    """What was loaded before that was known: the pretrained model, its weights held as asked."""


class BaseKey(NamedTuple):
    """What is equal of two models that share their layers."""

    weights_digest: str
    description_digest: str
    form: WeightForm
    both_ways: bool

    @classmethod
    def of(cls, folder: Path, digest: str, form: WeightForm, *, both_ways: bool) -> "BaseKey":
        """Describe a pretrained model.

        Args:
            folder: Where it is.
            digest: Of its weights.
            form: How they are held.
            both_ways: Whether tokens also see those behind them.
        """
        return cls(digest, _description_digest(folder), form, both_ways)


class Bases:
    """The pretrained models that are shared now; each is forgotten with the last model that holds it."""

    def __init__(self) -> None:
        """Hold nothing yet."""
        self._bases: WeakValueDictionary[BaseKey, Base] = WeakValueDictionary()

    @property
    def num_bytes(self) -> int:
        """Memory that they take; may be asked from any thread."""
        bases = (each() for each in self._bases.valuerefs())
        return sum(each.num_bytes for each in bases if each is not None)

    def find(self, key: BaseKey) -> Base | None:
        """Give one that is in memory."""
        return self._bases.get(key)

    def find_weights(self, digest: str, form: WeightForm, *, both_ways: bool) -> Base | None:
        """Give one in memory that has these weights, for a model that brings its own configuration and tokenizer."""
        like = (digest, form, both_ways)
        found = (
            base
            for key, base in self._bases.items()
            if (key.weights_digest, key.form, key.both_ways) == like
        )
        return next(found, None)

    def load(self, folder: Path, key: BaseKey, check_room: CheckRoom) -> Base | Apart:
        """Load one, or say why it cannot be shared.

        Raises:
            ModelError: If it cannot be loaded, or would take too much memory.
        """
        facts = describe(folder)
        if facts.family == "encoder":
            return Apart("encoders do not share layers")
        if facts.why_silent:
            return Apart(f"its base {facts.why_silent}")
        check_room(predicted_bytes(folder, key.form))
        backbone = load_backbone(
            folder,
            purpose="language",
            both_ways=key.both_ways,
            precision=arithmetic_of(key.form),
        )
        pack_weights(backbone, key.form)
        model_type = backbone.facts.model_type
        if backbone.packing_mode != "packed":
            return Apart(f"`{model_type}` cannot use packed attention", backbone)
        if not has_plain_layers(backbone.core):
            return Apart(f"`{model_type}` has linear layers of a kind of its own", backbone)
        many = ManyAdapters(backbone.core)
        num_bytes = weight_bytes(backbone.model) + many.num_bytes
        check_room(num_bytes)
        base = Base(folder, SharedLayers(backbone, many), num_bytes)
        self._bases[key] = base
        return base


def predicted_bytes(folder: Path, form: WeightForm) -> int:
    """Memory that the weights of a model folder will take."""
    return int(describe(folder).num_parameters * BITS[form] / 8)


def _description_digest(folder: Path) -> str:
    """SHA-256 over the files that say how the weights of a folder are used."""
    digest = hashlib.sha256()
    for file in sorted([*folder.glob("*.json"), *folder.glob("*.jinja")]):
        if file.name != RECORD_FILE:  # says where the folder came from
            digest.update(file.name.encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()

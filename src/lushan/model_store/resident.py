"""Tuned models that are loaded together: one backbone for all that were tuned from the same base.

A LoRA run then costs its matrices, a run whose head alone was tuned its head. Runs with other weights, and those of
architectures without packed attention, have a backbone of their own. What each answers is what it answers alone.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from safetensors import safe_open

from lushan.backbones.inspect import describe
from lushan.backbones.load import AnswerLayer, check_values, load_backbone
from lushan.backbones.many_adapters import (
    ManyAdapters,
    SharingBackbone,
    empty_model,
    share_layers,
)
from lushan.backbones.packed import (
    BITS,
    WeightsSetting,
    arithmetic_of,
    choose_weights,
    pack_weights,
    weight_bytes,
)
from lushan.backbones.tokenizer import Tokenizer
from lushan.catalog import load_task
from lushan.errors import ModelError, RunError
from lushan.inference.mixed import Question, SharedLayers, predict_together
from lushan.inference.predict import Predictor
from lushan.model_store.tuned_model import (
    TunedModel,
    base_of,
    is_adapter,
    load_adapter,
    load_predictor,
    make_predictor,
    model_folder,
    read_meaning,
)
from lushan.records import Example, Prediction
from lushan.tasks import Task


@dataclass(slots=True, eq=False, weakref_slot=True)
class _Base:
    """A pretrained model that others share; it is in memory as long as one of them is."""

    folder: Path
    layers: SharedLayers
    num_bytes: int


@dataclass(slots=True)
class ResidentModel:
    """A tuned model in memory."""

    name: str
    predictor: Predictor
    num_bytes: int
    """Memory of what is its own."""
    why_alone: str
    """Why it shares its layers with no other; empty where it may."""
    base: _Base | None

    @property
    def layers(self) -> SharedLayers | None:
        """What it shares with others; None where it has layers of its own."""
        return None if self.base is None else self.base.layers


class Resident:
    """Tuned models by name, answered together.

    One thread computes. Between its calls models may come and go, also while an engine is writing: an answer that was
    begun is finished by the model that began it.
    """

    def __init__(self, *, limit_bytes: float = math.inf, weights: WeightsSetting = "auto") -> None:
        """Hold nothing yet.

        Args:
            limit_bytes: Memory that weights may take.
            weights: How those of all models are held.
        """
        self._limit_bytes = limit_bytes
        self._weights: WeightsSetting = weights
        self._bases: WeakValueDictionary[tuple[str, str, bool], _Base] = WeakValueDictionary()
        """By digest of the weights, how they are held, and whether tokens look both ways."""
        self._models: dict[str, ResidentModel] = {}

    @property
    def weights(self) -> WeightsSetting:
        """How weights are held."""
        return self._weights

    @property
    def models(self) -> tuple[ResidentModel, ...]:
        """All that are loaded, the oldest first."""
        return tuple(self._models.values())

    @property
    def num_bytes(self) -> int:
        """Memory that all weights take."""
        parts: Iterable[_Base | ResidentModel] = (*self._bases.values(), *self.models)
        return sum(each.num_bytes for each in parts)

    def model(self, name: str) -> ResidentModel:
        """Give a model that is loaded.

        Raises:
            ModelError: If there is none of this name; tells the names.
        """
        if name not in self._models:
            known = ", ".join(f"`{each}`" for each in self._models) or "none"
            raise ModelError(f"No model `{name}` is loaded. Loaded: {known}.")
        return self._models[name]

    def load(
        self,
        run: Path,
        *,
        name: str | None = None,
        replaces: bool = False,
        check: Callable[[Predictor], object] = lambda _: None,
    ) -> str:
        """Load the tuned model of a run, and give its name.

        Args:
            run: The run folder, or its `model` folder.
            name: What it is called here; without one, as the folder is.
            replaces: Whether it takes the place of a model of this name, once it is loaded and checked.
            check: Called with the model before it has its name; what it raises leaves all as it was.

        Raises:
            ModelError: If the base of an adapter is missing or another, or the models would take too much memory.
            RunError: If there is no whole tuned model, or one of this name is loaded.
        """
        folder = model_folder(run)
        meaning = read_meaning(folder)
        name = name or run.resolve().name
        if name in self._models and not replaces:
            raise RunError(
                f"A model `{name}` is loaded already. Unload it first, or give this one another name."
            )
        model = self._load(name, folder, meaning)
        self._check_room(name, model.num_bytes)
        check(model.predictor)
        if name in self._models:
            self.unload(name)
        self._models[name] = model
        return name

    def unload(self, name: str) -> None:
        """Forget a model, and its base if no other needs it; answers that were begun with it are finished.

        Raises:
            ModelError: If there is none of this name; tells the names.
        """
        model = self.model(name)
        del self._models[name]
        if model.base is not None:
            model.base.layers.many.forget()

    def predict(self, questions: Sequence[tuple[str, Example]]) -> list[Prediction]:
        """Answer examples, each by the model that is named, in order; those of one base in the same passes.

        Raises:
            DataError: If a text is too long and the policy is `error`.
            ModelError: If a model is not loaded.
        """
        asked = [(self.model(name), example) for name, example in questions]
        found = predict_together([
            Question(model.predictor, model.layers, [example]) for model, example in asked
        ])
        return [prediction for (prediction,) in found]

    def _load(self, name: str, folder: Path, meaning: TunedModel) -> ResidentModel:
        task: Task = load_task(meaning.task)
        layer = task.layer(meaning.state, answer=meaning.answer)
        base = self._base_for(name, folder, meaning, both_ways=layer.both_ways)
        if isinstance(base, str):
            return self._load_alone(name, folder, meaning, why=base)
        backbone = (
            _adapted(folder, layer, base) if is_adapter(folder) else _headed(folder, layer, base)
        )
        if backbone is None:
            return self._load_alone(name, folder, meaning, why="its weights are not its base's")
        predictor = make_predictor(folder, meaning, backbone)
        num_bytes = weight_bytes(backbone.model, beside=base.layers.backbone.model)
        if backbone.adapter is not None:
            num_bytes += backbone.adapter.num_bytes
        return ResidentModel(name, predictor, num_bytes, "", base)

    def _load_alone(
        self, name: str, folder: Path, meaning: TunedModel, *, why: str
    ) -> ResidentModel:
        weights = base_of(folder, meaning) if is_adapter(folder) else folder
        self._check_room(name, self._predicted_bytes(weights, meaning))
        predictor = load_predictor(folder, weights=self._weights)
        return ResidentModel(name, predictor, weight_bytes(predictor.backbone.model), why, None)

    def _predicted_bytes(self, folder: Path, meaning: TunedModel) -> int:
        form = choose_weights(self._weights, meaning.precision)
        return int(describe(folder).num_parameters * BITS[form] / 8)

    def _base_for(
        self, name: str, folder: Path, meaning: TunedModel, *, both_ways: bool
    ) -> _Base | str:
        """Give the base that a model shares with others, loaded if need be; or say why it shares none."""
        if not is_adapter(folder) and meaning.adapter != "head":
            return "its layers were tuned"
        form = choose_weights(self._weights, meaning.precision)
        key = (meaning.base_digest, form, both_ways)
        if key in self._bases:
            return self._bases[key]
        try:
            weights = base_of(folder, meaning)
        except ModelError:
            if is_adapter(folder):
                raise
            return "its base is not on this machine"
        if describe(weights).family == "encoder":
            return "encoders do not share layers"
        self._check_room(name, self._predicted_bytes(weights, meaning))
        backbone = load_backbone(
            weights, purpose="language", both_ways=both_ways, precision=arithmetic_of(form)
        )
        if backbone.packing_mode != "packed":
            return f"`{backbone.facts.model_type}` cannot use packed attention"
        pack_weights(backbone, form)
        many = ManyAdapters(backbone.core)
        num_bytes = weight_bytes(backbone.model) + many.num_bytes
        self._check_room(name, num_bytes)
        base = _Base(weights, SharedLayers(backbone, many), num_bytes)
        self._bases[key] = base
        return base

    def _check_room(self, name: str, num_bytes: int) -> None:
        taken = self.num_bytes
        if taken + num_bytes > self._limit_bytes:
            raise ModelError(
                f"`{name}` needs {num_bytes / 1e6:,.1f} MB more; models take {taken / 1e6:,.1f} MB of the "
                f"{self._limit_bytes / 1e6:,.1f} MB that they may. Unload one, or allow more."
            )


def _adapted(folder: Path, layer: AnswerLayer, base: _Base) -> SharingBackbone:
    """Load an adapter and the head beside it onto the layers of its base."""
    shared = base.layers.backbone
    empty = empty_model(base.folder, layer)
    # PEFT puts an adapter where the weights beside it are, and of their kind: one number stands for all.
    like = torch.zeros((), dtype=next(shared.core.parameters()).dtype, device=shared.device)
    names = empty.base_model.named_parameters()
    stand_ins = {name: like.expand(each.shape) for name, each in names}
    empty.base_model.load_state_dict(stand_ins, strict=False, assign=True)
    adapted = load_adapter(empty, folder)
    # Adapters are multiplied together: what is not finite in one would reach the others.
    check_values(folder, _stored_weights(folder))
    adapter = base.layers.many.adapter_of(adapted)
    model = adapted.get_base_model()
    if layer.purpose == "language":
        model = shared.plain_model
    else:
        share_layers(model, shared)
    return SharingBackbone(
        model,
        shared.tokenizer,
        shared.facts,
        "packed",
        weight_form=shared.weight_form,
        many=base.layers.many,
        adapter=adapter,
    )


def _headed(folder: Path, layer: AnswerLayer, base: _Base) -> SharingBackbone | None:
    """Load the head of a whole model whose other weights are those of its base; None if they are not."""
    shared = base.layers.backbone
    facts = describe(folder)
    model = empty_model(folder, layer)
    if not _read_head(folder, model, base):
        return None
    share_layers(model, shared)
    tokenizer = Tokenizer.load(folder)
    if tokenizer.fingerprint == shared.tokenizer.fingerprint:
        tokenizer = shared.tokenizer
    return SharingBackbone(
        model,
        tokenizer,
        facts,
        "packed",
        weight_form=shared.weight_form,
        many=base.layers.many,
        adapter=None,
    )


def _read_head(folder: Path, model: Any, base: _Base) -> bool:  # noqa: ANN401
    """Give a model the weights of a folder that are not those of a base; False if one of those differs by a bit."""
    prefix = f"{model.base_model_prefix}."
    known = {name.removeprefix(prefix): each for name, each in _stored_weights(base.folder)}
    dtype = next(base.layers.backbone.core.parameters()).dtype
    own: dict[str, torch.Tensor] = {}
    unseen = {name for name, _ in model.base_model.named_parameters()}
    for name, stored in _stored_weights(folder):
        short = name.removeprefix(prefix)
        if short == name:
            own[name] = stored.float()
        elif short not in known or not _is_equal(stored, known[short], dtype):
            return False
        unseen.discard(short)
    check_values(folder, own.items())
    model.load_state_dict(own, strict=False, assign=True)
    return not unseen


def _stored_weights(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as stored:
            for name in stored.keys():  # noqa: SIM118 - it is no mapping
                yield name, stored.get_tensor(name)


def _is_equal(stored: torch.Tensor, known: torch.Tensor, dtype: torch.dtype) -> bool:
    return stored.shape == known.shape and torch.equal(stored.to(dtype), known.to(dtype))

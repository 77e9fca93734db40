"""Models that are loaded together: one backbone for a base and all that were tuned from it.

A LoRA run then costs its matrices, a run whose head alone was tuned its head, and the untuned base nothing. Runs with
other weights, and models of architectures without packed attention, have a backbone of their own. What each answers is
what it answers alone.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from lushan.backbones.inspect import ModelFacts, describe
from lushan.backbones.load import AnswerLayer, WeightForm
from lushan.backbones.many_adapters import Adapter, SharingBackbone, empty_model, share_layers
from lushan.backbones.packed import (
    WeightsSetting,
    choose_weights,
    load_untuned,
    untuned_form,
    weight_bytes,
)
from lushan.backbones.pretrained import check_values
from lushan.backbones.sources import locate
from lushan.backbones.tokenizer import Tokenizer
from lushan.catalog import load_task
from lushan.errors import ModelError, RunError
from lushan.inference.mixed import Question, SharedLayers, predict_together
from lushan.inference.predict import Predictor
from lushan.model_store.shared_base import Apart, Base, BaseKey, Bases, CheckRoom, predicted_bytes
from lushan.model_store.tuned_model import (
    TunedModel,
    base_of,
    is_adapter,
    load_adapter,
    load_predictor,
    make_predictor,
    model_folder,
    read_meaning,
    weights_digest,
)
from lushan.model_store.untuned_model import untuned_predictor
from lushan.records import Example, Prediction
from lushan.tasks import Task


@dataclass(slots=True)
class ResidentModel:
    """A model in memory."""

    name: str
    predictor: Predictor
    num_bytes: int
    """Memory of what is its own."""
    why_alone: str
    """Why it shares its layers with no other; empty where it may."""
    base: Base | None

    @property
    def layers(self) -> SharedLayers | None:
        """What it shares with others; None where it has layers of its own."""
        return None if self.base is None else self.base.layers


class Resident:
    """Models by name, answered together.

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
        self._bases = Bases()
        self._models: dict[str, ResidentModel] = {}

    @property
    def models(self) -> tuple[ResidentModel, ...]:
        """All that are loaded, the oldest first."""
        return tuple(self._models.values())

    @property
    def num_bytes(self) -> int:
        """Memory that all weights take, what is shared counted once; may be asked from any thread."""
        parts: Iterable[Bases | ResidentModel] = (self._bases, *self.models)
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
        self._check_name(name, replaces=replaces)
        model = self._load(name, folder, meaning)
        self._check_room(name, model.num_bytes)
        check(model.predictor)
        self._place(model)
        return name

    def load_untuned(self, folder: Path, *, name: str | None = None, replaces: bool = False) -> str:
        """Load a pretrained model as it is, and give its name; it shares the layers of what was tuned from it.

        An encoder gives its vectors, any other answers conversations.

        Args:
            folder: The model folder.
            name: What it is called here; without one, as the folder is.
            replaces: Whether it takes the place of a model of this name, once it is loaded.

        Raises:
            ModelError: If it cannot be loaded, or the models would take too much memory.
            RunError: If one of this name is loaded.
        """
        name = name or folder.resolve().name
        self._check_name(name, replaces=replaces)
        self._place(self._load_untuned(name, folder))
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
        form = choose_weights(self._weights, meaning.precision)
        base = _base_of_run(
            self._bases,
            folder,
            meaning,
            form=form,
            both_ways=layer.both_ways,
            check_room=partial(self._check_room, name),
        )
        if isinstance(base, Base):
            backbone = _shared_backbone(folder, layer, base)
            if backbone is not None:
                predictor = make_predictor(folder, meaning, backbone)
                return _sharing(name, predictor, backbone, base)
            why = "its weights are not its base's"
        else:
            why = base.why
        del base  # with what was loaded to find that out
        weights = base_of(folder, meaning) if is_adapter(folder) else folder
        self._check_room(name, predicted_bytes(weights, form))
        predictor = load_predictor(folder, weights=self._weights)
        return _apart(name, predictor, why)

    def _load_untuned(self, name: str, folder: Path) -> ResidentModel:
        form = untuned_form(self._weights)
        digest = weights_digest(folder)
        key = BaseKey.of(folder, digest, form, both_ways=False)
        room = partial(self._check_room, name)
        base = self._bases.find(key) or self._bases.load(folder, key, room)
        if isinstance(base, Base):
            backbone = _as_it_is(base)
            return _sharing(name, untuned_predictor(backbone, digest=digest), backbone, base)
        backbone = base.backbone
        if backbone is None:
            room(predicted_bytes(folder, form))
            backbone = load_untuned(folder, purpose="embed", weights=self._weights)
        model = _apart(name, untuned_predictor(backbone, digest=digest), base.why)
        room(model.num_bytes)
        return model

    def _check_name(self, name: str, *, replaces: bool) -> None:
        if name in self._models and not replaces:
            raise RunError(
                f"A model `{name}` is loaded already. Unload it first, or give this one another name."
            )

    def _place(self, model: ResidentModel) -> None:
        if model.name in self._models:
            self.unload(model.name)
        self._models[model.name] = model

    def _check_room(self, name: str, num_bytes: int) -> None:
        taken = self.num_bytes
        if taken + num_bytes > self._limit_bytes:
            raise ModelError(
                f"`{name}` needs {num_bytes / 1e6:,.1f} MB more; models take {taken / 1e6:,.1f} MB of the "
                f"{self._limit_bytes / 1e6:,.1f} MB that they may. Unload one, or allow more."
            )


def _base_of_run(
    bases: Bases,
    folder: Path,
    meaning: TunedModel,
    *,
    form: WeightForm,
    both_ways: bool,
    check_room: CheckRoom,
) -> Base | Apart:
    """Give the base that a tuned model shares with others, loaded if need be; or say why it shares none."""
    if not is_adapter(folder) and meaning.adapter != "head":
        return Apart("its layers were tuned")
    try:
        key = BaseKey.of(locate(meaning.base_model), meaning.base_digest, form, both_ways=both_ways)
        known = bases.find(key)
        weights = base_of(folder, meaning) if known is None else known.folder
    except ModelError:
        if is_adapter(folder):
            raise
        known = bases.find_weights(meaning.base_digest, form, both_ways=both_ways)
        return known or Apart("its base is not on this machine")
    return known or bases.load(weights, key, check_room)


def _sharing(
    name: str, predictor: Predictor, backbone: SharingBackbone, base: Base
) -> ResidentModel:
    num_bytes = weight_bytes(backbone.model, beside=base.layers.backbone.model)
    if backbone.adapter is not None:
        num_bytes += backbone.adapter.num_bytes
    return ResidentModel(name, predictor, num_bytes, "", base)


def _apart(name: str, predictor: Predictor, why: str) -> ResidentModel:
    return ResidentModel(name, predictor, weight_bytes(predictor.backbone.model), why, None)


def _shared_backbone(folder: Path, layer: AnswerLayer, base: Base) -> SharingBackbone | None:
    """Load what a tuned model has of its own; None if that is more than its base can share."""
    return _adapted(folder, layer, base) if is_adapter(folder) else _headed(folder, layer, base)


def _as_it_is(base: Base) -> SharingBackbone:
    """Give the base itself, as one of the models that share it."""
    return _on_layers_of(base, base.layers.backbone.model)


def _on_layers_of(
    base: Base,
    model: Any,  # noqa: ANN401 - any architecture
    *,
    tokenizer: Tokenizer | None = None,
    facts: ModelFacts | None = None,
    adapter: Adapter | None = None,
) -> SharingBackbone:
    """Put a model onto the layers of its base; what it has not of its own is the base's."""
    shared = base.layers.backbone
    return SharingBackbone(
        model,
        tokenizer or shared.tokenizer,
        facts or shared.facts,
        "packed",
        weight_form=shared.weight_form,
        many=base.layers.many,
        adapter=adapter,
    )


def _adapted(folder: Path, layer: AnswerLayer, base: Base) -> SharingBackbone:
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
    adapter = base.layers.many.adapter_of(adapted, folder)
    model = adapted.get_base_model()
    if layer.purpose == "language":
        model = shared.plain_model
    else:
        share_layers(model, shared)
    return _on_layers_of(
        base, model, tokenizer=shared.tokenizer.with_chat_of(folder), adapter=adapter
    )


def _headed(folder: Path, layer: AnswerLayer, base: Base) -> SharingBackbone | None:
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
    return _on_layers_of(base, model, tokenizer=tokenizer, facts=facts)


def _read_head(folder: Path, model: Any, base: Base) -> bool:  # noqa: ANN401
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

"""A tuned model on disk: plain Hugging Face or PEFT files, and `lushan.json` with what they do not say.

The labels, the prompt's rules, the length limit and the precision are saved with the model and never
re-derived, so that it is never asked in another way than it was trained.
"""

import contextlib
import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from lushan.atomic import new_folder, write_json
from lushan.backbones.encoding import LengthLimit
from lushan.backbones.inspect import read_json
from lushan.backbones.load import Backbone, load_backbone
from lushan.backbones.lora import compute_in_one_piece
from lushan.backbones.packed import arithmetic_of, choose_weights, pack_weights
from lushan.backbones.quiet import quiet_transformers
from lushan.backbones.sources import locate
from lushan.catalog import load_task
from lushan.errors import ModelError, RunError
from lushan.inference.generate import named_stop_ids
from lushan.inference.generation_settings import GenerationSettings
from lushan.inference.predict import Predictor
from lushan.records import AnswerMode, TaskState
from lushan.tasks import Task

SCHEMA_VERSION = 1
_FILE = "lushan.json"
_GENERATION_FILE = "generation_config.json"
_ADAPTER_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class TunedModel:
    """What a model folder means."""

    task: str
    answer: AnswerMode
    state: TaskState
    limit: LengthLimit
    precision: Literal["bf16", "fp32"]
    adapter: str
    """`full`, `lora`, `head` or `top:N`."""
    base_model: str
    """Name or folder of the pretrained model."""
    base_digest: str
    """SHA-256 of the base model's weights; an adapter is refused on others."""
    tokenizer_fingerprint: str
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    """How answers are written, by a task that writes them."""
    schema_version: int = SCHEMA_VERSION


def save_model(folder: Path, backbone: Backbone, meaning: TunedModel) -> None:
    """Write a model folder; beside, then renamed, so that a folder of this name is always whole.

    Raises:
        RunError: If it cannot be written.
    """
    with new_folder(folder) as beside:
        try:
            with quiet_transformers(), plain_attention(backbone):
                backbone.model.save_pretrained(beside)
                _name_end_of_turn(beside, backbone)
        except SafetensorError as error:  # a full disk is no OSError there
            raise RunError(
                f"`{folder}` cannot be written: {error}. Make room, then do it again; a run goes on with `--resume`."
            ) from None
        backbone.tokenizer.save(beside)
        write_meaning(beside, meaning)
        for file in beside.iterdir():
            file.chmod(0o644)  # transformers leaves weights unreadable for other users


def _name_end_of_turn(folder: Path, backbone: Backbone) -> None:
    """Have other programs stop where the chat template ends a turn, if the model's generation settings name another token."""
    config = getattr(backbone.plain_model, "generation_config", None)
    named, tokenizer = named_stop_ids(backbone), backbone.tokenizer
    unnamed = tokenizer.stop_ids.difference([tokenizer.stop_id, *named])
    if config is None or not unnamed:
        return
    config.save_pretrained(folder)  # an adapter comes without
    # The first may be taken for the only one.
    ends = [*(named or tokenizer.stop_ids - unnamed), *unnamed]
    file = folder / _GENERATION_FILE
    # What is marked as made from `config.json`, earlier versions of transformers make from it again.
    write_json(file, read_json(file) | {"eos_token_id": ends, "_from_model_config": False})


def write_meaning(folder: Path, meaning: TunedModel) -> None:
    """Write `lushan.json`: what the other files of a model do not say.

    Worked examples stay out: they are training rows, which whoever gets the model need not see and no saved model is asked with.
    """
    told = dataclasses.replace(meaning, state=dataclasses.replace(meaning.state, shots=()))
    values = {**dataclasses.asdict(told), "generation": meaning.generation.model_dump()}
    text = json.dumps(values, ensure_ascii=False, indent=1)
    (folder / _FILE).write_text(text + "\n", encoding="utf-8")


@contextlib.contextmanager
def plain_attention(backbone: Backbone) -> Any:  # noqa: ANN401
    """Leave the name of Lushan's attention out of a configuration that is saved meanwhile."""
    config = backbone.core.config
    ours = config._attn_implementation
    config._attn_implementation = None
    try:
        yield
    finally:
        config._attn_implementation = ours


def is_tuned_model(folder: Path) -> bool:
    """Whether this is a run folder with a tuned model, or its `model` folder; one that is broken counts."""
    return any(_tells_meaning(each / _FILE) for each in (folder, folder / "model"))


def _tells_meaning(file: Path) -> bool:
    """A model of the cache has a file of this name too, which tells where it came from."""
    if not file.is_file():
        return False
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return True
    return not isinstance(values, dict) or not values.keys().isdisjoint({"task", "state"})


def read_meaning(folder: Path) -> TunedModel:
    """Read what a model folder means.

    Raises:
        RunError: If it is no tuned model, or was written by a newer version.
    """
    file = folder / _FILE
    if not file.is_file():
        raise RunError(
            f"`{folder}` holds no tuned model: `{_FILE}` is missing. Expected the folder that "
            "`lushan tune --out` wrote; a run that was stopped goes on with `--resume`."
        )
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        version = values["schema_version"]
        if version > SCHEMA_VERSION:
            raise RunError(
                f"`{file}` has schema version {version}; this Lushan reads up to {SCHEMA_VERSION}. Update Lushan."
            )
        values["state"] = _read_state(values["state"])
        values["limit"] = LengthLimit(**values["limit"])
        values["generation"] = GenerationSettings(**values.get("generation", {}))
        return TunedModel(**values)
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"`{file}` is broken: {error!r}. Tune again, or restore the file.") from None


def _read_state(values: dict[str, Any]) -> TaskState:
    return TaskState(
        labels=tuple(values["labels"]),
        multi_label=values["multi_label"],
        class_weights=tuple(values["class_weights"]),
        instruction=values["instruction"],
        stop_strings=tuple(values.get("stop_strings", ())),
        most_items=values.get("most_items", 0),
        longest_name=values.get("longest_name", 0),
        both_ways=values.get("both_ways", False),
        lengths=tuple(values.get("lengths", ())),
        no_answer_threshold=values.get("no_answer_threshold"),
        positive_label=values.get("positive_label"),
    )


def model_folder(run: Path) -> Path:
    """Give the `model` folder of a run; what has none is taken for a model folder itself."""
    return run / "model" if (run / "model").is_dir() else run


def load_predictor(
    run: Path,
    *,
    precision: Literal["bf16", "fp32"] | None = None,
    weights: str | None = None,
) -> Predictor:
    """Load the tuned model of a run folder, or of its `model` folder.

    Args:
        run: The folder.
        precision: Arithmetic; None takes that of the run.
        weights: How weights are held for answering, one of `WeightsSetting`, in place of `precision`; None leaves them
            as they are trained.

    Raises:
        RunError: If there is no whole tuned model.
        ModelError: If the base of an adapter is missing or is not the one it was trained on.
        SettingError: If weights cannot be held so.
    """
    folder = model_folder(run)
    meaning = read_meaning(folder)
    form = None if weights is None else choose_weights(weights, meaning.precision)
    if form is not None:
        precision = arithmetic_of(form)
    base = base_of(folder, meaning) if is_adapter(folder) else folder
    task: Task = load_task(meaning.task)
    layer = task.layer(meaning.state, answer=meaning.answer)
    backbone = load_backbone(base, **layer._asdict(), precision=precision or meaning.precision)
    if is_adapter(folder):
        backbone.model = load_adapter(backbone.model, folder)
        backbone.tokenizer = backbone.tokenizer.with_chat_of(folder)
        compute_in_one_piece(backbone.model)
    elif meaning.answer == "head" and backbone.fresh_weights:
        name = backbone.fresh_weights[0]
        raise RunError(f"`{folder}` lacks weights, such as `{name}`, or has them for other labels.")
    if form is not None:
        pack_weights(backbone, form)
    return make_predictor(folder, meaning, backbone)


def is_adapter(folder: Path) -> bool:
    """Whether a model folder holds an adapter, and not whole weights."""
    return (folder / "adapter_config.json").is_file()


def base_of(folder: Path, meaning: TunedModel) -> Path:
    """Find the base of an adapter.

    Raises:
        ModelError: If it is missing or is not the one that the adapter was trained on.
    """
    base = locate(meaning.base_model)
    if weights_digest(base) != meaning.base_digest:
        raise ModelError(
            f"`{folder}` is an adapter of `{meaning.base_model}`, but the weights in `{base}` are others. "
            "Restore the model that it was trained on."
        )
    return base


def make_predictor(folder: Path, meaning: TunedModel, backbone: Backbone) -> Predictor:
    """Put together what answers for a model folder, once its weights are there.

    Raises:
        RunError: If the tokenizer is another than in training.
    """
    if backbone.tokenizer.fingerprint != meaning.tokenizer_fingerprint:
        base = meaning.base_model if is_adapter(folder) else folder
        raise RunError(f"The tokenizer in `{base}` is not the one that the model was trained with.")
    return Predictor(
        backbone,
        load_task(meaning.task),
        meaning.state,
        meaning.answer,
        meaning.limit,
        version=model_version(folder),
        generation=meaning.generation,
    )


def load_adapter(model: Any, folder: Path) -> Any:  # noqa: ANN401
    """Wrap a `transformers` model in the PEFT model of an adapter's folder.

    Args:
        model: Changed in place. What the adapter brings whole may be without memory in it, on the device `meta`.
        folder: Where the adapter is.

    Raises:
        RunError: If the adapter is not whole, or does not fit.
    """
    from peft import PeftModel, get_peft_model_state_dict  # slow to import, rarely needed

    try:
        with quiet_transformers(), safe_open(folder / _ADAPTER_WEIGHTS, "pt") as file:
            found = set(file.keys())
            adapted = PeftModel.from_pretrained(
                model,
                str(folder),
                autocast_adapter_dtype=False,
                low_cpu_mem_usage=True,  # nothing is drawn that is then replaced
            ).eval()
    except KeyError as error:
        raise RunError(
            f"`{folder}` lacks `{error.args[0]}`, without which its adapter cannot be loaded."
        ) from None
    except (OSError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
        raise RunError(f"The adapter in `{folder}` cannot be loaded: {error}") from None
    # PEFT leaves what a file lacks as it was drawn anew, and says nothing.
    expected = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    if missing := sorted(expected.keys() - found):
        raise RunError(f"`{folder}` lacks weights, such as `{missing[0]}`.")
    return adapted


def weights_digest(folder: Path) -> str:
    """SHA-256 over the names and contents of a folder's safetensors files."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def model_version(folder: Path) -> str:
    """Short digest of a tuned model: its weights and its meaning."""
    digest = hashlib.sha256(weights_digest(folder).encode())
    digest.update((folder / _FILE).read_bytes())
    return digest.hexdigest()[:12]

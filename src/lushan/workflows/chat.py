"""Talk to a model line by line: a conversation with one that chats, the task's answers of one that was tuned on another."""

import json
import time
from collections.abc import Generator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from lushan.atomic import write_text
from lushan.backbones.encoding import LengthLimit
from lushan.backbones.inspect import describe
from lushan.backbones.packed import describe_weights, load_untuned
from lushan.backbones.sources import expanded, locate
from lushan.catalog import load_task
from lushan.errors import DataError, FullDiskError, ModelError, RunError, SettingError
from lushan.inference.generate import stream
from lushan.inference.predict import Predictor
from lushan.inference.prefix_store import PrefixStore
from lushan.model_store.tuned_model import is_tuned_model
from lushan.model_store.untuned_model import untuned_generation, untuned_state
from lushan.records import Prediction, Row, Span, Triple, plain_answer
from lushan.settings import build
from lushan.workflows.predict import Opened, Tell, open_run, told_cut, with_generation
from lushan.workflows.recipe import TuneRecipe

CHAT_TASK = "dialogue"
"""The task whose models chat; it writes the conversations of untuned models too."""
MOST_PROBABILITIES = 5
_NOTHING_WRITTEN = {
    "reply": "",
    "ended": "interrupted",
    "num_prompt_tokens": 0,
    "num_reused_tokens": 0,
    "num_cut_tokens": 0,
    "num_new_tokens": 0,
    "seconds": 0.0,
}


class Talk(Protocol):
    """Somebody to talk to."""

    last: dict[str, Any]
    """What `--json` prints of the last reply, also of one that was stopped."""

    def ask(self, line: str) -> Generator[str]:
        """Answer, in pieces; what is wrong with the line is told before the first.

        Raises:
            DataError: If the line cannot be asked.
        """
        ...

    def reset(self) -> None:
        """Forget what was said.

        Raises:
            SettingError: If nothing is remembered.
        """
        ...

    def set_system(self, text: str) -> None:
        """Say how to behave; no text takes that back.

        Raises:
            SettingError: If that has no effect.
        """
        ...

    def rows(self) -> list[dict[str, Any]]:
        """Give what was said as rows of a JSON Lines file."""
        ...


class Conversation:
    """A chat of several turns; where it is longer than the model reads, the oldest leave."""

    def __init__(self, predictor: Predictor, *, tell: Tell, knows_length: bool = False) -> None:
        """Begin one.

        Args:
            predictor: Of the task that chats.
            tell: Takes one line for a person.
            knows_length: Whether the person said how long a reply may be.
        """
        limit = replace(predictor.limit, policy="truncate")
        self._predictor = replace(predictor, limit=limit)
        self._own_instruction = predictor.state.instruction
        self._tell = tell
        self._messages: list[dict[str, str]] = []
        self._has_told_of_cut, self._has_told_of_end = False, knows_length
        self._prefixes = PrefixStore(predictor.backbone.facts.context_tokens)
        self.last: dict[str, Any] = {}

    def ask(self, line: str) -> Generator[str]:
        """Answer the next turn; left half-way, it stays in the conversation as far as it was written."""
        self.last = dict(_NOTHING_WRITTEN)
        said = {"role": "user", "content": line}
        row = Row({"messages": [*self._messages, said]}, "chat", len(self._messages) // 2 + 1)
        example = self._predictor.task.read(row, needs_target=False)
        (features,) = self._predictor.encode([example])
        if features.num_cut_tokens and not self._has_told_of_cut:
            self._has_told_of_cut = True
            self._tell(
                f"The conversation is longer than the {self._predictor.asked_limit.max_tokens:,} tokens that are read: from "
                "now on its oldest turns are left out, the system's never."
            )
        return self._reply(said, features.token_ids, num_cut_tokens=features.num_cut_tokens)

    def _reply(
        self, said: dict[str, str], prompt_ids: tuple[int, ...], *, num_cut_tokens: int
    ) -> Generator[str]:
        predictor, started = self._predictor, time.perf_counter()
        stop_strings = (*predictor.generation.stop_strings, *predictor.state.stop_strings)
        settings = predictor.generation.model_copy(update={"stop_strings": stop_strings})
        pieces: list[str] = []
        num_tokens, num_reused, ended = 0, 0, None
        try:
            for event in stream(
                predictor.backbone, [prompt_ids], settings, prefixes=self._prefixes
            ):
                num_tokens, ended = num_tokens + 1, event.ended
                num_reused = event.num_reused_tokens
                pieces.append(event.text)
                if event.text:
                    yield event.text
        finally:
            reply = "".join(pieces).strip()
            if reply:
                self._messages += [said, {"role": "assistant", "content": reply}]
            elif ended:
                self._tell("The model wrote nothing: what you said is not remembered either.")
            if ended == "length" and not self._has_told_of_end:
                self._has_told_of_end = True
                self._tell(
                    f" [ended at {num_tokens:,} tokens; `--set generation.max_new_tokens=N` lets replies be longer]"
                )
            self.last = {
                "reply": reply,
                "ended": ended or "interrupted",
                "num_prompt_tokens": len(prompt_ids),
                "num_reused_tokens": num_reused,
                "num_cut_tokens": num_cut_tokens,
                "num_new_tokens": num_tokens,
                "seconds": time.perf_counter() - started,
            }

    def reset(self) -> None:
        """Forget all turns; what the system says stays."""
        self._messages.clear()

    def set_system(self, text: str) -> None:
        """Say how to behave from the next turn on; no text takes that back, to what a run was tuned with."""
        state = replace(self._predictor.state, instruction=text or self._own_instruction)
        self._predictor = replace(self._predictor, state=state)

    def rows(self) -> list[dict[str, Any]]:
        """Give the conversation as one row, which the task that chats can learn from."""
        instruction = self._predictor.state.instruction
        system = [] if instruction is None else [{"role": "system", "content": instruction}]
        return [{"messages": [*system, *self._messages]}] if self._messages else []


class LineAnswers:
    """A model of another task: every line is a row of its own."""

    def __init__(self, opened: Opened, *, tell: Tell) -> None:
        self._opened = opened
        self._tell = tell
        self._rows: list[dict[str, Any]] = []
        self.last: dict[str, Any] = {}

    @property
    def columns(self) -> tuple[str, ...]:
        """What a row must have; a line that is no JSON object is the only one."""
        wanted = self._opened.predictor.task.columns
        return (wanted.required[0], *wanted.asked_with)

    def ask(self, line: str) -> Generator[str]:
        """Answer a text, or a row that is written as a JSON object."""
        self.last = {
            "answer": None,
            "probabilities": {},
            "log_likelihood": None,
            "model_version": self._opened.version,
        }
        row = self._row(line)
        (prediction,) = self._opened.predict([row])
        likely = dict(_likeliest(prediction))
        self.last |= {
            "answer": plain_answer(prediction.answer),
            "probabilities": dict(prediction.probabilities),
            "log_likelihood": prediction.log_likelihood,
        }
        if prediction.num_cut_tokens:
            self.last["num_cut_tokens"] = prediction.num_cut_tokens
            self._tell(told_cut(self._opened.predictor, 1, 1))
        self._rows.append({**row, **self.last})
        told = ", ".join(f"{name} {value:.3f}" for name, value in likely.items())
        return (piece for piece in (_shown(prediction), f"\n  {told}" if told else ""))

    def _row(self, line: str) -> Mapping[str, Any]:
        first, *others = self.columns
        if line.startswith("{"):
            try:
                return json.loads(line)
            except (ValueError, RecursionError) as error:
                if others:
                    raise DataError(f"The line is no JSON object: {error}.") from None
        if others:
            raise DataError(
                f"A model of the task `{self._opened.task_name}` needs {', '.join(f'`{name}`' for name in self.columns)}. "
                f"Write one JSON object on the line: {json.dumps(dict.fromkeys(self.columns, '...'))}."
            )
        return {first: line}

    def reset(self) -> None:
        """Refuse: nothing is remembered."""
        raise self._without_effect("/reset")

    def set_system(self, text: str) -> None:
        """Refuse: nobody is spoken to."""
        raise self._without_effect("A system message")

    def rows(self) -> list[dict[str, Any]]:
        """Give every row that was asked, with its answer."""
        return list(self._rows)

    def _without_effect(self, what: str) -> SettingError:
        return SettingError(
            f"{what} has no effect here: a model of the task `{self._opened.task_name}` answers each line by itself."
        )


def _likeliest(prediction: Prediction) -> list[tuple[str, float]]:
    ranked = sorted(prediction.probabilities.items(), key=lambda each: -each[1])
    return ranked[:MOST_PROBABILITIES]


def _shown(prediction: Prediction) -> str:
    """The answer for a person: a text, labels, or one line for every part of the text."""
    if isinstance(prediction.answer, str):
        return prediction.answer
    parts = [_shown_part(each) for each in prediction.answer]
    if not parts:
        return "(nothing)"
    has_places = any(isinstance(each, Span | Triple) for each in prediction.answer)
    return ("\n" if has_places else ", ").join(parts)


def _shown_part(part: str | Span | Triple) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Triple):
        return part.shown
    sure = "" if part.probability is None else f" {part.probability:.3f}"
    return f"{part.text} [{part.label}]{sure}"


def open_chat(
    name: str,
    *,
    system: str | None,
    settings: Mapping[str, Any],
    seed: int,
    weights: str = "auto",
    tell: Tell,
) -> Talk:
    """Load somebody to talk to.

    Args:
        name: A run folder, its `model` folder, or a pretrained model by name or folder.
        system: How to behave; None leaves it to the model.
        settings: `generation`, nested; else that of the run, or the defaults.
        seed: Of the draws, where `settings` names none.
        weights: How weights are held, one of `WeightsSetting`.
        tell: Takes one line for a person.

    Raises:
        ModelError: If the model is missing, or cannot write.
        RunError: If a tuned model is broken.
        SettingError: If a setting has no effect here.
    """
    # A run may have been measured on several answers to a row; a line gets one.
    generation = {"seed": seed, **_generation_of(settings), "num_return_sequences": 1}
    folder = expanded(name)
    if is_tuned_model(folder):
        opened = open_run(folder, weights=weights, tell=tell)
        if opened.task_name != CHAT_TASK:
            talk = LineAnswers(_written_so(opened, settings, generation), tell=tell)
            if system is not None:
                talk.set_system(system)
            return talk
        predictor = opened.predictor
    else:
        _refuse_unfinished(folder)
        predictor = _untuned(locate(name), weights=weights, tell=tell)
    talk = Conversation(
        with_generation(predictor, generation, CHAT_TASK),
        tell=tell,
        knows_length="max_new_tokens" in generation,
    )
    if system is not None:
        talk.set_system(system)
    return talk


def _generation_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that were given, checked."""
    for part in settings:
        if part != "generation":
            raise SettingError(f"Setting `{part}` has no effect here. What counts: `generation`.")
    recipe = build(TuneRecipe, settings, source="--set")
    given = recipe.generation.model_dump(exclude_unset=True)
    if "num_return_sequences" in given:
        raise SettingError(
            "Setting `generation.num_return_sequences` has no effect here: a line gets one reply. Remove it."
        )
    return given


def _written_so(
    opened: Opened, settings: Mapping[str, Any], generation: Mapping[str, Any]
) -> Opened:
    """Have a tuned model that writes do so in another way; the seed alone is no setting that was given."""
    if not opened.predictor.writes and not settings:
        return opened
    predictor = with_generation(opened.predictor, generation, opened.task_name)
    return replace(opened, predictor=predictor)


def _refuse_unfinished(folder: Path) -> None:
    if (folder / "recipe.yaml").is_file():
        raise RunError(
            f"`{folder}` holds a run without a tuned model. Finish it with `lushan tune ... --resume`."
        )


def _untuned(folder: Path, *, weights: str, tell: Tell) -> Predictor:
    """Give a pretrained model as it is, with the renderer of the task that chats."""
    facts = describe(folder)
    if facts.family == "encoder":
        raise ModelError(
            f"`{folder.name}` is an encoder: it fills gaps and cannot chat. Choose a decoder (`lushan models list`), or "
            "a run that was tuned on it, which answers line by line."
        )
    backbone = load_untuned(folder, purpose="language", weights=weights)
    if weights != "auto":
        tell(describe_weights(backbone))
    if backbone.tokenizer.chat.is_plain:
        tell(
            f"`{folder.name}` has no chat template: it is a base model, and the turns are written as `User:` and "
            "`Assistant:`."
        )
    limit = LengthLimit(facts.context_tokens, "truncate")
    return Predictor(
        backbone,
        load_task(CHAT_TASK),
        untuned_state(backbone),
        "generate",
        limit,
        generation=untuned_generation(backbone),
    )


def save_talk(talk: Talk, file: Path) -> int:
    """Write what was said into a new JSON Lines file; gives the number of its rows.

    Raises:
        RunError: If the file is there or cannot be written, or nothing was said yet.
    """
    rows = talk.rows()
    if not rows:
        raise RunError("Nothing was said yet: there is nothing to save.")
    try:
        if file.exists():
            raise RunError(f"`{file}` is there already. Name another file.")
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))
    except FullDiskError:  # says all that
        raise
    except OSError as error:
        raise RunError(f"`{file}` cannot be written: {error}. Name another file.") from None
    return len(rows)

"""Talking to a model: what it reads is what `transformers` would write, and what it says is remembered."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from lushan.backbones import packed
from lushan.backbones.encoding import LengthLimit
from lushan.backbones.hardware import Choice
from lushan.backbones.load import load_backbone
from lushan.backbones.sources import RECORD_FILE
from lushan.errors import DataError, LushanError, ModelError, RunError, SettingError
from lushan.inference.draft import TokenEvent
from lushan.inference.generate import stream
from lushan.inference.generation_settings import GenerationSettings
from lushan.inference.predict import Predictor
from lushan.model_store.tuned_model import save_model
from lushan.records import Mention, Prediction, Span, TaskState, Triple
from lushan.workflows import chat as module
from lushan.workflows.chat import Conversation, LineAnswers, Talk, open_chat, save_talk
from lushan.workflows.predict import Opened, open_run
from tests.conftest import MakeTiny
from tests.saved import meaning_of
from tests.tiny import write_turns
from tests.unit.backbones.test_tokenizer import change

TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
BRIEF: dict[str, Any] = {"generation": {"max_new_tokens": 8}}


@pytest.fixture(autouse=True)
def _measures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "choose_precision", lambda *_, **__: Choice("fp32", "a test"))


@pytest.fixture
def folder(tiny_folder: MakeTiny, tmp_path: Path) -> Path:
    return change(tiny_folder("llama"), tmp_path / "tiny", chat_template=TEMPLATE)


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Record what is read before each reply."""
    seen: list[list[int]] = []

    def recorded(
        backbone: Any,  # noqa: ANN401
        asked: Any,  # noqa: ANN401
        settings: Any,  # noqa: ANN401
        **options: Any,  # noqa: ANN401
    ) -> Iterator[TokenEvent]:
        seen.append(list(asked[0]))
        return stream(backbone, asked, settings, **options)

    monkeypatch.setattr(module, "stream", recorded)
    return seen


def talk_to(
    name: object, *, settings: dict[str, Any] = BRIEF, system: str | None = None, seed: int = 0
) -> tuple[Talk, list[str]]:
    told: list[str] = []
    talk = open_chat(str(name), system=system, settings=settings, seed=seed, tell=told.append)
    return talk, told


def say(talk: Talk, line: str) -> str:
    return "".join(talk.ask(line))


def their_ids(folder: Path, messages: list[dict[str, str]]) -> list[int]:
    """What `transformers` reads."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    written = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tokenizer(written)["input_ids"]


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_every_turn_is_read_as_transformers_writes_it(
    folder: Path, prompts: list[list[int]]
) -> None:
    talk, told = talk_to(folder, system="Be kind.")
    first = say(talk, "Hi")
    say(talk, "Why?")
    messages = [turn("system", "Be kind."), turn("user", "Hi")]
    assert prompts[0] == their_ids(folder, messages)
    messages += [turn("assistant", first.strip()), turn("user", "Why?")]
    assert prompts[1] == their_ids(folder, messages)
    assert talk.last["num_prompt_tokens"] == len(prompts[1])
    assert told == []


def test_reply_is_told_in_pieces_and_then_with_its_facts(folder: Path) -> None:
    talk, _ = talk_to(folder)
    pieces = list(talk.ask("Hi"))
    assert len(pieces) > 1
    assert talk.last["reply"] == "".join(pieces).strip()
    assert (talk.last["ended"], talk.last["num_new_tokens"]) == ("length", 8)
    assert json.loads(json.dumps(talk.last)) == talk.last


def test_reply_that_ends_at_a_length_nobody_named_is_told_once(folder: Path) -> None:
    talk, told = talk_to(folder, settings={})
    assert say(talk, "Hi")
    say(talk, "Why?")
    assert talk.last["num_new_tokens"] == 64  # half of the context
    (line,) = (each for each in told if "max_new_tokens" in each)
    assert "[ended at 64 tokens" in line


def test_oldest_turns_leave_when_the_context_is_full_and_that_is_said_once(
    folder: Path, prompts: list[list[int]]
) -> None:
    talk, told = talk_to(folder, system="Be kind.")
    said = [f"{number} " + "la" * 6 for number in range(9)]
    replies = [say(talk, each).strip() for each in said]
    assert max(map(len, prompts)) <= 128 - 8
    (line,) = told
    assert "longer than the 120 tokens that are read" in line
    turns = zip(said, replies, strict=True)
    messages = [turn(*pair) for one, two in turns for pair in (("user", one), ("assistant", two))]
    kept = [
        their_ids(folder, [turn("system", "Be kind."), *messages[first:-1]])
        for first in range(0, len(messages), 2)
    ]
    assert prompts[-1] == next(each for each in kept if len(each) <= 120)
    assert talk.rows()[0]["messages"][1:] == messages


def test_reply_that_was_stopped_stays_as_far_as_it_was_written(
    folder: Path, prompts: list[list[int]]
) -> None:
    talk, _ = talk_to(folder)
    reply = talk.ask("Hi")
    begun = next(reply)
    reply.close()
    assert (talk.last["ended"], talk.last["reply"]) == ("interrupted", begun.strip())
    say(talk, "Go on")
    expected = [turn("user", "Hi"), turn("assistant", begun.strip()), turn("user", "Go on")]
    assert prompts[1] == their_ids(folder, expected)


def interrupt(*_: object) -> None:
    """Be stopped by Ctrl-C."""
    raise KeyboardInterrupt


def test_reply_that_was_stopped_before_it_began_is_not_the_one_before(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk, _ = talk_to(folder)
    say(talk, "Hi")
    before = talk.last
    monkeypatch.setattr(Predictor, "encode", interrupt)
    with pytest.raises(KeyboardInterrupt):
        talk.ask("Why?")
    assert (talk.last["ended"], talk.last["reply"]) == ("interrupted", "")
    assert talk.last.keys() == before.keys()


def test_blank_reply_leaves_no_turn_and_that_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk, told = talk_to(folder)
    say(talk, "Hi")
    before = talk.rows()
    blank = TokenEvent(0, 0, 1, 0.0, " ", "stop")
    monkeypatch.setattr(module, "stream", lambda *_, **__: iter([blank]))
    say(talk, "And?")
    assert talk.rows() == before
    assert told == ["The model wrote nothing: what you said is not remembered either."]


def test_answer_to_a_line_that_was_stopped_is_not_the_one_before(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk, _ = talk_to(tiny_run, settings={})
    say(talk, "The boat sailed.")
    before = talk.last
    monkeypatch.setattr(Opened, "predict", interrupt)
    with pytest.raises(KeyboardInterrupt):
        talk.ask("The hill is high.")
    assert talk.last == {**before, "answer": None, "probabilities": {}, "log_likelihood": None}
    assert len(talk.rows()) == 1


def test_turns_are_forgotten_and_the_system_message_changes_from_the_next_turn_on(
    folder: Path, prompts: list[list[int]]
) -> None:
    talk, _ = talk_to(folder)
    say(talk, "Hi")
    talk.set_system("Be brief.")
    talk.reset()
    say(talk, "Why?")
    talk.set_system("")
    talk.reset()
    say(talk, "Why?")
    assert prompts[1] == their_ids(folder, [turn("system", "Be brief."), turn("user", "Why?")])
    assert prompts[2] == their_ids(folder, [turn("user", "Why?")])


def test_draws_follow_the_seed(folder: Path) -> None:
    settings: dict[str, Any] = {"generation": {"max_new_tokens": 8, "temperature": 2.0}}
    replies = [say(talk_to(folder, settings=settings, seed=seed)[0], "Hi") for seed in (1, 1, 2)]
    assert replies[0] == replies[1] != replies[2]


def test_base_model_is_written_to_in_plain_words_and_ends_before_it_speaks_for_the_user(
    tiny_folder: MakeTiny, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    talk, told = talk_to(tiny_folder("llama"))
    assert "has no chat template" in told[0]
    say(talk, "Hi")
    assert (
        prompts[0]
        == AutoTokenizer.from_pretrained(tiny_folder("llama"))("User: Hi\n\nAssistant:")[
            "input_ids"
        ]
    )
    seen: list[Any] = []
    monkeypatch.setattr(module, "stream", lambda *call, **_: seen.append(call) or iter(()))
    say(talk, "Hi")
    assert seen[0][2].stop_strings == ("\n\nUser:",)


def test_reply_ends_where_the_chat_template_ends_a_turn(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    base = write_turns(tiny_folder("llama"), tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"].zero_()  # all tokens are then as likely, and the first is written
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    talk, _ = talk_to(base)
    assert say(talk, "Hi") == ""
    assert (talk.last["ended"], talk.last["num_new_tokens"]) == ("stop", 1)


def test_model_of_the_cache_may_be_named_by_its_folder(folder: Path, tmp_path: Path) -> None:
    (folder / RECORD_FILE).write_text('{"schema_version": 1, "name": "tiny"}', encoding="utf-8")
    talk, _ = talk_to(folder)
    assert isinstance(talk, Conversation)
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "lushan.json").write_text("{", encoding="utf-8")
    with pytest.raises(RunError, match=r"lushan\.json` is broken"):
        talk_to(tmp_path / "run")


def test_turn_that_holds_a_mark_of_the_model_is_refused_and_not_remembered(folder: Path) -> None:
    talk, _ = talk_to(folder)
    with pytest.raises(DataError, match="a message holds `<eos>`"):
        talk.ask("Hi<eos>")
    assert talk.rows() == []


def test_run_that_was_tuned_to_chat_keeps_its_instruction_and_its_stop_strings(
    folder: Path, tmp_path: Path, prompts: list[list[int]]
) -> None:
    backbone = load_backbone(folder, purpose="language")
    state = TaskState(instruction="Be kind.")
    meaning = replace(meaning_of(backbone, folder, "generate", state), task="dialogue")
    save_model(tmp_path / "run" / "model", backbone, meaning)
    talk, _ = talk_to(tmp_path / "run")
    assert isinstance(talk, Conversation)
    talk.set_system("Be brief.")
    talk.set_system("")
    say(talk, "Hi")
    assert prompts == [their_ids(folder, [turn("system", "Be kind."), turn("user", "Hi")])]


@pytest.mark.parametrize("given", [{}, {"temperature": 0.0}])
def test_run_that_was_measured_on_several_answers_gives_one(
    given: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    backbone = load_backbone(folder, purpose="language")
    own = GenerationSettings(max_new_tokens=8, temperature=2.0, num_return_sequences=3)
    meaning = meaning_of(backbone, folder, "generate", TaskState())
    meaning = replace(meaning, task="dialogue", generation=own)
    save_model(tmp_path / "run" / "model", backbone, meaning)
    talk, _ = talk_to(tmp_path / "run", settings={"generation": given} if given else {})
    reply = say(talk, "Hi").strip()
    assert talk.last["reply"] == reply
    assert talk.last["num_new_tokens"] <= 8


def test_run_of_another_task_answers_each_line_as_predict_does(tiny_run: Path) -> None:
    talk, _ = talk_to(tiny_run, settings={})
    (expected,) = open_run(tiny_run).predict(["The boat sailed."])
    shown = say(talk, "The boat sailed.")
    assert isinstance(talk, LineAnswers)
    assert shown.startswith(f"{expected.answer}\n  {expected.answer} 0.")
    assert talk.last["answer"] == expected.answer
    assert talk.last["probabilities"] == dict(expected.probabilities)
    assert say(talk, '{"text": "The boat sailed."}') == shown
    say(talk, "{name}, the boat sailed.")
    assert talk.rows().pop()["text"] == "{name}, the boat sailed."
    assert [row["text"] for row in talk.rows()][:2] == ["The boat sailed."] * 2


def test_line_that_is_cut_is_told(tiny_run: Path) -> None:
    opened, told = open_run(tiny_run), list[str]()
    limit = LengthLimit(4, "truncate")
    talk = LineAnswers(
        replace(opened, predictor=replace(opened.predictor, limit=limit)), tell=told.append
    )
    say(talk, "The boat sailed over the sea, and came home in spring.")
    assert talk.last["num_cut_tokens"] > 0
    assert len(told) == 1
    assert "1 of 1 rows were longer than 4 tokens and were cut" in told[0]
    say(talk, "No")
    assert "num_cut_tokens" not in talk.last
    assert len(told) == 1


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        (("a", "b"), "a, b"),
        ((), "(nothing)"),
        ((Span(0, 3, "animal", "fox", 0.5), Span(4, 5, "x", "y")), "fox [animal] 0.500\ny [x]"),
        (
            (Triple(Mention("Ada", 0, 3), "in", Mention("Ulm", 7, 10)),) * 2,
            "Ada \u2014 in \u2192 Ulm\nAda \u2014 in \u2192 Ulm",
        ),
    ],
)
def test_answers_of_several_parts_are_shown_by_their_parts(answer: Any, shown: str) -> None:  # noqa: ANN401
    assert module._shown(Prediction("1", answer)) == shown


def test_row_of_several_columns_is_asked_for_as_a_json_object(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_run(tiny_run)
    talk = LineAnswers(opened, tell=print)
    columns = replace(opened.predictor.task.columns, asked_with=("question",))
    monkeypatch.setattr(opened.predictor.task, "columns", columns)
    with pytest.raises(DataError, match=r'needs `text`, `question`.*\{"text": "\.\.\.", "quest'):
        talk.ask("The boat sailed.")
    with pytest.raises(DataError, match="The line is no JSON object"):
        talk.ask("{text: 3")


@pytest.mark.parametrize(
    ("settings", "system", "told"),
    [
        ({"data": {"over_length": "window"}}, None, "Setting `data` has no effect here"),
        ({"generation": {"num_return_sequences": 2}}, None, "a line gets one reply"),
        ({"generation": {"temperature": 1.0}}, None, "`classification` writes no free text"),
        ({}, "Be kind.", "A system message has no effect here.*`classification` answers each"),
    ],
)
def test_what_has_no_effect_is_refused(
    settings: dict[str, Any], system: str | None, told: str, tiny_run: Path
) -> None:
    with pytest.raises(SettingError, match=told):
        talk_to(tiny_run, settings=settings, system=system)


def test_nothing_can_be_forgotten_where_nothing_is_remembered(tiny_run: Path) -> None:
    with pytest.raises(SettingError, match="/reset has no effect here"):
        talk_to(tiny_run, settings={})[0].reset()


def test_models_that_cannot_chat_are_refused(tiny_folder: MakeTiny, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is an encoder: it fills gaps and cannot chat"):
        talk_to(tiny_folder("bert"))
    (tmp_path / "recipe.yaml").touch()
    with pytest.raises(RunError, match="holds a run without a tuned model"):
        talk_to(tmp_path)
    with pytest.raises(LushanError, match="Unknown model `nobody`"):
        talk_to("nobody")


def test_talk_is_saved_as_rows_that_the_task_can_learn_from(folder: Path, tmp_path: Path) -> None:
    talk, _ = talk_to(folder, system="Be kind.")
    file = tmp_path / "talks" / "one.jsonl"
    with pytest.raises(RunError, match="Nothing was said yet"):
        save_talk(talk, file)
    reply = say(talk, "Hi").strip()
    assert save_talk(talk, file) == 1
    messages = [turn("system", "Be kind."), turn("user", "Hi"), turn("assistant", reply)]
    assert json.loads(file.read_text(encoding="utf-8")) == {"messages": messages}
    with pytest.raises(RunError, match=r"one\.jsonl` is there already"):
        save_talk(talk, file)
    with pytest.raises(RunError, match=r"two\.jsonl` cannot be written: .*Name another file"):
        save_talk(talk, file / "two.jsonl")

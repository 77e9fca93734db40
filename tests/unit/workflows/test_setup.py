"""What is known before the first step: tokens in the ledger, and when a run may not be resumed."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lushan.backbones.hardware import Choice
from lushan.backbones.inspect import ModelFacts, describe
from lushan.backbones.tokenizer import Tokenizer
from lushan.catalog import load_task
from lushan.errors import DataError, SettingError
from lushan.inference.generation_settings import GenerationSettings
from lushan.records import SPLIT_NAMES, Example
from lushan.settings import merged
from lushan.workflows import budget
from lushan.workflows import setup as module
from lushan.workflows.budget import Workload
from lushan.workflows.prepare import prepare
from lushan.workflows.recipe import EngineSettings, TuneRecipe, make_recipe
from lushan.workflows.resolve import Resolved, resolve, with_usual_answer
from lushan.workflows.setup import (
    Setup,
    check_same_data,
    check_same_recipe,
    fitted_into_memory,
    plan,
)
from tests.bad_inputs import good_rows, write_lines, write_splits
from tests.conftest import MakeTiny
from tests.tiny import TURN_TEMPLATE, write_class_model, write_turns
from tests.unit.workflows.conftest import BuildSetup


def raw_tokens(base: Path, text: str) -> int:
    """Count by the library that made the tokenizer's file."""
    import tokenizers

    return len(tokenizers.Tokenizer.from_file(str(base / "tokenizer.json")).encode(text).ids)


def test_every_split_is_encoded_and_its_tokens_are_counted(build_setup: BuildSetup) -> None:
    setup = build_setup("llama")
    for name in SPLIT_NAMES:
        part = setup.parts.of(name)
        expected = sum(raw_tokens(setup.base, each.text) for each in part)
        total = setup.ledger.splits[name].total
        assert total.num_tokens == expected
        assert total.num_examples == total.num_documents == len(part)
        assert sum(len(each.token_ids) for each in setup.features[name]) == expected


def test_labels_are_learned_from_the_training_rows_in_order(build_setup: BuildSetup) -> None:
    setup = build_setup("llama", task_settings={"num_shots": 3, "class_weights": "balanced"})
    assert setup.state.labels == ("hill", "sea")
    assert len(setup.state.shots) == 3
    assert all(shot in setup.parts.train for shot in setup.state.shots)
    assert len(setup.state.class_weights) == 2


def test_answers_to_write_are_supervised_and_end_with_the_stop_token(
    build_setup: BuildSetup,
) -> None:
    setup = build_setup("llama", answer="generate")
    train = setup.ledger.splits["train"]
    assert train.trains_stop_token is True
    assert 0 < train.total.num_supervised < train.total.num_tokens
    assert train.total.num_masked_tokens == train.total.num_tokens - train.total.num_supervised


def test_text_longer_than_the_limit_stops_the_run_by_its_row(build_setup: BuildSetup) -> None:
    rows = [*good_rows(), {"text": "salt and wind " * 90, "label": "sea"}]
    with pytest.raises(DataError, match=r"data\.jsonl, row 49.*128"):
        build_setup("llama", rows=rows)


def test_text_that_is_cut_is_counted(build_setup: BuildSetup) -> None:
    rows = [*good_rows(), {"text": "salt and wind " * 90, "label": "sea"}]
    setup = build_setup("llama", rows=rows, data={"over_length": "truncate"})
    counts = [setup.ledger.splits[name].total for name in SPLIT_NAMES]
    assert sum(each.num_cut_examples for each in counts) == 1
    cut = sum(each.num_cut_tokens for each in counts)
    assert cut == raw_tokens(setup.base, str(rows[-1]["text"])) - 128


def questions(*, answers_at_the_end: bool) -> list[dict[str, Any]]:
    """Questions about long contexts: every fifth has no answer, every other one of the rest, or all, at the end."""
    rows: list[dict[str, Any]] = []
    for number, row in enumerate(good_rows()):
        context, word = f"{row['text']} " * 12, row["text"].split()[0]
        is_late = answers_at_the_end or number % 2
        start = context.rindex(word) if is_late else context.index(word)
        answers = {"text": [word], "answer_start": [start]}
        if number % 5 == 0:
            answers = {"text": [], "answer_start": []}
        rows.append({"context": context, "question": "Which?", "answers": answers})
    return rows


CUT = {"task": "answering", "data": {"over_length": "truncate"}}


@pytest.mark.parametrize("answer", ["head", "generate"])
def test_training_rows_whose_answer_is_cut_off_are_left_out_and_told(
    answer: str, build_setup: BuildSetup
) -> None:
    rows = questions(answers_at_the_end=False)
    setup = build_setup("llama", rows=rows, answer=answer, **CUT)
    ledger = setup.ledger.splits["train"]
    assert len(setup.parts.train) == ledger.total.num_examples == len(setup.features["train"])
    assert ledger.num_read == ledger.total.num_examples + sum(ledger.num_dropped.values())
    num_left_out = ledger.num_dropped["answer cut off"]
    assert num_left_out > 0
    assert not any(is_late(each) for each in setup.parts.train)
    assert all(each.weight > 0 for each in setup.features["train"])
    num_late = sum(map(is_late, setup.parts.test))
    assert setup.ledger.splits["test"].total.num_cut_truths == num_late > 0
    assert f"{num_left_out} training rows are left out" in setup.notes[0]
    assert f"test: of {num_late} rows the truth" in setup.notes[-1]


def is_late(example: Example) -> bool:
    """Whether the answer stands at the end of the context."""
    target: Any = example.target
    return bool(target) and target[0].start > 0


def test_run_in_which_every_answer_is_cut_off_is_refused(build_setup: BuildSetup) -> None:
    with pytest.raises(DataError, match="Zero training signal for `answer`"):
        build_setup("llama", rows=questions(answers_at_the_end=True), **CUT)


def test_setup_made_again_is_the_same(build_setup: BuildSetup) -> None:
    one, other = build_setup("llama"), build_setup("llama")
    assert one.features == other.features
    assert (one.state, one.ledger, one.limit) == (other.state, other.ledger, other.limit)


def test_same_data_may_be_resumed_and_other_data_not(tmp_path: Path) -> None:
    check_same_data("abc", "abc", tmp_path)
    with pytest.raises(DataError, match=r"is not the data that the run began with.*`--overwrite`"):
        check_same_data("abc", "abd", tmp_path)


def test_changed_row_is_other_data(tmp_path: Path) -> None:
    recipe, task = make_recipe(None, {}, []), load_task("classification")
    data = write_lines(tmp_path / "data.jsonl", good_rows())
    before = prepare(data, task=task, recipe=recipe).fingerprint
    rows = good_rows()
    rows[7]["text"] += " "
    write_lines(data, rows)
    assert prepare(data, task=task, recipe=recipe).fingerprint != before


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, []),
        ({"training": {"epochs": 2}}, []),
        ({"model": {"precision": "auto"}}, []),
        ({"training": {"epochs": 3}}, ["`training.epochs` (the run has 2, not 3)"]),
        (
            {"seed": 4, "adapter": {"method": "lora"}},
            ["`seed` (the run has 0, not 4)", "`adapter.method` (the run has 'full', not 'lora')"],
        ),
        ({"data": {"columns": {"text": "body"}}}, ["`data.columns.text` (the run has None"]),
    ],
)
def test_settings_that_differ_from_those_of_the_run_are_named(
    given: dict[str, object], expected: list[str]
) -> None:
    stored = make_recipe(None, {"training": {"epochs": 2}, "model": {"precision": "fp32"}}, [])
    found = check_same_recipe(make_recipe(None, given, []), stored)
    assert len(found) == len(expected)
    for name in expected:
        assert any(each.startswith(name) for each in found), found


def test_number_of_rows_that_a_budget_lowered_may_be_given_again_and_no_smaller_one() -> None:
    stored = make_recipe(None, {"data": {"max_train_rows": 500}}, [])
    chosen = [{"name": "data.max_train_rows", "value": 500, "why": "a test"}]

    def differences(num_rows: int, choices: list[dict[str, Any]]) -> list[str]:
        given = make_recipe(None, {"data": {"max_train_rows": num_rows}}, [])
        return check_same_recipe(given, stored, choices=choices)

    assert differences(1_000, chosen) == differences(500, chosen) == []
    assert differences(400, chosen) == ["`data.max_train_rows` (the run has 500, not 400)"]
    assert differences(1_000, []) == ["`data.max_train_rows` (the run has 500, not 1000)"]


def test_null_that_is_an_answer_differs_from_what_a_run_has() -> None:
    stored = make_recipe(None, {"training": {"patience": 2, "epochs": 3}}, [])
    given = make_recipe(None, {"training": {"patience": None, "epochs": None}}, [])
    assert check_same_recipe(given, stored) == ["`training.patience` (the run has 2, not None)"]


def test_model_of_a_run_may_be_named_in_another_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stored = make_recipe(None, {"model": {"name": str(tmp_path / "base")}}, [])
    given = make_recipe(None, {"model": {"name": "x/../base", "precision": "fp32"}}, [])
    assert check_same_recipe(given, stored) == [
        "`model.precision` (the run has 'auto', not 'fp32')"
    ]
    other = make_recipe(None, {"model": {"name": "other"}}, [])
    assert check_same_recipe(other, stored)[0].startswith("`model.name` (the run has")


def test_added_rows_of_a_run_may_be_named_in_another_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stored = make_recipe(None, {}, [f"data.added={tmp_path / 'new.jsonl'}"])
    assert check_same_recipe(make_recipe(None, {}, ["data.added=x/../new.jsonl"]), stored) == []
    (other,) = check_same_recipe(make_recipe(None, {}, ["data.added=other.jsonl"]), stored)
    assert other.startswith("`data.added` (the run has")


def room(task: str, *rows: dict[str, Any], base: Path, folder: Path, **settings: object) -> Setup:
    """Plan a run on rows that train, validate and test alike."""
    data = write_splits(folder, train=rows, validation=rows, test=rows)
    known = {
        "task": task,
        "model": {"name": str(base), "precision": "fp32"},
        "data": {"overlap": "keep"},
    }
    recipe = make_recipe(None, merged(known, settings), [])
    found = load_task(task)
    recipe = with_usual_answer(recipe, found)
    prepared = prepare(data, task=found, recipe=recipe)
    tokenizer = Tokenizer.load(base)
    return plan(
        prepared, recipe, task=found, base=base, facts=describe(base), tokenizer=tokenizer
    ).setup


def test_answers_get_a_quarter_more_room_than_the_longest_of_training(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    rows = [
        {"source": f"soup {n}", "target": "a brave little fox" if n else "fox"} for n in range(4)
    ]
    base = tiny_folder("llama")
    setup = room("translation", *rows, base=base, folder=tmp_path)
    longest = max(each.num_supervised for each in setup.features["train"])
    assert setup.recipe.generation.max_new_tokens == longest + longest // 4 + 1
    said = {"generation": {"max_new_tokens": 7}}
    again = room("translation", *rows, base=base, folder=tmp_path, **said)
    assert again.recipe.generation.max_new_tokens == 7


def test_room_is_that_of_one_answer_however_many_a_conversation_holds(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    talks = [
        [{"role": "user", "content": "soup"}, {"role": "assistant", "content": answer}]
        for answer in ("a fox", "a dog")
    ]
    base = tiny_folder("llama")
    one = room("dialogue", *({"messages": each} for each in talks), base=base, folder=tmp_path)
    long = ({"messages": each * 4} for each in talks)
    many = room("dialogue", *long, base=base, folder=tmp_path)
    longest = max(each.num_supervised for each in one.features["train"])
    assert one.recipe.generation.max_new_tokens == longest + longest // 4 + 1
    assert many.recipe.generation == one.recipe.generation


def test_what_the_chat_template_ends_a_turn_with_is_the_stop_token_of_conversations(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    talks = [
        [{"role": "user", "content": f"soup {n}"}, {"role": "assistant", "content": f"fox {n}"}]
        for n in range(4)
    ]
    rows = [{"messages": each} for each in talks]
    base = write_turns(tiny_folder("llama"), tmp_path / "base")
    setup = room("dialogue", *rows, base=base, folder=tmp_path)
    assert {each.token_ids[-1] for each in setup.features["train"]} == {0}
    told = [setup.ledger.splits[name].trains_stop_token for name in SPLIT_NAMES]
    assert told == [True, True, True]
    endless = TURN_TEMPLATE.replace("<pad>", "|")
    (base / "chat_template.jinja").write_text(endless, encoding="utf-8")
    with pytest.raises(DataError, match=r"would not learn to stop\..*chat template"):
        room("dialogue", *rows, base=base, folder=tmp_path)


@pytest.mark.parametrize("form", [{"regex": "(?=a)b"}, {"json_schema": {"type": "nonsense"}}])
def test_form_that_nothing_can_keep_stops_the_run_by_its_row(
    form: dict[str, object], tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    rows = [{"prompt": f"soup {n}", "completion": f"fox {n}"} for n in range(2)]
    with pytest.raises(DataError, match=r"row 2: the form of the answer cannot be held"):
        room("completion", rows[0], {**rows[1], **form}, base=tiny_folder("llama"), folder=tmp_path)


def test_head_has_its_untouched_model_write_as_much_as_the_answers_need_and_an_encoder_nothing(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    rows = [{"text": f"Ada saw {n} foxes.", "entities": [[0, 3, "name"]]} for n in range(4)]
    setup = room("tagging", *rows, base=tiny_folder("llama"), folder=tmp_path)
    assert 5 < setup.recipe.generation.max_new_tokens < 40
    silent = write_class_model(tiny_folder("llama"), tmp_path / "silent", ("a", "b"))
    for base in (tiny_folder("bert"), silent):
        asked_nothing = room("tagging", *rows, base=base, folder=tmp_path)
        assert asked_nothing.recipe.generation == GenerationSettings()


def test_bounds_of_a_list_of_names_are_told(tiny_folder: MakeTiny, tmp_path: Path) -> None:
    rows = [{"text": f"Ada saw {n} foxes.", "entities": [[0, 3, "name"]]} for n in range(4)]
    data = write_splits(tmp_path, train=rows, validation=rows, test=rows)
    base, task = tiny_folder("llama"), load_task("tagging")
    asked = {"task": "tagging", "model": {"name": str(base)}, "data": {"overlap": "keep"}}
    recipe = make_recipe(None, asked, [])
    planned = plan(
        prepare(data, task=task, recipe=recipe),
        recipe,
        task=task,
        base=base,
        facts=describe(base),
        tokenizer=Tokenizer.load(base),
    )
    (told,) = [each.why for each in planned.decisions if each.name == "generation.max_new_tokens"]
    assert told.endswith(
        "it lists at most 2 entities, with names of at most 4 characters, a quarter more than any training row"
    )


def test_chinese_rows_for_a_model_of_english_are_told(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    rows = [{"text": f"山水 {n}", "label": "ab"[n % 2]} for n in range(6)]
    data = write_splits(tmp_path, train=rows, validation=rows, test=rows)
    base, task = tiny_folder("llama"), load_task("classification")
    said = {"model": {"precision": "fp32"}, "data": {"overlap": "keep"}}
    recipe = make_recipe(None, said, [])
    prepared = prepare(data, task=task, recipe=recipe)
    options: dict[str, Any] = {"task": task, "base": base, "facts": describe(base)}
    planned = plan(prepared, recipe, **options, tokenizer=Tokenizer.load(base))
    assert [each for each in planned.notes if "are Chinese, and `SmolLM2" in each] != []


def test_text_that_leaves_no_room_for_an_answer_stops_the_run_by_its_row(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    long = {"source": "soup " * 14, "target": "fox"}
    rows = [{"source": f"soup {n}", "target": f"fox {n}"} for n in range(4)]
    base = tiny_folder("llama")
    said = {"generation": {"max_new_tokens": 60}}
    with pytest.raises(DataError, match=r"row 5: \d+ tokens, but at most 68 fit"):
        room("translation", *rows, long, base=base, folder=tmp_path, **said)
    with pytest.raises(
        SettingError, match=r"`generation.max_new_tokens` is 128, but the model's context is 128"
    ):
        room("translation", *rows, base=base, folder=tmp_path, generation={"max_new_tokens": 128})


def test_rows_are_drawn_for_the_time_that_asking_leaves_and_what_takes_longer_is_told(
    tiny_folder: MakeTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "mean_tokens", lambda *_, **__: 1.0)
    monkeypatch.setattr(module, "tokens_of_readings", lambda *_, **__: (1.0, 1.0, 1.0))
    monkeypatch.setattr(budget, "predict_tokens_per_second", lambda *_, **__: 1.0)
    base, task = tiny_folder("llama"), load_task("classification")
    asked = {"name": str(base), "precision": "fp32"}
    recipe = make_recipe(None, {"model": asked, "budget_seconds": 12.0}, ["training.epochs=1"])
    data = write_lines(tmp_path / "data.jsonl", good_rows())
    options: dict[str, Any] = {"task": task, "base": base, "facts": describe(base)}
    options |= {"tokenizer": Tokenizer.load(base)}
    prepared = prepare(data, task=task, recipe=recipe)
    found = plan(prepared, recipe, **options)
    assert len(found.setup.parts.train) == found.setup.recipe.data.max_train_rows == 3
    assert "3 of 34 training rows were drawn (`--budget`)." in found.notes
    assert "reading 10 test rows 3 time(s)" in found.notes[-1]
    again = plan(prepared, recipe, **options, asks_test=False)
    assert len(again.setup.parts.train) == 6
    assert not any("test rows" in each for each in again.notes)


@pytest.mark.parametrize(
    ("task", "model_type", "reads_one", "num_readings"),
    [("classification", "llama", True, 3), ("classification", "bert", False, 2), ("tagging", "llama", False, 3)],
)  # fmt: skip
def test_budget_knows_what_is_read_of_the_rows(
    task: str,
    model_type: str,
    *,
    reads_one: bool,
    num_readings: int,
    tiny_folder: MakeTiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    works: list[Workload] = []

    def watched(recipe: TuneRecipe, *, facts: ModelFacts, work: Workload, device: str) -> Resolved:
        works.append(work)
        return resolve(recipe, facts=facts, work=work, device=device)

    monkeypatch.setattr(module, "resolve", watched)
    rows = [{**row, "entities": [[0, 3, "x"]]} for row in good_rows()[5:11]]
    base = tiny_folder(model_type)
    room(task, *rows, base=base, folder=tmp_path, budget_seconds=3600.0)
    room(task, *rows, base=base, folder=tmp_path)
    budgeted, free = works
    assert budgeted.reads_one_token is reads_one
    assert len(budgeted.readings) == num_readings
    assert free == budgeted._replace(readings=())


def test_rows_that_a_budget_lowers_are_those_that_its_own_recipe_draws(
    tiny_folder: MakeTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "mean_tokens", lambda *_, **__: 1.0)
    monkeypatch.setattr(module, "tokens_of_readings", lambda *_, **__: ())
    monkeypatch.setattr(budget, "predict_tokens_per_second", lambda *_, **__: 1.0)
    base, task = tiny_folder("llama"), load_task("classification")
    train, validation, test = (good_rows(start=start, step=3) for start in range(3))
    uneven = [row for row in train if row["label"] == "hill"]
    uneven += [row for row in train if row["label"] == "sea"][:4]
    data = write_splits(tmp_path, train=uneven, validation=validation, test=test)
    asked = {"model": {"name": str(base), "precision": "fp32"}, "budget_seconds": 10.0}
    recipe = make_recipe(None, asked, ["training.epochs=1", "data.max_train_rows=5"])
    options: dict[str, Any] = {"task": task, "base": base, "facts": describe(base)}
    options |= {"tokenizer": Tokenizer.load(base)}
    setup = plan(prepare(data, task=task, recipe=recipe), recipe, **options).setup
    assert setup.recipe.data.max_train_rows == 4
    again = prepare(data, task=task, recipe=setup.recipe)
    assert list(setup.parts.train) == list(again.parts.train)
    assert setup.ledger.splits["train"].num_dropped == {"not drawn": 8}


def test_tests_that_no_reference_passes_stop_a_run_before_it_trains(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    rows = [
        {
            "prompt": f"def f{n}():\n",
            "reference": f"    return {n}\n",
            "tests": f"assert f{n}() == {n}",
        }
        for n in range(3)
    ]
    allowed, base = {"task_settings": {"run_code": True}}, tiny_folder("llama")
    setup = room("code", *rows, base=base, folder=tmp_path, **allowed)
    assert len(setup.parts.test) == 3
    failing = [{**row, "tests": f"import numpy\n{row['tests']}"} for row in rows]
    with pytest.raises(DataError, match=r"row 1: the reference does not pass .*'numpy'"):
        room("code", *failing, base=base, folder=tmp_path, **allowed)


def test_memory_of_an_accelerator_bounds_the_training(
    build_setup: BuildSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = build_setup()
    facts = describe(setup.base)
    monkeypatch.setattr(module, "choose_device", lambda: Choice("cuda", "it is a test"))
    monkeypatch.setattr(module, "device_memory_bytes", lambda _: 1_000)
    with pytest.raises(SettingError, match=r"but 0\.0 GiB are free"):
        fitted_into_memory(setup, facts)
    monkeypatch.setattr(module, "device_memory_bytes", lambda _: math.inf)
    limited = setup.recipe.model_copy(update={"engine": EngineSettings(memory_gigabytes=1e-6)})
    with pytest.raises(SettingError, match=r"but 0\.0 GiB are free"):
        fitted_into_memory(replace(setup, recipe=limited), facts)

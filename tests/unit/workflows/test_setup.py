"""What is known before the first step: tokens in the ledger, and when a run may not be resumed."""

from pathlib import Path
from typing import Any

import pytest

from lushan.backbones.inspect import describe
from lushan.backbones.tokenizer import Tokenizer
from lushan.catalog import load_task
from lushan.errors import DataError, SettingError
from lushan.inference.generation_settings import GenerationSettings
from lushan.records import SPLIT_NAMES
from lushan.settings import merged
from lushan.workflows.prepare import prepare
from lushan.workflows.recipe import make_recipe
from lushan.workflows.resolve import with_usual_answer
from lushan.workflows.setup import (
    Setup,
    check_same_data,
    check_same_recipe,
    make_setup,
    mean_tokens,
    plan,
)
from tests.bad_inputs import good_rows, write_lines, write_splits
from tests.conftest import MakeTiny
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


def test_setup_made_again_is_the_same(build_setup: BuildSetup) -> None:
    one, other = build_setup("llama"), build_setup("llama")
    assert one.features == other.features
    assert (one.state, one.ledger, one.limit) == (other.state, other.ledger, other.limit)


@pytest.mark.parametrize("answer", ["head", "generate"])
def test_mean_tokens_counts_the_prompt_of_the_answer(
    answer: str, tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    base, task = tiny_folder("llama"), load_task("classification")
    recipe = make_recipe(None, {"answer": answer, "model": {"max_length": 128}}, [])
    data = write_lines(tmp_path / "data.jsonl", good_rows())
    prepared = prepare(data, task=task, recipe=recipe)
    tokenizer = Tokenizer.load(base)
    setup = make_setup(prepared, recipe, task=task, base=base, tokenizer=tokenizer)
    found = mean_tokens(prepared, recipe, setup.state, task=task, tokenizer=tokenizer)
    train = setup.ledger
    total = train.splits["train"].total
    # The stop token, which training adds to an answer, is not part of the rendered text.
    stops = total.num_examples if answer == "generate" else 0
    assert found == pytest.approx((total.num_tokens - stops) / total.num_examples)


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
    encoder = room("tagging", *rows, base=tiny_folder("bert"), folder=tmp_path)
    assert encoder.recipe.generation == GenerationSettings()


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

"""How many tokens rows take: as they are trained on, and of a test row all prompts that are really asked."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest

from lushan.backbones.inspect import describe
from lushan.backbones.tokenizer import Tokenizer
from lushan.catalog import load_task, names_in
from lushan.records import Example, Row, TaskState
from lushan.settings import merged
from lushan.tasks import Preparation, Task
from lushan.workflows import asking
from lushan.workflows.asking import mean_tokens, tokens_of_readings
from lushan.workflows.prepare import prepare
from lushan.workflows.recipe import make_recipe
from lushan.workflows.resolve import with_usual_answer
from lushan.workflows.setup import make_setup
from tests.bad_inputs import write_splits
from tests.conftest import MakeTiny

LABELS = ("food", "film", "work")
TEXTS = ("a warm film", "cold soup again", "late at work", "bread by the river", "so so", "a fox")


def several(task: Task) -> list[Example]:
    """Give texts that have a label each, where each could have several."""
    rows = [{"text": text, "label": [LABELS[n % 3]]} for n, text in enumerate(TEXTS)]
    return [task.read(Row(row, "a.csv", 1), multi_label=True) for row in rows]


def read_of(
    base: Path,
    examples: Sequence[Example],
    state: TaskState,
    *,
    context_tokens: int = 10_000,
    **values: object,
) -> tuple[float, ...]:
    """Measure readings with room for all worked examples."""
    recipe = make_recipe(None, values, [])
    task = load_task(recipe.task)
    return tokens_of_readings(
        examples,
        with_usual_answer(recipe, task),
        state,
        task=task,
        facts=replace(describe(base), context_tokens=context_tokens),
        tokenizer=Tokenizer.load(base),
    )


def unshared(base: Path, prompts: Sequence[str]) -> int:
    """Count the tokens of prompts behind what all of them start with."""
    ids = [list(each.ids) for each in Tokenizer.load(base).encode(list(prompts))]
    shared = list(takewhile(lambda column: len(set(column)) == 1, zip(*ids, strict=False)))
    return sum(map(len, ids)) - len(ids) * len(shared)


@pytest.mark.parametrize(
    ("task", "model_type", "baselines", "times"),
    [
        ("classification", "llama", True, 3),
        ("classification", "llama", False, 2),
        ("classification", "bert", True, 2),
        ("tagging", "bert", True, 1),
    ],
)
def test_test_rows_are_read_by_every_model_that_is_asked(
    task: str, model_type: str, *, baselines: bool, times: int, tiny_folder: MakeTiny
) -> None:
    known = load_task(task)
    examples = [known.read(each) for each in known.sample_rows()]
    state = known.prepare(examples, Preparation(), multi_label=False)
    found = read_of(tiny_folder(model_type), examples, state, task=task, baselines=baselines)
    assert len(found) == times
    assert all(each > 1 for each in found)
    assert read_of(tiny_folder(model_type), [], state, task=task) == ()


def test_prompts_of_every_label_count_with_the_worked_examples_of_each(
    tiny_folder: MakeTiny,
) -> None:
    base, task = tiny_folder("llama"), load_task("classification")
    examples = several(task)
    state = task.prepare(examples, Preparation(num_shots=2), multi_label=True)
    tuned, bare, with_shots = read_of(base, examples, state)

    def asked(text: str, label: str) -> str:
        return f"Text: {text}\nDoes the label {label} apply?"

    def worked(label: str) -> str:
        answers = {each.text: " yes" if label in each.classes else " no" for each in state.shots}
        return "".join(f"{asked(text, label)}{said}\n\n" for text, said in answers.items())

    start = "Classify the text.\n\n"
    pairs = [(text, label) for text in TEXTS for label in LABELS]
    prompts = [start + asked(text, label) for text, label in pairs]
    assert bare == unshared(base, prompts) / len(TEXTS)
    prompts = [start + worked(label) + asked(text, label) for text, label in pairs]
    assert with_shots == unshared(base, prompts) / len(TEXTS)
    assert with_shots > 2 * bare > 6 * tuned


def test_worked_examples_that_start_all_prompts_count_once(tiny_folder: MakeTiny) -> None:
    base, task = tiny_folder("llama"), load_task("classification")
    examples = [task.read(each) for each in task.sample_rows()]
    state = task.prepare(examples, Preparation(num_shots=4), multi_label=False)
    tuned, bare, with_shots = read_of(base, examples, state)
    assert bare == with_shots
    prompts = [f"Text: {each.text}\nLabel:" for each in examples]
    assert tuned < bare == unshared(base, prompts) / len(examples)
    _, _, alone = read_of(base, examples[:1], state)
    assert alone > 4 * bare  # one prompt has nothing to share


def test_rows_that_are_not_tried_count_as_those_that_are(
    tiny_folder: MakeTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, task = tiny_folder("llama"), load_task("classification")
    examples = several(task)
    state = task.prepare(examples, Preparation(num_shots=1), multi_label=True)
    long = [replace(each, text="a fox " * 20) for each in examples]
    first_two = read_of(base, examples[:2], state, answer="generate")
    monkeypatch.setattr(asking, "_NUM_TRIED", 4)  # documents, and a row has three
    assert read_of(base, [*examples[:2], *long], state, answer="generate") == first_two


def test_texts_that_are_too_long_are_cut_here_and_refused_later(tiny_folder: MakeTiny) -> None:
    base, task = tiny_folder("llama"), load_task("classification")
    rows = [task.read(each) for each in task.sample_rows()]
    examples = [replace(each, text=each.text * 50) for each in rows]
    state = task.prepare(examples, Preparation(), multi_label=False)
    limits: dict[str, Any] = {"context_tokens": 100, "model": {"max_length": 32}}
    tuned, bare, with_shots = read_of(base, examples, state, **limits)
    assert tuned == 32
    assert 0 < bare == with_shots < 100


@pytest.mark.parametrize("name", names_in("lushan.tasks"))
def test_every_task_has_its_three_readings(name: str, tiny_folder: MakeTiny) -> None:
    task = load_task(name)
    examples = [task.read(each) for each in task.sample_rows()]
    state = task.prepare(examples, Preparation(run_code=True), multi_label=False)
    found = read_of(tiny_folder("llama"), examples, state, task=name)
    assert len(found) == 3
    assert min(found) > 1


def trained_on(
    base: Path, task: str, folder: Path, settings: dict[str, Any]
) -> tuple[float, list[int]]:
    """Give the mean tokens that are expected of six rows, and those of each as it is trained on."""
    found = load_task(task)
    rows = [dict(each.values) for each in found.sample_rows()[:6]]
    data = write_splits(folder, train=rows, validation=rows, test=rows)
    known = {"task": task, "model": {"max_length": 128}, "data": {"overlap": "keep"}}
    recipe = with_usual_answer(make_recipe(None, merged(known, settings), []), found)
    prepared = prepare(data, task=found, recipe=recipe)
    options: dict[str, Any] = {"task": found, "tokenizer": Tokenizer.load(base)}
    setup = make_setup(prepared, recipe, base=base, **options)
    train, state = prepared.parts.train, setup.state
    tokens = [0] * len(rows)
    for each in setup.features["train"]:
        tokens[each.example_index] += len(each.token_ids)
    return mean_tokens(train, recipe, state, facts=describe(base), **options), tokens


@pytest.mark.parametrize(
    ("task", "settings"),
    [
        ("classification", {"answer": "head"}),
        ("classification", {"answer": "generate"}),
        ("classification", {"model": {"max_length": 8}, "data": {"over_length": "truncate"}}),
        ("classification", {"model": {"max_length": 8}, "data": {"over_length": "window"}}),
        ("choice", {}),
        ("dialogue", {}),
    ],
)
def test_mean_tokens_are_those_of_the_rows_as_they_are_trained_on(
    task: str, settings: dict[str, Any], tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    mean, tokens = trained_on(tiny_folder("llama"), task, tmp_path, settings)
    assert mean == pytest.approx(sum(tokens) / 6)


def test_rows_that_stand_for_all_are_spread_over_them(
    tiny_folder: MakeTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "_NUM_TRIED", 3)
    mean, tokens = trained_on(tiny_folder("llama"), "classification", tmp_path, {})
    assert mean == pytest.approx(sum(tokens[::2]) / 3)
    assert mean != pytest.approx(sum(tokens[:3]) / 3)


def test_row_that_does_not_fit_counts_what_would_and_is_not_yet_refused(
    tiny_folder: MakeTiny,
) -> None:
    base, task = tiny_folder("llama"), load_task("dialogue")
    said = [{"role": "user", "content": "the fox " * 20}, {"role": "assistant", "content": "Yes."}]
    example = task.read(Row({"messages": said}, "a.jsonl", 1))
    recipe = make_recipe(None, {"task": "dialogue", "answer": "generate"}, ["model.max_length=8"])
    options: dict[str, Any] = {"facts": describe(base), "tokenizer": Tokenizer.load(base)}
    assert mean_tokens([example], recipe, TaskState(), task=task, **options) == 8

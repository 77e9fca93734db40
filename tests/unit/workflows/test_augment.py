"""New rows: which are taken out and why, how their gain is measured, and when they are written."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pytest

from lushan.catalog import load_task, names_in
from lushan.errors import ModelError, RunError, SettingError
from lushan.records import Example, Interval, Prediction, Row, Scores, SplitName
from lushan.workflows import augment as augmenting
from lushan.workflows import new_rows, progress
from lushan.workflows import tune as tuning
from lushan.workflows.augment import augment, augment_or_label, sift
from lushan.workflows.new_rows import Measured, NewRow, begin, measure_gain
from lushan.workflows.progress import Tell
from lushan.workflows.recipe import make_recipe
from lushan.workflows.setup import Setup
from tests.bad_inputs import good_rows, write_lines, write_splits
from tests.conftest import MakeTiny
from tests.unit.workflows.conftest import BuildSetup


@pytest.fixture
def setup(build_setup: BuildSetup) -> Setup:
    return build_setup()


def row(text: object, label: str = "sea") -> str:
    return json.dumps({"label": label, "text": text})


def kept(texts: Sequence[str], setup: Setup) -> tuple[list[str], dict[str, int], dict[str, int]]:
    sifted = sift(texts, setup, multi_label=False)
    found = [each.example.text for each in sifted.rows]
    return found, dict(sifted.refused), {k: n for k, n in sifted.num_dropped.items() if n}


def test_rows_that_the_task_refuses_are_counted_by_what_it_says(setup: Setup) -> None:
    texts = ['{"label": "sea", "te', row(" "), row("The cliff"), row(" "), '{"text": "\\ud800"}']
    assert kept(texts, setup) == (
        ["The cliff"],
        {
            "unfinished: it is longer than any training row.": 1,
            "column `text` must hold a text, got ' '.": 2,
            "half a character (a lone surrogate).": 1,
        },
        {},
    )


def test_rows_that_the_model_cannot_read_are_refused_and_end_nothing(setup: Setup) -> None:
    texts = [row("The cliff"), row("sea " * 1000), row("sea " * 2000), row("A crab.", "lake")]
    assert kept(texts, setup)[1] == {
        "too long: more tokens than `model.max_length`.": 2,
        "label `lake` is not one of the 2 that the model knows.": 1,
    }


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ("train", "repeats_train"),
        ("validation", "overlaps_validation"),
        ("test", "overlaps_test"),
    ],
)
def test_rows_like_those_of_the_data_are_taken_out(
    part: SplitName, reason: str, setup: Setup
) -> None:
    known = [each.text for each in setup.parts.of(part)][:2]
    longer = max((each.text for each in setup.parts.of(part)), key=len) + "!s"
    texts = [row(known[0].upper()), row("A whale sings."), row(f"{known[1]}!"), row(longer)]
    assert kept(texts, setup) == (["A whale sings."], {}, {reason: 3})


def test_rows_like_an_earlier_new_one_are_taken_out(setup: Setup) -> None:
    texts = [row("A whale sings."), row("a whale sings"), row("A crab walks.")]
    found, _, dropped = kept(texts, setup)
    assert found == ["A whale sings.", "A crab walks."]
    assert dropped == {"repeats_new": 1}


def test_rows_to_which_the_tuned_model_gives_another_label_are_taken_out(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    class SaysSea:
        def predict(self, examples: Sequence[Example]) -> list[Prediction]:
            return [Prediction(each.id, "sea", {"sea": 1.0, "hill": 0.0}) for each in examples]

    monkeypatch.setattr(augmenting, "tuned_apart", lambda *_, **__: (SaysSea(), 1))
    texts = [row("A whale sings."), row("A goat climbs.", "hill"), row("A crab walks.")]
    sifted = sift(texts, setup, multi_label=False)
    augmenting._drop_disagreeing(sifted, setup, tell=lambda _: None)
    assert [each.example.target for each in sifted.rows] == ["sea", "sea"]
    assert sifted.num_dropped["disagrees"] == 1


class Augmented(NamedTuple):
    """What the workflow gave, and what it told."""

    result: dict[str, Any]
    told: list[str]


class AugmentWith(Protocol):
    """What `augment_with` gives: the workflow, with texts as if a model had written them."""

    def __call__(
        self, texts: Sequence[str], *settings: str, keep: bool = False, out: str = "new.jsonl"
    ) -> Augmented: ...


@pytest.fixture
def augment_with(
    tmp_path: Path, tiny_folder: MakeTiny, monkeypatch: pytest.MonkeyPatch
) -> AugmentWith:
    def run(
        texts: Sequence[str], *settings: str, keep: bool = False, out: str = "new.jsonl"
    ) -> Augmented:
        data = write_lines(tmp_path / "data.jsonl", good_rows())
        flags = {"model": {"name": str(tiny_folder("llama"))}, "training": {"epochs": 1}}
        recipe = make_recipe(None, flags, ["model.precision=fp32", *settings])
        told: list[str] = []

        def write(*_: object, advance: Callable[[int], None], **__: object) -> list[str]:
            advance(len(texts))
            return list(texts)

        # A tiny model reads too little to be shown rows of this length.
        monkeypatch.setattr(augmenting, "rows_that_fit", lambda rows, *_, **__: list(rows))
        monkeypatch.setattr(augmenting, "write_rows", write)
        found = augment(
            data, recipe, out=tmp_path / out, num_rows=len(texts), keep=keep, tell=told.append
        )
        return Augmented(found, told)

    return run


NEW = [
    row(f"A {noun} near the {place}.", label)
    for label, nouns in (("sea", ("whale", "crab")), ("hill", ("goat", "eagle")))
    for noun in nouns
    for place in ("old quarry road", "empty market hall", "station")
]


def gain_of(low: float, p_value: float = 0.01) -> dict[str, Any]:
    return {
        "difference": {"value": low, "low": low, "high": 0.5},
        "p_value": p_value,
        "num_validation_rows": 4,
    }


@pytest.mark.parametrize(
    ("low", "p_value", "keep", "is_written"),
    [
        (0.1, 0.01, False, True),
        (0.1, 0.125, False, False),
        (0.0, 0.01, False, False),
        (-0.1, 0.01, True, True),
    ],
)
def test_file_is_written_where_rows_clearly_help_or_are_wanted_all_the_same(
    low: float, p_value: float, keep: bool, is_written: bool, *, augment_with: AugmentWith,
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setattr(augmenting, "measure_gain", lambda *_, **__: gain_of(low, p_value))
    monkeypatch.setattr(augmenting, "_drop_disagreeing", lambda *_, **__: None)
    found, _ = augment_with(NEW, keep=keep)
    assert (found["helps"], found["written"]) == (low > 0 and p_value < 0.05, is_written)
    assert (tmp_path / "new.jsonl").exists() == is_written
    if is_written:
        lines = (tmp_path / "new.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(lines) == found["num_new_rows"] == sum(found["new_rows_by_label"].values())
        assert list(json.loads(lines[0])) == ["label", "text", "augmented"]
        assert json.loads(lines[0])["augmented"] is True


def test_rows_that_are_being_written_are_told(
    augment_with: AugmentWith, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0.0)
    _, told = augment_with(["{"] * 7)
    assert "Wrote 7 of 7 rows so far." in told


def test_nothing_is_measured_or_written_where_no_row_is_left(
    augment_with: AugmentWith, tmp_path: Path
) -> None:
    found, told = augment_with(["{", "{"], keep=True)
    assert (found["gain"], found["helps"], found["written"]) == (None, False, False)
    assert found["refused"] == {"unfinished: it is longer than any training row.": 2}
    assert not any("Training" in line for line in told)
    assert not (tmp_path / "new.jsonl").exists()


def test_runs_that_are_compared_have_equal_steps_and_differ_in_the_new_rows_alone(
    augment_with: AugmentWith, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[list[str]] = []
    make = tuning.untrained

    def remember(setup: Setup, *, tell: Tell) -> object:
        trained.append([each.text for each in setup.parts.train])
        return make(setup, tell=tell)

    monkeypatch.setattr(tuning, "untrained", remember)
    monkeypatch.setattr(augmenting, "_drop_disagreeing", lambda *_, **__: None)
    found, _ = augment_with(NEW, "training.rows_per_step=4")
    without, with_new = trained
    num_real = found["num_train_rows"]
    assert without[:num_real] == with_new[:num_real]
    assert set(without[num_real:]) < set(without[:num_real])
    assert with_new[num_real:] == [json.loads(each)["text"] for each in NEW]
    steps = found["gain"]["num_optimizer_steps"]
    assert steps["with"] == steps["without"] == -(-(num_real + len(NEW)) // 4)


def test_rows_that_were_added_before_are_no_real_rows(
    augment_with: AugmentWith, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    earlier = [{**json.loads(row(f"A {x} by the mill.")), "augmented": True} for x in "abcdefgh"]
    file = write_lines(tmp_path / "earlier.jsonl", earlier)
    judges: list[Setup] = []
    runs: list[list[str]] = []
    monkeypatch.setattr(
        augmenting, "_drop_disagreeing", lambda _, judge, **__: judges.append(judge)
    )

    def measured(setup: Setup, **_: object) -> Measured:
        runs.append([each.text for each in setup.parts.train])
        scores = Scores("accuracy", {"accuracy": Interval(0.5, 0.0, 1.0)}, [1.0, 0.0])
        return Measured(scores, num_steps=1)

    monkeypatch.setattr(new_rows, "_measured", measured)
    (found, _), texts = augment_with(NEW, f"data.added={file}"), {x["text"] for x in earlier}
    real = [each.text for each in judges[0].parts.train]
    assert (found["num_train_rows"], found["num_added"]) == (len(real), len(texts))
    assert not texts & set(real)
    without, with_new = runs
    assert sorted(without[: len(real) + len(texts)]) == sorted([*real, *texts])
    assert set(without[len(real) + len(texts) :]) <= set(real)
    assert texts < set(with_new)


@pytest.mark.parametrize("name", names_in("lushan.tasks"))
def test_gain_is_measured_on_the_validation_rows_of_every_task(
    name: str, tmp_path: Path, tiny_folder: MakeTiny
) -> None:
    task = load_task(name)
    samples = task.sample_rows()
    rows: list[dict[str, Any]] = [dict(each.values) for each in samples]
    data = write_splits(tmp_path, train=rows, validation=rows, test=rows)
    flags = {
        "task": name,
        "model": {"name": str(tiny_folder("llama")), "precision": "fp32"},
        "training": {"epochs": 1},
        "data": {"overlap": "keep"},
        "task_settings": {"run_code": True} if "run_code" in task.settings else {},
    }
    recipe = make_recipe(None, flags, [])
    prepared, setup = begin(data, recipe, writes=True, tell=lambda _: None)
    shown = augmenting._train_rows(data, prepared, setup)
    again = {task.read(Row(each, "again", 1)).id for each in shown}
    assert again == {task.read(each).id for each in samples}
    new = [NewRow(dict(each.values), task.read(each)) for each in samples[:2]]
    gain = measure_gain(new, prepared, setup, tell=lambda _: None)
    assert gain["num_validation_rows"] == len(rows)
    assert gain["difference"]["low"] <= gain["difference"]["value"] <= gain["difference"]["high"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("new.csv", r"must end in `\.jsonl`"),
        ("data.jsonl", "is there already"),
        ("data.jsonl/x.jsonl", "is a file"),
    ],
)
def test_place_where_new_rows_cannot_be_is_refused(
    name: str, message: str, augment_with: AugmentWith, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match=message):
        augment_with(NEW, out=name)
    assert [each.name for each in tmp_path.iterdir()] == ["data.jsonl"]


def test_file_that_has_come_meanwhile_is_not_replaced(
    augment_with: AugmentWith, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def measure(*_: object, **__: object) -> dict[str, Any]:
        (tmp_path / "new.jsonl").write_text("mine", encoding="utf-8")
        return gain_of(0.1)

    monkeypatch.setattr(augmenting, "measure_gain", measure)
    monkeypatch.setattr(augmenting, "_drop_disagreeing", lambda *_, **__: None)
    with pytest.raises(RunError, match=r"new\.jsonl` is there already"):
        augment_with(NEW)
    assert (tmp_path / "new.jsonl").read_text(encoding="utf-8") == "mine"
    assert [each.name for each in tmp_path.glob("*new.jsonl*")] == ["new.jsonl"]


def test_rows_that_were_added_before_are_never_replaced(
    tmp_path: Path, tiny_folder: MakeTiny
) -> None:
    file = write_lines(tmp_path / "earlier.jsonl", [{"text": "A fox.", "label": "hill"}])
    flags = {"model": {"name": str(tiny_folder("llama"))}, "data": {"added": str(file)}}
    recipe, before = make_recipe(None, flags, []), file.read_bytes()
    for unlabelled in (None, tmp_path / "texts.jsonl"):
        with pytest.raises(RunError, match=r"earlier\.jsonl` is read here"):
            augment_or_label(
                tmp_path / "data.jsonl", recipe, unlabelled=unlabelled, num_rows=None, out=file,
                keep=True, overwrite=True, tell=lambda _: None,
            )  # fmt: skip
    assert file.read_bytes() == before


@pytest.mark.parametrize("name", ["data.jsonl", "folder/validation.jsonl"])
def test_new_rows_never_get_into_the_data(name: str, tmp_path: Path, tiny_folder: MakeTiny) -> None:
    data = tmp_path / Path(name).parts[0]
    recipe = make_recipe(None, {"model": {"name": str(tiny_folder("llama"))}}, [])
    with pytest.raises(RunError, match="new rows are kept apart from real ones"):
        augment(
            data,
            recipe,
            out=tmp_path / name,
            num_rows=1,
            overwrite=True,
            tell=lambda _: None,
        )


@pytest.mark.parametrize(
    "setting", ["baselines=false", "data.label_curve=true", "training.keep=best"]
)
def test_setting_that_nothing_would_read_is_refused(
    setting: str, augment_with: AugmentWith
) -> None:
    with pytest.raises(SettingError, match="has no effect here"):
        augment_with(NEW, setting)


def test_an_encoder_is_refused(tiny_folder: MakeTiny, augment_with: AugmentWith) -> None:
    with pytest.raises(ModelError, match="cannot write rows"):
        augment_with(NEW, f"model.name={tiny_folder('bert')}")


@pytest.mark.parametrize(
    ("unlabelled", "num_rows", "message"),
    [
        ("texts.jsonl", 3, "`--rows` says how many rows are to be written"),
        (None, 0, "At least one row must be asked for, got 0"),
    ],
)
def test_number_of_rows_without_effect_is_refused(
    unlabelled: str | None, num_rows: int, message: str, *, tmp_path: Path, tiny_folder: MakeTiny
) -> None:
    data = write_lines(tmp_path / "data.jsonl", good_rows())
    recipe = make_recipe(None, {"model": {"name": str(tiny_folder("llama"))}}, [])
    with pytest.raises(SettingError, match=message):
        augment_or_label(
            data, recipe, unlabelled=tmp_path / unlabelled if unlabelled else None, num_rows=num_rows,
            out=tmp_path / "new.jsonl", keep=False, overwrite=False, tell=lambda _: None,
        )  # fmt: skip

"""The model card is valid for hubs and safe to show."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData

from lushan.evaluation.model_card import write_model_card

Run = Callable[[str], tuple[dict[str, Any], Path]]


@pytest.mark.parametrize("kind", ["binary", "intents_151", "chinese", "multi_label", "injection"])
def test_front_matter_is_what_the_hub_reads(run: Run, kind: str) -> None:
    results, folder = run(kind)
    card = ModelCard(write_model_card(results, folder).read_text(encoding="utf-8"))
    assert isinstance(card.data, ModelCardData)
    assert card.data.base_model == "SmolLM2-135M-Instruct"
    found = {each.metric_type: each.metric_value for each in card.data.eval_results or []}
    expected = {name: round(each["value"], 4) for name, each in results["after"].items()}
    assert found == expected


def test_result_limits_and_labels_are_told(run: Run) -> None:
    text = write_model_card(*run("binary")).read_text(encoding="utf-8")
    assert "**Accuracy rose from" in text
    assert "into 2 labels: negative, positive." in text
    assert "Weakest labels:" in text
    assert "14 training rows overlap the test rows" in text


def test_label_that_f1_is_of_is_named(run: Run) -> None:
    results, folder = run("binary")
    card = write_model_card({**results, "positive_label": "neg*ative"}, folder)
    text = card.read_text(encoding="utf-8")
    assert "\n\nF1, precision and recall are those of the label neg\\*ative.\n\n" in text
    assert "are those of the label" not in write_model_card(*run("intents_30")).read_text("utf-8")


def test_free_texts_are_not_said_to_be_among_known_ones(graded_run: Run) -> None:
    results, folder = graded_run("bleu")
    written = {**results, "task": "translation", "answer": "generate"}
    text = write_model_card(written, folder).read_text(encoding="utf-8")
    assert "The translation is written freely" in text
    assert "Only the known" not in text


def test_user_text_cannot_become_html_or_table_cells(run: Run) -> None:
    text = write_model_card(*run("injection")).read_text(encoding="utf-8")
    assert "<script" not in text
    assert r"a \| b \# c" in text


def test_many_labels_are_counted(run: Run) -> None:
    text = write_model_card(*run("intents_151")).read_text(encoding="utf-8")
    assert "into 151 labels:" in text
    assert "and more." in text


def test_tables_have_a_cell_for_every_column(run: Run) -> None:
    text = write_model_card(*run("multi_label")).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines[:7]} == {5}
    assert {line.count("|") for line in lines[7:]} == {7}


def test_licence_and_languages_are_passed_on(run: Run) -> None:
    results, folder = run("chinese")
    card = write_model_card({**results, "licence": "apache-2.0", "languages": ["zh"]}, folder)
    front = yaml.safe_load(card.read_text(encoding="utf-8").split("---")[1])
    assert (front["license"], front["language"]) == ("apache-2.0", ["zh"])


def test_folders_of_this_machine_are_not_told(run: Run) -> None:
    results, folder = run("binary")
    card = write_model_card({**results, "model": "/home/me/models/tiny"}, folder)
    front = yaml.safe_load(card.read_text(encoding="utf-8").split("---")[1])
    assert front["base_model"] == "tiny"


def test_card_of_a_text_metric_has_its_scale_and_its_test(graded_run: Run) -> None:
    text = write_model_card(*graded_run("bleu")).read_text(encoding="utf-8")
    assert "| BLEU |" in text
    assert "| 36.2 (35.1 to 37.4) |" in text
    assert "Row score, points | It is better | The other is better | Permutation p |" in text
    assert "McNemar" not in text


@pytest.mark.parametrize(
    ("task", "answer", "limit"),
    [
        ("classification", "head", "Only the known labels can be given"),
        ("relations", "generate", "Every pair gets one of the known relations"),
        ("tagging", "head", "Only parts of the text can be given, and only with the known types"),
        ("tagging", "generate", "Only parts of the text can be given"),
        ("triples", "generate", "Heads and tails are always parts of the text"),
        ("answering", "head", "Any part of the text can be given, also a wrong one"),
        ("answering", "generate", "The answer is written freely"),
        ("choice", "generate", "One of its choices is always taken"),
        ("dialogue", "generate", "The answer is written freely"),
    ],
)
def test_limits_are_those_of_the_task_and_its_way_of_answering(
    task: str, answer: str, limit: str, run: Run
) -> None:
    results, folder = run("binary")
    card = write_model_card({**results, "task": task, "answer": answer}, folder)
    limits = card.read_text(encoding="utf-8").partition("## Limits")[2]
    assert f"\n- {limit}" in limits
    assert ("not calibrated" in limits) is ("freely" not in limits)


def test_test_rows_that_are_in_training_too_are_told(run: Run) -> None:
    results, folder = run("binary")
    fair = "test rows that were used neither to train nor to choose; in brackets"
    assert fair in write_model_card(results, folder).read_text(encoding="utf-8")
    kept = {**results, "kept_overlap": {"train": 1_200, "validation": 3}}
    text = write_model_card(kept, folder).read_text(encoding="utf-8")
    assert "of which 1,200 are in train and 3 are in validation too, exactly or nearly" in text
    assert "neither to train" not in text

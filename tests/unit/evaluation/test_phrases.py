"""Sentences tell the truth about the numbers they are made of."""

from typing import Any

import pytest

from lushan.evaluation import phrases


def _results(before: float | None, after: float, p_value: float = 1e-9) -> dict[str, Any]:
    results: dict[str, Any] = {
        "main_metric": "accuracy",
        "after": {"accuracy": {"value": after, "low": after - 0.015, "high": after + 0.013}},
        "num_examples": {"train": 2_000, "validation": 300, "test": 900},
    }
    if before is not None:
        results["before"] = {"accuracy": {"value": before, "low": before, "high": before}}
        results["comparisons"] = {"before": {"p_value": p_value, "wins": 9, "losses": 1}}
    return results


def _plain(text: str) -> str:
    return text.replace("\u00a0", " ")


def test_a_clear_gain_is_one_sentence() -> None:
    assert _plain(phrases.headline(_results(0.123, 0.941)).sentence) == (
        "Accuracy rose from 12.3 % to 94.1 % "
        "(95 % interval 92.6 to 95.4 %; p < 0.001, exact McNemar test; 900 test rows)."
    )


def test_a_clear_loss_is_not_hidden() -> None:
    assert _plain(phrases.headline(_results(0.9, 0.8)).lead) == "Accuracy fell from 90.0 % to"


def test_an_unclear_gain_is_no_gain() -> None:
    found = phrases.headline(_results(0.80, 0.81, p_value=0.21))
    assert _plain(found.lead) == "Accuracy did not change clearly: 80.0 % before, now"
    assert "p = 0.210" in found.detail


def test_without_a_before_there_is_only_a_score() -> None:
    found = phrases.headline(_results(None, 0.81))
    assert found.lead == "Accuracy is"
    assert "McNemar" not in found.detail
    assert found.verdict == ""


def _with_baselines(tf_idf_p: float, *, wins: int = 50) -> str:
    results = _results(0.1, 0.8)
    results["baselines"] = {
        "majority": {"accuracy": {"value": 0.2}},
        "tf_idf": {"accuracy": {"value": 0.78}},
    }
    results["system_titles"] = {
        "majority": "Most frequent label",
        "tf_idf": "TF-IDF + logistic regression",
    }
    results["comparisons"] |= {
        "majority": {"p_value": 1e-9, "wins": 90, "losses": 1},
        "tf_idf": {"p_value": 0.001, "p_value_holm": tf_idf_p, "wins": wins, "losses": 20},
    }
    return _plain(phrases.headline(results).verdict)


def test_beaten_baselines_are_named_by_the_best() -> None:
    assert _with_baselines(0.01) == (
        "Every baseline is clearly beaten; the best is TF-IDF + logistic regression at 78.0 %."
    )


@pytest.mark.parametrize(("p_value", "wins"), [(0.3, 50), (0.001, 5)])
def test_a_baseline_that_is_not_beaten_is_named(p_value: float, wins: int) -> None:
    expected = "Not clearly better than: TF-IDF + logistic regression (78.0 %)."
    assert _with_baselines(p_value, wins=wins) == expected


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.81, "0.8 s"), (24.2, "24 s"), (59.7, "1 min 0 s"), (224, "3 min 44 s"), (3_720, "1 h 2 min")],
)  # fmt: skip
def test_durations_read_well(seconds: float, text: str) -> None:
    assert _plain(phrases.duration(seconds)) == text


@pytest.mark.parametrize(("num_bytes", "text"), [(2.316e9, "2.3 GB"), (5.4e7, "54 MB")])
def test_sizes_read_well(num_bytes: float, text: str) -> None:
    assert _plain(phrases.size(num_bytes)) == text


def test_differences_have_a_sign() -> None:
    assert (phrases.points(0.0521), phrases.points(-0.05)) == ("+5.2", "\u22125.0")


@pytest.mark.parametrize(("p_value", "text"), [(0.0004, "p < 0.001"), (0.0123, "p = 0.012")])
def test_p_values_read_well(p_value: float, text: str) -> None:
    assert phrases.p_text(p_value) == text


def test_what_is_no_model_is_no_before() -> None:
    results = {**_results(0.1, 0.8), "before_is_model": False}
    found = phrases.headline(results)
    assert _plain(found.lead) == "Accuracy is"
    assert "McNemar" not in found.detail


def test_titles_of_systems_come_with_the_results() -> None:
    assert phrases.system_name("dictionary", {"dictionary": "A list"}) == "A list"
    assert phrases.system_name("after", {"dictionary": "A list"}) == "Tuned model"


def test_right_rows_are_named_by_their_metric() -> None:
    rest = {"comparisons": {"before": {"test": "mcnemar"}}}
    assert phrases.right_rows({"after": {"f1": {}, "exact_match": {}}, **rest}) == "Exact match"
    assert phrases.right_rows({"after": {"accuracy": {}}, **rest}) == "Accuracy"
    assert phrases.right_rows({"after": {"f1": {}}, **rest}) == "Right rows"
    graded = {"comparisons": {"before": {"test": "permutation"}}}
    assert phrases.right_rows({"after": {"accuracy": {}}, **graded}) == "Row score"


def test_headline_of_another_scale_is_written_in_it_and_names_its_test() -> None:
    after, before = ({"value": x, "low": x - 1, "high": x + 1} for x in (36.25, 12.5))
    compared = {"p_value": 1e-4, "wins": 9, "losses": 1, "test": "permutation"}
    results = {
        "main_metric": "chrf",
        "after": {"chrf": after},
        "before": {"chrf": before},
        "comparisons": {"before": compared},
        "num_examples": {"test": 10},
    }
    assert phrases.headline(results).sentence == (
        "chrF rose from 12.5 to 36.2 (95\u00a0% interval 35.2 to 37.2; p < 0.001, paired permutation test; 10 test rows)."
    )


def test_spans_are_shown_with_their_labels() -> None:
    spans = [{"text": "Ulm", "label": "city"}, {"text": "Ada", "label": "name"}]
    assert phrases.answer_text(spans) == "Ulm (city), Ada (name)"
    assert phrases.answer_text([], "no entity") == "no entity"


def test_names_are_for_people() -> None:
    assert phrases.metric_name("macro_f1") == "Macro F1"
    assert phrases.inline("Macro F1") == "macro F1"
    assert phrases.inline("F1") == "F1"
    assert phrases.inline("ROUGE-L") == "ROUGE-L"
    assert phrases.system_name("zero_shot") == "Untouched model, zero-shot"
    assert phrases.answer_text(()) == "no label"
    assert phrases.answer_text(("a", "b")) == "a, b"

"""GPTClassifier: the checks of scikit-learn with texts in place of numbers, and what they do not ask."""

import logging
import pickle
import pickletools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Self

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from numpy.random import RandomState
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import SkipTestWarning
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.metrics import accuracy_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import Tags, get_tags
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks

from lushan.data.splits import split
from lushan.errors import DataError, ModelError, SettingError
from lushan.model_store.tuned_model import load_predictor
from lushan.records import Example
from lushan.workflows.estimator import GPTClassifier
from tests.bad_inputs import good_rows, write_splits
from tests.conftest import MakeTiny
from tests.runs import QUICK, answers_of_this_process, tune

TEXTS = [row["text"] for row in good_rows()]
LABELS = [row["label"] for row in good_rows()]
FAST = {"model.precision": "fp32"}
"""Then the speed of the machine need not be measured."""
LEARNS = FAST | {"training.head_learning_rate": 0.01, "training.keep": "last"}

NOT_FOR_TEXTS = {
    "check_n_features_in": "a text has no number of features",
    "check_n_features_in_after_fitting": "a text has no number of features",
    "check_fit2d_predict1d": "a sequence of texts has one dimension",
    "check_estimators_nan_inf": "texts are not infinite; that NaN is refused is tested beside it",
    "check_class_weight_classifiers": "`class_weight` is None or `balanced`, not a dict",
}
"""The checks of scikit-learn that do not apply, and why; the same stands in docs/sklearn.md."""


class OfNumbers(GPTClassifier):
    """Writes the rows of a matrix as texts, so that the checks of scikit-learn, which know only numbers, apply."""

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        return super().fit(written(X), y)

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        return super().predict_proba(written(X))

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        assert tags.classifier_tags is not None
        tags.classifier_tags.poor_score = True  # a random model of width 16
        return tags


def written(X: ArrayLike) -> ArrayLike:
    """Write rows of finite numbers, two digits each, as texts; leave anything else as it is."""
    values = np.asarray(X) if hasattr(X, "__array__") or isinstance(X, list) else None
    if values is None or values.ndim != 2 or values.dtype.kind not in "fiuO" or not values.size:
        return X
    numbers = values.astype(float)
    if not np.isfinite(numbers).all():
        return X
    return [" ".join(f"{number:.2g}" for number in row) for row in numbers]


@pytest.fixture(autouse=True)
def _tiny_model_here(
    tmp_path: Path, tiny_folder: MakeTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny").symlink_to(tiny_folder("llama"))


def quick(**parameters: object) -> GPTClassifier:
    """Give a classifier of the tiny model, with one epoch."""
    return GPTClassifier("tiny", epochs=1, settings=FAST).set_params(**parameters)


def learner(**parameters: object) -> GPTClassifier:
    """Give a classifier of the tiny model that learns the labels of `TEXTS`."""
    return quick(epochs=16, learning_rate=0.01, settings=LEARNS, **parameters)


@parametrize_with_checks(
    [OfNumbers("tiny", epochs=1, settings=FAST)], expected_failed_checks=lambda _: NOT_FOR_TEXTS
)
def test_scikit_learn_check_passes_with_numbers_written_as_texts(
    estimator: BaseEstimator, check: Callable[[BaseEstimator], None]
) -> None:
    check(estimator)


def test_docs_list_the_checks_that_do_not_apply() -> None:
    page = (Path(__file__).parents[3] / "docs" / "sklearn.md").read_text(encoding="utf-8")
    rows = [line.strip("| \n").split(" | ") for line in page.splitlines() if "`check_" in line]
    listed = {name.strip("`"): why for name, why in (row for row in rows if len(row) == 2)}
    assert listed == NOT_FOR_TEXTS


def test_tags_are_those_of_the_text_estimators_of_scikit_learn() -> None:
    assert get_tags(GPTClassifier()).input_tags == get_tags(CountVectorizer()).input_tags


def test_check_estimator_knows_that_it_takes_no_matrix() -> None:
    with pytest.warns(SkipTestWarning, match="Can't test estimator GPTClassifier"):
        check_estimator(GPTClassifier("tiny"))


def test_classifier_learns_its_labels_and_score_is_accuracy() -> None:
    numbers = [
        {"sea": 2, "hill": 10}[label] for label in LABELS
    ]  # as texts they sort the other way
    classifier = learner().fit(TEXTS, numbers)
    assert classifier.classes_.tolist() == [2, 10]
    answers = classifier.predict(TEXTS)
    assert accuracy_score(numbers, answers) > 0.9
    assert classifier.score(TEXTS, numbers) == accuracy_score(numbers, answers)


def test_classifier_answers_as_a_run_of_tune_on_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "lushan.model_store.certificate._answers_of_fresh_process", answers_of_this_process
    )
    rows = good_rows()
    classifier = quick().fit(
        [row["text"] for row in rows[:40]], [row["label"] for row in rows[:40]]
    )
    examples = [Example(row["text"], row["text"], row["label"]) for row in rows[:40]]
    parts = split(examples, validation_fraction=0.1, test_fraction=0, seed=0)
    train, validation = (
        [{"text": each.text, "label": each.target} for each in part]
        for part in (parts.train, parts.validation)
    )
    data = write_splits(tmp_path, train=train, validation=validation, test=rows[40:])
    assert tune(data, tmp_path / "run", "--model", "tiny", *QUICK) == 0
    asked = [Example(text, text, None) for text in TEXTS]
    told = load_predictor(tmp_path / "run").predict(asked)
    expected = [[each.probabilities["hill"], each.probabilities["sea"]] for each in told]
    assert classifier.predict_proba(TEXTS).tolist() == expected


@pytest.mark.parametrize(
    "labels",
    [
        np.array(LABELS),
        np.array(LABELS, dtype=object),
        np.array([label == "sea" for label in LABELS]),
        np.array([len(label) for label in LABELS], dtype=np.int16),
        np.array([float(len(label)) for label in LABELS]),
        pd.Series(LABELS, index=range(7, 55)),
        pd.Series(LABELS, dtype="category"),
    ],
    ids=lambda labels: f"{type(labels).__name__}-{labels.dtype}",
)
def test_predict_gives_labels_of_the_kind_that_fit_got(labels: np.ndarray | pd.Series) -> None:
    classifier = quick().fit(TEXTS, labels)
    np.testing.assert_array_equal(classifier.classes_, np.unique(np.asarray(labels)))
    answers = classifier.predict(TEXTS[:3])
    assert answers.dtype == np.asarray(labels).dtype
    assert set(answers) <= set(labels)


@pytest.mark.parametrize(
    "texts",
    [
        tuple(TEXTS),
        np.array(TEXTS),
        np.array(TEXTS, dtype=object).reshape(-1, 1),
        pd.Series(TEXTS, index=range(7, 55)),
        pd.DataFrame({"review": TEXTS}),
    ],
    ids=["tuple", "array", "column", "Series", "DataFrame"],
)
def test_texts_may_come_in_any_of_these_forms(texts: ArrayLike) -> None:
    expected = quick().fit(TEXTS, LABELS).predict_proba(TEXTS)
    np.testing.assert_array_equal(quick().fit(texts, LABELS).predict_proba(texts), expected)


@pytest.mark.parametrize("random_state", [3, np.int64(3)])
def test_same_random_state_gives_the_same_result(random_state: object) -> None:
    first = quick(random_state=3).fit(TEXTS, LABELS).predict_proba(TEXTS)
    again = quick(random_state=random_state).fit(TEXTS, LABELS).predict_proba(TEXTS)
    np.testing.assert_array_equal(first, again)


def test_other_random_state_gives_another_result() -> None:
    first, other = (quick(random_state=each).fit(TEXTS, LABELS) for each in (3, 4))
    assert (first.predict_proba(TEXTS) != other.predict_proba(TEXTS)).any()


def test_random_generator_gives_the_seed() -> None:
    drawn = RandomState(0).randint(2**31 - 1)
    classifier = quick(random_state=RandomState(0)).fit(TEXTS, LABELS)
    assert classifier.recipe_["seed"] == drawn


def test_fit_leaves_the_random_numbers_of_the_caller_alone() -> None:
    before = torch.get_rng_state()
    quick().fit(TEXTS, LABELS)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("texts", "labels", "message"),
    [
        ([], [], r"0 sample\(s\)"),
        ("one text", LABELS, r"Write \['one text'\]"),
        (np.ones((48, 1)), LABELS, r"X, row 1: expected a text, got .*1\.0"),
        ([*TEXTS[:47], None], LABELS, "X, row 48: expected a text, got None"),
        ([*TEXTS[:47], float("nan")], LABELS, "X, row 48: expected a text, got nan"),
        (pd.Series([*TEXTS[:47], pd.NA]), LABELS, "X, row 48: expected a text"),
        ([*TEXTS[:47], " "], LABELS, "X, row 48: column `text` must hold a text"),
        ([*TEXTS[:47], "a\ud800"], LABELS, "X, row 48: `text` has half a character"),
        ([*TEXTS[:47], "word " * 200], LABELS, "X, row 48: .* tokens, but at most 128 fit"),
        ([[each, each] for each in TEXTS], LABELS, "X has 2 columns"),
        (TEXTS, LABELS[:4] + LABELS[8:], "inconsistent numbers of samples"),
        (TEXTS, ["sea"] * 48, "y has 1 class, {'sea'}"),
        (TEXTS, [*LABELS[:47], None], "y, row 48: expected a label, got None"),
        (TEXTS, pd.Series([*LABELS[:47], pd.NA]), "expected a label|Input contains NaN"),
        (TEXTS, [*([0.0, 1.0] * 23), 1.0, np.nan], "Input y contains NaN"),
        (TEXTS, [*LABELS[:47], " hill"], "differ only in spaces"),
        (TEXTS, [*LABELS[:47], "river"], "1 label.* fewer than 2 different texts: `river`"),
    ],
)
def test_fit_refuses_what_is_no_text_or_no_label(
    texts: ArrayLike, labels: ArrayLike, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        quick().fit(texts, labels)


@pytest.mark.parametrize("texts", [[], "one text", ["fine", 3], ["fine", ""], ["word " * 200]])
def test_predict_refuses_what_is_no_text(texts: ArrayLike) -> None:
    classifier = quick().fit(TEXTS, LABELS)
    with pytest.raises(ValueError, match=r"0 sample|Write|row 2|row 1: .* tokens"):
        classifier.predict(texts)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"adapter": "some"}, "expected `full`, `lora`, `head` or `top:N`"),
        ({"adapter": 3}, "`adapter` must be a text, got 3"),
        ({"answer": "shout"}, "setting `answer` is wrong"),
        ({"epochs": 0}, "setting `training.epochs` is wrong"),
        ({"class_weight": {"sea": 2}}, "`class_weight` must be None or 'balanced'"),
        ({"validation_fraction": 1.0}, "setting `data.validation_fraction` is wrong"),
        ({"adapter": "head", "learning_rate": 0.1}, "`training.learning_rate` has no effect"),
        ({"settings": 3}, "`settings` must be a dict or None, got 3"),
        ({"settings": {"training.epoch": 3}}, "unknown setting `training.epoch`"),
        ({"settings": {"training.epochs": 3}}, "`training.epochs` is the parameter `epochs`"),
        ({"settings": {"data.test_fraction": 0.3}}, "`data.test_fraction` has no effect"),
        ({"settings": {"baselines": True}}, "`baselines` has no effect"),
        ({"settings": {"task_settings.run_code": True}}, "`task_settings.run_code` has no effect"),
        ({"settings": {"generation.top_k": 7}}, "`generation.top_k` has no effect here"),
        ({"settings": {"task_settings.instruction": "Sort."}}, "instruction` has no effect with"),
    ],
)
def test_fit_refuses_a_wrong_parameter(parameters: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message) as caught:
        quick(**parameters).fit(TEXTS, LABELS)
    assert isinstance(caught.value, ValueError)


def test_fit_names_a_model_that_is_not_there() -> None:
    with pytest.raises(ModelError, match="no-such-model"):
        GPTClassifier("no-such-model").fit(TEXTS, LABELS)


def test_errors_of_the_checks_of_tune_are_value_errors() -> None:
    assert issubclass(DataError, ValueError)
    assert issubclass(SettingError, ValueError)


def test_fit_that_fails_leaves_the_former_model() -> None:
    classifier = quick().fit(TEXTS, LABELS)
    before = classifier.predict_proba(TEXTS)
    with pytest.raises(ValueError, match="1 class"):
        classifier.fit(TEXTS, [1] * 48)
    np.testing.assert_array_equal(classifier.predict_proba(TEXTS), before)
    assert classifier.classes_.tolist() == ["hill", "sea"]


def test_parameters_and_settings_reach_the_recipe() -> None:
    settings = FAST | {"training.rows_per_step": np.int64(4), "data.over_length": "truncate"}
    classifier = quick(
        adapter="top:1", epochs=2, class_weight="balanced", random_state=5, settings=settings
    ).fit([*TEXTS, "word " * 200], [*LABELS, "sea"])
    recipe = classifier.recipe_
    assert (recipe["adapter"]["method"], recipe["adapter"]["layers"]) == ("top", 1)
    assert (recipe["training"]["epochs"], recipe["training"]["rows_per_step"]) == (2, 4)
    assert (recipe["task_settings"]["class_weights"], recipe["seed"]) == ("balanced", 5)
    assert [each["epoch"] for each in classifier.validation_] == [1, 2]


def test_ledger_counts_every_row_and_validation_rows_are_not_trained_on() -> None:
    ledger = quick(validation_fraction=0.25).fit(TEXTS, LABELS).ledger_
    counts = {name: each["total"]["num_examples"] for name, each in ledger["splits"].items()}
    assert counts == {"train": 36, "validation": 12, "test": 0}


def test_what_was_chosen_is_told_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="lushan"):
        quick(epochs=None, effort="quick", settings=FAST | {"budget_seconds": 600.0}).fit(
            TEXTS, LABELS
        )
    assert "Chose training.epochs = " in caplog.text


@pytest.mark.parametrize(
    "parameters",
    [{}, {"adapter": "lora"}, {"adapter": "head"}, {"answer": "generate"}],
    ids=["full", "lora", "head", "generate"],
)
def test_pickled_classifier_gives_equal_probabilities(parameters: dict[str, object]) -> None:
    classifier = quick(**parameters).fit(TEXTS, LABELS)
    expected = classifier.predict_proba(TEXTS)
    first = pickle.loads(pickle.dumps(classifier))  # noqa: S301 - our own
    np.testing.assert_array_equal(first.predict_proba(TEXTS), expected)
    second = pickle.loads(pickle.dumps(first))  # noqa: S301 - our own
    np.testing.assert_array_equal(second.predict_proba(TEXTS), expected)


def test_pickle_holds_files_and_no_objects_of_torch() -> None:
    pickled = pickle.dumps(quick().fit(TEXTS, LABELS))
    texts = {value for _, value, _ in pickletools.genops(pickled) if isinstance(value, str)}
    assert {"model.safetensors", "lushan.json", "tokenizer.json"} <= texts
    assert not any("torch" in text.split(".") for text in texts)


def test_pickled_adapter_is_refused_on_another_base(tiny_folder: MakeTiny) -> None:
    shutil.copytree(tiny_folder("llama"), "base")
    pickled = pickle.dumps(quick(model="base", adapter="lora").fit(TEXTS, LABELS))
    shutil.rmtree("base")
    shutil.copytree(tiny_folder("qwen2"), "base")
    with pytest.raises(ModelError, match=r"is an adapter of `.*/base`, but the weights in"):
        pickle.loads(pickled).predict(TEXTS)  # noqa: S301 - our own


@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_classifier_of_a_relative_model_answers_and_is_pickled_in_any_working_directory(
    adapter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = quick(adapter=adapter).fit(TEXTS, LABELS)
    expected = classifier.predict_proba(TEXTS)
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    np.testing.assert_array_equal(classifier.predict_proba(TEXTS), expected)
    again = pickle.loads(pickle.dumps(classifier))  # noqa: S301 - our own
    np.testing.assert_array_equal(again.predict_proba(TEXTS), expected)
    assert again.get_params()["model"] == "tiny"


def test_joblib_keeps_a_classifier_in_a_file() -> None:
    classifier = quick().fit(TEXTS, LABELS)
    joblib.dump(classifier, "classifier.joblib")
    again = joblib.load("classifier.joblib")
    np.testing.assert_array_equal(again.predict_proba(TEXTS), classifier.predict_proba(TEXTS))


def test_clone_has_the_parameters_and_is_not_fitted() -> None:
    classifier = quick(adapter="lora").fit(TEXTS, LABELS)
    copy = clone(classifier)
    assert isinstance(copy, GPTClassifier)
    assert copy.get_params() == classifier.get_params()
    assert not hasattr(copy, "classes_")


def test_cross_validation_scores_each_fold_with_a_model_of_its_own() -> None:
    scores = cross_val_score(learner(), np.array(TEXTS), LABELS, cv=2)
    assert scores.shape == (2,)
    assert scores.mean() > 0.6


def test_grid_search_chooses_an_adapter() -> None:
    search = GridSearchCV(
        quick(), {"adapter": ["full", "head"], "epochs": np.array([1])}, cv=2
    ).fit(TEXTS, LABELS)
    assert search.best_params_["adapter"] in {"full", "head"}
    assert search.best_estimator_.recipe_["adapter"]["method"] == search.best_params_["adapter"]
    assert set(search.predict(TEXTS)) <= {"hill", "sea"}


def test_pipeline_gives_the_classifier_what_the_step_before_it_made() -> None:
    lower = FunctionTransformer(lambda texts: [text.lower() for text in texts])
    pipeline = make_pipeline(lower, quick()).fit(TEXTS, LABELS)
    lowered = [text.lower() for text in TEXTS]
    expected = quick().fit(lowered, LABELS).predict_proba(lowered)
    np.testing.assert_array_equal(pipeline.predict_proba(TEXTS), expected)


@pytest.mark.slow
def test_processes_of_joblib_fit_as_this_one() -> None:
    here = cross_val_score(quick(), TEXTS, LABELS, cv=2, scoring="neg_log_loss")
    there = cross_val_score(quick(), TEXTS, LABELS, cv=2, scoring="neg_log_loss", n_jobs=2)
    np.testing.assert_allclose(there, here, rtol=1e-5)

"""Text classification as scikit-learn does it: `GPTClassifier().fit(texts, labels)`, by the way of `lushan tune`."""

import logging
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import numpy as np
import torch
from numpy.random import RandomState
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import Tags, check_array, check_consistent_length, check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import assert_all_finite, check_is_fitted, column_or_1d

from lushan.backbones.inspect import describe
from lushan.backbones.sources import locate
from lushan.backbones.tokenizer import Tokenizer
from lushan.catalog import load_task
from lushan.data.columns import Cleaner, Notes
from lushan.data.readers import Dataset
from lushan.errors import SettingError
from lushan.inference.predict import Predictor
from lushan.model_store.tuned_model import (
    TunedModel,
    load_predictor,
    save_model,
    weights_digest,
)
from lushan.records import Example, Row
from lushan.settings import merged, nested
from lushan.tasks import Task
from lushan.training.checkpoint import Checkpoints
from lushan.workflows.compiling import compiled_layers
from lushan.workflows.meaning import meaning_of
from lushan.workflows.prepare import arrange
from lushan.workflows.recipe import TuneRecipe, flags_of, make_recipe, with_model_path
from lushan.workflows.resolve import refuse_what_the_task_lacks
from lushan.workflows.setup import Planned, plan
from lushan.workflows.tune import train, untrained

logger = logging.getLogger("lushan")

TASK = "classification"
PARAMETERS = {
    "model.name": "model",
    "adapter.method": "adapter",
    "adapter.layers": "adapter",
    "answer": "answer",
    "training.epochs": "epochs",
    "effort": "effort",
    "training.learning_rate": "learning_rate",
    "task_settings.class_weights": "class_weight",
    "data.validation_fraction": "validation_fraction",
    "seed": "random_state",
}
"""Settings that a parameter says."""
WITHOUT_EFFECT = frozenset({
    *("task", "baselines", "data.columns", "data.test_fraction", "data.added", "data.label_curve"),
    *("task_settings.multi_label", "task_settings.num_shots"),
})
"""Settings of files, test rows and baselines, which there are none of, and of other targets."""


class GPTClassifier(ClassifierMixin, BaseEstimator):
    """Give a text its label, by a pretrained GPT that `fit` adapts.

    Texts are a sequence, an array or a Series of `str`, or an array or a DataFrame with one column of them.

    Args:
        model: A folder with a Hugging Face model, seen from where `fit` is called, or a name from `lushan models list`.
        adapter: What is trained: `full`, `lora`, `head` or `top:N`.
        answer: `head` answers by a new layer, `generate` by writing a label.
        epochs: Passes over the training rows; None lets the effort and the data size decide.
        effort: `quick`, `normal` or `thorough`.
        learning_rate: Peak learning rate; None takes the adapter's default.
        class_weight: None, or `balanced` for weights by the inverse of the frequency.
        validation_fraction: Share of the rows that choose the best epoch and are not trained on.
        random_state: Seed of the split, the data order, the new layer and dropout.
        settings: Further settings by their full name, such as `{"training.rows_per_step": 8}`.

    Attributes:
        classes_: The labels, sorted, as `y` had them.
        recipe_: Every setting of the training, with what was left open decided.
        ledger_: What became of every row and token.
        validation_: Score and loss on the validation rows after every epoch.
    """

    def __init__(  # noqa: PLR0913 - scikit-learn finds parameters by the signature
        self,
        model: str | Path = "SmolLM2-135M-Instruct",
        *,
        adapter: str = "full",
        answer: str = "head",
        epochs: int | None = None,
        effort: str = "normal",
        learning_rate: float | None = None,
        class_weight: str | None = None,
        validation_fraction: float = 0.1,
        random_state: int | RandomState | None = 0,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.adapter = adapter
        self.answer = answer
        self.epochs = epochs
        self.effort = effort
        self.learning_rate = learning_rate
        self.class_weight = class_weight
        self.validation_fraction = validation_fraction
        self.random_state = random_state
        self.settings = settings

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Tune the model on texts and their labels; what was chosen is told to the log.

        Raises:
            ValueError: If texts, labels or parameters do not fit.
            SettingError: If a setting is wrong, or has no effect here.
            ModelError: If the model is not there, or cannot do what was asked.
        """
        values, labels = _check_array(X), _check_labels(y)
        check_consistent_length(values, labels)
        classes = np.unique(labels)
        names = dict(zip(classes.tolist(), _names_of(classes), strict=True))
        texts = _texts_of(values)
        recipe = with_model_path(self._recipe())
        task: Task = load_task(recipe.task)
        refuse_what_the_task_lacks(recipe, task)
        if recipe.answer == "head" and recipe.task_settings.instruction is not None:
            raise SettingError(
                "Setting `task_settings.instruction` has no effect with `answer='head'`: nothing is written. Remove it."
            )
        examples = _examples(texts, task, [names[label] for label in labels.tolist()])
        setup, decisions, notes = _plan(examples, recipe, task)
        for line in notes:
            logger.info(line)
        for each in decisions:
            logger.info("Chose %s = %s: %s.", each.name, each.value, each.why)
        # The caller's own random numbers go on as if nothing had been drawn.
        with TemporaryDirectory(prefix="lushan-") as folder, torch.random.fork_rng(devices=[]):
            predictor = untrained(setup, tell=logger.info)
            checkpoints = Checkpoints(Path(folder))
            layers = compiled_layers(
                predictor.backbone,
                setup.recipe,
                gain_decides="engine.compile" in {each.name for each in decisions},
                tell=logger.info,
            )
            fitted = train(
                predictor, setup, checkpoints=checkpoints, layers=layers, tell=logger.info
            )
        meaning = meaning_of(setup, predictor, base_digest=weights_digest(setup.base))
        self._tuned = _Tuned(predictor, meaning)
        self.classes_ = classes
        self.recipe_ = setup.recipe.model_dump()
        self.ledger_ = setup.ledger.as_dict()
        self.validation_ = fitted.progress.validation
        return self

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Give the most likely label of each text.

        Raises:
            ValueError: If a value is no text, or a text is too long.
        """
        probabilities = self.predict_proba(X)
        return self.classes_[probabilities.argmax(axis=1)]

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Give the probability of each label, one row a text, in the order of `classes_`.

        Raises:
            ValueError: If a value is no text, or a text is too long.
        """
        check_is_fitted(self)
        texts = _texts_of(_check_array(X))
        predictor = self._tuned.predictor
        names = _names_of(self.classes_)
        predictions = predictor.predict(_examples(texts, predictor.task))
        return np.array([[each.probabilities[name] for name in names] for each in predictions])

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        # As those of scikit-learn's CountVectorizer: texts, no matrices.
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        return tags

    def _recipe(self) -> TuneRecipe:
        """Put the parameters into a recipe.

        Raises:
            SettingError: If one is wrong.
        """
        if self.class_weight not in (None, "balanced"):
            raise SettingError(
                f"`class_weight` must be None or 'balanced', got {self.class_weight!r}."
            )
        if not isinstance(self.adapter, str):
            raise SettingError(f"`adapter` must be a text, got {self.adapter!r}.")
        if not isinstance(self.settings, Mapping | None):
            raise SettingError(f"`settings` must be a dict or None, got {self.settings!r}.")
        settings = nested(self.settings or {})
        _refuse_settings(settings)
        flags = flags_of({
            "task": TASK,
            "model": self.model,
            "adapter": self.adapter,
            "answer": self.answer,
            "epochs": self.epochs,
            "effort": self.effort,
            "baselines": False,
            "seed": _seed_of(self.random_state),
        })
        others = {
            "training": {"learning_rate": self.learning_rate},
            "task_settings": {"class_weights": self.class_weight},
            "data": {"validation_fraction": self.validation_fraction},
        }
        return make_recipe(None, _plain(merged(merged(flags, others), settings)), [])


class _Tuned:
    """A tuned model that can be pickled: as the files of its folder, which are read when it is first asked."""

    def __init__(self, predictor: Predictor, meaning: TunedModel) -> None:
        self._predictor: Predictor | None = predictor
        self._meaning: TunedModel | None = meaning
        self._files: dict[str, bytes] = {}

    @property
    def predictor(self) -> Predictor:
        """The model, in memory."""
        if self._predictor is None:
            with TemporaryDirectory(prefix="lushan-") as folder, torch.random.fork_rng(devices=[]):
                for name, content in self._files.items():
                    Path(folder, name).write_bytes(content)
                self._predictor = load_predictor(Path(folder))
        return self._predictor

    def __getstate__(self) -> dict[str, bytes]:
        if self._predictor is None or self._meaning is None:
            return self._files
        with TemporaryDirectory(prefix="lushan-") as folder:
            model = Path(folder, "model")
            save_model(model, self._predictor.backbone, self._meaning)
            return {file.name: file.read_bytes() for file in sorted(model.iterdir())}

    def __setstate__(self, files: dict[str, bytes]) -> None:
        self._predictor, self._meaning, self._files = None, None, files


def _plan(examples: list[Example], recipe: TuneRecipe, task: Task) -> Planned:
    """Cut the validation rows off, decide what is open, and encode."""
    base = locate(recipe.model.name)
    facts, tokenizer = describe(base), Tokenizer.load(base)
    dataset = Dataset({"train": examples}, num_empty={}, notes=[], fingerprint="")
    prepared = arrange(dataset, recipe, multi_label=False, needs_test=False)
    return plan(prepared, recipe, task=task, base=base, facts=facts, tokenizer=tokenizer)


def _check_array(X: ArrayLike) -> NDArray[Any]:
    """Give X as an array of one or two dimensions with at least one row."""
    if isinstance(X, str):
        raise ValueError(f"Expected a sequence of texts, got one text. Write [{X[:40]!r}].")
    # numpy's own arrays of texts are as wide as the longest and lose NUL characters at the end.
    dtype: Any = None if hasattr(X, "dtype") else object
    # Missing values are no texts, which is told later; scikit-learn does not know all that pandas has.
    return check_array(X, dtype=dtype, ensure_2d=False, ensure_all_finite=False, input_name="X")


def _texts_of(values: NDArray[Any]) -> list[str]:
    if values.ndim == 2 and values.shape[1] != 1:
        raise ValueError(
            f"Expected texts, or one column of them; X has {values.shape[1]} columns. Choose one."
        )
    texts: list[str] = []
    for number, value in enumerate(values.ravel(), start=1):
        if not isinstance(value, str):
            raise ValueError(
                f"X, row {number}: expected a text, got {value!r} ({type(value).__name__}). "
                "GPTClassifier reads texts, not numbers."
            )
        texts.append(str(value))
    return texts


def _check_labels(y: ArrayLike) -> NDArray[Any]:
    """Give labels as an array of at least two classes, without gaps."""
    if y is None:
        raise ValueError("GPTClassifier requires y to be passed, but the target y is None.")
    labels = column_or_1d(y, warn=True)
    for number, label in enumerate(labels.tolist(), start=1):
        if not isinstance(label, str | int | float | np.generic):
            raise ValueError(f"y, row {number}: expected a label, got {label!r}.")
    assert_all_finite(labels, input_name="y")
    check_classification_targets(labels)
    if len(found := set(labels.tolist())) < 2:
        raise ValueError(f"y has {len(found)} class, {found}; at least two are needed.")
    return labels


def _names_of(classes: NDArray[Any]) -> list[str]:
    """Give each class the name by which the task calls it."""
    names = [str(label).strip() for label in classes]
    if len(set(names)) < len(names) or "" in names:
        raise ValueError(f"Two labels of y differ only in spaces, or one is empty: {names}.")
    return names


def _examples(texts: list[str], task: Task, labels: list[str] | None = None) -> list[Example]:
    """Read texts as `lushan tune` reads the rows of a file."""
    text_column, label_column = task.columns.required
    cleaner = Cleaner(task.columns, Notes("X"))
    examples: list[Example] = []
    for number, text in enumerate(texts, start=1):
        row = {text_column: cleaner.clean(text_column, text, number)}
        if labels is not None:
            row[label_column] = labels[number - 1]
        examples.append(task.read(Row(row, "X", number), needs_target=labels is not None))
    return examples


def _refuse_settings(settings: Mapping[str, Any]) -> None:
    for part, values in settings.items():
        inner = [f"{part}.{name}" for name in values] if isinstance(values, Mapping) else [part]
        for name in inner:
            if name in PARAMETERS:
                raise SettingError(f"Setting `{name}` is the parameter `{PARAMETERS[name]}`.")
            if name in WITHOUT_EFFECT:
                raise SettingError(f"Setting `{name}` has no effect on GPTClassifier. Remove it.")


def _seed_of(random_state: int | RandomState | None) -> int:
    if isinstance(random_state, int | np.integer):
        return int(random_state)
    return int(check_random_state(random_state).randint(np.iinfo(np.int32).max))


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Turn numpy's numbers, as searches over parameters give them, into Python's."""
    return {
        name: _plain(value)
        if isinstance(value, Mapping)
        else value.item()
        if isinstance(value, np.generic)
        else value
        for name, value in values.items()
    }

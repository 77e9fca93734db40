"""The whole story in this process: which weights a run ends with, when it stops, and how it goes on."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.metrics import accuracy_score

from lushan.errors import CertificateError, DataError, RunError, SettingError
from lushan.model_store.tuned_model import load_predictor
from lushan.settings import merged
from lushan.training.checkpoint import Progress
from lushan.training.loop import Evaluated, Fitted, StepDone
from lushan.workflows.recipe import make_recipe
from lushan.workflows.seen_rows import is_tuned_on
from lushan.workflows.tune import _refuse_another_score, tune, untrained
from tests.bad_inputs import good_rows, write_lines
from tests.conftest import MakeTiny
from tests.runs import answers_of_this_process, read, read_steps
from tests.tiny import write_class_model
from tests.unit.backbones.fusable import needs_library, sharp
from tests.unit.workflows.conftest import BuildSetup

NUM_STEPS_PER_EPOCH = 3
SETTINGS = {
    "baselines": False,
    "training": {
        "epochs": 4,
        "learning_rate": 0.01,
        "head_learning_rate": 0.01,
        "schedule": "constant",
        "warmup_fraction": 0.0,
    },
}
"""With a constant learning rate, two epochs are the first half of four."""


class StoppedError(Exception):
    """Ends a run from outside."""


@dataclass
class Heard:
    """A listener that remembers, and may stop the run."""

    stop_after_step: int = -1
    steps: list[int] = field(default_factory=list[int])
    scores: list[float] = field(default_factory=list[float])

    def on_step(self, done: StepDone) -> None:
        self.steps.append(done.step)
        if done.step == self.stop_after_step:
            raise StoppedError

    def on_evaluation(self, epoch: int, step: int, found: Evaluated) -> None:
        self.scores.append(found.score)


@dataclass
class Runs:
    """Runs of one model on one file, each in its folder."""

    base: Path
    data: Path
    folder: Path
    heard: Heard = field(default_factory=Heard)
    told: list[str] = field(default_factory=list[str])

    def tune(self, name: str, *, resume: bool = False, **settings: object) -> dict[str, Any]:
        known = {"model": {"name": str(self.base), "precision": "fp32"}}
        values = {} if resume else merged(known, SETTINGS)
        return tune(
            self.data,
            make_recipe(None, merged(values, settings), []),
            out=self.folder / name,
            resume=resume,
            tell=self.told.append,
            listeners=[self.heard],
        )

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.folder / name / "model" / "model.safetensors")

    def have_equal_weights(self, one: str, other: str) -> bool:
        left, right = self.weights(one), self.weights(other)
        return left.keys() == right.keys() and all(
            torch.equal(left[name], right[name]) for name in left
        )


@pytest.fixture(autouse=True)
def _without_fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "lushan.model_store.certificate._answers_of_fresh_process", answers_of_this_process
    )


@pytest.fixture(autouse=True)
def _checkpoint_after_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lushan.training.checkpoint.LEAST_INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr("lushan.training.checkpoint.SPENT_FRACTION", 1e9)


@pytest.fixture
def runs(tiny_folder: MakeTiny, tmp_path: Path) -> Runs:
    base = tmp_path / "base"
    shutil.copytree(tiny_folder("llama"), base)
    return Runs(base, write_lines(tmp_path / "data.jsonl", good_rows()), tmp_path)


@pytest.fixture
def script_scores(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Give a function that says beforehand what the validation rows will score."""

    def script(*scores: float) -> None:
        left: Iterator[float] = iter(scores)
        monkeypatch.setattr(
            "lushan.workflows.tune.validated", lambda *_: Evaluated(next(left), 0.5)
        )

    return script


Script = Callable[..., None]


@needs_library
@pytest.mark.parametrize("adapter", [{}, {"method": "lora"}, {"method": "top", "layers": 1}])
def test_what_runs_fused_is_certified_as_any_process_runs_it(
    runs: Runs, tmp_path: Path, adapter: dict[str, object]
) -> None:
    sharp("llama", tmp_path / "wide")
    for file in ("config.json", "model.safetensors"):
        shutil.copy(tmp_path / "wide" / file, runs.base / file)
    runs.tune(
        "fused", model={"precision": "bf16"}, adapter=adapter
    )  # refused if it answers otherwise
    assert any(line.startswith("Layers run fused") for line in runs.told)
    assert (tmp_path / "fused" / "certificate.json").is_file()


def test_run_ends_with_the_weights_of_its_best_epoch(runs: Runs, script_scores: Script) -> None:
    script_scores(0.1, 0.9, 0.3, 0.9, 0.9)
    results = runs.tune("best")
    script_scores(0.1, 0.2)
    runs.tune("half", training={"epochs": 2, "keep": "last"})
    assert results["best_epoch"] == results["kept_epoch"] == 2
    assert [each["score"] for each in results["validation"]] == [0.1, 0.9, 0.3, 0.9]
    assert runs.have_equal_weights("best", "half")


def test_of_epochs_that_score_the_same_the_one_of_the_lowest_loss_is_kept(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = iter([0.9, 0.4, 0.6, 0.7, 0.4])
    found = "lushan.workflows.tune.validated"
    monkeypatch.setattr(found, lambda *_: Evaluated(0.5, next(left)))
    results = runs.tune("run")
    assert results["best_epoch"] == results["kept_epoch"] == 2


def test_keeping_the_last_ends_with_the_weights_of_the_last_epoch(
    runs: Runs, script_scores: Script
) -> None:
    script_scores(0.9, 0.1, 0.1, 0.1)
    results = runs.tune("last", training={"keep": "last"})
    assert (results["best_epoch"], results["kept_epoch"]) == (1, results["validation"][-1]["epoch"])
    script_scores(0.1, 0.2, 0.3, 0.4, 0.4)
    runs.tune("best at last")
    script_scores(0.9, 0.1, 0.1, 0.1, 0.9)
    runs.tune("best at first")
    assert runs.have_equal_weights("last", "best at last")
    assert not runs.have_equal_weights("last", "best at first")


def test_best_weights_that_score_otherwise_when_asked_again_are_not_saved(
    runs: Runs, script_scores: Script
) -> None:
    script_scores(0.1, 0.9, 0.3, 0.2, 0.8)
    with pytest.raises(CertificateError, match=r"scored 0\.9 .* but 0\.8 when asked again"):
        runs.tune("run")
    assert not (runs.folder / "run" / "model").exists()


def test_programs_that_pass_at_one_time_alone_end_no_training() -> None:
    points = [{"step": 1, "score": 0.3, "loss": 0.5}, {"step": 2, "score": 0.9, "loss": 0.4}]
    fitted = Fitted(Progress(validation=points, best_step=2), 2)
    _refuse_another_score(fitted, Evaluated(0.8, 0.4), runs_code=True)
    for loss, runs_code in ((0.5, True), (0.4, False)):
        with pytest.raises(CertificateError, match=r"scored 0\.9"):
            _refuse_another_score(fitted, Evaluated(0.8, loss), runs_code=runs_code)


def test_patience_stops_after_epochs_that_were_no_better(runs: Runs, script_scores: Script) -> None:
    script_scores(0.5, 0.4, 0.5, 0.5)
    results = runs.tune("run", training={"epochs": 9, "patience": 2})
    assert runs.heard.scores == [0.5, 0.4, 0.5]
    assert runs.heard.steps == list(range(1, 3 * NUM_STEPS_PER_EPOCH + 1))
    assert results["best_epoch"] == 1


def test_real_scores_are_those_of_the_validation_rows(runs: Runs) -> None:
    results = runs.tune("run", training={"epochs": 1})
    score = results["validation"][0]["score"]
    counts = results["num_examples"]["validation"]
    assert score * counts == pytest.approx(round(score * counts))
    assert runs.heard.scores == [score]


def test_after_is_what_the_saved_model_answers_on_the_test_rows(runs: Runs) -> None:
    from lushan.records import Example

    results = runs.tune("run")
    path = runs.folder / "run"
    texts = read(path / "model" / "probes.json")["texts"]
    assert len(texts) == results["num_examples"]["test"]
    labels = {row["text"]: row["label"] for row in good_rows()}
    found = load_predictor(path).predict([Example("", text, None) for text in texts])
    expected = accuracy_score(
        [labels[text] for text in texts], [str(each.answer) for each in found]
    )
    assert results["after"]["accuracy"]["value"] == pytest.approx(expected)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_same_seed_gives_the_same_weights_and_another_seed_others(method: str, runs: Runs) -> None:
    file = "adapter_model.safetensors" if method == "lora" else "model.safetensors"
    digests: list[bytes] = []
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        torch.manual_seed(len(digests))
        runs.tune(name, seed=seed, adapter={"method": method}, training={"epochs": 1})
        digests.append((runs.folder / name / "model" / file).read_bytes())
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]


def test_resuming_a_finished_run_trains_nothing_and_gives_the_same_results(runs: Runs) -> None:
    first = runs.tune("run")
    weights = runs.folder / "run" / "model" / "model.safetensors"
    written = weights.stat().st_mtime_ns
    runs.heard = Heard()
    again = runs.tune("run", resume=True)
    for changing in ("seconds", "peak_rss_bytes"):
        del first[changing], again[changing]
    assert again == first
    assert runs.heard.steps == []
    assert weights.stat().st_mtime_ns == written


def test_run_stopped_in_training_goes_on_to_the_same_weights(runs: Runs) -> None:
    whole = runs.tune("whole")
    runs.heard = Heard(stop_after_step=5)
    with pytest.raises(StoppedError):
        runs.tune("stopped")
    runs.heard = Heard()
    resumed = runs.tune("stopped", resume=True)
    assert runs.heard.steps[0] == 5  # its checkpoint was not written yet
    assert runs.have_equal_weights("whole", "stopped")
    assert read_steps(runs.folder / "whole") == read_steps(runs.folder / "stopped")
    assert resumed["after"] == whole["after"]
    assert resumed["validation"] == whole["validation"]
    assert resumed["num_train_tokens"] == whole["num_train_tokens"]
    assert sum("Before:" in line for line in runs.told) == 2  # once a run


def test_run_stopped_while_it_saves_is_saved_when_it_goes_on(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise StoppedError

    runs.tune("whole")
    with monkeypatch.context() as patch:
        patch.setattr("lushan.workflows.tune.certify", stop)
        with pytest.raises(StoppedError):
            runs.tune("stopped")
    assert not (runs.folder / "stopped" / "certificate.json").exists()
    runs.heard = Heard()
    runs.tune("stopped", resume=True)
    assert runs.heard.steps == []
    assert runs.have_equal_weights("whole", "stopped")
    assert read(runs.folder / "stopped" / "certificate.json")["largest_difference"] == 0.0
    assert not (runs.folder / "stopped" / "checkpoints").exists()


def test_run_is_not_resumed_where_it_does_not_fit_any_more(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.heard = Heard(stop_after_step=1)
    with pytest.raises(StoppedError):
        runs.tune("stopped")
    monkeypatch.setattr("lushan.workflows.setup.free_memory_bytes", lambda: 50_000)
    monkeypatch.setattr("lushan.workflows.setup.check_reading", lambda *_, **__: None)
    with pytest.raises(SettingError, match=r"but 0\.0 GiB are free\. Free memory"):
        runs.tune("stopped", resume=True)


def test_run_is_not_resumed_on_a_base_whose_weights_changed(runs: Runs) -> None:
    runs.tune("run", training={"epochs": 1})
    file = runs.base / "model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"] += 1e-3
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(SettingError, match="is not the model that the run began with"):
        runs.tune("run", resume=True)


def test_run_is_not_resumed_on_a_base_that_is_used_otherwise(runs: Runs) -> None:
    runs.heard = Heard(stop_after_step=1)
    with pytest.raises(StoppedError):
        runs.tune("stopped")
    text = (runs.base / "tokenizer.json").read_text(encoding="utf-8")
    (runs.base / "tokenizer.json").write_text(text + "\n", encoding="utf-8")
    with pytest.raises(SettingError, match=r"run began with: `tokenizer\.json` changed\."):
        runs.tune("stopped", resume=True)


OTHER_LABELS = "2 labels (`hill`, `sea`), which are not those of these rows"


@pytest.mark.parametrize(
    ("sea", "winter", "told"),
    [("sea", "", "goes on from it"), ("ship", "", OTHER_LABELS), ("sea", " cold", OTHER_LABELS)],
)
@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_model_that_was_tuned_before_is_tuned_again_whatever_the_labels(
    runs: Runs, sea: str, winter: str, *, told: str, adapter: str
) -> None:
    runs.tune("first", training={"epochs": 1})
    runs.base = runs.folder / "first" / "model"
    rows = good_rows()
    for row in rows:
        ending = winter if row["text"].endswith("winter.") else ""
        row["label"] = row["label"].replace("sea", sea) + ending
    write_lines(runs.data, rows)
    results = runs.tune("second", adapter={"method": adapter}, training={"epochs": 1})
    assert [told in each for each in results["notes"]].count(True) == 1
    assert results["labels"] == sorted({row["label"] for row in rows})
    tuned = load_predictor(runs.folder / "second").backbone.plain_model
    assert list(tuned.config.id2label.values()) == results["labels"]


@pytest.mark.parametrize(
    ("labels", "fresh"),
    [(("hill", "sea"), ()), (("sea", "hill"), ()), (("hill", "ship"), ("score.weight",))],
)
def test_class_layer_of_the_same_labels_is_put_into_their_order_and_another_drawn_anew(
    labels: tuple[str, ...], fresh: tuple[str, ...], build_setup: BuildSetup, tmp_path: Path
) -> None:
    setup = build_setup("llama")
    base = write_class_model(setup.base, tmp_path / "tuned", labels)
    backbone = untrained(replace(setup, base=base), tell=list[str]().append).backbone
    assert backbone.fresh_weights == fresh
    stored = load_file(base / "model.safetensors")["score.weight"]
    in_order = stored[sorted(range(2), key=labels.__getitem__)]
    assert torch.equal(backbone.model.score.weight, in_order) is not bool(fresh)


def test_run_is_not_resumed_on_other_data_or_with_other_settings(runs: Runs) -> None:
    runs.tune("run", training={"epochs": 1})
    with pytest.raises(SettingError, match=r"`training\.epochs` \(the run has 1, not 2\)"):
        runs.tune("run", resume=True, training={"epochs": 2})
    write_lines(runs.data, good_rows()[1:])
    with pytest.raises(DataError, match="is not the data that the run began with"):
        runs.tune("run", resume=True)


def test_base_and_added_rows_that_were_named_from_another_folder_are_found_again(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    runs.base = Path("base")
    write_lines(tmp_path / "new.jsonl", [{**good_rows()[0], "text": "It sang.", "augmented": True}])
    added = {"added": "new.jsonl"}
    runs.tune("run", adapter={"method": "lora"}, training={"epochs": 1}, data=added)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    added = {"added": "../new.jsonl"}
    again = runs.tune("run", resume=True, model={"name": "../base"}, data=added)
    assert again["adapter"] == "lora"
    assert load_predictor(tmp_path / "run").version == again["model_version"]
    assert is_tuned_on(tmp_path / "run", tmp_path / "new.jsonl")


def test_nothing_is_resumed_where_no_run_is(runs: Runs) -> None:
    with pytest.raises(RunError, match="holds no run to resume"):
        runs.tune("nowhere", resume=True)
    assert not (runs.folder / "nowhere").exists()


def test_rows_that_a_run_draws_are_drawn_again_when_it_goes_on(runs: Runs) -> None:
    settings = {"max_train_rows": 20}
    runs.tune("whole", data=settings)
    runs.heard = Heard(stop_after_step=3)
    with pytest.raises(StoppedError):
        runs.tune("stopped", data=settings)
    runs.heard = Heard()
    resumed = runs.tune("stopped", resume=True)
    assert resumed["num_examples"]["train"] == 20
    assert runs.have_equal_weights("whole", "stopped")


def test_run_whose_rows_a_budget_lowered_goes_on_with_the_settings_that_began_it(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, found in (("setup.mean_tokens", 1.0), ("setup.tokens_of_readings", ())):
        monkeypatch.setattr(f"lushan.workflows.{name}", lambda *_, value=found, **__: value)
    speed = "lushan.workflows.budget.predict_tokens_per_second"
    monkeypatch.setattr(speed, lambda *_, **__: 1.0)
    settings = {"data": {"max_train_rows": 20}, "budget_seconds": 100.0}
    runs.tune("whole", **settings)
    runs.heard = Heard(stop_after_step=1)
    with pytest.raises(StoppedError):
        runs.tune("stopped", **settings)
    runs.heard = Heard()
    resumed = runs.tune("stopped", resume=True, **settings)
    assert resumed["num_examples"]["train"] == 12
    assert runs.have_equal_weights("whole", "stopped")


FROZEN = [
    {"adapter": {"method": "head"}, "training": {"learning_rate": None}},
    {"adapter": {"method": "top", "layers": 1}},
    {
        "answer": "generate",
        "adapter": {"method": "top", "layers": 1},
        "training": {"head_learning_rate": None},
    },
]


@pytest.mark.parametrize("settings", FROZEN)
def test_frozen_layers_computed_once_train_the_weights_of_every_pass(
    runs: Runs, settings: dict[str, Any]
) -> None:
    once = runs.tune("once", **settings)
    every = runs.tune("every", **merged(settings, {"adapter": {"cache_gigabytes": 0}}))
    assert len([line for line in runs.told if line.startswith("Computing")]) == 1
    torch.testing.assert_close(runs.weights("once"), runs.weights("every"))
    losses = [[each["loss"] for each in results["validation"]] for results in (once, every)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_training_does_not_wait_for_the_answers_of_the_untouched_model(runs: Runs) -> None:
    runs.heard = Heard(stop_after_step=1)
    with pytest.raises(StoppedError):
        runs.tune("stopped")
    asked = runs.folder / "stopped" / "predictions" / "before.jsonl"
    assert (runs.folder / "stopped" / "ledger.json").is_file()
    assert not asked.exists()
    runs.heard = Heard()
    whole = runs.tune("whole")
    resumed = runs.tune("stopped", resume=True)
    assert asked.read_text() == (runs.folder / "whole" / "predictions" / "before.jsonl").read_text()
    assert resumed["before"] == whole["before"]


@pytest.mark.parametrize("settings", FROZEN)
def test_with_frozen_layers_a_stopped_run_goes_on_to_the_same_weights(
    runs: Runs, settings: dict[str, Any]
) -> None:
    runs.tune("whole", **settings)
    runs.heard = Heard(stop_after_step=NUM_STEPS_PER_EPOCH + 2)
    with pytest.raises(StoppedError):
        runs.tune("stopped", **settings)
    runs.heard = Heard()
    runs.tune("stopped", resume=True)
    assert runs.have_equal_weights("whole", "stopped")
    assert [line.split()[0] for line in runs.told if "frozen layers" in line] == [
        *("Computing", "Reading", "Reading"),
    ]


@pytest.mark.parametrize("has_room", [True, False])
def test_run_goes_on_reading_states_or_computing_them_as_it_began(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, *, has_room: bool
) -> None:
    spare_bytes, settings = "lushan.inference.frozen_cache._SPARE_BYTES", FROZEN[1]
    monkeypatch.setattr(spare_bytes, 0 if has_room else 1 << 60)
    runs.tune("whole", **settings)
    runs.heard = Heard(stop_after_step=NUM_STEPS_PER_EPOCH + 2)
    with pytest.raises(StoppedError):
        runs.tune("stopped", **settings)
    runs.heard = Heard()
    if has_room:
        shutil.rmtree(runs.folder / "cache" / "frozen")
        monkeypatch.setattr(spare_bytes, 1 << 60)
        with pytest.raises(RunError, match="Make room, then go on with `--resume`"):
            runs.tune("stopped", resume=True)
    monkeypatch.setattr(spare_bytes, 0)
    runs.tune("stopped", resume=True)
    assert runs.have_equal_weights("whole", "stopped")
    assert any((runs.folder / "cache" / "frozen").glob("*.bin")) is has_room

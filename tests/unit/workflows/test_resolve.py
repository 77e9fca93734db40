"""What a recipe leaves open is decided and told; what has no effect, or does not fit, is refused."""

import re
from dataclasses import replace
from typing import Any

import pytest

from lushan.backbones.compiling import Work
from lushan.backbones.hardware import Choice, Speed, machine
from lushan.backbones.inspect import ModelFacts
from lushan.catalog import load_task
from lushan.errors import SettingError
from lushan.training import processes
from lushan.workflows.budget import Workload, predict_tokens_per_second
from lushan.workflows.recipe import TuneRecipe, make_recipe
from lushan.workflows.resolve import (
    Resolved,
    refuse_to_spread,
    refuse_what_the_task_lacks,
    resolve,
    with_usual_answer,
)

FACTS = ModelFacts(
    architecture="LlamaForCausalLM",
    family="decoder",
    num_layers=12,
    width=100,
    vocabulary_size=1_000,
    context_tokens=512,
    num_parameters=1_100_000,
    tied=True,
    has_chat_template=False,
    model_type="llama",
    weights_bytes=4_400_000,
)
"""A million weights besides the 100,000 of the embeddings."""
TOP_2 = {"adapter": {"method": "top", "layers": 2}}
ENCODER = ModelFacts(
    architecture="BertModel",
    family="encoder",
    num_layers=6,
    width=100,
    vocabulary_size=1_000,
    context_tokens=512,
    num_parameters=1_100_000,
    tied=True,
    has_chat_template=False,
    model_type="bert",
    weights_bytes=4_400_000,
)
SILENT = replace(FACTS, can_write=False)
"""A decoder that was saved with a class layer in the place of its output weights."""


@pytest.fixture(autouse=True)
def _known_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One core of this machine does 2 GFLOP/s in fp32 and 8 in bf16."""
    speed = Speed(
        device="cpu", fp32_gflops=2.0, bf16_gflops=8.0, bf16_training_works=True, torch_version=""
    )
    for module in ("backbones.hardware", "workflows.budget"):
        monkeypatch.setattr(f"lushan.{module}.measure", lambda *_, **__: speed)


def recipe_of(**values: object) -> TuneRecipe:
    return make_recipe(None, values, [])


def decide(
    *,
    num_train_rows: int = 5_000,
    mean_tokens: float = 20.0,
    facts: ModelFacts = FACTS,
    **values: object,
) -> Resolved:
    work = Workload(num_train_rows, mean_tokens)
    return resolve(recipe_of(**values), facts=facts, work=work, device="cpu")


def decided(resolved: Resolved) -> dict[str, Any]:
    return {each.name: each.value for each in resolved.decisions}


def test_everything_left_open_is_decided_with_a_reason() -> None:
    resolved = decide()
    assert decided(resolved) == {
        "model.precision": "bf16",
        "training.epochs": 3,
        "training.learning_rate": 5e-5,
        "training.head_learning_rate": 1e-3,
        "engine.compile": False,
        "model.max_length": 512,
    }
    assert all(each.why for each in resolved.decisions)


def test_decisions_stand_in_the_resolved_recipe() -> None:
    resolved = decide()
    assert resolved.recipe.model.precision == "bf16"
    assert resolved.recipe.model.max_length == 512
    assert resolved.recipe.training.epochs == 3
    assert resolved.recipe.training.learning_rate == 5e-5
    assert resolved.recipe.data.max_train_rows is None


def test_what_was_given_is_kept_and_not_told_as_a_choice() -> None:
    resolved = decide(
        model={"precision": "fp32", "max_length": 64},
        training={"epochs": 7, "learning_rate": 0.5, "head_learning_rate": 0.25, "patience": 4},
        engine={"compile": False},
    )
    assert resolved.decisions == []
    assert resolved.recipe.training.learning_rate == 0.5
    assert resolved.recipe.model.max_length == 64


def test_decision_as_plain_values_has_name_value_and_reason() -> None:
    found = {each.name: each.as_dict() for each in decide(effort="thorough").decisions}
    assert found["training.patience"] == {
        "name": "training.patience",
        "value": 2,
        "why": "effort `thorough`",
    }


@pytest.mark.parametrize(
    ("effort", "num_train_rows", "epochs", "patience"),
    [
        ("quick", 5_000, 3, None),
        ("normal", 5_000, 3, None),
        ("thorough", 5_000, 5, 2),
        ("normal", 999, 6, None),
        ("thorough", 999, 10, 2),
    ],
)
def test_effort_and_number_of_rows_decide_epochs_and_patience(
    effort: str, num_train_rows: int, *, epochs: int, patience: int | None
) -> None:
    resolved = decide(effort=effort, num_train_rows=num_train_rows)
    assert resolved.recipe.training.epochs == epochs
    assert resolved.recipe.training.patience == patience


@pytest.mark.parametrize(
    ("values", "num_train_rows", "patience"),
    [
        ({"adapter": {"method": "head"}}, 40, 20),  # 3 steps an epoch: 60 steps
        ({}, 200, 5),
        ({"training": {"rows_per_step": 1}}, 40, 2),
        ({"answer": "generate"}, 40, 2),  # no new layer
    ],
)
def test_patience_lasts_as_many_steps_as_a_new_layer_needs(
    values: dict[str, Any], num_train_rows: int, patience: int
) -> None:
    resolved = decide(effort="thorough", num_train_rows=num_train_rows, **values)
    assert resolved.recipe.training.patience == patience
    (why,) = [each.why for each in resolved.decisions if each.name == "training.patience"]
    assert (f"{num_train_rows} training rows, whose epochs are too short" in why) == (patience > 2)


def test_patience_that_is_given_as_nothing_never_stops_early() -> None:
    given = make_recipe(None, {"effort": "thorough"}, ["training.patience=null"])
    from_python = recipe_of(effort="thorough", training={"patience": None})
    for recipe in (given, from_python):
        resolved = resolve(recipe, facts=FACTS, work=Workload(5_000, 20.0), device="cpu")
        assert "training.patience" not in decided(resolved)
        assert resolved.recipe.training.patience is None


@pytest.mark.parametrize(
    ("values", "num_train_rows", "epochs"),
    [
        ({}, 32, 30),  # 2 steps an epoch, 60 at least
        ({"training": {"rows_per_step": 4}}, 32, 8),
        ({}, 160, 6),  # 60 steps as it is
        ({"adapter": {"method": "head"}}, 32, 250),
        ({"adapter": {"method": "head", "cache_gigabytes": 0.0}}, 32, 30),
        ({"answer": "generate"}, 32, 6),
        ({"training": {"epochs": 2}}, 32, 2),
    ],
)
def test_few_rows_are_repeated_until_a_new_layer_has_made_enough_steps(
    values: dict[str, Any], num_train_rows: int, epochs: int
) -> None:
    assert decide(num_train_rows=num_train_rows, **values).recipe.training.epochs == epochs


def test_what_few_rows_need_is_told_and_bounded_by_the_budget() -> None:
    chosen = {each.name: each for each in decide(num_train_rows=32).decisions}["training.epochs"]
    assert "which make 2 steps an epoch: fewer would hardly teach a new layer" in chosen.why
    tokens_per_second = 0.3 * 2e9 * machine().num_cores / 6e6
    nine_passes = 2 * (9.5 * 32 * 20) / tokens_per_second
    resolved = decide(budget_seconds=nine_passes, num_train_rows=32, model={"precision": "fp32"})
    assert resolved.recipe.training.epochs == 9


@pytest.mark.parametrize(
    ("method", "rate", "head_rate"),
    [("full", 5e-5, 1e-3), ("top", 1e-4, 1e-3), ("lora", 3e-4, 1e-3), ("head", 1e-3, 3e-3)],
)
def test_learning_rates_are_those_of_the_adapter(
    method: str, rate: float, head_rate: float
) -> None:
    training = decide(adapter={"method": method}).recipe.training
    assert (training.learning_rate, training.head_learning_rate) == (rate, head_rate)


def test_sgd_takes_a_hundred_times_the_learning_rates_of_adamw() -> None:
    training = decide(training={"optimizer": "sgd"}).recipe.training
    assert training.learning_rate == pytest.approx(100 * 5e-5)
    assert training.head_learning_rate == pytest.approx(100 * 1e-3)


def test_speed_is_estimated_from_six_operations_per_weight_without_embeddings() -> None:
    # 30 % of 2e9 operations a second on every core, 6e6 for a token.
    expected = 0.3 * 2e9 * machine().num_cores / 6e6
    assert predict_tokens_per_second(FACTS, precision="fp32") == pytest.approx(expected)
    assert predict_tokens_per_second(FACTS, precision="bf16") == pytest.approx(4 * expected)


def test_budget_bounds_the_rows_so_that_half_of_it_trains() -> None:
    resolved = decide(budget_seconds=60.0, model={"precision": "fp32"}, training={"epochs": 3})
    tokens = 30.0 * 0.3 * 2e9 * machine().num_cores / 6e6
    expected = int(tokens / 20 / 3)
    assert expected < 5_000
    assert resolved.recipe.data.max_train_rows == expected
    why = next(each.why for each in resolved.decisions if each.name == "data.max_train_rows")
    assert f"{expected} of 5000 rows, drawn per class, 3 times each: 60 s in all" in why


def test_budget_on_an_accelerator_counts_its_own_speed_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    speed = Speed(
        device="", fp32_gflops=50.0, bf16_gflops=0.0, bf16_training_works=False, torch_version=""
    )
    monkeypatch.setattr(
        "lushan.workflows.budget.measure", lambda device, **_: {"cuda": speed}[device]
    )
    recipe = recipe_of(budget_seconds=60.0, model={"precision": "fp32"}, training={"epochs": 3})
    resolved = resolve(recipe, facts=FACTS, work=Workload(10**6, 20.0), device="cuda")
    assert resolved.recipe.data.max_train_rows == int(30.0 * 0.3 * 50e9 / 6e6 / 20 / 3)


def test_budget_that_all_rows_fit_draws_none() -> None:
    resolved = decide(budget_seconds=3600.0, num_train_rows=2_000)
    assert resolved.recipe.data.max_train_rows is None
    assert "data.max_train_rows" not in decided(resolved)


def test_number_of_rows_that_was_given_is_lowered_where_the_budget_has_no_time_and_told() -> None:
    given: dict[str, Any] = {"model": {"precision": "fp32"}, "training": {"epochs": 3}}
    expected = decide(budget_seconds=60.0, **given).recipe.data.max_train_rows
    resolved = decide(budget_seconds=60.0, data={"max_train_rows": 5_000}, **given)
    assert resolved.recipe.data.max_train_rows == expected
    (why,) = [each.why for each in resolved.decisions if each.name == "data.max_train_rows"]
    assert f"{expected} of 5000 rows" in why
    assert "`data.max_train_rows` = 5000 would take longer" in why
    few = decide(budget_seconds=60.0, num_train_rows=10, data={"max_train_rows": 10}, **given)
    assert few.recipe.data.max_train_rows == 10
    assert "data.max_train_rows" not in decided(few)


def test_rows_that_were_planned_for_are_kept_where_they_are_a_little_longer() -> None:
    first = decide(budget_seconds=60.0, model={"precision": "fp32"})
    num_rows = first.recipe.data.max_train_rows
    assert num_rows
    again = decide(num_train_rows=num_rows, mean_tokens=21.0, **first.recipe.model_dump())
    assert again.recipe == first.recipe
    longer = decide(num_train_rows=num_rows, mean_tokens=40.0, **first.recipe.model_dump())
    assert longer.recipe.data.max_train_rows == num_rows // 2


def test_quick_effort_is_a_budget_of_six_minutes() -> None:
    resolved = decide(effort="quick", num_train_rows=1_000_000)
    why = next(each.why for each in resolved.decisions if each.name == "data.max_train_rows")
    assert ": 360 s in all" in why


def test_few_rows_get_more_epochs_only_as_far_as_the_budget_goes() -> None:
    tokens_per_second = 0.3 * 2e9 * machine().num_cores / 6e6
    four_passes = 2 * (4.5 * 500 * 20) / tokens_per_second
    resolved = decide(budget_seconds=four_passes, num_train_rows=500, model={"precision": "fp32"})
    assert resolved.recipe.training.epochs == 4


@pytest.mark.parametrize(
    ("name", "values", "needs"),
    [
        ("adapter.layers", {"adapter": {"layers": 2}}, "top:N"),
        ("adapter.rank", {"adapter": {"rank": 4}}, "lora"),
        ("adapter.alpha", {"adapter": {"method": "head", "alpha": 4.0}}, "lora"),
        ("adapter.dropout", {"adapter": {"dropout": 0.1}}, "lora"),
        ("engine.compile", {"adapter": {"method": "head"}, "engine": {"compile": True}}, "`head`"),
        ("adapter.cache_gigabytes", {"adapter": {"cache_gigabytes": 1.0}}, "--adapter head"),
        ("training.momentum", {"training": {"momentum": 0.5}}, "training.optimizer=sgd"),
        (
            "model.head_dropout",
            {"answer": "generate", "model": {"head_dropout": 0.1}},
            "--answer head",
        ),
        (
            "training.head_learning_rate",
            {"answer": "generate", "training": {"head_learning_rate": 0.1}},
            "--answer head",
        ),
        (
            "training.learning_rate",
            {"adapter": {"method": "head"}, "training": {"learning_rate": 0.1}},
            "an adapter other than `head`",
        ),
        (
            "task_settings.num_shots",
            {"baselines": False, "task_settings": {"num_shots": 4}},
            "without `--no-baselines`",
        ),
    ],
)
def test_setting_without_effect_is_refused_by_name_with_what_it_needs(
    name: str, values: dict[str, Any], *, needs: str
) -> None:
    with pytest.raises(SettingError, match=f"`{name}` has no effect here: it needs .*{needs}"):
        decide(**values)


@pytest.mark.parametrize(
    "values",
    [
        {"adapter": {"method": "top", "layers": 2, "cache_gigabytes": 1.0}},
        {"adapter": {"method": "lora", "rank": 4, "alpha": 4.0, "dropout": 0.1}},
        {"adapter": {"method": "lora", "rank": 100}},
        {"training": {"optimizer": "sgd", "momentum": 0.5}},
        {"model": {"head_dropout": 0.1}, "training": {"head_learning_rate": 0.1}},
        {"task_settings": {"num_shots": 4}},
    ],
)
def test_same_settings_are_taken_where_they_have_an_effect(values: dict[str, Any]) -> None:
    resolved = decide(**values).recipe.model_dump()
    for part, given in values.items():
        assert resolved[part].items() >= given.items()


@pytest.mark.parametrize(
    ("facts", "values", "message"),
    [
        (FACTS, {"adapter": {"method": "top", "layers": 13}}, "top:13`: .* only 12 layers"),
        (
            replace(ENCODER, model_type="albert"),
            TOP_2,
            "top:2`: the 6 layers .* share their weights",
        ),
        (replace(ENCODER, model_type="deberta"), TOP_2, "top:2`: .* `deberta` give cannot be kept"),
        (FACTS, {"adapter": {"method": "lora", "rank": 101}}, "`adapter.rank` is 101, .* 100 wide"),
        (FACTS, {"model": {"max_length": 513}}, "`model.max_length` is 513, .* 512 tokens"),
        (ENCODER, {"answer": "generate"}, "an encoder: it fills gaps and cannot write"),
        (SILENT, {"answer": "generate"}, "the model has no weights that score the next token"),
        (
            SILENT,
            {"task_settings": {"num_shots": 4}},
            "`task_settings.num_shots` has no effect here: .* so it is not prompted",
        ),
        (
            ENCODER,
            {"task_settings": {"num_shots": 4}},
            "`task_settings.num_shots` has no effect here: the model is an encoder",
        ),
        (
            ENCODER,
            {"task_settings": {"instruction": "Say it."}},
            "`task_settings.instruction` has no effect here: the model is an encoder",
        ),
        (
            FACTS,
            {"answer": "generate", "adapter": {"method": "head"}},
            "`--adapter head` has nothing to train",
        ),
    ],
)
def test_what_the_model_cannot_do_is_refused(
    facts: ModelFacts, values: dict[str, Any], *, message: str
) -> None:
    with pytest.raises(SettingError, match=message):
        decide(facts=facts, **values)


@pytest.mark.parametrize(
    ("answer", "method", "baselines"),
    [
        ("head", "full", True),
        ("head", "lora", False),
        ("head", "head", True),
        ("generate", "top", True),
        ("generate", "full", False),
    ],
)
def test_recipe_of_a_run_can_be_given_again(answer: str, method: str, *, baselines: bool) -> None:
    first = decide(answer=answer, adapter={"method": method}, baselines=baselines)
    again = decide(**first.recipe.model_dump())
    assert again.recipe == first.recipe
    assert again.decisions == []


def test_recipe_of_a_run_of_an_encoder_can_be_given_again() -> None:
    first = decide(facts=ENCODER)
    assert decide(facts=ENCODER, **first.recipe.model_dump()).recipe == first.recipe


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"answer": "head"}, "the task `choice` does not answer in this way. Use `--answer generate`"),
        ({"generation": {"num_beams": 2}}, "`generation.num_beams` has no effect here: the task `choice`"),
        *(
            ({"task_settings": {name: value}}, f"`task_settings.{name}` has no effect on the task `choice`")
            for name, value in {"multi_label": True, "class_weights": "balanced", "run_code": True}.items()
        ),
    ],
)  # fmt: skip
def test_what_a_task_does_not_have_is_refused(values: dict[str, Any], message: str) -> None:
    task = load_task("choice")
    with pytest.raises(SettingError, match=message):
        refuse_what_the_task_lacks(
            recipe_of(task="choice", **{"answer": "generate", **values}), task
        )


def test_usual_values_of_what_a_task_does_not_have_are_no_mistake() -> None:
    usual = recipe_of(task="tagging").model_dump()["task_settings"]
    recipe = recipe_of(task="tagging", task_settings={**usual, "multi_label": False})
    refuse_what_the_task_lacks(recipe, load_task("tagging"))


def test_gain_of_compiling_is_that_of_all_tokens_of_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[float, float]] = []

    def choose(_: Work, **told: Any) -> Choice:  # noqa: ANN401
        asked.append((told["num_tokens"], told["seconds_per_token"]()))
        return Choice("on", "because")

    monkeypatch.setattr("lushan.workflows.resolve.choose_compiling", choose)
    assert decided(decide())["engine.compile"] is True
    decide(adapter={"method": "top", "layers": 3})
    (tokens, full_seconds), (_, top_seconds) = asked
    assert tokens == 5_000 * 3 * 20
    assert full_seconds == pytest.approx(0.5 / predict_tokens_per_second(FACTS, precision="bf16"))
    assert top_seconds == pytest.approx(full_seconds * 3 / 12)


@pytest.mark.parametrize(
    ("num_processes", "values", "reasons"),
    [
        (1, {}, ["several processes: start them with `torchrun"]),
        (2, {"adapter": {"method": "lora"}}, ["`--adapter lora` has frozen weights"]),
        (2, {"training": {"optimizer": "adafactor"}}, ["adafactor` looks at whole rows"]),
        (
            1,
            {"adapter": {"method": "head"}, "training": {"optimizer": "adafactor"}},
            ["several processes", "`--adapter head`", "adafactor"],
        ),
    ],
)
def test_layers_are_not_spread_where_that_cannot_be(
    num_processes: int, values: dict[str, Any], reasons: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes.Team, "place", (0, num_processes))
    given = {**values, "engine": {"spread_layers": True}}
    with pytest.raises(SettingError, match=".*".join(map(re.escape, reasons))):
        decide(**given)


def test_processes_of_a_later_run_are_not_those_of_now() -> None:
    refuse_to_spread(recipe_of(engine={"spread_layers": True}), num_processes=2)
    with pytest.raises(SettingError, match="several processes"):
        refuse_to_spread(recipe_of(engine={"spread_layers": True}))


def test_spread_layers_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes.Team, "place", (0, 2))
    found = decided(decide(engine={"spread_layers": True}))
    assert found["engine.compile"] is False
    with pytest.raises(SettingError, match=r"engine\.spread_layers.*engine\.compile=true"):
        decide(engine={"spread_layers": True, "compile": True})


def test_task_answers_in_its_usual_way_where_nobody_said_how() -> None:
    task = load_task("choice")
    found = with_usual_answer(recipe_of(task="choice"), task)
    assert found.answer == "generate"
    refuse_what_the_task_lacks(found, task)
    given = recipe_of(task="choice", answer="head")
    assert with_usual_answer(given, task) is given
    with pytest.raises(SettingError, match=r"the task `choice` .* Use `--answer generate`"):
        refuse_what_the_task_lacks(given, task)

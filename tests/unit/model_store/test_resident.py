"""Models in memory together: what they answer, what they cost, how they come and go."""

import json
import shutil
import weakref
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from lushan.backbones.adapters import Method
from lushan.backbones.load import load_backbone
from lushan.backbones.many_adapters import own_adapter
from lushan.backbones.packed import WeightsSetting, load_untuned, weight_bytes
from lushan.catalog import load_task
from lushan.errors import ModelError, RunError, UserError
from lushan.inference.draft import TokenEvent
from lushan.inference.generate import GenerationEngine, encode_prompts, generate
from lushan.inference.generate import run as run_engine
from lushan.inference.generation_settings import GenerationSettings
from lushan.inference.predict import Predictor
from lushan.model_store.resident import Resident
from lushan.model_store.tuned_model import load_predictor, weights_digest
from lushan.model_store.untuned_model import untuned_predictor
from lushan.records import Example, Row
from lushan.tasks import Task
from tests.conftest import MakeTiny
from tests.generation import plain_answers
from tests.many_runs import KINDS, Kind, assert_same, examples_of, save_run

SHORT = GenerationSettings(max_new_tokens=10)
PROMPT = "the children ran home"


def questions_to(names: Sequence[str]) -> list[tuple[str, Example]]:
    """Give the examples of every model in turns."""
    each = [[(name, example) for example in examples_of(KINDS[name].task)] for name in names]
    return [question for turn in zip(*each, strict=False) for question in turn]


def holding(runs: Path, *names: str) -> Resident:
    resident = Resident()
    assert [resident.load(runs / name) for name in names] == list(names)
    return resident


def change_weights(run: Path, name: str, *, by: float) -> None:
    (file,) = (run / "model").glob("*.safetensors")
    weights = load_file(file)
    (whole,) = [each for each in weights if name in each]
    weights[whole].view(-1)[0] += by
    save_file(weights, file, metadata={"format": "pt"})


def own_copy(run: Path, folder: Path) -> Path:
    """Copy a run and its base, so that a test may spoil them."""
    shutil.copytree(run, folder / run.name)
    file = folder / run.name / "model" / "lushan.json"
    meaning = json.loads(file.read_text("utf-8"))
    shutil.copytree(meaning["base_model"], folder / "base")
    file.write_text(json.dumps(meaning | {"base_model": str(folder / "base")}), "utf-8")
    return folder / run.name


def written(events: Sequence[TokenEvent], index: int) -> list[int]:
    return [each.token_id for each in events if each.prompt_index == index]


def test_three_adapters_and_two_heads_answer_together_as_alone(many_runs: Path) -> None:
    names = ["topics", "stars", "names", "links", "answers"]
    resident, questions = holding(many_runs, *names), questions_to(names)
    found = resident.predict(questions)
    alone = {name: load_predictor(many_runs / name) for name in names}
    expected = [alone[name].predict([example])[0] for name, example in questions]
    assert_same(found, expected)
    assert {each.model_version for each in found} == {each.version for each in alone.values()}
    assert len({id(each.base) for each in resident.models}) == 1


@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_adapters_stand_on_a_base_whose_weights_are_packed(
    weights: WeightsSetting, many_runs: Path
) -> None:
    names = ["topics", "stars", "names", "links", "answers"]
    resident, questions = Resident(weights=weights), questions_to(names)
    for name in names:
        resident.load(many_runs / name)
    assert len({id(each.base) for each in resident.models}) == 1
    found = resident.predict(questions)
    alone = {name: load_predictor(many_runs / name, weights=weights) for name in names}
    for (name, example), ours in zip(questions, found, strict=True):
        (expected,) = alone[name].predict([example])
        assert ours.answer == expected.answer
        assert ours.probabilities == pytest.approx(dict(expected.probabilities), abs=0.02)


def test_models_with_weights_of_their_own_answer_beside_them(
    many_runs: Path, tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    kinds = {
        "whole": (Kind("classification", method="full", seed=11), "llama", "layers were tuned"),
        "last": (Kind("classification", method="top", seed=12), "llama", "layers were tuned"),
        "reader": (Kind("tagging", seed=13), "bert", "encoders"),
        "neo": (Kind("classification", seed=14), "gpt_neo", "`gpt_neo` cannot use packed"),
    }
    resident = holding(many_runs, "topics")
    for name, (kind, model_type, why) in kinds.items():
        run = save_run(tmp_path / name, tiny_folder(model_type), kind)
        assert why in resident.model(resident.load(run)).why_alone
    asked = {name: examples_of(kind.task) for name, (kind, _, _) in kinds.items()}
    asked["topics"] = examples_of("classification")
    found = resident.predict([(name, each) for name in asked for each in asked[name]])
    runs = {"topics": many_runs / "topics", **{name: tmp_path / name for name in kinds}}
    expected = [each for name in asked for each in load_predictor(runs[name]).predict(asked[name])]
    assert_same(found, expected)


def test_models_of_two_bases_have_two_backbones(
    many_runs: Path, tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    run = save_run(tmp_path / "other", tiny_folder("qwen3"), Kind("classification", seed=3))
    again = save_run(
        tmp_path / "halved", tiny_folder("llama"), Kind("classification", seed=3, precision="bf16")
    )
    resident = holding(many_runs, "topics")
    resident.load(run)
    resident.load(again)
    assert len({id(each.base) for each in resident.models if each.base}) == 3
    examples = examples_of("classification")
    found = resident.predict([(n, x) for n in ("topics", "other", "halved") for x in examples])
    expected = [
        each for x in (many_runs / "topics", run, again) for each in load_predictor(x).predict(examples)
    ]  # fmt: skip
    assert_same(found, expected)


@pytest.mark.parametrize("method", ["lora", "head"])
def test_tokens_that_look_both_ways_have_a_backbone_where_all_do(
    method: Method, many_runs: Path, tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    resident, examples = holding(many_runs, "names"), examples_of("tagging")
    names = ["there", "again"]
    for seed, name in enumerate(names):
        kind = Kind("tagging", method=method, seed=seed, attention="bidirectional")
        resident.load(save_run(tmp_path / name, tiny_folder("llama"), kind))
    bases = [resident.model(name).base for name in ("names", *names)]
    assert bases[0] is not bases[1] is bases[2] is not None
    found = resident.predict([(name, x) for name in ("names", *names) for x in examples])
    runs = [many_runs / "names", *(tmp_path / name for name in names)]
    assert_same(found, [each for run in runs for each in load_predictor(run).predict(examples)])


def test_half_precision_answers_as_alone_but_for_rounding(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    resident, runs = Resident(), [tmp_path / "a", tmp_path / "b"]
    for seed, run in enumerate(runs):
        kind = Kind("classification", seed=seed, precision="bf16", method=("lora", "head")[seed])
        resident.load(save_run(run, tiny_folder("llama"), kind))
    examples = examples_of("classification")
    found = resident.predict([(run.name, x) for run in runs for x in examples])
    expected = [each for run in runs for each in load_predictor(run).predict(examples)]
    for ours, theirs in zip(found, expected, strict=True):
        assert dict(ours.probabilities) == pytest.approx(dict(theirs.probabilities), abs=0.02)


# The untuned base beside them


def conversations() -> list[Example]:
    """Give short ones: half the context of an untuned model is for its answer."""
    task: Task = load_task("dialogue")
    told = [[{"role": "user", "content": text}] for text in ("Hello!", "Is the soup cold?")]
    rows = [Row({"messages": messages}, "test", number) for number, messages in enumerate(told)]
    return [task.read(row, needs_target=False) for row in rows]


def written_by_untuned(folder: Path, weights: WeightsSetting, *others: Path) -> list[TokenEvent]:
    """Have the untuned model write, after models were loaded beside it."""
    resident = Resident(weights=weights)
    for run in others:
        resident.load(run)
    model = resident.model(resident.load_untuned(folder, name="untuned"))
    layers = model.layers
    assert layers is not None
    assert {id(each.layers) for each in resident.models if each.layers} == {id(layers)}
    engine = GenerationEngine(layers.backbone, many=layers.many)
    (prompt,) = encode_prompts(layers.backbone, [PROMPT])
    adapter = own_adapter(model.predictor.backbone)
    engine.add(prompt, SHORT, index=0, adapter=adapter, num_alternatives=5)
    return list(run_engine(engine))


@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma3_text"])
def test_untuned_base_writes_to_the_last_bit_what_it_writes_alone(
    model_type: str, weights: WeightsSetting, tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    folder = tiny_folder(model_type)
    for name in ("topics", "talks"):
        save_run(tmp_path / name, folder, KINDS[name])
    alone = GenerationEngine(load_untuned(folder, purpose="language", weights=weights))
    (prompt,) = encode_prompts(alone._backbone, [PROMPT])
    alone.add(prompt, SHORT, index=0, num_alternatives=5)
    expected = list(run_engine(alone))
    assert written_by_untuned(folder, weights, tmp_path / "topics", tmp_path / "talks") == expected
    assert written_by_untuned(folder, weights) == expected
    if weights == "fp32":
        plain = plain_answers(folder, prompt, max_new_tokens=SHORT.max_new_tokens)
        assert [each.token_id for each in expected] == plain[0]


@pytest.mark.parametrize("first", ["base", "runs"])
def test_untuned_base_answers_among_its_runs_as_alone(
    first: str, many_runs: Path, tiny_folder: MakeTiny
) -> None:
    resident, names = Resident(weights="fp32"), ["talks", "topics", "stars"]
    loads = [partial(resident.load, many_runs / name) for name in names]
    loads.insert(0 if first == "base" else 3, partial(resident.load_untuned, tiny_folder("llama"), name="untuned"))  # fmt: skip
    for load in loads:
        load()
    assert len({id(each.base) for each in resident.models}) == 1
    asked = {name: examples_of(KINDS[name].task) for name in names}
    asked["untuned"] = asked["talks"] = conversations()
    found = resident.predict([(name, x) for name in asked for x in asked[name]])
    backbone = load_untuned(tiny_folder("llama"), purpose="language", weights="fp32")
    alone = {name: load_predictor(many_runs / name) for name in names}
    alone["untuned"] = untuned_predictor(backbone, digest=weights_digest(tiny_folder("llama")))
    assert_same(found, [each for name in asked for each in alone[name].predict(asked[name])])
    talks, untuned = (alone[name].predict(asked["talks"]) for name in ("talks", "untuned"))
    assert [each.answer for each in talks] != [each.answer for each in untuned]


@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8"])
def test_untuned_base_costs_nothing_beside_its_runs_and_is_counted_once(
    weights: WeightsSetting, many_runs: Path, tiny_folder: MakeTiny
) -> None:
    alone = weight_bytes(load_untuned(tiny_folder("llama"), purpose="language", weights=weights).model)  # fmt: skip
    resident = Resident(weights=weights)
    resident.load_untuned(tiny_folder("llama"), name="untuned")
    assert (resident.num_bytes, resident.model("untuned").num_bytes) == (alone, 0)
    resident.load(many_runs / "talks")
    assert resident.num_bytes == alone + resident.model("talks").num_bytes
    other = Resident(weights=weights, limit_bytes=resident.num_bytes)
    other.load(many_runs / "talks")
    other.load_untuned(tiny_folder("llama"), name="untuned")
    assert other.num_bytes == resident.num_bytes
    with pytest.raises(ModelError, match=r"`neo` needs 0\.\d MB more; models take"):
        other.load_untuned(tiny_folder("gpt_neo"), name="neo")
    assert [each.name for each in other.models] == ["talks", "untuned"]


def test_base_and_run_are_unloaded_and_replaced_without_the_other(
    many_runs: Path, tiny_folder: MakeTiny
) -> None:
    resident, examples = Resident(weights="fp32"), conversations()
    resident.load(many_runs / "talks")
    resident.load_untuned(tiny_folder("llama"), name="untuned")
    names = [(name, x) for name in ("talks", "untuned") for x in examples]
    expected = resident.predict(names)
    core = weakref.ref(resident.model("talks").predictor.backbone.model)
    resident.unload("talks")
    assert_same(resident.predict(names[len(examples) :]), expected[len(examples) :])
    resident.load(many_runs / "talks")
    resident.load_untuned(tiny_folder("llama"), name="untuned", replaces=True)
    with pytest.raises(RunError, match="`untuned` is loaded already"):
        resident.load_untuned(tiny_folder("llama"), name="untuned")
    assert_same(resident.predict(names), expected)
    resident.unload("untuned")
    assert_same(resident.predict(names[: len(examples)]), expected[: len(examples)])
    resident.unload("talks")
    assert (core(), resident.num_bytes) == (None, 0)


def test_what_is_not_the_base_itself_shares_nothing_with_it(
    many_runs: Path, tiny_folder: MakeTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resident = holding(many_runs, "topics")
    base = resident.model("topics").base
    changed, otherwise = (
        shutil.copytree(tiny_folder("llama"), tmp_path / name) for name in ("changed", "otherwise")
    )
    weights = load_file(changed / "model.safetensors")
    weights["model.norm.weight"].add_(1e-3)
    save_file(weights, changed / "model.safetensors", metadata={"format": "pt"})
    (otherwise / "chat_template.jinja").write_text("{{ bos_token }}", "utf-8")
    run = save_run(tmp_path / "whole", tiny_folder("llama"), Kind("dialogue", "generate", "full"))
    monkeypatch.setattr("lushan.model_store.resident.untuned_form", lambda _: "fp32")
    names = [resident.load_untuned(each) for each in (changed, otherwise)]
    assert all(resident.model(name).base not in (base, None) for name in names)
    assert resident.model(resident.load(run)).base is None
    # The run is held as it was trained, the base as is fast here.
    monkeypatch.setattr("lushan.model_store.resident.untuned_form", lambda _: "bf16")
    resident.load_untuned(tiny_folder("llama"), name="halved")
    assert resident.model("halved").base not in (base, None)


# What they cost


def test_model_costs_what_it_has_of_its_own(many_runs: Path, tiny_folder: MakeTiny) -> None:
    resident = holding(many_runs, "talks")
    base = load_backbone(tiny_folder("llama"), purpose="language").model
    base_bytes = sum(each.nbytes for each in base.parameters())
    assert resident.num_bytes == base_bytes + resident.model("talks").num_bytes
    file = many_runs / "talks" / "model" / "adapter_model.safetensors"
    stored = sum(each.nbytes for each in load_file(file).values())
    assert resident.model("talks").num_bytes == stored
    for name in ("topics", "stars", "links"):
        before = resident.num_bytes
        resident.load(many_runs / name)
        cost = resident.num_bytes - before
        assert cost == resident.model(name).num_bytes
    num_classes = len(resident.model("stars").predictor.state.labels)
    assert resident.model("stars").num_bytes == num_classes * 16 * 4


def test_model_that_does_not_fit_is_refused_with_the_numbers_and_changes_nothing(
    many_runs: Path,
) -> None:
    whole = holding(many_runs, "topics")
    resident = Resident(limit_bytes=whole.num_bytes + 100)
    resident.load(many_runs / "topics")
    with pytest.raises(ModelError, match=r"`names` needs 0\.\d MB more; models take .* Unload one"):
        resident.load(many_runs / "names")
    assert [each.name for each in resident.models] == ["topics"]
    resident.unload("topics")
    resident.load(many_runs / "topics")
    with pytest.raises(ModelError, match="needs"):
        Resident(limit_bytes=1000).load(many_runs / "topics")


def test_base_is_freed_with_the_last_model_that_needs_it(many_runs: Path) -> None:
    resident = holding(many_runs, "topics", "stars")
    base = resident.model("topics").base
    assert base is not None
    core = weakref.ref(base.layers.backbone.model)
    del base
    resident.unload("topics")
    assert core() is not None
    resident.unload("stars")
    assert core() is None
    assert resident.num_bytes == 0


# How they come and go


def test_models_come_and_go_while_an_engine_writes(many_runs: Path, tiny_folder: MakeTiny) -> None:
    resident = holding(many_runs, "talks")
    layers = resident.model("talks").layers
    assert layers is not None
    engine = GenerationEngine(layers.backbone, many=layers.many)
    (prompt,) = encode_prompts(load_backbone(tiny_folder("llama"), purpose="language"), [PROMPT])
    engine.add(
        prompt, SHORT, index=0, adapter=own_adapter(resident.model("talks").predictor.backbone)
    )
    engine.add(prompt, SHORT, index=1)
    events = [event for _ in range(3) for event in engine.step()]
    resident.load(many_runs / "sums")
    assert resident.model("sums").layers is layers
    engine.add(
        prompt, SHORT, index=2, adapter=own_adapter(resident.model("sums").predictor.backbone)
    )
    events += engine.step()
    resident.unload("talks")
    resident.load(many_runs / "sums", name="talks")
    while engine.is_busy:
        events += engine.step()
    base = load_backbone(tiny_folder("llama"), purpose="language")
    backbones = [load_predictor(many_runs / name).backbone for name in ("talks", "sums")]
    alone = [generate(each, [prompt], SHORT)[0].token_ids for each in (backbones[0], base, backbones[1])]  # fmt: skip
    assert [written(events, index) for index in range(3)] == alone
    assert len({tuple(each) for each in alone}) == 3


def test_name_that_is_not_loaded_is_refused_with_those_that_are(many_runs: Path) -> None:
    resident = holding(many_runs, "topics", "stars")
    example = examples_of("classification")[0]
    with pytest.raises(ModelError, match=r"No model `links` is loaded\. Loaded: `topics`, `stars`"):
        resident.unload("links")
    with pytest.raises(ModelError, match="No model `links`"):
        resident.predict([("topics", example), ("links", example)])
    with pytest.raises(ModelError, match="Loaded: none"):
        Resident().unload("links")


def test_model_that_replaces_another_is_checked_first(many_runs: Path) -> None:
    resident, first = holding(many_runs, "topics"), []

    def refuse(_: Predictor) -> None:
        raise RunError("not that one")

    first.append(resident.model("topics"))
    with pytest.raises(RunError, match="not that one"):
        resident.load(many_runs / "topics", replaces=True, check=refuse)
    assert [*resident.models] == first
    resident.load(many_runs / "topics", replaces=True, check=first.append)
    assert [each.predictor for each in resident.models] == first[1:]


def test_second_model_of_a_name_is_refused(many_runs: Path) -> None:
    resident = holding(many_runs, "topics")
    with pytest.raises(RunError, match="`topics` is loaded already"):
        resident.load(many_runs / "topics")
    assert resident.load(many_runs / "topics", name="again") == "again"


# What is refused, and what shares nothing


def test_adapter_of_another_base_is_refused(many_runs: Path, tmp_path: Path) -> None:
    run = own_copy(many_runs / "topics", tmp_path)
    weights = load_file(tmp_path / "base" / "model.safetensors")
    weights["model.norm.weight"].add_(1e-3)
    save_file(weights, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"is an adapter of .*base`, but the weights in .* others"):
        Resident().load(run)


def test_head_whose_base_is_gone_or_other_is_served_alone(many_runs: Path, tmp_path: Path) -> None:
    run = own_copy(many_runs / "stars", tmp_path)
    shutil.rmtree(tmp_path / "base")
    resident = Resident()
    assert "not on this machine" in resident.model(resident.load(run)).why_alone
    resident = holding(many_runs, "topics")
    change_weights(run, "layers.1.mlp.up_proj", by=1e-3)
    model = resident.model(resident.load(run))
    assert (model.base, model.why_alone) == (None, "its weights are not its base's")


@pytest.mark.parametrize("name", ["topics", "stars"])
def test_head_that_is_not_there_is_refused(name: str, many_runs: Path, tmp_path: Path) -> None:
    resident = holding(many_runs, "names")
    broken = own_copy(many_runs / name, tmp_path)
    (file,) = (broken / "model").glob("*.safetensors")
    weights = {key: each for key, each in load_file(file).items() if "score" not in key}
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks (weights, such as )?`.*score"):
        resident.load(broken)
    assert [each.name for each in resident.models] == ["names"]


@pytest.mark.parametrize(
    ("name", "weight"),
    [("topics", "0.mlp.up_proj.lora_A"), ("topics", "score"), ("stars", "score")],
)
def test_weights_that_are_not_finite_are_refused(
    name: str, weight: str, many_runs: Path, tmp_path: Path
) -> None:
    broken = own_copy(many_runs / name, tmp_path)
    change_weights(broken, weight, by=float("nan"))
    with pytest.raises(ModelError, match=rf"`.*{weight}.*` holds values that are not finite"):
        holding(many_runs, "names").load(broken)


def test_adapter_that_is_cut_off_is_refused(many_runs: Path, tmp_path: Path) -> None:
    run = own_copy(many_runs / "topics", tmp_path)
    file = run / "model" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(RunError, match="cannot be loaded"):
        holding(many_runs, "names").load(run)


def test_tokenizer_of_another_model_is_refused(many_runs: Path, tmp_path: Path) -> None:
    for name in ("topics", "stars"):
        run = own_copy(many_runs / name, tmp_path / name)
        file = run / "model" / "lushan.json"
        meaning = json.loads(file.read_text("utf-8"))
        file.write_text(json.dumps(meaning | {"tokenizer_fingerprint": "x"}), "utf-8")
        with pytest.raises(RunError, match="is not the one that the model was trained with"):
            holding(many_runs, "names").load(run)


def test_limits_of_length_are_those_of_each_model(many_runs: Path) -> None:
    resident = holding(many_runs, "topics", "names")
    example = examples_of("classification")[0]
    with pytest.raises(UserError, match="tokens"):
        resident.predict([
            ("names", examples_of("tagging")[0]),
            ("topics", replace(example, text="soup " * 200)),
        ])

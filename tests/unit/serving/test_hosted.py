"""What is served: runs that answer as their certificates say, and untuned models."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from lushan.backbones.sources import RECORD_FILE
from lushan.errors import ModelError, RunError, SettingError
from lushan.model_store.resident import Resident
from lushan.serving.errors import UnknownModelError
from lushan.serving.hosted import HostedModel, find_model, host, names_of
from lushan.workflows.export import export
from tests.conftest import MakeTiny
from tests.exported import ask_here
from tests.runs import read


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    """Give a copy of a certified run that a test may spoil."""
    shutil.copytree(tiny_run, tmp_path / "reviews")
    return tmp_path / "reviews"


def change_meaning(run: Path, **values: object) -> None:
    file = run / "model" / "lushan.json"
    file.write_text(json.dumps(read(file) | values), encoding="utf-8")


def test_certified_run_is_hosted_by_the_name_of_its_folder(run: Path) -> None:
    for target in (run, run / "model"):
        found = host(str(target), Resident())
        assert (found.name, found.run, found.is_tuned, found.certified) == (
            *("reviews", run),
            *(True, True),
        )
    assert not found.reads_conversations


def test_export_is_hosted_by_a_certificate_of_its_own(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask_here(monkeypatch)
    export(run, to="hf", out=tmp_path / "merged")
    assert host(str(tmp_path / "merged"), Resident()).certified
    (tmp_path / "merged" / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    with pytest.raises(RunError, match=r"merged` is not what its certificate.*jinja` was not th"):
        host(str(tmp_path / "merged"), Resident())


def test_run_without_its_certificate_is_hosted_and_marked(run: Path) -> None:
    (run / "certificate.json").unlink()
    assert not host(str(run), Resident()).certified


def test_run_whose_labels_were_swapped_is_refused(run: Path) -> None:
    state = read(run / "model" / "lushan.json")["state"]
    change_meaning(run, state=state | {"labels": state["labels"][::-1]})
    with pytest.raises(RunError, match=r"not what its certificate is about.*labels.*not served"):
        host(str(run), Resident())


def test_run_whose_weights_were_changed_is_refused(run: Path) -> None:
    file = run / "model" / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if "score" in name)
    save_file(weights | {name: -weights[name]}, file, metadata={"format": "pt"})
    with pytest.raises(RunError, match="not what its certificate is about"):
        host(str(run), Resident())


def test_run_that_answers_alike_but_is_another_version_is_refused(run: Path) -> None:
    change_meaning(run, base_model="another")
    with pytest.raises(RunError, match=r"`.*lushan.json` was changed.*not served"):
        host(str(run), Resident())


def test_broken_certificate_is_refused(run: Path) -> None:
    (run / "certificate.json").write_text("{}", encoding="utf-8")
    with pytest.raises(RunError, match=r"certificate.json` is broken: KeyError.*not served"):
        host(str(run), Resident())


def test_untuned_model_chats_and_leaves_half_its_context_to_what_is_asked(
    tiny_folder: MakeTiny,
) -> None:
    found = host(str(tiny_folder("llama")), Resident(weights="fp32"))
    assert (found.is_tuned, found.certified, found.run) == (False, False, None)
    assert found.reads_conversations
    assert found.predictor.generation.max_new_tokens == 64


def test_model_of_the_cache_is_no_run_though_it_has_a_record(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    shutil.copytree(tiny_folder("llama"), tmp_path / "mine")
    (tmp_path / "mine" / RECORD_FILE).write_text('{"name": "mine"}', encoding="utf-8")
    assert not host(str(tmp_path / "mine"), Resident(weights="fp32")).is_tuned


def test_encoder_is_hosted_for_its_vectors(tiny_folder: MakeTiny) -> None:
    found = host(str(tiny_folder("modernbert")), Resident(weights="fp32"))
    assert found.predictor.backbone.plain_model.get_output_embeddings() is None


def test_two_models_of_one_name_are_refused(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "other" / "reviews")
    with pytest.raises(SettingError, match="Two models would be called `reviews`"):
        names_of([str(run), str(tmp_path / "other" / "reviews" / "model")])


def test_model_that_is_not_there_is_told_at_once() -> None:
    with pytest.raises(ModelError, match="Unknown model `no-such`"):
        names_of(["no-such"])


def test_unknown_model_is_told_with_those_there_are(chatter: HostedModel) -> None:
    assert find_model({"chatter": chatter}, "chatter") is chatter
    with pytest.raises(UnknownModelError, match="Served: chatter"):
        find_model({"chatter": chatter}, "other")

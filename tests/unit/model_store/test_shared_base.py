"""Which models have the same base, and which bases can be shared."""

import json
import shutil
from pathlib import Path

import pytest
from torch import Tensor, nn

from lushan.backbones.load import Backbone, WeightForm, load_backbone
from lushan.backbones.packed import load_untuned
from lushan.backbones.sources import RECORD_FILE
from lushan.errors import ModelError
from lushan.model_store import shared_base
from lushan.model_store.shared_base import Apart, Base, BaseKey, Bases, predicted_bytes
from tests.conftest import MakeTiny
from tests.tiny import write_class_model


class Doubling(nn.Linear):
    """Does more than to multiply."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        return super().forward(input) * 2


def anything_fits(_: int) -> None:
    """Have room."""


def key_of(folder: Path, form: WeightForm = "fp32", *, both_ways: bool = False) -> BaseKey:
    return BaseKey.of(folder, "digest", form, both_ways=both_ways)


def test_copy_is_the_same_base_wherever_it_came_from(tiny_folder: MakeTiny, tmp_path: Path) -> None:
    folder = tiny_folder("llama")
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / RECORD_FILE).write_text('{"name": "mine"}', encoding="utf-8")
    assert key_of(tmp_path / "copy") == key_of(folder)
    assert len({key_of(folder), key_of(folder, "bf16"), key_of(folder, both_ways=True)}) == 3


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("config.json", {"rope_theta": 500.0}),
        ("generation_config.json", {"eos_token_id": 5}),
        ("tokenizer_config.json", {"chat_template": "{{ messages[0].content }}"}),
    ],
)
def test_equal_weights_that_are_used_otherwise_are_another_base(
    file: str, change: dict[str, object], tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    other = shutil.copytree(tiny_folder("llama"), tmp_path / "other")
    values = json.loads((other / file).read_text("utf-8"))
    (other / file).write_text(json.dumps(values | change), "utf-8")
    assert key_of(other) != key_of(tiny_folder("llama"))
    shutil.copyfile(tiny_folder("llama") / file, other / file)
    assert key_of(other) == key_of(tiny_folder("llama"))
    (other / "chat_template.jinja").write_text("{{ bos_token }}", "utf-8")
    assert key_of(other) != key_of(tiny_folder("llama"))


def test_base_is_found_as_long_as_it_is_held(tiny_folder: MakeTiny) -> None:
    bases, folder = Bases(), tiny_folder("llama")
    key, asked = key_of(folder), list[int]()
    base = bases.load(folder, key, asked.append)
    assert isinstance(base, Base)
    assert bases.find(key) is base
    assert bases.find_weights("digest", "fp32", both_ways=False) is base
    assert bases.find_weights("digest", "bf16", both_ways=False) is None
    plain = load_backbone(folder, purpose="language").model
    assert bases.num_bytes == sum(each.nbytes for each in plain.parameters())
    assert asked == [predicted_bytes(folder, "fp32"), bases.num_bytes]
    del base
    assert (bases.find(key), bases.num_bytes) == (None, 0)


def test_base_that_does_not_fit_is_not_kept(tiny_folder: MakeTiny) -> None:
    bases, folder = Bases(), tiny_folder("llama")

    def refuse(_: int) -> None:
        raise ModelError("too large")

    with pytest.raises(ModelError, match="too large"):
        bases.load(folder, key_of(folder), refuse)
    assert bases.num_bytes == 0


def test_encoder_and_model_without_packed_attention_are_not_shared(tiny_folder: MakeTiny) -> None:
    bases = Bases()
    folders = [tiny_folder("bert"), tiny_folder("gpt_neo")]
    encoder, neo = (bases.load(each, key_of(each), anything_fits) for each in folders)
    assert encoder == Apart("encoders do not share layers")
    assert isinstance(neo, Apart)
    assert neo.why == "`gpt_neo` cannot use packed attention"
    assert neo.backbone is not None
    assert bases.num_bytes == 0


def test_decoder_without_output_weights_is_not_shared(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    folder = write_class_model(tiny_folder("llama"), tmp_path / "tuned", ("a", "b"))
    found = Bases().load(folder, key_of(folder), anything_fits)
    assert isinstance(found, Apart)
    assert found.why.startswith("its base has no weights that score the next token")
    assert found.backbone is None


def test_model_whose_linear_layers_do_more_is_not_shared(
    tiny_folder: MakeTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_folder("llama")

    def load(*_: object, **__: object) -> Backbone:
        backbone = load_untuned(folder, purpose="language", weights="fp32")
        backbone.layers[1].mlp.up_proj.__class__ = Doubling  # pyright: ignore[reportAttributeAccessIssue]
        return backbone

    monkeypatch.setattr(shared_base, "load_backbone", load)
    found = Bases().load(folder, key_of(folder), anything_fits)
    assert isinstance(found, Apart)
    assert found.why == "`llama` has linear layers of a kind of its own"

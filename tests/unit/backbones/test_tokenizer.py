"""Ids follow the raw file, exactly one `<bos>`, nothing cut, and differences to transformers are told."""

import json
import shutil
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

from lushan.backbones import tokenizer as tokenizer_module
from lushan.backbones.tokenizer import PROBES, Tokenizer
from lushan.errors import DataError, ModelError
from tests.conftest import MakeTiny
from tests.tiny import CORPUS, write_turns


def change(source: Path, target: Path, **settings: object) -> Path:
    shutil.copytree(source, target)
    file = target / "tokenizer_config.json"
    values = json.loads(file.read_text(encoding="utf-8")) | settings
    file.write_text(json.dumps(values), encoding="utf-8")
    return target


def with_digit_rule(folder: Path, tokenizer_class: str) -> Path:
    """A SmolLM-like folder: digits stand alone, although merges of digits exist."""
    raw = tokenizers.Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["<|end|>"], show_progress=False
    )
    raw.train_from_iterator(["2024 1,234.50"] * 9, trainer)
    raw.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(False),
    ])
    folder.mkdir()
    raw.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": tokenizer_class, "eos_token": "<|end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def edit_raw(source: Path, target: Path) -> tuple[Path, tokenizers.Tokenizer]:
    shutil.copytree(source, target)
    return target, tokenizers.Tokenizer.from_file(str(target / "tokenizer.json"))


@pytest.mark.parametrize("model_type", ["gpt2", "gemma3_text", "bert"])
def test_ids_equal_those_of_transformers(model_type: str, tiny_folder: MakeTiny) -> None:
    folder = tiny_folder(model_type)
    ours = [encoded.ids for encoded in Tokenizer.load(folder).encode(PROBES)]
    theirs = AutoTokenizer.from_pretrained(folder)
    assert ours == [theirs(text)["input_ids"] for text in PROBES]


def test_one_bos_is_put_before_every_text(tiny_folder: MakeTiny) -> None:
    tokenizer = Tokenizer.load(tiny_folder("gemma3_text"))
    for encoded in tokenizer.encode(["fox", "", "<bos>fox"]):
        assert encoded.ids.count(1) == 1
        assert encoded.ids[0] == tokenizer.bos_id == 1


def test_a_bos_that_the_template_wrote_is_not_doubled(tiny_folder: MakeTiny) -> None:
    plain, templated = Tokenizer.load(tiny_folder("gemma3_text")).encode(["fox", "<bos>fox"])
    assert plain.ids == templated.ids


def test_bos_that_the_raw_file_forgets_is_added_and_told(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    folder = change(tiny_folder("llama"), tmp_path / "model", add_bos_token=True)
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.encode(["fox"])[0].ids[0] == 1
    assert any("`<bos>`" in note for note in tokenizer.notes)


def test_stop_token_after_every_text_is_left_out_for_a_decoder(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    folder, raw = edit_raw(tiny_folder("llama"), tmp_path / "model")
    raw.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    raw.save(str(folder / "tokenizer.json"))
    tokenizer = Tokenizer.load(folder)
    ids = tokenizer.encode(["fox"])[0].ids
    assert (ids[0], ids.count(2)) == (1, 0)
    assert any("stop token" in note for note in tokenizer.notes)


def test_an_encoder_gets_both_ends_with_empty_offsets(tiny_folder: MakeTiny) -> None:
    encoded = Tokenizer.load(tiny_folder("bert")).encode(["fox"])[0]
    assert (encoded.ids[0], encoded.ids[-1]) == (1, 2)
    assert (encoded.offsets[0], encoded.offsets[-1]) == ((0, 0), (0, 0))


def test_offsets_point_at_the_text(tiny_folder: MakeTiny) -> None:
    text = "The fox ran\n\n home; caf\u00e9 \u5c71"
    encoded = Tokenizer.load(tiny_folder("gemma3_text")).encode([text])[0]
    covered = {place for start, end in encoded.offsets for place in range(start, end)}
    assert covered == set(range(len(text)))


def test_a_length_limit_in_the_file_is_lifted(tiny_folder: MakeTiny, tmp_path: Path) -> None:
    folder, raw = edit_raw(tiny_folder("bert"), tmp_path / "model")
    raw.enable_truncation(4)
    raw.enable_padding(length=16)
    raw.save(str(folder / "tokenizer.json"))
    short, long = Tokenizer.load(folder).encode(["fox", CORPUS[0]])
    assert len(short.ids) < 16
    assert len(long.ids) > 16


@pytest.mark.parametrize("text", [" " * 37, "a" + "\n" * 9 + "b", "\t \t\n  x ", *PROBES])
def test_decode_gives_the_text_back(text: str, tiny_folder: MakeTiny) -> None:
    tokenizer = Tokenizer.load(tiny_folder("gemma3_text"))
    assert tokenizer.decode(tokenizer.encode([text])[0].ids) == text


def test_class_that_drops_the_digit_rule_is_told_and_the_raw_file_wins(tmp_path: Path) -> None:
    folder = with_digit_rule(tmp_path / "model", "GPT2Tokenizer")
    raw = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.encode([PROBES[1]])[0].ids == raw.encode(PROBES[1]).ids
    assert (
        AutoTokenizer.from_pretrained(folder)(PROBES[1])["input_ids"] != raw.encode(PROBES[1]).ids
    )
    assert any("reads 1 of 8 test texts differently" in note for note in tokenizer.notes)


def test_neutral_class_agrees_and_leaves_no_note(tmp_path: Path) -> None:
    folder = with_digit_rule(tmp_path / "model", "PreTrainedTokenizerFast")
    assert Tokenizer.load(folder).notes == ()


def test_normalisation_that_only_transformers_adds_is_told(tmp_path: Path) -> None:
    folder = with_digit_rule(tmp_path / "model", "Qwen2Tokenizer")
    raw = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert raw.normalizer is None
    tokenizer = Tokenizer.load(folder)
    composed, decomposed = tokenizer.encode(["caf\u00e9", "cafe\u0301"])
    assert composed.ids != decomposed.ids
    assert any("differently" in note for note in tokenizer.notes)


def test_normalisation_of_the_raw_file_survives_saving(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    folder, raw = edit_raw(tiny_folder("llama"), tmp_path / "model")
    raw.normalizer = normalizers.NFC()
    raw.save(str(folder / "tokenizer.json"))
    (tmp_path / "copy").mkdir()
    Tokenizer.load(folder).save(tmp_path / "copy")
    composed, decomposed = Tokenizer.load(tmp_path / "copy").encode(["caf\u00e9", "cafe\u0301"])
    assert composed.ids == decomposed.ids


def test_comparison_is_made_once(tiny_folder: MakeTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Tokenizer.load(tiny_folder("llama"))
    monkeypatch.delattr(tokenizer_module, "compare_with_transformers")
    assert Tokenizer.load(tiny_folder("llama")).notes == first.notes


def test_comparison_whose_record_is_broken_is_made_anew(
    tiny_folder: MakeTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LUSHAN_CACHE", str(tmp_path))
    Tokenizer.load(tiny_folder("llama"))
    (record,) = (tmp_path / "tokenizers").iterdir()
    written = record.read_text(encoding="utf-8")
    record.write_text("", encoding="utf-8")
    Tokenizer.load(tiny_folder("llama"))
    assert record.read_text(encoding="utf-8") == written


@pytest.mark.parametrize("missing", [2**32 - 1, -1, 320, None, []])
def test_id_that_does_not_exist_is_no_stop_token(
    missing: object, tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    folder = change(tiny_folder("llama"), tmp_path / "model", eos_token=None)
    for name in ("config.json", "generation_config.json"):
        values = json.loads((folder / name).read_text(encoding="utf-8"))
        values["eos_token_id"] = missing
        (folder / name).write_text(json.dumps(values), encoding="utf-8")
    assert Tokenizer.load(folder).stop_id is None


def test_stop_token_may_be_the_padding_token(tiny_folder: MakeTiny, tmp_path: Path) -> None:
    settings = {"pad_token": "<eos>"}
    folder = change(tiny_folder("llama"), tmp_path / "model", **settings)
    assert Tokenizer.load(folder).stop_id == 2


def test_saved_tokenizer_has_the_same_fingerprint(tiny_folder: MakeTiny, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(tiny_folder("gemma3_text"))
    tokenizer.save(tmp_path)
    copy = Tokenizer.load(tmp_path)
    assert copy.fingerprint == tokenizer.fingerprint
    assert copy.encode(PROBES) == tokenizer.encode(PROBES)


def test_files_of_a_relative_folder_are_saved_from_any_working_directory(
    tiny_folder: MakeTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_folder("llama"), tmp_path / "model")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    tokenizer = Tokenizer.load(Path("model"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    tokenizer.save(Path())
    assert Tokenizer.load(Path()).fingerprint == tokenizer.fingerprint


def test_fingerprint_follows_the_special_token_rule(tiny_folder: MakeTiny, tmp_path: Path) -> None:
    folder = change(tiny_folder("llama"), tmp_path / "model", add_bos_token=True)
    plain = Tokenizer.load(tiny_folder("llama"))
    assert Tokenizer.load(folder).fingerprint != plain.fingerprint


def test_half_a_character_is_refused_with_its_place(tiny_folder: MakeTiny) -> None:
    with pytest.raises(DataError, match=r"Text 2 holds half a character at position 1: 'a\\ud800'"):
        Tokenizer.load(tiny_folder("llama")).encode(["fine", "a\ud800"])


def test_folder_without_a_raw_file_tells_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no `tokenizer.json`. Make it once"):
        Tokenizer.load(tmp_path)


def test_broken_raw_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match=r"tokenizer.json` is broken"):
        Tokenizer.load(tmp_path)


def test_special_token_in_a_text_is_found(tiny_folder: MakeTiny) -> None:
    tokenizer = Tokenizer.load(tiny_folder("llama"))
    found = tokenizer.special_names.search(f"a {tokenizer._token(tokenizer.stop_id)} b")
    assert found is not None
    assert found[0] == tokenizer._token(tokenizer.stop_id)
    assert tokenizer.special_names.search("a b") is None


def set_rows(folder: Path, rows: int) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": rows}))


def test_tokenizer_of_another_model_is_refused(tiny_folder: MakeTiny, tmp_path: Path) -> None:
    folder = change(tiny_folder("llama"), tmp_path / "model")
    set_rows(folder, 300)
    with pytest.raises(ModelError, match="knows 320 tokens, the model only 300"):
        Tokenizer.load(folder)


def test_special_token_without_a_row_is_told(tiny_folder: MakeTiny, tmp_path: Path) -> None:
    folder, raw = edit_raw(tiny_folder("llama"), tmp_path / "model")
    raw.add_special_tokens(["<image>"])
    raw.save(str(folder / "tokenizer.json"))
    tokenizer = Tokenizer.load(folder)
    assert any("`<image>`" in note for note in tokenizer.notes)
    with pytest.raises(DataError, match="holds `<image>`, a mark of which this model knows"):
        tokenizer.encode(["the fox", "the <image> fox"])


@pytest.mark.parametrize(
    ("end", "stops"),
    [
        ("{{ eos_token }}", {2}),
        ("<pad>", {0, 2}),
        (" |<pad>\n{{ eos_token }}", {0, 2}),
        ("|", {2}),
        ("{{ raise_exception('no') }}", {2}),
        ("{{ m.content.index('x') }}", {2}),
    ],
)
def test_special_token_that_ends_a_turn_of_the_chat_template_ends_an_answer(
    end: str, stops: set[int], tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    template = f"{{% for m in messages %}}<bos>{{{{ m.content }}}}{end}\n{{% endfor %}}"
    folder = change(tiny_folder("llama"), tmp_path / "model", chat_template=template)
    assert Tokenizer.load(folder).stop_ids == stops


def test_plain_chat_ends_with_the_stop_token_and_an_adapter_with_that_of_its_template(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    base = Tokenizer.load(tiny_folder("llama"))
    assert base.stop_ids == {2}
    base.save(tmp_path)
    assert not (tmp_path / "chat_template.jinja").exists()
    adapter = write_turns(tiny_folder("llama"), tmp_path / "adapter")
    assert base.with_chat_of(adapter).stop_ids == {0, 2}
    assert base.stop_ids == {2}

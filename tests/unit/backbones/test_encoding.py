"""From rendered text to token ids: limits, windows, and where the supervised tokens start."""

import re
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from lushan.backbones.encoding import (
    LengthLimit,
    LengthPolicy,
    Window,
    characters_read,
    encode_rendered,
    watch_encoding,
)
from lushan.backbones.tokenizer import Tokenizer
from lushan.errors import DataError, TooLongError
from lushan.records import Rendered
from tests.conftest import MakeTiny
from tests.tiny import CORPUS

PROMPT, ANSWER = "Text: the fox lived in the forest\nLabel:", " good"
TEXT = (6, 33)
ASKED = Rendered(PROMPT, cuttable=TEXT)
ANSWERED = Rendered(
    PROMPT + ANSWER,
    supervised=((len(PROMPT), len(PROMPT) + len(ANSWER)),),
    cuttable=TEXT,
    ends_with_stop=True,
)


@pytest.fixture(params=["llama", "gemma3_text", "bert"])
def tokenizer(request: pytest.FixtureRequest, tiny_folder: MakeTiny) -> Tokenizer:
    return Tokenizer.load(tiny_folder(request.param))


@pytest.fixture
def plain(tiny_folder: MakeTiny) -> Tokenizer:
    """Give a tokenizer that adds no special tokens."""
    return Tokenizer.load(tiny_folder("llama"))


def encode(
    rendered: Rendered, tokenizer: Tokenizer, num_tokens: int, policy: LengthPolicy = "error"
) -> list[Window]:
    limit = LengthLimit(num_tokens, policy)
    (windows,) = encode_rendered([rendered], tokenizer, limit=limit, places=["a.csv, row 3"])
    return windows


def test_text_that_fits_is_encoded_as_the_tokenizer_does(tokenizer: Tokenizer) -> None:
    (encoded,) = tokenizer.encode([PROMPT])
    assert encode(ASKED, tokenizer, 1000) == [
        Window(tuple(encoded.ids), -1, 0, tuple(encoded.offsets))
    ]


def test_text_of_exactly_the_limit_is_not_cut(tokenizer: Tokenizer) -> None:
    num_tokens = len(tokenizer.encode([PROMPT])[0].ids)
    (window,) = encode(ASKED, tokenizer, num_tokens)
    assert len(window.token_ids) == num_tokens


def test_supervised_tokens_are_the_answer_and_the_stop_token(plain: Tokenizer) -> None:
    (window,) = encode(ANSWERED, plain, 1000)
    supervised = window.token_ids[window.targets_from :]
    assert supervised[-1] == plain.stop_id
    assert plain.decode(list(supervised[:-1])) == ANSWER


def with_raw(raw: tokenizers.Tokenizer, model: Path, folder: Path) -> Tokenizer:
    shutil.copytree(model, folder)
    raw.save(str(folder / "tokenizer.json"))
    return Tokenizer.load(folder)


def parted(text: str, tokenizer: Tokenizer) -> list[Window]:
    """Supervise a text from every place inside of a token on, and compare with how it is asked."""
    (joint,) = tokenizer.encode([text])
    windows: list[Window] = []
    for border in (place for start, end in joint.offsets for place in range(start + 1, end)):
        (asked,) = tokenizer.encode([text[:border]])
        told = Rendered(text, supervised=((border, len(text)),), ends_with_stop=True)
        (window,) = encode(told, tokenizer, 1000)
        assert list(window.token_ids[: window.targets_from]) == asked.ids
        learned = slice(window.targets_from, None)
        assert tokenizer.decode(window.token_ids[learned]) == text[border:]
        assert "".join(text[start:end] for start, end in window.offsets[learned]) == text[border:]
        windows.append(window)
    assert windows
    return windows


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
def test_token_across_the_start_of_an_answer_is_parted_as_the_model_is_asked(
    model_type: str, tiny_folder: MakeTiny
) -> None:
    parted("Label: the fox", Tokenizer.load(tiny_folder(model_type)))


def test_answer_behind_a_parted_token_begins_without_the_space_of_a_first_word(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    raw = tokenizers.Tokenizer(models.BPE())
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=200, special_tokens=["<pad>", "<bos>", "<eos>"], show_progress=False
    )
    raw.train_from_iterator(CORPUS, trainer)
    for window in parted("the fox", with_raw(raw, tiny_folder("llama"), tmp_path / "model")):
        first = raw.id_to_token(window.token_ids[window.targets_from])
        assert first is not None
        assert not first.startswith("\u2581")


def test_answer_that_joins_with_everything_is_learned_from_the_joint_token_on(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    names = ["<pad>", "<bos>", "<eos>", *"\napx", "\nx", "ax", "px"]
    vocabulary = {name: number for number, name in enumerate(names)}
    model = models.BPE(vocab=vocabulary, merges=[(each, "x") for each in "\nap"])
    joining = with_raw(tokenizers.Tokenizer(model), tiny_folder("llama"), tmp_path / "model")
    (window,) = encode(Rendered("apx", supervised=((2, 3),)), joining, 1000)
    assert window.token_ids == (vocabulary["a"], vocabulary["px"])
    assert window.targets_from == 1


def test_place_that_cannot_be_parted_leaves_the_others_parted(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    names = ["<pad>", "<bos>", "<eos>", *"\napxy", "\nx", "ax", "px", "py"]
    vocabulary = {name: number for number, name in enumerate(names)}
    model = models.BPE(vocab=vocabulary, merges=[*((each, "x") for each in "\nap"), ("p", "y")])
    joining = with_raw(tokenizers.Tokenizer(model), tiny_folder("llama"), tmp_path / "model")
    (window,) = encode(Rendered("pyapx", supervised=((4, 5),), asked_at=(1,)), joining, 1000)
    assert window.token_ids == tuple(vocabulary[each] for each in ("p", "y", "a", "px"))
    assert window.targets_from == 3


def test_too_long_text_is_refused_with_its_place_and_length(plain: Tokenizer) -> None:
    num_tokens = len(plain.encode([PROMPT])[0].ids)
    message = f"a.csv, row 3: {num_tokens} tokens, but at most {num_tokens - 1} fit. Choose `--set"
    with pytest.raises(DataError, match=re.escape(message)):
        encode(ASKED, plain, num_tokens - 1)


def test_texts_that_are_too_long_are_refused_together(plain: Tokenizer) -> None:
    texts = ["the fox", "the fox lived in the forest", "the", "the fox lived in the forest again"]
    lengths = [len(each.ids) for each in plain.encode(texts)]
    limit = LengthLimit(max(lengths[0], lengths[2]))
    rendered = [Rendered(each, cuttable=(0, len(each))) for each in texts]
    places = [f"a.csv, row {number}" for number in range(4)]
    message = rf"^a\.csv, row 1: {lengths[1]} tokens, .* 2 rows are .*, a\.csv, row 3, has {lengths[3]} tokens\.$"
    with pytest.raises(TooLongError, match=message):
        encode_rendered(rendered, plain, limit=limit, places=places)


def test_truncating_shortens_the_text_and_keeps_what_surrounds_it(tokenizer: Tokenizer) -> None:
    (whole,) = encode(ASKED, tokenizer, 1000)
    (window,) = encode(ASKED, tokenizer, len(whole.token_ids) - 3, "truncate")
    assert len(window.token_ids) == len(whole.token_ids) - 3
    assert window.num_cut_tokens == 3
    assert tokenizer.decode(list(window.token_ids)).endswith("\nLabel:")
    assert window.token_ids[0] == whole.token_ids[0]
    assert window.token_ids[-1] == whole.token_ids[-1]


def test_start_of_the_text_is_cut_where_its_end_counts(tokenizer: Tokenizer) -> None:
    (whole,) = encode(ASKED, tokenizer, 1000)
    limit = len(whole.token_ids) - 3
    (window,) = encode(replace(ASKED, cuts_start=True), tokenizer, limit, "truncate")
    assert window.num_cut_tokens == 3
    end = PROMPT.index("forest")
    kept = [each for each in whole.offsets if each[1] > end]
    assert [each for each in window.offsets if each[1] > end] == kept
    assert "the fox" not in tokenizer.decode(list(window.token_ids))


def test_token_that_begins_before_the_text_stays(plain: Tokenizer) -> None:
    text = "the fox lived"
    (encoded,) = plain.encode([text])
    across, (start, end) = next(
        (index, each) for index, each in enumerate(encoded.offsets) if each[1] - each[0] > 1
    )
    middle = Rendered(text, cuttable=(start + 1, len(text)))
    windows = encode(middle, plain, across + 2, "window")
    assert end <= len(text)
    assert len(windows) == len(encoded.ids) - across - 1
    assert all(each.token_ids[across] == encoded.ids[across] for each in windows)


def test_truncating_keeps_the_answer_supervised(plain: Tokenizer) -> None:
    (whole,) = encode(ANSWERED, plain, 1000)
    (window,) = encode(ANSWERED, plain, len(whole.token_ids) - 3, "truncate")
    assert window.token_ids[window.targets_from :] == whole.token_ids[whole.targets_from :]


def test_windows_cover_the_text_once_and_each_keeps_what_surrounds_it(plain: Tokenizer) -> None:
    (whole,) = encode(ASKED, plain, 1000)
    windows = encode(ASKED, plain, len(whole.token_ids) - 5, "window")
    texts = [plain.decode(list(window.token_ids)) for window in windows]
    assert len(windows) > 1
    assert all(text.startswith("Text:") and text.endswith("\nLabel:") for text in texts)
    inside = "".join(text[len("Text:") : -len("\nLabel:")] for text in texts)
    assert inside.replace(" ", "") == PROMPT[TEXT[0] : TEXT[1]].replace(" ", "")
    assert [window.num_cut_tokens for window in windows] == [0] * len(windows)


def test_overlapping_windows_begin_in_the_middle_of_the_one_before(plain: Tokenizer) -> None:
    (whole,) = encode(ASKED, plain, 1000)
    limit = LengthLimit(len(whole.token_ids) - 5, "window")
    (windows,) = encode_rendered([ASKED], plain, limit=limit, places=["row 3"], overlapping=True)
    inside = [
        [each for each in window.offsets if TEXT[0] < each[1] <= TEXT[1]] for window in windows
    ]
    room = len(inside[0])
    assert len(windows) > 1
    for before, after in pairwise(inside):
        assert before[room // 2 :] == after[: room - room // 2]
    assert inside[-1][-1][1] == TEXT[1]
    assert all(len(window.token_ids) <= limit.max_tokens for window in windows)


@pytest.mark.parametrize("policy", ["truncate", "window"])
def test_surroundings_that_are_too_long_are_refused(policy: LengthPolicy, plain: Tokenizer) -> None:
    with pytest.raises(DataError, match=r"row 3: .* at most 5 fit\. What surrounds the text"):
        encode(ASKED, plain, 5, policy)


def test_tokenizer_without_a_stop_token_cannot_learn_to_stop(
    plain: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tokenizer, "stop_id", None)
    with pytest.raises(DataError, match=r"no stop token.* Use `--answer head`"):
        encode(ANSWERED, plain, 1000)


def test_whoever_watches_gets_every_text_with_its_windows(plain: Tokenizer) -> None:
    with watch_encoding() as seen:
        whole, parts = encode(ASKED, plain, 1000), encode(ASKED, plain, 20, "window")
    encode(ANSWERED, plain, 1000)
    assert len(parts) > 1
    assert seen == [(ASKED, whole), (ASKED, parts)]


def test_characters_that_are_read_end_where_the_text_was_cut(plain: Tokenizer) -> None:
    (whole,) = encode(ASKED, plain, 1000)
    (window,) = encode(ASKED, plain, len(whole.token_ids) - 3, "truncate")
    inside = plain.decode(list(window.token_ids))[len("Text: ") : -len("\nLabel:")]
    assert inside == PROMPT[TEXT[0] :][: characters_read(ASKED, window)]
    assert 0 < len(inside) < TEXT[1] - TEXT[0]
    assert characters_read(ASKED, Window((), -1)) == 0

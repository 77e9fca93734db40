"""What is encoded once is found again for equal examples, and for nothing else."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

import pytest

import lushan
from lushan.backbones.encoding import LengthLimit
from lushan.backbones.sources import cache_folder
from lushan.backbones.tokenizer import Encoded, Tokenizer
from lushan.catalog import load_task, names_in
from lushan.data import chunks
from lushan.data.batching import PackedSource
from lushan.data.feature_store import EncodedCache, FeatureStore
from lushan.errors import TooLongError
from lushan.records import Example, Features, Span, TaskState
from lushan.tasks import Preparation, Task
from lushan.workflows import encode as encoding
from lushan.workflows.encode import Encoder, encode
from tests.conftest import MakeTiny
from tests.unit.workflows.conftest import BuildSetup

EXAMPLES = [Example(str(n), f"What a great film, {n}", "ab"[n % 2], f"row {n}") for n in range(9)]


@pytest.fixture
def encoder(tiny_folder: MakeTiny) -> Encoder:
    """Classification by a tiny llama's tokens."""
    tokenizer = Tokenizer.load(tiny_folder("llama"))
    state = TaskState(labels=("a", "b"))
    return Encoder(load_task("classification"), state, tokenizer, "head", LengthLimit(64))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EncodedCache:
    """A cache that also keeps few examples."""
    monkeypatch.setattr(encoding, "FEWEST_STORED", 1)
    return EncodedCache(tmp_path / "tokens", 1e9)


def encoded(
    cache: EncodedCache,
    encoder: Encoder,
    examples: Sequence[Example] = EXAMPLES,
    *,
    with_target: bool = True,
) -> Sequence[Features]:
    found = encode(examples, encoder, with_target=with_target, cache=cache)
    assert list(found) == encoder.encode(examples, with_target=with_target)
    return found


def num_entries(cache: EncodedCache) -> int:
    return len(list(cache.folder.iterdir()))


def test_few_examples_leave_nothing_on_the_disk(encoder: Encoder, tmp_path: Path) -> None:
    found = encoded(EncodedCache(tmp_path / "tokens", 1e9), encoder)
    assert isinstance(found, list)
    assert not (tmp_path / "tokens").exists()


@pytest.mark.parametrize("is_kept", [False, True])
def test_long_texts_become_tokens_a_few_at_a_time(
    is_kept: bool, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "FEWEST_STORED", 1 if is_kept else 100)
    monkeypatch.setattr(chunks, "CHARACTERS_PER_CHUNK", 3 * len(EXAMPLES[0].text))
    at_once: list[int] = []
    encode_texts = Tokenizer.encode

    def counted(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Encoded]:
        at_once.append(len(texts))
        return encode_texts(tokenizer, texts)

    monkeypatch.setattr(Tokenizer, "encode", counted)
    cache = EncodedCache(tmp_path / "tokens", 1e9)
    found = encode(EXAMPLES, encoder, with_target=True, cache=cache)
    assert isinstance(found, FeatureStore if is_kept else list)
    assert at_once == [3, 3, 3]
    assert list(found) == encoder.encode(EXAMPLES, with_target=True)


def test_equal_examples_share_an_entry(cache: EncodedCache, encoder: Encoder) -> None:
    encoded(cache, encoder)
    moved = [replace(each, place="elsewhere") for each in EXAMPLES]
    assert encoded(cache, encoder, moved)[0].place == "elsewhere"
    encoded(cache, replace(encoder, state=replace(encoder.state, shots=(EXAMPLES[0],))))
    assert num_entries(cache) == 1


def test_whatever_decides_a_token_makes_another_entry(
    cache: EncodedCache, encoder: Encoder, tiny_folder: MakeTiny
) -> None:
    with_another_template = Tokenizer.load(tiny_folder("llama"))
    with_another_template.chat.source = "{{ messages[0].content }}"
    others = [
        replace(encoder, answer="generate"),
        replace(encoder, limit=LengthLimit(32)),
        replace(encoder, limit=LengthLimit(64, "truncate")),
        replace(encoder, state=TaskState(labels=("0", "a", "b"))),
        replace(encoder, tokenizer=Tokenizer.load(tiny_folder("gemma3_text"))),
        replace(encoder, tokenizer=with_another_template),
    ]
    for each in (encoder, *others):
        encoded(cache, each)
    encoded(cache, encoder, with_target=False)
    encoded(cache, encoder, EXAMPLES[:-1])
    encoded(cache, encoder, [*EXAMPLES[1:], EXAMPLES[0]])
    encoded(cache, encoder, [replace(EXAMPLES[0], text="other"), *EXAMPLES[1:]])
    assert num_entries(cache) == len(others) + 5


def test_what_was_cut_off_is_left_out_for_training_alone(tiny_folder: MakeTiny) -> None:
    tokenizer = Tokenizer.load(tiny_folder("llama"))
    task, state = load_task("tagging"), TaskState(labels=("x",))
    row = Example("1", "Ada met Bob", (Span(0, 3, "x"), Span(8, 11, "x")), "row 1")
    encoder = Encoder(task, state, tokenizer, "generate", LengthLimit(1000))
    (whole,) = encoder.encode([row], with_target=True)
    limit = LengthLimit(len(whole.token_ids) - 2, "truncate")
    asked, learned = (
        replace(encoder, limit=limit, learns=learns).encode([row], with_target=True)[0]
        for learns in (False, True)
    )
    assert (asked.num_cut_items, learned.num_cut_items) == (1, 1)
    written = [tokenizer.decode(list(x.token_ids[x.targets_from : -1])) for x in (asked, learned)]
    assert [each.strip() for each in written] == ["Ada (x); Bob (x)", "Ada (x)"]


def test_learned_tokens_and_whole_ones_are_kept_apart(
    cache: EncodedCache, encoder: Encoder
) -> None:
    encoded(cache, encoder)
    encoded(cache, replace(encoder, learns=True))
    assert num_entries(cache) == 2


def files_that_run(encoder: Encoder, examples: Sequence[Example]) -> set[Path]:
    """Watch which files of the package have a function that runs."""
    seen: set[str] = set()

    def watch(frame: FrameType, _event: str, _value: object) -> None:
        seen.add(frame.f_code.co_filename)

    for with_target in (True, False):
        sys.setprofile(watch)
        try:
            encoder.encode(examples, with_target=with_target)
        finally:
            sys.setprofile(None)
    package = Path(lushan.__file__).parent
    return {Path(each) for each in seen if Path(each).is_relative_to(package)}


@pytest.mark.parametrize("name", names_in("lushan.tasks"))
def test_all_code_that_decides_a_token_decides_the_entry(name: str, tiny_folder: MakeTiny) -> None:
    task: Task = load_task(name)
    examples = [task.read(each) for each in task.sample_rows()]
    preparation = Preparation(num_shots=2, run_code=True, length_control=True)
    state = task.prepare(examples, preparation, multi_label=False)
    hashed = {Path(str(each.__file__)) for each in (sys.modules[task.__module__], *encoding.CODE)}
    tokenizer = Tokenizer.load(tiny_folder("llama"))
    for answer in task.answers:
        encoder = Encoder(task, state, tokenizer, answer, LengthLimit(512, "truncate"))
        ran = files_that_run(encoder, examples)
        assert Path(str(sys.modules[task.__module__].__file__)) in ran
        assert ran - hashed == {Path(encoding.__file__)}  # it only calls


@pytest.mark.parametrize("name", names_in("lushan.tasks"))
def test_rows_that_are_too_long_are_refused_together_whatever_the_chunks(
    name: str, cache: EncodedCache, tiny_folder: MakeTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "ROWS_PER_CHUNK", 3)
    task: Task = load_task(name)
    examples = [task.read(each) for each in task.sample_rows()]
    state = task.prepare(examples, Preparation(run_code=True), multi_label=False)
    tokenizer = Tokenizer.load(tiny_folder("llama"))
    for answer in task.answers:
        encoder = Encoder(task, state, tokenizer, answer, LengthLimit(3))
        message = rf"^{examples[0].place}: .* In all, {len(examples)} rows are too long; "
        for num_stored in (1, 100):
            monkeypatch.setattr(encoding, "FEWEST_STORED", num_stored)
            with pytest.raises(TooLongError, match=message):
                encode(examples, encoder, with_target=True, cache=cache)
        assert num_entries(cache) == 0


def test_a_setup_from_files_is_that_from_memory(
    build_setup: BuildSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = build_setup("llama")
    monkeypatch.setattr(encoding, "FEWEST_STORED", 1)
    for _ in ("encoded", "read"):
        found = build_setup("llama")
        assert {name: list(each) for name, each in found.features.items()} == expected.features
        assert isinstance(found.features["train"], FeatureStore)
        assert found.ledger == expected.ledger
    assert (cache_folder() / "tokens").is_dir()
    steps, expected_steps = (
        list(PackedSource(each.features["train"], rows_per_step=4, seed=1).rest_of_epoch())
        for each in (found, expected)
    )
    assert [[each.features for each in step.micro_batches] for step in steps] == [
        [each.features for each in step.micro_batches] for step in expected_steps
    ]
    assert [step[1:] for step in steps] == [step[1:] for step in expected_steps]

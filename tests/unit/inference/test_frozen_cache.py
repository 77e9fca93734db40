"""What frozen layers compute is kept once, found again, bounded, and never read for something else."""

import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from lushan.backbones import native
from lushan.backbones.frozen import FrozenStates
from lushan.backbones.load import Backbone, load_backbone
from lushan.data.batching import pack
from lushan.errors import RunError
from lushan.inference import frozen_cache
from lushan.inference.frozen_cache import FrozenCache, FrozenPart
from lushan.records import Features
from tests.conftest import MakeTiny

WIDTH, NUM_BYTES = 16, 4
DOCUMENTS = [Features(tuple(range(5, 5 + length)), "", row) for row, length in enumerate((9, 2, 4))]
NUM_TOKENS = 15
PART = FrozenPart(depth=1, position="all", identity=("weights", "tokenizer"))


class Disk(NamedTuple):
    """A model, and a cache that has room for anything."""

    backbone: Backbone
    cache: FrozenCache
    told: list[str]

    def states(
        self, documents: list[Features] = DOCUMENTS, part: FrozenPart = PART
    ) -> FrozenStates | None:
        return self.cache.states(self.backbone, part, documents, tell=self.told.append)

    def with_limit(self, num_bytes: int) -> "Disk":
        return self._replace(cache=replace(self.cache, limit_bytes=num_bytes))

    def files(self) -> list[str]:
        return sorted(each.name for each in self.cache.folder.iterdir())


@pytest.fixture
def disk(tiny_folder: MakeTiny, tmp_path: Path) -> Disk:
    """A tiny llama and an empty folder that is not there yet."""
    backbone = load_backbone(tiny_folder("llama"), purpose="classify", labels=("no", "yes"))
    return Disk(backbone, FrozenCache(tmp_path / "frozen", 1e9), [])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_read_is_what_the_layers_compute(disk: Disk, dtype: torch.dtype) -> None:
    disk.backbone.core.to(dtype)
    found = disk.states()
    batch = pack(DOCUMENTS)
    with torch.no_grad():
        expected_TD = disk.backbone.states_at(1, batch)
    assert found is not None
    states_TD = found.of(batch)
    assert states_TD is not None
    assert states_TD.dtype == dtype
    assert torch.equal(states_TD, expected_TD)


def test_the_second_time_nothing_is_computed(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    first = disk.states()
    monkeypatch.setattr(Backbone, "states_at", None)
    second = disk.states(list(reversed(DOCUMENTS)))
    assert first is not None
    assert second is not None
    assert torch.equal(first.states_RD, second.states_RD)
    assert [line.split()[0] for line in disk.told] == ["Computing", "Reading"]


def test_equal_documents_are_kept_once_and_a_head_needs_one_row_each(disk: Disk) -> None:
    disk.states([*DOCUMENTS, *DOCUMENTS])
    (file,) = disk.cache.folder.iterdir()
    assert file.stat().st_size == NUM_TOKENS * WIDTH * NUM_BYTES
    found = disk.states(part=replace(PART, position="last"))
    assert found is not None
    assert found.states_RD.shape == (len(DOCUMENTS), WIDTH)


def test_rows_are_found_by_tokens(disk: Disk) -> None:
    found = disk.states([*DOCUMENTS, DOCUMENTS[0]])
    assert found is not None
    ordered = sorted((each.token_ids for each in DOCUMENTS), key=len)
    assert dict(found.first_rows) == dict(zip(ordered, (0, 2, 6), strict=True))
    assert found.first_rows.get((5,)) is None


@pytest.mark.parametrize(
    "other",
    [
        replace(PART, depth=2),
        replace(PART, position="first"),
        replace(PART, identity=("other weights", "tokenizer")),
        replace(PART, identity=("weights", "other tokenizer")),
    ],
)
def test_another_model_or_depth_has_its_own_entry(disk: Disk, other: FrozenPart) -> None:
    disk.states()
    disk.states(part=other)
    assert len(disk.files()) == 2


def test_other_documents_or_another_precision_have_their_own_entry(disk: Disk) -> None:
    disk.states()
    disk.states(DOCUMENTS[:2])
    disk.backbone.core.to(torch.bfloat16)
    disk.states()
    assert len(disk.files()) == 3


def test_other_functions_have_their_own_entry(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.states()
    monkeypatch.setattr(native, "identity", lambda: "another library")
    disk.states()
    assert len(disk.files()) == 2


def test_documents_are_told_apart_where_they_end(disk: Disk) -> None:
    split = [Features((5,), "", 0), Features((6, 7), "", 1)]
    joined = [Features((5, 6, 7), "", 0)]
    disk.states(split)
    found = disk.states(joined)
    assert len(disk.files()) == 2
    assert found is not None
    assert found.of(pack(split)) is None


def test_a_cut_file_is_computed_again(disk: Disk) -> None:
    first = disk.states()
    (file,) = disk.cache.folder.iterdir()
    os.truncate(file, 8)
    again = disk.states()
    assert first is not None
    assert again is not None
    assert again.states_RD.isfinite().all()
    assert file.stat().st_size == NUM_TOKENS * WIDTH * NUM_BYTES


def test_what_is_larger_than_the_limit_is_refused_and_told(disk: Disk) -> None:
    assert disk.with_limit(NUM_TOKENS * WIDTH * NUM_BYTES - 1).states() is None
    assert "anew in every pass" in disk.told[-1]
    assert "more than `adapter.cache_gigabytes`" in disk.told[-1]
    assert not disk.cache.folder.exists()


def test_the_entry_not_used_for_longest_makes_room(disk: Disk) -> None:
    entries: list[str] = []
    for documents in (DOCUMENTS, DOCUMENTS[:1], DOCUMENTS[1:]):
        disk.states(documents)
        entries += [each for each in disk.files() if each not in entries]
    for age, name in zip((20, 30, 10), entries, strict=True):
        os.utime(disk.cache.folder / name, (1e9 - age, 1e9 - age))
    disk.states(DOCUMENTS)  # used again: now the youngest
    disk.with_limit((NUM_TOKENS + 6 + 2) * WIDTH * NUM_BYTES).states(DOCUMENTS[1:2])
    assert entries[1] not in disk.files()
    assert {entries[0], entries[2]} < set(disk.files())


def test_a_full_disk_is_told_and_leaves_nothing(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(disk.cache.folder.parent)._replace(free=frozen_cache._SPARE_BYTES + 8)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert disk.states() is None
    assert "0.00 GB to spare" in disk.told[-1]
    assert disk.files() == []


def test_what_is_needed_and_has_no_room_is_refused(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(disk.cache.folder.parent)._replace(free=frozen_cache._SPARE_BYTES + 8)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    needed = partial(disk.cache.states, disk.backbone, PART, DOCUMENTS, tell=disk.told.append)
    with pytest.raises(RunError, match=r"0\.00 GB to spare\. .* Make room, .*`--overwrite`"):
        needed(is_needed=True)
    monkeypatch.undo()
    assert needed(is_needed=True) is not None


def test_a_write_that_fails_is_told_and_leaves_nothing(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(frozen_cache, "_kept_states", fail)
    assert disk.states() is None
    assert "No space left on device" in disk.told[-1]
    assert disk.files() == []


def test_a_folder_that_cannot_be_made_is_told(disk: Disk) -> None:
    disk.cache.folder.write_text("a file", encoding="utf-8")
    assert disk.states() is None
    assert "frozen` cannot be written: File exists" in disk.told[-1]


def test_an_entry_that_another_process_removed_is_passed_over(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk.states()
    glob = Path.glob
    gone = disk.cache.folder / "gone.bin"
    monkeypatch.setattr(Path, "glob", lambda self, pattern: [gone, *glob(self, pattern)])
    assert disk.states(DOCUMENTS[:1]) is not None


def test_what_a_killed_run_left_is_removed_after_a_day(disk: Disk) -> None:
    disk.cache.folder.mkdir()
    old, new = disk.cache.folder / "old.unfinished", disk.cache.folder / "new.unfinished"
    for each in (old, new):
        each.write_bytes(b"")
    os.utime(old, (1e9, 1e9))
    disk.states()
    assert not old.exists()
    assert new.exists()


def test_equal_tokens_with_other_branches_are_other_documents(disk: Disk) -> None:
    branched = [
        replace(DOCUMENTS[0], branches=each) for each in ((), ((2, 1), (5, 1)), ((2, 1), (6, 1)))
    ]
    found = disk.states(branched)
    assert found is not None
    for each in branched:
        with torch.no_grad():
            expected_TD = disk.backbone.states_at(1, pack([each]))
        torch.testing.assert_close(found.of(pack([each])), expected_TD)
    assert len({each.content for each in branched}) == 3

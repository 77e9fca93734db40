"""Character pieces of texts: their hashes, and those that tell nothing, as they are of an instruction that many texts have."""

import re
from collections.abc import Sequence
from itertools import compress

import numpy as np
from numpy.typing import NDArray

PIECE_CHARACTERS = 5
WIDE_PIECE_CHARACTERS = 2
COMMON_FRACTION = 0.25
"""What more than this share of the texts have may be an instruction. Two or three can stand in the texts, not many."""
FEWEST_WITH_COMMON = 30
"""And more texts than this: that a few are alike may be what is to be found."""
FEWEST_IN_A_ROW = 16
"""So many common pieces follow each other at least in an instruction: some 20 letters, or 17 Chinese characters."""
HASH_BITS = 44
TABLE_SIZE = 2**16
HASH_MASK = np.uint64(2**HASH_BITS - 1)
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
WIDE = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]")

Numbers = NDArray[np.uint64]
Positions = NDArray[np.int64]


def hash_pieces(texts: Sequence[str]) -> tuple[Numbers, Numbers]:
    """Give the hash of every piece of every text, and the index of its text, in order.

    Texts are padded, so that a letter at an end is in as many pieces as one in the middle.
    """
    widths = np.array([_width(text) for text in texts], dtype=np.int64)
    padded = [_padded(text, width) for text, width in zip(texts, widths.tolist(), strict=True)]
    lengths = np.array([len(text) for text in padded], dtype=np.int64)
    ends = np.cumsum(lengths)
    codes = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), dtype="<u4")
    characters = np.zeros(len(codes) + PIECE_CHARACTERS, dtype=np.uint64)
    characters[: len(codes)] = codes + np.uint64(1)
    hashes = np.zeros(len(codes), dtype=np.uint64)
    is_whole = np.ones(len(codes), dtype=bool)
    is_wide = widths == WIDE_PIECE_CHARACTERS
    wide_hashes = hashes
    for offset in range(PIECE_CHARACTERS):
        if offset == WIDE_PIECE_CHARACTERS and is_wide.any():
            wide_hashes = hashes.copy()
        hashes += characters[offset : offset + len(codes)]
        hashes *= MULTIPLIER
        hashes ^= hashes >> np.uint64(29)
        if offset:
            is_whole[ends[widths > offset] - offset] = False
    if is_wide.any():
        hashes = np.where(np.repeat(is_wide, lengths), wide_hashes, hashes)
    owners = np.repeat(np.arange(len(texts), dtype=np.uint64), lengths)
    return hashes[is_whole] >> np.uint64(64 - HASH_BITS), owners[is_whole]


def list_pieces(text: str) -> list[str]:
    """Give every piece of a text, in the order of `hash_pieces`."""
    width = _width(text)
    padded = _padded(text, width)
    return [padded[start : start + width] for start in range(len(padded) - width + 1)]


def _width(text: str) -> int:
    if text.isascii():
        return PIECE_CHARACTERS
    return WIDE_PIECE_CHARACTERS if len(WIDE.findall(text)) * 2 > len(text) else PIECE_CHARACTERS


def _padded(text: str, width: int) -> str:
    pad = " " * (width - 1)
    return f"{pad}{text}{pad}"


def distinct(keys: Numbers) -> Numbers:
    """Give the sorted, distinct keys; several times as fast as `np.unique`, which hashes."""
    ordered = np.sort(keys)
    return ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(ordered)]]


def common_pieces(texts: Sequence[str]) -> Numbers:
    """Give the hashes of the pieces that many texts have, in such a row as `Common` leaves out."""
    hashes, owners = hash_pieces(texts)
    common = Common(_in_many(hashes, owners, len(texts)))
    is_in_row = common.left_out(hashes, owners)
    return _in_many(hashes[is_in_row], owners[is_in_row], len(texts))


def _in_many(hashes: Numbers, owners: Numbers, num_texts: int) -> Numbers:
    once = distinct((owners << np.uint64(HASH_BITS)) | hashes)
    values, times = np.unique(once & HASH_MASK, return_counts=True)
    return values[times > max(COMMON_FRACTION * num_texts, FEWEST_WITH_COMMON)]


class Common:
    """Pieces that many texts have, which are left out where `FEWEST_IN_A_ROW` follow each other.

    An instruction is such a row. Words that are frequent stand alone in other texts, and stay.
    """

    def __init__(self, hashes: Numbers) -> None:
        """Take their hashes, each once and in order."""
        self._hashes = hashes
        self._may_hold = np.zeros(TABLE_SIZE, dtype=bool)
        self._may_hold[_rests(hashes)] = True

    def left_out(self, hashes: Numbers, owners: Numbers) -> NDArray[np.bool_]:
        """Say which pieces of some texts are left out; takes what `hash_pieces` gives."""
        if not len(self._hashes):
            return np.zeros(len(hashes), dtype=bool)
        # Where no text has an instruction, few are left to be looked up.
        found = _in_a_row(self._may_hold[_rests(hashes)], owners)
        (likely,) = np.nonzero(found)
        places = np.minimum(np.searchsorted(self._hashes, hashes[likely]), len(self._hashes) - 1)
        found[likely] = self._hashes[places] == hashes[likely]
        return _in_a_row(found, owners)

    def sets(self, text: str) -> tuple[set[str], ...]:
        """Give the pieces of a text, and those that are not left out; once where none are common."""
        pieces = list_pieces(text)
        if not len(self._hashes):
            return (set(pieces),)
        is_left_out = self.left_out(*hash_pieces([text]))
        return set(pieces), set(compress(pieces, ~is_left_out))


def _rests(hashes: Numbers) -> Positions:
    return (hashes % np.uint64(TABLE_SIZE)).astype(np.int64)


def _in_a_row(is_common: NDArray[np.bool_], owners: Numbers) -> NDArray[np.bool_]:
    """Say which of the common pieces follow each other in one text, as many as it takes."""
    (places,) = np.nonzero(is_common)
    goes_on = (np.diff(places) == 1) & (owners[places[1:]] == owners[places[:-1]])
    rows = np.concatenate([[0], np.cumsum(~goes_on)])[: len(places)]
    found = np.zeros(len(is_common), dtype=bool)
    found[places] = np.bincount(rows)[rows] >= FEWEST_IN_A_ROW
    return found

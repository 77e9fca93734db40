"""When two texts are the same, and when nearly: exact by a plain form, near by shared pieces.

Near means: the sets of character pieces (five letters; two characters where most are Chinese,
Japanese or Korean) have a Jaccard similarity of at least `NEAR`. Candidates are found by prefix filtering:
sort each set from rare to common; two sets that are so similar must share a piece among the first
few (Bayardo, Ma, Srikant: Scaling up all pairs similarity search, WWW 2007). Bit maps of the sets
sort most out (Sandes, Teodoro, Melo: Bitmap filter, 2018), and what is left is measured, so what is
reported is near by definition, not by chance. Of long texts a sample of the pieces finds the candidates
(one in 4, 16, 64 ... by length), so that a search takes time in proportion to the number of texts.
A miss is possible where very many texts are alike (see the limits that begin with MOST), or, rarely,
where a sample is far off.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NEAR = 0.75
PIECE_CHARACTERS = 5
WIDE_PIECE_CHARACTERS = 2
FEWEST_PIECES = 12
"""Shorter texts are near only when nothing but case, space and punctuation differs."""

NOT_WORD = re.compile(r"[\W_]+")
WIDE = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]")

# A piece is one number of 64 bits: 12 its text in the chunk, 8 how common it is, 44 its hash. One
# sort of such numbers puts each text's pieces together, from rare to common.
TEXTS_PER_CHUNK = 2**12
CHARACTERS_PER_CHUNK = 2**20
HASH_BITS = 44
SAMPLE_SHIFT = 24
TEXT_SHIFT = np.uint64(52)
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
MOST_BUCKETS = 2**24
MOST_FIRST_PIECES = 48
MOST_TEXTS_PER_PIECE = 64
BITS_PER_MAP = 512
PAIRS_PER_BLOCK = 2**18
MOST_MEASURED = 64
ROUNDING = 1e-6

SHORT_CHARACTERS = 400
LEVEL_FACTOR = 4
SAMPLED_NEAR = 0.6
"""Pieces of a sample look less alike than all of them, by chance: four standard deviations below `NEAR`."""

Numbers = NDArray[np.uint64]
Positions = NDArray[np.int64]


def plain(text: str) -> str:
    """Give the form in which equal texts are equal: NFKC, no case, single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def bare(text: str) -> str:
    """Give the plain form without punctuation; empty where a text has no letter and no digit."""
    return NOT_WORD.sub(" ", plain(text)).strip()


def comparable(text: str) -> str:
    """Give the bare form, or the plain one of a text without letters, such as a smile."""
    return bare(text) or plain(text)


def find_near(queries: Iterable[str], base: Iterable[str]) -> dict[str, list[str]]:
    """Find the queries that equal, or nearly equal, texts of the base.

    Args:
        queries: Comparable texts; repeats and empty ones do not matter.
        base: Comparable texts.

    Returns:
        Query text to base texts, the most similar first.
    """
    wanted, known = dict.fromkeys(queries), dict.fromkeys(base)
    found = {text: [text] for text in wanted if text and text in known}
    long = [text for text in wanted if _is_long(text)]
    texts = [text for text in known if _is_long(text)]
    for level in _levels([*long, *texts]):
        chosen = [text for text in texts if level.holds(text)]
        asked = [text for text in long if level.holds(text)]
        if not chosen or not asked:
            continue
        index = _Index(chosen, level)
        for start, end in _chunks(asked):
            for query, matches in index.match(asked[start:end]).items():
                found.setdefault(asked[start + query], []).extend(chosen[i] for i in matches)
    return {text: list(dict.fromkeys(matches)) for text, matches in found.items()}


@dataclass(frozen=True, slots=True)
class _Level:
    """Texts of like length, whose pieces are sampled alike. Two near texts are together in one level."""

    number: int

    def holds(self, text: str) -> bool:
        """Whether the text is short enough, and long enough to be near one that no lower level holds."""
        longest = SHORT_CHARACTERS * LEVEL_FACTOR**self.number
        shortest = NEAR * longest / LEVEL_FACTOR if self.number else 0
        return shortest <= len(text) <= longest

    @property
    def near(self) -> float:
        """How similar the sampled pieces of near texts are at least."""
        return NEAR if self.number == 0 else SAMPLED_NEAR

    def keeps(self, hashes: Numbers) -> NDArray[np.bool_]:
        """Say which pieces are in the sample; all are at level 0."""
        return (hashes >> np.uint64(SAMPLE_SHIFT)) % np.uint64(LEVEL_FACTOR**self.number) == 0


def _levels(texts: Iterable[str]) -> list[_Level]:
    longest, number = max(map(len, texts), default=0), 0
    while SHORT_CHARACTERS * LEVEL_FACTOR**number < longest:
        number += 1
    return [_Level(each) for each in range(number + 1)]


def _width(text: str) -> int:
    return WIDE_PIECE_CHARACTERS if len(WIDE.findall(text)) * 2 > len(text) else PIECE_CHARACTERS


def _is_long(text: str) -> bool:
    return len(text) >= FEWEST_PIECES + _width(text) - 1


def _chunks(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Cut a list of texts where a chunk is full; gives [start, end)."""
    start, num_characters = 0, 0
    for index, text in enumerate(texts):
        num_characters += len(text)
        if index + 1 - start == TEXTS_PER_CHUNK or num_characters > CHARACTERS_PER_CHUNK:
            yield start, index + 1
            start, num_characters = index + 1, 0
    if start < len(texts):
        yield start, len(texts)


def _padded(text: str, width: int) -> str:
    pad = " " * (width - 1)
    return f"{pad}{text}{pad}"


def _hashes(texts: Sequence[str]) -> tuple[Numbers, Numbers]:
    """Give the hash of every piece of every text, and the index of its text, in order.

    Texts are padded, so that a letter at an end is in as many pieces as one in the middle.
    """
    text_widths = [_width(text) for text in texts]
    padded = [_padded(text, width) for text, width in zip(texts, text_widths, strict=True)]
    characters = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), dtype="<u4")
    lengths = np.array([len(text) for text in padded])
    widths = np.repeat(text_widths, lengths)
    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(characters))
    hashes = np.zeros(len(characters), dtype=np.uint64)
    for offset in range(PIECE_CHARACTERS):
        is_in = (offset < widths) & (offset < left)
        is_in &= np.arange(len(characters)) + offset < len(characters)
        (places,) = np.nonzero(is_in)
        hashes[places] = (hashes[places] + characters[places + offset] + np.uint64(1)) * MULTIPLIER
        hashes[places] ^= hashes[places] >> np.uint64(29)
    is_whole = left >= widths
    owners = np.repeat(np.arange(len(texts), dtype=np.uint64), lengths)
    return hashes[is_whole] >> np.uint64(64 - HASH_BITS), owners[is_whole]


def _distinct(keys: Numbers) -> Numbers:
    """Give the sorted, distinct keys; several times as fast as `np.unique`, which hashes."""
    ordered = np.sort(keys)
    return ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(ordered)]]


def _piece_set(text: str) -> set[str]:
    width = _width(text)
    padded = _padded(text, width)
    return {padded[start : start + width] for start in range(len(padded) - width + 1)}


def _jaccard(one: set[str], other: set[str]) -> float:
    num_shared = len(one & other)
    return num_shared / (len(one) + len(other) - num_shared)


@dataclass(frozen=True, slots=True)
class _Pieces:
    """The distinct pieces of a list of texts, each text's from rare to common."""

    values: Numbers
    """How common, and the hash; all texts one after another."""
    starts: Positions
    """Where each text's pieces begin; one more entry at the end."""

    def counts(self) -> Positions:
        """Give how many distinct pieces each text has."""
        return np.diff(self.starts)

    def prefixes(self, near: float) -> tuple[Numbers, Positions]:
        """Give the pieces of which two near texts share at least one, and whose they are."""
        counts = self.counts()
        owners = np.repeat(np.arange(len(counts)), counts)
        ranks = np.arange(len(self.values)) - self.starts[owners]
        most = np.minimum(counts - np.ceil(near * counts), MOST_FIRST_PIECES)
        is_first = ranks <= most[owners]
        return self.values[is_first], owners[is_first]

    def bit_maps(self) -> Numbers:
        """Give the set of each text as bits; (texts, 8)."""
        counts = self.counts()
        bits = np.zeros((len(counts), BITS_PER_MAP), dtype=bool)
        owners = np.repeat(np.arange(len(counts)), counts)
        bits[owners, (self.values % np.uint64(BITS_PER_MAP)).astype(np.int64)] = True
        return np.packbits(bits, axis=1).view(np.uint64)


class _Index:
    """The pieces of the base texts, to be asked for near texts."""

    def __init__(self, texts: Sequence[str], level: _Level) -> None:
        self._texts, self._level = texts, level
        num_characters = sum(map(len, texts))
        self._num_buckets = min(MOST_BUCKETS, 2 ** (2 * num_characters).bit_length())
        self._times = np.zeros(self._num_buckets, dtype=np.uint32)
        for start, end in _chunks(texts):
            hashes, _ = self._hashes(texts[start:end])
            np.add.at(self._times, self._buckets(hashes), np.uint32(1))
        sizes, maps, values, owners = [], [], [], []
        for start, end in _chunks(texts):
            pieces = self._pieces(texts[start:end])
            sizes.append(pieces.counts())
            maps.append(pieces.bit_maps())
            first, whose = pieces.prefixes(self._level.near)
            values.append(first)
            owners.append(whose + start)
        self._sizes, self._maps = np.concatenate(sizes), np.concatenate(maps)
        order = np.argsort(np.concatenate(values), kind="stable")
        self._values, self._owners = np.concatenate(values)[order], np.concatenate(owners)[order]

    def match(self, texts: Sequence[str]) -> dict[int, list[int]]:
        """Give the near base texts of each text that has some, best first; takes one chunk."""
        found: dict[int, list[tuple[float, int]]] = {}
        for query, likely in self._candidates(self._pieces(texts)).items():
            pieces = _piece_set(texts[query])
            for base in likely[:MOST_MEASURED]:
                similarity = _jaccard(pieces, _piece_set(self._texts[base]))
                if similarity >= NEAR:
                    found.setdefault(query, []).append((-similarity, base))
        return {query: [base for _, base in sorted(found[query])] for query in found}

    def _buckets(self, hashes: Numbers) -> Positions:
        return (hashes % np.uint64(self._num_buckets)).astype(np.int64)

    def _hashes(self, texts: Sequence[str]) -> tuple[Numbers, Numbers]:
        hashes, owners = _hashes(texts)
        is_kept = self._level.keeps(hashes)
        return hashes[is_kept], owners[is_kept]

    def _pieces(self, texts: Sequence[str]) -> _Pieces:
        hashes, owners = self._hashes(texts)
        times = self._times[self._buckets(hashes)]
        common = np.minimum(np.log2(times + 1.0) * 10, 255).astype(np.uint64)
        keys = _distinct((owners << TEXT_SHIFT) | (common << np.uint64(HASH_BITS)) | hashes)
        sizes = np.bincount((keys >> TEXT_SHIFT).astype(np.int64), minlength=len(texts))
        values = keys & ((np.uint64(1) << TEXT_SHIFT) - np.uint64(1))
        return _Pieces(values, starts=np.concatenate([[0], np.cumsum(sizes)]))

    def _candidates(self, pieces: _Pieces) -> dict[int, list[int]]:
        """Give the base texts that may be near to each text, the most alike first."""
        pairs = self._sharing_pairs(pieces)
        sizes, maps = pieces.counts(), pieces.bit_maps()
        share = (1 - self._level.near) / (1 + self._level.near)
        likely: list[Positions] = []
        for start in range(0, len(pairs), PAIRS_PER_BLOCK):
            query, base = np.divmod(pairs[start : start + PAIRS_PER_BLOCK], len(self._sizes))
            # Near sets A and B differ in at most (|A| + |B|) (1 - t) / (1 + t) pieces; their maps in no
            # more bits. This also sorts out sets of unlike size.
            most = (sizes[query] + self._sizes[base]) * share + ROUNDING
            differ = np.bitwise_count(maps[query] ^ self._maps[base]).sum(axis=1, dtype=np.int64)
            is_likely = (differ <= most) & (np.abs(sizes[query] - self._sizes[base]) <= most)
            likely.append(np.stack([query, differ, base], axis=1)[is_likely])
        candidates: dict[int, dict[int, None]] = {}
        for query, _, base in sorted(np.concatenate(likely).tolist() if likely else []):
            candidates.setdefault(query, {})[base] = None
        return {query: list(bases) for query, bases in candidates.items()}

    def _sharing_pairs(self, pieces: _Pieces) -> Positions:
        """Give text * (number of base texts) + base text, where both share a piece of their prefixes."""
        values, queries = pieces.prefixes(self._level.near)
        first = np.searchsorted(self._values, values, side="left")
        last = np.searchsorted(self._values, values, side="right")
        num_hits = np.minimum(last - first, MOST_TEXTS_PER_PIECE)
        begins = np.cumsum(num_hits) - num_hits
        hits = np.repeat(first - begins, num_hits) + np.arange(num_hits.sum())
        return np.repeat(queries, num_hits) * len(self._sizes) + self._owners[hits]

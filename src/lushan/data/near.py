"""When two texts are the same, and when nearly: exact by a plain form, near by shared pieces.

Near means: the sets of character pieces (five letters; two characters where most are Chinese,
Japanese or Korean) have a Jaccard similarity of at least `NEAR`. So have the sets without what belongs to an instruction
that many texts have, which does not make them alike (`find_common`). Candidates are found by prefix filtering:
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
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from lushan.data.pieces import (
    HASH_BITS,
    Common,
    Numbers,
    Positions,
    common_pieces,
    distinct,
    hash_pieces,
)

RULES = b"compared 4"
"""Changes whenever texts are compared in another way: what is split by that comes out otherwise."""
NEAR = 0.75
FEWEST_PIECES = 12
"""Shorter texts are near only when nothing but case, space and punctuation differs."""
MOST_COUNTED_TEXTS = 2**10
"""In so many it is counted how common a piece is; its share is then known to some percent."""

ASCII_NOT_WORD = {code: " " for code in range(128) if not chr(code).isalnum()}
LOOSE_ACCENT = re.compile(r" [\u0300-\u036f]+")
"""What NFKC makes of some apostrophes."""
NO_SIGNS = {"\u2044", "\u2212", *map(chr, range(0xFE00, 0xFE10))}
"""The slash and the minus, which stand for those of ASCII, and what chooses between two pictures of one sign."""
LAST_SIGN = 0x1FFFF

# A piece is one number of 64 bits: 12 its text in the chunk, 8 how common it is, 44 its hash. One
# sort of such numbers puts each text's pieces together, from rare to common.
TEXTS_PER_CHUNK = 2**12
CHARACTERS_PER_CHUNK = 2**20
SAMPLE_SHIFT = 24
TEXT_SHIFT = np.uint64(52)
SIZE_SHIFT = np.uint64(12)
MOST_SIZE = 2**12 - 1
MOST_BUCKETS = 2**24
MOST_FIRST_PIECES = 48
MOST_TEXTS_PER_PIECE = 64
BITS_PER_MAP = 512
FIRST_WORDS = 2
PAIRS_PER_BLOCK = 2**18
MOST_MEASURED = 64
ROUNDING = 1e-6

SHORT_CHARACTERS = 400
LEVEL_FACTOR = 4
SAMPLED_NEAR = 0.6
"""Pieces of a sample look less alike than all of them, by chance: four standard deviations below `NEAR`."""


def plain(text: str) -> str:
    """Give the form in which equal texts are equal: NFKC, no case, single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def bare(text: str) -> str:
    """Give the plain form without punctuation; empty where a text has no letter, digit or symbol."""
    return bare_of(plain(text))


def bare_of(plain_text: str) -> str:
    """Give the bare form of a text in plain form."""
    if plain_text.isascii():  # the same, several times as fast
        return " ".join(plain_text.translate(ASCII_NOT_WORD).split())
    text = LOOSE_ACCENT.sub(" ", f" {plain_text}".replace("_", " "))
    not_word, symbol = _patterns()
    # Whether a space stands beside a symbol says as little as it does beside punctuation.
    return " ".join(symbol.sub(r" \g<0> ", not_word.sub(" ", text)).split())


@cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Match what is dropped, and symbols such as smiles: letters, digits and what belongs to them (vowel signs) are neither."""
    return re.compile(rf"[^\w {_ranges('MS')}]+"), re.compile(f"[{_ranges('S')}]")


def _ranges(kinds: str) -> str:
    """Write what Unicode has of some kinds beyond ASCII as ranges of an expression."""
    found = [chr(code) for code in range(128, LAST_SIGN)]
    signs = {
        ord(each)
        for each in found
        if unicodedata.category(each)[0] in kinds and each not in NO_SIGNS
    }
    starts = sorted(code for code in signs if code - 1 not in signs)
    ends = sorted(code for code in signs if code + 1 not in signs)
    return "".join(f"{chr(start)}-{chr(end)}" for start, end in zip(starts, ends, strict=True))


def comparable(text: str) -> str:
    """Give the bare form, or the plain one of a text that has none, such as `:-)`."""
    plain_text = plain(text)
    return bare_of(plain_text) or plain_text


class Comparables(Protocol):
    """Texts in comparable form; equal texts have equal hashes."""

    hashes: Numbers

    def texts(self, places: Positions) -> Iterable[str]:
        """Give the texts at some places, in that order."""
        ...


def find_common(*sides: Comparables) -> Common:
    """Find the pieces that are left out of every text: those of an instruction that many texts of a side have.

    They are looked for in some of the texts, chosen by their hashes; equal texts count once.
    """
    found = [np.array([], dtype=np.uint64)]
    for side in sides:
        _, places = _first_places(side.hashes)
        if len(places):
            texts, _ = next(_lists(side, places[:MOST_COUNTED_TEXTS]))
            found.append(common_pieces(texts))
    return Common(np.unique(np.concatenate(found)))


def match_near(
    queries: Comparables,
    base: Comparables,
    advance: Callable[[int], None] | None = None,
    *,
    common: Common | None = None,
) -> dict[int, list[int]]:
    """Find the queries that equal, or nearly equal, texts of the base.

    Neither needs to be in memory: queries are gone through once, the base three times.

    Args:
        queries: Repeats and empty texts do not matter.
        base: As well.
        advance: Hears how many queries were gone through since the last call.
        common: Pieces that are left out; None finds those of queries and base.

    Returns:
        Hash of a query to places in the base, the most similar first; of equal texts only the first place.
    """
    if not len(queries.hashes) or not len(base.hashes):
        return {}
    common = find_common(queries, base) if common is None else common
    hashes, places = _first_places(queries.hashes)
    base_hashes, base_places = _first_places(base.hashes)
    _, found_at, known_at = np.intersect1d(
        hashes, base_hashes, assume_unique=True, return_indices=True
    )
    equal = dict(zip(hashes[found_at].tolist(), base_places[known_at].tolist(), strict=True))
    indices = _indices(base, np.sort(base_places), common)
    found: dict[int, list[int]] = {}
    for chunk in _chunks(queries, np.sort(places), common):
        numbers = queries.hashes[chunk.places].tolist()
        for text, number in zip(chunk.texts, numbers, strict=True):
            if text and number in equal:
                found[number] = [equal[number]]
        for index in indices:
            for query, matches in index.match(chunk).items():
                found.setdefault(numbers[query], []).extend(matches)
        if advance:
            advance(len(chunk.texts))
    return {number: list(dict.fromkeys(matches)) for number, matches in found.items()}


def _first_places(hashes: Numbers) -> tuple[Numbers, Positions]:
    return np.unique(hashes, return_index=True)


def _indices(base: Comparables, places: Positions, common: Common) -> list["_Index"]:
    """Put the texts of the base into an index for each level that has some."""
    lengths = array("q")
    for chunk in _chunks(base, places, common):
        lengths.extend(chunk.lengths.tolist())
    found = np.array(lengths, dtype=np.int64)
    chosen = [(level, level.holds(found)) for level in _levels(found)]
    return [
        _Index(
            base,
            level=level,
            places=places[is_held],
            common=common,
            num_characters=int(found[is_held].sum()),
        )
        for level, is_held in chosen
        if is_held.any()
    ]


@dataclass(frozen=True, slots=True)
class _Level:
    """Texts of like length, whose pieces are sampled alike. Two near texts are together in one level."""

    number: int

    def holds(self, lengths: Positions) -> NDArray[np.bool_]:
        """Say which texts are short enough, and long enough to be near one that no lower level holds.

        Args:
            lengths: Number of characters of each; 0 stands for one that no level holds.
        """
        shortest, longest = self._bounds
        return (lengths > 0) & (shortest <= lengths) & (lengths <= longest)

    @property
    def _bounds(self) -> tuple[float, int]:
        longest = SHORT_CHARACTERS * LEVEL_FACTOR**self.number
        return (NEAR * longest / LEVEL_FACTOR if self.number else 0, longest)

    @property
    def near(self) -> float:
        """How similar the sampled pieces of near texts are at least."""
        return NEAR if self.number == 0 else SAMPLED_NEAR

    def keeps(self, hashes: Numbers) -> NDArray[np.bool_]:
        """Say which pieces are in the sample; all are at level 0."""
        return (hashes >> np.uint64(SAMPLE_SHIFT)) % np.uint64(LEVEL_FACTOR**self.number) == 0


def _levels(lengths: Positions) -> list[_Level]:
    longest, number = lengths.max(initial=0), 0
    while SHORT_CHARACTERS * LEVEL_FACTOR**number < longest:
        number += 1
    return [_Level(each) for each in range(number + 1)]


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A list of texts and their pieces, without those that are left out."""

    texts: list[str]
    places: Positions
    hashes: Numbers
    """Of every piece."""
    owners: Positions
    """The text of each."""
    lengths: Positions
    """Characters of each text, without as many as pieces were left out; 0 where few are left, so that only an equal text is near."""

    def sampled(self, level: _Level) -> tuple[Numbers, Positions]:
        """Give the sampled pieces of the texts of a level, and the text of each."""
        is_kept = level.keeps(self.hashes) & level.holds(self.lengths)[self.owners]
        return self.hashes[is_kept], self.owners[is_kept]


def _chunks(texts: Comparables, places: Positions, common: Common) -> Iterator[_Chunk]:
    """Give the texts at some places in lists, each with its pieces."""
    for chunk, its_places in _lists(texts, places):
        hashes, numbers = hash_pieces(chunk)
        owners, is_out = numbers.astype(np.int64), common.left_out(hashes, numbers)
        num_characters = np.array([len(text) for text in chunk], dtype=np.int64)
        num_padding = np.bincount(owners, minlength=len(chunk)) - num_characters
        lengths = num_characters - np.bincount(owners[is_out], minlength=len(chunk))
        lengths[lengths < FEWEST_PIECES + num_padding] = 0
        yield _Chunk(
            chunk,
            places=its_places,
            hashes=hashes[~is_out],
            owners=owners[~is_out],
            lengths=lengths,
        )


def _lists(texts: Comparables, places: Positions) -> Iterator[tuple[list[str], Positions]]:
    """Give the texts at some places in lists, each cut where it is full, and the places of each list."""
    chunk: list[str] = []
    start, num_characters = 0, 0
    for text in texts.texts(places):
        chunk.append(text)
        num_characters += len(text)
        if len(chunk) == TEXTS_PER_CHUNK or num_characters > CHARACTERS_PER_CHUNK:
            yield chunk, places[start : start + len(chunk)]
            start, num_characters, chunk = start + len(chunk), 0, []
    if chunk:
        yield chunk, places[start:]


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

    def prefixes(self, near: float) -> "_Prefixes":
        """Give the pieces of which two near texts share at least one."""
        counts = self.counts()
        owners = np.repeat(np.arange(len(counts)), counts)
        ranks = np.arange(len(self.values)) - self.starts[owners]
        most = np.minimum(counts - np.ceil(near * counts), MOST_FIRST_PIECES)
        is_first = ranks <= most[owners]
        return _Prefixes(self.values[is_first], owners[is_first], ranks[is_first])

    def bit_maps(self) -> Numbers:
        """Give the set of each text as bits; (texts, 8)."""
        counts = self.counts()
        bits = np.zeros((len(counts), BITS_PER_MAP), dtype=bool)
        owners = np.repeat(np.arange(len(counts)), counts)
        bits[owners, (self.values % np.uint64(BITS_PER_MAP)).astype(np.int64)] = True
        return np.packbits(bits, axis=1).view(np.uint64)


class _Prefixes(NamedTuple):
    """The rarest pieces of some texts."""

    values: Numbers
    owners: Positions
    """The text of each."""
    ranks: Positions
    """How many pieces of its text come before each."""


class _Index:
    """The pieces of the base texts, to be asked for near texts."""

    def __init__(
        self,
        base: Comparables,
        *,
        level: _Level,
        places: Positions,
        common: Common,
        num_characters: int,
    ) -> None:
        self._base, self._level = base, level
        self._places, self._common = places, common
        self._num_buckets = min(MOST_BUCKETS, 2 ** (2 * num_characters).bit_length())
        self._times = np.zeros(self._num_buckets, dtype=np.uint32)
        for chunk in _chunks(base, places, common):
            hashes, _ = chunk.sampled(level)
            np.add.at(self._times, self._buckets(hashes), np.uint32(1))
        sizes, maps, keys, owners, ranks = [], [], [], [], []
        start = 0
        for chunk in _chunks(base, places, common):
            pieces = self._pieces(chunk)
            sizes.append(pieces.counts())
            maps.append(pieces.bit_maps())
            first = pieces.prefixes(level.near)
            keys.append(_with_size(first.values, sizes[-1][first.owners]))
            owners.append((first.owners + start).astype(np.int32))
            ranks.append(first.ranks.astype(np.uint8))
            start += len(chunk.texts)
        self._sizes, self._maps = _joined(sizes), _joined(maps)
        self._keys = _joined(keys)
        order = np.argsort(self._keys, kind="stable")
        self._owners, self._ranks = _joined(owners)[order], _joined(ranks)[order]
        del order
        self._keys.sort()  # in place: what stands in its order beside it would be as large

    def match(self, chunk: _Chunk) -> dict[int, list[int]]:
        """Give the places of the near base texts of each text that has some, best first."""
        found: dict[int, list[tuple[float, int]]] = {}
        for query, likely in self._candidates(self._pieces(chunk)).items():
            sets = self._common.sets(chunk.texts[query])
            places = self._places[likely[:MOST_MEASURED]]
            for place, text in zip(places.tolist(), self._base.texts(places), strict=True):
                similarity = min(map(_jaccard, sets, self._common.sets(text)))
                if similarity >= NEAR:
                    found.setdefault(query, []).append((-similarity, place))
        return {query: [base for _, base in sorted(found[query])] for query in found}

    def _buckets(self, hashes: Numbers) -> Positions:
        return (hashes % np.uint64(self._num_buckets)).astype(np.int64)

    def _pieces(self, chunk: _Chunk) -> _Pieces:
        hashes, owners = chunk.sampled(self._level)
        times = self._times[self._buckets(hashes)]
        common = np.minimum(np.log2(times + 1.0) * 10, 255).astype(np.uint64)
        texts = owners.astype(np.uint64) << TEXT_SHIFT
        keys = distinct(texts | (common << np.uint64(HASH_BITS)) | hashes)
        counts = np.bincount((keys >> TEXT_SHIFT).astype(np.int64), minlength=len(chunk.texts))
        values = keys & ((np.uint64(1) << TEXT_SHIFT) - np.uint64(1))
        return _Pieces(values, starts=np.concatenate([[0], np.cumsum(counts)]))

    def _candidates(self, pieces: _Pieces) -> dict[int, list[int]]:
        """Give the base texts that may be near to each text, the most alike first."""
        pairs = self._sharing_pairs(pieces)
        if not len(pairs):
            return {}
        sizes, maps = pieces.counts(), pieces.bit_maps()
        share = (1 - self._level.near) / (1 + self._level.near)
        likely: list[Positions] = []
        for start in range(0, len(pairs), PAIRS_PER_BLOCK):
            query, base = np.divmod(pairs[start : start + PAIRS_PER_BLOCK], len(self._sizes))
            # Near sets A and B differ in at most (|A| + |B|) (1 - t) / (1 + t) pieces; their maps in no
            # more bits. This also sorts out sets of unlike size. A part of the maps sorts most out.
            most = (sizes[query] + self._sizes[base]) * share + ROUNDING
            differ = _num_differing(maps[query, :FIRST_WORDS], self._maps[base, :FIRST_WORDS])
            is_likely = (differ <= most) & (np.abs(sizes[query] - self._sizes[base]) <= most)
            query, base, most = query[is_likely], base[is_likely], most[is_likely]
            differ = _num_differing(maps[query], self._maps[base])
            is_likely = differ <= most
            likely.append(np.stack([query, differ, base], axis=1)[is_likely])
        candidates: dict[int, dict[int, None]] = {}
        for query, _, base in sorted(np.concatenate(likely).tolist() if likely else []):
            candidates.setdefault(query, {})[base] = None
        return {query: list(bases) for query, bases in candidates.items()}

    def _sharing_pairs(self, pieces: _Pieces) -> Positions:
        """Give text * (number of base texts) + base text, where both share a piece of their prefixes."""
        near = self._level.near
        first = pieces.prefixes(near)
        sizes = pieces.counts()[first.owners]
        # Sets of unlike size are not near; those of a piece stand in the order of their size.
        begins = np.searchsorted(self._keys, _with_size(first.values, np.floor(sizes * near)))
        ends = np.searchsorted(
            self._keys, _with_size(first.values, np.ceil(sizes / near)), side="right"
        )
        num_hits = np.minimum(ends - begins, MOST_TEXTS_PER_PIECE)
        starts = np.cumsum(num_hits) - num_hits
        hits = np.repeat(begins - starts, num_hits) + np.arange(num_hits.sum())
        asking = np.repeat(np.arange(len(sizes)), num_hits)
        owners = self._owners[hits]
        # Near sets A and B share at least (|A| + |B|) t / (1 + t) pieces: so many are left in both, from the
        # first that they share.
        query_sizes, base_sizes = sizes[asking], self._sizes[owners]
        least = (query_sizes + base_sizes) * (near / (1 + near)) - ROUNDING
        is_early = (query_sizes - first.ranks[asking] >= least) & (
            base_sizes - self._ranks[hits] >= least
        )
        asking, owners = asking[is_early], owners[is_early]
        pairs = first.owners[asking] * len(self._sizes) + owners
        return distinct(pairs.astype(np.uint64)).astype(np.int64)


def _with_size(values: Numbers, sizes: NDArray[Any]) -> Numbers:
    """Give pieces with the number of pieces of their text behind them."""
    return (values << SIZE_SHIFT) | np.minimum(sizes, MOST_SIZE).astype(np.uint64)


def _joined(parts: list[NDArray[Any]]) -> NDArray[Any]:
    """Give parts as one, and let go of them."""
    found = np.concatenate(parts)
    parts.clear()
    return found


def _num_differing(maps: Numbers, others: Numbers) -> Positions:
    return np.bitwise_count(maps ^ others).sum(axis=1, dtype=np.int64)

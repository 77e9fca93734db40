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
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

RULES = b"compared 3"
"""Changes whenever texts are compared in another way: what is split by that comes out otherwise."""
NEAR = 0.75
PIECE_CHARACTERS = 5
WIDE_PIECE_CHARACTERS = 2
FEWEST_PIECES = 12
"""Shorter texts are near only when nothing but case, space and punctuation differs."""

ASCII_NOT_WORD = {code: " " for code in range(128) if not chr(code).isalnum()}
LOOSE_ACCENT = re.compile(r" [\u0300-\u036f]+")
"""What NFKC makes of some apostrophes."""
NO_SIGNS = {"\u2044", "\u2212", *map(chr, range(0xFE00, 0xFE10))}
"""The slash and the minus, which stand for those of ASCII, and what chooses between two pictures of one sign."""
LAST_SIGN = 0x1FFFF
WIDE = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]")

# A piece is one number of 64 bits: 12 its text in the chunk, 8 how common it is, 44 its hash. One
# sort of such numbers puts each text's pieces together, from rare to common.
TEXTS_PER_CHUNK = 2**12
CHARACTERS_PER_CHUNK = 2**20
HASH_BITS = 44
SAMPLE_SHIFT = 24
TEXT_SHIFT = np.uint64(52)
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
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

Numbers = NDArray[np.uint64]
Positions = NDArray[np.int64]


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


def match_near(
    queries: Comparables, base: Comparables, advance: Callable[[int], None] | None = None
) -> dict[int, list[int]]:
    """Find the queries that equal, or nearly equal, texts of the base.

    Neither needs to be in memory: queries are gone through once, the base twice.

    Args:
        queries: Repeats and empty texts do not matter.
        base: As well.
        advance: Hears how many queries were gone through since the last call.

    Returns:
        Hash of a query to places in the base, the most similar first; of equal texts only the first place.
    """
    hashes, places = _first_places(queries.hashes)
    base_hashes, base_places = _first_places(base.hashes)
    _, found_at, known_at = np.intersect1d(
        hashes, base_hashes, assume_unique=True, return_indices=True
    )
    equal = dict(zip(hashes[found_at].tolist(), base_places[known_at].tolist(), strict=True))
    indices = _indices(base, np.sort(base_places))
    found: dict[int, list[int]] = {}
    for texts, chunk in _chunks(queries, np.sort(places)):
        numbers = queries.hashes[chunk].tolist()
        for text, number in zip(texts, numbers, strict=True):
            if text and number in equal:
                found[number] = [equal[number]]
        for index in indices:
            asked = [
                place
                for place, text in enumerate(texts)
                if _is_long(text) and index.level.holds(text)
            ]
            for query, matches in index.match([texts[place] for place in asked]).items():
                found.setdefault(numbers[asked[query]], []).extend(matches)
        if advance:
            advance(len(texts))
    return {number: list(dict.fromkeys(matches)) for number, matches in found.items()}


def _first_places(hashes: Numbers) -> tuple[Numbers, Positions]:
    return np.unique(hashes, return_index=True)


def _indices(base: Comparables, places: Positions) -> list["_Index"]:
    """Put the texts of the base into an index for each level that has some."""
    lengths = array("q")
    for texts, _ in _chunks(base, places):
        lengths.extend(len(text) if _is_long(text) else 0 for text in texts)
    found = np.array(lengths, dtype=np.int64)
    chosen = [(level, places[level.holds_lengths(found)]) for level in _levels(found)]
    return [_Index(base, level=level, places=members) for level, members in chosen if len(members)]


@dataclass(frozen=True, slots=True)
class _Level:
    """Texts of like length, whose pieces are sampled alike. Two near texts are together in one level."""

    number: int

    def holds(self, text: str) -> bool:
        """Whether the text is short enough, and long enough to be near one that no lower level holds."""
        shortest, longest = self._bounds
        return shortest <= len(text) <= longest

    def holds_lengths(self, lengths: Positions) -> NDArray[np.bool_]:
        """Say the same of texts with these numbers of characters; 0 stands for one that no level holds."""
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


def _width(text: str) -> int:
    if text.isascii():
        return PIECE_CHARACTERS
    return WIDE_PIECE_CHARACTERS if len(WIDE.findall(text)) * 2 > len(text) else PIECE_CHARACTERS


def _is_long(text: str) -> bool:
    return len(text) >= FEWEST_PIECES + _width(text) - 1


def _chunks(texts: Comparables, places: Positions) -> Iterator[tuple[list[str], Positions]]:
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


def _padded(text: str, width: int) -> str:
    pad = " " * (width - 1)
    return f"{pad}{text}{pad}"


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

    def __init__(self, base: Comparables, *, level: _Level, places: Positions) -> None:
        self.level = level
        self._base, self._places = base, places
        num_characters = sum(len(text) for text in base.texts(places))
        self._num_buckets = min(MOST_BUCKETS, 2 ** (2 * num_characters).bit_length())
        self._times = np.zeros(self._num_buckets, dtype=np.uint32)
        for texts, _ in _chunks(base, places):
            hashes, _ = self._hashes(texts)
            np.add.at(self._times, self._buckets(hashes), np.uint32(1))
        sizes, maps, keys, owners, ranks = [], [], [], [], []
        start = 0
        for texts, _ in _chunks(base, places):
            pieces = self._pieces(texts)
            sizes.append(pieces.counts())
            maps.append(pieces.bit_maps())
            first = pieces.prefixes(level.near)
            keys.append(_with_size(first.values, sizes[-1][first.owners]))
            owners.append((first.owners + start).astype(np.int32))
            ranks.append(first.ranks.astype(np.uint8))
            start += len(texts)
        self._sizes, self._maps = np.concatenate(sizes), np.concatenate(maps)
        order = np.argsort(np.concatenate(keys), kind="stable")
        self._keys, self._owners = np.concatenate(keys)[order], np.concatenate(owners)[order]
        self._ranks = np.concatenate(ranks)[order]

    def match(self, texts: Sequence[str]) -> dict[int, list[int]]:
        """Give the places of the near base texts of each text that has some, best first; takes one chunk."""
        found: dict[int, list[tuple[float, int]]] = {}
        for query, likely in self._candidates(self._pieces(texts)).items():
            pieces = _piece_set(texts[query])
            places = self._places[likely[:MOST_MEASURED]]
            for place, text in zip(places.tolist(), self._base.texts(places), strict=True):
                similarity = _jaccard(pieces, _piece_set(text))
                if similarity >= NEAR:
                    found.setdefault(query, []).append((-similarity, place))
        return {query: [base for _, base in sorted(found[query])] for query in found}

    def _buckets(self, hashes: Numbers) -> Positions:
        return (hashes % np.uint64(self._num_buckets)).astype(np.int64)

    def _hashes(self, texts: Sequence[str]) -> tuple[Numbers, Numbers]:
        hashes, owners = hash_pieces(texts)
        is_kept = self.level.keeps(hashes)
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
        if not len(pairs):
            return {}
        sizes, maps = pieces.counts(), pieces.bit_maps()
        share = (1 - self.level.near) / (1 + self.level.near)
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
        near = self.level.near
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
        return _distinct(pairs.astype(np.uint64)).astype(np.int64)


def _with_size(values: Numbers, sizes: NDArray[Any]) -> Numbers:
    """Give pieces with the number of pieces of their text behind them."""
    return (values << SIZE_SHIFT) | np.minimum(sizes, MOST_SIZE).astype(np.uint64)


def _num_differing(maps: Numbers, others: Numbers) -> Positions:
    return np.bitwise_count(maps ^ others).sum(axis=1, dtype=np.int64)

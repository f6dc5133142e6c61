"""Which n-grams of a text stand behind its token hashes: what `machxc.features.kernels` computes, in plain Python.

For showing, not for speed: a hash cannot be turned back into its n-gram, but those of one short text can be listed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from machxc.config import TextConfig
from machxc.features.kernels import CHARACTERS, EDGE
from machxc.features.unicode import BOUNDARY, LETTER, MARK, SPACELESS, SYMBOL, code_points

_MASK = 2**64 - 1
_SEED = 0x243F6A8885A308D3


def ngrams_of(text: str, config: TextConfig) -> dict[int, str]:
    """Token hash -> the n-gram as it was hashed (normalised, folded), for every n-gram of a text.

    The edges of a run of characters are shown as spaces. The keys are the indices that `token_features` gives the text.
    """
    points, classes = code_points([text], config.fold)
    listed = points.tolist()
    kept = listed[: listed.index(ord(BOUNDARY))]
    found = dict(_of_words(kept, classes.tolist(), config.words)) if config.words else {}
    if config.chars_max:
        for start, end in _runs(classes.tolist(), len(kept), SPACELESS):
            found.update(_of_characters(kept[start:end], config.chars_min, config.chars_max))
    return found


def _runs(classes: list[int], stop: int, joins: int) -> Iterator[tuple[int, int]]:
    """Where words (joins LETTER) or runs of characters (SPACELESS) start and end."""
    start = 0
    while start < stop:
        if not SYMBOL <= classes[start] < MARK:
            start += 1
            continue
        bound, end = joins if classes[start] >= joins else MARK, start + 1
        while end < stop and classes[end] >= bound:
            end += 1
        yield start, end
        start = end


def _of_words(points: list[int], classes: list[int], longest: int) -> Iterator[tuple[int, str]]:
    words = [points[start:end] for start, end in _runs(classes, len(points), LETTER)]
    for first in range(len(words)):
        for last in range(first, min(first + longest, len(words))):
            several = words[first : last + 1]
            shown = " ".join("".join(map(chr, word)) for word in several)
            yield _token(len(several), _state([_state(word) for word in several])), shown


def _of_characters(run: list[int], shortest: int, longest: int) -> Iterator[tuple[int, str]]:
    edged = [EDGE, *run, EDGE]
    least = min(shortest, len(edged))
    for length in range(least, longest + 1):
        for start in range(len(edged) - length + 1):
            gram = edged[start : start + length]
            if gram != [EDGE]:
                shown = "".join(" " if point == EDGE else chr(point) for point in gram)
                yield _token(CHARACTERS + length, _state(gram)), shown


def _state(values: Sequence[int]) -> int:
    state = _SEED
    for value in values:
        mixed = ((state ^ value) * 0x9E3779B97F4A7C15) & _MASK
        state = mixed ^ (mixed >> 32)
    return state


def _token(family: int, state: int) -> int:
    z = state ^ (family * 0xD6E8FEB86659FD93 & _MASK)
    z = ((z ^ (z >> 33)) * 0xFF51AFD7ED558CCD) & _MASK
    z = ((z ^ (z >> 33)) * 0xC4CEB9FE1A85EC53) & _MASK
    return (z ^ (z >> 33)) >> 32

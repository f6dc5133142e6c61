"""The n-grams of a text by name: those that the kernels hash."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from machxc.config import TextConfig
from machxc.features.ngrams import ngrams_of
from machxc.features.text import token_features

CONFIGS = st.sampled_from(
    [
        TextConfig(words=1),
        TextConfig(words=3),
        TextConfig(0, 2, 4, True),
        TextConfig(2, 3, 3),
        TextConfig(1, 1, 5, True),
    ]
)
SCRIPTS = st.text(st.sampled_from("abÉéß  -'1東京ーกำไทยआै\u0301\u200bЙ😀$"), max_size=20)


@settings(deadline=None)
@given(text=st.one_of(SCRIPTS, st.text(max_size=30)), config=CONFIGS)
def test_they_have_the_hashes_of_the_text(text: str, config: TextConfig) -> None:
    assert sorted(ngrams_of(text, config)) == token_features([text], config).indices.tolist()


def test_their_names() -> None:
    named = set(ngrams_of("Ré Mi", TextConfig(words=2, chars_min=2, chars_max=3, fold=True)).values())
    assert named == {"re", "mi", "re mi", " r", "e ", " re", "re ", " m", "i ", " mi", "mi "}

"""Background names: what frames show besides the classes that a user asks for.

Class probabilities are a softmax over the vocabulary, so that with a few class names everything is one of them.
Background names take part in that softmax and are left out of the results. The method has none.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

from clipvis_jax.text.tokenizer import clean_text

LONG_VOCABULARY = 50
"""A vocabulary of this many names needs no background: there is a name for most of what a frame shows."""


def everyday_names() -> tuple[str, ...]:
    """Return some 240 names of everyday things and stuff: the background of models that have none of their own."""
    return tuple(name for kind, members in _everyday_kinds() for name in (kind, *members))


def unsaid_names(background: Sequence[str], classes: Sequence[Sequence[str]]) -> list[str]:
    """Return the background names that do not compete with a class for its own objects, in their order.

    Left out is a name that

    - says the same as a class or more ("polar bear" beside the class "bear"; a plural s makes no difference),
    - is the last words of a class ("bear" beside "polar bear"), since what an English noun names stands at its end,
    - is a kind of a class ("man" beside "person") or what a class is a kind of ("person" beside "man").

    Args:
        background: Background names.
        classes: The synonyms of every class.
    """
    said = {_words(synonym) for synonyms in classes for synonym in synonyms}
    kind_of = {_words(member): _words(kind) for kind, members in _everyday_kinds() for member in members}
    kinds_said = {kind_of[words] for words in said if words in kind_of}

    def competes(name: str) -> bool:
        words = _words(name)
        overlaps = any(_has(words, other) or other[-len(words) :] == words for other in said)
        return overlaps or words in kinds_said or kind_of.get(words) in said

    return [name for name in background if not competes(name)]


@functools.cache
def _everyday_kinds() -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Read the bundled list, a kind and its members in each line: "person: man, woman"."""
    lines = Path(__file__).with_name("background.txt").read_text(encoding="utf-8").splitlines()
    kinds = (line.partition(": ") for line in lines)
    return tuple((kind, tuple(members.split(", ")) if members else ()) for kind, _, members in kinds)


def _has(words: tuple[str, ...], part: tuple[str, ...]) -> bool:
    return any(words[place : place + len(part)] == part for place in range(len(words) - len(part) + 1))


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.removesuffix("s") for word in clean_text(text).split())

"""Background names: what frames show besides the classes that a user asks for.

Class probabilities are a softmax over the vocabulary, so that with a few class names everything is one of them.
Background names take part in that softmax and are left out of the results. The method has none.
"""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from clipvis_jax.text.tokenizer import clean_text

LONG_VOCABULARY = 50
"""A vocabulary of this many names needs no background: there is a name for most of what a frame shows."""

_ANYTHING = frozenset({("object",), ("thing",), ("item",), ("anything",), ("something",)})
_Words = tuple[str, ...]


def everyday_names() -> tuple[str, ...]:
    """Return some 300 names of everyday things and stuff: the background of models that have none of their own."""
    return tuple(_everyday_kinds().names)


def unsaid_names(background: Sequence[str], classes: Sequence[Sequence[str]]) -> list[str]:
    """Return the background names that do not compete with a class for its own objects, in their order.

    Left out is a name that

    - says the same as a class or more ("teddy bear" beside the class "bear"; a plural makes no difference),
    - is the last words of a class ("bear" beside "polar bear"), since what an English noun names stands at its end,
    - by the bundled list of everyday names is another word for a class, a kind of it, or what it is a kind of ("man",
      "people" and "person" go together, as do "duck", "bird" and "animal").

    Beside a class such as "object" no name is left. What the bundled list does not know is told by its words alone.

    Args:
        background: Background names.
        classes: The synonyms of every class.
    """
    said = {_words(synonym) for synonyms in classes for synonym in synonyms}
    if said & _ANYTHING:
        return []
    kinds = _everyday_kinds()
    related = set()
    for words in said:
        if words in kinds.names_of:
            name = kinds.names_of[words]
            related |= {name, *kinds.above(name), *kinds.below(name)}
        for start in range(1, len(words)):  # "bear" of "polar bear"
            if words[start:] in kinds.names_of:
                name = kinds.names_of[words[start:]]
                related |= {name, *kinds.above(name)}

    def competes(name: str) -> bool:
        words = _words(name)
        if kinds.names_of.get(words) in related:
            return True
        return any(_has(words, other) or other[-len(words) :] == words for other in said)

    return [name for name in background if not competes(name)]


class _Kinds(NamedTuple):
    """The bundled list: ``members`` has the names of every kind, ``names_of`` all words for every name."""

    names: list[str]
    members: dict[str, list[str]]
    names_of: dict[_Words, str]

    def below(self, name: str) -> Iterator[str]:
        for member in self.members.get(name, ()):
            yield member
            yield from self.below(member)

    def above(self, name: str) -> Iterator[str]:
        for kind, members in self.members.items():
            if name in members:
                yield kind
                yield from self.above(kind)


@functools.cache
def _everyday_kinds() -> _Kinds:
    """Read the list: a kind and its members in each line, other words behind a name: "bird: duck, goose/geese"."""
    kinds = _Kinds([], {}, {})
    for line in Path(__file__).with_name("background.txt").read_text(encoding="utf-8").splitlines():
        head, _, tail = line.partition(": ")
        groups = [group.split("/") for group in (head, *(tail.split(", ") if tail else ()))]
        for name, *others in groups:
            if name not in kinds.names:
                kinds.names.append(name)
            kinds.names_of.update(dict.fromkeys(map(_words, (name, *others)), name))
        if tail:
            kinds.members[groups[0][0]] = [name for name, *_ in groups[1:]]
    return kinds


def _has(words: _Words, part: _Words) -> bool:
    return any(words[place : place + len(part)] == part for place in range(len(words) - len(part) + 1))


def _words(text: str) -> _Words:
    return tuple(map(_singular, clean_text(text).split()))


def _singular(word: str) -> str:
    """Give a word and its regular plural one form, which need not be a word: "horse" and "horses" are "hors"."""
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    return (word if word.endswith(("ss", "us", "is")) else word.removesuffix("s")).removesuffix("e")

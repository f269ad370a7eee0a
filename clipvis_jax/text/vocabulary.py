"""Class names to CLIP text embeddings.

A vocabulary is given at run time: a list of class names, each with optional synonyms ("dog, puppy"). Its
classifier depends on nothing but the names and CLIP, so it is computed once and kept on disk.
"""

import functools
import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32
from tqdm import tqdm

from clipvis_jax.errors import InputError
from clipvis_jax.io.files import atomic_path
from clipvis_jax.models.ops import pad_to_multiple
from clipvis_jax.models.text_classifier import TextClassifier
from clipvis_jax.text.background import unsaid_names
from clipvis_jax.text.tokenizer import Tokenizer, clean_text

PROMPT_TEMPLATES = (
    "a photo of a {}.",
    "This is a photo of a {}",
    "There is a {} in the scene",
    "There is the {} in the scene",
    "a photo of a {} in the scene",
    "a photo of a small {}.",
    "a photo of a medium {}.",
    "a photo of a large {}.",
    "This is a photo of a small {}.",
    "This is a photo of a medium {}.",
    "This is a photo of a large {}.",
    "There is a small {} in the scene.",
    "There is a medium {} in the scene.",
    "There is a large {} in the scene.",
)
"""Sentences whose embeddings are averaged: ViLD's (arXiv 2104.13921), as the authors' code has them."""

SYNONYM_MULTIPLE = 128
"""Classifiers are padded to a multiple of this many synonyms; one compilation serves all of a size."""

BATCH_SIZE = 64
"""Prompts encoded at a time. More gains little on a CPU, and makes a vocabulary of a few names slower."""

LENGTH_MULTIPLE = 4
"""Prompts are cut to a multiple of this many tokens: few lengths to compile, few surplus tokens."""

_CACHE_VERSION = 1  # to be raised when the same names would get other embeddings
_FEW_BATCHES = 4
_LONGEST_NAME = 10_000
_NAMES_IN_WARNING = 5


def parse_synonyms(name: str) -> tuple[str, ...]:
    """Split a class name at its commas: "dog, puppy" names one class in two ways.

    Raises ``InputError`` if there is nothing before, between or after the commas, or if the name is too long.
    """
    if len(name) > _LONGEST_NAME:
        raise InputError(
            f"class {name[:40]!r}...: has {len(name)} characters; give at most {_LONGEST_NAME}, synonyms included (of "
            "each, CLIP reads some 70 tokens)"
        )
    synonyms = tuple(part.strip() for part in name.split(","))
    if not all(map(clean_text, synonyms)):
        raise InputError(f"class {name!r}: a name or synonym is empty")
    return synonyms


@functools.lru_cache(maxsize=8)
def short_names(class_names: tuple[str, ...]) -> tuple[str, ...]:
    """Name every class in one line: by its first synonym, or in full where classes share that."""
    first = [" ".join(parse_synonyms(name)[0].split()) for name in class_names]
    shared = {name for name, count in Counter(first).items() if count > 1}
    return tuple(
        " ".join(name.split()) if short in shared else short for name, short in zip(class_names, first, strict=True)
    )


def check_vocabulary(class_names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Split every class name into its synonyms.

    Raises ``InputError`` if there is no class, if a name is empty, or if a class is given twice (the two
    would share its probability). Names are compared as the text encoder sees them, so that "dog" and " Dog" are one,
    and synonyms in any order. The same synonym in different classes is allowed.
    """
    if isinstance(class_names, str):
        raise InputError(f"classes {class_names!r}: a list of class names expected, not one text")
    if not class_names:
        raise InputError("no class names given: at least one is needed")
    vocabulary = [parse_synonyms(name) for name in class_names]
    first: dict[frozenset[str], int] = {}
    for position, (name, synonyms) in enumerate(zip(class_names, vocabulary, strict=True)):
        other = first.setdefault(frozenset(map(clean_text, synonyms)), position)
        if other != position:
            same = "" if class_names[other] == name else f"; to the text encoder it is {class_names[other]!r}"
            raise InputError(f"class {name!r} is given twice: as number {other + 1} and {position + 1}{same}")
    return tuple(vocabulary)


def average_templates(features: Float[np.ndarray, "s k e"]) -> Float[np.ndarray, "s e"]:
    """Make one unit vector of a synonym's ``k`` sentence features: normalise, average, normalise again."""
    return _normalize(_normalize(features).mean(axis=1))


def make_text_classifier(embeddings: Float[np.ndarray, "s e"], synonym_counts: Sequence[int]) -> TextClassifier:
    """Pad the embeddings of a vocabulary's synonyms, given in class order, to a classifier."""
    num_synonyms = sum(synonym_counts)
    num_rows = pad_to_multiple(num_synonyms, SYNONYM_MULTIPLE)
    class_index = np.full(num_rows, num_rows - 1, np.int32)
    class_index[:num_synonyms] = np.repeat(np.arange(len(synonym_counts)), synonym_counts)
    padded = np.zeros((num_rows, embeddings.shape[1]), np.float32)
    padded[:num_synonyms] = embeddings
    return TextClassifier(
        embeddings=jnp.asarray(padded),
        class_index=jnp.asarray(class_index),
        num_classes=jnp.int32(len(synonym_counts)),
    )


def encode_vocabulary(
    class_names: Sequence[str],
    *,
    background: Sequence[str] = (),
    tokenizer: Tokenizer,
    encode_tokens: Callable[[Int32[Array, "n l"]], Float[Array, "n e"]],
    weights_hash: str,
    templates: Sequence[str] = PROMPT_TEMPLATES,
    batch_size: int = BATCH_SIZE,
    cache_dir: Path | None = None,
    show_progress: bool = False,
) -> TextClassifier:
    """Encode a vocabulary with CLIP's text encoder, or read it from the cache.

    Args:
        class_names: Class names, with synonyms after commas. Used as they stand: underscores are not spaces.
        background: Names, without synonyms, of what else frames show; they become further classes behind the others.
            Those that compete with a class are left out, see ``unsaid_names``.
        tokenizer: The tokenizer that the text encoder was trained with.
        encode_tokens: The text encoder, jitted: token ids, cut to any length up to the context length, to the
            feature (not normalised) at each row's largest token id.
        weights_hash: Digest of the text encoder's weights. Keeps models apart in the cache.
        templates: Sentences with a ``{}`` for the name.
        batch_size: Prompts encoded at a time.
        cache_dir: Folder of the cache, made when missing; None keeps nothing. A damaged file is made anew.
        show_progress: Show a progress bar if it takes more than a few batches.

    Warns:
        UserWarning: Names were cut because they do not fit the context length (not repeated for a vocabulary
            that is read from the cache), a small text encoder does not know words of theirs, or the cache cannot be
            written.

    Raises:
        InputError: See ``check_vocabulary``; or the tokenizer's vocabulary cannot write a name.
    """
    vocabulary = check_vocabulary(class_names)
    _warn_of_unknown_words([*class_names, *background], tokenizer)

    def embed(names: Sequence[Sequence[str]]) -> Float[np.ndarray, "s e"]:
        """Embed every synonym."""
        num_synonyms = sum(map(len, names))
        cache_file = None
        if cache_dir is not None:
            fingerprint = [_CACHE_VERSION, names, list(templates), weights_hash, tokenizer.fingerprint]
            digest = hashlib.sha256(json.dumps(fingerprint).encode()).hexdigest()
            cache_file = cache_dir / f"text_{digest}.npz"
            cached = _read_cache(cache_file, num_synonyms)
            if cached is not None:
                return cached
        prompts = [template.format(synonym) for synonyms in names for synonym in synonyms for template in templates]
        _warn_of_cut_names(names, len(templates), tokenizer.too_long(prompts))
        features = _encode_prompts(tokenizer(prompts), encode_tokens, batch_size, show_progress)
        embeddings = average_templates(features.reshape(num_synonyms, len(templates), -1))
        if cache_file is not None:
            _write_cache(cache_file, embeddings)
        return embeddings

    embeddings, synonym_counts = embed(vocabulary), [len(synonyms) for synonyms in vocabulary]
    if background:
        # All of them are encoded, so that the cache serves every vocabulary.
        kept = set(unsaid_names(background, vocabulary))
        rows = [place for place, name in enumerate(background) if name in kept]
        embeddings = np.concatenate([embeddings, embed([(name,) for name in background])[rows]])
        synonym_counts += [1] * len(rows)
    return make_text_classifier(embeddings, synonym_counts)


def _encode_prompts(
    tokens: Int32[np.ndarray, "n l"],
    encode_tokens: Callable[[Int32[Array, "b l"]], Float[Array, "b e"]],
    batch_size: int,
    show_progress: bool,
) -> Float[np.ndarray, "n e"]:
    """Encode prompts in batches of one size and few lengths.

    Differs from the authors' code: they encode all 77 tokens of a prompt. The encoder is causal, so that what
    follows the end of the text has no effect on its feature.
    """
    lengths = tokens.argmax(axis=1) + 1  # the end of the text is the largest id
    longest_first = np.argsort(-lengths, kind="stable")  # so that the time left is never underestimated
    encoded = []
    starts = range(0, len(tokens), batch_size)
    hide = not show_progress or len(starts) <= _FEW_BATCHES
    with tqdm(total=len(tokens), desc="encoding class names", unit="prompt", disable=hide) as progress:
        for start in starts:
            rows = longest_first[start : start + batch_size]
            length = min(pad_to_multiple(int(lengths[rows[0]]), LENGTH_MULTIPLE), tokens.shape[1])
            batch = np.zeros((batch_size, length), np.int32)
            batch[: len(rows)] = tokens[rows, :length]
            encoded.append(np.asarray(encode_tokens(jnp.asarray(batch)), np.float32)[: len(rows)])
            progress.update(len(rows))
    in_encoding_order = np.concatenate(encoded)
    features = np.empty_like(in_encoding_order)
    features[longest_first] = in_encoding_order
    return features


def _warn_of_cut_names(classes: Sequence[Sequence[str]], num_templates: int, cut_prompts: Sequence[int]) -> None:
    class_of_prompt = np.repeat(np.arange(len(classes)), [len(synonyms) * num_templates for synonyms in classes])
    cut = [", ".join(classes[i]) for i in np.unique(class_of_prompt[list(cut_prompts)])]
    if cut:
        named = ", ".join(repr(name) for name in cut[:_NAMES_IN_WARNING])
        more = f" and {len(cut) - _NAMES_IN_WARNING} more" if len(cut) > _NAMES_IN_WARNING else ""
        warnings.warn(f"class names longer than CLIP's context were cut: {named}{more}", stacklevel=4)


def _warn_of_unknown_words(class_names: Sequence[str], tokenizer: Tokenizer) -> None:
    unknown = dict.fromkeys(word for name in class_names for word in tokenizer.unknown_words(name))
    if unknown:
        named = ", ".join(repr(word) for word in list(unknown)[:_NAMES_IN_WARNING])
        more = f" and {len(unknown) - _NAMES_IN_WARNING} more" if len(unknown) > _NAMES_IN_WARNING else ""
        warnings.warn(
            f"class names have words that this model was not trained with, so it cannot know what they mean: {named}"
            f"{more}",
            stacklevel=3,
        )


def _read_cache(path: Path, num_synonyms: int) -> Float[np.ndarray, "s e"] | None:
    """Read cached embeddings; None if there are none, or none that can be used."""
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            embeddings = arrays["embeddings"]
        usable = embeddings.dtype == np.float32 and embeddings.ndim == 2 and len(embeddings) == num_synonyms
        return embeddings if usable and np.isfinite(embeddings).all() else None
    except Exception:  # a damaged file makes numpy and zipfile raise all kinds
        return None


def _write_cache(path: Path, embeddings: Float[np.ndarray, "s e"]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            np.savez(temporary, embeddings=embeddings)
    except (OSError, InputError) as error:
        warnings.warn(f"{path.parent}: cannot keep the class embeddings here ({error})", stacklevel=3)


def _normalize(x: Float[np.ndarray, "*shape e"]) -> Float[np.ndarray, "*shape e"]:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), np.float32(1e-12))

"""CLIP's byte-pair tokenizer: class names to token ids, equal to open_clip's tokenizer.

The vocabulary and the merges are read, held and saved by transformers' ``CLIPTokenizer``, so a saved folder
is one that any transformers program can read. Cleaning and word splitting are done here, because
transformers' own differ from CLIP's in a few corners, and one different token is a different embedding.
"""

import gzip
import hashlib
import html
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import ftfy
import numpy as np
from jaxtyping import Int32

from clipvis_jax.errors import InputError, first_line

if TYPE_CHECKING:
    import tokenizers
    import transformers

CLIP_TOKENIZER = "openai/clip-vit-base-patch32"
"""Hub name of the tokenizer that all of CLIP-VIS's CLIP models share."""

CONTEXT_LENGTH = 77
"""Tokens of a text, begin and end included, in every published CLIP model."""

_NUM_MERGES = 49152 - 256 - 2
_KNOWN_WORDS = "known_words"  # in tokenizer_config.json
_MAX_BYTES = 2**25
"""Of a file; CLIP's own have 1 to 4 MB."""
_RARE = 3
"""A word of so many pieces was seldom seen in CLIP's training."""
_TOKENIZER_FILES = ["tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"]

# CLIP's own pattern ignores case. In lower-case text that is seen twice: the long s (U+017F) counts as an s,
# and the iota below (U+0345), which has an upper-case letter, counts as nothing at all.
# Differs from the authors' code: text that spells a special token, like "<end_of_text>", is ordinary text.
# There it becomes the token itself and hides all that follows from the encoder.
_WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}\x{345}]+"


def clean_text(text: str) -> str:
    """Repair, unescape and lower-case a text as CLIP does.

    Mends wrongly decoded Unicode, resolves HTML entities twice ("&amp;amp;" is "&"), makes every run of white
    space one space and lower-cases. Underscores stay: ``giant_panda`` is not ``giant panda``.
    """
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


@runtime_checkable
class Tokenizer(Protocol):
    """What encoding a vocabulary asks of a tokenizer; see ``ClipTokenizer``."""

    @property
    def fingerprint(self) -> str: ...  # noqa: D102

    def __call__(self, texts: Sequence[str]) -> Int32[np.ndarray, "n l"]: ...  # noqa: D102

    def too_long(self, texts: Sequence[str]) -> list[int]: ...  # noqa: D102

    def unknown_words(self, text: str) -> list[str]: ...  # noqa: D102


@dataclass(frozen=True)
class ClipTokenizer:
    """A CLIP tokenizer: call it with texts to get their token ids.

    ``eot_id`` is the largest id of the vocabulary: CLIP's text encoder finds the end of a text by it. Get one
    from ``load_tokenizer`` or ``make_tokenizer``.
    """

    transformers_tokenizer: "transformers.CLIPTokenizer"
    context_length: int
    bos_id: int
    eot_id: int
    vocab_size: int
    fingerprint: str
    """Hexadecimal digest of everything that decides on the tokens of a text."""
    word_pieces: "tokenizers.Tokenizer"
    """Splits a cleaned text into pieces, without special tokens."""
    known_words: frozenset[str] | None = None
    """All words that a small text encoder was trained with; None for a vocabulary that is meant for any text."""

    def __call__(self, texts: Sequence[str]) -> Int32[np.ndarray, "n l"]:
        """Tokenize texts: begin, pieces, end, then zeros up to the context length.

        A text that does not fit is cut; its last token is the end token all the same. Raises ``InputError``
        for a text with characters that a small vocabulary cannot write (CLIP's own can write all).
        """
        tokens = np.zeros((len(texts), self.context_length), np.int32)
        for row, text in zip(tokens, texts, strict=True):
            ids = [self.bos_id, *self._pieces(text)[: self.context_length - 2], self.eot_id]
            row[: len(ids)] = ids
        return tokens

    def too_long(self, texts: Sequence[str]) -> list[int]:
        """List the positions of the texts that are cut to the context length."""
        return [i for i, text in enumerate(texts) if len(self._pieces(text)) > self.context_length - 2]

    def unknown_words(self, text: str) -> list[str]:
        """List the words and signs of a text that are not among the known ones, if these are all the encoder knows.

        Commas and full stops are never listed.
        """
        if self.known_words is None:
            return []
        words = [word for word, _ in _word_splitter().pre_tokenize_str(clean_text(text))]
        return [word for word in words if word not in self.known_words and word.strip(",.")]

    def rare_words(self, text: str) -> list[str]:
        """List the words of a text that are not among the known ones, or that take three pieces or more.

        Most words of captions are one piece of CLIP's vocabulary, or two.
        """
        words = [word for word, _ in _word_splitter().pre_tokenize_str(clean_text(text))]
        unknown = set(self.unknown_words(text))
        return [word for word in words if word in unknown or len(self._pieces(word)) >= _RARE]

    def save(self, folder: str | Path) -> None:
        """Write the tokenizer in transformers' format, to be read by ``load_tokenizer`` without a network."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.transformers_tokenizer.save_pretrained(folder)

    def _pieces(self, text: str) -> list[int]:
        # One text at a time: encode_batch starts threads, after which a fork (a data loader's, say) warns.
        ids = self.word_pieces.encode(clean_text(text)).ids
        # What a vocabulary lacks becomes the end token, which would silently cut the text there.
        if self.eot_id in ids:
            raise InputError(f"class name or prompt {text!r}: the tokenizer's vocabulary cannot write all of it")
        return ids


def make_tokenizer(merges: Sequence[tuple[str, str]], context_length: int = CONTEXT_LENGTH) -> ClipTokenizer:
    """Build a tokenizer from its merges alone, best first.

    The vocabulary is laid out as CLIP's: 256 byte symbols, the same with ``</w>`` (end of word), what the
    merges make, begin and end of text. It has 514 entries and one per merge, and can write any text.
    """
    return _from_merges(merges, context_length, "merges")


def make_word_tokenizer(words: Sequence[str], context_length: int) -> ClipTokenizer:
    """Build a small tokenizer for which each of some words is one token; it writes other words in pieces.

    Args:
        words: Words in lower-case letters from a to z.
        context_length: Tokens of a text, begin and end included.
    """
    tokenizer = make_tokenizer(_learn_merges(words), context_length)
    transformers_tokenizer = tokenizer.transformers_tokenizer
    transformers_tokenizer.init_kwargs[_KNOWN_WORDS] = sorted(set(words))  # saved with it
    return _wrap(transformers_tokenizer, context_length, "words")


def load_tokenizer(source: str | Path, context_length: int | None = None) -> ClipTokenizer:
    """Load a tokenizer.

    Args:
        source: A folder in transformers' format, the merges file that comes with CLIP and open_clip
            (``bpe_simple_vocab_16e6.txt.gz``), or a name on the Hugging Face hub, e.g. ``CLIP_TOKENIZER``. A
            ``Path`` is never looked for on the hub.
        context_length: Tokens of a text; by default what the folder states (``model_max_length``), else 77.

    Raises:
        InputError: The source does not exist, cannot be downloaded, or is no CLIP tokenizer.
    """
    path = Path(source)
    if path.is_dir():
        return _load_folder(path, context_length, str(path))
    if path.is_file():
        return _from_merges(_read_merges(path), context_length or CONTEXT_LENGTH, str(path))
    if isinstance(source, Path):
        raise InputError(f"{path}: no such file or folder")
    return _load_folder(_download(source), context_length, source)


def _learn_merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Find merges, best first, by which each word becomes one token: byte-pair encoding to its end."""
    spelled = [[*word[:-1], word[-1] + "</w>"] for word in sorted(set(words))]
    merges = []
    while counts := Counter(pair for symbols in spelled for pair in pairwise(symbols)):
        best = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(best)
        spelled = [_merge(symbols, best) for symbols in spelled]
    return merges


def _merge(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    """Replace every occurrence of a pair, from left to right."""
    merged: list[str] = []
    for symbol in symbols:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return merged


def _read_merges(path: Path) -> list[tuple[str, str]]:
    """Read the merges that make up CLIP's vocabulary; the file holds more than these."""
    try:
        with gzip.open(path) as file:
            text = file.read(_MAX_BYTES + 1)
        _check_size(len(text), path)
        lines = text.decode("utf-8").split("\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a gzip-compressed CLIP merges file ({error})") from error
    pairs = [tuple(line.split()) for line in lines[1 : _NUM_MERGES + 1]]  # the first line is a comment
    merges = [(pair[0], pair[1]) for pair in pairs if len(pair) == 2]
    num_entries = len({first + second for first, second in merges})
    if num_entries != _NUM_MERGES:
        raise InputError(f"{path}: not a CLIP merges file: {num_entries} merges, {_NUM_MERGES} expected")
    return merges


def _check_size(size: int, path: Path) -> None:
    """Refuse what would be read for minutes, into gigabytes, before it turns out to be no tokenizer."""
    if size > _MAX_BYTES:
        raise InputError(f"{path}: holds more than {_MAX_BYTES >> 20} MiB, so it is no CLIP tokenizer's")


def _from_merges(merges: Sequence[tuple[str, str]], context_length: int, name: str) -> ClipTokenizer:
    from transformers import CLIPTokenizer  # noqa: PLC0415 (slow to import)

    # CLIP orders the bytes by their symbols: first those that are printable and stand for themselves.
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    symbols = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    entries = symbols + [s + "</w>" for s in symbols] + [a + b for a, b in merges]
    entries += ["<|startoftext|>", "<|endoftext|>"]
    # Two merges may make the same entry ("a" + "bc", "ab" + "c"); it is kept once, so that ids have no holes.
    vocabulary = {entry: i for i, entry in enumerate(dict.fromkeys(entries))}
    try:
        tokenizer = CLIPTokenizer(vocab=vocabulary, merges=list(merges))
    except Exception as error:  # all that the tokenizers library raises
        raise InputError(f"{name}: not merges of a CLIP tokenizer ({first_line(error)})") from error
    return _wrap(tokenizer, context_length, name)


def _load_folder(folder: Path, context_length: int | None, name: str) -> ClipTokenizer:
    # Checked here because transformers makes an empty vocabulary when there is none to read.
    if not (folder / "tokenizer.json").is_file() and not (
        (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    ):
        raise InputError(f"{name}: no tokenizer here (tokenizer.json, or vocab.json and merges.txt, expected)")

    for path in folder.rglob("*"):
        _check_size(path.stat().st_size if path.is_file() else 0, path)

    from transformers import CLIPTokenizer  # noqa: PLC0415 (slow to import)

    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # a parser in another language, fed a broken file, raises all kinds
        raise InputError(f"{name}: not a CLIP tokenizer ({first_line(error)})") from error
    return _wrap(tokenizer, context_length, name)


def _download(name: str) -> Path:
    """Fetch a tokenizer's files from the hub, or from its local cache when there is no network."""
    # Not left to CLIPTokenizer.from_pretrained: without a network it retries for minutes, then makes an empty
    # vocabulary without an error.
    from huggingface_hub import snapshot_download  # noqa: PLC0415 (slow to import)

    try:
        return Path(snapshot_download(name, allow_patterns=_TOKENIZER_FILES))
    except (OSError, ValueError) as error:  # the hub's errors are one or the other
        raise InputError(
            f"tokenizer {name!r}: neither a folder nor a file, and not to be had from the Hugging Face hub; "
            "pass a folder with a saved tokenizer or the file bpe_simple_vocab_16e6.txt.gz"
        ) from error


def _wrap(tokenizer: "transformers.CLIPTokenizer", context_length: int | None, name: str) -> ClipTokenizer:
    """Put CLIP's own cleaning and splitting around a transformers tokenizer's vocabulary."""
    from tokenizers import Tokenizer, pre_tokenizers  # noqa: PLC0415 (slow to import)

    if context_length is None:
        # transformers states a huge number where a tokenizer states none.
        stated = tokenizer.model_max_length
        context_length = stated if stated < 1_000_000 else CONTEXT_LENGTH
    if context_length < 3:
        raise InputError(f"{name}: a context length of {context_length} leaves no room for a word")
    tokenizer.model_max_length = context_length  # so that it is saved

    vocab_size = len(tokenizer)
    if tokenizer.eos_token_id != vocab_size - 1:
        raise InputError(
            f"{name}: the end-of-text token has id {tokenizer.eos_token_id} but CLIP needs it to be the "
            f"largest, {vocab_size - 1}"
        )

    # A bare tokenizer around the same merges. Left out of transformers' pipeline: NFC (CLIP composes
    # characters before it resolves entities, not after), lower-casing (done already), the special tokens.
    word_pieces = Tokenizer(tokenizer.backend_tokenizer.model)
    word_pieces.pre_tokenizer = pre_tokenizers.Sequence(
        [_word_splitter(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    known_words = tokenizer.init_kwargs.get(_KNOWN_WORDS)
    if known_words is not None and not (
        isinstance(known_words, list) and all(isinstance(word, str) for word in known_words)
    ):
        raise InputError(f"{name}: {_KNOWN_WORDS} in tokenizer_config.json is no list of words")
    settings = f"{tokenizer.bos_token_id} {tokenizer.eos_token_id} {context_length}"
    return ClipTokenizer(
        transformers_tokenizer=tokenizer,
        context_length=context_length,
        bos_id=tokenizer.bos_token_id,
        eot_id=tokenizer.eos_token_id,
        vocab_size=vocab_size,
        fingerprint=hashlib.sha256((settings + word_pieces.to_str()).encode()).hexdigest(),
        word_pieces=word_pieces,
        known_words=None if known_words is None else frozenset(known_words),
    )


def _word_splitter() -> "tokenizers.pre_tokenizers.Split":
    """Make what splits a cleaned text into words, single digits and runs of other characters."""
    from tokenizers import Regex, pre_tokenizers  # noqa: PLC0415 (slow to import)

    return pre_tokenizers.Split(Regex(_WORD), behavior="removed", invert=True)

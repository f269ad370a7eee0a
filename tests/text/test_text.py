import io
import itertools
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import golden
from jaxtyping import Array

from clipvis_jax.errors import InputError
from clipvis_jax.models.text_classifier import TextClassifier, score_classes
from clipvis_jax.text.tokenizer import ClipTokenizer, make_tokenizer
from clipvis_jax.text.vocabulary import (
    BATCH_SIZE,
    LENGTH_MULTIPLE,
    PROMPT_TEMPLATES,
    SYNONYM_MULTIPLE,
    average_templates,
    check_vocabulary,
    encode_vocabulary,
    make_text_classifier,
    parse_synonyms,
)

EMBED_DIM = 24


class FakeEncoder:
    """Stands in for CLIP's text encoder: causal, read at the largest id. Records the shapes it is given."""

    def __init__(self, vocab_size: int) -> None:
        rng = np.random.default_rng(0)
        self.token_embedding = rng.normal(size=(vocab_size, EMBED_DIM)).astype(np.float32)
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, tokens: Array) -> Array:
        assert isinstance(tokens, jax.Array)
        self.shapes.append(tokens.shape)
        return jnp.asarray(self.encode(np.asarray(tokens)))

    def encode(self, tokens: np.ndarray) -> np.ndarray:
        state, states = np.zeros((len(tokens), EMBED_DIM), np.float32), []
        for column in tokens.T:
            state = np.float32(0.7) * state + self.token_embedding[column]
            states.append(state)
        return np.stack(states)[tokens.argmax(axis=1), np.arange(len(tokens))]


@pytest.fixture(scope="module")
def tokenizer() -> ClipTokenizer:
    return make_tokenizer([("o", "f</w>"), ("t", "h"), ("th", "e</w>"), ("i", "n</w>")], context_length=60)


@pytest.fixture
def encoder(tokenizer: ClipTokenizer) -> FakeEncoder:
    return FakeEncoder(tokenizer.vocab_size)


@pytest.fixture
def encode(tokenizer: ClipTokenizer, encoder: FakeEncoder) -> Callable[..., TextClassifier]:
    def run(class_names: Sequence[str], **options: object) -> TextClassifier:
        return encode_vocabulary(
            class_names, **{"tokenizer": tokenizer, "encode_tokens": encoder, "weights_hash": "w"} | options
        )

    return run


def rows_of(classifier: TextClassifier) -> np.ndarray:
    """The real rows of a classifier: those that are not padding."""
    embeddings = np.asarray(classifier.embeddings)
    return embeddings[np.abs(embeddings).sum(axis=1) > 0]


# --- names


def test_templates_are_the_published_ones() -> None:
    assert len(set(PROMPT_TEMPLATES)) == 14
    assert [template.endswith(".") for template in PROMPT_TEMPLATES] == [True] + [False] * 4 + [True] * 9
    assert all(template.count("{}") == 1 for template in PROMPT_TEMPLATES)


@pytest.mark.parametrize(
    ("name", "synonyms"),
    [
        ("dog", ("dog",)),
        ("dog, puppy", ("dog", "puppy")),
        ("dog,puppy ,  giant_panda", ("dog", "puppy", "giant_panda")),
        ("bow_(weapon)", ("bow_(weapon)",)),
    ],
)
def test_synonyms_are_split_at_commas(name: str, synonyms: tuple[str, ...]) -> None:
    assert parse_synonyms(name) == synonyms


@pytest.mark.parametrize("name", ["", "  ", "dog,", ",dog", "dog,,puppy", ",", "dog, &nbsp;"])
def test_empty_synonym_names_the_class(name: str) -> None:
    with pytest.raises(InputError) as error:
        check_vocabulary(["cat", name])
    assert repr(name) in str(error.value)


def test_vocabulary_keeps_order_and_shared_synonyms() -> None:
    assert check_vocabulary(["b, x", "a", "c, x"]) == (("b", "x"), ("a",), ("c", "x"))


def test_class_given_twice_is_named_with_its_positions() -> None:
    with pytest.raises(InputError, match=r"'dog,puppy'.*number 2 and 4"):
        check_vocabulary(["cat", "dog, puppy", "cow", "dog,puppy"])


@pytest.mark.parametrize("other", ["Dog", "dog  ", "d&#111;g", "DOG", "\uff44og"])  # the last begins with a wide d
def test_classes_that_the_encoder_cannot_tell_apart_are_one_class(other: str) -> None:
    with pytest.raises(InputError) as caught:
        check_vocabulary(["dog", "cat", other])
    same = f"class {other!r} is given twice: as number 1 and 3; to the text encoder it is 'dog'"
    assert str(caught.value) == same
    with pytest.raises(InputError, match="given twice"):
        check_vocabulary(["dog, giant panda", f"Giant\tPanda,{other}"])


@pytest.mark.parametrize(("class_names", "message"), [([], "no class"), ("dog", "'dog'.*list")])
def test_vocabulary_must_be_a_list_with_a_class(class_names: Sequence[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_vocabulary(class_names)


# --- classifier


@pytest.mark.parametrize(("num_synonyms", "num_rows"), [(1, 128), (128, 128), (129, 256)])
def test_classifier_is_padded(num_synonyms: int, num_rows: int) -> None:
    embeddings = np.ones((num_synonyms, 4), np.float32)
    classifier = make_text_classifier(embeddings, [1] * num_synonyms)
    assert classifier.embeddings.shape == (num_rows, 4)
    assert SYNONYM_MULTIPLE == 128
    assert (np.diff(classifier.class_index) >= 0).all()
    assert int(classifier.num_classes) == num_synonyms
    # No padding row may count for a real class.
    assert (classifier.class_index[num_synonyms:] >= num_synonyms).all()


def test_templates_are_averaged_as_in_the_authors_code(family: str) -> None:
    arrays = golden(f"tiny_{family}_video")
    features = arrays["text_raw"].reshape(15, 14, 32)
    np.testing.assert_allclose(average_templates(features), arrays["text_classifier"], atol=1e-6, rtol=0)


def test_logits_are_those_of_the_authors_code(family: str) -> None:
    arrays = golden(f"tiny_{family}_video")
    counts = golden("tiny_inputs")["num_templates"].tolist()
    classifier = make_text_classifier(arrays["text_classifier"], counts)
    scale = jnp.minimum(jnp.exp(arrays["logit_scale"]), 100.0)
    logits = np.asarray(score_classes(classifier, jnp.asarray(arrays["pooled_visual"]), scale))

    expected = arrays["class_logits_before_zeroing"]
    compared = ~arrays["empty_res5"] if family == "rn" else np.ones(expected.shape[:2], bool)
    assert compared.sum() > 150
    np.testing.assert_allclose(logits[compared][:, :9], expected[compared], atol=1e-4, rtol=0)
    assert (logits[..., 9:] == -np.inf).all()


def test_logits_match_a_loop_over_classes() -> None:
    rng = np.random.default_rng(1)
    counts = rng.integers(1, 6, size=90).tolist()
    embeddings = rng.normal(size=(sum(counts), 16)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    visual = rng.normal(size=(5, 16)).astype(np.float32)

    cosines = visual / np.linalg.norm(visual, axis=1, keepdims=True) @ embeddings.T
    starts = np.cumsum([0, *counts])
    expected = [cosines[:, a:b].max(axis=1) for a, b in itertools.pairwise(starts)]
    logits = score_classes(make_text_classifier(embeddings, counts), jnp.asarray(visual), 50.0)
    np.testing.assert_allclose(logits[:, :90], 50 * np.stack(expected, axis=1), atol=1e-4)


@pytest.mark.parametrize("num_classes", [1, 127, 128])
def test_softmax_is_over_the_real_classes_only(num_classes: int) -> None:
    # The visual embedding points away from all texts: the zeros of a padding row would win.
    embeddings = np.tile(np.eye(1, 8, dtype=np.float32), (num_classes, 1))
    classifier = make_text_classifier(embeddings, [1] * num_classes)
    probs = np.asarray(jax.nn.softmax(score_classes(classifier, -jnp.eye(1, 8), 100.0)))
    np.testing.assert_allclose(probs[0, :num_classes], 1 / num_classes, rtol=1e-5)
    assert (probs[0, num_classes:] == 0).all()


def test_visual_of_zeros_is_undecided() -> None:
    classifier = make_text_classifier(np.eye(4, 8, dtype=np.float32), [1] * 4)
    probs = jax.nn.softmax(score_classes(classifier, jnp.zeros((2, 3, 8)), 100.0))
    np.testing.assert_array_equal(probs[..., :4], np.full((2, 3, 4), 0.25, np.float32))


def test_logits_of_half_precision_visuals_are_float32() -> None:
    rng = np.random.default_rng(2)
    visual = jnp.asarray(rng.normal(size=(3, 8)), jnp.bfloat16)
    classifier = make_text_classifier(np.eye(4, 8, dtype=np.float32), [1] * 4)
    logits = score_classes(classifier, visual, 100.0)
    assert logits.dtype == jnp.float32
    np.testing.assert_array_equal(logits, score_classes(classifier, visual.astype(jnp.float32), 100.0))


def test_vocabularies_of_similar_size_share_a_compilation() -> None:
    compilations = []

    @jax.jit
    def logits(classifier: TextClassifier, visual: Array) -> Array:
        compilations.append(classifier.embeddings.shape)
        return score_classes(classifier, visual, 100.0)

    for counts in ([1, 2], [1] * 128, [3] * 40, [1] * 129):
        logits(make_text_classifier(np.ones((sum(counts), 8), np.float32), counts), jnp.ones((2, 8)))
    assert compilations == [(128, 8), (256, 8)]


# --- encoding


def test_vocabulary_is_encoded_prompt_by_prompt(
    encode: Callable[..., TextClassifier], encoder: FakeEncoder, tokenizer: ClipTokenizer
) -> None:
    names = ["dog, puppy", "giant_panda", "a", "man-eating lizard, monitor"]
    classifier = encode(names, batch_size=7)

    expected = []
    for synonym in ["dog", "puppy", "giant_panda", "a", "man-eating lizard", "monitor"]:
        # One prompt at a time, at full length: neither order, batch nor cut may matter.
        features = np.concatenate([encoder.encode(tokenizer([t.format(synonym)])) for t in PROMPT_TEMPLATES])
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        mean = features.mean(axis=0)
        expected.append(mean / np.linalg.norm(mean))
    np.testing.assert_allclose(rows_of(classifier), expected, atol=1e-6)
    assert classifier.class_index[:6].tolist() == [0, 0, 1, 2, 3, 3]
    assert int(classifier.num_classes) == 4


def test_prompts_are_cut_and_few_shapes_compiled(
    encode: Callable[..., TextClassifier], encoder: FakeEncoder, tokenizer: ClipTokenizer
) -> None:
    names = [f"{'x' * (i % 7)}{i}" for i in range(60)]
    encode(names)
    prompts = [template.format(name) for name in names for template in PROMPT_TEMPLATES]
    lengths = np.sort(tokenizer(prompts).argmax(axis=1) + 1)[::-1]

    assert {shape[0] for shape in encoder.shapes} == {BATCH_SIZE}
    expected = [-(-length // LENGTH_MULTIPLE) * LENGTH_MULTIPLE for length in lengths[::BATCH_SIZE]]
    assert [shape[1] for shape in encoder.shapes] == expected
    assert len(set(encoder.shapes)) < 10


def test_length_is_limited_to_the_context(encoder: FakeEncoder) -> None:
    tokenizer = make_tokenizer([], context_length=30)  # no multiple of LENGTH_MULTIPLE
    with pytest.warns(UserWarning, match="cut"):
        encode_vocabulary(["x" * 40], tokenizer=tokenizer, encode_tokens=encoder, weights_hash="w")
    assert {shape[1] for shape in encoder.shapes} == {30}


def test_cut_names_are_listed_once(encode: Callable[..., TextClassifier]) -> None:
    long_names = [f"{letter * 30}, {letter * 50}" for letter in "abcdefg"]
    with pytest.warns(UserWarning, match="cut") as caught:
        encode(["dog", *long_names])
    (warning,) = caught
    assert str(warning.message).endswith(f"{long_names[4]!r} and 2 more")
    assert all(repr(name) in str(warning.message) for name in long_names[:5])


def test_5000_classes(encode: Callable[..., TextClassifier]) -> None:
    names = [f"c{i}, s{i}" for i in range(5000)]
    classifier = encode(names, templates=["a {}"], batch_size=1000)
    assert classifier.embeddings.shape == (10_112, EMBED_DIM)
    probs = jax.nn.softmax(score_classes(classifier, classifier.embeddings[9998:9999], 100.0))
    assert int(probs.argmax()) == 4999


def test_progress_is_shown_when_it_takes_long(
    encode: Callable[..., TextClassifier], capsys: pytest.CaptureFixture[str]
) -> None:
    encode(["dog"], show_progress=True)
    encode(["dog", "cat"], batch_size=2, show_progress=False)
    assert capsys.readouterr().err == ""
    encode(["dog", "cat"], batch_size=2, show_progress=True)
    assert "28/28" in capsys.readouterr().err


# --- cache


def test_cache_saves_the_encoding(encode: Callable[..., TextClassifier], encoder: FakeEncoder, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "cache"
    first = encode(["dog, puppy", "cat"], cache_dir=folder)
    assert [path.suffix for path in folder.iterdir()] == [".npz"], "one file, and no temporary ones left"
    encoder.shapes.clear()
    second = encode(["dog, puppy", "cat"], cache_dir=folder)
    assert encoder.shapes == []
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_cache_tells_everything_apart_that_matters(
    encode: Callable[..., TextClassifier], encoder: FakeEncoder, tmp_path: Path
) -> None:
    variants: list[tuple[list[str], dict[str, object]]] = [
        (["dog, puppy", "cat"], {}),
        (["dog", "puppy", "cat"], {}),
        (["cat", "dog, puppy"], {}),
        (["dog, puppy", "cat"], {"weights_hash": "other"}),
        (["dog, puppy", "cat"], {"templates": PROMPT_TEMPLATES[:3]}),
        (
            ["dog, puppy", "cat"],
            {"tokenizer": make_tokenizer([("d", "o"), ("do", "g</w>")], context_length=60)},
        ),
    ]
    for names, options in variants:
        encoder.shapes.clear()
        encode(names, cache_dir=tmp_path, **options)
        assert encoder.shapes, f"{names} {options} was read from the cache"
    assert len(list(tmp_path.iterdir())) == len(variants)


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def flip_middle_bit(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[:-30],
    "empty": lambda _: b"",
    "text": lambda _: b"not a zip file",
    "bit": flip_middle_bit,
    "npy": lambda _: b"\x93NUMPY" + bytes(100),
    "key": lambda _: npz(other=np.zeros((3, EMBED_DIM), np.float32)),
    "count": lambda _: npz(embeddings=np.zeros((4, EMBED_DIM), np.float32)),
    "axes": lambda _: npz(embeddings=np.zeros(3, np.float32)),
    "type": lambda _: npz(embeddings=np.zeros((3, EMBED_DIM), np.int64)),
    "pickle": lambda _: npz(embeddings=np.array([{}, {}, {}])),
    "nan": lambda _: npz(embeddings=np.full((3, EMBED_DIM), np.nan, np.float32)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_cache_is_made_anew(
    encode: Callable[..., TextClassifier], encoder: FakeEncoder, tmp_path: Path, damage: str
) -> None:
    first = encode(["dog, puppy", "cat"], cache_dir=tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    encoder.shapes.clear()
    second = encode(["dog, puppy", "cat"], cache_dir=tmp_path)
    assert encoder.shapes, "the damaged file was used"
    jax.tree.map(np.testing.assert_array_equal, first, second)
    encoder.shapes.clear()
    encode(["dog, puppy", "cat"], cache_dir=tmp_path)
    assert encoder.shapes == [], "the damaged file was not replaced"


def test_unwritable_cache_is_done_without(encode: Callable[..., TextClassifier], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="cannot keep"):
        classifier = encode(["dog"], cache_dir=tmp_path / "file" / "cache")
    assert len(rows_of(classifier)) == 1


def test_failed_write_leaves_no_file(
    encode: Callable[..., TextClassifier], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.warns(UserWarning, match="disk full"):
        encode(["dog"], cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_importing_is_free_of_torch_and_transformers() -> None:
    script = "import sys, clipvis_jax.text.vocabulary; print({'torch', 'transformers'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"

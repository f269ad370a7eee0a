# ruff: noqa: RUF001, SIM905 (strange characters and word lists are the point)
import gzip
import importlib
import json
import random
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracles import install_torchvision_stub, open_clip_bpe_path

from clipvis_jax.errors import InputError
from clipvis_jax.text.tokenizer import CLIP_TOKENIZER, ClipTokenizer, load_tokenizer, make_tokenizer

WORDS = """giant panda tree kangaroo bald eagle coffee maker cup kettle fire hydrant baseball bat
skateboard zebra red small old wooden electric remote control parking meter traffic light hair drier
teddy bear wine glass trailer truck horned cow lizard monitor computer keyboard mouse cell phone
toaster refrigerator surfboard tennis racket umbrella dust bin garbage police cruiser motor scooter
polar sea turtle flag license plate person man-eating t-shirt mother's dog's they're we've i'm
she'll he'd rock'n'roll o'clock""".split()
FOREIGN = """café naïve jalapeño crème brûlée Ångström façade smörgåsbord çay Straße ﬁreﬂy ﬀ eﬃgy
ſpoon 's'ſ ŉ 大熊猫 熊猫 パンダ ぱんだ 판다 панда ПАНДА πάντα ΣΊΣΥΦΟΣ باندا פנדה पांडा แพนด้า
İstanbul ı Ｆｕｌｌ－ｗｉｄｔｈ １２３ ﾊﾟﾝﾀﾞ ② ½ ³ Ⅷ x² 🐼 ❤️ 🇩🇪 \N{WOMAN}\u200d\N{ROCKET} \ufeffbom
zero\u200bwidth soft\u00adhyphen \u03b1\u0345\u0345 e\u0301clair a\u0308pfel n\u0303 Z\u0361a
q\u0307\u0323 \u0045\u0301""".split()
ODD = """&amp; &amp;amp; &amp;amp;amp;lt; <&amp;amp;> R&amp;B &eacute;t&eacute; e&#769; &#39;s &quot;quoted&quot;
&nbsp; &unknown; &#x1F43C; “curly” ‘s it’s «g» … — – !!! ?!?! ... -- __ ___ _a_ snake_case_name a/b
(thing) [x] {y} {} # @home 100% $5 1 22 333 4K 3d 007 1,000 C++ <start> <|a|> \\n \\ ' '' 's 'S 'll
''re \x07 \x1b[0m \x00 \u0085 \u2028 \u3000 â€œmojibakeâ€\x9d cafÃ© \udc80""".replace("\n", " ").split(" ")


def make_names(count: int, seed: int) -> list[str]:
    """Draw class names: plain ones, ones with foreign and odd parts, and ones too long for the context."""
    rng = random.Random(seed)
    names = [
        *FOREIGN,
        *ODD,
        "",
        " ",
        "\t\n",
        "  padded  ",
        "two\nlines",
        "giant_panda",
        "giant panda",
        "GIANT_Panda",
    ]
    names += [
        "bear " * 75,
        "bear " * 74,
        "bear " * 76,
        "ABC" * 200,
        "é" * 80,
        "大" * 90,
        "1" * 75,
        "!" * 5000,
    ]
    while len(names) < count:
        kind = rng.random()
        parts = rng.choices(WORDS if kind < 0.4 else WORDS + FOREIGN + ODD, k=rng.randint(1, 5))
        if kind > 0.85:
            parts *= rng.randint(10, 30)
        name = rng.choice(["_", " ", "", "-", "  "]).join(parts)
        names.append(rng.choice([str, str.upper, str.title])(name))
    return names


@pytest.fixture(scope="module")
def clip_tokenizer() -> ClipTokenizer:
    return load_tokenizer(open_clip_bpe_path())


@pytest.fixture(scope="module")
def open_clip_tokenizer() -> Any:
    pytest.importorskip("torch")
    install_torchvision_stub()
    return importlib.import_module("open_clip.tokenizer").SimpleTokenizer()


def test_equals_open_clip_on_1000_names(clip_tokenizer: ClipTokenizer, open_clip_tokenizer: Any) -> None:
    names = make_names(1000, seed=0)
    expected = open_clip_tokenizer(names).numpy()
    actual = clip_tokenizer(names)

    different = [name for name, a, b in zip(names, actual, expected, strict=True) if not np.array_equal(a, b)]
    assert different == []
    cut = [i for i, name in enumerate(names) if len(open_clip_tokenizer.encode(name)) > 75]
    assert clip_tokenizer.too_long(names) == cut
    assert len(cut) > 50, "the names must exercise the cut"


def test_equals_open_clip_on_single_characters(clip_tokenizer: ClipTokenizer, open_clip_tokenizer: Any) -> None:
    # In each role: inside a word, after an apostrophe, repeated, as an entity. Only those that Python's
    # Unicode version knows: later ones may be letters to one library and not yet to the other.
    known = [c for c in map(chr, range(0x20000)) if unicodedata.category(c) not in ("Cn", "Cs", "Co")]
    characters = [*random.Random(0).sample(known, 2000), "\u0345", "ſ", "\u212a", "ß", "ẞ"]
    texts = [f"a{c}B'{c} 1{c}{c} e&#{ord(c)};" for c in characters]

    expected = open_clip_tokenizer(texts).numpy()
    actual = clip_tokenizer(texts)
    assert [c for c, a, b in zip(characters, actual, expected, strict=True) if not np.array_equal(a, b)] == []


def test_equals_open_clip_with_a_short_context(open_clip_tokenizer: Any) -> None:
    names = make_names(200, seed=1)
    tokenizer = load_tokenizer(open_clip_bpe_path(), context_length=16)
    np.testing.assert_array_equal(tokenizer(names), open_clip_tokenizer(names, context_length=16).numpy())


def test_vocabulary_is_clips(clip_tokenizer: ClipTokenizer) -> None:
    assert (clip_tokenizer.vocab_size, clip_tokenizer.context_length) == (49408, 77)
    assert (clip_tokenizer.bos_id, clip_tokenizer.eot_id) == (49406, 49407)


def test_context_needs_room_for_a_word() -> None:
    assert make_tokenizer([], context_length=3)(["word"])[0].tolist() == [512, 86, 513]
    with pytest.raises(InputError, match="context length of 2"):
        make_tokenizer([], context_length=2)


def test_impossible_merges_are_an_error_in_one_line() -> None:
    with pytest.raises(InputError, match=r"merges: .*two") as error:
        make_tokenizer([("two\nlines", "x")])
    assert "\n" not in str(error.value)


def test_text_of_a_special_token_is_plain_text(clip_tokenizer: ClipTokenizer) -> None:
    for name in ("<end_of_text>", "<|endoftext|>", "<|startoftext|>"):
        (tokens,) = clip_tokenizer([f"a {name} b"])
        assert tokens.tolist().count(clip_tokenizer.eot_id) == 1
        assert tokens.tolist().count(clip_tokenizer.bos_id) == 1


def test_too_long_starts_where_the_end_token_has_no_place(clip_tokenizer: ClipTokenizer) -> None:
    assert clip_tokenizer.too_long(["bear " * 75, "bear " * 76, "bear"]) == [1]


def test_saved_folder_reloads_identically(clip_tokenizer: ClipTokenizer, tmp_path: Path) -> None:
    names = make_names(300, seed=2)
    clip_tokenizer.save(tmp_path / "model" / "tokenizer")
    reloaded = load_tokenizer(tmp_path / "model" / "tokenizer")
    assert reloaded.fingerprint == clip_tokenizer.fingerprint
    assert (reloaded.vocab_size, reloaded.context_length) == (49408, 77)
    np.testing.assert_array_equal(reloaded(names), clip_tokenizer(names))


def test_small_vocabulary_keeps_its_context_length(tmp_path: Path) -> None:
    tokenizer = make_tokenizer([("d", "o"), ("do", "g</w>"), ("a", "t</w>")], context_length=16)
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eot_id) == (517, 515, 516)
    (tokens,) = tokenizer(["Dog bat"])
    assert tokens.tolist()[:5] == [515, 512 + 1, 65, 512 + 2, 516]
    assert tokens.tolist()[5:] == [0] * 11

    tokenizer.save(tmp_path)
    reloaded = load_tokenizer(tmp_path)
    assert (reloaded.context_length, reloaded.fingerprint) == (16, tokenizer.fingerprint)
    assert load_tokenizer(tmp_path, context_length=8)(["Dog"]).shape == (1, 8)


def test_entry_of_two_merges_is_kept_once() -> None:
    tokenizer = make_tokenizer([("a", "b"), ("b", "c"), ("a", "bc"), ("ab", "c")])
    assert (tokenizer.vocab_size, tokenizer.eot_id) == (514 + 3, 514 + 2)


def test_fingerprint_tells_tokenizers_apart(clip_tokenizer: ClipTokenizer) -> None:
    merges = [("d", "o"), ("o", "g</w>")]
    tokenizers = [
        make_tokenizer(merges),
        make_tokenizer(merges[::-1]),
        make_tokenizer(merges, 16),
        clip_tokenizer,
    ]
    assert len({tokenizer.fingerprint for tokenizer in tokenizers}) == 4


def write_vocabulary(folder: Path, entries: list[str]) -> Path:
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({entry: i for i, entry in enumerate(entries)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


def test_name_that_a_vocabulary_cannot_write_is_an_error(tmp_path: Path) -> None:
    entries = ["a", "b", "a</w>", "b</w>", "<|startoftext|>", "<|endoftext|>"]
    tokenizer = load_tokenizer(write_vocabulary(tmp_path / "tiny", entries))
    assert tokenizer(["ab"])[0, :5].tolist() == [4, 0, 3, 5, 0]
    with pytest.raises(InputError, match="'abc'"):
        tokenizer(["ab", "abc"])


def test_end_token_must_be_the_largest_id(tmp_path: Path) -> None:
    folder = write_vocabulary(tmp_path / "tiny", ["<|startoftext|>", "<|endoftext|>", "a", "a</w>"])
    with pytest.raises(InputError, match=r"end-of-text token has id 1 .* largest, 3"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("merges.txt", b"#version: 0.2\na b\n"),
        ("empty.txt.gz", b""),
        ("cut.txt.gz", gzip.compress(b"a b\n" * 100_000)[:-20]),
        ("damaged.txt.gz", gzip.compress(b"")[:10] + b"\xff" * 50),
        ("binary.txt.gz", gzip.compress(b"\xff\xfe" * 1000)),
        ("short.txt.gz", gzip.compress(b"# comment\na b\nc d\n")),
        ("words.txt.gz", gzip.compress(b"three words here\n" * 60_000)),
        ("same.txt.gz", gzip.compress(b"a b\n" * 60_000)),
        ("unknown.txt.gz", gzip.compress("".join(f"word {i}\n" for i in range(60_000)).encode())),
        ("bomb.txt.gz", gzip.compress(b"a b\n" * 2**24)),
        ("large", {"tokenizer.json": " " * (2**25 + 1)}),
        ("empty", {}),
        ("half", {"vocab.json": "{}"}),
        ("no_json", {"tokenizer.json": "{"}),
        ("no_tokenizer", {"tokenizer.json": "[1, 2]"}),
        ("no_model", {"tokenizer.json": "{}"}),
        ("wrong_vocab", {"vocab.json": "[]", "merges.txt": "x"}),
        ("wrong_length", {"tokenizer.json": "{}", "tokenizer_config.json": '{"model_max_length": 2}'}),
        (
            "wrong_words",
            {
                "vocab.json": '{"<|startoftext|>": 0, "<|endoftext|>": 1}',
                "merges.txt": "",
                "tokenizer_config.json": '{"known_words": 5}',
            },
        ),
    ],
    # Of names alone: gzip writes the time, and all workers must collect the same tests.
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_broken_source_is_named_in_one_line(tmp_path: Path, name: str, content: bytes | dict[str, str]) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.mkdir()
        for file_name, text in content.items():
            (path / file_name).write_text(text)
    with pytest.raises(InputError) as error:
        load_tokenizer(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_folder_without_a_tokenizer_says_what_is_expected(tmp_path: Path) -> None:
    # transformers itself makes an empty vocabulary here.
    (tmp_path / "vocab.json").write_text('{"a": 0, "<|startoftext|>": 1, "<|endoftext|>": 2}')
    with pytest.raises(InputError, match=r"no tokenizer here .*merges\.txt"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("source", [CLIP_TOKENIZER, "no/such/folder", "../nowhere", "bad name"])
def test_unreachable_source_says_what_to_pass(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"bpe_simple_vocab_16e6\.txt\.gz") as error:
        load_tokenizer(source)
    assert repr(source) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_path_is_not_looked_for_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", None)
    with pytest.raises(InputError, match="openai/clip-vit-base-patch32: no such file"):
        load_tokenizer(Path(CLIP_TOKENIZER))


def test_hub_name_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = make_tokenizer([("a", "b")], context_length=20)
    saved.save(tmp_path)

    def snapshot_download(name: str, allow_patterns: list[str]) -> str:
        assert name == CLIP_TOKENIZER
        assert {path.name for path in tmp_path.iterdir()} <= set(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert load_tokenizer(CLIP_TOKENIZER).fingerprint == saved.fingerprint


def test_runs_without_torch_and_imports_transformers_late() -> None:
    script = f"""
import sys
sys.modules["torch"] = None
from clipvis_jax.text.tokenizer import load_tokenizer
assert "transformers" not in sys.modules
print(load_tokenizer({str(open_clip_bpe_path())!r})(["dog"])[0, :4].tolist())
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[49406, 1929, 49407, 0]"

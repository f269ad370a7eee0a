"""Background names: which are taken beside a vocabulary, and what becomes of the results."""

import numpy as np
import pytest
from tiny import tiny_model_folder

import clipvis_jax
from clipvis_jax.errors import InputError
from clipvis_jax.inference.segmenter import InferenceConfig
from clipvis_jax.text.background import everyday_names, unsaid_names
from clipvis_jax.text.tokenizer import clean_text


def test_everyday_names_differ():
    names = everyday_names()
    assert 250 < len(names) == len(set(names)) < 400
    assert all(name == clean_text(name) for name in names)


@pytest.mark.parametrize(
    ("synonyms", "left_out"),
    [
        (["person"], {"person", "man", "woman", "child", "baby", "face", "hand", "crowd of people"}),
        (["man"], {"man", "person"}),
        (["Dogs"], {"dog", "animal"}),
        (["polar bear"], {"bear", "animal"}),
        (["bear"], {"bear", "teddy bear", "animal"}),
        (["people"], {"person", "man", "woman", "child", "baby", "face", "hand", "crowd of people"}),
        (["girl"], {"child", "person"}),
        (["buses"], {"bus", "vehicle"}),
        (["boxes"], {"box", "cardboard box"}),
        (["horses"], {"horse", "animal"}),
        (["butterflies"], {"butterfly", "insect", "animal"}),
        (["leaves"], {"leaf", "plant"}),
        (["mice"], {"mouse", "animal"}),
        (["duck"], {"duck", "bird", "animal"}),
        (["red couch"], {"sofa", "furniture"}),
        (["plane"], {"airplane", "aircraft", "vehicle"}),
        (["puppy", "cat"], {"dog", "cat", "animal"}),
        (["car"], {"car", "toy car", "vehicle"}),
        (["dotted white cross"], set()),
    ],
)
def test_names_that_compete_with_a_class_are_left_out(synonyms, left_out):
    names = everyday_names()
    assert set(names) - set(unsaid_names(names, [synonyms])) == left_out


def test_a_kind_takes_all_of_its_kinds_along():
    left = unsaid_names(everyday_names(), [["animal"], ["food"]])
    assert not {"dog", "bird", "duck", "insect", "butterfly", "fruit", "apple", "vegetable"} & set(left)
    assert {"person", "car", "plate"} < set(left)
    assert unsaid_names(everyday_names(), [["cat"], ["object"]]) == []


def test_names_that_are_not_in_the_list_are_told_by_their_words():
    assert unsaid_names(["striped star", "red star", "moon"], [["red stars"]]) == ["striped star", "moon"]
    assert unsaid_names(["big red star", "star"], [["red star"]]) == []


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    folder = tiny_model_folder(tmp_path_factory.mktemp("model") / "tiny", "rn")
    return clipvis_jax.load(folder, config=InferenceConfig(size=64))


def image():
    return np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)


def scored(result):
    return {(track.track_id, track.class_name): track.score for track in result.tracks}


def test_background_takes_part_in_the_softmax_and_is_left_out_of_the_results(segmenter):
    alone = segmenter.predict_image(image(), ["dog", "cat"], top_k=1000)
    beside = segmenter.predict_image(image(), ["dog", "cat"], background=["god", "cats", "tac"], top_k=1000)
    asked = segmenter.predict_image(image(), ["dog", "cat", "god", "tac"], top_k=1000)
    assert (alone.background, beside.background) == ((), ("god", "tac"))  # "cats" is said
    assert beside.class_names == alone.class_names
    of_classes = {pair: score for pair, score in scored(asked).items() if pair[1] in ("dog", "cat")}
    assert scored(beside) == of_classes
    assert sum(scored(beside).values()) < 0.9 * sum(scored(alone).values())


def test_a_video_is_classified_alike(segmenter):
    frames = [image(), image()[::-1]]
    beside = segmenter.predict_video(frames, ["dog"], background=["god, tac", "tac"], top_k=1000)
    asked = segmenter.predict_video(frames, ["dog", "god", "tac"], top_k=1000)
    assert beside.background == ("god", "tac")
    assert scored(beside) == {pair: score for pair, score in scored(asked).items() if pair[1] == "dog"}


def test_auto_is_the_models_own_list_for_short_vocabularies(segmenter, monkeypatch):
    monkeypatch.setattr(segmenter, "background", ("god", "tac"))
    assert segmenter.start(["dog"], background="auto", keep_frames=False).background == ("god", "tac")
    monkeypatch.setattr(segmenter, "background", None)
    everyday = segmenter.start(["dog"], background="auto", keep_frames=False).background
    assert {"sky", "cat"} < set(everyday)
    assert not {"dog", "animal"} & set(everyday)
    many = [f"dog {number}" for number in range(50)]
    assert segmenter.start(many, background="auto", keep_frames=False).background == ()


def test_a_text_encoder_of_few_words_takes_no_others(segmenter, monkeypatch):
    known = {"sky", "sea"}
    monkeypatch.setattr(
        type(segmenter._tokenizer), "unknown_words", lambda _, text: [w for w in text.split() if w not in known]
    )
    monkeypatch.setattr(segmenter, "background", None)
    with pytest.warns(UserWarning, match="dog"):
        assert set(segmenter.start(["dog"], background="auto", keep_frames=False).background) <= known
    with pytest.warns(UserWarning, match="'moon'"):
        segmenter.encode_classes(["sea"], background=["moon"])


@pytest.mark.parametrize(("background", "message"), [("dog", 'give a list of names, or "auto"'), (["a", " "], "empty")])
def test_names_that_cannot_be(segmenter, background, message):
    with pytest.raises(InputError, match=message):
        segmenter.start(["cat"], background=background, keep_frames=False)

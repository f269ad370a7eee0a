"""Offline and streaming use, windows, compilations, switches, memory and errors, on the tiny models."""

import copy
import dataclasses
import gc
import operator
import pickle
import shutil
import tracemalloc
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import golden
from PIL import Image
from tiny import SIZE, TOP_K, GoldenTokenizer, class_names, clip_frames, tiny_model, tiny_segmenter

from clipvis_jax.errors import InputError
from clipvis_jax.inference.association import AssociationConfig
from clipvis_jax.inference.frame_store import FrameStore
from clipvis_jax.inference.results import VideoResult
from clipvis_jax.inference.scores import ScoreConfig, unit_length
from clipvis_jax.inference.segmenter import InferenceConfig, Segmenter
from clipvis_jax.inference.tracker import FrameQueries, TrackerState
from clipvis_jax.inference.video_state import VideoState
from clipvis_jax.media.video_reader import FrameSelection, open_frames
from clipvis_jax.models.clipvis import ClipVis
from clipvis_jax.text.vocabulary import make_text_classifier


def test_streaming_equals_offline(family):
    segmenter = tiny_segmenter(family, window=1)
    offline = segmenter.predict_video(clip_frames(), class_names(), top_k=TOP_K)
    state = segmenter.start(class_names())
    for frame in clip_frames():
        state, _ = segmenter.step(state, frame)
    assert segmenter.finish(state, top_k=TOP_K) == offline


def test_live_tracks_are_the_final_ones_where_nothing_is_dropped():
    segmenter = tiny_segmenter("rn", window=1)
    frames = clip_frames()[:1]
    with segmenter.start(class_names()) as state:
        _, live = segmenter.step(state, frames[0], top_k=TOP_K)
    final = segmenter.predict_video(frames, class_names(), top_k=TOP_K)
    assert [(t.track_id, t.class_name) for t in live] == [(t.track_id, t.class_name) for t in final.tracks]
    for ours, theirs in zip(live, final.tracks, strict=True):
        assert ours.score == pytest.approx(theirs.score)
        np.testing.assert_array_equal(ours.mask, theirs.mask(0))
        np.testing.assert_array_equal(ours.embedding, theirs.embedding)
    network = next(segmenter.run_network(segmenter.encode_classes(class_names()), frames))[0].visual_embed
    image = segmenter.predict_image(frames[0], class_names(), top_k=TOP_K)
    for track in final.tracks + image.tracks:
        expected = unit_length(network)[track.track_id]
        np.testing.assert_allclose(track.embedding, expected, rtol=1e-4, atol=1e-6)


def test_live_tracks_come_with_every_frame():
    segmenter = tiny_segmenter("rn", window=1)
    state = segmenter.start(class_names())
    with state:
        for number, frame in enumerate(clip_frames()[:3], start=1):
            state, live = segmenter.step(state, frame, top_k=5, min_score=0.1)
            assert state.num_frames == number
            assert len(live) == 5
            assert all(track.mask.shape == frame.shape[:2] for track in live)
            assert any(track.mask.any() for track in live)
            scores = [track.score for track in live]
            assert scores == sorted(scores, reverse=True)
            assert min(scores) >= 0.1


def test_min_score_leaves_the_rest_unchanged():
    segmenter = tiny_segmenter("rn", window=1)
    everything = segmenter.predict_video(clip_frames()[:3], class_names(), top_k=TOP_K)
    limit = everything.tracks[4].score
    some = segmenter.predict_video(clip_frames()[:3], class_names(), top_k=TOP_K, min_score=limit)
    assert some.tracks == everything.tracks[:5]


def test_a_video_and_others_of_its_padded_size_compile_once():
    model, clip_vars, params = tiny_model("rn")
    # Unlike those of other tests, whose programs it would share.
    first, segmenter = (
        Segmenter(
            dataclasses.replace(model, encoder_dtype=np.float32),
            clip_vars,
            params,
            tokenizer=GoldenTokenizer(),
            config=InferenceConfig(size=SIZE, window=5),
        )
        for _ in range(2)
    )
    frames = clip_frames()
    first.predict_video(frames[:5], class_names())
    segmenter.predict_video(frames, class_names())
    segmenter.predict_video([frame[:, :148] for frame in frames[:7]], class_names())
    other_names = [f"another {name}" for name in class_names()]
    segmenter.predict_video(frames[:5], other_names)
    assert segmenter._predict_frames._cache_size() == 1
    segmenter.predict_video([frame[:, :90] for frame in frames[:1]], class_names())
    assert segmenter._predict_frames._cache_size() == 2


@pytest.mark.parametrize(
    "config",
    [
        {"association": AssociationConfig("previous")},
        {"association": AssociationConfig("all")},
        {"association": AssociationConfig("top_k", memory_length=3, top_k=1)},
        {"scores": ScoreConfig(use_objectness=False)},
        {"scores": ScoreConfig(use_iou=False)},
    ],
    ids=["previous frame", "all frames", "other T and K", "no objectness", "no IoU"],
)
def test_every_switch_changes_the_result(config):
    default = tiny_segmenter("rn", window=1)
    changed = Segmenter(
        default.model,
        default.clip_vars,
        default.params,
        tokenizer=GoldenTokenizer(),
        config=InferenceConfig(size=SIZE, window=1, **config),
    )
    scores = [
        [track.score for track in segmenter.predict_video(clip_frames(), class_names()).tracks]
        for segmenter in (default, changed)
    ]
    assert not np.allclose(*scores, atol=1e-6)


def test_bfloat16_features_are_close_and_predictions_are_float32():
    model, clip_vars, params = tiny_model("convnext")
    half = ClipVis(model.config, dtype="bfloat16")
    frames = np.zeros((1, 64, 128, 3), np.uint8)
    frames[0, :, :100] = golden("tiny_inputs")["resized_u8"][0]
    frames, valid = jnp.asarray(frames), jnp.array([64, 100])
    exact, rounded = (jax.jit(m.extract_features)(clip_vars, frames, valid).res5 for m in (model, half))
    assert rounded.dtype == jnp.bfloat16
    assert 0 < jnp.mean(jnp.abs(exact - rounded)) < 0.02 * jnp.mean(jnp.abs(exact))
    classifier = make_text_classifier(np.eye(3, 32, dtype=np.float32), [1, 1, 1])
    predictions = jax.eval_shape(half.predict_frames, clip_vars, params, classifier, frames, valid)
    assert {leaf.dtype for leaf in jax.tree.leaves(predictions)} == {np.dtype(np.float32)}


def made_up_predictions(rng, num_queries=20, num_classes=128):
    """One frame; every mask is a box that moves, with logits that are exact at its border alone."""
    probs = rng.random((num_queries, num_classes), np.float32)
    area, prob_sum = rng.random((2, num_queries), np.float32)
    mask_logits = np.full((num_queries, 16, 32), -1, np.float32)
    for mask, x, y in zip(mask_logits, *rng.integers(0, 12, (2, num_queries)), strict=True):
        mask[y : y + 4, x : x + 4] = rng.random((min(4, 16 - y), 4)) + 0.5
    return FrameQueries(
        object_logits=rng.standard_normal((num_queries, 2), np.float32),
        iou=rng.random(num_queries, np.float32),
        query_embed=rng.standard_normal((num_queries, 32), np.float32),
        visual_embed=rng.standard_normal((num_queries, 16), np.float32),
        class_probs=probs / probs.sum(axis=-1, keepdims=True),
        mask_logits=mask_logits,
        mask_area=area,
        mask_prob_sum=prob_sum,
    )


def test_memory_does_not_grow_with_the_video(tmp_path):
    """A frame costs less than 5 KB, most of it run lengths of the final result; as arrays it would cost 140 KB."""
    rng = np.random.default_rng(0)
    names = tuple(f"class {index}" for index in range(100))
    with tiny_segmenter("rn").start(class_names()) as state:
        classifier = state.classifier

    def peak_memory(num_frames):
        state = VideoState(
            names,
            classifier,
            TrackerState.start(20, 100, 16, AssociationConfig(), ScoreConfig()),
            FrameStore(20, 100, tmp_path),
        )
        with state:
            sizes = tiny_segmenter("rn").config.sizes(96, 150)
            tracemalloc.start()
            for _ in range(num_frames):
                state, _ = state.advance(made_up_predictions(rng), sizes)
            result = state.final_result(top_k=20, min_score=0.0)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert result.num_frames == num_frames
        assert any(track.mask(num_frames - 1).any() for track in result.tracks)
        return peak

    first, second = peak_memory(50), peak_memory(250)
    assert second - first < 200 * 5120
    assert list(tmp_path.iterdir()) == []  # the files have no name, so that nothing can be left behind


def test_a_stream_without_end_keeps_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("clipvis_jax.inference.segmenter.FrameStore", None)  # not even a file
    segmenter = tiny_segmenter("rn", window=1)
    state = segmenter.start(class_names(), keep_frames=False)
    for frame in clip_frames()[:2]:
        state, live = segmenter.step(state, frame, top_k=3)
    assert len(live) == 3
    assert state.num_frames == 2
    with pytest.raises(RuntimeError, match="keep_frames"):
        segmenter.finish(state)


def other_names():
    """Return another vocabulary: the tokenizer gives the same tokens, which are other classes' synonyms."""
    return class_names()[::-1]


@pytest.mark.parametrize("kind", ["video", "image"])
def test_other_names_give_what_a_new_run_gives(kind, monkeypatch):
    segmenter = tiny_segmenter("rn", window=1)

    def predict(names, **options):
        if kind == "image":
            return segmenter.predict_image(clip_frames()[0], names, **options)
        return segmenter.predict_video(clip_frames()[:4], names, **options)

    expected = predict(other_names(), top_k=TOP_K, min_score=0.1)
    first = predict(class_names(), keep_raw=True)
    with monkeypatch.context() as context:
        context.setattr(segmenter, "_predict_frames", None)  # the network does not run
        found = copy.copy(first).rename(other_names(), top_k=TOP_K, min_score=0.1)
        again = found.rename(class_names())
    assert found != first
    for ours, theirs in ((found, expected), (again, first)):
        key = operator.attrgetter("track_id", "class_index")
        for track, other in zip(sorted(ours.tracks, key=key), sorted(theirs.tracks, key=key), strict=True):
            assert (key(track), track.class_name) == (key(other), other.class_name)
            assert track.score == pytest.approx(other.score, abs=1e-6)
            assert track.segmentations == other.segmentations
            np.testing.assert_allclose(track.embedding, other.embedding, atol=1e-6)
    assert copy.deepcopy(first).raw is first.raw
    assert pickle.loads(pickle.dumps(first)).raw is None
    with pytest.raises(InputError, match="only after predict with keep_raw=True"):
        expected.rename(class_names())


def test_a_stream_can_be_asked_for_other_classes(monkeypatch):
    segmenter = tiny_segmenter("rn", window=1)
    frames = clip_frames()
    state, _ = segmenter.step(segmenter.start(class_names(), keep_frames=False), frames[0])
    renamed = segmenter.set_classes(state, other_names())
    assert renamed.tracker.mask_area.sum() == renamed.tracker.sums.class_sum.sum() == 0
    renamed, live = segmenter.step(renamed, frames[1], top_k=200)
    _, unchanged = segmenter.step(state, frames[1], top_k=200)
    assert renamed.num_frames == 2
    masks = {track.track_id: track.mask for track in unchanged if track.mask.any()}
    shown = [track for track in live if track.mask.any() and track.track_id in masks]
    assert len(shown) > 10
    for track in shown:
        np.testing.assert_array_equal(track.mask, masks[track.track_id])
        assert track.class_name == other_names()[track.class_index]
    with segmenter.start(class_names()) as kept, pytest.raises(RuntimeError, match="keeps its classes"):
        segmenter.set_classes(kept, other_names())
    asked, start = [], segmenter.start
    monkeypatch.setattr(segmenter, "start", lambda names, *, background, **_: asked.append(background) or start(names))
    for background in (None, (), ("wall",)):
        segmenter.set_classes(dataclasses.replace(state, asked_background="auto"), other_names(), background=background)
    assert asked == ["auto", (), ("wall",)]


def test_a_step_leaves_the_state_as_it_was():
    segmenter = tiny_segmenter("rn", window=1)
    frames = clip_frames()
    start = segmenter.start(class_names(), keep_frames=False)
    first, _ = segmenter.step(start, frames[0])
    _, live = segmenter.step(first, frames[1], top_k=3)
    segmenter.step(first, frames[2])
    assert (start.num_frames, first.num_frames) == (0, 1)
    _, again = segmenter.step(first, frames[1], top_k=3)
    assert [(track.track_id, track.score) for track in again] == [(track.track_id, track.score) for track in live]


def test_an_old_state_whose_frames_are_kept_cannot_be_stepped(monkeypatch):
    segmenter = tiny_segmenter("rn", window=1)
    start = segmenter.start(class_names())
    first, _ = segmenter.step(start, clip_frames()[0])
    with monkeypatch.context() as context:
        context.setattr(segmenter, "_predict_frames", None)  # it is noticed before the network runs
        with pytest.raises(RuntimeError, match="frame 0 follows on an old state, whose video is at frame 1"):
            segmenter.step(start, clip_frames()[0])
    result = segmenter.finish(first, top_k=3)
    assert result == segmenter.predict_video(clip_frames()[:1], class_names(), top_k=3)
    with pytest.raises(RuntimeError, match="the state is closed"):
        segmenter.step(first, clip_frames()[0])


def test_a_full_disk_is_one_line(tmp_path):
    store = FrameStore(20, 128, tmp_path)
    store._file.close()
    store._file = open("/dev/full", "r+b", buffering=0)  # noqa: PTH123, SIM115
    with pytest.raises(InputError, match=r"cannot be written \(No space left on device\); free some space"):
        store.append(0, made_up_predictions(np.random.default_rng(0)))
    store.close()


@pytest.mark.parametrize(("expected", "free_gib"), [(16, 0), (None, 0), (10**5, 100)])
def test_a_video_that_fits_on_disk(expected, free_gib, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free_gib * 2**30))
    fill_store(FrameStore(20, 128, tmp_path), expected)


def test_a_lack_of_space_is_told_while_there_is_some(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100 * 2**30))
    with pytest.warns(
        UserWarning, match=rf"^{tmp_path}: temporary files of 1000000 frames will take some \d+ GiB; 100"
    ):
        fill_store(FrameStore(20, 128, tmp_path), 10**6)
    with pytest.raises(InputError, match=rf"^{tmp_path}: temporary .* will take some .* GiB, and 100.0 are free; free"):
        fill_store(FrameStore(20, 128, tmp_path), 10**8)


def fill_store(store, expected):
    store.expect(expected)
    frame = made_up_predictions(np.random.default_rng(0))
    for number in range(20):
        store.append(number, frame)
    store.close()


def test_class_names_follow_the_weights(tmp_path):
    """Other weights give other embeddings, whatever the caches in memory and on disk hold."""
    model, clip_vars, params = tiny_model("rn")
    other = clip_vars | {"text": jax.tree.map(lambda leaf: leaf * 1.5, clip_vars["text"])}

    def embeddings(changing, weights):
        changing.clip_vars = weights
        return np.asarray(changing.start(class_names(), keep_frames=False).classifier.embeddings)

    changing = Segmenter(model, clip_vars, params, tokenizer=GoldenTokenizer(), cache_dir=tmp_path)
    first, second, again = (embeddings(changing, weights) for weights in (clip_vars, other, clip_vars))
    assert not np.allclose(first, second, atol=1e-3)
    np.testing.assert_array_equal(again, first)
    fresh = Segmenter(model, other, params, tokenizer=GoldenTokenizer())
    np.testing.assert_array_equal(embeddings(fresh, other), second)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_finished_video_says_so():
    segmenter = tiny_segmenter("rn", window=1)
    state = segmenter.start(class_names())
    state, _ = segmenter.step(state, clip_frames()[0])
    segmenter.finish(state)
    with pytest.raises(RuntimeError, match="closed"):
        segmenter.finish(state)


@pytest.mark.parametrize(
    "frame",
    [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.float32)],
    ids=["grey", "RGBA", "float"],
)
def test_frames_that_are_not_rgb(frame):
    with pytest.raises(InputError, match="must be uint8 RGB"):
        tiny_segmenter("rn", window=1).predict_video(iter([frame]), class_names())


def test_top_k_must_be_positive():
    with pytest.raises(InputError, match="top_k 0"):
        tiny_segmenter("rn", window=1).predict_video(clip_frames()[:1], class_names(), top_k=0)


def test_a_live_mask_is_empty_where_the_method_drops_it(family):
    video = golden(f"tiny_{family}_video")
    segmenter = tiny_segmenter(family, window=1)
    state = segmenter.start(class_names())
    with state:
        for frame in clip_frames():
            state, live = segmenter.step(state, frame, top_k=TOP_K)
    last = {(t.track_id, t.class_index): t.mask for t in live}
    for index, pruned in zip(video["topk_indices"], video["inst_pruned"][:, -1], strict=True):
        mask = last[tuple(divmod(int(index), len(class_names())))]
        assert not (pruned and mask.any())


def test_every_product_of_float32_is_in_full_precision():
    """On GPUs and TPUs the default would be fewer bits; the text encoder's results are multiplied by 100 later."""
    model, clip_vars, params = tiny_model("rn")
    classifier = make_text_classifier(np.eye(3, 32, dtype=np.float32), [1, 1, 1])
    frames, valid = jnp.zeros((1, 64, 64, 3), jnp.uint8), jnp.array([64, 64])
    for lowered in (
        jax.jit(model.predict_frames).lower(clip_vars, params, classifier, frames, valid),
        jax.jit(model.encode_text).lower(clip_vars, jnp.zeros((1, 4), jnp.int32)),
    ):
        products = [line for line in lowered.as_text().splitlines() if "dot_general" in line or "convolution(" in line]
        assert len(products) > 5
        assert all("HIGHEST" in line for line in products)


def test_frame_of_another_size():
    frames = clip_frames()[:3]
    frames[2] = frames[2][:, :-1]
    with pytest.raises(InputError, match=r"frame 2 is 149x96 pixels, the frames before it are 150x96"):
        tiny_segmenter("rn", window=1).predict_video(frames, class_names())


def test_video_without_frames():
    with pytest.raises(InputError, match="no frame"):
        tiny_segmenter("rn", window=1).predict_video([], class_names())


def test_classes_must_be_a_list():
    with pytest.raises(InputError, match="a list of class names"):
        tiny_segmenter("rn").start("dog")


@pytest.mark.parametrize("shape", [(1, 1), (97, 151)])
def test_odd_frame_sizes(shape):
    frame = np.full((*shape, 3), 128, np.uint8)
    result = tiny_segmenter("rn", window=1).predict_video([frame], class_names(), top_k=3)
    assert result.tracks[0].mask(0).shape == shape


def resize_shortest_edge(height, width, size, max_size):
    """Follow detectron2's description: scale by the shorter side, then limit the longer one, then round."""
    scale = size / min(height, width)
    new = (size, scale * width) if height < width else (scale * height, size)
    if max(new) > max_size:
        limit = max_size / max(new)
        new = (new[0] * limit, new[1] * limit)
    return int(new[0] + 0.5), int(new[1] + 0.5)


@pytest.mark.parametrize("shape", [(720, 1280), (65, 310), (310, 65), (37, 1000), (480, 480), (1, 3000)])
def test_input_sizes(shape):
    sizes = InferenceConfig().sizes(*shape)
    expected = resize_shortest_edge(*shape, 480, 1333)
    assert sizes.valid_size == tuple(max(1, side) for side in expected)
    assert all(0 <= padded - valid < 32 for padded, valid in zip(sizes.padded_size, sizes.valid_size, strict=True))


@pytest.mark.parametrize("wrong", [{"size": 0}, {"size": 2000}, {"max_size": 10}, {"window": 0}])
def test_wrong_settings(wrong):
    with pytest.raises(InputError, match=f"^{next(iter(wrong))} "):
        InferenceConfig(**wrong)


@pytest.mark.parametrize("wrong", [{"memory_length": 0}, {"top_k": 0}])
def test_wrong_association(wrong):
    with pytest.raises(InputError, match="must be"):
        AssociationConfig(**wrong)


def test_a_state_that_nobody_closed_takes_its_file_along(tmp_path):
    store = FrameStore(2, 1, tmp_path)
    file = store._file
    del store
    gc.collect()
    assert file.closed


def test_frames_in_memory(monkeypatch):
    """Arrays, Pillow images and lists of them are what the same pixels in a file are."""
    segmenter = tiny_segmenter("rn", window=1)
    taken = []

    def take(frames, *_, num_frames="image", **__):
        taken.append((num_frames, np.stack([*frames])))
        return object.__new__(VideoResult)

    monkeypatch.setattr(segmenter, "predict_image", take)
    monkeypatch.setattr(segmenter, "predict_video", take)
    video = np.stack(clip_frames()[:3])
    turned = Image.fromarray(np.rot90(video[0]))
    turned.getexif()[0x0112] = 6  # to be shown turned by a quarter, clockwise
    for source in (video[0], Image.fromarray(video[0]), turned):
        segmenter.predict(source, ["dog"])
    for source in (video, list(video), [Image.fromarray(frame) for frame in video]):
        segmenter.predict(source, ["dog"])
    assert [kind for kind, _ in taken] == ["image"] * 3 + [3] * 3
    for _, frames in taken:
        np.testing.assert_array_equal(frames, video if frames.ndim == 4 else video[0])
    segmenter.predict(video[:1], ["dog"])
    assert taken[-1][0] == 1  # a video of one frame
    for source, message in (([], "has no frame"), (np.zeros(3), r"shape \(3,\)")):
        with pytest.raises(InputError, match=message):
            segmenter.predict(source, ["dog"])


def test_a_result_tells_which_frames_of_its_source_it_is_of(tmp_path, monkeypatch):
    segmenter = tiny_segmenter("rn", window=1)
    monkeypatch.setattr(segmenter, "predict_video", lambda frames, *_, **__: VideoResult([], (), 6, 9, len([*frames])))
    frames = np.zeros((7, 6, 9, 3), np.uint8)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"{number}.png")
    assert segmenter.predict(tmp_path, ["dog"]).frame_numbers == tuple(range(7))
    assert segmenter.predict(open_frames(tmp_path, FrameSelection(1, 6, 2)), ["dog"]).frame_numbers == (1, 3, 5)
    assert segmenter.predict(frames, ["dog"]).frame_numbers is None  # nobody knows which frames were taken

"""Association, scores and results of the tiny models against the authors' code."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import golden
from scipy.special import softmax
from tiny import TOP_K, class_names, clip_frames, golden_results, mask_iou, tiny_segmenter

from clipvis_jax.inference.association import AssociationConfig, associate
from clipvis_jax.inference.tracker import FrameQueries
from clipvis_jax.masks.resize import decode_rle

SCORE_TOLERANCE = 1e-5


def permutations(embeds, config):
    history, orders = (), []
    for frame in embeds:
        order, history = associate(frame, history, config)
        orders.append(order)
    return np.stack(orders)


@pytest.mark.parametrize("case", range(10))
def test_tracker(case):
    tracker = golden("tiny_tracker")
    embeds = tracker[f"c{case}_embeds"]
    top_k = AssociationConfig("top_k", int(tracker[f"c{case}_num_t"]), int(tracker[f"c{case}_num_k"]))
    np.testing.assert_array_equal(permutations(embeds, top_k), tracker[f"c{case}_perms"])
    previous = AssociationConfig("previous")
    np.testing.assert_array_equal(permutations(embeds, previous), tracker[f"c{case}_perms_prev"])


@functools.cache
def windows(family):
    """Run our network over the clip; return the predictions and the class logits of every frame, in raw order."""
    segmenter = tiny_segmenter(family, window=1)
    classifier = segmenter.encode_classes(class_names())
    predictions = [prediction for prediction, _ in segmenter.run_network(classifier, clip_frames())]
    stacked = FrameQueries(*map(np.stack, zip(*predictions, strict=True)))
    logits = segmenter.model.name_embeddings(segmenter.clip_vars, jnp.asarray(stacked.visual_embed), classifier)
    return stacked, np.asarray(logits)[..., : len(class_names())]


def test_permutations_from_our_own_embeddings(family):
    orders = permutations(windows(family)[0].query_embed, AssociationConfig())
    np.testing.assert_array_equal(orders, golden(f"tiny_{family}_video")["perms"])


def test_per_frame_predictions_of_the_tracks(family):
    video = golden(f"tiny_{family}_video")
    predictions, logits = windows(family)
    perms = video["perms"]
    tracked = np.take_along_axis(logits, perms[..., None], axis=1)
    expected = video["class_logits"]
    assert np.abs(tracked - expected).max() <= 1e-4 * np.abs(expected).max()
    objects = np.take_along_axis(predictions.object_logits, perms[..., None], axis=1)
    expected = video["track_object_logits"].swapaxes(0, 1)
    assert np.abs(objects - expected).max() <= 1e-4 * np.abs(expected).max()
    ious = np.take_along_axis(predictions.iou, perms, axis=1)
    np.testing.assert_allclose(ious, video["track_ious"][..., 0].T, atol=1e-4)
    probs = np.take_along_axis(predictions.class_probs, perms[..., None], axis=1)[..., : len(class_names())]
    np.testing.assert_allclose(probs, softmax(video["class_logits"], axis=-1), atol=1e-4)


def test_permutations_of_the_clip(family):
    video = golden(f"tiny_{family}_video")
    orders = permutations(video["query_embeds"], AssociationConfig())
    np.testing.assert_array_equal(orders, video["perms"])


def test_resized_input(family):
    segmenter = tiny_segmenter(family)
    inputs = golden("tiny_inputs")
    prepared_frames = [segmenter._prepare(frame, 0, None)[0] for frame in inputs["frames_u8"]]
    for prepared, expected in zip(prepared_frames, inputs["resized_u8"], strict=True):
        height, width = expected.shape[:2]
        np.testing.assert_array_equal(prepared[:height, :width], expected)
        assert not prepared[height:].any()
        assert not prepared[:, width:].any()


def test_text_classifier(family):
    video = golden(f"tiny_{family}_video")
    with tiny_segmenter(family).start(class_names()) as state:
        embeddings = np.asarray(state.classifier.embeddings)[: len(video["text_classifier"])]
    np.testing.assert_allclose(embeddings, video["text_classifier"], atol=1e-6)


def test_scores_of_every_track_and_class(family):
    video = golden(f"tiny_{family}_video")
    segmenter = tiny_segmenter(family)
    state = segmenter.start(class_names())
    with state:
        for frame in clip_frames():
            state, _ = segmenter.step(state, frame)
    np.testing.assert_allclose(state.tracker.sums.scores(), video["final_scores"], atol=SCORE_TOLERANCE)


@pytest.mark.parametrize("window", [1, 5])
def test_video_results(family, window):
    """The same (track, class) pairs, scores, dropped frames and masks, whatever the window."""
    video = golden(f"tiny_{family}_video")
    result = tiny_segmenter(family, window=window).predict_video(clip_frames(), class_names(), top_k=TOP_K)
    ours = {(track.track_id, track.class_index): track for track in result.tracks}
    num_classes = len(class_names())
    records = golden_results(f"tiny_{family}_video")
    pairs = [tuple(divmod(int(index), num_classes)) for index in video["topk_indices"]]
    assert ours.keys() == set(pairs)
    for pair, record, pruned in zip(pairs, records, video["inst_pruned"], strict=True):
        track = ours[pair]
        assert track.class_index + 1 == record["category_id"]
        assert track.score == pytest.approx(record["score"], abs=SCORE_TOLERANCE)
        for index, expected in enumerate(record["segmentations"]):
            mask = track.mask(index)
            assert mask_iou(mask, decode_rle(expected)) >= 0.999
            assert not (pruned[index] and mask.any())
    scores = [track.score for track in result.tracks]
    assert scores == sorted(scores, reverse=True)


def test_image_results(family):
    image = golden(f"tiny_{family}_image")
    records = golden_results(f"tiny_{family}_image")
    segmenter = tiny_segmenter(family)
    num_classes = len(class_names())
    for row, frame in enumerate(image["frame_ids"]):
        result = segmenter.predict_image(clip_frames()[frame], class_names(), top_k=TOP_K)
        ours = {(track.track_id, track.class_index): track for track in result.tracks}
        pairs = [tuple(divmod(int(index), num_classes)) for index in image["topk_indices"][row]]
        assert ours.keys() == set(pairs)
        for k, pair in enumerate(pairs):
            assert ours[pair].score == pytest.approx(image["inst_scores"][row, k], abs=SCORE_TOLERANCE)
            assert mask_iou(ours[pair].mask(0), image["inst_masks"][row, k]) >= 0.999
        assert [records[row * TOP_K + k]["category_id"] for k in range(TOP_K)] == [pair[1] for pair in pairs]

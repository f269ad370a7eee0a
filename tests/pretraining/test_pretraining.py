"""Pretraining of CLIP: the loss, what is pooled, batch norms, exact resuming, the model folder it ends with."""

import dataclasses
import functools
import types
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from memory_dataset import MemoryDataset, encode_counts, encode_png

import clipvis_jax
from clipvis_jax.commands.train import TrainOptions, open_task
from clipvis_jax.data.captioned import CaptionedDataConfig, CaptionedIterator
from clipvis_jax.data.records import Category, Instance, VideoRecord
from clipvis_jax.data.shapes.captions import caption_words
from clipvis_jax.data.shapes.classes import CLASSES, class_names
from clipvis_jax.errors import InputError
from clipvis_jax.loop.log import read_log
from clipvis_jax.loop.loop import LoopConfig, train
from clipvis_jax.models.clip_convnext import ConvNextConfig
from clipvis_jax.models.clip_resnet import ResNetConfig
from clipvis_jax.models.clip_text import TextConfig
from clipvis_jax.models.clipvis import ClipVis, ClipVisConfig
from clipvis_jax.models.layers import Conv
from clipvis_jax.models.pixel_decoder import PixelDecoderConfig
from clipvis_jax.models.query_decoder import QueryDecoderConfig
from clipvis_jax.models.text_classifier import TextClassifier
from clipvis_jax.pretraining import task as clip_task
from clipvis_jax.pretraining.contrastive import box_masks, contrastive_loss, shrink_boxes
from clipvis_jax.pretraining.step import ClipLossConfig, ClipOptimizerConfig, clip_loss, make_clip_schedule, train_trunk
from clipvis_jax.pretraining.task import (
    ClipExperiment,
    ClipTask,
    Stage,
    ZeroShotConfig,
    names_in_captions,
    shapes_tokenizer,
    tokenize,
)
from clipvis_jax.pretraining.zero_shot import zero_shot_accuracy
from clipvis_jax.text.tokenizer import load_tokenizer
from clipvis_jax.text.vocabulary import PROMPT_TEMPLATES, encode_vocabulary
from clipvis_jax.weights.model_folder import hash_variables, load_model, save_model

RESNET = ResNetConfig(depths=(1, 1, 1, 1), width=2, embed_dim=16, pool_grid=2, head_dim=16)
CONVNEXT = ConvNextConfig(depths=(1, 1, 1, 1), dims=(4, 4, 8, 8), embed_dim=16)


def tiny_experiment(**changes):
    return ClipExperiment(
        **{
            "backbone": RESNET,
            "text": TextConfig(width=16, num_heads=2, num_layers=1, context_length=48, embed_dim=16, activation="gelu"),
            "pixel_decoder": PixelDecoderConfig(dim=32, mask_dim=32, num_layers=1, num_heads=2, ffn_dim=32),
            "query_decoder": QueryDecoderConfig(
                num_queries=4, num_layers=1, dim=32, mask_dim=32, num_heads=2, ffn_dim=32
            ),
            "data": CaptionedDataConfig(size=64, batch_size=8),
            "stages": (Stage(64),),
            "optimizer": ClipOptimizerConfig(num_steps=6, warmup_steps=2),
            "evaluation": ZeroShotConfig(count=4),
            "loop": LoopConfig(log_every=1),
            **changes,
        }
    )


def one_device_task(experiment):
    """Compile for one device: quicker than for the tests' eight."""
    return ClipTask(experiment, devices=jax.devices()[:1])


# --- the loss


jitted_loss = jax.jit(contrastive_loss)


def plain_loss(visual, text, scale, names, valid, *, more_text=(), more_names=()):
    """Compute the loss pair by pair."""
    unit = [[v / np.linalg.norm(v) for v in side] for side in (visual, [*text, *more_text])]
    names = [*names, *more_names]
    pairs = [i for i in range(len(visual)) if valid[i]]
    texts = pairs + list(range(len(visual), len(names)))
    total = 0.0
    for ours, theirs, places in (*unit, texts), (*unit[::-1], pairs):
        for i in pairs:
            exponents = {j: np.exp(scale * float(ours[i] @ theirs[j])) for j in places}
            right = [j for j in places if names[j] == names[i]]
            total -= np.mean([np.log(exponents[j] / sum(exponents.values())) for j in right])
    return total / (2 * len(pairs))


@pytest.mark.parametrize("names", [[0, 1, 2, 3, 4], [0, 1, 0, 2, 0]])
@pytest.mark.parametrize("more_names", [None, [5, 6], [5, 0, 3]], ids=["pairs", "other texts", "right texts"])
def test_loss_equals_the_plain_sum(names, more_names):
    rng = np.random.default_rng(1)
    visual, text = rng.normal(size=(2, 5, 7)).astype(np.float32)
    valid = np.array([True, True, True, False, True])
    more = {}
    if more_names is not None:
        more_text = rng.normal(size=(len(more_names), 7)).astype(np.float32)
        more = {"more_text": jnp.asarray(more_text), "more_names": jnp.asarray(more_names)}
    pairs = visual, text, np.float32(5), np.array(names), valid
    loss, accuracy = jitted_loss(*map(jnp.asarray, pairs), **more)
    # Among the texts of the pairs alone, so that it says the same with and without others.
    assert float(accuracy) == float(jitted_loss(*map(jnp.asarray, pairs))[1])
    assert float(loss) == pytest.approx(plain_loss(*pairs, **jax.device_get(more)), rel=1e-5)


def test_duplicates_are_right_answers_for_each_other():
    visual = jnp.eye(3)[jnp.array([0, 0, 1])]
    scale, valid = jnp.float32(50), jnp.ones(3, bool)
    same, accuracy = jitted_loss(visual, visual, scale, jnp.array([7, 7, 8]), valid)
    other, _ = jitted_loss(visual, visual, scale, jnp.array([7, 9, 8]), valid)
    # Two right answers share the probability, so log 2 is the least that is possible; no text is better than another.
    assert float(same) == pytest.approx(np.log(2) * 2 / 3, rel=1e-4)
    assert float(accuracy) == 1
    gradient = jax.jit(jax.grad(lambda v: jitted_loss(v, visual, scale, jnp.array([7, 7, 8]), valid)[0]))(visual)
    assert np.abs(np.asarray(gradient)).max() < 1e-5
    assert float(other) == pytest.approx(float(same), rel=1e-4)  # cannot do better, whatever they are called


def test_places_without_a_pair_change_nothing():
    rng = np.random.default_rng(2)
    visual, text = jnp.asarray(rng.normal(size=(2, 4, 6)), jnp.float32)
    names, valid = jnp.array([1, 2, 3, 3]), jnp.array([True, True, True, False])

    def loss(visual, text):
        return jitted_loss(visual, text, jnp.float32(10), names, valid)[0]

    gradient = jax.jit(jax.grad(loss))(visual, text)
    assert float(loss(visual, text)) == float(loss(visual.at[3].set(0), text.at[3].set(9)))
    assert np.all(np.asarray(gradient[3]) == 0)
    # Nothing valid at all is 0, not NaN.
    nothing, _ = jitted_loss(visual, text, jnp.float32(10), names, jnp.zeros(4, bool))
    assert float(nothing) == 0


def test_box_masks_are_the_cells_inside_and_never_empty():
    boxes = jnp.array([[[0.25, 0.5, 0.75, 1.0], [0.3, 0.3, 0.31, 0.31], [0.0, 0.0, 0.0, 0.0]]])
    masks = np.asarray(box_masks(boxes, (4, 4)))[0]
    expected = np.zeros((4, 4), bool)
    expected[2:4, 1:3] = True
    np.testing.assert_array_equal(masks[0], expected)
    assert np.argwhere(masks[1]).tolist() == [[1, 1]]
    assert masks[2].sum() == 1
    half = np.asarray(shrink_boxes(boxes, jnp.full((1, 3), 0.5)))[0, 0]
    np.testing.assert_allclose(half, [0.375, 0.625, 0.625, 0.875])


# --- the step


@pytest.fixture(scope="module")
def experiment():
    """Forty steps on the same eight images, whose regions look for their sentences among all names."""
    return tiny_experiment(
        data=CaptionedDataConfig(size=64, batch_size=8, num_images=8),
        optimizer=ClipOptimizerConfig(num_steps=40, warmup_steps=4, learning_rate=5e-3),
        losses=ClipLossConfig(all_names=True),
    )


@pytest.fixture(scope="module")
def task(experiment):
    return one_device_task(experiment)


@pytest.fixture(scope="module")
def initial(task):
    """Return the state before the first step, on the host."""
    return jax.device_get(task.init_state())


@pytest.fixture(scope="module")
def whole(task, experiment, tmp_path_factory):
    """The folder of a run that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    assert train(task, experiment.loop, folder, show_progress=False)
    return folder


@pytest.fixture(scope="module")
def batch(task, experiment):
    return first_inputs(task, experiment)


def loss_of(experiment, state, batch):
    """Compute the parts of the loss without all names and without a step, which takes long to compile."""
    model = ClipVis(ClipVisConfig(RESNET, dataclasses.replace(experiment.text, vocab_size=674)))
    loss = jax.jit(lambda *inputs: clip_loss(model, *inputs, ClipLossConfig(), jax.random.key(0))[1][0])
    return loss(state.params, batch)


def first_inputs(task, experiment):
    with CaptionedIterator(experiment.data) as data:
        return task.put(next(data))


@pytest.mark.parametrize(
    "backbone",
    [pytest.param(RESNET, id="resnet"), pytest.param(CONVNEXT, id="convnext", marks=pytest.mark.slow)],
)
def test_all_parameters_learn_and_statistics_do_not(backbone, experiment, batch, initial):
    model = ClipVis(ClipVisConfig(backbone, dataclasses.replace(experiment.text, vocab_size=674)))
    params = initial.params
    if backbone is CONVNEXT:
        params = one_device_task(tiny_experiment(backbone=backbone)).init_state().params

    @jax.jit
    def gradients_of(params):
        return jax.grad(lambda params: clip_loss(model, params, batch, ClipLossConfig(), jax.random.key(0))[0])(params)

    gradients = jax.device_get(gradients_of(params))
    names = [
        (jax.tree_util.keystr(path, simple=True, separator="/"), float(np.abs(leaf).max()))
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradients)
    ]
    for name, size in names:
        if name.endswith(("/mean", "/var")):
            assert size == 0, name
        # Zero-initialised ends of residual blocks keep gradients from what is before them, in the first step only;
        # the keys' bias moves all scores of a softmax alike.
        elif backbone is CONVNEXT and not name.endswith("key/bias"):
            assert size > 0, name
    assert dict(names)["logit_scale"] > 0


def test_names_of_unseen_classes_are_no_answers():
    tokenizer = shapes_tokenizer(48)
    texts = names_in_captions(tokenizer)
    whole = [list(tokens) for tokens in tokenizer(class_names())]
    shown = [whole.index([*tokens, *[0] * (48 - len(tokens))]) for tokens in texts.tokens.tolist()]
    assert {CLASSES[number].part for number in shown} == {"base", "novel"}
    assert len(set(shown)) == len(set(texts.names.tolist())) == 216 + 90


def test_regions_find_their_sentences_among_all_names(task, experiment, batch, initial):
    _, metrics = task.step(initial, batch)
    plain = loss_of(experiment, initial, batch)
    # Nothing is learned yet: the more texts, the less likely is the right one. That of whole images stays as it is.
    assert metrics.region_loss > plain.region_loss + 0.5
    assert float(metrics.image_loss) == pytest.approx(float(plain.image_loss), rel=1e-5)


def test_batch_norms_normalise_by_the_batch_and_remember_it():
    model, rng = ClipVis(ClipVisConfig(RESNET)), np.random.default_rng(0)
    shapes = flatten_dict(jax.eval_shape(model.trunk.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))["params"])
    old = {
        path: jnp.asarray(np.ones(leaf.shape) if path[-1] in ("scale", "var") else 0.3 * rng.normal(size=leaf.shape))
        for path, leaf in shapes.items()
    }
    images = jnp.asarray(rng.integers(0, 256, size=(4, 64, 64, 3)), jnp.uint8)
    run = jax.jit(functools.partial(train_trunk, model, norm_momentum=0.25))
    res5, statistics = run({"trunk": unflatten_dict(old)}, images)
    new = flatten_dict(statistics)
    assert new.keys() == {path for path in old if path[-1] in ("mean", "var")}
    # With the batch's own statistics stored, the ordinary norms are the same function.
    seen = {path: (value - 0.25 * old[path]) / 0.75 for path, value in new.items()}
    assert min(float(jnp.abs(seen[path] - old[path]).max()) for path in seen) > 0.01
    features = jax.jit(model.extract_features)({"trunk": unflatten_dict(old | seen)}, images, jnp.array([[64, 64]]))
    np.testing.assert_allclose(features.res5, res5, atol=1e-3)


def test_a_few_steps_lower_the_loss_on_the_same_images(whole):
    losses = [record["loss/total"] for record in read_log(whole) if "loss/total" in record]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


@pytest.mark.slow
def test_devices_change_nothing(task, experiment):
    """Negatives and the statistics of batch norms come from the whole batch, however it is spread."""
    results = []
    for spread in (task, ClipTask(experiment)):
        state, metrics = spread.step(spread.init_state(), first_inputs(spread, experiment))
        results.append(jax.device_get((state.params["trunk"]["stem_norm1"], metrics)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *results)


def test_learning_rate_rises_stays_and_falls():
    config = ClipOptimizerConfig(learning_rate=1e-3, num_steps=100, warmup_steps=10, decay_share=0.2)
    rates = [float(make_clip_schedule(config)(step)) for step in (0, 5, 10, 80, 90, 100)]
    assert rates == pytest.approx([0, 5e-4, 1e-3, 1e-3, 5e-4, 0])


def test_single_objects_first():
    stages = (Stage(32, share=0.5, single_objects=True), Stage(64, share=0.5))
    experiment = tiny_experiment(stages=stages)
    task = one_device_task(experiment)
    with CaptionedIterator(experiment.data) as data:
        shapes = [task.put(next(data)).images_u8.shape[:3] for _ in range(4)]
    assert shapes == [(24, 32, 32)] * 3 + [(8, 64, 64)]


def test_the_loss_of_single_objects_is_that_of_their_sentences(experiment, initial):
    experiment = dataclasses.replace(experiment, stages=(Stage(32, single_objects=True),))
    metrics = loss_of(experiment, initial, first_inputs(one_device_task(experiment), experiment))
    assert np.isfinite(metrics.total_loss)
    assert metrics.image_loss > 0
    assert metrics.region_loss == 0


def test_resuming_is_exact_and_the_folder_is_a_model(task, experiment, whole, tmp_path):
    stopping = dataclasses.replace(experiment.loop, stop_after=3)
    assert not train(task, stopping, tmp_path, show_progress=False)
    resumed = one_device_task(experiment)
    resumed._compiled = task._compiled  # which takes longer than all steps
    assert train(resumed, experiment.loop, tmp_path, show_progress=False)
    model, parts = (load_model(folder / "model") for folder in (whole, tmp_path))
    jax.tree.map(np.testing.assert_array_equal, model.clip_vars, parts.clip_vars)
    segmenter = clipvis_jax.load(whole / "model")
    assert segmenter.model.config.text.vocab_size == model.tokenizer.vocab_size
    classifier = encode_vocabulary(
        ["striped teal star", "plain red circle"],
        tokenizer=model.tokenizer,
        encode_tokens=lambda tokens: segmenter.model.encode_text(segmenter.clip_vars, tokens),
        weights_hash="",
    )
    assert np.linalg.norm(classifier.embeddings[:2], axis=1) == pytest.approx(1, abs=1e-5)


def test_evaluation_and_picture(task, batch, initial, tmp_path):
    scores = task.evaluate(initial, tmp_path)
    assert next(iter(scores)) == "masks/all"
    assert {f"{kind}/{part}" for kind in ("masks", "crops") for part in ("base", "novel", "unseen")} < set(scores)
    assert all(0 <= value <= 1 for value in scores.values())
    assert task.picture(initial, batch).shape == (64, 128, 3)


def coloured_frame(index):
    """Draw a red and a blue square on green, in places of their own in every frame, and a third too small to see."""
    image = np.full((64, 64, 3), (0, 200, 0), np.uint8)
    masks = []
    for colour, place in (((250, 0, 0), index), ((0, 0, 250), index + 2), ((250, 0, 0), None)):
        rows, columns = (slice(0, 2), slice(0, 2)) if place is None else _quarter(place % 4)
        mask = np.zeros((64, 64), bool)
        mask[rows, columns] = True
        image[mask] = colour
        masks.append(mask)
    return image, masks


def _quarter(number):
    top, left = 32 * (number // 2), 32 * (number % 2)
    return slice(top, top + 32), slice(left, left + 32)


class ColourModel(ClipVis):
    """Its dense feature is the picture itself at stride 32, so that only what lies under a mask names it."""

    def extract_features(self, clip_vars, images_u8, valid_size):
        del clip_vars, valid_size
        batch, height, width, _ = images_u8.shape
        res5 = images_u8.astype(jnp.float32).reshape(batch, height // 32, 32, width // 32, 32, 3).mean((2, 4))
        return types.SimpleNamespace(res5=res5)

    def pool_masks(self, clip_vars, res5, masks):
        del clip_vars
        return jnp.einsum("bqhw,bhwc->bqc", masks.astype(jnp.float32), res5)

    def name_embeddings(self, clip_vars, visual, classifier):
        del clip_vars
        return visual @ classifier.embeddings.T


def test_zero_shot_accuracy_looks_under_the_true_masks():
    records, frames = [], {}
    for number in range(3):
        image, masks = coloured_frame(number)
        instances = tuple(
            Instance(1 + i, 7 if i % 2 == 0 else 9, False, (encode_counts(mask),)) for i, mask in enumerate(masks)
        )
        records.append(VideoRecord(number, 64, 64, ("0.png",), instances))
        frames[number, 0] = encode_png(image)
    dataset = MemoryDataset(records, frames, [Category(7, "red"), Category(9, "blue")])
    red, blue = np.eye(3, dtype=np.float32)[[0, 2]]

    def scores(first, second):
        classifier = TextClassifier(
            jnp.asarray(np.stack([first, second])), jnp.arange(2, dtype=jnp.int32), jnp.int32(2)
        )
        groups = {"reds": {7}, "blues": {9}}
        return zero_shot_accuracy(ColourModel(ClipVisConfig()), {}, classifier, dataset, groups, count=3, image_size=64)

    right, wrong = scores(red, blue), scores(blue, red)
    assert right["masks/empty"] == pytest.approx(1 / 3)
    # Of six reds three have no pixel at stride 32.
    assert (right["masks/reds"], right["masks/blues"], right["masks/all"]) == pytest.approx((0.5, 1, 2 / 3))
    assert right["crops/blues"] == 1
    assert (wrong["masks/reds"], wrong["masks/blues"], wrong["masks/all"]) == (0, 0, 0)


# --- what a batch becomes


def test_regions_get_numbers_by_their_names():
    experiment = tiny_experiment(data=CaptionedDataConfig(size=64, batch_size=16))
    with CaptionedIterator(experiment.data) as data:
        batch = next(data)
    inputs = tokenize(batch, shapes_tokenizer(48))
    names = np.array(batch.region_names)
    np.testing.assert_array_equal(inputs.valid, names != "")
    same = names.ravel()[:, None] == names.ravel()[None, :]
    numbers = inputs.region_names.ravel()
    np.testing.assert_array_equal(numbers[:, None] == numbers[None, :], same)
    # No sentence is cut: each ends with the end token, which is the largest.
    assert np.all(inputs.region_tokens.max(axis=2) == 673)
    assert np.all(inputs.caption_tokens.max(axis=1) == 673)


# --- the tokenizer


def test_every_word_is_one_token(tmp_path):
    tokenizer = shapes_tokenizer(48)
    words = [*caption_words(), *(word for name in class_names() for word in name.split())]
    tokens = tokenizer(words)
    assert np.all(np.argmax(tokens, axis=1) == 2)  # begin, word, end
    assert len(np.unique(tokens[:, 1])) == len(set(words))
    for template in PROMPT_TEMPLATES:
        assert not tokenizer.unknown_words(template.format("striped teal star"))
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.known_words == tokenizer.known_words
    np.testing.assert_array_equal(loaded(words), tokens)


def test_unknown_words_are_named():
    tokenizer = shapes_tokenizer(48)
    assert tokenizer.unknown_words("a Striped zebra's STAR, 2.") == ["zebra", "'s", "2"]
    assert tokenizer.unknown_words("teal_star +++ 🦓") == ["_", "+++", "🦓"]
    assert tokenizer.unknown_words("plain étoile, Größe 星 star 12") == ["étoile", "größe", "星", "1", "2"]
    tokenizer(["a zebra"])  # can be written all the same

    def encode(names):
        encode_vocabulary(
            names, tokenizer=tokenizer, encode_tokens=lambda tokens: jnp.ones((len(tokens), 4)), weights_hash=""
        )

    with pytest.warns(UserWarning, match="'zebra', 'horse'"):
        encode(["striped zebra", "plain red circle", "plain horse"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode(["plain red circle"])


# --- bad input


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"stages": (Stage(64, share=0.5),)}, "add up to 0.5"),
        ({"seed": -1}, "seed"),
        ({"text": TextConfig(embed_dim=8)}, "text.embed_dim 8: must be"),
    ],
)
def test_settings_that_cannot_be(changes, match):
    with pytest.raises(InputError, match=match):
        tiny_experiment(**changes)


def test_other_settings_that_cannot_be():
    with pytest.raises(InputError, match="for training"):
        ZeroShotConfig(split="captions")
    with pytest.raises(InputError, match=r"evaluation\.count 0: .*ask for 1 or more"):
        ZeroShotConfig(count=0)
    with pytest.raises(InputError, match=r"evaluation\.count 2000000: .*ask for fewer"):
        ZeroShotConfig(count=2_000_000)
    with pytest.raises(InputError, match="seeds"):
        CaptionedDataConfig(num_images=90_000_001)
    with pytest.raises(InputError, match="batch_size"):
        CaptionedDataConfig(batch_size=0)
    with pytest.raises(InputError, match="smallest_box"):
        ClipLossConfig(smallest_box=0.0)
    with pytest.raises(InputError, match=r"pixel_decoder\.dim 48: give a multiple of 32"):
        PixelDecoderConfig(dim=48)
    with pytest.raises(InputError, match=r"query_decoder\.dim 50: give a multiple of num_heads, 8"):
        QueryDecoderConfig(dim=50)
    with pytest.raises(InputError, match="size 100"):
        Stage(100)
    with pytest.raises(InputError, match=r"share 1\.5"):
        Stage(64, share=1.5)
    with pytest.raises(InputError, match="warmup_steps"):
        ClipOptimizerConfig(num_steps=5, warmup_steps=5)


def test_clip_is_for_decoders(tmp_path):
    with pytest.raises(InputError, match="--clip: is for decoders"):
        open_task(tiny_experiment(), TrainOptions(workdir=tmp_path, clip=tmp_path))


# --- gradients


@pytest.mark.parametrize(("size", "height"), [(1, 32), (3, 32), (3, 7)])
def test_gradients_of_convolutions_are_those_of_flax(size, height):
    """On CPUs the kernel's gradient is computed in a way of its own."""
    ours = Conv(4, size, dtype=jnp.float32, use_bias=False)
    theirs = nn.Conv(4, (size, size), padding=size // 2, use_bias=False)
    x = jax.random.normal(jax.random.key(0), (2, height, 5, 3))
    params = ours.init(jax.random.key(1), x)

    def gradients(layer):
        gradient = jax.grad(lambda params, x: jnp.sum(jnp.sin(layer.apply(params, x))), argnums=(0, 1))
        return jax.jit(gradient)(params, x)

    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    jax.tree.map(close, gradients(ours), gradients(theirs))


# --- beginning with a model


@pytest.fixture(scope="module")
def trained_model(task, initial, tmp_path_factory):
    """A model folder whose decoders are other ones than a training of CLIP would write."""
    folder = tmp_path_factory.mktemp("trained") / "model"
    task.export(initial, folder, {"trained_by": "the first"})
    model = load_model(folder)
    decoders = jax.tree.map(lambda x: x + 1, model.params)
    save_model(
        folder, model.config, model.clip_vars, decoders, model.tokenizer, source={"trained_by": "me"}, overwrite=True
    )
    return folder


def test_training_goes_on_with_a_models_clip_and_keeps_its_decoders(trained_model, tmp_path):
    before = load_model(trained_model)
    # Other decoders than the configuration's, and another seed: the model's stay.
    decoder = dataclasses.replace(before.config.query_decoder, num_queries=9)
    experiment = tiny_experiment(seed=5, query_decoder=decoder)
    task = open_task(experiment, TrainOptions(workdir=tmp_path, init_from=trained_model))
    assert task.beginning == f"the CLIP of {trained_model}"
    state = task.init_state()
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), before.clip_vars)
    random = ClipTask(experiment, devices=jax.devices()[:1])
    assert task.notes() == random.notes() | {"clip_sha256": hash_variables(before.clip_vars)}
    changed = state.replace(params=jax.tree.map(lambda x: x * 2, state.params))
    task.export(changed, tmp_path / "model", {"trained_by": "it"})
    after = load_model(tmp_path / "model")
    assert after.config == before.config
    jax.tree.map(lambda new, old: np.testing.assert_array_equal(new, 2 * old), after.clip_vars, before.clip_vars)
    jax.tree.map(np.testing.assert_array_equal, after.params, before.params)
    assert after.source == {"trained_by": "it", "init_from": {"trained_by": "me"}}


def test_models_that_a_training_cannot_begin_with(trained_model, tmp_path, monkeypatch):
    wider = tiny_experiment(text=TextConfig(width=32, num_heads=2, num_layers=1, context_length=48, embed_dim=16))
    with pytest.raises(InputError, match="has other sizes than that of the configuration"):
        ClipTask(wider, trained_model)
    with pytest.raises(InputError, match="no such folder"):
        ClipTask(tiny_experiment(), tmp_path / "missing")
    other_words = dataclasses.replace(shapes_tokenizer(48), fingerprint="of other words")
    monkeypatch.setattr(clip_task, "shapes_tokenizer", lambda context_length: other_words)
    with pytest.raises(InputError, match="its tokenizer is not that of the Shapes world"):
        ClipTask(tiny_experiment(), trained_model)

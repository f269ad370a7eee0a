"""Seconds per frame, by stage and as a whole, and peak memory.

    python -m bench.speed                     RN50 and ConvNeXt-B, each in a process of its own
    python -m bench.speed RN50 --layers 9

Random weights, 854x480 frames (padded to 864x480), a vocabulary of 40 classes. Prints Markdown.
"""

import argparse
import resource
import subprocess
import sys
import time
from itertools import count

import jax
import jax.numpy as jnp
import numpy as np

from bench.random_model import random_model
from clipvis_jax.inference.association import associate
from clipvis_jax.inference.frame_store import FrameStore
from clipvis_jax.inference.segmenter import InferenceConfig, Segmenter
from clipvis_jax.masks.resize import encode_rle
from clipvis_jax.models.backbones import BACKBONES
from clipvis_jax.models.query_decoder import mask_logits_from
from clipvis_jax.text.vocabulary import make_text_classifier

HEIGHT, WIDTH, NUM_CLASSES = 480, 854, 40
PAPER_NAMES = {"ConvNeXt-B": "convnext_base_w"}


def median_seconds(function, repeats=7):
    """Time a function after one call to warm up; waits for its arrays."""
    jax.block_until_ready(function())
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function())
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def moving_frames(count, height=HEIGHT, width=WIDTH):
    """Make frames with smooth colours that move."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    for index in range(count):
        waves = [np.sin((x + 7 * index) / 40 + c) * np.cos((y - 5 * index) / 30 - c) for c in range(3)]
        yield ((np.stack(waves, axis=-1) + 1) * 127.5).astype(np.uint8)


class RandomVocabulary:
    """A tokenizer of random tokens, for vocabularies without words."""

    identity = "random"

    def __call__(self, texts):
        rng = np.random.default_rng(0)
        tokens = np.zeros((len(texts), 77), np.int32)
        for row in tokens:
            length = rng.integers(8, 17)
            row[:length] = [49406, *rng.integers(0, 49406, length - 2), 49407]
        return tokens

    def too_long(self, texts):
        return []

    def unknown_words(self, text):
        return []


def measure(name, num_layers, dtype, num_frames):
    """Return the rows of one model's table."""
    model, clip_vars, params = random_model(name, num_layers=num_layers, dtype=dtype)
    config = InferenceConfig()
    segmenter = Segmenter(model, clip_vars, params, tokenizer=RandomVocabulary(), config=config)
    window = config.window_size
    frames = list(moving_frames(max(num_frames, window)))
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((NUM_CLASSES, model.config.text.embed_dim)).astype(np.float32)
    classifier = make_text_classifier(embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True), [1] * NUM_CLASSES)
    names = [f"class {i}" for i in range(NUM_CLASSES)]
    segmenter.encode_classes = lambda *_, **__: classifier

    rows = {}
    sizes = config.sizes(HEIGHT, WIDTH)
    batch = np.zeros((window, *sizes.padded_size, 3), np.uint8)
    batch[:, :HEIGHT, :WIDTH] = np.stack(frames[:window])
    batch, valid = jnp.asarray(batch), jnp.array(sizes.valid_size)

    def stage(label, function, *inputs):
        jitted = jax.jit(function)
        rows[label] = median_seconds(lambda: jitted(*inputs)) / window
        return jitted(*inputs)

    features = stage("backbone", model.extract_features, clip_vars, batch, valid)
    pixels = stage("pixel decoder", model.decode_pixels, params, features)
    prediction = stage("query decoder", lambda p, x: model.decode_queries(p, x)[-1], params, pixels)
    visual = stage("mask embeddings", model.embed_masks, clip_vars, features, pixels, prediction)
    stage("classification", model.name_embeddings, clip_vars, visual, classifier)
    logits = stage("mask logits", mask_logits_from, prediction.mask_embed, pixels.mask_features)

    embeds = np.asarray(prediction.query_embed[0])
    history = tuple(embeds + rng.normal(0, 0.05, embeds.shape).astype(np.float32) for _ in range(9))
    history = tuple(past / np.linalg.norm(past, axis=1, keepdims=True) for past in history)
    rows["association"] = median_seconds(lambda: associate(embeds, history)[0])
    predictions, _ = next(segmenter.run_network(classifier, frames[:window]))
    store, numbers = FrameStore(len(embeds), NUM_CLASSES), count()
    tracked = predictions._replace(
        mask_logits=np.asarray(logits[0]), class_probs=predictions.class_probs[:, :NUM_CLASSES]
    )
    rows["keeping frames"] = median_seconds(lambda: store.append(next(numbers), tracked))
    rows["masks (50 tracks)"] = median_seconds(
        lambda: [encode_rle(sizes.mask(mask)) for mask in store.mask_logits(0, np.arange(50))]
    )
    store.close()

    segmenter.predict_video(frames[:window], names)
    start = time.perf_counter()
    segmenter.predict_video(frames, names)
    rows["whole, end to end"] = (time.perf_counter() - start) / len(frames)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help=f"published backbones: {', '.join([*PAPER_NAMES, *BACKBONES])}")
    parser.add_argument("--layers", type=int, default=6, help="query decoder layers")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--frames", type=int, default=24, help="frames of the end-to-end run")
    options = parser.parse_args()
    models = [PAPER_NAMES.get(name, name) for name in options.models or ["RN50", "ConvNeXt-B"]]
    if unknown := set(models) - set(BACKBONES):
        parser.error(f"unknown backbone {', '.join(sorted(unknown))}; give {', '.join([*PAPER_NAMES, *BACKBONES])}")
    if len(models) != 1:
        for name in models:
            arguments = ["--layers", str(options.layers), "--dtype", options.dtype, "--frames", str(options.frames)]
            subprocess.run([sys.executable, "-m", "bench.speed", name, *arguments], check=True)
        return
    name = models[0]
    rows = measure(name, options.layers, options.dtype, options.frames)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    device = jax.devices()[0].device_kind
    print(f"\n{name}, {options.layers} query decoder layers, {options.dtype}, {device}, jax {jax.__version__}\n")
    print("| stage | seconds per frame |\n|---|---|")
    for label, seconds in rows.items():
        print(f"| {label} | {seconds:.3f} |")
    print(f"| peak memory of the process | {peak:.2f} GiB |")
    if stats := jax.devices()[0].memory_stats():
        print(f"| peak memory of the device | {stats['peak_bytes_in_use'] / 2**30:.2f} GiB |")


if __name__ == "__main__":
    main()

"""Time to encode a vocabulary of LV-VIS's size: 1,196 classes, 14 sentences each, no cache.

    python -m bench.vocabulary

RN50's text encoder with random weights; sentences of 8 to 16 tokens. Prints Markdown.
"""

import time

import jax

from bench.random_model import random_model
from bench.speed import RandomVocabulary
from clipvis_jax.text.vocabulary import encode_vocabulary

NUM_CLASSES = 1196


def main():
    model, clip_vars, _ = random_model("RN50")
    encode_text = jax.jit(model.encode_text)
    start = time.perf_counter()
    encode_vocabulary(
        [f"class {index}" for index in range(NUM_CLASSES)],
        tokenizer=RandomVocabulary(),
        encode_tokens=lambda tokens: encode_text(clip_vars, tokens),
        weights_hash="",
        show_progress=True,
    )
    seconds = time.perf_counter() - start
    print(f"| {NUM_CLASSES} classes, compilation included | {seconds:.0f} s |")


if __name__ == "__main__":
    main()

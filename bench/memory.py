"""Peak memory against the length of the video: 100 and 1,000 small frames, each in a process of its own.

    python -m bench.memory

RN50 with random weights at size 64. Prints Markdown.
"""

import argparse
import resource
import subprocess
import sys

from bench.random_model import random_model
from bench.speed import RandomVocabulary, moving_frames
from clipvis_jax.inference.segmenter import InferenceConfig, Segmenter


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lengths", type=int, nargs="*", default=[100, 1000], help="frames")
    options = parser.parse_args()
    if len(options.lengths) > 1:
        print("| frames | peak memory |\n|---|---|", flush=True)
        for length in options.lengths:
            subprocess.run([sys.executable, "-m", "bench.memory", str(length)], check=True)
        return
    model, clip_vars, params = random_model("RN50")
    config = InferenceConfig(size=64)
    segmenter = Segmenter(model, clip_vars, params, tokenizer=RandomVocabulary(), config=config)
    result = segmenter.predict_video(moving_frames(options.lengths[0], 64, 112), ["cat", "dog"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"| {result.num_frames} | {peak:.3f} GiB |", flush=True)


if __name__ == "__main__":
    main()

"""Time and peak memory of the evaluator on a case of LV-VIS's size, in a process of its own for each protocol.

    python -m bench.evaluation
    python -m bench.evaluation --folder DIR     keeps the files, and uses those that are there

300 videos of 20 frames (360x640) and 1,196 classes; 3 to 9 annotations per video and 50 results with masks of their
own, of which about a fifth are of the right class on the right instance. Prints Markdown.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from clipvis_jax.data.raw import RawDataset
from clipvis_jax.evaluation import PROTOCOLS, evaluate, evaluate_class_agnostic, ground_truth_from, load_results

NUM_VIDEOS, NUM_FRAMES, NUM_CLASSES, NUM_RESULTS = 300, 20, 1196, 50
HEIGHT, WIDTH = 360, 640


def encode_blob(center, radii, rng):
    """Encode an ellipse with a rough edge as compressed run lengths, without drawing it."""
    (y, x), (ry, rx) = center, radii
    columns = np.arange(max(int(x - rx) + 1, 0), min(int(x + rx), WIDTH - 1))
    reach = ry * np.sqrt(np.maximum(1 - ((columns - x) / rx) ** 2, 0))
    top = np.clip(y - reach + rng.integers(0, 3, len(columns)), 1, HEIGHT - 2).astype(int)
    bottom = np.clip(y + reach + rng.integers(0, 3, len(columns)), top + 1, HEIGHT - 1).astype(int)
    edges = (columns[:, None] * HEIGHT + np.stack([top, bottom], axis=1)).ravel()
    counts = np.diff(edges, prepend=0, append=HEIGHT * WIDTH).tolist()
    size = [HEIGHT, WIDTH]
    return {"size": size, "counts": coco_mask.frPyObjects({"size": size, "counts": counts}, *size)["counts"].decode()}


def random_path(rng):
    """Draw the centre and radii of something that moves evenly."""
    start, step = rng.uniform((60, 100), (300, 540)), rng.uniform(-4, 4, 2)
    centers = start + step * np.arange(NUM_FRAMES)[:, None]
    return np.clip(centers, (30, 30), (HEIGHT - 30, WIDTH - 30)), rng.uniform(15, (70, 110))


def write_files(folder):
    """Write ground_truth.json and results.json; the same at every call."""
    rng = np.random.default_rng(0)
    share = 1 / np.arange(10, NUM_CLASSES + 10)  # some classes are common, most are rare
    share /= share.sum()
    videos, annotations, results = [], [], []
    for video_id in range(1, NUM_VIDEOS + 1):
        names = [f"{video_id}/{frame}.jpg" for frame in range(NUM_FRAMES)]  # of images that nobody reads
        videos.append({"id": video_id, "height": HEIGHT, "width": WIDTH, "file_names": names})
        paths = [random_path(rng) for _ in range(rng.integers(3, 10))]
        classes = rng.choice(NUM_CLASSES, len(paths), p=share) + 1
        for category_id, (centers, radii) in zip(classes, paths, strict=True):
            masks = [encode_blob(center, radii, rng) for center in centers]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "video_id": video_id,
                    "category_id": int(category_id),
                    "iscrowd": 0,
                    "segmentations": masks,
                    "areas": coco_mask.area(masks).tolist(),
                }
            )
        for _ in range(NUM_RESULTS):
            instance = rng.integers(len(paths))
            centers, radii = paths[instance] if rng.random() < 0.6 else random_path(rng)
            is_right = rng.random() < 0.4
            centers = centers + rng.normal(0, 5, 2)
            results.append(
                {
                    "video_id": video_id,
                    "category_id": int(classes[instance] if is_right else rng.integers(NUM_CLASSES) + 1),
                    "score": float(rng.beta(3, 2) if is_right else rng.beta(2, 3)),
                    "segmentations": [encode_blob(center, radii * rng.uniform(0.9, 1.1), rng) for center in centers],
                }
            )
    categories = [{"id": i, "name": f"class {i}", "partition": i % 4} for i in range(1, NUM_CLASSES + 1)]
    ground_truth = {"videos": videos, "categories": categories, "annotations": annotations}
    (folder / "ground_truth.json").write_text(json.dumps(ground_truth), encoding="utf-8")
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")


def measure(folder, name):
    """Return a row of the table."""
    seconds = [(time.perf_counter(), time.process_time())]
    ground_truth = ground_truth_from(RawDataset(folder / "ground_truth.json", folder))
    results = load_results(folder / "results.json", ground_truth)
    seconds.append((time.perf_counter(), time.process_time()))
    if name == "class-agnostic":
        metrics = evaluate_class_agnostic(ground_truth, results, PROTOCOLS["lvvis"])
    else:
        metrics = evaluate(ground_truth, results, PROTOCOLS[name])
    seconds.append((time.perf_counter(), time.process_time()))
    loading, scoring = np.diff(seconds, axis=0)
    cells = [f"{wall:.1f} s ({cpu:.1f} s)" for wall, cpu in (loading, scoring, loading + scoring)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    ap = metrics.stats["AP"]
    return f"| {name} | {ap:.4f} | {' | '.join(cells)} | {peak:.0f} MiB |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the files go; a temporary folder if not given")
    parser.add_argument("--measure", metavar="NAME", help="score the files in the folder, in this process")
    options = parser.parse_args()
    if options.measure:
        print(measure(options.folder, options.measure), flush=True)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if not (folder / "results.json").exists():
            write_files(folder)
        size = (folder / "results.json").stat().st_size / 1e6
        print(f"{NUM_VIDEOS * NUM_RESULTS} results, {size:.0f} MB\n", flush=True)
        print("Times by the clock, and in brackets of the processor.\n")
        print("| scores | AP | loading | scoring | both | peak memory |\n|---|---|---|---|---|---|", flush=True)
        for name in (*PROTOCOLS, "class-agnostic"):
            if name != "burst_clipvis":  # needs other fields
                command = [sys.executable, "-m", "bench.evaluation", "--folder", str(folder), "--measure", name]
                subprocess.run(command, check=True)


if __name__ == "__main__":
    main()

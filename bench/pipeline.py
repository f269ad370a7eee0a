"""Training images per second and core, by step and through worker processes.

    python -m bench.pipeline                  1024x1024, as the authors train
    python -m bench.pipeline --seconds 30

Synthetic images like COCO's: 640x480 JPEGs of about 140 KB with seven polygons of some thirty corners. Prints Markdown.
"""

import argparse
import dataclasses
import io
import os
import time

import numpy as np
from PIL import Image

from clipvis_jax.data.pipeline import PipelineConfig, make_train_iterator
from clipvis_jax.data.records import Category, Instance, VideoRecord
from clipvis_jax.media.images import decode_image

HEIGHT, WIDTH = 480, 640
NUM_IMAGES, NUM_INSTANCES, NUM_CORNERS = 32, 7, 30


@dataclasses.dataclass
class SyntheticCoco:
    """Images in memory as their files."""

    records: list[VideoRecord]
    files: list[bytes]
    name: str = "synthetic"
    categories: tuple[Category, ...] = (Category(1, "object"),)
    has_annotations: bool = True
    digest: str = "synthetic"

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        return self.records[index]

    def video_sizes(self):
        return [(HEIGHT, WIDTH, 1)] * len(self)

    def read_frame(self, index, frame):
        return self.files[index]


def make_image(rng):
    """Make a JPEG of smooth colours with fine grain, so that it is as large as a photograph's."""
    coarse = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.float32)
    buffer = io.BytesIO()
    grain = rng.normal(0, 20, (HEIGHT, WIDTH, 3))
    Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8)).save(buffer, "jpeg", quality=85)
    return buffer.getvalue()


def make_instance(rng, identity):
    """Make a wobbly disc: a fifth of the image's width on average."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, NUM_CORNERS))
    radii = rng.gamma(2.0, 32.0) * rng.uniform(0.7, 1.3, NUM_CORNERS) + 4
    centre = rng.uniform([0, 0], [WIDTH, HEIGHT])
    corners = centre + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    corners = np.clip(corners, 0, [WIDTH, HEIGHT]).round(2)
    return Instance(identity, 1, False, ((tuple(corners.ravel().tolist()),),))


def make_dataset():
    rng = np.random.default_rng(0)
    records = [
        VideoRecord(i + 1, HEIGHT, WIDTH, (f"{i}.jpg",), tuple(make_instance(rng, j + 1) for j in range(NUM_INSTANCES)))
        for i in range(NUM_IMAGES)
    ]
    return SyntheticCoco(records, [make_image(rng) for _ in records])


def milliseconds_by_step(dataset, config, repeats):
    """Return the mean time per image of each step, in one process."""
    rng = np.random.default_rng(0)
    totals = dict.fromkeys(("decode", "image", "masks"), 0.0)
    for i in range(repeats):
        record = dataset[i % len(dataset)]
        start = time.perf_counter()
        pixels = decode_image(dataset.read_frame(i % len(dataset), 0), "")
        decoded = time.perf_counter()
        view = config.augmentation.draw(rng, (HEIGHT, WIDTH), config.image_size)
        view.frame(pixels)
        viewed = time.perf_counter()
        for instance in record.instances:
            view.mask(instance.masks[0])
        totals["decode"] += decoded - start
        totals["image"] += viewed - decoded
        totals["masks"] += time.perf_counter() - viewed
    return {name: 1000 * total / repeats for name, total in totals.items()}


def images_per_second(dataset, config, seconds):
    """Return what an iterator delivers after its start."""
    with make_train_iterator(dataset, config) as batches:
        for _ in range(2 + config.num_workers * (1 + 2 * config.batches_ahead)):  # what was ready beforehand
            next(batches)
        count, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            count += len(next(batches).image)
        return count / (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=15.0, help="length of each measurement")
    parser.add_argument("--batch-size", type=int, default=8)
    options = parser.parse_args()
    dataset = make_dataset()
    config = PipelineConfig(batch_size=options.batch_size, num_workers=0, batches_ahead=1)
    print(f"{np.mean([len(data) for data in dataset.files]) / 1000:.0f} KB per JPEG, {os.cpu_count()} cores\n")
    print("| step, one core | ms per image |\n|---|---|")
    steps = milliseconds_by_step(dataset, config, repeats=200)
    for name, value in steps.items():
        print(f"| {name} | {value:.1f} |")
    print(f"| all ({1000 / sum(steps.values()):.0f} images/s) | {sum(steps.values()):.1f} |\n")
    print("| worker processes | images/s |\n|---|---|")
    for num_workers in (0, 1, 2):
        rate = images_per_second(dataset, dataclasses.replace(config, num_workers=num_workers), options.seconds)
        print(f"| {num_workers} | {rate:.1f} |", flush=True)


if __name__ == "__main__":
    main()

"""Found objects and false tracks of short vocabularies, with background names and without: a table for the documents.

Every video of shapes_val is asked for 1, 3, 10 or all 360 names; one of them is of an object that it shows, the
others are drawn at random. The network runs once per video.
"""

import argparse

import jax
import numpy as np
from tqdm import tqdm

from clipvis_jax import bundled, load
from clipvis_jax.data.catalog import open_dataset
from clipvis_jax.inference.dataset_run import DatasetFrames
from clipvis_jax.inference.results import Track
from clipvis_jax.masks.resize import decode_rle

SIZES = (1, 3, 10, 360)
MIN_SCORE, MIN_IOU = 0.2, 0.5


def iou(track: Track, masks: list[str | None]) -> float:
    """Return the IoU of a track and an object over all frames."""
    both = either = 0
    for frame, counts in enumerate(masks):
        mask = track.mask(frame)
        true = np.zeros_like(mask) if counts is None else decode_rle({"size": list(mask.shape), "counts": counts})
        both, either = both + np.sum(mask & true), either + np.sum(mask | true)
    return both / either if either else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=60)
    num_videos = parser.parse_args().videos
    segmenter, dataset = load(bundled.MODEL), open_dataset("shapes_val")
    names = {category.id: category.name for category in dataset.categories}
    probs = jax.jit(
        lambda visual, classifier: jax.nn.softmax(
            segmenter.model.name_embeddings(segmenter.clip_vars, visual, classifier), axis=-1
        )
    )
    counts = {(size, background): np.zeros(3, int) for size in SIZES for background in ("none", "auto")}
    for index in tqdm(range(num_videos), unit="video"):
        record = dataset[index]
        rng = np.random.default_rng(index)
        asked_for = names[rng.choice([instance.category_id for instance in record.instances])]
        classifier = segmenter.encode_classes([asked_for])
        frames = list(segmenter.run_network(classifier, (image for _, image in DatasetFrames(dataset, index))))
        others = rng.permutation([name for name in names.values() if name != asked_for]).tolist()
        for (size, background), count in counts.items():
            classes = [asked_for, *others[: size - 1]]
            state = segmenter.start(classes, background=() if background == "none" else "auto")
            for predictions, sizes in frames:
                class_probs = np.asarray(probs(predictions.visual_embed, state.classifier))
                state, _ = state.advance(predictions._replace(class_probs=class_probs), sizes)
            result = state.final_result(top_k=50, min_score=MIN_SCORE)
            objects = [instance for instance in record.instances if names[instance.category_id] in classes]
            followed = [
                {
                    number
                    for number, one in enumerate(objects)
                    if names[one.category_id] == track.class_name and iou(track, one.masks) >= MIN_IOU
                }
                for track in result.tracks
            ]
            false = {track.track_id for track, found in zip(result.tracks, followed, strict=True) if not found}
            right = {track.track_id for track, found in zip(result.tracks, followed, strict=True) if found}
            count += [len(objects), len(set().union(*followed)), len(false - right)]
    print("| names | background | objects found | false tracks per video |\n|---|---|---|---|")
    for (size, background), (objects, found, false) in counts.items():
        print(f"| {size} | {background} | {found} of {objects} ({found / objects:.0%}) | {false / num_videos:.1f} |")


if __name__ == "__main__":
    main()

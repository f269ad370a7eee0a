"""Association and scores under many settings, from per-frame predictions that the network made once."""

from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from clipvis_jax.ablation.settings import Setting
from clipvis_jax.data.records import Dataset
from clipvis_jax.inference.dataset_run import DatasetFrames, RunFolder, order_by_size
from clipvis_jax.inference.raw_video import RawRecorder, VideoReplay, load_video, save_video
from clipvis_jax.inference.segmenter import IMAGE_TOP_K, VIDEO_TOP_K, Segmenter
from clipvis_jax.io.files import prepare_output_dir


def cache_dataset(
    segmenter: Segmenter, dataset: Dataset, folder: Path, count: int, *, show_progress: bool = False
) -> list[Path]:
    """Run the network over the first videos of a data set and keep what it predicts; videos that are there are left.

    Returns:
        The file of every video, in the data set's order. About 1 MB per frame for a full-size model.

    Raises:
        InputError: A frame cannot be used, or a file cannot be written.
    """
    prepare_output_dir(folder)
    paths = [folder / f"{index:06d}.npz" for index in range(count)]
    todo = [index for index in order_by_size(segmenter, dataset, count) if not paths[index].is_file()]
    lengths = [length for _, _, length in dataset.video_sizes()]
    # Class probabilities are not kept, so any vocabulary serves; a small one is quick.
    classifier = segmenter.encode_classes([dataset.categories[0].name])
    total = sum(lengths[index] for index in todo)
    with tqdm(total=total, desc="network", unit="frame", disable=not show_progress) as bar:
        for index in todo:
            frames = (image for _, image in DatasetFrames(dataset, index))
            is_image = dataset.info.is_images
            recorder = RawRecorder(is_image=is_image)
            for predictions, sizes in segmenter.run_network(classifier, frames, is_image=is_image):
                recorder.add(predictions, sizes)
            save_video(paths[index], recorder.video())
            bar.update(lengths[index])
    return paths


def replay_dataset(
    segmenter: Segmenter,
    dataset: Dataset,
    cache: Sequence[Path],
    settings: Sequence[Setting],
    runs: Sequence[RunFolder],
    *,
    top_k: int | None = None,
    show_progress: bool = False,
) -> None:
    """Associate and score cached videos under every setting; results go to the setting's run, videos there are left.

    Args:
        segmenter: The model that the cache is from; its text encoder alone is used.
        dataset: The data set that the cache is from; all of its classes are the vocabulary.
        cache: The files of its first videos.
        settings: What to switch.
        runs: Where the results of each setting go.
        top_k: Number of (track, class) pairs per video; by default the method's 50, for an image its 100.
        show_progress: Show a progress bar with the time left.

    Raises:
        InputError: A file of the cache is damaged.
    """
    is_image = dataset.info.is_images
    if top_k is None:
        top_k = IMAGE_TOP_K if is_image else VIDEO_TOP_K
    names = [category.name for category in dataset.categories]
    ids = [category.id for category in dataset.categories]
    templates = {setting.templates for setting in settings}
    classifiers = {
        group: segmenter.encode_classes(names, templates=group, show_progress=show_progress) for group in templates
    }
    for index, path in enumerate(tqdm(cache, "settings", unit="video", disable=not show_progress)):
        todo = [(setting, run) for setting, run in zip(settings, runs, strict=True) if not run.has(index)]
        if not todo:
            continue
        (video, _), video_id = load_video(path), dataset[index].id
        for group in {setting.templates for setting, _ in todo}:
            probs = segmenter.class_probs(video.visual_embed, classifiers[group], len(names))
            replay = VideoReplay(video, probs)
            for setting, run in todo:
                if setting.templates == group:
                    result = replay.run(setting.association, setting.scores, names, top_k=top_k)
                    run.write(index, result.to_ytvis(video_id, ids))

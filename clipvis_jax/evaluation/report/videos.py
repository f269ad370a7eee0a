"""The best and the worst videos, with pictures."""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from tqdm import tqdm

from clipvis_jax.data.records import Dataset
from clipvis_jax.errors import InputError
from clipvis_jax.evaluation.inputs import GroundTruth, Result, by_video
from clipvis_jax.evaluation.outcomes import Outcome
from clipvis_jax.evaluation.report.pictures import FramePictures, Scene, draw_video, find_index
from clipvis_jax.evaluation.video_ap import percent

_SHOWN = 4
"""So many of the best and of the worst videos at most."""


@dataclasses.dataclass(frozen=True)
class Card:
    """A video on the page: pictures of it, or what is wrong with its frames, or neither."""

    title: str
    ap: str
    num_instances: int
    tracked: int
    named: int
    frames: list[FramePictures]
    problem: str


def extremes(scores: Mapping[int, float], outcomes: Sequence[Outcome]) -> tuple[list[int], list[int]]:
    """Choose the best and the worst videos, no video twice; among equal scores, those with more instances."""
    instances: dict[int, int] = defaultdict(int)
    for outcome in outcomes:
        instances[outcome.annotation.video_id] += 1
    num_best = min(_SHOWN, (len(scores) + 1) // 2)
    best = sorted(scores, key=lambda i: (-scores[i], -instances[i], i))[:num_best]
    worst = sorted(scores.keys() - set(best), key=lambda i: (scores[i], -instances[i], i))[:_SHOWN]
    return best, worst


def video_cards(
    scores: Mapping[int, float],
    outcomes: Sequence[Outcome],
    ground_truth: GroundTruth,
    results: Sequence[Result],
    *,
    names: dict[int, str],
    dataset: Dataset | None,
    show_progress: bool,
) -> tuple[list[Card], list[Card]]:
    """Return the best and the worst videos, with pictures if there is a data set to read them from."""
    best, worst = extremes(scores, outcomes)
    outcomes_of: dict[int, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        outcomes_of[outcome.annotation.video_id].append(outcome)
    results_of = by_video(sorted(results, key=lambda result: -result.score))
    annotations_of = by_video(ground_truth.annotations)
    cards = {}
    for video_id in tqdm([*best, *worst], "pictures", unit="video", disable=not show_progress):
        title, problem = f"Video {video_id}", ""
        pictures: list[FramePictures] = []
        if dataset is not None:
            scene = Scene(ground_truth.videos[video_id], annotations_of[video_id], results_of[video_id])
            title, pictures, problem = _read(dataset, scene, names)
        found = outcomes_of[video_id]
        cards[video_id] = Card(
            title,
            percent(scores[video_id]),
            num_instances=len(found),
            tracked=sum(outcome.track_overlap >= 0.5 for outcome in found),
            named=sum(outcome.named == outcome.annotation.category_id for outcome in found),
            frames=pictures,
            problem=problem,
        )
    return [cards[video_id] for video_id in best], [cards[video_id] for video_id in worst]


def _read(dataset: Dataset, scene: Scene, names: dict[int, str]) -> tuple[str, list[FramePictures], str]:
    """Return a video's name and pictures; where its frames cannot be read, none, and what is wrong with them.

    Scores that took hours must not be lost because of a picture.
    """
    video_id = scene.video.id
    title = f"Video {video_id}"
    try:
        index = find_index(dataset, video_id)
        folder = PurePosixPath(dataset[index].file_names[0]).parent.name
        title = f"Video {video_id} · {folder}" if folder else title
        return title, draw_video(dataset, index, scene, names), ""
    except (InputError, OSError) as error:
        return title, [], str(error)

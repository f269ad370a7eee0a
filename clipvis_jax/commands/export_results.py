"""``clipvis export-results``."""

import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from tyro.conf import arg

from clipvis_jax.commands.interrupt import stopping_at_once
from clipvis_jax.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from clipvis_jax.inference.results import VideoResult
    from clipvis_jax.media.video_reader import FrameSource


@dataclasses.dataclass(frozen=True)
class ExportResults:
    """Write the tracks of 'clipvis predict' in formats of other tools.

    Every instance gets its best class. Frames are named by their numbers in the source: frame_000000.png and so on, as
    CVAT calls those of a video.

    For example:
      clipvis export-results out/tracks.json --csv --coco
      clipvis export-results out/tracks.json --mots --crops --source clip.mp4 --out exported
    """

    tracks: Annotated[Path, tyro.conf.Positional, arg(metavar="TRACKS")]
    """The tracks.json of 'clipvis predict'."""
    csv: bool = False
    """tracks.csv: a row per instance and frame, with box and area."""
    coco: bool = False
    """coco.json: COCO annotations with track_id, an image per frame."""
    mot: bool = False
    """mot/: boxes as MOTChallenge has them (gt/gt.txt), with CVAT's gt/labels.txt."""
    mots: bool = False
    """mots/: MOTS pictures (instances/*.png) with CVAT's labels.txt; at most 64 classes."""
    png: bool = False
    """labels/: a label map per frame, as DAVIS has them, and labels.csv, which says what their values are."""
    labelstudio: bool = False
    """label_studio.json: a task per frame with masks as predictions; label_studio.xml: their labeling interface."""
    crops: bool = False
    """crops/TRACK/*.png: every instance cut out of every frame; needs --source."""
    embeddings: bool = False
    """embeddings.npz: track_ids and their embeddings, if 'clipvis predict --embeddings' wrote them."""
    source: Annotated[Path | None, arg(metavar="SOURCE", help_behavior_hint="")] = None
    """The video, folder or image that was predicted; for --crops."""
    min_score: Annotated[float, arg(metavar="SCORE")] = 0.0
    """Leave out tracks with a lower score, 0 to 1."""
    out: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: exported, beside TRACKS)")] = None
    """Folder for what is written; it must not exist yet."""

    def run(self) -> None:
        """Run ``clipvis export-results``.

        Raises:
            InputError: An option or a file cannot be used; nothing was written.
        """
        self._check()
        with stopping_at_once():
            from clipvis_jax.inference.result_file import load_result
            from clipvis_jax.io.files import atomic_folder
            from clipvis_jax.io.terminal import print_lines
            from clipvis_jax.media.video_reader import open_frames

            result, video = load_result(self.tracks)
            result = dataclasses.replace(result, tracks=[t for t in result.tracks if t.score >= self.min_score])
            if self.embeddings and any(track.embedding is None for track in result.tracks):
                raise InputError(f"{self.tracks}: has no embeddings; run clipvis predict with --embeddings")
            source = None
            if self.crops and self.source is not None:
                source = open_frames(self.source, on_error="skip", max_pixels=sys.maxsize)  # predict took its frames
        with atomic_folder(self.out or self.tracks.parent / "exported") as folder:
            self.write(folder, result, video.frame_times_s, source)
            written = sorted(path.name for path in folder.iterdir())
        print_lines(f"wrote {', '.join(written)} into {self.out or self.tracks.parent / 'exported'}")

    def write(
        self, folder: Path, result: "VideoResult", times_s: "Sequence[float] | None", source: "FrameSource | None"
    ) -> None:
        """Write a result into a folder, in the formats that are chosen.

        Args:
            folder: Where to.
            result: The tracks.
            times_s: When each frame is shown, in seconds, if that is known.
            source: The result's frames, for crops.

        Raises:
            InputError: The source does not have the frames, or there are more classes than a format takes.
        """
        import numpy as np

        from clipvis_jax.inference import result_formats

        numbers = list(range(result.num_frames) if result.frame_numbers is None else result.frame_numbers)
        files = [f"frame_{number:06d}.png" for number in numbers]
        if self.csv:
            text = result_formats.csv_table(result, numbers, times_s)
            (folder / "tracks.csv").write_text(text, encoding="utf-8-sig")  # the mark is for Excel
        if self.coco:
            (folder / "coco.json").write_text(json.dumps(result.to_coco(files)), encoding="utf-8")
        labels = "".join(f"{name}\n" for name in result_formats.label_names(result))
        if self.mot:
            _make(folder / "mot" / "gt")
            lines = "".join(result_formats.mot_lines(result, numbers))
            (folder / "mot" / "gt" / "gt.txt").write_text(lines, encoding="utf-8")
            (folder / "mot" / "gt" / "labels.txt").write_text(labels, encoding="utf-8")
        if self.mots:
            instances = _make(folder / "mots" / "instances")
            _save(instances, files, result_formats.mots_pictures(result))
            (instances / "labels.txt").write_text(labels, encoding="utf-8")
        if self.png:
            _save(_make(folder / "labels"), files, result_formats.label_maps(result))
            (folder / "labels.csv").write_text(result_formats.label_table(result), encoding="utf-8-sig")
        if self.labelstudio:
            tasks = json.dumps(result_formats.label_studio_tasks(result, files))
            (folder / "label_studio.json").write_text(tasks, encoding="utf-8")
            interface = result_formats.label_studio_interface(result)
            (folder / "label_studio.xml").write_text(interface, encoding="utf-8")
        if self.crops:
            _make(folder / "crops")
            for index, track_id, picture in result_formats.crops(result, self._images(source, result)):
                picture.save(_make(folder / "crops" / f"{track_id:03d}") / files[index])
        if self.embeddings:
            vectors = {track.track_id: track.embedding for track in result.tracks}
            rows = np.array(list(vectors.values()), np.float32)
            np.savez(folder / "embeddings.npz", track_ids=np.array(list(vectors), int), embeddings=rows)

    def _check(self) -> None:
        """Make sure that the options fit together.

        Raises:
            InputError: They do not.
        """
        names = ("csv", "coco", "mot", "mots", "png", "labelstudio", "crops", "embeddings")
        if not any(getattr(self, name) for name in names):
            raise InputError(f"nothing to write; choose from {', '.join(f'--{name}' for name in names)}")
        if not 0 <= self.min_score <= 1:
            raise InputError(f"--min-score {self.min_score}: must be between 0 and 1")
        if self.crops and self.source is None:
            raise InputError("--crops: cuts out of the frames; name the video with --source")

    def _images(self, source: "FrameSource | None", result: "VideoResult") -> "Iterator[np.ndarray]":
        """Read the frames of a result.

        Raises:
            InputError: The source does not have them, or it is not known which of its frames they are.
        """
        left = set(range(result.num_frames) if result.frame_numbers is None else result.frame_numbers)
        for number, image in source or ():
            if number in left:
                left.remove(number)
                yield image
            elif result.frame_numbers is None:
                raise InputError(
                    f"{self.source}: has more frames than {self.tracks}, which does not tell their numbers; give a "
                    "folder of its frames alone"
                )
            if not left and result.frame_numbers is not None:
                return
        if left:
            raise InputError(f"{self.source}: has fewer frames than {self.tracks}; give the source that they are of")


def _make(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _save(folder: Path, files: list[str], pictures: "Iterable[Image.Image]") -> None:
    for name, picture in zip(files, pictures, strict=True):
        picture.save(folder / name)

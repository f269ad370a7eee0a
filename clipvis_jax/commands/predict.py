"""``clipvis predict``."""

import dataclasses
import hashlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import arg

from clipvis_jax.commands.interrupt import stopping_at_once
from clipvis_jax.commands.naming import NamingOptions
from clipvis_jax.errors import InputError
from clipvis_jax.io.terminal import print_lines

if TYPE_CHECKING:
    from clipvis_jax.inference.segmenter import Background, Segmenter
    from clipvis_jax.media.video_reader import FrameSelection, FrameSource


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predict(NamingOptions):
    """Segment, track and name every instance of videos, folders of frames or images.

    Writes tracks.json (YouTube-VIS results with class names and the video's facts) and overlay.mp4 (overlay.png for
    an image) into the output folder, and prints a table of the tracks. Of several sources, each gets a folder of its
    own in there; run again, the command goes on with those that are not finished.

    For example:
      clipvis predict clip.mp4 --model model --classes "dog, puppy" kettle "coffee cup"
      clipvis predict frames/ --model model --classes-file names.txt --out out --every 2
      clipvis predict clip.mp4 --model runs/mine/model --out out     (the classes that it was trained on)
      clipvis predict footage/ extra.mov "archive/*.mp4" --model model --classes dog --out out
    """

    source: Annotated[tuple[Path, ...], tyro.conf.Positional, arg(metavar="SOURCE [SOURCE ...]")]
    """Video file (MP4, MOV, MKV, WebM, AVI, MPEG and others), animation, folder of images, or image; or a folder of
    videos, or a pattern such as "*.mp4"."""
    model: Annotated[Path, arg(metavar="DIR")]
    """Model folder, made by 'clipvis convert', an archive of 'clipvis pack', or hf://org/name."""
    start: Annotated[int, arg(metavar="N")] = 0
    """First frame number, from 0."""
    end: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: the end)")] = None
    """First frame number that is left out."""
    every: Annotated[int, arg(metavar="N")] = 1
    """Use every N-th frame."""
    on_error: Literal["stop", "skip"] = "stop"
    """Where a video cannot be decoded: stop with an error, or skip those frames and say which are missing."""
    max_pixels: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: 80 million)")] = None
    """Refuse larger frames (width times height), which may take gigabytes; images may have up to 178 million."""
    size: Annotated[
        int | None,
        arg(metavar="PIXELS", help_behavior_hint="(default: the model's, or 480 for a video, 800 for an image)"),
    ] = None
    """Shorter side that frames are resized to for the network."""
    save_raw: bool = False
    """Keep what 'clipvis rename' needs in raw.npz, some 1 MB per frame for a full-size model, also of memory."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the computation; float32 equals the authors' results."""
    window: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: 1 on a CPU, 8 elsewhere)")] = None
    """Frames per call of the network."""

    def run(self) -> None:
        """Run ``clipvis predict``.

        Raises:
            InputError: An option, a source, the model or the output folder cannot be used; nothing was written of that
                source.
        """
        # Whatever can be wrong is looked at before the work begins, the quick checks first.
        self.check()
        if self.max_pixels is not None and self.max_pixels < 1:
            raise InputError(f"--max-pixels {self.max_pixels}: must be 1 or more")
        with stopping_at_once():
            from clipvis_jax.commands.sources import Finished, find_sources, folder_names, source_state
            from clipvis_jax.inference.loading import enable_compilation_cache, load
            from clipvis_jax.inference.scores import ScoreConfig
            from clipvis_jax.inference.segmenter import InferenceConfig
            from clipvis_jax.io.files import prepare_output_dir
            from clipvis_jax.weights.model_folder import find_model

            classes = self.classes_for(self.model)
            background = self.read_background()
            self.read_shown(classes)  # a wrong name is told before the work
            sources = find_sources(self.source, results=self.out)
            if not sources:
                raise InputError("no source given; give a video, an image, a folder of either, or a pattern")
            is_single = sources == list(self.source)[:1] and len(sources) == len(self.source)
            config = InferenceConfig(
                size=self.size, window=self.window, scores=ScoreConfig(over=self.scores), temp_dir=self.out
            )
            opened = self._open(sources[0], self.out) if is_single else None
            names = [] if is_single else folder_names(sources)
            enable_compilation_cache()
            model = find_model(self.model)
            segmenter = load(model, dtype=self.dtype, config=config)
        if opened is not None:
            self._segment(segmenter, model, sources[0], opened, self.out, classes=classes, background=background)
            return
        settings = dataclasses.asdict(dataclasses.replace(self, source=(), out=Path())) | {
            "classes": classes,
            "background": background,
            "model": hashlib.sha256((model / "config.json").read_bytes()).hexdigest(),
        }
        finished = Finished(prepare_output_dir(self.out), settings)
        failed = 0
        for number, (source, name) in enumerate(zip(sources, names, strict=True), start=1):
            title = f"{source} ({number} of {len(sources)})"
            if finished.has(name, source):
                print_lines(f"{title}: finished already, see {self.out / name}")
                continue
            print_lines(title)
            try:
                state = source_state(source)
                opened = self._open(source, self.out / name)
                self._segment(segmenter, model, source, opened, self.out / name, classes=classes, background=background)
                finished.add(name, state)
            except (InputError, OSError) as error:
                failed += 1
                print_lines(f"clipvis: error: {error}", file=sys.stderr)
        if failed:
            raise InputError(f"{failed} of {len(sources)} sources could not be segmented, see above")

    def _open(self, path: Path, out: Path) -> "FrameSource":
        """Open a source whose results will be written to a folder."""
        from clipvis_jax.commands.predict_outputs import check_no_overlay
        from clipvis_jax.media.images import MAX_PIXELS
        from clipvis_jax.media.video_reader import open_frames

        source = open_frames(path, self._selection(), on_error=self.on_error, max_pixels=self.max_pixels or MAX_PIXELS)
        check_no_overlay(path, out)
        return source

    def _selection(self) -> "FrameSelection":
        from clipvis_jax.media.video_reader import FrameSelection

        return FrameSelection(self.start, self.end, self.every)

    def _segment(
        self,
        segmenter: "Segmenter",
        model: Path,
        path: Path,
        source: "FrameSource",
        folder: Path,
        *,
        classes: list[str],
        background: "Background",
    ) -> None:
        """Segment a source, and write its results to a folder."""
        from clipvis_jax.commands import predict_outputs
        from clipvis_jax.commands.sources import source_state
        from clipvis_jax.media.images import MAX_PIXELS

        selection = self._selection()
        facts: dict[str, Any] = {
            "model": str(model.resolve()),
            "dtype": self.dtype,
            "text_digest": segmenter.text_digest(),
            "source": str(path.resolve()),
            "source_state": source_state(path),
            "selection": dataclasses.asdict(selection),
            "on_error": self.on_error,
            "max_pixels": self.max_pixels or MAX_PIXELS,
        }
        with predict_outputs.output_folder(folder) as out:
            result = segmenter.predict(
                source,
                classes,
                background=background,
                top_k=self.top_k,
                min_score=self.lowest_score(model, classes, background),
                keep_raw=self.save_raw,
                show_progress=True,
            )
            written = predict_outputs.write_results(
                out,
                result,
                source,
                selection,
                overlay=self.overlay,
                show_progress=True,
                embeddings=self.embeddings,
                raw_facts=facts,
                shown=self.read_shown(classes),
            )
        predict_outputs.print_summary(result, predict_outputs.frame_numbers(source, selection, result.num_frames))
        predict_outputs.print_written(written)

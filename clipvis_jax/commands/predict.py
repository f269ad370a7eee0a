"""``clipvis predict``."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import arg

from clipvis_jax.commands.interrupt import stopping_at_once
from clipvis_jax.commands.naming import NamingOptions
from clipvis_jax.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predict(NamingOptions):
    """Segment, track and name every instance of a video, a folder of frames or an image.

    Writes tracks.json (YouTube-VIS results with class names and the video's facts) and overlay.mp4 (overlay.png for
    an image) into the output folder, and prints a table of the tracks.

    For example:
      clipvis predict clip.mp4 --model model --classes "dog, puppy" kettle "coffee cup"
      clipvis predict frames/ --model model --classes-file names.txt --out out --every 2
    """

    source: Annotated[Path, tyro.conf.Positional, arg(metavar="SOURCE")]
    """Video file (MP4, MOV, MKV, WebM, AVI, MPEG and others), animation, folder of images, or image."""
    model: Annotated[Path, arg(metavar="DIR")]
    """Model folder, made by 'clipvis convert'."""
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
            InputError: An option, the source, the model or the output folder cannot be used; nothing was written.
        """
        # Whatever can be wrong is looked at before the work begins, the quick checks first.
        self.check()
        if self.max_pixels is not None and self.max_pixels < 1:
            raise InputError(f"--max-pixels {self.max_pixels}: must be 1 or more")
        with stopping_at_once():
            from clipvis_jax.commands import predict_outputs
            from clipvis_jax.inference.loading import enable_compilation_cache, load
            from clipvis_jax.inference.scores import ScoreConfig
            from clipvis_jax.inference.segmenter import InferenceConfig
            from clipvis_jax.media.images import MAX_PIXELS
            from clipvis_jax.media.video_reader import FrameSelection, open_frames

            classes = self.read_classes()
            background = self.read_background()
            selection = FrameSelection(self.start, self.end, self.every)
            config = InferenceConfig(
                size=self.size, window=self.window, scores=ScoreConfig(over=self.scores), temp_dir=self.out
            )
            source = open_frames(
                self.source, selection, on_error=self.on_error, max_pixels=self.max_pixels or MAX_PIXELS
            )
            if self.overlay and predict_outputs.overlay_path(self.out, source).resolve() == self.source.resolve():
                raise InputError(f"{self.source}: the overlay would replace it; choose another --out")
            enable_compilation_cache()
            segmenter = load(self.model, dtype=self.dtype, config=config)
            facts = {
                "model": str(self.model.resolve()),
                "dtype": self.dtype,
                "text_digest": segmenter.text_digest(),
                "source": str(self.source.resolve()),
                "selection": dataclasses.asdict(selection),
                "on_error": self.on_error,
                "max_pixels": self.max_pixels or MAX_PIXELS,
            }
        with predict_outputs.output_folder(self.out) as out:
            result = segmenter.predict(
                source,
                classes,
                background=background,
                top_k=self.top_k,
                min_score=self.min_score,
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
            )
        predict_outputs.print_summary(result, predict_outputs.frame_numbers(source, selection, result.num_frames))
        predict_outputs.print_written(written)

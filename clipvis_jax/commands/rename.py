"""``clipvis rename``."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import arg

from clipvis_jax.commands.interrupt import stopping_at_once
from clipvis_jax.commands.naming import NamingOptions
from clipvis_jax.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rename(NamingOptions):
    """Name what 'clipvis predict --save-raw' found by other classes, without running the network.

    Writes what 'clipvis predict' with these classes would write, in seconds: tracks.json, and the overlay, for which
    the source is read once more.

    For example:
      clipvis rename out/raw.npz --classes kettle "coffee cup" --out out_kitchen
      clipvis rename out/raw.npz --classes-file names.txt --scores visible --no-overlay
    """

    raw: Annotated[Path, tyro.conf.Positional, arg(metavar="RAW")]
    """The raw.npz of 'clipvis predict --save-raw', or the folder that holds it."""
    model: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: the one that was run)")] = None
    """Model folder, of which the text encoder is needed."""

    def run(self) -> None:
        """Run ``clipvis rename``.

        Raises:
            InputError: An option, a file or the output folder cannot be used; nothing was written.
        """
        self.check()
        with stopping_at_once():
            from clipvis_jax.commands import predict_outputs
            from clipvis_jax.inference.loading import enable_compilation_cache, load
            from clipvis_jax.inference.raw_video import load_video
            from clipvis_jax.inference.scores import ScoreConfig
            from clipvis_jax.inference.segmenter import InferenceConfig
            from clipvis_jax.media.video_reader import FrameSelection, open_frames

            classes = self.read_classes()
            background = self.read_background()
            path = self.raw / "raw.npz" if self.raw.is_dir() else self.raw
            raw, facts = load_video(path)
            if "source" not in facts:
                raise InputError(f"{path}: was not written by 'clipvis predict --save-raw'; give one that was")
            source, selection = Path(facts["source"]), FrameSelection(**facts["selection"])
            if self.overlay and not source.exists():
                raise InputError(f"{source}: is not there any more, so nothing can be drawn on it; use --no-overlay")
            enable_compilation_cache()
            segmenter = load(
                self.model or Path(facts["model"]),
                dtype=facts["dtype"],
                config=InferenceConfig(scores=ScoreConfig(over=self.scores)),
            )
            if segmenter.text_digest() != facts["text_digest"]:
                raise InputError(f"{path}: was predicted by another model; give that with --model")
            frames = None
            if self.overlay:
                frames = open_frames(source, selection, on_error=facts["on_error"], max_pixels=facts["max_pixels"])
        with predict_outputs.output_folder(self.out) as out:
            result = segmenter.rename(
                raw,
                classes,
                background=background,
                top_k=self.top_k,
                min_score=self.min_score,
                show_progress=True,
            )
            video = facts["video"]
            with predict_outputs.writing_tracks(out, result, video, embeddings=self.embeddings) as (stage, written):
                if frames is not None:
                    written.append(predict_outputs.overlay_path(out, frames))
                    overlay = predict_outputs.overlay_path(stage, frames)
                    predict_outputs.write_overlay(overlay, result, frames, selection, show_progress=True)
        predict_outputs.print_summary(result, video["frame_numbers"])
        predict_outputs.print_written(written)

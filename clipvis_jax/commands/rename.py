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
            from clipvis_jax.inference.scores import ScoreConfig
            from clipvis_jax.inference.segmenter import InferenceConfig

            classes = self.read_classes()
            background, shown = self.read_background(), self.read_shown(classes)
            path = self.raw / "raw.npz" if self.raw.is_dir() else self.raw
            raw, run = predict_outputs.read_raw(path)
            model = self.model or Path(run.model)
            # A file from elsewhere is not to decide what is fetched or unpacked.
            if self.model is None and not (model.is_absolute() and model.is_dir()):
                raise InputError(f"{path}: was predicted by {run.model}, which is no folder here; give --model")
            frames = run.open_source() if self.overlay else None
            predict_outputs.check_no_overlay(Path(run.source), self.out)
            enable_compilation_cache()
            segmenter = load(
                model,
                dtype=run.dtype,
                config=InferenceConfig(scores=ScoreConfig(over=self.scores)),
            )
            if segmenter.text_digest() != run.text_digest:
                raise InputError(f"{path}: was predicted by another model; give that with --model")
        with predict_outputs.output_folder(self.out) as out:
            result = segmenter.rename(
                raw,
                classes,
                background=background,
                top_k=self.top_k,
                min_score=self.lowest_score(model, classes, background),
                show_progress=True,
            )
            with predict_outputs.writing_tracks(out, result, run.video, embeddings=self.embeddings) as (stage, written):
                if frames is not None:
                    written.append(predict_outputs.overlay_path(out, frames))
                    overlay = predict_outputs.overlay_path(stage, frames)
                    times_s = run.video.get("frame_times_s")
                    predict_outputs.write_overlay(
                        overlay, result, frames, run.selection, show_progress=True, times_s=times_s, shown=shown
                    )
        predict_outputs.print_summary(result, run.video["frame_numbers"])
        predict_outputs.print_written(written)

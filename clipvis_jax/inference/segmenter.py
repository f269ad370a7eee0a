"""Segment videos and images: frames -> network -> tracks, at once or frame by frame."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image
from tqdm import tqdm

from clipvis_jax.errors import InputError
from clipvis_jax.inference.association import AssociationConfig
from clipvis_jax.inference.results import LiveTrack, VideoResult
from clipvis_jax.inference.scores import ScoreConfig
from clipvis_jax.inference.video_state import VideoState
from clipvis_jax.io.prefetch import prefetch
from clipvis_jax.masks.resize import MaskResizer
from clipvis_jax.media.video_reader import FrameSource, open_frames
from clipvis_jax.models import ops
from clipvis_jax.models.clipvis import ClipVis, Variables
from clipvis_jax.models.structs import FramePredictions
from clipvis_jax.models.text_classifier import TextClassifier
from clipvis_jax.text.tokenizer import Tokenizer
from clipvis_jax.text.vocabulary import PROMPT_TEMPLATES, encode_vocabulary

VIDEO_TOP_K = 50
"""Results per video of the method."""
IMAGE_TOP_K = 100
"""Results per image of the method."""


@dataclasses.dataclass(frozen=True)
class InferenceConfig:
    """How videos are run.

    Attributes:
        size: Shorter side of the network's input, in pixels, before padding.
        max_size: Limit of the longer side.
        window: Frames per call of the network; None: 1 on a CPU, where more gains nothing, 8 elsewhere.
        association: How queries are matched over time.
        scores: What weighs the class probabilities.
        temp_dir: Folder for what is kept of past frames; None: the system's.
    """

    size: int = 480
    max_size: int = 1333
    window: int | None = None
    association: AssociationConfig = AssociationConfig()
    scores: ScoreConfig = ScoreConfig()
    temp_dir: Path | None = None

    def __post_init__(self) -> None:
        if not ops.STRIDE <= self.size <= self.max_size:
            raise InputError(f"size {self.size}: must be between {ops.STRIDE} and {self.max_size} pixels")
        if self.window is not None and self.window < 1:
            raise InputError(f"window {self.window}: must be 1 frame or more")

    @property
    def window_size(self) -> int:
        """Frames per call of the network on this device."""
        return self.window or (1 if jax.default_backend() == "cpu" else 8)

    def sizes(self, height: int, width: int) -> MaskResizer:
        """Return the sizes that a frame goes through, rounded as detectron2's ``ResizeShortestEdge`` does."""
        # Its order of operations, because products are rounded differently in another.
        scale = self.size / min(height, width)
        new_height, new_width = height * scale, width * scale
        if max(new_height, new_width) > self.max_size:
            limit = self.max_size / max(new_height, new_width)
            new_height, new_width = new_height * limit, new_width * limit
        valid = (max(1, int(new_height + 0.5)), max(1, int(new_width + 0.5)))
        padded = (ops.pad_to_multiple(valid[0]), ops.pad_to_multiple(valid[1]))
        return MaskResizer((padded[0] // 4, padded[1] // 4), padded, valid, (height, width))


class Segmenter:
    """A model that is ready to run. Made by ``clipvis_jax.load``.

    Attributes:
        model: The modules.
        clip_vars: The frozen CLIP.
        params: The trained decoders.
        config: How videos are run.
        source: Where the weights come from.
    """

    def __init__(
        self,
        model: ClipVis,
        clip_vars: Variables,
        params: Variables,
        *,
        tokenizer: Tokenizer,
        weights_hash: str,
        config: InferenceConfig | None = None,
        cache_dir: Path | None = None,
        source: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.source = dict(source or {})
        self.config = config or InferenceConfig()
        self.clip_vars, self.params = jax.device_put((clip_vars, params))
        self._tokenizer = tokenizer
        self._weights_hash = weights_hash
        self._cache_dir = cache_dir
        self._predict_frames = jax.jit(model.predict_frames)
        self._encode_text = jax.jit(model.encode_text)
        self._vocabulary: tuple[tuple[str, ...], TextClassifier] | None = None

    # --- one video or image at once -----------------------------------------------------------------------------------

    def predict(
        self,
        source: str | Path | FrameSource,
        classes: Sequence[str],
        *,
        top_k: int | None = None,
        min_score: float = 0.0,
        show_progress: bool = False,
    ) -> VideoResult:
        """Segment, track and name every instance of a video file, folder of frames, or image.

        Args:
            source: A path, or frames opened by ``clipvis_jax.media.video_reader.open_frames``.
            classes: Class names; synonyms of one class are separated by commas.
            top_k: Number of (track, class) pairs; by default the method's 50, for an image its 100.
            min_score: Pairs with a lower score are left out, 0..1.
            show_progress: Show progress bars.

        Raises:
            InputError: The source or a class name cannot be used.
        """
        if isinstance(source, str | Path):
            source = open_frames(source)
        if source.kind == "image":
            _, image = next(iter(source))
            top_k = IMAGE_TOP_K if top_k is None else top_k
            return self.predict_image(image, classes, top_k=top_k, min_score=min_score)
        return self.predict_video(
            (frame for _, frame in source),
            classes,
            top_k=VIDEO_TOP_K if top_k is None else top_k,
            min_score=min_score,
            num_frames=source.expected_frames,
            show_progress=show_progress,
        )

    def predict_video(
        self,
        frames: Iterable[UInt8[np.ndarray, "h w 3"]],
        classes: Sequence[str],
        *,
        top_k: int = VIDEO_TOP_K,
        min_score: float = 0.0,
        num_frames: int | None = None,
        show_progress: bool = False,
    ) -> VideoResult:
        """Segment a video, given as RGB frames of one size; see ``predict``.

        ``frames`` is read in another thread, up to two windows ahead.
        """
        with self.start(classes, show_progress=show_progress) as state:
            with tqdm(total=num_frames, desc="segmenting", unit="frame", disable=not show_progress) as bar:
                for predictions, index in self.predict_frames(state, frames):
                    state.add(predictions, index)
                    bar.update()
            return state.finish(top_k=top_k, min_score=min_score, show_progress=show_progress)

    def predict_frames(
        self, state: VideoState, frames: Iterable[UInt8[np.ndarray, "_ _ 3"]]
    ) -> Iterator[tuple[FramePredictions, int]]:
        """Run the network alone over a video's RGB frames; ``state.add`` takes what it gives.

        ``frames`` is read in another thread, up to two windows ahead.

        Yields:
            For every frame, the predictions of its window, on the host, and its position in them.
        """
        prepared = (self._prepare(state, frame) for frame in frames)
        with closing(prefetch(prepared, 2 * self.config.window_size)) as ahead:
            for predictions, count in self._predict_windows(state, ahead):
                for index in range(count):
                    yield predictions, index

    def predict_image(
        self,
        image: UInt8[np.ndarray, "h w 3"],
        classes: Sequence[str],
        *,
        top_k: int = IMAGE_TOP_K,
        min_score: float = 0.0,
    ) -> VideoResult:
        """Segment one RGB image by the image model's scores; see ``predict``."""
        with self.start(classes, keep_frames=False) as state:
            frame = state.add(self._predict_one(state, image), 0)
            return state.finish_image(frame, top_k=top_k, min_score=min_score)

    # --- frame by frame -----------------------------------------------------------------------------------------------

    def start(self, classes: Sequence[str], *, keep_frames: bool = True, show_progress: bool = False) -> VideoState:
        """Begin a video that comes frame by frame.

        Args:
            classes: Class names; synonyms of one class are separated by commas.
            keep_frames: Keep on disk what ``finish`` needs of every frame. Without, a stream may go on for ever.
            show_progress: Show a progress bar while a large vocabulary is encoded.

        Raises:
            InputError: A class name cannot be used.
        """
        if isinstance(classes, str):
            raise InputError(f"classes {classes!r}: a list of class names expected, not one text")
        names = tuple(classes)
        if self._vocabulary is None or self._vocabulary[0] != names:
            self._vocabulary = (names, self.encode_classes(names, show_progress=show_progress))
        return VideoState(
            *self._vocabulary,
            self.model.config.query_decoder.num_queries,
            association=self.config.association,
            scores=self.config.scores,
            keep_frames=keep_frames,
            temp_dir=self.config.temp_dir,
        )

    def step(
        self,
        state: VideoState,
        frame: UInt8[np.ndarray, "h w 3"],
        *,
        top_k: int = VIDEO_TOP_K,
        min_score: float = 0.0,
    ) -> tuple[VideoState, list[LiveTrack]]:
        """Take the next RGB frame; return the state, updated in place, and all tracks as they stand, best first.

        Raises:
            InputError: The frame has another size than the frames before it.
        """
        tracked = state.add(self._predict_one(state, frame), 0)
        return state, state.live_tracks(tracked, top_k=top_k, min_score=min_score)

    def finish(
        self,
        state: VideoState,
        *,
        top_k: int = VIDEO_TOP_K,
        min_score: float = 0.0,
        show_progress: bool = False,
    ) -> VideoResult:
        """End a video that came frame by frame: the same as ``predict_video`` on all of its frames."""
        return state.finish(top_k=top_k, min_score=min_score, show_progress=show_progress)

    def encode_classes(
        self,
        classes: Sequence[str],
        *,
        templates: Sequence[str] = PROMPT_TEMPLATES,
        show_progress: bool = False,
    ) -> TextClassifier:
        """Encode a vocabulary; ``templates`` are the sentences that are averaged, with ``{}`` for the name.

        Raises:
            InputError: A class name cannot be used.
        """
        return encode_vocabulary(
            classes,
            tokenizer=self._tokenizer,
            encode_tokens=lambda tokens: self._encode_text(self.clip_vars, tokens),
            weights_hash=self._weights_hash,
            templates=templates,
            cache_dir=self._cache_dir,
            show_progress=show_progress,
        )

    # --- the network --------------------------------------------------------------------------------------------------

    def _prepare(self, state: VideoState, frame: Shaped[np.ndarray, "..."]) -> UInt8[np.ndarray, "h_pad w_pad 3"]:
        """Resize a frame to the network's input and pad it."""
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or frame.size == 0:
            raise InputError(
                f"a frame is an array of {frame.dtype} of shape {frame.shape}; must be uint8 RGB, (height, width, 3)"
            )
        state.set_sizes(self.config.sizes(*frame.shape[:2]))
        height, width = state.resizer.valid_size
        # Matches the authors' code: PIL's bilinear filter, which is antialiased, on 8-bit values.
        resized = np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR))
        output = np.zeros((*state.resizer.padded_size, 3), np.uint8)
        output[:height, :width] = resized
        return output

    def _dispatch(self, state: VideoState, window: UInt8[np.ndarray, "b h w 3"]) -> FramePredictions:
        """Start the network on a window; returns at once, with arrays that are still being computed."""
        valid_size = np.array(state.resizer.valid_size, np.int32)
        predictions = self._predict_frames(self.clip_vars, self.params, state.classifier, window, valid_size)
        for array in jax.tree.leaves(predictions):
            array.copy_to_host_async()
        return predictions

    def _predict_one(self, state: VideoState, frame: UInt8[np.ndarray, "h w 3"]) -> FramePredictions:
        """Run the network on a single frame."""
        return jax.device_get(self._dispatch(state, self._prepare(state, frame)[None]))

    def _predict_windows(
        self, state: VideoState, frames: Iterator[UInt8[np.ndarray, "h w 3"]]
    ) -> Iterator[tuple[FramePredictions, int]]:
        """Run the network over windows of frames; yields each window's predictions and its number of frames.

        The device works on a window while the one before is handed out. A last window that is not full is filled up
        with its last frame, so that it needs no compilation of its own.
        """
        size = self.config.window_size
        pending: tuple[FramePredictions, int] | None = None
        for first in frames:
            window = [first, *islice(frames, size - 1)]
            filled = np.stack(window + [window[-1]] * (size - len(window)))
            started = (self._dispatch(state, filled), len(window))
            if pending is not None:
                yield jax.device_get(pending[0]), pending[1]
            pending = started
        if pending is not None:
            yield jax.device_get(pending[0]), pending[1]

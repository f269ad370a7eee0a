"""Segment videos and images: frames -> network -> tracks, at once or frame by frame."""

import dataclasses
import hashlib
import json
import operator
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import psutil
from jaxtyping import Float, Shaped, UInt8
from PIL import Image
from tqdm import tqdm

from clipvis_jax.errors import InputError
from clipvis_jax.inference.association import AssociationConfig
from clipvis_jax.inference.frame_store import FrameStore
from clipvis_jax.inference.raw_video import RawRecorder, RawVideo, VideoReplay
from clipvis_jax.inference.results import LiveTrack, Raw, VideoResult
from clipvis_jax.inference.scores import ScoreConfig
from clipvis_jax.inference.state_file import load_state, save_state
from clipvis_jax.inference.tracker import FrameQueries, TrackerState
from clipvis_jax.inference.video_state import VideoState
from clipvis_jax.io.prefetch import prefetch
from clipvis_jax.masks.resize import MaskResizer
from clipvis_jax.media.video_reader import FramesInMemory, FrameSource, open_frames
from clipvis_jax.models import ops
from clipvis_jax.models.clipvis import ClipVis, Variables, jitted
from clipvis_jax.models.sizes import MAX_INPUT_SIDE
from clipvis_jax.models.structs import FramePredictions
from clipvis_jax.models.text_classifier import TextClassifier
from clipvis_jax.text.background import LONG_VOCABULARY, everyday_names, unsaid_names
from clipvis_jax.text.tokenizer import Tokenizer
from clipvis_jax.text.vocabulary import PROMPT_TEMPLATES, check_vocabulary, encode_vocabulary, parse_synonyms
from clipvis_jax.weights.model_folder import checksum, hash_variables

Background = Sequence[str] | Literal["auto"]
"""Background names, or "auto": the model's own, or everyday things, for vocabularies of fewer than 50 classes."""

_Prepared = tuple[UInt8[np.ndarray, "h_pad w_pad 3"], MaskResizer]
"""A frame as the network takes it, and its sizes."""

VIDEO_TOP_K = 50
"""Results per video of the method."""
IMAGE_TOP_K = 100
"""Results per image of the method."""
VIDEO_SIZE = 480
"""Shorter side of a video for the network, in pixels: the method's."""
IMAGE_SIZE = 800
"""Shorter side of an image for the network, in pixels: the method's."""
_BYTES_PER_PIXEL = 600
"""Of the network's input, for a frame that is computed; RN50 at 480x864 takes 554, by the compiler's count."""


@dataclasses.dataclass(frozen=True)
class InferenceConfig:
    """How videos are run.

    Attributes:
        size: Shorter side of the network's input, in pixels, before padding; None: 480 for videos, 800 for images.
        max_size: Limit of the longer side.
        window: Frames per call of the network; None: 1 on a CPU, where more gains nothing, 8 elsewhere.
        association: How queries are matched over time.
        scores: How a track's scores follow from its frames.
        temp_dir: Folder for what is kept of past frames; None: the system's.
    """

    size: int | None = None
    max_size: int = 1333
    window: int | None = None
    association: AssociationConfig = AssociationConfig()
    scores: ScoreConfig = ScoreConfig()
    temp_dir: Path | None = None

    def __post_init__(self) -> None:
        if self.size is not None and not ops.STRIDE <= self.size <= self.max_size:
            raise InputError(f"size {self.size}: must be between {ops.STRIDE} and {self.max_size} pixels")
        if not ops.STRIDE <= self.max_size <= MAX_INPUT_SIDE:
            raise InputError(f"max_size {self.max_size}: must be between {ops.STRIDE} and {MAX_INPUT_SIDE} pixels")
        if self.window is not None and self.window < 1:
            raise InputError(f"window {self.window}: must be 1 frame or more")

    @property
    def window_size(self) -> int:
        """Frames per call of the network on this device."""
        return self.window or (1 if jax.default_backend() == "cpu" else 8)

    def shorter_side(self, *, is_image: bool) -> int:
        """Return the shorter side of the network's input, in pixels, before padding."""
        return self.size or (IMAGE_SIZE if is_image else VIDEO_SIZE)

    def sizes(self, height: int, width: int, *, is_image: bool = False) -> MaskResizer:
        """Return the sizes that a frame goes through, rounded as detectron2's ``ResizeShortestEdge`` does."""
        # Its order of operations, because products are rounded differently in another.
        scale = self.shorter_side(is_image=is_image) / min(height, width)
        new_height, new_width = height * scale, width * scale
        if max(new_height, new_width) > self.max_size:
            limit = self.max_size / max(new_height, new_width)
            new_height, new_width = new_height * limit, new_width * limit
        valid = (max(1, int(new_height + 0.5)), max(1, int(new_width + 0.5)))
        padded = (ops.pad_to_multiple(valid[0]), ops.pad_to_multiple(valid[1]))
        return MaskResizer((padded[0] // 4, padded[1] // 4), padded, valid, (height, width))


def affordable_window(window: int, padded_size: tuple[int, ...]) -> int:
    """Return how many frames at a time memory allows, at most ``window``; fewer are told by a warning.

    Raises:
        InputError: Not even one fits.
    """
    height, width = padded_size
    needed, free = height * width * _BYTES_PER_PIXEL, psutil.virtual_memory().available
    if jax.default_backend() != "cpu":
        stats = jax.local_devices()[0].memory_stats() or {}
        free = min(free, stats.get("bytes_limit", free) - stats.get("bytes_in_use", 0))
    most = free // needed
    if most < 1:
        raise InputError(
            f"frames of {width}x{height} pixels need some {needed / 2**30:.1f} GiB each in the network, and "
            f"{free / 2**30:.1f} are free; give a smaller size"
        )
    if window > most:
        warnings.warn(f"window {window}: memory allows {most} frames of {width}x{height} at a time", stacklevel=3)
    return min(window, most)


class Segmenter:
    """A model that is ready to run. Made by ``clipvis_jax.load``.

    Attributes:
        model: The modules.
        clip_vars: The frozen CLIP; may be replaced.
        params: The trained decoders; may be replaced.
        config: How videos are run.
        source: Where the weights come from.
        background: The model's own background names, which "auto" stands for; None: everyday things.
        cache_dir: Folder in which embeddings of class names are kept; None keeps nothing. May be replaced.
    """

    def __init__(
        self,
        model: ClipVis,
        clip_vars: Variables,
        params: Variables,
        *,
        tokenizer: Tokenizer,
        config: InferenceConfig | None = None,
        cache_dir: Path | None = None,
        source: Mapping[str, Any] | None = None,
        background: Sequence[str] | None = None,
    ) -> None:
        self.model = model
        self.background = None if background is None else tuple(background)
        self.source = dict(source or {})
        self.config = config or InferenceConfig()
        self.clip_vars, self.params = jax.device_put((clip_vars, params))
        self._tokenizer = tokenizer
        self._hashed: tuple[list[Any], str] = ([], "")
        self.cache_dir = cache_dir
        self._predict_frames = jitted(model, "predict_frames")
        self._encode_text = jitted(model, "encode_text")
        self._class_probs = jitted(model, "class_probs")
        self._vocabulary: tuple[object, TextClassifier] | None = None

    # --- one video or image at once -----------------------------------------------------------------------------------

    def predict(
        self,
        source: str | Path | FrameSource | Image.Image | np.ndarray | Sequence[Image.Image | np.ndarray],
        classes: Sequence[str],
        *,
        background: Background = (),
        top_k: int | None = None,
        min_score: float = 0.0,
        keep_raw: bool = False,
        show_progress: bool = False,
    ) -> VideoResult:
        """Segment, track and name every instance of a video file, folder of frames, or image.

        Args:
            source: A path; frames opened by ``clipvis_jax.media.video_reader.open_frames``; a Pillow image or an array
                (RGB, 8 bits) of shape (height, width, 3); an array of a video, (frames, height, width, 3), or a list
                of its frames.
            classes: Class names; synonyms of one class are separated by commas.
            background: Names of what else the video may show, which take part in the classification and are left out
                of the results. The method has none, so that whatever is found is one of ``classes``; with few classes,
                take "auto".
            top_k: Number of (track, class) pairs; by default the method's 50, for an image its 100.
            min_score: Pairs with a lower score are left out, 0..1.
            keep_raw: Keep what ``VideoResult.rename`` needs, some 1 MB of memory per frame for a full-size model.
            show_progress: Show progress bars.

        Raises:
            InputError: The source or a class name cannot be used.
        """
        if isinstance(source, str | Path):
            source = open_frames(source)
        elif not isinstance(source, FrameSource):
            source = FramesInMemory(source)
        numbers: list[int] = []
        frames = _frames(source, numbers)
        if source.kind == "image":
            top_k = IMAGE_TOP_K if top_k is None else top_k
            result = self.predict_image(
                next(frames), classes, background=background, top_k=top_k, min_score=min_score, keep_raw=keep_raw
            )
        else:
            result = self.predict_video(
                frames,
                classes,
                background=background,
                top_k=VIDEO_TOP_K if top_k is None else top_k,
                min_score=min_score,
                num_frames=source.expected_frames,
                keep_raw=keep_raw,
                show_progress=show_progress,
            )
        is_in_memory = isinstance(source, FramesInMemory)
        return result if is_in_memory else dataclasses.replace(result, frame_numbers=tuple(numbers))

    def predict_video(
        self,
        frames: Iterable[UInt8[np.ndarray, "h w 3"]],
        classes: Sequence[str],
        *,
        background: Background = (),
        top_k: int = VIDEO_TOP_K,
        min_score: float = 0.0,
        num_frames: int | None = None,
        keep_raw: bool = False,
        show_progress: bool = False,
    ) -> VideoResult:
        """Segment a video, given as RGB frames of one size; see ``predict``.

        ``frames`` is read in another thread, up to two windows ahead.
        """
        recorder = RawRecorder() if keep_raw else None
        state = self.start(classes, background=background, show_progress=show_progress)
        if state.store is not None:
            state.store.expect(num_frames)
        with state:
            with tqdm(total=num_frames, desc="segmenting", unit="frame", disable=not show_progress) as bar:
                for predictions, sizes in self.run_network(state.classifier, frames):
                    state, _ = state.advance(predictions, sizes)
                    if recorder:
                        recorder.add(predictions, sizes)
                    bar.update()
            result = state.final_result(top_k=top_k, min_score=min_score, show_progress=show_progress)
        return self._with_raw(result, recorder)

    def run_network(
        self, classifier: TextClassifier, frames: Iterable[UInt8[np.ndarray, "_ _ 3"]], *, is_image: bool = False
    ) -> Iterator[tuple[FrameQueries, MaskResizer]]:
        """Run the network alone over a video's RGB frames, or an image; ``VideoState.advance`` takes what it gives.

        ``frames`` is read in another thread, up to two windows ahead.

        Yields:
            For every frame, its predictions on the host and the sizes that its masks go through.
        """
        prepared = self._prepare_all(frames, is_image)
        first = list(islice(prepared, 1))
        if not first:
            return
        size = affordable_window(self.config.window_size, first[0][0].shape[:2])
        with closing(prefetch(chain(first, prepared), 2 * size)) as ahead:
            windows = iter(lambda: list(islice(ahead, size)), [])
            window = next(windows)
            # Of a short video, not many times its frames; in powers of two, so that few sizes are compiled.
            filled_size = min(size, 1 << (len(window) - 1).bit_length())
            started = (self._start_window(classifier, window, filled_size) for window in chain([window], windows))
            # In pairs, so that the device works on a window while the one before is handed out.
            for (predictions, window), _ in pairwise(chain(started, [(None, [])])):
                on_host = jax.device_get(predictions)
                for index, (_, sizes) in enumerate(window):
                    yield _frame_of(on_host, index), sizes

    def predict_image(
        self,
        image: UInt8[np.ndarray, "h w 3"],
        classes: Sequence[str],
        *,
        background: Background = (),
        top_k: int = IMAGE_TOP_K,
        min_score: float = 0.0,
        keep_raw: bool = False,
    ) -> VideoResult:
        """Segment one RGB image by the image model's scores; see ``predict``."""
        recorder = RawRecorder(is_image=True) if keep_raw else None
        state = self.start(classes, background=background, keep_frames=False)
        state, tracked = self._advance(state, image, is_image=True)
        if recorder:
            recorder.add(tracked, state.known_sizes())
        return self._with_raw(state.image_result(tracked, top_k=top_k, min_score=min_score), recorder)

    # --- other names, without running the network ---------------------------------------------------------------------

    def rename(
        self,
        raw: RawVideo,
        classes: Sequence[str],
        *,
        background: Background = (),
        scores: ScoreConfig | None = None,
        top_k: int | None = None,
        min_score: float = 0.0,
        show_progress: bool = False,
    ) -> VideoResult:
        """Name a video or image by other classes, from what the network predicted of it; see ``predict``.

        Args:
            raw: The predictions, by this model.
            classes: Class names; synonyms of one class are separated by commas.
            background: See ``predict``.
            scores: How scores follow from the frames; by default as ``config`` says.
            top_k: See ``predict``.
            min_score: See ``predict``.
            show_progress: Show a progress bar while a large vocabulary is encoded.

        Raises:
            InputError: A class name cannot be used.
        """
        names, classifier, used = self._encode(classes, background, show_progress)
        if top_k is None:
            top_k = IMAGE_TOP_K if raw.is_image else VIDEO_TOP_K
        replay = VideoReplay(raw, self.class_probs(raw.visual_embed, classifier, len(names)))
        scores = scores or self.config.scores
        result = replay.run(self.config.association, scores, names, background=used, top_k=top_k, min_score=min_score)
        return dataclasses.replace(result, raw=Raw(raw, self.rename))

    def class_probs(
        self, visual: Float[np.ndarray, "t q e"], classifier: TextClassifier, num_classes: int
    ) -> Float[np.ndarray, "t q c"]:
        """Compare visual embeddings with a vocabulary: the probabilities of its first ``num_classes`` classes."""
        # Frame by frame, as the network does: one compilation for videos of all lengths.
        frames = [self._class_probs(self.clip_vars, frame, classifier) for frame in visual]
        return np.stack([np.asarray(probs)[:, :num_classes] for probs in frames])

    def _with_raw(self, result: VideoResult, recorder: RawRecorder | None) -> VideoResult:
        return result if recorder is None else dataclasses.replace(result, raw=Raw(recorder.video(), self.rename))

    # --- frame by frame -----------------------------------------------------------------------------------------------

    def start(
        self,
        classes: Sequence[str],
        *,
        background: Background = (),
        keep_frames: bool = True,
        score_window: int | None = None,
        show_progress: bool = False,
    ) -> VideoState:
        """Begin a video that comes frame by frame.

        Args:
            classes: Class names; synonyms of one class are separated by commas.
            background: See ``predict``.
            keep_frames: Keep on disk what ``finish`` needs of every frame. Without, a stream may go on for ever.
            score_window: Average scores over the newest so many frames only; None: as ``config.scores`` says.
            show_progress: Show a progress bar while a large vocabulary is encoded.

        Raises:
            InputError: A class name cannot be used.
        """
        names, classifier, used = self._encode(classes, background, show_progress)
        num_tracks = self.model.config.query_decoder.num_queries
        scores = self.config.scores
        if score_window is not None:
            scores = dataclasses.replace(scores, window=score_window)
        embed_dim = classifier.embeddings.shape[1]
        tracker = TrackerState.start(num_tracks, len(names), embed_dim, self.config.association, scores)
        store = FrameStore(num_tracks, len(names), self.config.temp_dir) if keep_frames else None
        return VideoState(names, classifier, tracker, store, background=used, asked_background=background)

    def warmup(self, height: int, width: int) -> None:
        """Compile what ``step`` needs for frames of a size, so that a stream's first frame is no slower than others.

        For the vocabulary used last, and others of about as many synonyms; up to 128 where there was none.

        Raises:
            InputError: The size cannot be used.
        """
        if height < 1 or width < 1:
            raise InputError(f"size {height}x{width}: must be 1 pixel or more")
        classifier = self._vocabulary[1] if self._vocabulary else self.encode_classes(["object"])
        window = [self._prepare(np.zeros((height, width, 3), np.uint8), 0, None)]
        jax.block_until_ready(self._start_window(classifier, window, 1)[0])

    def save_state(self, state: VideoState, path: str | Path) -> None:
        """Write a stream's tracks, so that it goes on after a restart; see ``load_state``.

        Raises:
            InputError: The file cannot be written.
            RuntimeError: The state keeps its frames.
        """
        if state.store is not None:
            raise RuntimeError("a state that keeps its frames cannot be saved; start with keep_frames=False")
        save_state(Path(path), state, self._network())

    def load_state(
        self, path: str | Path, classes: Sequence[str], *, background: Background = (), score_window: int | None = None
    ) -> VideoState:
        """Read what ``save_state`` wrote; the arguments are those that ``start`` was given, and the model is the same.

        Raises:
            InputError: The file is missing, damaged, or of another model, other classes or settings.
        """
        start = self.start(classes, background=background, keep_frames=False, score_window=score_window)
        return load_state(Path(path), start, self._network(), self.model.config.query_decoder.dim)

    def _network(self) -> dict[str, str | int]:
        """Tell the model and its input from others."""
        return {
            "weights": f"{self.text_digest()[:16]}-{checksum(self.params)}",
            "size": self.config.shorter_side(is_image=False),
            "max_size": self.config.max_size,
        }

    def set_classes(
        self, state: VideoState, classes: Sequence[str], *, background: Background | None = None
    ) -> VideoState:
        """Ask a stream for other classes from its next frame on; tracks keep their ids, scores start anew.

        Args:
            state: A state that keeps no frames; it stays as it is.
            classes: Class names; synonyms of one class are separated by commas.
            background: See ``predict``; None: what ``start`` was given.

        Raises:
            InputError: A class name cannot be used.
            RuntimeError: The state keeps its frames.
        """
        if state.store is not None:
            raise RuntimeError(
                "a state that keeps its frames keeps its classes; start with keep_frames=False, or rename the result "
                "of predict with keep_raw=True"
            )
        asked = state.asked_background if background is None else background
        renamed = self.start(classes, background=asked, keep_frames=False)
        old = state.tracker.sums
        sums = dataclasses.replace(renamed.tracker.sums, config=old.config, num_frames=old.num_frames)
        tracker = dataclasses.replace(
            renamed.tracker, association=state.tracker.association, history=state.tracker.history, sums=sums
        )
        return dataclasses.replace(renamed, tracker=tracker, sizes=state.sizes)

    def step(
        self,
        state: VideoState,
        frame: UInt8[np.ndarray, "h w 3"],
        *,
        top_k: int = VIDEO_TOP_K,
        min_score: float = 0.0,
    ) -> tuple[VideoState, list[LiveTrack]]:
        """Take the next RGB frame; return the state with it, and all tracks as they stand, best first.

        The state given stays as it is. Where frames are kept, only the newest state can be stepped.

        Raises:
            InputError: The frame has another size than the frames before it.
            RuntimeError: The state is closed, or was stepped before and keeps its frames.
        """
        state, tracked = self._advance(state, frame)
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
        return state.final_result(top_k=top_k, min_score=min_score, show_progress=show_progress)

    def encode_classes(
        self,
        classes: Sequence[str],
        *,
        background: Background = (),
        templates: Sequence[str] = PROMPT_TEMPLATES,
        show_progress: bool = False,
    ) -> TextClassifier:
        """Encode a vocabulary; ``templates`` are the sentences that are averaged, with ``{}`` for the name.

        Raises:
            InputError: A class name cannot be used.
        """
        return encode_vocabulary(
            classes,
            background=self._background(classes, background),
            tokenizer=self._tokenizer,
            encode_tokens=lambda tokens: self._encode_text(self.clip_vars, tokens),
            weights_hash=self.text_digest(),
            templates=templates,
            cache_dir=self.cache_dir,
            show_progress=show_progress,
        )

    def _encode(
        self, classes: Sequence[str], background: Background, show_progress: bool
    ) -> tuple[tuple[str, ...], TextClassifier, tuple[str, ...]]:
        """Encode a vocabulary, unless it was the last; returns its names, the classifier, the background names used."""
        if isinstance(classes, str):
            raise InputError(f"classes {classes!r}: a list of class names expected, not one text")
        names, background = tuple(classes), self._background(classes, background)
        key = names, background, self.text_digest()
        last = self._vocabulary  # once, since another thread may ask for other names
        if last is None or last[0] != key:
            last = key, self.encode_classes(names, background=background, show_progress=show_progress)
            self._vocabulary = last
        return names, last[1], tuple(unsaid_names(background, check_vocabulary(names)))

    def _background(self, classes: Sequence[str], background: Background) -> tuple[str, ...]:
        """Return background names, of which those that compete with a class are not yet left out."""
        if background == "auto":
            if len(classes) >= LONG_VOCABULARY:
                return ()
            # A text encoder of few words would read the others as noise.
            names = everyday_names() if self.background is None else self.background
            background = [name for name in names if not self._tokenizer.unknown_words(name)]
        elif isinstance(background, str):
            raise InputError(f'background {background!r}: give a list of names, or "auto"')
        return tuple(dict.fromkeys(part for name in background for part in parse_synonyms(name)))

    def text_digest(self) -> str:
        """Digest all that decides on a text's embedding: the weights as they are now, activation, heads and type."""
        text = self.clip_vars["text"]
        leaves = jax.tree.leaves(text)
        # Arrays of JAX do not change, so the same ones need not be read again; those of a large encoder take a second.
        hashed, digest = self._hashed
        if len(leaves) != len(hashed) or any(map(operator.is_not, leaves, hashed)):
            facts = [hash_variables(text), dataclasses.asdict(self.model.config.text), str(np.dtype(self.model.dtype))]
            digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
            self._hashed = leaves, digest
        return digest

    # --- the network --------------------------------------------------------------------------------------------------

    def _advance(
        self, state: VideoState, frame: Shaped[np.ndarray, "..."], *, is_image: bool = False
    ) -> tuple[VideoState, FrameQueries]:
        """Run the network on the next frame of a video; returns its predictions in track order."""
        if state.store is not None:
            state.store.check_next(state.num_frames)
        window = [self._prepare(frame, state.num_frames, state.sizes, is_image)]
        predictions = jax.device_get(self._start_window(state.classifier, window, 1)[0])
        return state.advance(_frame_of(predictions, 0), window[0][1])

    def _prepare_all(self, frames: Iterable[Shaped[np.ndarray, "..."]], is_image: bool) -> Iterator[_Prepared]:
        sizes = None
        for number, frame in enumerate(frames):
            image, sizes = self._prepare(frame, number, sizes, is_image)
            yield image, sizes

    def _prepare(
        self, frame: Shaped[np.ndarray, "..."], number: int, sizes: MaskResizer | None, is_image: bool = False
    ) -> _Prepared:
        """Resize a frame to the network's input and pad it; ``sizes`` are those of the frames before, if any.

        Raises:
            InputError: Not an RGB frame, or of another size than the frames before it.
        """
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or frame.size == 0:
            raise InputError(
                f"a frame is an array of {frame.dtype} of shape {frame.shape}; must be uint8 RGB, (height, width, 3)"
            )
        if sizes is None:
            sizes = self.config.sizes(*frame.shape[:2], is_image=is_image)
        elif frame.shape[:2] != sizes.original_size:
            (height, width), (old_height, old_width) = frame.shape[:2], sizes.original_size
            raise InputError(
                f"frame {number} is {width}x{height} pixels, the frames before it are {old_width}x{old_height}; all "
                "must have one size"
            )
        height, width = sizes.valid_size
        # Matches the authors' code: PIL's bilinear filter, which is antialiased, on 8-bit values.
        resized = np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR))
        output = np.zeros((*sizes.padded_size, 3), np.uint8)
        output[:height, :width] = resized
        return output, sizes

    def _start_window(
        self, classifier: TextClassifier, window: list[_Prepared], size: int
    ) -> tuple[FramePredictions, list[_Prepared]]:
        """Start the network on a window; returns at once, with arrays that are still being computed.

        A window of fewer frames than ``size`` is filled up with its last, so that it needs no compilation of its own.
        """
        images = [image for image, _ in window]
        filled = np.stack(images + [images[-1]] * (size - len(images)))
        valid_size = np.array(window[0][1].valid_size, np.int32)
        predictions = self._predict_frames(self.clip_vars, self.params, classifier, filled, valid_size)
        for array in jax.tree.leaves(predictions):
            array.copy_to_host_async()
        return predictions, window


def _frames(source: FrameSource, numbers: list[int]) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Yield a source's frames, and note their numbers."""
    for number, frame in source:
        numbers.append(number)
        yield frame


def _frame_of(window: FramePredictions, index: int) -> FrameQueries:
    """Choose a frame of a window that is on the host."""
    return FrameQueries(*(np.asarray(getattr(window, name)[index]) for name in FrameQueries._fields))

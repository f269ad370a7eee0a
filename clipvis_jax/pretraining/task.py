"""Pretraining of CLIP on captioned images of the Shapes world, as an experiment of the training loop."""

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from clipvis_jax.data.captioned import CaptionedBatch, CaptionedDataConfig, CaptionedIterator, cut_objects
from clipvis_jax.data.shapes.captions import caption_words
from clipvis_jax.data.shapes.classes import PARTITIONS, class_names, classes_of
from clipvis_jax.data.shapes.dataset import ShapesDataset
from clipvis_jax.data.shapes.splits import WORLD_VERSION, ShapesConfig, check_held_out
from clipvis_jax.distributed import wait_for_all
from clipvis_jax.errors import InputError
from clipvis_jax.loop.host_memory import give_back_freed_memory
from clipvis_jax.loop.loop import LoopConfig
from clipvis_jax.loop.matmul_flops import count_matmul_flops
from clipvis_jax.loop.sharding import batch_sharding, make_mesh, put_batch
from clipvis_jax.loop.train_state import TrainState
from clipvis_jax.media.visualize import color_palette, draw_tracks
from clipvis_jax.models.backbones import BACKBONES, Backbone
from clipvis_jax.models.clip_text import TextConfig
from clipvis_jax.models.clipvis import ClipVis, ClipVisConfig, Variables, jitted
from clipvis_jax.models.ops import STRIDE
from clipvis_jax.models.pixel_decoder import PixelDecoderConfig
from clipvis_jax.models.query_decoder import QueryDecoderConfig
from clipvis_jax.models.text_classifier import TextClassifier
from clipvis_jax.pretraining.contrastive import box_masks, upscale
from clipvis_jax.pretraining.step import (
    CaptionedInputs,
    ClipLossConfig,
    ClipMetrics,
    ClipOptimizerConfig,
    LoneTexts,
    abstract_clip_state,
    init_clip_state,
    make_clip_optimizer,
    make_clip_schedule,
    make_clip_step,
)
from clipvis_jax.pretraining.zero_shot import zero_shot_accuracy
from clipvis_jax.text.tokenizer import ClipTokenizer, make_word_tokenizer
from clipvis_jax.text.vocabulary import PROMPT_TEMPLATES, encode_vocabulary
from clipvis_jax.weights.model_folder import ModelFolder, hash_variables, load_model, save_model

_REGION_TOKENS = 16
"""The longest sentence about one region has 14 tokens, begin and end included."""


@dataclasses.dataclass(frozen=True)
class ZeroShotConfig:
    """What accuracy is computed on while training: the first ``count`` images of a split that is not trained on."""

    split: str = "val"
    count: int = 200

    def __post_init__(self) -> None:
        shapes = ShapesConfig(split=self.split)
        check_held_out(shapes)
        try:
            shapes.video_seeds(0, self.count)
        except InputError as error:
            raise InputError(f"evaluation.count {self.count}: {error}") from error


@dataclasses.dataclass(frozen=True)
class Stage:
    """A part of the training.

    Attributes:
        size: Height and width of the network's input.
        share: Its share of all steps, 0..1.
        single_objects: Show single objects, cut out of the images, each with a sentence of its own, instead of whole
            images with their regions. Outlines are learned many times faster from these.
    """

    size: int
    share: float = 1.0
    single_objects: bool = False

    def __post_init__(self) -> None:
        if self.size < STRIDE or self.size % STRIDE:
            raise InputError(f"stages.size {self.size}: give a multiple of {STRIDE}")
        if not 0 < self.share <= 1:
            raise InputError(f"stages.share {self.share}: give a share above 0, at most 1")


@dataclasses.dataclass(frozen=True)
class ClipExperiment:
    """A pretraining of CLIP on the Shapes world.

    Attributes:
        backbone: Sizes of the image encoder.
        text: Sizes of the text encoder; the number of words is that of the tokenizer.
        pixel_decoder: Sizes of the pixel decoder that the model folder gets, with random weights; a training that
            begins with a model keeps that one's decoders.
        query_decoder: Likewise of the query decoder.
        data: What batches are made of.
        stages: The parts of the training, one after the other; CLIP is evaluated at the last one's size.
        losses: What is minimised.
        norm_momentum: Share of what batch norms keep of their statistics in a step (ResNets).
        optimizer: How parameters are changed, and for how many steps.
        seed: Decides the initial weights and all that is random, but for the images, which ``data`` decides.
        evaluation: What accuracy is computed on.
        loop: When to log, save, evaluate and draw.
    """

    backbone: Backbone = BACKBONES["RN50"]
    text: TextConfig = TextConfig()
    pixel_decoder: PixelDecoderConfig = PixelDecoderConfig()
    query_decoder: QueryDecoderConfig = QueryDecoderConfig()
    data: CaptionedDataConfig = CaptionedDataConfig()
    stages: tuple[Stage, ...] = (Stage(320),)
    losses: ClipLossConfig = ClipLossConfig()
    norm_momentum: float = 0.95
    optimizer: ClipOptimizerConfig = ClipOptimizerConfig()
    seed: int = 0
    evaluation: ZeroShotConfig = ZeroShotConfig()
    loop: LoopConfig = LoopConfig()

    def __post_init__(self) -> None:
        if not math.isclose(total := sum(stage.share for stage in self.stages), 1):
            raise InputError(f"stages: their shares of the steps add up to {total}; make it 1")
        if not 0 <= self.norm_momentum < 1:
            raise InputError(f"norm_momentum {self.norm_momentum}: give at least 0 and less than 1")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed {self.seed}: must be between 0 and {2**32 - 1}")
        if self.text.embed_dim != self.backbone.embed_dim:
            raise InputError(
                f"text.embed_dim {self.text.embed_dim}: must be that of the backbone, {self.backbone.embed_dim}"
            )

    @property
    def image_size(self) -> int:
        """Height and width of the last stage's images."""
        return self.stages[-1].size

    def stage_at(self, step: int) -> Stage:
        """Return the stage that a step belongs to; steps count from 0."""
        ends = itertools.accumulate(stage.share * self.optimizer.num_steps for stage in self.stages)
        return next((stage for stage, end in zip(self.stages, ends, strict=True) if step < end), self.stages[-1])


def shapes_tokenizer(context_length: int) -> ClipTokenizer:
    """Make the tokenizer of the Shapes world: every word of its captions and of the prompts is one token."""
    prompts = " ".join(PROMPT_TEMPLATES).lower().replace("{}", "").replace(".", " ").split()
    words = [word for word in {*caption_words(), *prompts} if word.isalpha()]
    return make_word_tokenizer(words, context_length)


class ClipTask:
    """A ``loop.loop.Task``: pretrains a CLIP on captioned images of the Shapes world."""

    def __init__(
        self, experiment: ClipExperiment, init_from: Path | None = None, *, devices: Sequence[jax.Device] | None = None
    ) -> None:
        """Set everything up; nothing is drawn or computed yet.

        Args:
            experiment: What to train, on what, how.
            init_from: A model folder whose CLIP to go on with, instead of random weights. Its decoders are kept.
            devices: Train on these (default: all).

        Raises:
            InputError: The folder cannot be used, or its CLIP is not the experiment's.
        """
        self._experiment = experiment
        self._tokenizer = shapes_tokenizer(experiment.text.context_length)
        text = dataclasses.replace(experiment.text, vocab_size=self._tokenizer.vocab_size)
        self._config = ClipVisConfig(experiment.backbone, text, experiment.pixel_decoder, experiment.query_decoder)
        self._folder: ModelFolder | None = None
        if init_from is not None:
            self._folder = load_model(init_from)
            _check_clip(self._folder, init_from, self._config, self._tokenizer)
            self._config = self._folder.config
        self._model = ClipVis(self._config)
        self._mesh = make_mesh(devices=devices)
        self._optimizer = make_clip_optimizer(experiment.optimizer)
        self._learning_rate = make_clip_schedule(experiment.optimizer)
        self._step = make_clip_step(
            self._model,
            experiment.losses,
            self._optimizer,
            self._mesh,
            norm_momentum=experiment.norm_momentum,
            more_texts=names_in_captions(self._tokenizer) if experiment.losses.all_names else None,
        )
        self._upscale = jax.jit(upscale, static_argnums=1, out_shardings=batch_sharding(self._mesh))
        self._compiled: dict[tuple[int, ...], tuple[Any, float]] = {}
        self._flops: float | None = None
        self._encode_text = jitted(self._model, "encode_text")
        self._name_regions = jax.jit(functools.partial(_name_regions, self._model))
        self.num_steps = experiment.optimizer.num_steps
        self.batch_size = experiment.data.batch_size
        self.beginning = "random weights" if init_from is None else f"the CLIP of {init_from}"

    def notes(self) -> dict[str, Any]:
        """Return what a run depends on besides its settings."""
        world = [WORLD_VERSION, dataclasses.asdict(self._experiment.data.shapes)]
        digest = hashlib.sha256(json.dumps(world, sort_keys=True).encode()).hexdigest()
        notes = {"dataset": {"name": "shapes_captions", "digest": digest}, "tokenizer": self._tokenizer.fingerprint}
        return notes if self._folder is None else notes | {"clip_sha256": hash_variables(self._folder.clip_vars)}

    def init_state(self) -> TrainState:
        """Return the state before the first step."""
        clip_vars = None if self._folder is None else self._folder.clip_vars
        seed = self._experiment.seed
        return init_clip_state(self._model, self._optimizer, self._mesh, seed=seed, clip_vars=clip_vars)

    def abstract_state(self) -> TrainState:
        """Return shapes, types and shardings of the state."""
        return abstract_clip_state(self._model, self._optimizer, self._mesh)

    def open_data(self) -> CaptionedIterator:
        """Start the stream of batches."""
        return CaptionedIterator(
            self._experiment.data, process_index=jax.process_index(), process_count=jax.process_count()
        )

    def put(self, batch: CaptionedBatch) -> CaptionedInputs:
        """Turn words into tokens, and put a batch on the devices."""
        stage = self._experiment.stage_at(batch.number)
        if stage.single_objects:
            rng = np.random.default_rng((self._experiment.seed, batch.number, jax.process_index()))
            batch = cut_objects(batch, len(batch.images) * self._experiment.data.cut_outs, stage.size, rng)
        inputs = put_batch(tokenize(batch, self._tokenizer), self._mesh)
        return inputs.replace(images_u8=self._upscale(inputs.images_u8, (stage.size, stage.size)))

    def step(self, state: TrainState, batch: CaptionedInputs) -> tuple[TrainState, ClipMetrics]:
        """Do a step."""
        shape = batch.images_u8.shape
        if shape not in self._compiled:
            traced = self._step.trace(state, batch)
            flops = count_matmul_flops(traced.jaxpr) / self._mesh.size
            self._compiled[shape] = traced.lower().compile(), flops
            give_back_freed_memory()
            wait_for_all("CLIP step compiled")
        compiled, self._flops = self._compiled[shape]
        return compiled(state, batch)

    def problem(self, metrics: ClipMetrics) -> str | None:
        """Say what is not finite."""
        for name in ("image_loss", "region_loss", "gradient_norm"):
            if not np.isfinite(value := float(getattr(metrics, name))):
                return f"{name.replace('_', ' ')} is {value}"
        return None

    def report(self, metrics: ClipMetrics, step: int) -> dict[str, float]:
        """Name the numbers of a step."""
        values = {
            "loss/total": metrics.total_loss,
            "loss/image": metrics.image_loss,
            "loss/region": metrics.region_loss,
            "in_batch_accuracy/image": metrics.image_accuracy,
            "in_batch_accuracy/region": metrics.region_accuracy,
            "logit_scale": metrics.logit_scale,
            "gradient_norm": metrics.gradient_norm,
            "learning_rate": self._learning_rate(step - 1),
        }
        return {name: float(value) for name, value in values.items()}

    def flops_per_step(self) -> float | None:
        """Return the operations of matrix products and convolutions of the last step, per device."""
        return self._flops

    def evaluate(self, state: TrainState, folder: Path) -> dict[str, float]:
        """Compute how well CLIP names objects out of all 360 classes, with oracle masks and on crops, 0..1."""
        del folder  # there is nothing to keep but the numbers
        config = self._experiment.evaluation
        shapes = dataclasses.replace(self._experiment.data.shapes, split=config.split)
        # Without the copies of other devices.
        params = jax.device_put(jax.device_get(state.params))
        return zero_shot_accuracy(
            self._model,
            params,
            self._classify(params),
            ShapesDataset(shapes, count=config.count),
            {part: {number + 1 for number in classes_of((part,))} for part in PARTITIONS},
            count=config.count,
            image_size=self._experiment.image_size,
        )

    def picture(self, state: TrainState, batch: CaptionedInputs) -> UInt8[np.ndarray, "h w 3"]:
        """Draw the regions of a batch's first image with their names, and beside them what CLIP calls them."""
        params = jax.device_put(jax.device_get(state.params))
        first = jax.device_get(jax.tree.map(lambda x: x[:1], batch))
        found = jax.device_get(self._name_regions(params, self._classify(params), first.images_u8, first.boxes))[0]
        image, valid = first.images_u8[0], first.valid[0]
        masks = np.asarray(box_masks(jnp.asarray(first.boxes), image.shape[:2]))[0, valid]
        name_of = dict(zip(_numbers(class_names()).tolist(), class_names(), strict=True))
        true = [name_of[number] for number in first.region_names[0, valid].tolist()]
        sides = [
            draw_tracks(image, masks, labels, color_palette(len(masks)))
            for labels in (true, [class_names()[number] for number in found[valid].tolist()])
        ]
        return np.concatenate(sides, axis=1)

    def export(self, state: TrainState, folder: Path, source: Mapping[str, Any]) -> None:
        """Write a model folder: the CLIP, and the decoders it began with, or random ones."""
        source = dict(source)
        if self._folder is None:
            params = jitted(self._model, "init_decoders")(jax.random.key(self._experiment.seed))
        else:
            params = self._folder.params
            source["init_from"] = self._folder.source
        clip_vars = jax.device_get(state.params)
        save_model(folder, self._config, clip_vars, params, self._tokenizer, source=source, overwrite=True)

    def _classify(self, params: Variables) -> TextClassifier:
        """Encode the names of all classes."""
        return encode_vocabulary(
            class_names(),
            tokenizer=self._tokenizer,
            encode_tokens=lambda tokens: self._encode_text(params, tokens),
            weights_hash="",
        )


def _check_clip(folder: ModelFolder, path: Path, config: ClipVisConfig, tokenizer: ClipTokenizer) -> None:
    """Make sure that a folder's CLIP is of a configuration's sizes and reads its words.

    Raises:
        InputError: It is another CLIP.
    """
    sizes, expected = (folder.config.backbone, folder.config.text), (config.backbone, config.text)
    if sizes != expected:
        raise InputError(f"{path}: its CLIP ({sizes}) has other sizes than that of the configuration ({expected})")
    if folder.tokenizer.fingerprint != tokenizer.fingerprint:
        raise InputError(f"{path}: its tokenizer is not that of the Shapes world; give a CLIP that was trained on it")


def _name_regions(
    model: ClipVis,
    params: Variables,
    classifier: TextClassifier,
    images_u8: UInt8[Array, "b h w 3"],
    boxes: Float[Array, "b n 4"],
) -> Int[Array, "b n"]:
    """Return the class closest to each region."""
    features = model.extract_features(params, images_u8, jnp.array(images_u8.shape[1:3]))
    visual = model.pool_masks(params, features.res5, box_masks(boxes, (features.res5.shape[1], features.res5.shape[2])))
    return jnp.argmax(model.name_embeddings(params, visual, classifier), axis=-1)


def tokenize(batch: CaptionedBatch, tokenizer: ClipTokenizer) -> CaptionedInputs:
    """Turn the sentences of a batch into tokens, and names into numbers."""
    shape = batch.boxes.shape[:2]
    length = min(_REGION_TOKENS, tokenizer.context_length)
    captions = tokenizer(batch.captions)
    regions = tokenizer([caption for captions in batch.region_captions for caption in captions])
    if not shape[1]:
        captions = captions[:, :length]  # sentences about single objects
    names = _numbers([name for names in batch.region_names for name in names]).reshape(shape)
    arrays: dict[str, Any] = {
        "images_u8": batch.images,
        "caption_tokens": captions,
        "caption_names": _numbers(batch.names),
        "boxes": batch.boxes,
        "region_tokens": regions[:, :length].reshape(*shape, length),
        "region_names": names,
        "valid": np.array([[bool(name) for name in row] for row in batch.region_names], bool).reshape(shape),
    }
    return CaptionedInputs(**arrays)


def names_in_captions(tokenizer: ClipTokenizer) -> LoneTexts:
    """Return the names of all classes that captions show."""
    names = [class_names()[number] for number in classes_of(("base", "novel"))]
    tokens = tokenizer(names)
    # What follows the end of a text is not read.
    return LoneTexts(tokens[:, : int(np.argmax(tokens, axis=1).max()) + 1], _numbers(names))


def _numbers(texts: Sequence[str]) -> Int[np.ndarray, " n"]:
    """Give equal texts equal numbers, in all processes."""
    return np.array([zlib.crc32(text.encode()) >> 1 for text in texts], np.int32)

"""Training of CLIP-VIS: the decoders, on masks of any data set, under a frozen CLIP."""

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from jax.experimental import multihost_utils
from jaxtyping import UInt8
from scipy.special import expit

from clipvis_jax.data.catalog import check_for_training, check_held_out, open_dataset
from clipvis_jax.data.pipeline import HostBatch, PipelineConfig, TrainIterator, make_train_iterator
from clipvis_jax.data.records import Dataset
from clipvis_jax.distributed import wait_for_all
from clipvis_jax.errors import InputError
from clipvis_jax.evaluation import (
    check_masks,
    evaluate,
    evaluate_class_agnostic,
    ground_truth_from,
    load_results,
    scoring_rules,
)
from clipvis_jax.inference.dataset_run import RunFolder, predict_dataset
from clipvis_jax.inference.loading import make_segmenter
from clipvis_jax.inference.segmenter import InferenceConfig, Segmenter
from clipvis_jax.loop.host_memory import give_back_freed_memory
from clipvis_jax.loop.loop import LoopConfig
from clipvis_jax.loop.matmul_flops import count_matmul_flops
from clipvis_jax.loop.sharding import make_mesh, put_batch, replicated
from clipvis_jax.loop.train_state import TrainState
from clipvis_jax.media.visualize import color_palette, draw_tracks
from clipvis_jax.models.backbones import BACKBONES
from clipvis_jax.models.clipvis import ClipVis, ClipVisConfig, Variables, jitted
from clipvis_jax.models.pixel_decoder import PixelDecoderConfig
from clipvis_jax.models.query_decoder import QueryDecoderConfig, mask_logits_from
from clipvis_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from clipvis_jax.training.step import (
    TrainingConfig,
    abstract_state,
    first_non_finite,
    init_state,
    make_train_step,
    state_shardings,
)
from clipvis_jax.training.structs import StepMetrics, Targets, TrainingBatch
from clipvis_jax.weights.model_folder import ModelFolder, RunDefaults, Storage, hash_variables, load_model, save_model

_SHOWN_PREDICTIONS = 20


DatasetOrName = Annotated[
    str | Dataset,
    # As an option of the command line it is a name; the object of a configuration stays where none is given.
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="NAME|FILE|DIR",
        instance_from_str=lambda texts: texts[0],
        is_instance=lambda value: isinstance(value, str | Dataset),
        str_from_instance=lambda value: [_name_of(value)],
    ),
]
"""A data set, or what ``clipvis_jax.data.catalog.open_dataset`` takes for one."""


def _name_of(dataset: str | Dataset) -> str:
    return dataset if isinstance(dataset, str) else dataset.name


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What scores are computed on while training.

    Attributes:
        dataset: A data set, or the name or path of one.
        limit: Use its first so many videos; None: all.
        inference: How videos are run.
    """

    dataset: DatasetOrName = "lvvis_val"
    limit: int | None = 50
    inference: InferenceConfig = InferenceConfig()

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise InputError(f"evaluation.limit {self.limit}: give at least 1 video, or None for all")


@dataclasses.dataclass(frozen=True)
class ClipVisExperiment:
    """A training of the decoders; the defaults are the authors' for LVIS and RN50.

    Attributes:
        backbone: The CLIP that must be given, by open_clip's name; None: any.
        pixel_decoder: Sizes of the pixel decoder.
        query_decoder: Sizes of the query decoder.
        dataset: The data set to train on, or its name or path. One given as an object is pickled for the workers of
            ``data``.
        data: What batches are made of.
        step: How a step is computed.
        optimizer: How parameters are changed, and for how many steps.
        fsdp: Over how many devices parameters and optimiser state are sharded; 1 keeps a copy on each.
        seed: Decides the initial decoders, the order of examples, augmentation and all points of the losses.
        evaluation: What scores are computed on.
        loop: When to log, save, evaluate and draw.
        storage: Type in which the model folder is stored in the end.
    """

    backbone: str | None = "RN50"
    pixel_decoder: PixelDecoderConfig = PixelDecoderConfig()
    query_decoder: QueryDecoderConfig = QueryDecoderConfig(num_layers=6)
    dataset: DatasetOrName = "lvis_train_norare"
    data: PipelineConfig = PipelineConfig()
    step: TrainingConfig = TrainingConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    fsdp: int = 1
    seed: int = 0
    evaluation: EvaluationConfig = EvaluationConfig()
    loop: LoopConfig = LoopConfig()
    storage: Storage = "float32"

    def __post_init__(self) -> None:
        if self.backbone is not None and self.backbone not in BACKBONES:
            raise InputError(f"backbone {self.backbone}: must be one of {', '.join(BACKBONES)}")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed {self.seed}: must be between 0 and {2**32 - 1}")

    def with_names(self) -> "ClipVisExperiment":
        """Return the same with data sets by their names, for notes."""
        evaluation = dataclasses.replace(self.evaluation, dataset=_name_of(self.evaluation.dataset))
        return dataclasses.replace(self, dataset=_name_of(self.dataset), evaluation=evaluation)


class ClipVisTask:
    """A ``loop.loop.Task``: trains decoders, new ones or those of a model folder, under a frozen CLIP.

    ``scores_of`` says, where it is not all of the evaluation data, what scores are computed on.
    """

    def __init__(
        self,
        experiment: ClipVisExperiment,
        *,
        clip: Path | None = None,
        init_from: Path | None = None,
        data_root: Path | None = None,
        images: Path | None = None,
        evaluation_images: Path | None = None,
    ) -> None:
        """Open the model folders and the data.

        Args:
            experiment: What to train, on what, how.
            clip: A model folder whose CLIP is used; None: that of ``init_from``.
            init_from: A model folder whose decoders to begin with; None: random ones.
            data_root: Folder of all data sets, for data sets given by name.
            images: Image folder of the data to train on, if given as an annotation file.
            evaluation_images: The same for the data that scores are computed on.

        Raises:
            InputError: Neither folder is given, one or the data cannot be used, or sizes are not the experiment's.
        """
        self._experiment = experiment
        self._data_root, self._evaluation_images = data_root, evaluation_images
        self._folder, self._sources = _open_folders(experiment, clip, init_from)
        self._model = ClipVis(self._folder.config)
        self._mesh = make_mesh(experiment.fsdp)
        self._optimizer = make_optimizer(experiment.optimizer)
        self._learning_rate = make_schedule(experiment.optimizer)
        self._params = None
        if init_from is not None:
            self._params = _add_queries(self._folder.params, self._folder.config, experiment.seed)
        wait_for_all("CLIP loaded")  # devices compare what they are given
        self._trunk = jax.device_put({"trunk": self._folder.clip_vars["trunk"]}, replicated(self._mesh))
        self._step = make_train_step(self._model, experiment.step, self._optimizer, self._mesh)
        self._compiled: Any = None
        self._flops: float | None = None
        self._draw = jax.jit(self._predict_first, out_shardings=replicated(self._mesh))
        self._segmenter: Segmenter | None = None
        self._category_ids: frozenset[int] = frozenset()
        self._dataset = open_dataset(experiment.dataset, data_root, images)
        check_for_training(self._dataset)
        self.scores_of: str | None = None
        self._evaluated: Dataset | None = None
        if experiment.loop.evaluate_every:
            # Now, and not after hours of training.
            self._evaluated, count = self._open_evaluation_dataset()
            evaluated = self._evaluated
            if count < len(evaluated):
                self.scores_of = f"the first {count} of the {len(evaluated)} {evaluated.info.media} of {evaluated.name}"
        self.num_steps = experiment.optimizer.num_steps
        self.batch_size = experiment.data.batch_size
        decoders = "random decoders" if init_from is None else f"the decoders of {init_from}"
        self.beginning = decoders if clip is None else f"{decoders} and the CLIP of {clip}"

    def notes(self) -> dict[str, Any]:
        """Return what a run depends on besides its settings."""
        notes = {
            "clip_sha256": hash_variables(self._folder.clip_vars),
            "dataset": {"name": self._dataset.name, "digest": self._dataset.digest},
        }
        if self._evaluated is not None:
            notes["evaluation_dataset"] = {"name": self._evaluated.name, "digest": self._evaluated.digest}
        return notes if self._params is None else notes | {"decoders_sha256": hash_variables(self._folder.params)}

    def init_state(self) -> TrainState:
        """Return the state before the first step."""
        return init_state(self._model, self._optimizer, self._mesh, seed=self._experiment.seed, params=self._params)

    def abstract_state(self) -> TrainState:
        """Return shapes, types and shardings of the state."""
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            abstract_state(self._model, self._optimizer),
            state_shardings(self._model, self._optimizer, self._mesh),
        )

    def open_data(self) -> TrainIterator:
        """Start the stream of batches."""
        iterator = make_train_iterator(
            self._dataset,
            self._experiment.data,
            seed=self._experiment.seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        self._category_ids = iterator.category_ids
        return iterator

    def put(self, batch: HostBatch) -> TrainingBatch:
        """Put a batch on the devices."""
        absent = np.zeros_like(batch.valid)
        arrays = put_batch((batch.image, batch.masks_packed, batch.valid, absent, batch.valid_size), self._mesh)
        image, masks_packed, valid, absent, valid_size = arrays
        return TrainingBatch(image, Targets(masks_packed, valid, absent), valid_size)

    def step(self, state: TrainState, batch: TrainingBatch) -> tuple[TrainState, StepMetrics]:
        """Do a step."""
        if self._compiled is None:
            traced = self._step.trace(state, self._trunk, batch)
            counted = traced
            # What is computed twice to save memory is no use made of the device.
            plain = dataclasses.replace(self._experiment.step, remat="none", accumulation=1)
            if plain != self._experiment.step:
                step = make_train_step(self._model, plain, self._optimizer, self._mesh)
                counted = step.trace(state, self._trunk, batch)
            self._flops = count_matmul_flops(counted.jaxpr) / self._mesh.size
            self._compiled = traced.lower().compile()
            give_back_freed_memory()
            wait_for_all("training step compiled")
        return self._compiled(state, self._trunk, batch)

    def problem(self, metrics: StepMetrics) -> str | None:
        """Say which loss, of which layer, is not finite."""
        return first_non_finite(metrics)

    def report(self, metrics: StepMetrics, step: int) -> dict[str, float]:
        """Name the losses, not weighted, layer by layer (0 is the prediction before the first layer)."""
        values = {"loss/total": float(metrics.total_loss)}
        by_layer = {f"loss/{name}": losses for name, losses in metrics.losses.items()}
        for name, layers in (by_layer | {"matched_iou": metrics.matched_iou}).items():
            values |= {f"{name}/{layer}": value for layer, value in enumerate(np.asarray(layers).tolist())}
        values["gradient_norm"] = float(metrics.gradient_norm)
        values["learning_rate"] = float(self._learning_rate(step - 1))
        return values

    def flops_per_step(self) -> float | None:
        """Return the operations of matrix products and convolutions, per device."""
        return self._flops

    def evaluate(self, state: TrainState, folder: Path) -> dict[str, float]:
        """Run the evaluation data's first videos and score them, 0..1."""
        config = self._experiment.evaluation
        dataset, count = self._open_evaluation_dataset()
        params = self._fetch(state.params)
        if self._segmenter is None:
            model = dataclasses.replace(self._folder, params=params)
            self._segmenter = make_segmenter(model, config=config.inference)
        self._segmenter.params = jax.device_put(params)
        # Results of an earlier run or attempt may be of other weights.
        if jax.process_index() == 0:
            shutil.rmtree(folder, ignore_errors=True)
        wait_for_all(f"emptied {folder.name}")
        run = RunFolder(folder, {"step": int(state.step)})
        predict_dataset(self._segmenter, dataset, run, count)
        wait_for_all(f"evaluated {folder.name}")
        results_file = folder / "results.json"
        if jax.process_index() == 0:
            run.merge(results_file, range(count))
        wait_for_all(f"merged {folder.name}")
        ground_truth = ground_truth_from(dataset, count)
        protocols, groups = scoring_rules(dataset)
        results = load_results(results_file, ground_truth)
        metrics = evaluate(ground_truth, results, protocols[0], groups=groups)
        masks = evaluate_class_agnostic(ground_truth, results, protocols[0])
        scores = {name: metrics.stats[name] for name in ("AP", "AP50", "AP75")}
        scores |= {f"AP_{name}": group["AP"] for name, group in metrics.groups.items()}
        return scores | {"AP_class_agnostic": masks.stats["AP"]}

    def picture(self, state: TrainState, batch: TrainingBatch) -> UInt8[np.ndarray, "h w 3"]:
        """Draw the targets of a batch's first image, and beside them what the model finds in it."""
        image, masks, object_logits, targets, valid = jax.device_get(self._draw(state.params, self._trunk, batch))
        found = masks > 0
        probs = expit(object_logits[:, 0] - object_logits[:, 1])
        best = [query for query in np.argsort(-probs)[:_SHOWN_PREDICTIONS] if probs[query] > 0.5]
        height, width = image.shape[:2]
        scaled = np.repeat(np.repeat(found[best], height // found.shape[1], 1), width // found.shape[2], 2)
        right = draw_tracks(image, scaled, [f"{probs[query]:.2f}" for query in best], color_palette(len(best)))
        true = np.unpackbits(targets[valid], axis=-1).astype(bool)
        left = draw_tracks(image, true, [str(number) for number in range(len(true))], color_palette(len(true)))
        return np.concatenate([left, right], axis=1)

    def export(self, state: TrainState, folder: Path, source: Mapping[str, Any]) -> None:
        """Write a model folder."""
        save_model(
            folder,
            self._folder.config,
            self._folder.clip_vars,
            self._fetch(state.params),
            self._folder.tokenizer,
            source={**source, **self._sources},
            run_defaults=self._run_defaults(),
            storage=self._experiment.storage,
            overwrite=True,
        )

    def _run_defaults(self) -> RunDefaults:
        """Return how the model is run: as it was scored, and with the names of its data set or of where it began.

        A threshold that was found for other weights is none for these.
        """
        begin, inference = self._folder.run_defaults, self._experiment.evaluation.inference
        background = self._dataset.info.background
        return RunDefaults(
            begin.size if inference.size is None else inference.size,
            begin.max_size if inference.size is None else inference.max_size,
            begin.background if background is None else background,
            classes=tuple(c.name for c in self._dataset.categories if c.id in self._category_ids) or None,
        )

    def _open_evaluation_dataset(self) -> tuple[Dataset, int]:
        config = self._experiment.evaluation
        dataset = open_dataset(config.dataset, self._data_root, self._evaluation_images)
        check_held_out(dataset)
        if not dataset.has_annotations:
            raise InputError(f"evaluation.dataset {dataset.name}: has no annotations to score against")
        count = len(dataset) if config.limit is None else min(config.limit, len(dataset))
        check_masks(dataset, count)
        return dataset, count

    def _predict_first(self, params: Variables, trunk: Variables, batch: TrainingBatch) -> tuple[jax.Array, ...]:
        first = jax.tree.map(lambda x: x[:1], batch)
        features = self._model.extract_features(trunk, first.images_u8, first.sizes)
        pixels = self._model.decode_pixels(params, features)
        prediction = self._model.decode_queries(params, pixels)[-1]
        masks = mask_logits_from(prediction.mask_embed, pixels.mask_features)
        targets = first.targets
        arrays = (first.images_u8, masks, prediction.object_logits, targets.masks_packed, targets.valid)
        return tuple(array[0] for array in arrays)

    def _fetch(self, params: Variables) -> Variables:
        """Bring parameters to the host, from all processes if they are sharded over them."""
        if jax.process_count() > 1:
            wait_for_all("parameters fetched")
            return multihost_utils.process_allgather(params, tiled=True)
        return jax.device_get(params)


def _open_folders(
    experiment: ClipVisExperiment, clip: Path | None, init_from: Path | None
) -> tuple[ModelFolder, dict[str, Any]]:
    """Open what a training begins with: a model of the experiment's sizes, and where its parts come from.

    The decoders of ``init_from`` may have fewer queries. Without it the decoders are those of ``clip``, of any sizes,
    and are not to be used.

    Raises:
        InputError: No folder is given, the CLIP is another one than the experiment's, or than the decoders are for,
            or the decoders have other sizes.
    """
    path = clip or init_from
    if path is None:
        raise InputError("give 'clip', for new decoders, or 'init_from', to go on with a model's decoders")
    folder = load_model(path)
    sources = {} if clip is None else {"clip": folder.source}
    backbone = experiment.backbone
    if backbone is not None and folder.config.backbone != BACKBONES[backbone]:
        raise InputError(
            f"{path}: its CLIP is not {backbone}, for which the configuration is; give another model folder"
        )
    config = ClipVisConfig(
        folder.config.backbone, folder.config.text, experiment.pixel_decoder, experiment.query_decoder
    )
    if init_from is None:
        return dataclasses.replace(folder, config=config), sources
    decoders = folder if clip is None else load_model(init_from)
    if decoders.config.backbone != config.backbone:
        raise InputError(
            f"{clip}: its CLIP ({config.backbone}) has other sizes than that of {init_from} "
            f"({decoders.config.backbone}), for which the decoders are"
        )
    before, after = decoders.config.query_decoder, config.query_decoder
    grown = dataclasses.replace(before, num_queries=max(before.num_queries, after.num_queries))
    if (config.pixel_decoder, after) != (decoders.config.pixel_decoder, grown):
        raise InputError(
            f"{init_from}: its decoders ({before}, {decoders.config.pixel_decoder}) have other sizes than those of the "
            f"configuration ({after}, {config.pixel_decoder}); of these, only num_queries may be larger"
        )
    sources["init_from"] = decoders.source
    return dataclasses.replace(folder, config=config, params=decoders.params), sources


def _add_queries(params: Variables, config: ClipVisConfig, seed: int) -> Variables:
    """Put random queries behind those of ``params``, up to the number in ``config``.

    The model goes on finding what it found, and the new queries learn what the others leave over.
    """
    initial = jitted(ClipVis(config), "init_decoders")(jax.random.key(seed))["query_decoder"]
    decoder = dict(params["query_decoder"])
    for name in ("query_feature", "query_position"):
        decoder[name] = np.concatenate([decoder[name], initial[name][len(decoder[name]) :]])
    return {**params, "query_decoder": decoder}

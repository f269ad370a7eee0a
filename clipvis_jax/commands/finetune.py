"""``clipvis finetune``."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from clipvis_jax.commands.interrupt import stopping_at_once
from clipvis_jax.errors import InputError
from clipvis_jax.io.terminal import print_lines, print_table

if TYPE_CHECKING:
    from clipvis_jax.data.records import Dataset
    from clipvis_jax.evaluation.best_score import BestScores
    from clipvis_jax.evaluation.video_ap import VideoMetrics
    from clipvis_jax.text.tokenizer import ClipTokenizer

_MOST_ROWS = 40


@dataclasses.dataclass(frozen=True)
class Finetune:
    """Train a model further on footage of your own, and say whether it got better.

    Scores are computed before the first step and up to five times after it; the best state becomes DIR/model, also if
    that is the one before the first step. DIR/finetune.json has the scores before and after, overall and by class. A
    run that was stopped goes on where it was: give the same command again. Names are not learned: CLIP stays frozen,
    and only finding and outlining objects is trained. 'clipvis train' has all settings.

    For example:
      clipvis finetune --model model --dataset mine/annotations.json --out runs/mine
      clipvis finetune --model model --dataset train.json --images frames --val val.json --val-images frames --out run
    """

    model: Annotated[Path, arg(metavar="DIR")]
    """Model folder to begin with, made by 'clipvis convert' or a training."""
    dataset: Annotated[str, arg(metavar="FILE|DIR|NAME")]
    """Data set to train on: an annotation file in YouTube-VIS, COCO or BURST format, a folder with an annotations.json
    or instances.json, a folder made by 'clipvis prepare', or a name that 'clipvis prepare --help' lists."""
    out: Annotated[Path, arg(metavar="DIR")]
    """Folder of the run: model, finetune.json, checkpoints, log.jsonl, tensorboard and evaluation."""
    val: Annotated[
        str | None,
        arg(
            metavar="FILE|DIR|NAME",
            help_behavior_hint="(default: every fifth video with instances, 50 at most, held out of --dataset)",
        ),
    ] = None
    """Data set that scores are computed on. Give one where videos or pictures are cut from one recording: what is held
    out would be neighbours of what is trained on."""
    images: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """Image folder, for a data set given as an annotation file."""
    val_images: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """Image folder of --val."""
    data_root: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """Folder of all data sets, for data sets given by name."""
    steps: Annotated[int, arg(metavar="N")] = 1000
    """Length of the training; the learning rate's rise and drops are scaled to it."""
    batch_size: Annotated[int, arg(metavar="N")] = 8
    """Frames per step; fewer take less memory."""
    learning_rate: Annotated[
        float | None, arg(metavar="RATE", help_behavior_hint="(default: 1e-4 for 16 frames, by the square root)")
    ] = None
    """The largest learning rate."""
    size: Annotated[
        int | None,
        arg(metavar="PIXELS", help_behavior_hint="(default: the model's, or 480 for videos, 800 for images)"),
    ] = None
    """Shorter side that frames are resized to for the network."""
    seed: Annotated[int, arg(metavar="N")] = 0
    """Decides the order of frames, augmentation and all other draws."""
    workers: Annotated[int, arg(metavar="N")] = 1
    """Processes that prepare batches; 0 prepares them in a thread."""

    def run(self) -> None:
        """Run ``clipvis finetune``.

        Raises:
            InputError: An option, the model, the data or the output folder cannot be used.
        """
        with stopping_at_once():
            from clipvis_jax.commands.provenance import device, versions
            from clipvis_jax.config import config_to_json
            from clipvis_jax.data.catalog import check_for_training, open_dataset
            from clipvis_jax.data.part import hold_out
            from clipvis_jax.inference.loading import enable_compilation_cache
            from clipvis_jax.loop.host_memory import keep_freed_memory
            from clipvis_jax.loop.loop import train
            from clipvis_jax.training.finetuning import finetuning
            from clipvis_jax.training.task import ClipVisTask
            from clipvis_jax.version import __version__
            from clipvis_jax.weights.model_folder import load_model

            keep_freed_memory()
            enable_compilation_cache()
            dataset: Dataset = open_dataset(self.dataset, self.data_root, self.images)
            check_for_training(dataset)
            if self.val is not None:
                evaluated: Dataset = open_dataset(self.val, self.data_root, self.val_images)
                where = f"{len(evaluated)} {evaluated.info.media} of {evaluated.name}"
            elif self.val_images is not None:
                raise InputError("--val-images: is for --val, which is not given")
            else:
                number = len(dataset)
                dataset, evaluated = hold_out(dataset)
                where = f"{len(evaluated)} of the {number} {evaluated.info.media}, held out"
            model = load_model(self.model)
            experiment = finetuning(
                model,
                dataset,
                evaluated,
                num_steps=self.steps,
                batch_size=self.batch_size,
                learning_rate=self.learning_rate,
                size=self.size,
                seed=self.seed,
                num_workers=self.workers,
            )
        print_lines(f"trains on {len(dataset)} {dataset.info.media}; scores are those of {where}")
        _tell_names(dataset, model.tokenizer)
        task = ClipVisTask(experiment, init_from=self.model)
        is_complete = train(
            task,
            experiment.loop,
            self.out,
            description={"config": config_to_json(experiment), **task.notes(), "versions": versions()},
            source={"trained_by": f"clipvis_jax {__version__}", "device": device()},
        )
        if is_complete:
            self._tell_scores(evaluated, where)
        else:
            print_lines("stopped; the same command goes on from here")

    def _tell_scores(self, evaluated: "Dataset", where: str) -> None:
        """Compare the scores before and after, and keep them beside the model."""
        from clipvis_jax.evaluation import percent
        from clipvis_jax.evaluation.summary import best_to_json, scores_to_json
        from clipvis_jax.io.files import write_text
        from clipvis_jax.loop.checkpoints import TrainingCheckpoints
        from clipvis_jax.weights.model_folder import set_min_score

        with TrainingCheckpoints(self.out / "checkpoints", is_read_only=True) as checkpoints:
            best = checkpoints.best()
        assert best is not None
        before, _ = self._score(evaluated, 0)
        after, best_scores = self._score(evaluated, best)
        names = {category.id: category.name for category in evaluated.categories}
        scored = [number for number, scores in before.per_category.items() if scores["AP"] >= 0]

        def change(number: int) -> float:
            return abs(after.per_category[number]["AP"] - before.per_category[number]["AP"])

        shown = sorted(scored, key=change, reverse=True)[:_MOST_ROWS]
        rows = [
            [name, *(percent(scores[stat]) for stat in ("AP", "AP50") for scores in pair)]
            for name, pair in {
                "all": (before.stats, after.stats),
                **{names[n]: (before.per_category[n], after.per_category[n]) for n in scored if n in shown},
            }.items()
        ]
        content = {
            "scores_on": where,
            "best_step": best,
            "before": scores_to_json(before.stats),
            "after": scores_to_json(after.stats),
            "categories": [
                {
                    "id": number,
                    "name": names[number],
                    "before": scores_to_json(before.per_category[number]),
                    "after": scores_to_json(after.per_category[number]),
                }
                for number in scored
            ],
            "best_f1": best_to_json(best_scores),
        }
        write_text(self.out / "finetune.json", json.dumps(content, indent=2) + "\n")
        if best_scores is not None:
            set_min_score(self.out / "model", float(best_scores.overall.shown))
        print_table(
            f"scores of {where}",
            ["%", "AP before", "after", "AP50 before", "after"],
            rows,
            left=["%"],
            caption="" if len(shown) == len(scored) else f"the {len(shown)} of {len(scored)} classes that changed most",
        )
        print_lines(verdict(before.stats["AP"], after.stats["AP"], best, self.out / "model"))
        print_lines(f"wrote {self.out / 'model'}, {self.out / 'finetune.json'}")

    def _score(self, dataset: "Dataset", step: int) -> "tuple[VideoMetrics, BestScores | None]":
        """Score the results of a step, which the training left in its folder, by class."""
        from clipvis_jax.evaluation import evaluate, ground_truth_from, load_results, scoring_rules
        from clipvis_jax.evaluation.best_score import find_best_scores

        ground_truth = ground_truth_from(dataset)
        (protocol, *_), groups = scoring_rules(dataset)
        results = load_results(self.out / "evaluation" / f"step_{step:07d}" / "results.json", ground_truth)
        return (
            evaluate(ground_truth, results, protocol, groups=groups),
            find_best_scores(ground_truth, results, protocol),
        )


def verdict(before: float, after: float, best_step: int, model: Path) -> str:
    """Say whether a model got better, by its AP (0..1) before the training and at the best step."""
    if after > before:
        return f"AP rose from {100 * before:.1f} to {100 * after:.1f} at step {best_step}"
    what = "the model as it was" if best_step == 0 else f"that of step {best_step}, which is as good"
    return f"it did not get better than AP {100 * before:.1f}; {model} is {what}"


def _tell_names(dataset: "Dataset", tokenizer: "ClipTokenizer") -> None:
    """Say that names are not learned, and which of them CLIP may not know."""
    print_lines("class names are not learned: CLIP stays frozen, and only finding and outlining objects is trained")
    hard: dict[str, Any] = {category.name: tokenizer.rare_words(category.name) for category in dataset.categories}
    hard = {name: words for name, words in hard.items() if words}
    if hard:
        shown = ", ".join(f"{name} ({', '.join(words)})" for name, words in list(hard.items())[:_MOST_ROWS])
        more = f" and {len(hard) - _MOST_ROWS} more" if len(hard) > _MOST_ROWS else ""
        print_lines(f"CLIP may not know these names; more common words may be found better: {shown}{more}")

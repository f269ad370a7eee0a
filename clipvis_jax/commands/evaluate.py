"""``clipvis eval`` and ``eval.py``."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import arg

from clipvis_jax.commands.interrupt import stopping_at_once
from clipvis_jax.distributed import DistributedConfig
from clipvis_jax.errors import InputError
from clipvis_jax.io.terminal import print_lines, print_table

if TYPE_CHECKING:
    from collections.abc import Collection

    from clipvis_jax.data.records import Dataset
    from clipvis_jax.evaluation.best_score import BestScores
    from clipvis_jax.evaluation.inputs import GroundTruth, Result
    from clipvis_jax.inference.segmenter import InferenceConfig


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Run a model over a data set and score it by its official metrics.

    Writes into the output folder: results.json (YouTube-VIS results), coco_results.json (for images, the same in COCO's
    format), metrics.json (scores, and what they rest on), report.html (a page to look at), submission.zip (for data
    sets with an evaluation server), and videos/ (results of single videos). A run that was stopped goes on where it
    was: give the same command again.

    For example:
      clipvis eval --model model --dataset lvvis_val --data-root data --out eval/lvvis_val
      python eval.py configs/lvis_r50.py --model model --data-root data --out eval/lvvis_val
      clipvis eval --model model --dataset mine/instances.json --images mine/JPEGImages --limit 10 --overlays 3
      clipvis eval --metrics-only results.json --dataset lvvis_val --data-root data --out eval/theirs
    """

    config: Annotated[Path | None, tyro.conf.Positional, arg(metavar="[CONFIG]", help_behavior_hint="")] = None
    """Configuration such as configs/lvis_r50.py, whose evaluation data set and input size are taken where no others are
    given."""
    dataset: Annotated[str | None, arg(metavar="NAME|FILE|DIR", help_behavior_hint="")] = None
    """Data set: a name that 'clipvis prepare --help' lists; shapes_val, shapes_test, shapes_fast or shapes_occlusion,
    which are drawn and need no files; an annotation file in YouTube-VIS, COCO or BURST format; or a folder made by
    'clipvis prepare'."""
    model: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """Model folder, made by 'clipvis convert' or training."""
    out: Annotated[Path, arg(metavar="DIR")] = Path("clipvis_eval")
    """Folder for the results."""
    data_root: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """Folder of all data sets, for data sets given by name."""
    images: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """Image folder, for a data set given as an annotation file."""
    metrics_only: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Score this results file (YouTube-VIS results, COCO results of images, or tracks.json of 'clipvis predict'); runs
    no model."""
    limit: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: all)")] = None
    """Use the first N videos only."""
    overlays: Annotated[int, arg(metavar="N")] = 0
    """Write overlay videos of the first N videos."""
    protocol: Annotated[
        Literal["ytvis", "lvvis", "burst_clipvis", "shapes", "coco", "lvis"] | None,
        arg(
            metavar="{ytvis,lvvis,burst_clipvis,shapes,coco,lvis}",
            help_behavior_hint="(default: the data set's own, or ytvis for videos, coco for images)",
        ),
    ] = None
    """Official evaluator to follow."""
    burst_official: Annotated[bool, arg(help_behavior_hint="")] = False
    """Also compute BURST's own metrics (HOTA and others); needs the extra 'burst' and BURST's original annotations."""
    compatible: Annotated[bool, arg(help_behavior_hint="")] = False
    """Accept what the official evaluators accept silently: results with missing frames, masks of another size, unknown
    classes."""
    report: Annotated[bool, arg(help_behavior_hint="")] = True
    """Do not write report.html."""
    write_threshold: Annotated[bool, arg(help_behavior_hint="")] = False
    """Note the score with the best F1 in the model folder, as the default of 'clipvis predict --min-score' where no
    background names take part."""
    max_zip_mb: Annotated[float | None, arg(metavar="MB", help_behavior_hint="(default: the server's, if known)")] = (
        None
    )
    """Largest submission that the server takes."""
    size: Annotated[
        int | None,
        arg(
            metavar="PIXELS",
            help_behavior_hint="(default: the configuration's, the model's, or 480 for videos, 800 for images)",
        ),
    ] = None
    """Shorter side that frames are resized to for the network."""
    top_k: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: 50 per video, 100 per image)")] = None
    """Number of (track, class) pairs per video or image."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the computation; float32 equals the authors' results."""
    window: Annotated[
        int | None, arg(metavar="N", help_behavior_hint="(default: the configuration's, or 1 on a CPU, 8 elsewhere)")
    ] = None
    """Frames per call of the network."""
    distributed: DistributedConfig = DistributedConfig()
    """Several processes share the videos; --out must be a folder that all of them see."""

    def run(self) -> None:
        """Run ``clipvis eval``.

        Raises:
            InputError: An option, the model, the data set or a results file cannot be used.
        """
        if (self.model is None) == (self.metrics_only is None):
            raise InputError("give either --model, to run it, or --metrics-only, to score a results file")
        for option, value in {"limit": self.limit, "top-k": self.top_k}.items():
            if value is not None and value < 1:
                raise InputError(f"--{option} {value}: must be 1 or more")
        if self.overlays < 0:
            raise InputError(f"--overlays {self.overlays}: must be 0 or more")
        if self.write_threshold and (self.model is None or not (self.model / "config.json").is_file()):
            raise InputError("--write-threshold: needs --model with a model folder, in which it is noted")
        if self.overlays > 0 and self.model is None:
            raise InputError("--overlays: needs --model; --metrics-only runs none, so there is nothing to draw")
        with stopping_at_once():
            from clipvis_jax.commands.provenance import versions
            from clipvis_jax.data.catalog import check_held_out, open_dataset
            from clipvis_jax.distributed import start_processes, wait_for_all
            from clipvis_jax.inference.segmenter import InferenceConfig
            from clipvis_jax.io.files import prepare_output_dir

            start_processes(self.distributed)
            name: str | Dataset | None = self.dataset
            inference = InferenceConfig()
            limit: int | None = None
            if self.config is not None:
                from clipvis_jax.config import load_config
                from clipvis_jax.training.task import ClipVisExperiment

                experiment = load_config(self.config)
                if not isinstance(experiment, ClipVisExperiment):
                    raise InputError(f"{self.config}: trains CLIP alone; give a configuration of CLIP-VIS")
                evaluation = experiment.evaluation
                limit = evaluation.limit if name is None else None
                name, inference = name or evaluation.dataset, evaluation.inference
            if name is None:
                raise InputError("give --dataset, or a configuration that names one")
            dataset = open_dataset(
                name,
                data_root=self.data_root,
                images=self.images,
                check_images=self.model is not None,
                show_progress=self._is_first_process(),
            )
            check_held_out(dataset)
            count = len(dataset) if self.limit is None else min(self.limit, len(dataset))
            self._check_scoring(dataset, count)
            self._tell_limit(limit, count)
            prepare_output_dir(self.out)
        provenance: dict[str, Any] = {
            "dataset": {"name": dataset.name, "digest": dataset.digest, "videos": count, "of_videos": len(dataset)},
            "versions": versions(),
        }
        results = self.metrics_only or self.out / "results.json"
        if self.model is not None:
            provenance |= self._predict(dataset, count, inference)
            wait_for_all("predicted")
        if self._is_first_process():
            self._score(dataset, count, results, provenance)
        wait_for_all("scored")

    def _tell_limit(self, limit: int | None, count: int) -> None:
        """Say that the limit of a configuration is not one of this evaluation."""
        if self.limit is None and limit is not None and limit < count and self._is_first_process():
            print_lines(
                f"{self.config}: has evaluation.limit {limit}, which is for scores while training; here all {count} "
                f"are evaluated (--limit {limit} for as many)"
            )

    def _check_scoring(self, dataset: "Dataset", count: int) -> None:
        """Notice before the work what would make scoring fail after it."""
        from clipvis_jax.evaluation import check_masks, scoring_rules
        from clipvis_jax.evaluation.burst_official import check_burst

        if dataset.has_annotations:
            scoring_rules(dataset, self.protocol)
            check_masks(dataset, count)
            if self.write_threshold and scoring_rules(dataset, self.protocol)[0][0].image_rules == "lvis":
                raise InputError(
                    "--write-threshold: by the rules of LVIS a result without an annotation may be right, so no score "
                    "has a best F1; leave it out"
                )
        elif self.write_threshold:
            raise InputError(f"--write-threshold: {dataset.name} has no annotations to find one by; leave it out")
        if self.burst_official:
            check_burst(self._burst_file(dataset))

    @staticmethod
    def _burst_file(dataset: "Dataset") -> Path:
        from clipvis_jax.data.raw import RawDataset

        if not isinstance(dataset, RawDataset):
            raise InputError(
                "--burst-official: needs BURST's own annotation file; give that instead of a prepared folder"
            )
        return dataset.path

    @staticmethod
    def _is_first_process() -> bool:
        import jax

        return jax.process_index() == 0

    def _predict(self, dataset: "Dataset", count: int, inference: "InferenceConfig") -> dict[str, Any]:
        """Run the model over the data set, and say what the results rest on."""
        from clipvis_jax.commands.predict_outputs import write_overlay
        from clipvis_jax.commands.provenance import device, versions
        from clipvis_jax.distributed import wait_for_all
        from clipvis_jax.inference.dataset_run import DatasetFrames, RunFolder, predict_dataset
        from clipvis_jax.inference.loading import enable_compilation_cache, load
        from clipvis_jax.inference.results import VideoResult
        from clipvis_jax.inference.segmenter import IMAGE_TOP_K, VIDEO_TOP_K
        from clipvis_jax.media.video_reader import FrameSelection
        from clipvis_jax.weights.hub import is_address, parse_address
        from clipvis_jax.weights.model_folder import hash_variables
        from clipvis_jax.weights.published_sizes import backbone_name

        assert self.model is not None
        enable_compilation_cache()
        is_images = dataset.info.is_images
        top_k = self.top_k or (IMAGE_TOP_K if is_images else VIDEO_TOP_K)
        config = dataclasses.replace(
            inference,
            size=inference.size if self.size is None else self.size,
            window=inference.window if self.window is None else self.window,
            temp_dir=self.out,
        )
        segmenter = load(self.model, dtype=self.dtype, config=config)
        config = dataclasses.replace(segmenter.config, size=segmenter.config.shorter_side(is_image=is_images))
        weights = hash_variables({"clip_vars": segmenter.clip_vars, "params": segmenter.params})
        settings = dataclasses.asdict(config) | {"window": config.window_size, "dtype": self.dtype, "top_k": top_k}
        del settings["temp_dir"]
        fingerprint = {"weights": weights, "dataset": dataset.digest, "settings": settings, "versions": versions()}
        run = RunFolder(self.out, fingerprint)
        quiet = not self._is_first_process()

        # The first videos, by their position in the data set.
        suffix = ".png" if is_images else ".mp4"
        overlays = [self.out / "overlays" / f"{dataset[i].id}{suffix}" for i in range(min(self.overlays, count))]

        def draw(index: int, result: VideoResult, frames: DatasetFrames) -> None:
            if index < len(overlays):
                overlays[index].parent.mkdir(exist_ok=True)
                write_overlay(overlays[index], result, frames, FrameSelection(), show_progress=False)

        predict_dataset(
            segmenter,
            dataset,
            run,
            count,
            top_k=top_k,
            on_result=draw,
            is_complete=lambda index: index >= len(overlays) or overlays[index].is_file(),
            show_progress=not quiet,
        )
        wait_for_all("videos")
        if not quiet:
            run.merge(self.out / "results.json", range(count), show_progress=True)
        return {
            "model": {
                "folder": str(parse_address(self.model) if is_address(self.model) else self.model),
                "backbone": backbone_name(segmenter.model.config.backbone),
                "weights_sha256": weights,
                "source": segmenter.source,
            },
            "config": settings,
            "device": device(),
            "seed": None,
        }

    def _score(self, dataset: "Dataset", count: int, results_file: Path, provenance: dict[str, Any]) -> None:
        """Check and score a results file, and write all that is not a result of a single video."""
        from clipvis_jax.evaluation import ground_truth_from, load_results
        from clipvis_jax.evaluation.submission import write_coco_results, write_submission
        from clipvis_jax.weights.state_dicts import file_sha256

        server = dataset.info.server
        ground_truth = ground_truth_from(dataset, count, may_be_empty=True)
        # A file that is given may hold results of all videos, also with --limit.
        others = set() if self.metrics_only is None else {dataset[i].id for i in range(count, len(dataset))}
        results = load_results(results_file, ground_truth, compatible=self.compatible, other_videos=others)
        written = [results_file] if self.metrics_only is None else []
        if self.metrics_only is None and dataset.info.is_images:
            written.append(self.out / "coco_results.json")
            write_coco_results(written[-1], results, ground_truth.videos)
        if server is not None or not dataset.has_annotations:
            limit = server.zip_limit / 1e6 if server is not None and server.zip_limit is not None else None
            archive = self.out / "submission.zip"
            write_submission(
                archive,
                results,
                ground_truth.videos,
                is_images=dataset.info.is_images,
                max_megabytes=self.max_zip_mb or limit,
            )
            written.append(archive)
            name = f"{server.name}, {server.url}" if server is not None else "a server"
            if count == len(dataset):
                print_lines(f"{archive}: ready for {name}")
            else:
                print_lines(f"{archive}: has {count} of {len(dataset)} videos; leave out --limit for {name}")
        if dataset.has_annotations:
            provenance |= {"results": {"count": len(results), "sha256": file_sha256(results_file)}}
            written += self._score_results(dataset, ground_truth, results, provenance)
        else:
            print_lines(f"{dataset.name} has no public annotations, so there are no scores here")
        print_lines("wrote " + ", ".join(str(path) for path in written))

    def _score_results(
        self, dataset: "Dataset", ground_truth: "GroundTruth", results: "list[Result]", provenance: dict[str, Any]
    ) -> list[Path]:
        """Compute the metrics, write metrics.json, print them, and write the report."""
        from clipvis_jax.evaluation import scoring_rules
        from clipvis_jax.evaluation.protocols import rule_note
        from clipvis_jax.evaluation.published import published_rows
        from clipvis_jax.evaluation.report import write_report
        from clipvis_jax.evaluation.summary import print_summary, summarize, summary_to_json
        from clipvis_jax.io.files import write_text

        protocols, groups = scoring_rules(dataset, self.protocol)
        summary = summarize(ground_truth, results, protocols, groups=groups, show_progress=True)
        content = {**summary_to_json(summary, ground_truth), **provenance}
        note = rule_note(dataset, protocols[0])
        if note is not None:
            content["note"] = note
        burst = None
        if self.burst_official:
            burst = content["burst_official"] = self._burst_official(dataset, results, ground_truth.videos)
        metrics_file = self.out / "metrics.json"
        write_text(metrics_file, json.dumps(content, indent=2) + "\n")
        media = dataset.info.media
        print_summary(summary, title=f"{dataset.name}, {len(ground_truth.videos)} of {len(dataset)} {media}")
        if note is not None:
            print_lines(note)
        if self.write_threshold:
            self._write_threshold(summary.best_scores)
        written = [metrics_file]
        if self.report:
            written.append(self.out / "report.html")
            write_report(
                written[-1],
                content,
                video_metrics=summary.main,
                segmentation=summary.oracle_names,
                ground_truth=ground_truth,
                results=results,
                classification=summary.oracle_masks,
                best_scores=summary.best_scores,
                groups=groups,
                other_protocols={metrics.protocol: metrics for metrics in summary.protocols[1:]},
                burst=burst,
                published=published_rows(dataset.info.published_as, provenance.get("model", {}).get("backbone")),
                dataset=dataset,
                show_progress=True,
            )
        return written

    def _write_threshold(self, best: "BestScores | None") -> None:
        from clipvis_jax.weights.model_folder import set_min_score

        assert self.model is not None
        if best is None:
            print_lines(f"{self.model}: stays as it was, since no result is right")
            return
        set_min_score(self.model, float(best.overall.shown))
        print_lines(
            f"{self.model}: shows results with a score of {best.overall.shown} or more from now on, where no "
            "background names take part"
        )

    def _burst_official(
        self, dataset: "Dataset", results: "list[Result]", video_ids: "Collection[int]"
    ) -> dict[str, dict[str, float]]:
        from clipvis_jax.evaluation.burst_official import METRICS, evaluate_burst

        scores = evaluate_burst(self._burst_file(dataset), results, video_ids=video_ids, show_progress=True)
        print_table(
            f"{dataset.name}, BURST's own metrics",
            ["%", *METRICS],
            [
                [split, *("-" if values[name] < 0 else f"{100 * values[name]:.1f}" for name in METRICS)]
                for split, values in scores.items()
            ],
        )
        return scores

"""``clipvis ablate``."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from clipvis_jax.commands.interrupt import stopping_at_once
from clipvis_jax.errors import InputError, printable
from clipvis_jax.io.terminal import print_lines

_MAX_LENGTH = 1_000_000  # of a track history, as in inference.association, which takes long to import


@dataclasses.dataclass(frozen=True)
class Ablate:
    """Switch the parts of the method one by one and score each setting.

    These are the paper's ablations. The network runs once; its predictions of every frame are kept in OUT/cache
    (about 1 MB per frame for a full-size model). Matching mode, K, T, objectness and mask IoU weights and prompt
    templates are then switched without it. Writes ablation.md, ablation.csv, K.svg and T.svg. A run that was
    stopped goes on where it was.

    For example:
      clipvis ablate --model model --dataset lvvis_val --data-root data --out ablation
    """

    dataset: Annotated[str, arg(metavar="NAME|FILE|DIR")]
    """Data set with annotations: a known name, an annotation file, or a folder made by 'clipvis prepare'."""
    model: Annotated[Path, arg(metavar="DIR")]
    """Model folder, made by 'clipvis convert' or training."""
    out: Annotated[Path, arg(metavar="DIR")] = Path("clipvis_ablation")
    """Folder for the results and the cache."""
    data_root: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """Folder of all data sets, for data sets given by name."""
    images: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """Image folder, for a data set given as an annotation file."""
    limit: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: all)")] = None
    """Use the first N videos or images only."""
    k: Annotated[tuple[int, ...], arg(metavar="K [K ...]")] = (1, 3, 5, 7, 9)
    """Numbers of best frames of the track history to try."""
    t: Annotated[tuple[int, ...], arg(metavar="T [T ...]")] = (1, 5, 9, 13)
    """Lengths of the track history to try."""
    protocol: Annotated[
        Literal["ytvis", "lvvis", "burst_clipvis", "shapes", "coco", "lvis"] | None,
        arg(
            metavar="{ytvis,lvvis,burst_clipvis,shapes,coco,lvis}",
            help_behavior_hint="(default: the data set's own, or ytvis for videos, coco for images)",
        ),
    ] = None
    """Official evaluator to follow."""
    size: Annotated[
        int | None,
        arg(metavar="PIXELS", help_behavior_hint="(default: the model's, or 480 for videos, 800 for images)"),
    ] = None
    """Shorter side that frames are resized to for the network."""
    top_k: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: 50 per video, 100 per image)")] = None
    """Number of (track, class) pairs per video or image."""

    def run(self) -> None:
        """Run ``clipvis ablate``.

        Raises:
            InputError: An option, the model or the data set cannot be used.
        """
        for name, value in {"limit": self.limit, "top-k": self.top_k}.items():
            if value is not None and value < 1:
                raise InputError(f"--{name} {value}: must be 1 or more")
        for name, values in {"k": self.k, "t": self.t}.items():
            if not values:
                raise InputError(f"--{name}: give at least one number")
            for value in values:
                if not 1 <= value <= _MAX_LENGTH:
                    raise InputError(f"--{name} {value}: must be between 1 and {_MAX_LENGTH}")
        with stopping_at_once():
            from tqdm import tqdm

            from clipvis_jax.ablation.replay import cache_dataset, replay_dataset
            from clipvis_jax.ablation.settings import fingerprint, paper_settings
            from clipvis_jax.ablation.tables import Row, csv_table, markdown_tables, plot_table, score_columns
            from clipvis_jax.commands.provenance import versions
            from clipvis_jax.data.catalog import check_held_out, open_dataset
            from clipvis_jax.evaluation import check_masks, evaluate, ground_truth_from, parse_results, scoring_rules
            from clipvis_jax.inference.dataset_run import RunFolder
            from clipvis_jax.inference.loading import enable_compilation_cache, load
            from clipvis_jax.inference.segmenter import InferenceConfig
            from clipvis_jax.io.files import prepare_output_dir, write_text
            from clipvis_jax.weights.model_folder import hash_variables

            settings = paper_settings(self.k, self.t)
            dataset = open_dataset(self.dataset, data_root=self.data_root, images=self.images)
            check_held_out(dataset)
            if not dataset.has_annotations:
                raise InputError(f"{self.dataset}: has no annotations, so settings cannot be compared on it")
            protocols, groups = scoring_rules(dataset, self.protocol)
            count = len(dataset) if self.limit is None else min(self.limit, len(dataset))
            check_masks(dataset, count)
            enable_compilation_cache()
            segmenter = load(self.model, config=InferenceConfig(size=self.size, temp_dir=self.out))
        prepare_output_dir(self.out)
        size = segmenter.config.shorter_side(is_image=dataset.info.is_images)
        weights = hash_variables({"clip_vars": segmenter.clip_vars, "params": segmenter.params})
        run_facts = {"weights": weights, "dataset": dataset.digest, "size": size, "versions": versions()}
        RunFolder(self.out / "cache", run_facts)
        cache = cache_dataset(segmenter, dataset, self.out / "cache", count, show_progress=True)

        # Settings that say the same under different names are computed once.
        distinct = {fingerprint(setting): setting for setting in settings}
        runs = {
            key: RunFolder(self.out / "settings" / key, run_facts | {"setting": key, "top_k": self.top_k})
            for key in distinct
        }
        replay_dataset(
            segmenter,
            dataset,
            cache,
            list(distinct.values()),
            list(runs.values()),
            top_k=self.top_k,
            show_progress=True,
        )

        ground_truth = ground_truth_from(dataset, count)
        scores = {}
        for key, run in tqdm(runs.items(), "scoring", unit="setting"):
            records = [record for index in range(count) for record in run.read(index)]
            results = parse_results(records, ground_truth, source=str(run.folder))
            scores[key] = score_columns(evaluate(ground_truth, results, protocols[0], groups=groups))
        rows = [Row(setting, scores[fingerprint(setting)]) for setting in settings]
        kind = "images" if dataset.info.is_images else "videos"
        head = (
            f"# Ablations on {printable(dataset.name)}\n\n{count} of {len(dataset)} {kind}, protocol "
            f"{protocols[0].name}, model `{weights[:12]}`, scores in percent.\n\n"
        )
        texts = {"ablation.md": head + markdown_tables(rows), "ablation.csv": csv_table(rows)}
        for name, text in texts.items():
            write_text(self.out / name, text)
        for table in ("K", "T"):
            plot_table(self.out / f"{table}.svg", rows, table)
        print_lines(*texts["ablation.md"].splitlines(), "")
        print_lines("wrote " + ", ".join(str(self.out / name) for name in (*texts, "K.svg", "T.svg")))

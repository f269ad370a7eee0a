"""``clipvis push``."""

import dataclasses
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.conf import arg

from clipvis_jax.commands.interrupt import stopping_at_once
from clipvis_jax.errors import InputError, printable
from clipvis_jax.io.terminal import print_lines

if TYPE_CHECKING:
    from clipvis_jax.weights.model_folder import ModelFolder

_METRICS_ADVICE = "give the metrics.json of 'clipvis eval'"


@dataclasses.dataclass(frozen=True)
class Push:
    """Upload a model to the Hugging Face hub, with a model card.

    'hf auth login' logs in. Parameters go there as safetensors, with the settings and data set names of the training;
    of paths only the last part. Every command takes hf://ORG/NAME for the model folder then, and hf://ORG/NAME@REVISION
    for a branch, tag or commit.

    For example:
      clipvis push runs/lvis_r50/model my-org/clipvis-lvis-r50 --metrics eval/lvvis_val/metrics.json --license mit
    """

    model: Annotated[Path, tyro.conf.Positional, arg(metavar="MODEL")]
    """Model folder, made by 'clipvis convert' or a training."""
    repository: Annotated[str, tyro.conf.Positional, arg(metavar="ORG/NAME")]
    """Repository on the hub; made if it does not exist. Files of an earlier push are replaced."""
    metrics: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """metrics.json of 'clipvis eval', whose scores the card shows."""
    license: Annotated[
        str | None, arg(metavar="ID", help_behavior_hint="(default: the card says that none is stated)")
    ] = None
    """Licence of the weights, as the hub calls it: mit, apache-2.0, cc-by-nc-4.0. That of the data may bind them."""
    private: Annotated[bool, arg(help_behavior_hint="")] = False
    """Make the repository private, if it does not exist."""

    def run(self) -> None:
        """Run ``clipvis push``.

        Raises:
            InputError: An option, the model or the metrics cannot be used, or the hub refuses; nothing was uploaded.
        """
        with stopping_at_once():
            from clipvis_jax.io.files import scratch_folder
            from clipvis_jax.weights.hub import parse_address, push_folder
            from clipvis_jax.weights.model_folder import load_model, save_for_hub

            address = parse_address(f"hf://{self.repository.removeprefix('hf://')}")
            if address.revision is not None:
                raise InputError(f"{self.repository}: a push makes a new revision; leave @{address.revision} out")
            if self.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", self.license):
                raise InputError(f"--license {self.license}: give its name on the hub, such as mit or apache-2.0")
            metrics = None if self.metrics is None else _read_metrics(self.metrics)
            model = load_model(self.model)
            model = dataclasses.replace(model, source=without_folders(model.source))
        with scratch_folder() as folder:
            save_for_hub(folder, model)
            card = model_card(address.repository, model, metrics=metrics, license_name=self.license)
            (folder / "README.md").write_text(card, encoding="utf-8")
            commit = push_folder(folder, address.repository, private=self.private)
        print_lines(f"pushed {commit}", f"everybody who may read it: --model {address}")


def without_folders(note: Any) -> Any:
    """Return a JSON value in which data sets that are given by a path have its last part alone."""
    if isinstance(note, list):
        return [without_folders(value) for value in note]
    if not isinstance(note, dict):
        return note
    return {
        key: re.split(r"[/\\]", value.rstrip("/\\"))[-1]
        if key == "dataset" and isinstance(value, str)
        else without_folders(value)
        for key, value in note.items()
    }


@dataclasses.dataclass(frozen=True)
class _Scores:
    stats: dict[str, float | None]


@dataclasses.dataclass(frozen=True)
class _Metrics:
    """What a card shows of a metrics.json."""

    metrics: dict[str, _Scores]
    dataset: dict[str, Any]


def _read_metrics(path: Path) -> _Metrics:
    from clipvis_jax.io.json_text import read_json

    metrics: _Metrics = read_json(path, _Metrics, _METRICS_ADVICE)
    return metrics


def model_card(repository: str, model: "ModelFolder", *, metrics: _Metrics | None, license_name: str | None) -> str:
    """Write the README of a model on the hub.

    Args:
        repository: "org/name".
        model: The model.
        metrics: Its scores, if known.
        license_name: Its licence, as the hub calls it; None if nobody says.
    """
    from clipvis_jax.weights.published_sizes import describe

    scores = ["Not evaluated."]
    if metrics is not None:
        scores = [f"On {printable(str(metrics.dataset.get('name')))}:", "", "| protocol | score | % |", "|---|---|---|"]
        scores += [
            f"| {_cell(protocol)} | {_cell(name)} | {'-' if value is None else f'{100 * value:.1f}'} |"
            for protocol, group in metrics.metrics.items()
            for name, value in group.stats.items()
        ]
    return "\n".join(
        [
            "---",
            *([] if license_name is None else [f"license: {license_name}"]),
            "library_name: clipvis_jax",
            "tags: [clip-vis, video-instance-segmentation, open-vocabulary, jax]",
            "---",
            f"# {repository}",
            "",
            "Give it a video and any class names: it segments, tracks and names every instance (CLIP-VIS,",
            "[arXiv 2403.12455](https://arxiv.org/abs/2403.12455)).",
            f"{describe(model.config)}.",
            "",
            "## How to run it",
            "",
            "```",
            f'clipvis predict clip.mp4 --model hf://{repository} --classes "dog, puppy" kettle --out out',
            "```",
            "",
            "```python",
            "import clipvis_jax",
            "",
            f'segmenter = clipvis_jax.load("hf://{repository}")',
            'result = segmenter.predict("clip.mp4", classes=["dog, puppy", "kettle"], background="auto")',
            "```",
            "",
            "## Scores",
            "",
            *scores,
            "",
            "## Data and weights that it was made of",
            "",
            "```json",
            json.dumps(model.source, indent=2),
            "```",
            "",
            "## Licence",
            "",
            f"{license_name or 'None is stated'}. The licences of CLIP's weights and of the data may add to it.",
            "",
        ]
    )


def _cell(text: str) -> str:
    return printable(text).replace("|", "\\|")

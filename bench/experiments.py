"""The experiment of docs/experiments.md: scores models of several training seeds and switches their parts one by one.

    python -m bench.experiments                              the bundled model
    python -m bench.experiments MODEL MODEL MODEL            one model folder for each seed
    python -m bench.experiments --document docs/experiments.md MODEL ...     (the project's own document)

Runs `clipvis eval` and `clipvis ablate`, and writes their scores between the two marks of the document, by default
build/experiments.md, which begins as a copy of the project's; what stands around the marks stays. Started again it goes
on where it was stopped.
"""

import argparse
import csv
import json
import os
import shlex
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from clipvis_jax import bundled
from clipvis_jax.cli import main as clipvis
from clipvis_jax.data.catalog import DRAWN
from clipvis_jax.errors import InputError
from clipvis_jax.io.files import atomic_path, prepare_output_dir, write_text
from clipvis_jax.text.vocabulary import PROMPT_TEMPLATES
from clipvis_jax.weights.model_folder import hash_variables, load_model

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "experiments.md"
BEGIN = "<!-- Written by `make ablation` from here on: edits are lost. -->"
END = "<!-- Written by `make ablation` up to here. -->"

DATASETS = {"val": "shapes_val", "test": "shapes_test", "fast": "shapes_fast", "occlusion": "shapes_occlusion"}
ABLATED = ("val", "fast", "occlusion")
"""The data sets whose settings are switched; of test there are the main scores only."""
PARTS = ("base", "novel", "unseen")
COLUMNS = ("AP", "AP50", "AP base", "AP novel", "AP unseen")
TITLES = {
    "components": "Components",
    "weights": "Weights of the classes",
    "matching": "Matching",
    "K": "Best frames K of the track history",
    "T": "Length T of the track history",
    "templates": "Prompt templates",
}
METHOD = ("components", "+ mask IoU (the method)")
DIFFERENCES = (
    # What, one score (table, setting, column), the score that it is compared with.
    (
        "top-K matching instead of the previous frame",
        ("components", "+ top-K matching", "AP"),
        ("components", "baseline: previous frame, no weights", "AP"),
    ),
    ("objectness in the score", ("components", "+ objectness", "AP"), ("components", "+ top-K matching", "AP")),
    ("mask IoU in the score", (*METHOD, "AP"), ("components", "+ objectness", "AP")),
    (
        "top-K of the history instead of all of it",
        ("matching", "top-K of the history", "AP"),
        ("matching", "all of the history", "AP"),
    ),
    ("K = 5 instead of 1", ("K", "5", "AP"), ("K", "1", "AP")),
    ("T = 9 instead of 1", ("T", "9", "AP"), ("T", "1", "AP")),
    (
        f"{len(PROMPT_TEMPLATES)} templates instead of the name alone",
        ("templates", f"{len(PROMPT_TEMPLATES)} templates", "AP"),
        ("templates", "name alone", "AP"),
    ),
    ("novel classes against base classes", (*METHOD, "AP novel"), (*METHOD, "AP base")),
    ("unseen classes against base classes", (*METHOD, "AP unseen"), (*METHOD, "AP base")),
)


@dataclass(frozen=True)
class Run:
    """The commands for one model, and where their results go."""

    number: int
    model: Path
    digest: str
    out: Path
    limit: int | None = None

    def folder(self, what):
        # By weights, so that results of other models may lie beside.
        return self.out / self.digest[:12] / what

    def evaluation(self, dataset):
        """Return the arguments of ``clipvis`` that score the model on a data set."""
        return self._command("eval", dataset, dataset)

    def ablation(self, dataset):
        """Return the arguments of ``clipvis`` that switch the model's parts on a data set."""
        return self._command("ablate", dataset, f"ablation_{dataset}")

    def commands(self):
        """Return the arguments of all commands, in order."""
        return [*map(self.evaluation, DATASETS), *map(self.ablation, ABLATED)]

    def _command(self, command, dataset, folder):
        options = {"model": self.model, "dataset": DATASETS[dataset], "size": bundled.SIZE, "out": self.folder(folder)}
        if self.limit is not None:
            options["limit"] = self.limit
        return [command, *(text for name, value in options.items() for text in (f"--{name}", str(value)))]


@dataclass(frozen=True)
class Scores:
    """What the commands found for one model.

    By data set ``metrics`` has metrics.json, and ``ablations`` the rows of ablation.csv by table and setting: scores
    0..1 by column, None where there is no ground truth.
    """

    run: Run
    metrics: dict[str, dict]
    ablations: dict[str, dict[tuple[str, str], dict[str, float | None]]]


def digest_models(models):
    """Return the digests of the models' weights; none may be missing or come twice, before hours go into the first.

    Raises:
        InputError: One is missing or damaged, or the same as another one.
    """
    seen = {}
    for model in models:
        folder = load_model(model)
        digest = hash_variables({"clip_vars": folder.clip_vars, "params": folder.params})
        if digest in seen:
            raise InputError(f"{model}: the same weights as {seen[digest]}; give every model once")
        seen[digest] = model
    return list(seen)


def run_commands(run):
    """Run all commands for one model; leaves what is finished.

    Raises:
        SystemExit: A command failed, and has said why.
    """
    for arguments in run.commands():
        print(f"\n$ clipvis {shlex.join(arguments)}", flush=True)
        if code := clipvis(arguments):
            sys.exit(code)


def read_scores(run):
    """Read what the commands for one model have written."""
    metrics, ablations = {}, {}
    for dataset in DATASETS:
        metrics[dataset] = json.loads((run.folder(dataset) / "metrics.json").read_bytes())
    for dataset in ABLATED:
        with (run.folder(f"ablation_{dataset}") / "ablation.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        ablations[dataset] = {
            (row["table"], row["setting"]): {name: float(row[name]) if row[name] else None for name in COLUMNS}
            for row in rows
        }
    return Scores(run, metrics, ablations)


# --- the document


def spread(values, *, sign=False):
    """Write scores 0..1 of several models in percent: the mean, and in brackets the smallest and the largest."""
    if any(value is None for value in values):
        return "-"
    mean, low, high = (f"{100 * f(values):{'+' if sign else ''}.1f}" for f in (statistics.fmean, min, max))
    return mean if len(values) == 1 else f"{mean} ({low} to {high})"


def markdown_table(head, rows, *, num_labels=1):
    """Write a table; columns after the labels are numbers."""
    rule = ["---"] * num_labels + ["---:"] * (len(head) - num_labels)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows)) + "\n"


def command_block(*commands):
    return "\n".join(["```", *(f"clipvis {shlex.join(arguments)}" for arguments in commands), "```", ""])


def main_scores(metrics):
    """Return the scores of one model: those of ``COLUMNS``, novel by base, with oracle names, with oracle masks."""
    scores = metrics["metrics"]["shapes"]
    base, novel, unseen = (scores["groups"][name]["AP"] for name in PARTS)
    ratio = novel / base if base and novel is not None else None
    oracles = [metrics[name]["AP"] for name in ("oracle_names", "oracle_masks")]
    return [scores["stats"]["AP"], scores["stats"]["AP50"], base, novel, unseen, ratio, *oracles]


def class_agnostic_scores(metrics):
    """Return the class-agnostic scores of one model: AP, recall, recall of each part's objects."""
    found = metrics["class_agnostic"]
    return [found["stats"]["AP"], found["stats"]["AR100"], *(found["groups"][name]["AR100"] for name in PARTS)]


def write_conditions(models):
    """Say what the numbers rest on."""
    first = models[0]
    limit = first.run.limit
    totals = {dataset: DRAWN[name].count for dataset, name in DATASETS.items()}
    videos = ", ".join(f"{min(limit or n, n)} of the {n} videos of {dataset}" for dataset, n in totals.items())
    metrics = first.metrics["val"]
    versions = metrics["versions"]
    numbers = (
        f"with {len(models)} models a number is their mean, and the brackets hold the smallest and the largest"
        if len(models) > 1
        else "a single model, so nothing is known about the spread over seeds"
    )
    rows = []
    for model in models:
        found = model.metrics["val"]["model"]
        source = found["source"] or {}
        # Decoders that were trained on under their CLIP name it where they were begun.
        stage = source
        while "clip" not in stage and "init_from" in stage:
            stage = stage["init_from"]
        seeds = [(part.get("config") or {}).get("seed", "-") for part in (source, stage.get("clip") or {})]
        rows.append(
            [str(model.run.number), f"`{found['folder']}`", *map(str, seeds), f"`{found['weights_sha256'][:12]}`"]
        )
    return (
        f"Scores in percent, on {videos}; {numbers}. clipvis_jax {versions['clipvis_jax']}, jax {versions['jax']}, "
        f"{metrics['device']}.\n\n"
        + markdown_table(["model", "folder", "seed of the decoders", "seed of CLIP", "weights"], rows, num_labels=5)
        + "\nCommands are those of model 1; another model has its folder after `--model` and its weights in `--out`.\n"
    )


def write_main_tables(models, dataset):
    """Write the scores on a data set, model by model."""
    metrics = [model.metrics[dataset] for model in models]
    main = model_table(models, [*COLUMNS, "novel / base", "oracle names", "oracle masks"], map(main_scores, metrics))
    head = ["AP", "AR100", *(f"AR100 {part}" for part in PARTS)]
    found = model_table(models, head, map(class_agnostic_scores, metrics))
    return (
        f"### Main scores, {dataset}\n\n{main}\nClass-agnostic: how well objects are found, whatever they are called."
        f"\n\n{found}\n{command_block(models[0].run.evaluation(dataset))}"
    )


def model_table(models, head, scores):
    """Write a table with a row for each model, and one for all of them if there are several."""
    table = list(scores)
    rows = [[str(model.run.number), *(spread([x]) for x in row)] for model, row in zip(models, table, strict=True)]
    if len(models) > 1:
        rows.append(["all", *(spread(values) for values in zip(*table, strict=True))])
    return markdown_table(["model", *head], rows)


def write_differences(models):
    """Write by how much the method's choices change AP: differences within each model, then their mean."""
    rows = []
    for what, better, worse in DIFFERENCES:
        cells = []
        for dataset in ABLATED:
            pairs = [
                [model.ablations[dataset][table, setting][column] for table, setting, column in (better, worse)]
                for model in models
            ]
            if any(None in pair for pair in pairs):
                cells.append("-")
                continue
            changes = [high - low for high, low in pairs]
            count = f", above 0 in {sum(x > 0 for x in changes)} of {len(changes)}" if len(changes) > 1 else ""
            cells.append(spread(changes, sign=True) + count)
        rows.append([what, *cells])
    commands = command_block(*(models[0].run.ablation(dataset) for dataset in ABLATED))
    return f"### What each choice changes, AP\n\n{markdown_table(['choice', *ABLATED], rows)}\n{commands}"


def write_ablation(models, table):
    """Write one table of the ablations, of all data sets."""
    rows = []
    for dataset in ABLATED:
        for key in models[0].ablations[dataset]:
            if key[0] == table:
                cells = [spread([model.ablations[dataset][key][name] for model in models]) for name in COLUMNS]
                rows.append([dataset, key[1], *cells])
    commands = command_block(*(models[0].run.ablation(dataset) for dataset in ABLATED))
    head = ["data set", table, *COLUMNS]
    return f"### {TITLES[table]}\n\n{markdown_table(head, rows, num_labels=2)}\n{commands}"


def write_tables(models, plot_name):
    """Write all that stands between the marks of the document."""
    parts = [write_conditions(models), *(write_main_tables(models, dataset) for dataset in DATASETS)]
    parts += [write_differences(models)]
    parts += [write_ablation(models, table) for table in TITLES]
    bars = "; bars from the smallest to the largest of all models" if len(models) > 1 else ""
    plot = f"### K and T\n\n![AP over K and over T, on val, fast and occlusion](images/{plot_name})\n\n"
    return "\n".join([*parts, f"{plot}The AP columns of the tables of K and T{bars}.\n"])


def replace_between_marks(text, tables, source):
    """Put new tables between the marks of a document.

    Raises:
        InputError: The marks are not there, once each and in order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end) or BEGIN in rest or END in before + after:
        raise InputError(f"{source}: needs the lines '{BEGIN}' and '{END}', once each and in this order")
    return f"{before}{BEGIN}\n\n{tables}\n{END}{after}"


def plot_curves(path, models):
    """Draw AP over K and over T, of all data sets, as SVG; the same scores give the same file."""
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    for axes, table in zip(figure.subplots(1, 2, sharey=True), ("K", "T"), strict=True):
        for dataset in ABLATED:
            keys = [key for key in models[0].ablations[dataset] if key[0] == table]
            curves = [[100 * model.ablations[dataset][key]["AP"] for model in models] for key in keys]
            numbers = [int(setting) for _, setting in keys]
            (line,) = axes.plot(numbers, list(map(statistics.fmean, curves)), marker="o", label=dataset)
            if len(models) > 1:
                axes.vlines(numbers, list(map(min, curves)), list(map(max, curves)), color=line.get_color())
            axes.set(xlabel=table, xticks=numbers)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("AP, %")
    # Beside the panels, where it hides no bar.
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right upper")
    with atomic_path(path) as temporary, mpl.rc_context({"svg.hashsalt": "clipvis"}):
        figure.savefig(temporary, format="svg", metadata={"Date": None})


def read_document(path):
    """Read the document, or the project's if there is none yet, and make sure that tables can be put into it.

    Raises:
        InputError: It cannot be read or lacks the marks.
    """
    try:
        text = (path if path.exists() else DOCUMENT).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error.reason
        raise InputError(f"{path}: cannot be read ({reason}); copy docs/experiments.md there") from error
    replace_between_marks(text, "", path)
    return text


def plot_folder(document):
    """Return the folder of the document's plot, which is made if it is not there.

    Raises:
        InputError: It cannot be made or written to.
    """
    return prepare_output_dir(document.parent / "images")


def write_document(path, models):
    """Write the scores of all models into the document, and the plot beside it."""
    plot = plot_folder(path) / f"{path.stem}.svg"
    plot_curves(plot, models)
    text = replace_between_marks(read_document(path), write_tables(models, plot.name), path)
    write_text(path, text)
    print(f"\nwrote {path} and {plot}")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path, metavar="MODEL", help="model folder (default: the bundled one)")
    parser.add_argument("--out", type=Path, default=Path("build/experiments"), help="where the results go")
    parser.add_argument("--limit", type=int, metavar="N", help="use the first N videos of each data set only")
    parser.add_argument(
        "--document", type=Path, default=Path("build/experiments.md"), help="where the tables go (default: %(default)s)"
    )
    options = parser.parse_args(argv)
    # The path as a user would write it: commands stand in the document.
    models = options.models or [Path(os.path.relpath(bundled.MODEL))]
    try:
        runs = [
            Run(number, model, digest, options.out, options.limit)
            for number, (model, digest) in enumerate(zip(models, digest_models(models), strict=True), start=1)
        ]
        read_document(options.document)
        plot_folder(options.document)
        for run in runs:
            run_commands(run)
        write_document(options.document, [read_scores(run) for run in runs])
    except InputError as error:
        print(f"bench.experiments: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

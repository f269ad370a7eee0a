"""clipvis eval: predictions, resuming, scores, archives, bad input."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from free_port import free_port
from PIL import Image
from small_videos import CATEGORIES, perfect_results, write_videos
from tiny import tiny_model_folder

from clipvis_jax.cli import main
from clipvis_jax.data.catalog import open_dataset
from clipvis_jax.errors import InputError
from clipvis_jax.evaluation.best_score import BestScore, BestScores, ScoreCurves
from clipvis_jax.evaluation.inputs import GroundTruth, Video, parse_results
from clipvis_jax.evaluation.protocols import PROTOCOLS
from clipvis_jax.evaluation.submission import write_submission
from clipvis_jax.inference.dataset_run import DatasetFrames, RunFolder, order_by_size, predict_dataset
from clipvis_jax.inference.loading import load
from clipvis_jax.inference.segmenter import InferenceConfig
from clipvis_jax.masks.resize import encode_rle
from clipvis_jax.weights.model_folder import load_model

SIZE = "64"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model_folder(tmp_path_factory.mktemp("model") / "tiny", "rn")


@pytest.fixture(scope="module")
def annotations(tmp_path_factory):
    return write_videos(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="module")
def finished(model, annotations, tmp_path_factory):
    """The folder of a whole evaluation."""
    out = tmp_path_factory.mktemp("eval") / "out"
    assert evaluate(annotations, out, "--model", model, "--size", SIZE, "--overlays", 1) == 0
    return out


@pytest.fixture(scope="module")
def segmenter(model):
    return load(model, config=InferenceConfig(size=int(SIZE), window=1))


def evaluate(annotations, out, *options):
    return main(["eval", "--dataset", str(annotations), "--out", str(out), *map(str, options)])


def test_results_are_those_of_single_videos(finished, annotations, segmenter):
    results = json.loads((finished / "results.json").read_text())
    dataset = open_dataset(annotations)
    expected = []
    for index in range(len(dataset)):
        frames = [image for _, image in DatasetFrames(dataset, index)]
        result = segmenter.predict_video(frames, ["cat", "dog", "bird"])
        expected += result.to_ytvis(dataset[index].id, [3, 5, 9])
    assert results == expected
    assert {record["category_id"] for record in results} <= {3, 5, 9}


def test_what_is_written(finished, model):
    metrics = json.loads((finished / "metrics.json").read_text())
    assert metrics["dataset"]["videos"] == metrics["dataset"]["of_videos"] == 3
    assert len(metrics["dataset"]["digest"]) == len(metrics["model"]["weights_sha256"]) == 64
    assert metrics["model"]["folder"] == str(model)
    assert metrics["config"]["size"] == 64
    assert {"jax", "numpy", "clipvis_jax", "python"} <= metrics["versions"].keys()
    assert 0 <= metrics["metrics"]["ytvis"]["stats"]["AP"] <= 1
    assert [c["name"] for c in metrics["metrics"]["ytvis"]["categories"]] == ["cat", "dog", "bird"]
    assert "<html" in (finished / "report.html").read_text()
    assert (finished / "overlays" / "10.mp4").stat().st_size > 0
    assert not (finished / "overlays" / "11.mp4").exists()
    assert not (finished / "submission.zip").exists()


def test_finished_videos_are_not_computed_again(finished, annotations, model, capsys):
    before = {path: path.stat().st_mtime_ns for path in (finished / "videos").iterdir()}
    results = (finished / "results.json").read_bytes()
    assert evaluate(annotations, finished, "--model", model, "--size", SIZE, "--no-report") == 0
    assert {path: path.stat().st_mtime_ns for path in (finished / "videos").iterdir()} == before
    assert (finished / "results.json").read_bytes() == results


def test_overlays_may_be_asked_for_later(finished, annotations, model, tmp_path):
    shutil.copytree(finished, tmp_path / "out")
    out = tmp_path / "out"
    before = {path.name: path.stat().st_mtime_ns for path in [*out.glob("videos/*"), *out.glob("overlays/*")]}
    assert evaluate(annotations, out, "--model", model, "--size", SIZE, "--no-report", "--overlays", 2) == 0
    assert (out / "overlays" / "11.mp4").stat().st_size > 0
    assert not (out / "overlays" / "12.mp4").exists()
    after = {path.name: path.stat().st_mtime_ns for path in [*out.glob("videos/*"), *out.glob("overlays/*")]}
    assert {name for name in after if after[name] != before.get(name)} == {"000001.json", "11.mp4"}
    assert (out / "results.json").read_bytes() == (finished / "results.json").read_bytes()


def test_a_threshold_is_noted_in_the_model_and_a_limit_told(finished, annotations, model, capsys, monkeypatch):
    """No video is computed again: the run is a finished one."""
    out, own = finished, finished.parent / "model"
    shutil.copytree(model, own)
    config = finished.parent / "config.py"
    config.write_text(
        "from clipvis_jax.training.task import *\n"
        f"evaluation = EvaluationConfig({str(annotations)!r}, limit=1, inference=InferenceConfig(size={SIZE}))\n"
        "config = ClipVisExperiment(evaluation=evaluation)\n"
    )
    found = {"best": None}
    monkeypatch.setattr("clipvis_jax.evaluation.summary.find_best_scores", lambda *_: found["best"])
    command = ["eval", str(config), "--model", str(own), "--out", str(out), "--no-report", "--write-threshold"]
    assert main(command) == 0
    said = capsys.readouterr().out.replace("\n", " ")
    assert "has evaluation.limit 1, which is for scores while training; here all 3 are evaluated" in said
    assert "stays as it was, since no result is right" in said
    assert load_model(own).run_defaults.min_score is None
    curve = np.zeros(101)
    found["best"] = BestScores(BestScore(0.4329, 0.5, 0.5, 0.5), {}, ScoreCurves(curve, curve, curve))
    assert main(command) == 0
    assert load_model(own).run_defaults.min_score == 0.432
    assert main(["eval", "--metrics-only", str(out / "results.json"), "--write-threshold"]) == 2
    assert "--write-threshold: needs --model" in capsys.readouterr().err


def test_a_threshold_that_cannot_be_found_is_refused(annotations, model, tmp_path, capsys, monkeypatch):
    options = annotations, tmp_path / "out", "--model", model, "--write-threshold"
    monkeypatch.setattr("clipvis_jax.evaluation.scoring_rules", lambda *_: ([PROTOCOLS["lvis"]], {}))
    assert evaluate(*options) == 2
    assert "--write-threshold: by the rules of LVIS" in capsys.readouterr().err
    none = property(lambda _: False, lambda *_: None)
    monkeypatch.setattr("clipvis_jax.data.raw.RawDataset.has_annotations", none, raising=False)
    assert evaluate(*options) == 2
    assert "has no annotations to find one by" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_another_model_or_setting_is_refused(finished, annotations, model, capsys):
    assert evaluate(annotations, finished, "--model", model, "--size", 96) == 2
    assert "holds results of another run (other settings)" in capsys.readouterr().err


def test_limit(annotations, model, tmp_path):
    assert evaluate(annotations, tmp_path, "--model", model, "--size", SIZE, "--limit", 1, "--no-report") == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert {record["video_id"] for record in results} == {10}
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["metrics"]["ytvis"]["categories"][1]["AP"] is None  # no dog in the first video


def run_process(annotations, out, model, *options, program=("-m", "clipvis_jax.cli")):
    command = [sys.executable, *program, "eval", "--dataset", annotations, "--model", model]
    command += ["--size", SIZE, "--out", out, *options]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    return subprocess.Popen(list(map(str, command)), env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_killed_and_started_again(finished, annotations, model, tmp_path):
    """The same results, whether the run was killed or not."""
    process = run_process(annotations, tmp_path, model)
    videos = tmp_path / "videos"
    while not (videos.is_dir() and any(path.suffix == ".json" for path in videos.glob("[0-9]*"))):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "results.json").exists() or process.returncode == 0
    again = run_process(annotations, tmp_path, model)
    _, error = again.communicate()
    assert again.returncode == 0, error
    assert (tmp_path / "results.json").read_bytes() == (finished / "results.json").read_bytes()
    again = json.loads((tmp_path / "metrics.json").read_text())
    first = json.loads((finished / "metrics.json").read_text())
    assert again["metrics"] == first["metrics"]


DELAYED = """
import sys, time
import jax
from clipvis_jax.cli import main
from clipvis_jax.inference import dataset_run
number, seconds = int(sys.argv.pop(1)), float(sys.argv.pop(1))
decode_frame = dataset_run.decode_frame
def delayed(*given):
    global seconds
    if jax.process_index() == number:
        time.sleep(seconds)
        seconds = 0
    return decode_frame(*given)
dataset_run.decode_frame = delayed
sys.exit(main())
"""


def run_two_processes(annotations, out, model, *, late, seconds):
    """Start two processes, of which one has its first frame later than the other."""
    port = free_port()
    shared = ["--distributed.coordinator", f"localhost:{port}", "--distributed.num-processes", 2]
    program = ["-c", DELAYED, late, seconds]
    return [
        run_process(annotations, out, model, *shared, "--distributed.process-id", number, program=program)
        for number in range(2)
    ]


def errors_of(processes):
    try:
        return [process.communicate(timeout=600)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()  # does nothing to one that has ended


@pytest.mark.slow
def test_two_processes_share_the_videos(finished, annotations, model, tmp_path):
    """And one waits for the other, for more than a minute."""
    errors = errors_of(processes := run_two_processes(annotations, tmp_path, model, late=1, seconds=61))
    assert [process.returncode for process in processes] == [0, 0], errors
    assert (tmp_path / "results.json").read_bytes() == (finished / "results.json").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "video"), [(0, 0), (1, 2)])
def test_an_error_of_one_process_ends_the_other(annotations, model, tmp_path, number, video):
    """Wherever that one is; it would take an hour."""
    shutil.copytree(annotations.parent, tmp_path / "videos")
    (tmp_path / "videos" / "JPEGImages" / f"v{video}" / "00001.png").write_bytes(b"no picture")
    copy = tmp_path / "videos" / annotations.name
    errors = errors_of(processes := run_two_processes(copy, tmp_path / "out", model, late=1 - number, seconds=3600))
    assert [process.returncode for process in processes] == [2, 2], errors
    # Lines of XLA may stand among them.
    said = [[line for line in error.splitlines() if line.startswith(("clipvis: ", "Traceback"))] for error in errors]
    (own,), (other,) = said[number], said[1 - number]
    assert own.startswith(f"clipvis: error: instances: v{video}/00001.png: ")
    assert other == own.replace("error: ", f"error: process {number}: ", 1)


def test_shares_cover_all_videos_once(segmenter, annotations, tmp_path, monkeypatch):
    dataset = open_dataset(annotations)
    computed = []
    monkeypatch.setattr("jax.process_count", lambda: 2)
    for number in range(2):
        monkeypatch.setattr("jax.process_index", lambda number=number: number)
        run = RunFolder(tmp_path, {})
        predict_dataset(segmenter, dataset, run, 3, on_result=lambda index, result, frames: computed.append(index))
    assert sorted(computed) == [0, 1, 2]


def test_videos_of_one_size_follow_each_other(segmenter, annotations):
    dataset = open_dataset(annotations)
    order = order_by_size(segmenter, dataset, 3)
    assert sorted(order) == [0, 1, 2]
    sizes = [segmenter.config.sizes(*dataset.video_sizes()[i][:2]).padded_size for i in order]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == 2


def test_perfect_results_score_one(annotations, tmp_path, capsys):
    results = tmp_path / "results.json"
    results.write_text(json.dumps(perfect_results(annotations)))
    assert evaluate(annotations, tmp_path / "out", "--metrics-only", results, "--protocol", "lvvis") == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["metrics"]["lvvis"]["stats"]["AP"] == 1
    assert metrics["metrics"]["lvvis"]["groups"]["novel"]["AP"] == 1
    assert metrics["class_agnostic"]["stats"]["AP"] == metrics["class_agnostic"]["groups"]["novel"]["AR100"] == 1
    assert metrics["oracle_names"]["AP"] == metrics["oracle_masks"]["AP"] == 1
    assert "100.0" in capsys.readouterr().out
    assert not (tmp_path / "out" / "results.json").exists()


def test_empty_results_score_zero(annotations, tmp_path):
    results = tmp_path / "results.json"
    results.write_text("[]")
    assert evaluate(annotations, tmp_path / "out", "--metrics-only", results) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["metrics"]["ytvis"]["stats"]["AP"] == 0


def test_limit_leaves_out_results_of_other_videos(annotations, tmp_path, capsys):
    results = tmp_path / "results.json"
    records = perfect_results(annotations)
    results.write_text(json.dumps(records))
    assert evaluate(annotations, tmp_path / "out", "--metrics-only", results, "--limit", 1, "--no-report") == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["metrics"]["ytvis"]["stats"]["AP"] == pytest.approx(1)
    assert metrics["dataset"]["videos"] == 1
    assert metrics["results"]["count"] == sum(record["video_id"] == 10 for record in records)
    results.write_text(json.dumps([*records, records[0] | {"video_id": 99}]))
    assert evaluate(annotations, tmp_path / "out", "--metrics-only", results, "--limit", 1, "--no-report") == 2
    assert f"results[{len(records)}].video_id is 99; instances has no such video" in capsys.readouterr().err


@pytest.fixture
def test_set(annotations):
    """The annotation file of a data set without annotations."""
    content = json.loads(annotations.read_text())
    del content["annotations"]
    path = annotations.parent / "test.json"
    path.write_text(json.dumps(content))
    return path


def read_archive(path):
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["results.json"]
        return json.loads(archive.read("results.json"))


def test_test_set_gives_an_archive_and_no_scores(test_set, model, tmp_path, capsys):
    assert evaluate(test_set, tmp_path, "--model", model, "--size", SIZE, "--limit", 1) == 0
    assert read_archive(tmp_path / "submission.zip") == json.loads((tmp_path / "results.json").read_text())
    printed = capsys.readouterr().out
    assert "no public annotations" in printed
    assert "submission.zip: has 1 of 3 videos; leave out --limit for a server" in printed
    assert not (tmp_path / "metrics.json").exists()


def test_archive_of_results_that_are_there(test_set, annotations, tmp_path, capsys):
    records = perfect_results(annotations)
    records[0]["segmentations"][1] = None
    tracks = tmp_path / "tracks.json"
    named = [record | {"category_name": "x", "track_id": 1} for record in records]
    tracks.write_text(json.dumps({"info": {}, "categories": CATEGORIES, "results": named}))
    assert evaluate(test_set, tmp_path / "out", "--metrics-only", tracks) == 0
    assert read_archive(tmp_path / "out" / "submission.zip") == records
    assert "submission.zip: ready for a server" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no results", "r.json: is not valid JSON"),
        ("{}", "r.json: has no 'results'"),
        ('[{"video_id": 10, "category_id": 4}]', "r.json: results[0].category_id is 4; test has no such category"),
        ('[{"video_id": 9, "category_id": 3}]', "r.json: results[0].video_id is 9; test has no such video"),
        (None, "r.json: cannot be read (No such file or directory)"),
        ("folder", "r.json: is not a regular file; give"),
    ],
)
def test_nothing_else_becomes_an_archive(test_set, tmp_path, capsys, content, message):
    results = tmp_path / "r.json"
    if content == "folder":
        results.mkdir()
    elif content is not None:
        results.write_text(content)
    assert evaluate(test_set, tmp_path / "out", "--metrics-only", results) == 2
    printed = capsys.readouterr()
    assert message in printed.err.splitlines()[-1]
    assert "ready for" not in printed.out
    assert not (tmp_path / "out" / "submission.zip").exists()


def test_archive_is_a_function_of_the_results_and_has_a_limit(tmp_path):
    rng = np.random.default_rng(0)
    size = [200, 200]
    masks = [encode_rle(rng.random(size) < 0.5) for _ in range(3)]
    records = [{"video_id": 1, "category_id": 1, "score": 0.5, "segmentations": masks}]
    truth = GroundTruth("truth", {1: Video(1, *size, 3)}, {1: {"id": 1}}, [])
    results = parse_results(records, truth)
    write_submission(tmp_path / "a.zip", results, truth.videos, max_megabytes=0.06)
    write_submission(tmp_path / "b.zip", results, truth.videos)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with pytest.raises(InputError, match=r"c\.zip: would have 0\.0 MB, but the server takes 0\.001 MB"):
        write_submission(tmp_path / "c.zip", results, truth.videos, max_megabytes=0.001)
    assert not (tmp_path / "c.zip").exists()


def change(annotations, tmp_path, edit):
    """Copy the data set with its images by reference, and edit its annotations."""
    content = json.loads(annotations.read_text())
    edit(content)
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c["videos"][0].update(width=151), "(video 10) is 150x96 pixels, but the annotations say 151x96"),
        (lambda c: c["videos"][0]["file_names"].__setitem__(0, "v0/gone.png"), "gone.png"),
    ],
)
def test_unusable_frames(annotations, model, tmp_path, capsys, edit, message):  # noqa: PLR0917
    def edit_without_masks(content):
        del content["annotations"]
        edit(content)

    changed = change(annotations, tmp_path, edit_without_masks)
    images = annotations.parent / "JPEGImages"
    assert evaluate(changed, tmp_path / "out", "--model", model, "--size", SIZE, "--images", images) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("clipvis: error:")
    assert message in error
    assert not (tmp_path / "out" / "results.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give either --model, to run it, or --metrics-only"),
        (["--model", "m", "--metrics-only", "r"], "give either"),
        (["--metrics-only", "r", "--limit", "0"], "--limit 0: must be 1 or more"),
        (["--metrics-only", "r", "--overlays", "-1"], "--overlays -1: must be 0 or more"),
        (["--metrics-only", "r", "--overlays", "1"], "--overlays: needs --model"),
        (["--metrics-only", "missing.json"], "missing.json: cannot be read"),
        (["--model", "missing_model"], "missing_model: no such folder"),
    ],
)
def test_unusable_options(annotations, tmp_path, capsys, options, message):
    assert evaluate(annotations, tmp_path / "out", *options) == 2
    assert message in capsys.readouterr().err


def test_a_configuration_that_trains_clip_alone(annotations, tmp_path, capsys):
    config = Path(__file__).parents[2] / "configs" / "shapes_clip.py"
    assert main(["eval", str(config), "--model", "m", "--out", str(tmp_path)]) == 2
    assert f"clipvis: error: {config}: trains CLIP alone" in capsys.readouterr().err


def without_partition(content):
    del content["categories"][1]["partition"]


@pytest.mark.parametrize(
    ("edit", "options", "message"),
    [
        (without_partition, ["--protocol", "lvvis"], "category 5 has no 'partition', by which the protocol 'lvvis'"),
        (lambda content: None, ["--burst-official"], "changed.json: has no 'sequences'; BURST's own metrics need"),
    ],
)
def test_scoring_is_checked_before_the_work(annotations, model, tmp_path, capsys, edit, options, message):  # noqa: PLR0917
    changed = change(annotations, tmp_path, edit)
    options = ["--size", SIZE, "--images", annotations.parent / "JPEGImages", *options]
    assert evaluate(changed, tmp_path / "out", "--model", model, *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_trackeval_is_looked_for_before_the_work(annotations, model, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackeval", None)
    assert evaluate(annotations, tmp_path / "out", "--model", model, "--burst-official") == 2
    assert "pip install 'clipvis-jax[burst]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("video_id", 99, "no such video"),
        ("category_id", 99, "no such category"),
        ("score", float("nan"), "a finite number is needed"),
        ("score", float("inf"), "a finite number is needed"),
        ("segmentations", [None], "has 1 masks, but video 10 has 5 frames"),
    ],
)
def test_unusable_results(annotations, tmp_path, capsys, field, value, message):  # noqa: PLR0917
    records = perfect_results(annotations)
    records[0][field] = value
    results = tmp_path / "results.json"
    results.write_text(json.dumps(records))
    assert evaluate(annotations, tmp_path / "out", "--metrics-only", results) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "results.json" in error


def test_damaged_files_of_a_run(finished, annotations, model, tmp_path, capsys):
    run = RunFolder(tmp_path, {"a": 1})
    run.write(0, [])
    path = tmp_path / "videos" / "000000.json"
    whole = path.read_text()
    assert run.has(0)
    assert not run.has(1)
    for text in ("", "[{", "{}", "[]", "null", "5", whole.replace("[]", "[{}]"), whole.replace("results", "result")):
        path.write_text(text)
        with pytest.warns(UserWarning, match=r"000000\.json: [^\n]*; run the same command again; it is computed again"):
            assert not run.has(0)
        with pytest.raises(InputError, match=r"000000\.json: [^\n]*; run the same command again"):
            run.merge(tmp_path / "results.json", [0])
    assert not (tmp_path / "results.json").exists()
    for text in ("{", "", "[]", "null", "5", '"a"', "[" * 10_000):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(InputError, match=r"run\.json: [^\n]*; choose another folder or delete the folder"):
            RunFolder(tmp_path, {"a": 1})


def test_images_of_a_video_keep_their_pixels(annotations):
    dataset = open_dataset(annotations)
    frames = DatasetFrames(dataset, 1)
    name = annotations.parent / "JPEGImages" / frames.record.file_names[2]
    assert np.array_equal(list(frames)[2][1], np.asarray(Image.open(name)))
    assert (frames.name, frames.kind, frames.expected_frames) == ("video 11", "folder", 3)
    assert len(CATEGORIES) == len(dataset.categories)

"""``clipvis export-results``: what it writes is read back with the formats' own tools where they are installed."""

import contextlib
import csv
import functools
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from clipvis_jax.cli import main
from clipvis_jax.inference.results import Track, TrackMasks, VideoResult
from clipvis_jax.masks.resize import encode_rle
from clipvis_jax.media.video_reader import open_frames

HEIGHT, WIDTH, NUMBERS = 24, 40, [2, 4, 6]
NAMES = ("unseen", "<b>dog</b>, puppy", "=cat")


def masks_of_scene():
    """Two tracks; the second shows from the second frame on, partly over the first."""
    masks = np.zeros((2, 3, HEIGHT, WIDTH), bool)
    for frame in range(3):
        masks[0, frame, 4:14, 3 + frame : 18 + frame] = True
    masks[1, 1:, 10:20, 10:30] = True
    return masks


@pytest.fixture
def tracks(tmp_path):
    stored = [TrackMasks((HEIGHT, WIDTH), [encode_rle(m)["counts"] for m in track]) for track in masks_of_scene()]
    rows = [(4, 2, 0.9, 1), (0, 1, 0.8, 0), (4, 1, 0.3, 1)]
    vectors = np.eye(2, 6, dtype=np.float32)
    found = [Track(i, c, NAMES[c], score, stored[place], vectors[place]) for i, c, score, place in rows]
    path = tmp_path / "out" / "tracks.json"
    path.parent.mkdir()
    VideoResult(found, NAMES, HEIGHT, WIDTH, 3).save(path)
    document = json.loads(path.read_text())
    document["video"] |= {"frame_numbers": NUMBERS, "frame_times_s": [0.2, 0.4, 0.6]}
    path.write_text(json.dumps(document))
    return path


@pytest.fixture
def frames(tmp_path):
    """The source: seven frames, of which every second is used."""
    folder = tmp_path / "frames"
    folder.mkdir()
    images = np.random.default_rng(0).integers(0, 255, (7, HEIGHT, WIDTH, 3), np.uint8)
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{index}.png")
    return folder, images


FILES = [f"frame_{number:06d}.png" for number in NUMBERS]


def test_all_formats_are_read_back(tracks, frames, tmp_path, capsys):
    folder, images = frames
    options = ["--csv", "--coco", "--mot", "--mots", "--png", "--crops", "--embeddings", "--source", str(folder)]
    assert main(["export-results", str(tracks), *options]) == 0
    out = tracks.parent / "exported"
    assert capsys.readouterr().out.startswith(
        "wrote coco.json, crops, embeddings.npz, labels, labels.csv, mot, mots, tr"
    )
    masks = dict(zip((0, 4), masks_of_scene(), strict=True))
    labels = ["<b>dog</b>", "=cat"]  # of classes that are there

    rows = list(csv.DictReader((out / "tracks.csv").open(newline="", encoding="utf-8-sig")))
    assert [(row["frame"], row["track_id"]) for row in rows] == [("2", "0"), *[(f, t) for f in "46" for t in "40"]]
    assert rows[1]["class"] == "'=cat"  # no formula
    assert rows[1]["time_s"] == "0.4"
    assert [int(rows[1][key]) for key in ("left", "top", "width", "height", "area")] == [10, 10, 20, 10, 200]

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(out / "coco.json"))
    assert [image["file_name"] for image in coco.loadImgs(coco.getImgIds())] == FILES
    for annotation in coco.loadAnns(coco.getAnnIds()):
        mask = masks[annotation["track_id"]][annotation["image_id"] - 1]
        np.testing.assert_array_equal(coco.annToMask(annotation), mask)

    assert (out / "mot" / "gt" / "labels.txt").read_text().splitlines() == labels
    boxes = np.loadtxt(out / "mot" / "gt" / "gt.txt", delimiter=",", dtype=int)
    assert boxes.tolist()[:2] == [[3, 1, 3, 4, 15, 10, 1, 1, 1], [5, 5, 10, 10, 20, 10, 1, 2, 1]]

    instances = out / "mots" / "instances"
    assert (instances / "labels.txt").read_text().splitlines() == labels
    values = ["\ufeffvalue,track_id,class,score", "1,4,'=cat,0.9", '2,0,"<b>dog</b>, puppy",0.8']
    assert (out / "labels.csv").read_text(encoding="utf-8").splitlines() == values
    for index, file in enumerate(FILES):
        with Image.open(instances / file) as picture:
            assert picture.mode == "I;16"
            mots = np.asarray(picture)
        with Image.open(out / "labels" / file) as picture:
            assert picture.mode == "P"
            values = np.asarray(picture)
        over, under = masks[4][index], masks[0][index] & ~masks[4][index]  # the better one on top
        np.testing.assert_array_equal(mots, over * 2005 + under * 1001)
        np.testing.assert_array_equal(values, over * 1 + under * 2)

    assert sorted(p.relative_to(out / "crops").as_posix() for p in (out / "crops").rglob("*.png")) == [
        *(f"000/{file}" for file in FILES),
        *(f"004/{file}" for file in FILES[1:]),
    ]
    crop = np.asarray(Image.open(out / "crops" / "004" / FILES[1]))
    np.testing.assert_array_equal(crop[..., :3], images[4, 10:20, 10:30])
    assert (crop[..., 3] == 255).all()

    with np.load(out / "embeddings.npz") as arrays:
        assert arrays["track_ids"].tolist() == [4, 0]
        np.testing.assert_array_equal(arrays["embeddings"], np.eye(2, 6)[::-1])


def test_trackeval_reads_the_boxes(tracks, tmp_path):
    trackeval = pytest.importorskip("trackeval")
    out = tmp_path / "exported"
    assert main(["export-results", str(tracks), "--mot", "--out", str(out)]) == 0
    (tmp_path / "trackers" / "same" / "data").mkdir(parents=True)
    text = (out / "mot" / "gt" / "gt.txt").read_text()
    (tmp_path / "trackers" / "same" / "data" / "mot.txt").write_text(text)
    settings = {
        "GT_FOLDER": str(out),
        "TRACKERS_FOLDER": str(tmp_path / "trackers"),
        "SEQ_INFO": {"mot": NUMBERS[-1] + 1},
        "SKIP_SPLIT_FOL": True,
        "PRINT_CONFIG": False,
    }
    dataset = trackeval.datasets.MotChallenge2DBox(settings)
    raw = dataset.get_raw_seq_data("same", "mot")
    assert [ids.tolist() for ids in raw["gt_ids"]] == [[], [], [1], [], [5, 1], [], [5, 1]]
    np.testing.assert_allclose(raw["similarity_scores"][4].diagonal(), 1)
    assert raw["gt_dets"][2].tolist() == [[3, 4, 15, 10]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "nothing to write; choose from --csv, --coco"),
        (["--crops"], "--crops: cuts out of the frames; name the video with --source"),
        (["--csv", "--min-score", "2"], "--min-score 2.0: must be between 0 and 1"),
        (["--csv", "--out", "frames"], "frames: exists already; choose another folder"),
        (["--csv", "--out", "none/out"], "none/out: cannot be written (No such file or directory); create its folder"),
        (["--csv", "--crops", "--source", "none.mp4"], "none.mp4: "),
        (["--csv", "--crops", "--source", "frames/0.png"], "frames/0.png: has fewer frames than "),
        (["--csv", "--crops", "--source", "small"], "frame 0 of the source is 10x5 pixels, the results' are 40x24"),
    ],
)
@pytest.mark.usefixtures("frames")
def test_bad_input_is_one_line_and_leaves_nothing(options, message, tracks, monkeypatch, capsys):
    tmp_path = tracks.parents[1]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small").mkdir()
    for index in range(7):
        Image.new("RGB", (10, 5)).save(tmp_path / "small" / f"{index}.png")
    before = sorted(tmp_path.rglob("*"))
    assert main(["export-results", str(tracks), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"clipvis: error: {message}")
    assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_what_cannot_be_exported(tracks, capsys):
    document = json.loads(tracks.read_text())

    def error_of(option, change):
        changed = json.loads(json.dumps(document))
        change(changed)
        tracks.write_text(json.dumps(changed))
        assert main(["export-results", str(tracks), option]) == 2
        assert [path.name for path in tracks.parent.iterdir()] == ["tracks.json"]
        return capsys.readouterr().err

    assert "has no embeddings" in error_of("--embeddings", lambda d: d["results"][1].pop("embedding"))
    assert "999 track ids at most" in error_of("--mots", lambda d: d["results"][0].update(track_id=999))
    assert "frame_numbers has 2 entries, not 3" in error_of("--csv", lambda d: d["video"].update(frame_numbers=[0, 1]))
    assert "frame_numbers must rise" in error_of("--csv", lambda d: d["video"].update(frame_numbers=[0, 0, 1]))
    assert "results[0].track_id" in error_of("--mots", lambda d: d["results"][0].update(track_id=-1))
    assert "results[0].track_id" in error_of("--embeddings", lambda d: d["results"][0].update(track_id=10**30))
    assert "tracks.json: " in error_of("--csv", lambda d: d.pop("video"))


def result_of(num_frames, names=("dog",), size=(HEIGHT, WIDTH), **options):
    """A track per class, each in all of the frame."""
    full = TrackMasks(size, [encode_rle(np.ones(size, bool))["counts"]] * num_frames)
    tracks = [Track(index, index, name, 0.9, full) for index, name in enumerate(names)]
    return VideoResult(tracks, names, *size, num_frames, **options)


def test_results_that_python_saved_are_cut_out_of_their_frames(frames, tmp_path, capsys):
    folder, images = frames
    for numbers in ((0, 2, 4), None):
        result_of(3, frame_numbers=numbers).save(tmp_path / "first.json")
        VideoResult.load(tmp_path / "first.json").best().save(tmp_path / "again.json")
        options = ["--crops", "--source", str(folder), "--out", str(tmp_path / f"out{numbers}")]
        code = main(["export-results", str(tmp_path / "again.json"), *options])
        if numbers is None:
            assert code == 2
            assert "has more frames than" in capsys.readouterr().err
            continue
        for number in numbers:
            crop = np.asarray(Image.open(tmp_path / f"out{numbers}" / "crops" / "000" / f"frame_{number:06d}.png"))
            np.testing.assert_array_equal(crop[..., :3], images[number])


@pytest.mark.filterwarnings("ignore:.*cannot be decoded")
def test_sources_that_predict_accepted_are_cut(tmp_path, monkeypatch, capsys):
    film, numbers = Path(__file__).parents[1] / "cases" / "media" / "corrupt.avi", (6, 10, 12)
    small = functools.partial(open_frames, max_pixels=100)  # as if the film were too large for the default
    monkeypatch.setattr("clipvis_jax.media.video_reader.open_frames", small)
    source = open_frames(film, on_error="skip", max_pixels=10**9)
    for wanted, code in ((numbers, 0), ((6, 8, 10), 2)):  # frame 8 cannot be decoded
        result_of(3, size=(source.height, source.width), frame_numbers=wanted).save(tmp_path / "tracks.json")
        options = ["--crops", "--source", str(film), "--out", str(tmp_path / f"out{code}")]
        assert main(["export-results", str(tmp_path / "tracks.json"), *options]) == code
    assert len(list((tmp_path / "out0" / "crops" / "000").iterdir())) == 3
    assert "corrupt.avi: has fewer frames than" in capsys.readouterr().err


def test_nothing_to_cut_out(frames, tmp_path, capsys):
    result_of(7).save(tmp_path / "tracks.json")
    options = ["--crops", "--min-score", "0.95", "--source", str(frames[0])]
    assert main(["export-results", str(tmp_path / "tracks.json"), *options]) == 0
    assert capsys.readouterr().out == f"wrote crops into {tmp_path / 'exported'}\n"


def test_classes_that_share_a_synonym_are_told_apart(tmp_path):
    result_of(1, ("crane, bird", "crane,  machine", "dog, puppy")).save(tmp_path / "tracks.json")
    assert main(["export-results", str(tmp_path / "tracks.json"), "--mot", "--csv"]) == 0
    labels = (tmp_path / "exported" / "mot" / "gt" / "labels.txt").read_text().splitlines()
    assert labels == ["crane, bird", "crane, machine", "dog"]
    assert (tmp_path / "exported" / "tracks.csv").read_text().endswith('"dog, puppy",0.9,0,0,40,24,960\n')

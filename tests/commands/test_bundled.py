"""What comes with the package: its files are whole and small, the demo runs, and the model scores what it scored."""

import functools
import hashlib
import json
import re
import tomllib
from glob import glob
from pathlib import Path

import av
import pytest

from clipvis_jax import bundled
from clipvis_jax.cli import main
from clipvis_jax.commands.demo import print_tracks
from clipvis_jax.data.catalog import open_dataset
from clipvis_jax.data.shapes.classes import PARTITIONS
from clipvis_jax.errors import InputError
from clipvis_jax.evaluation import ground_truth_from, parse_results
from clipvis_jax.evaluation.outcomes import track_outcomes

FOLDER = Path(bundled.__file__).parent
MAX_BYTES = 12_000_000

# Of the first eight videos of shapes_val, in float32. Other processors round otherwise, and a pixel may carry a track
# over one of the ten thresholds: a tenth of its class's AP, some thousandths of the mean over the classes shown.
SCORES = {"AP": 0.6165621562156214, "AP50": 0.7616061606160616}
TOLERANCE = 5e-3


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Programs compiled by these tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def own_cache(cache, monkeypatch):
    monkeypatch.setenv("CLIPVIS_CACHE", str(cache))


# --- checksums, on a folder of the test's own


@pytest.fixture
def made(tmp_path):
    """A folder with two files and their checksums, as ``sha256sum`` writes them."""
    files = {"model/config.json": b"{}", "model/variables/a b": bytes(range(256))}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items())
    (tmp_path / "SHA256SUMS").write_text(sums)
    return tmp_path


def damage_of(folder):
    """Check a damaged folder; returns what is said of it, which has to be one line."""
    with pytest.raises(InputError) as caught:
        bundled.check_files(folder)
    assert "\n" not in str(caught.value)
    assert "install clipvis-jax again" in str(caught.value)
    return str(caught.value)


def test_a_whole_folder_passes(made):
    bundled.check_files(made)
    (made / "__init__.py").write_text("")  # not listed: not looked at
    bundled.check_files(made)


@pytest.mark.parametrize("name", ["model/config.json", "model/variables/a b", "SHA256SUMS"])
def test_a_missing_file_is_named(made, name):
    (made / name).unlink()
    assert damage_of(made).startswith(f"{made / name}: missing; ")


@pytest.mark.parametrize("name", ["model/config.json", "SHA256SUMS"])
def test_a_file_that_cannot_be_read_is_named(made, name):
    (made / name).unlink()
    (made / name).mkdir()
    assert damage_of(made).startswith(f"{made / name}: cannot be read (Is a directory); ")


@pytest.mark.parametrize("position", [0, 100, 255])
def test_a_changed_byte_is_found(made, position):
    path = made / "model/variables/a b"
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    assert damage_of(made).startswith(f"{path}: damaged; ")


@pytest.mark.parametrize("content", [b"", b"abc\n", bytes(range(128, 256))])
def test_a_damaged_list_of_checksums_is_found(made, content):
    (made / "SHA256SUMS").write_bytes(content)
    assert damage_of(made).startswith(f"{made / 'SHA256SUMS'}: damaged; ")


@pytest.mark.parametrize("kept", [0, 1])
def test_a_list_of_checksums_that_was_cut_off_is_found(made, kept):
    path = made / "SHA256SUMS"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[kept])
    forgotten = made / lines[1 - kept].split(maxsplit=1)[1].strip()
    assert damage_of(made).startswith(f"{path}: has no checksum of {forgotten}; ")


def test_a_file_that_was_cut_off_is_found(made):
    path = made / "model/config.json"
    path.write_bytes(path.read_bytes()[:-1])
    assert damage_of(made).startswith(f"{path}: damaged; ")


def test_the_demo_checks_first(made, tmp_path, monkeypatch, capsys):
    (made / "model/config.json").write_bytes(b"[]")
    monkeypatch.setattr(bundled, "check_files", functools.partial(bundled.check_files, made))
    assert main(["demo", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"clipvis: error: {made / 'model/config.json'}: damaged; ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


# --- the bundle


def bundled_files():
    """Return the paths of all that is bundled, but for the package's own modules and the checksums."""
    return [
        path
        for path in FOLDER.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc") and path.name != "SHA256SUMS"
    ]


def test_the_bundle_is_whole():
    bundled.check_files()


def test_every_bundled_file_but_the_description_has_a_checksum():
    """README.md is edited by hand, after the checksums are made."""
    listed = [line.split(maxsplit=1)[1] for line in (FOLDER / "SHA256SUMS").read_text().splitlines()]
    names = {path.relative_to(FOLDER).as_posix() for path in bundled_files()}
    assert sorted(listed) == sorted(names - {"README.md"})


def test_the_bundle_is_small():
    files = bundled_files()
    assert {FOLDER / "README.md", bundled.CLIP, bundled.MODEL / "config.json"} <= set(files)
    assert sum(path.stat().st_size for path in [*files, FOLDER / "SHA256SUMS"]) <= MAX_BYTES


def test_no_bundled_file_is_left_out_of_the_package():
    """Patterns such as ``model/**`` pass over hidden files."""
    settings = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["package-data"]["clipvis_jax.bundled"]
    # As setuptools reads them.
    packed = {Path(path) for pattern in patterns for path in glob(pattern, root_dir=FOLDER, recursive=True)}  # noqa: PTH207
    assert {path.relative_to(FOLDER) for path in [*bundled_files(), FOLDER / "SHA256SUMS"]} <= packed


def test_the_clip_shows_all_parts_of_the_classes():
    """Objects of base, novel and unseen classes, and none of them trained on."""
    dataset = open_dataset(bundled.CLIP)
    assert len(dataset) == 1
    part_of = {category.id: category.partition for category in dataset.categories}
    assert len(part_of) == 360
    assert {part_of[instance.category_id] for instance in dataset[0].instances} == set(PARTITIONS.values())
    assert json.loads(bundled.CLIP.read_text())["info"]["split"] not in ("train", "captions")


@pytest.fixture
def wide(monkeypatch):
    """A terminal so wide that no row of a table is broken."""
    monkeypatch.setenv("COLUMNS", "200")


def rows_of(printed):
    """Return the cells of a printed table, its heading left out."""
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in printed.splitlines() if "│" in line]


def test_every_track_is_printed_with_what_it_follows(wide, capsys):
    dataset = open_dataset(bundled.CLIP)
    truth = ground_truth_from(dataset)
    classes = {category.id: category for category in dataset.categories}
    objects = json.loads(bundled.CLIP.read_text())["annotations"]
    first, second = objects[:2]
    other = next(number for number in classes if number not in {x["category_id"] for x in objects})

    def found(score, like, category_id, segmentations=None):
        segmentations = segmentations or like["segmentations"]
        return {**like, "score": score, "category_id": category_id, "segmentations": segmentations}

    # One mask in the wrong frame alone: a track of something, but hardly of any object.
    shown = next(mask for mask in first["segmentations"] if mask)
    lost = [shown] + [None] * (len(first["segmentations"]) - 1)
    results = [
        found(0.5, second, second["category_id"]),
        found(0.9, first, first["category_id"]),
        found(0.8, second, other),
        found(0.7, first, first["category_id"]),
        found(0.6, first, first["category_id"], lost),
    ]
    print_tracks(dataset, truth, track_outcomes(truth, parse_results(results, truth)))

    seen = {0: "base: masks, captions", 2: "novel: captions", 3: "unseen: neither"}
    (one, one_seen), (two, two_seen), *rest = [
        (classes[x["category_id"]].name, seen[classes[x["category_id"]].partition]) for x in objects
    ]
    printed = capsys.readouterr().out
    rows = rows_of(printed)
    lost_iou = float(rows[3].pop(4))
    assert 0 <= lost_iou < 0.5
    assert rows == [
        [one, "0.90", one, one_seen, "1.00", "correct"],
        [classes[other].name, "0.80", two, two_seen, "1.00", "wrong"],
        [one, "0.70", one, one_seen, "1.00", "second track"],
        [one, "0.60", "-", "", "strays"],
        [two, "0.50", two, two_seen, "1.00", "second track"],
        *(["-", "", name, name_seen, "", "missed"] for name, name_seen in rest),
    ]
    assert printed.splitlines()[-1] == (
        f"2 of {len(objects)} objects found, 1 of them with the correct class name out of 360; "
        "surplus tracks: 2 second, 1 astray"
    )


def test_without_tracks_all_objects_are_missed(wide, capsys):
    dataset = open_dataset(bundled.CLIP)
    truth = ground_truth_from(dataset)
    print_tracks(dataset, truth, track_outcomes(truth, []))
    printed = capsys.readouterr().out
    assert [row[-1] for row in rows_of(printed)] == ["missed"] * len(dataset[0].instances)
    assert printed.splitlines()[-1].startswith(f"0 of {len(dataset[0].instances)} objects found, 0 of them ")


@pytest.mark.slow
def test_demo(wide, tmp_path, capsys):
    out = tmp_path / "new" / "demo"
    assert main(["demo", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    (summary,) = re.findall(
        r"^(\d+) of (\d+) objects found, (\d+) of them with the correct class name out of 360; "
        r"surplus tracks: (\d+) second, (\d+) astray$",
        printed,
        re.MULTILINE,
    )
    found, objects, right, second, astray = map(int, summary)
    video = open_dataset(bundled.CLIP)[0]
    assert objects == len(video.instances)
    assert (found, right) == (6, 6)  # no IoU of a track is nearer to 0.5 than 0.16, no score to 0.4 than 0.07
    assert printed.splitlines()[-1] == f"wrote {out / 'tracks.json'}, {out / 'overlay.mp4'}, {out / 'clip.mp4'}"
    assert sorted(path.name for path in out.iterdir()) == ["clip.mp4", "overlay.mp4", "tracks.json"]
    assert "\nfrom clip.mp4: 6 of 6 objects found, 6 of them with the correct class name\n" in printed
    tracks = json.loads((out / "tracks.json").read_text())
    assert tracks["video"]["length"] == video.length
    assert len(tracks["categories"]) == 360
    # Some tracks have several names: each is printed once, under the best.
    best = {}
    for result in tracks["results"]:
        best.setdefault(result["track_id"], result)
    assert len(best) == found + second + astray
    listed = [(result["category_name"], f"{result['score']:.2f}") for result in best.values()]
    assert [(name, score) for name, score, *_, verdict in rows_of(printed) if verdict != "missed"] == listed
    with av.open(str(out / "overlay.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == video.length


@pytest.mark.parametrize("place", ["file", "file/out", "/proc/out"])
def test_demo_into_a_folder_that_cannot_be(place, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    out = tmp_path / place
    assert main(["demo", "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"clipvis: error: {out}: ")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.slow
def test_scores(tmp_path):
    options = ["--limit", "8", "--out", str(tmp_path), "--no-report"]
    assert main(["eval", "--model", str(bundled.MODEL), "--dataset", "shapes_val", *options]) == 0
    stats = json.loads((tmp_path / "metrics.json").read_text())["metrics"]["shapes"]["stats"]
    assert {name: stats[name] for name in SCORES} == pytest.approx(SCORES, abs=TOLERANCE)

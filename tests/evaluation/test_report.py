"""The report: what it says, and that it is one sound page whatever the names in it."""

import base64
import hashlib
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from plain_evaluation import HEIGHT, LENGTH, VIDEO_PROTOCOLS, WIDTH, random_case, read_truth, small_case

from clipvis_jax.data.dataset_info import DatasetInfo
from clipvis_jax.data.records import VideoRecord
from clipvis_jax.errors import InputError, printable
from clipvis_jax.evaluation import (
    PROTOCOLS,
    evaluate,
    evaluate_classification,
    evaluate_segmentation,
    parse_results,
)
from clipvis_jax.evaluation.best_score import find_best_scores
from clipvis_jax.evaluation.published import PUBLISHED, published_rows
from clipvis_jax.evaluation.report import write_report
from clipvis_jax.evaluation.report.curves import group_curves, iou_curves
from clipvis_jax.evaluation.report.pictures import find_index
from clipvis_jax.evaluation.report.videos import extremes

NASTY = "</script><script>alert('cat')</script> & \"quoted\" <b>"
METRICS = {
    "command": "clipvis eval --dataset <lvvis>",
    "date": "2026-01-02",
    "dataset": {"name": "lvvis_val", "digest": "d1gest"},
    "model": {"folder": "models\\clipvis_b", "weights_sha256": "we1ghts"},
    "config": {"association": {"top_k": 5}, "sizes": [480, 864]},
    "versions": {"jax": "0.10.2"},
}


class GreyVideos:
    """Videos of one grey picture, as a data set gives them."""

    name = "grey"
    categories = ()
    info = DatasetInfo()
    has_annotations = True
    digest = "0"

    def __init__(self, ids, size=(HEIGHT, WIDTH)):
        self.videos = [VideoRecord(i, *size, tuple(f"clip {i}/{t}.jpg" for t in range(LENGTH))) for i in ids]
        self.size = size

    def __len__(self):
        return len(self.videos)

    def __getitem__(self, index):
        return self.videos[index]

    def video_sizes(self):
        return [(video.height, video.width, video.length) for video in self.videos]

    def read_frame(self, index, frame):
        file = io.BytesIO()
        Image.fromarray(np.full((*self.size, 3), 128, np.uint8)).save(file, "PNG")
        return file.getvalue()


class Page(HTMLParser):
    """What a page holds: elements with their attributes and texts; fails where tags do not match."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self.open = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "input", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def text_of(self, *tags):
        return [text for tag, text in self.texts if tag in tags]


def make(path, case, protocol="lvvis", metrics=METRICS, **options):
    """Evaluate a case and write its report; return the page."""
    ground_truth, results = case
    truth = read_truth(ground_truth)
    found = parse_results(results, truth)
    rules = PROTOCOLS[protocol]
    write_report(
        path / "report.html",
        metrics,
        video_metrics=evaluate(truth, found, rules, groups=options.get("groups")),
        segmentation=evaluate_segmentation(truth, found, rules),
        classification=evaluate_classification(truth, found, rules),
        best_scores=find_best_scores(truth, found, rules),
        ground_truth=truth,
        results=found,
        **options,
    )
    return Page((path / "report.html").read_text(encoding="utf-8"))


def pictures(page):
    sources = [image["src"] for image in page.all("img")]
    return [
        np.array(Image.open(io.BytesIO(base64.b64decode(s.removeprefix("data:image/jpeg;base64,"))))) for s in sources
    ]


def table_rows(page, table_id="classes"):
    """Return the texts of a table's rows, read again from the page's elements."""
    names = [a["data-value"] for tag, a in page.elements if tag == "th" and "data-value" in a]
    groups = [a["data-groups"].split() for tag, a in page.elements if tag == "tr" and "data-groups" in a]
    return dict(zip(names, groups, strict=True))


def test_scores_stand_beside_published_ones(tmp_path):
    page = make(tmp_path, small_case(), published=published_rows("lvvis_val"))
    cells = page.text_of("td")
    # The cat is found perfectly, the dog at two of ten thresholds: AP 60, AP50 100; both classes are base.
    assert cells[:5] == ["60.0", "100.0", "50.0", "60.0", "—"]
    assert {"19.5", "32.2", "40.2", "9.4", "15.9"} <= set(cells)
    assert "Published: ConvNeXt-B, trained on LVIS" in page.text_of("th")
    assert "clipvis_b on lvvis_val" in page.text_of("h1")


def test_weaknesses_are_counted(tmp_path):
    page = make(tmp_path, small_case())
    labels = page.text_of("span")
    # The other class of the second video's dog has the better overlap, but the lower score.
    assert {"Segmented (2 of 2)", "Tracked (2 of 2)", "Named (2 of 2)"} <= set(labels)
    truth, results = small_case()
    results[1]["score"] = 0.1  # now the bear is the dog's best name
    page = make(tmp_path, (truth, results))
    assert "Named (1 of 2)" in page.text_of("span")
    assert page.text_of("td")[-4:] == ["dog", "bear", "1", "100 %"]


def test_classes_with_ground_truth_are_listed_with_their_groups(tmp_path):
    page = make(tmp_path, small_case(), groups={"pets": [1, 2], "wild": [3]})
    assert table_rows(page) == {"cat": ["base", "pets"], "dog": ["base", "pets"]}
    assert any("1 classes without ground truth" in text for text in page.text_of("p"))
    assert page.text_of("option") == ["all groups", "base", "novel", "pets", "wild"]


def test_further_scores_are_shown(tmp_path):
    case = small_case()
    truth = read_truth(case[0])
    other = evaluate(truth, parse_results(case[1], truth), PROTOCOLS["ytvis"])
    burst = {"all": {"HOTA": 0.123, "AP": -1.0}}
    page = make(tmp_path, case, other_protocols={"As YouTube-VIS": other}, burst=burst)
    assert "As YouTube-VIS" in page.text_of("th")
    assert {"HOTA", "all"} <= set(page.text_of("th"))
    assert "12.3" in page.text_of("td")


def test_page_needs_nothing_else(tmp_path):
    page = make(tmp_path, small_case(), published=PUBLISHED[:1], dataset=GreyVideos([1, 7]))
    assert not page.all("link")
    assert not page.all("iframe")
    assert all(image["src"].startswith("data:") for image in page.all("img"))
    assert [link["href"] for link in page.all("a")] == ["https://github.com/zwq456/CLIP-VIS"]
    assert page.all("script") == [{}]
    (script,) = page.text_of("script")
    (policy,) = (meta["content"] for meta in page.all("meta") if "http-equiv" in meta)
    assert "default-src 'none'" in policy
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy
    for text in (script, *page.text_of("style")):
        assert not re.search(r"https?:|@import|url\(|eval", text)


HOSTILE = {
    "markup": NASTY,
    "attribute": '" onmouseover="alert(1)" x=\'',
    "template": "{{ 7 * 7 }} {% include 'report.js' %}",
    "comment": "--> <!-- ]]> </style></table>",
    "terminal": "\x1b[2J\x1b]0;owned\x07cat\x08\x08",
    "directions": "\u202ecat\u2066",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_names_cannot_break_the_page(tmp_path, kind):
    hostile = HOSTILE[kind]

    class Broken(GreyVideos):
        def read_frame(self, index, frame):
            raise InputError(f"{hostile}: does not exist")

    truth, results = small_case()
    for category in truth["categories"]:
        category["name"] = hostile
    results[1]["score"] = 0.1
    metrics = {name: {"name": hostile, "folder": hostile} for name in ("dataset", "model")}
    metrics |= {"config": {hostile: [hostile]}, "date": hostile}
    options = {"groups": {hostile: [1, 2]}, "burst": {hostile: {hostile: 0.5}}}
    page = make(tmp_path, (truth, results), metrics=metrics, dataset=Broken([1, 7]), **options)
    plain = make(tmp_path, small_case(), burst={"all": {"HOTA": 0.5}})
    assert page.all("script") == [{}]
    assert {tag for tag, _ in page.elements} - {tag for tag, _ in plain.elements} == set()
    assert not {name for _, attributes in page.elements for name in attributes if name.startswith("on")}
    assert hostile in page.text_of("th")
    assert hostile.lower() in [a.get("data-value") for a in page.all("th")]
    assert hostile in page.text_of("dd")
    assert hostile in page.text_of("option")
    assert f"No pictures: {printable(hostile)}: does not exist" in page.text_of("p")


def test_a_file_name_that_is_no_text_does_not_lose_the_report(tmp_path):
    command = b"clipvis eval --out \xff".decode(errors="surrogateescape")  # as Python reads the command line
    assert "clipvis eval --out ?" in make(tmp_path, small_case(), metrics={"command": command}).text_of("dd")


def test_origin_is_shown(tmp_path):
    page = make(tmp_path, small_case())
    values = page.text_of("dd")
    assert {"clipvis eval --dataset <lvvis>", "d1gest", "we1ghts", "5", "480, 864", "0.10.2"} <= set(values)
    assert page.text_of("dt").index("command") < page.text_of("dt").index("versions")


@pytest.mark.parametrize("metrics", [{}, {"dataset": None, "model": "somewhere"}])
def test_origin_may_be_unknown(tmp_path, metrics):
    assert "Results" in make(tmp_path, small_case(), metrics=metrics).text_of("h1")


def test_pictures_show_truth_above_prediction(tmp_path):
    page = make(tmp_path, small_case(), dataset=GreyVideos([1, 2, 7], size=(10 * HEIGHT, 10 * WIDTH)))
    # The cat is in two frames of video 1, the dog in all three frames of video 7; twice each.
    drawn = pictures(page)
    assert len(drawn) == 2 * (2 + 3)
    names = [image["alt"] for image in page.all("img")]
    assert names[:3] == ["Frame 0: ground truth", "Frame 0: prediction", "Frame 1: ground truth"]
    assert page.text_of("h4") == ["Video 1 · clip 1", "Video 7 · clip 7"]

    def change(picture, top, left):
        return np.abs(picture[top : top + 20, left : left + 20].mean(axis=(0, 1)) - 128).max()

    # The prediction of video 7 is the left part of the dog only, in the dog's colour.
    truth, prediction = drawn[4:6]
    assert change(truth, 100, 70) == pytest.approx(change(prediction, 100, 70), abs=3)
    assert change(truth, 100, 70) > 30
    assert change(truth, 100, 140) > 30
    assert change(prediction, 100, 140) < 3
    assert change(truth, 200, 250) < 3


def test_prediction_without_instance_has_its_own_colour(tmp_path):
    truth, results = small_case()
    results[0]["segmentations"] = results[2]["segmentations"]  # overlaps the cat by 0.3
    page = make(tmp_path, (truth, results), dataset=GreyVideos([1], size=(10 * HEIGHT, 10 * WIDTH)))
    # Video 7 is the better one, but has no pictures here.
    drawn = [picture[80:100, 70:90].mean(axis=(0, 1)) for picture in pictures(page)[:2]]
    assert np.abs(drawn[0] - drawn[1]).max() > 20


def test_large_frames_are_made_smaller(tmp_path):
    ground_truth, results = small_case()
    page = make(tmp_path, (ground_truth, results), dataset=GreyVideos([1, 7], size=(60 * HEIGHT, 60 * WIDTH)))
    assert {picture.shape for picture in pictures(page)} == {(288, 384, 3)}


def test_frames_that_cannot_be_read_leave_a_message(tmp_path):
    class Broken(GreyVideos):
        def read_frame(self, index, frame):
            if self.videos[index].id == 7:
                raise InputError("7/0.jpg: does not exist")
            return super().read_frame(index, frame)

    page = make(tmp_path, small_case(), dataset=Broken([1, 7]))
    assert len(page.all("img")) == 4
    assert "No pictures: 7/0.jpg: does not exist" in page.text_of("p")
    page = make(tmp_path, small_case(), dataset=GreyVideos([1]))
    assert "No pictures: grey: has no video 7" in page.text_of("p")


def test_data_set_is_not_needed(tmp_path):
    page = make(tmp_path, small_case())
    assert not page.all("img")
    assert "Video 7" in page.text_of("h4")


@pytest.mark.parametrize("protocol", VIDEO_PROTOCOLS)
@pytest.mark.parametrize("results", [[], None], ids=["no results", "random results"])
@pytest.mark.filterwarnings("ignore:.*annotation 0")
def test_any_results_make_a_page(tmp_path, protocol, results):
    ground_truth, random_results = random_case(1)
    results = random_results if results is None else results
    page = make(tmp_path, (ground_truth, results), protocol, dataset=GreyVideos(range(1, 7)))
    assert page.all("svg")
    if results == []:
        assert "Missed (" in " ".join(page.text_of("h3"))
        assert set(table_rows(page)) == {"1", "2", "3"}


def test_no_ground_truth_makes_a_page(tmp_path):
    ground_truth, results = small_case()
    page = make(tmp_path, (ground_truth | {"annotations": []}, results), dataset=GreyVideos([1, 7]))
    assert "There is no ground truth." in page.text_of("p")
    assert not page.all("svg")


def test_unwritable_file_is_named(tmp_path):
    with pytest.raises(InputError, match="missing"):
        make(tmp_path / "missing", small_case())


def test_areas_below_curves_are_the_scores():
    ground_truth, results = random_case(2)
    truth = read_truth(ground_truth)
    with pytest.warns(UserWarning, match="annotation 0"):
        metrics = evaluate(truth, parse_results(results, truth), PROTOCOLS["lvvis"])
    areas = {name: curve.mean() for name, curve in iou_curves(metrics).items()}
    assert list(areas.values()) == pytest.approx([metrics.stats[x] for x in ("AP50", "AP75", "AP")], abs=1e-12)
    groups = {"base": {4, 1}, "novel": {2, 3}, "none": set()}
    curves = group_curves(metrics, groups)
    assert set(curves) == {"base", "novel"}
    for name, curve in curves.items():
        assert curve.mean() == pytest.approx(metrics.groups[name]["AP"], abs=1e-12)


def test_no_video_is_among_both_best_and_worst():
    scores = {i: i / 10 for i in range(10)}
    assert extremes(scores, []) == ([9, 8, 7, 6], [0, 1, 2, 3])
    assert extremes({1: 0.5, 2: 0.1, 3: 0.2}, []) == ([1, 3], [2])
    assert extremes({1: 0.5}, []) == ([1], [])
    assert extremes({}, []) == ([], [])


def test_find_index():
    videos = GreyVideos([3, 8, 20])
    assert [find_index(videos, i) for i in (3, 8, 20)] == [0, 1, 2]
    for missing in (1, 9, 30):
        with pytest.raises(InputError, match=f"has no video {missing}"):
            find_index(videos, missing)


def test_published_rows():
    assert [(row.backbone, row.ap) for row in published_rows("ovis", "RN50")] == [("RN50", 14.1), ("RN50", 15.8)]
    assert len(published_rows("lvvis_val")) == len(published_rows("lvvis_test")) == len(published_rows("ytvis21")) == 4
    assert published_rows("lvvis") == published_rows("ovis_valid") == published_rows(None) == []
    assert [row.ap_novel for row in PUBLISHED if row.ap_novel] == [40.2]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs the browser chromium")
def test_browser_runs_the_script(tmp_path):
    make(tmp_path, small_case(), dataset=GreyVideos([1, 7]))
    command = ["chromium", "--headless", "--no-sandbox", "--dump-dom", f"file://{tmp_path}/report.html"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    (form,) = (
        attributes
        for tag, attributes in Page(re.sub("<(img|input|meta)([^>]*)>", r"<\1\2/>", shown)).elements
        if tag == "form"
    )
    assert "hidden" not in form  # the script shows the controls

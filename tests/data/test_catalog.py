"""Known data sets are found in the folders that the authors' code expects, and whatever else can be opened."""

import json
import shutil

import pytest
from annotation_files import burst, burst_converted, coco, lvis, write_dataset, youtube_vis
from memory_dataset import make_dataset

from clipvis_jax import InputError
from clipvis_jax.data.catalog import CATALOG, DRAWN, check_for_training, check_held_out, open_dataset
from clipvis_jax.data.dataset_info import DatasetInfo
from clipvis_jax.data.formats import BURST, COCO
from clipvis_jax.data.prepared import prepare
from clipvis_jax.evaluation import PROTOCOLS, scoring_rules
from clipvis_jax.evaluation.published import PUBLISHED, published_rows


def content_of(entry):
    if entry.format is BURST:
        return burst()
    if entry.format is COCO:
        return lvis() if entry.name.startswith("lvis") else coco()
    return burst_converted() if entry.name.startswith("burst") else youtube_vis()


PLACES = [
    (entry.name, annotations, images)
    for entry in CATALOG.values()
    for annotations in entry.annotations
    for images in entry.images
]


@pytest.mark.parametrize(("name", "annotations", "images"), PLACES)
def test_known_data_sets_open_from_every_place(tmp_path, name, annotations, images):
    path, folder = write_dataset(tmp_path / "source", content_of(CATALOG[name]))
    root = tmp_path / "root"
    (root / images).parent.mkdir(parents=True, exist_ok=True)
    shutil.move(folder, root / images)
    (root / annotations).parent.mkdir(parents=True, exist_ok=True)
    shutil.move(path, root / annotations)
    dataset = open_dataset(name, root)
    assert dataset.name == name
    assert len(dataset) == 2
    assert dataset.read_frame(1, 0).startswith(b"\xff\xd8")
    assert len(dataset[1].instances) == (1 if "norare" in name else 2)


def test_names_and_protocols():
    assert set(CATALOG) == {
        *(f"lvvis_{split}" for split in ("train", "val", "test")),
        *(f"{name}_{split}" for name in ("ytvis19", "ytvis21", "ovis") for split in ("train", "valid", "test")),
        *(f"burst_{split}" for split in ("train", "val", "test", "val_converted")),
        *("lvis_train", "lvis_train_norare", "lvis_val", "coco_train", "coco_val"),
    }
    protocols = [*(entry.info.protocol for entry in CATALOG.values()), *(open_dataset(x).info.protocol for x in DRAWN)]
    assert set(protocols) == {*PROTOCOLS, None}
    known = {entry.info.published_as for entry in CATALOG.values()} - {None}
    assert known == {row.dataset for row in PUBLISHED}
    assert {entry.name: entry.info.media for entry in CATALOG.values()} == {
        name: "images" if name.startswith(("coco", "lvis")) else "videos" for name in CATALOG
    }
    assert CATALOG["lvvis_val"].info.protocol == "lvvis"
    assert CATALOG["lvvis_val"].info.server is None
    assert CATALOG["ovis_valid"].info.server.url.endswith("/4763")
    assert len(CATALOG["ytvis19_valid"].info.novel_names) == 7
    assert len(CATALOG["ytvis21_valid"].info.novel_names) == 6
    assert set(CATALOG["ytvis21_valid"].info.novel_names) - set(CATALOG["ytvis21_valid"].info.authors_novel_names) == {
        "earless_seal",
        "flying_disc",
    }


def test_drawn_data_sets():
    assert set(DRAWN) == {"shapes_train", "shapes_val", "shapes_test", "shapes_fast", "shapes_occlusion"}
    for name, entry in DRAWN.items():
        dataset = open_dataset(name)
        assert (dataset.name, len(dataset)) == (name, entry.count)
        protocols, groups = scoring_rules(dataset)
        assert [protocol.name for protocol in protocols] == ["shapes"]
        assert groups == {}
    assert open_dataset("shapes_train")[0].length == 1
    assert open_dataset("shapes_val")[0].length == 20
    partitions = {value for _, values in protocols[0].groups.values() for value in values}
    assert partitions == {category.partition for category in dataset.categories}


def test_splits_keep_their_purpose():
    train, occlusion = open_dataset("shapes_train"), open_dataset("shapes_occlusion")
    check_held_out(occlusion)
    check_held_out(make_dataset())
    with pytest.raises(InputError, match=r"for training; evaluate on one of shapes_val, shapes_test, .*shapes_occlu"):
        check_held_out(train)
    check_for_training(train)
    check_for_training(make_dataset())
    with pytest.raises(InputError, match="'shapes_occlusion': is for evaluation; train on shapes_train"):
        check_for_training(occlusion)


@pytest.mark.parametrize("name", ["ovis_valid", "lvvis_val", "shapes_train", "burst_val_converted", "ytvis19_valid"])
def test_a_file_name_decides_nothing(tmp_path, name):
    """What is called like a known data set is one's own all the same: as a file, and when it is prepared."""
    path, images = write_dataset(tmp_path, youtube_vis())
    own = open_dataset(path.rename(tmp_path / f"{name}.json"), images=images)
    for dataset in (own, open_dataset(str(prepare(own, tmp_path / "prepared")))):
        assert (dataset.name, dataset.info) == (name, DatasetInfo())
        check_held_out(dataset)
        protocols, groups = scoring_rules(dataset)
        assert ([protocol.name for protocol in protocols], groups) == (["ytvis"], {})
        with pytest.raises(InputError, match="protocol 'coco': scores images"):
            scoring_rules(dataset, "coco")
        assert published_rows(dataset.info.published_as) == []


def test_what_is_known_goes_with_a_prepared_data_set(tmp_path):
    for name, content in {"ytvis21_valid": youtube_vis(), "lvis_val": lvis()}.items():
        entry = CATALOG[name]
        path, folder = write_dataset(tmp_path / name, content)
        (tmp_path / entry.annotations[0]).parent.mkdir(parents=True, exist_ok=True)
        path.rename(tmp_path / entry.annotations[0])
        known = open_dataset(name, tmp_path, images=folder)
        prepared = open_dataset(str(prepare(known, tmp_path / "prepared" / name)))
        assert prepared.info == known.info == entry.info
    assert entry.info.media == "images"


def test_own_annotation_files(tmp_path):
    path, images = write_dataset(tmp_path, coco())
    dataset = open_dataset(path, images=images)
    assert dataset.name == "annotations"
    images.rename(tmp_path / "JPEGImages")
    assert open_dataset(path).read_frame(1, 0).startswith(b"\xff\xd8")
    shutil.copytree(tmp_path / "JPEGImages", tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "JPEGImages")
    assert open_dataset(path).read_frame(1, 0).startswith(b"\xff\xd8")


def test_what_cannot_be_opened(tmp_path):
    with pytest.raises(
        InputError, match=r"^lvis_vall: is neither a known data set nor .* closest names are lvis_val, "
    ):
        open_dataset("lvis_vall", tmp_path)
    with pytest.raises(InputError, match=r"zzzzzzzzzzzz: is neither .*; the names are ytvis19_train, "):
        open_dataset("zzzzzzzzzzzz")
    with pytest.raises(InputError, match=r"data set 'lvvis_val': give data_root, the folder"):
        open_dataset("lvvis_val")
    with pytest.raises(InputError, match=r"nowhere: is not a folder; give the folder that holds the data sets$"):
        open_dataset("lvvis_val", tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"val_instances_.json: does not exist .or .*val_instances.json.*'lvvis_val'"):
        open_dataset("lvvis_val", tmp_path)
    path = tmp_path / "lvvis" / "val" / "val_instances.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(youtube_vis()))
    with pytest.raises(InputError, match="lvvis/val/JPEGImages: is not a folder"):
        open_dataset("lvvis_val", tmp_path)
    assert len(open_dataset("lvvis_val", tmp_path, check_images=False)) == 2
    path.write_text(json.dumps(coco()))
    with pytest.raises(InputError, match=r"val_instances.json: is in COCO format .*, but YouTube-VIS format"):
        open_dataset("lvvis_val", tmp_path)

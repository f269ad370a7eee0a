"""Known data sets are found in the folders that the authors' code expects, and whatever else can be opened."""

import json
import shutil

import pytest
from annotation_files import burst, burst_converted, coco, lvis, write_dataset, youtube_vis

from clipvis_jax import InputError
from clipvis_jax.data.catalog import CATALOG, DRAWN, check_for_training, check_held_out, open_dataset
from clipvis_jax.data.formats import BURST, COCO
from clipvis_jax.evaluation import PROTOCOLS, scoring_rules


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
    entries = [*CATALOG.values(), *DRAWN.values()]
    assert {entry.protocol for entry in entries} == {*PROTOCOLS, None}
    assert CATALOG["lvvis_val"].protocol == "lvvis"
    assert CATALOG["lvvis_val"].server is None
    assert CATALOG["ovis_valid"].server.url.endswith("/4763")
    assert len(CATALOG["ytvis19_valid"].novel_names) == 7
    assert len(CATALOG["ytvis21_valid"].novel_names) == 6
    assert set(CATALOG["ytvis21_valid"].novel_names) - set(CATALOG["ytvis21_valid"].authors_novel_names) == {
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
    check_held_out("shapes_val")
    check_held_out("coco_train")  # published data sets have their own rules
    with pytest.raises(InputError, match="for training; evaluate on one of val, test, fast, occlusion"):
        check_held_out("shapes_train")
    check_for_training("shapes_train")
    check_for_training("coco_val")
    with pytest.raises(InputError, match="'shapes_occlusion': is for evaluation; train on shapes_train"):
        check_for_training("shapes_occlusion")


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
    with pytest.raises(InputError, match=r"data set 'lvvis_val': name the folder .* with --data-root"):
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

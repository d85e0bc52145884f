"""The export reads as SPair-71k does: every file, key and type, and the points come back."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datamodules.images.scenes import Scenes
from sdprobe.scenes import CATEGORIES, Scene
from sdprobe.scenes.composition import OCCLUDER
from sdprobe.scenes.spair_export import difficulty, export, whole

SIZE, IMAGES, SEED = 128, 8, 3
SPLITS = ("trn", "val", "test")
POSES = {"Unspecified", "Frontal", "Left", "Rear", "Right"}
IMAGE_KEYS = [
    "filename", "src_database", "src_annotation", "src_image", "image_width", "image_height", "image_depth", "category",
    "pose", "truncated", "occluded", "difficult", "bndbox", "kps", "azimuth_id",
]  # fmt: skip
PAIR_KEYS = [
    "pair_id", "filename", "src_imname", "trg_imname", "src_imsize", "trg_imsize", "src_bndbox", "trg_bndbox", "category",
    "src_pose", "trg_pose", "src_kps", "trg_kps", "kps_ids", "mirror", "viewpoint_variation", "scale_variation",
    "truncation", "occlusion",
]  # fmt: skip


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "deep" / "SPair-71k"
    counts = export(folder, images_per_category=IMAGES, size=SIZE, seed=SEED)
    assert counts == {split: len(read_layout(folder, "large", split)) for split in SPLITS}
    return folder


@pytest.fixture(scope="module")
def drawn() -> list[Scene]:
    dataset = Scenes(SIZE, IMAGES * len(CATEGORIES), SEED)
    return [dataset.scene(index) for index in range(len(dataset))]


def read_layout(tree: Path, layout: str, split: str) -> list[str]:
    lines = (tree / "Layout" / layout / f"{split}.txt").read_text().split("\n")
    assert lines[-1] == "", "loaders drop what follows the last line break"
    return lines[:-1]


def load(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def read_pairs(tree: Path, split: str) -> list[dict[str, Any]]:
    return [load(tree / "PairAnnotation" / split / f"{line}.json") for line in read_layout(tree, "large", split)]


def scene_index(imname: str) -> int:
    return int(imname.removesuffix(".jpg").split("_")[1])


def nearest(where: tuple[float, float]) -> list[int]:
    """Reference rounding: to the nearest whole number inside the image, halves up."""
    return [int(min(np.floor(edge + 0.5), SIZE - 1)) for edge in where]


# --- layout ----------------------------------------------------------------------------------------------------------


def test_every_file_is_accounted_for(tree: Path, drawn: list[Scene]) -> None:
    names = [(scene.category, f"{SEED:04d}_{index:06d}") for index, scene in enumerate(drawn)]
    expected = {f"Layout/{layout}/{split}.txt" for layout in ("large", "small") for split in SPLITS}
    for folder, ending in (("JPEGImages", "jpg"), ("ImageAnnotation", "json"), ("Segmentation", "png")):
        expected |= {f"{folder}/{category}/{name}.{ending}" for category, name in names}
    for split in SPLITS:
        expected |= {f"PairAnnotation/{split}/{line}.json" for line in read_layout(tree, "large", split)}
    assert {path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()} == expected
    assert sorted(path.name for path in (tree / "JPEGImages").iterdir()) == sorted(CATEGORIES)
    assert [path.name for path in tree.parent.iterdir()] == [tree.name], "no temporary folder stays"


def test_image_annotations_hold_the_keys_and_types_of_the_original(tree: Path) -> None:
    paths = sorted((tree / "ImageAnnotation").rglob("*.json"))
    assert len(paths) == IMAGES * len(CATEGORIES)
    for path in paths:
        record = load(path)
        assert list(record) == IMAGE_KEYS
        assert record["filename"] == f"{path.stem}.jpg" and record["category"] == path.parent.name
        assert not set(path.stem) & set("-:."), "loaders split names at these"
        assert all(type(record[key]) is str for key in ("src_database", "src_annotation", "src_image", "pose"))
        assert (record["image_width"], record["image_height"], record["image_depth"]) == (SIZE, SIZE, 3)
        assert all(type(record[key]) is int and record[key] in (0, 1) for key in ("truncated", "occluded", "difficult"))
        assert type(record["azimuth_id"]) is int and 0 <= record["azimuth_id"] < 8 and record["pose"] in POSES
        box = record["bndbox"]
        assert len(box) == 4 and all(type(edge) is int for edge in box)
        assert 0 <= box[0] < box[2] <= SIZE and 0 <= box[1] < box[3] <= SIZE
        assert list(record["kps"]) == [str(slot) for slot in range(30)]
        for point in record["kps"].values():
            assert point is None or (len(point) == 2 and all(type(edge) is int and 0 <= edge < SIZE for edge in point))


def test_pair_annotations_hold_the_keys_and_types_of_the_original(tree: Path) -> None:
    for split in SPLITS:
        for number, (line, record) in enumerate(
            zip(read_layout(tree, "large", split), read_pairs(tree, split), strict=True), start=1
        ):
            assert list(record) == PAIR_KEYS
            names = [record[f"{side}_imname"].removesuffix(".jpg") for side in ("src", "trg")]
            assert line == record["filename"] == f"{number:06d}-{names[0]}-{names[1]}:{record['category']}"
            assert type(record["pair_id"]) is int and record["pair_id"] == number
            assert names[0] != names[1] and record["category"] in CATEGORIES
            assert len(record["src_kps"]) == len(record["trg_kps"]) == len(record["kps_ids"]) >= 3
            assert all(type(slot) is str for slot in record["kps_ids"])
            assert record["kps_ids"] == sorted(set(record["kps_ids"]), key=int)
            for key, top in (("mirror", 0), ("viewpoint_variation", 2), ("scale_variation", 2), ("truncation", 3)):
                assert type(record[key]) is int and 0 <= record[key] <= top
            assert type(record["occlusion"]) is int and 0 <= record["occlusion"] <= 3


def test_pairs_repeat_what_their_images_say(tree: Path) -> None:
    for split in SPLITS:
        for record in read_pairs(tree, split):
            images = {}
            for side in ("src", "trg"):
                stem = record[f"{side}_imname"].removesuffix(".jpg")
                image = images[side] = load(tree / "ImageAnnotation" / record["category"] / f"{stem}.json")
                assert record[f"{side}_kps"] == [image["kps"][slot] for slot in record["kps_ids"]]
                assert record[f"{side}_bndbox"] == image["bndbox"] and record[f"{side}_pose"] == image["pose"]
                assert record[f"{side}_imsize"] == [image["image_width"], image["image_height"], image["image_depth"]]
            shared = [slot for slot, point in images["src"]["kps"].items() if point and images["trg"]["kps"][slot]]
            assert record["kps_ids"] == shared, "all that both show"
            for key, flag in (("truncation", "truncated"), ("occlusion", "occluded")):
                assert record[key] == images["src"][flag] + 2 * images["trg"][flag]


def test_splits_share_no_image_and_leave_out_no_pair(tree: Path, drawn: list[Scene]) -> None:
    used = {
        split: {record[f"{side}_imname"] for record in read_pairs(tree, split) for side in ("src", "trg")} for split in SPLITS
    }
    assert not used["trn"] & used["val"] and not used["trn"] & used["test"] and not used["val"] & used["test"]
    for split in SPLITS:
        lines = read_layout(tree, "large", split)
        assert len(lines) == len({line.split("-", 1)[1] for line in lines}) > 0
        assert [line.split(":")[1] for line in lines] == sorted(line.split(":")[1] for line in lines)
        small = read_layout(tree, "small", split)
        assert small == lines[::5] and set(small) <= set(lines)
        for category in CATEGORIES:
            members = sorted({scene_index(name) for name in used[split] if drawn[scene_index(name)].category == category})
            shown = [{n for n, seen in drawn[i].objects[0].visible.items() if seen} for i in members]
            possible = sum(len(a & b) >= 3 for i, a in enumerate(shown) for j, b in enumerate(shown) if i != j)
            assert sum(line.endswith(f":{category}") for line in lines) == possible


# --- read back -------------------------------------------------------------------------------------------------------


def test_a_loader_reads_the_ground_truth_back(tree: Path, drawn: list[Scene]) -> None:
    """Layout → PairAnnotation → JPEGImages, as the dataset's own example loader goes."""
    points = 0
    for split in SPLITS:
        for line in (tree / f"Layout/large/{split}.txt").read_text().split("\n")[:-1]:
            with open(tree / "PairAnnotation" / split / (line + ".json")) as file:
                record = json.load(file)
            for side, stem in zip(("src", "trg"), line.split(":")[0].split("-")[1:], strict=True):
                picture = Image.open(tree / "JPEGImages" / record["category"] / record[f"{side}_imname"])
                assert picture.format == "JPEG" and picture.mode == "RGB" and record[f"{side}_imname"] == f"{stem}.jpg"
                assert [*picture.size, len(picture.getbands())] == record[f"{side}_imsize"]
                scene = drawn[scene_index(record[f"{side}_imname"])]
                main_object = scene.objects[0]
                names = sorted(main_object.keypoints)
                for slot, point in zip(record["kps_ids"], record[f"{side}_kps"], strict=True):
                    assert main_object.visible[names[int(slot)]]
                    assert point == nearest(main_object.keypoints[names[int(slot)]])
                    points += 1
                assert record[f"{side}_bndbox"] == list(main_object.bbox) and scene.category == record["category"]
    assert points > 300


def test_the_strictest_published_loader_takes_every_pair(tree: Path, drawn: list[Scene]) -> None:
    """What sd-dino (arXiv 2305.15347) asks of a pair before it reads it, and geoaware (arXiv 2311.17034) of its pictures."""
    facing = set()
    for path in sorted((tree / "PairAnnotation").rglob("*.json")):
        record, category = load(path), path.stem.partition(":")[2]
        assert record["category"] == category and record["mirror"] == 0
        assert len(record["src_imsize"]) == len(record["trg_imsize"]) == 3
        for side in ("src", "trg"):
            image = load(tree / "ImageAnnotation" / category / record[f"{side}_imname"].replace("jpg", "json"))
            marked = [image["kps"][str(slot)] for slot in range(30)]
            assert [marked[int(slot)] for slot in record["kps_ids"]] == record[f"{side}_kps"]
        ends = (drawn[scene_index(record[f"{side}_imname"])].objects[0].flipped for side in ("src", "trg"))
        facing.add(tuple(ends))
    assert len(facing) == 4, "the control: objects that face apart are among them"


def test_pictures_are_the_scenes_and_masks_their_objects(tree: Path, drawn: list[Scene]) -> None:
    classes = sorted(CATEGORIES)
    occluders = 0
    for index, scene in enumerate(drawn):
        stem = f"{scene.category}/{SEED:04d}_{index:06d}"
        pixels = np.asarray(Image.open(tree / "JPEGImages" / f"{stem}.jpg")).astype(int)
        assert np.abs(pixels - scene.image).mean() < 3, "grey levels of 255 that JPEG loses"
        picture = Image.open(tree / "Segmentation" / f"{stem}.png")
        mask = np.asarray(picture)
        assert picture.mode == "P" and mask.dtype == np.uint8
        assert (mask[scene.object_mask == 0] == 0).all()
        for k, thing in enumerate(scene.objects):
            occluders += thing.category == OCCLUDER
            value = 0 if thing.category == OCCLUDER else classes.index(thing.category) + 1
            assert (mask[scene.object_mask == k + 1] == value).all()
    assert occluders > 3


def test_flags_come_from_ground_truth(tree: Path, drawn: list[Scene]) -> None:
    flags = []
    for index, scene in enumerate(drawn):
        record = load(tree / "ImageAnnotation" / scene.category / f"{SEED:04d}_{index:06d}.json")
        main_object = scene.objects[0]
        x0, y0, x1, y1 = main_object.extent
        assert record["truncated"] == (x0 < 0 or y0 < 0 or x1 > SIZE or y1 > SIZE)
        nearer = [thing for thing in scene.objects[1:] if thing.depth < main_object.depth]
        assert not record["occluded"] or nearer
        if scene.category in ("bird", "fish", "quadruped", "teapot", "vehicle"):
            assert (record["pose"], record["azimuth_id"]) == (("Left", 6) if main_object.flipped else ("Right", 2))
        else:
            assert record["pose"] == "Frontal" and record["azimuth_id"] in (7, 0, 1)
        flags.append((record["truncated"], record["occluded"]))
    assert {flag for flag, _ in flags} == {flag for _, flag in flags} == {0, 1}


@pytest.mark.parametrize(("azimuths", "level"), [((0, 0), 0), ((7, 1), 1), ((0, 1), 1), ((2, 6), 2), ((1, 6), 2)])
def test_viewpoints_are_compared_around_the_circle(azimuths: tuple[int, int], level: int) -> None:
    sides = [{"azimuth_id": a, "bndbox": [0, 0, 9, 9], "truncated": 0, "occluded": 1} for a in azimuths]
    assert difficulty(*sides) == {"viewpoint_variation": level, "scale_variation": 0, "truncation": 0, "occlusion": 3}


@pytest.mark.parametrize(("side", "level"), [(10, 0), (12, 0), (13, 1), (17, 1), (18, 2)])
def test_scales_are_compared_by_area_either_way(side: int, level: int) -> None:
    boxes = [{"azimuth_id": 0, "bndbox": [5, 5, 5 + s, 5 + s], "truncated": s > 10, "occluded": 0} for s in (10, side)]
    assert difficulty(*boxes)["scale_variation"] == difficulty(*boxes[::-1])["scale_variation"] == level
    if side > 10:
        assert (difficulty(*boxes)["truncation"], difficulty(*boxes[::-1])["truncation"]) == (2, 1)


def test_rounding_stays_within_the_image() -> None:
    assert [whole(value, 64) for value in (0.0, 0.49, 0.5, 31.5, 63.49, 63.99)] == [0, 0, 1, 32, 63, 63]

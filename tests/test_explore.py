"""``probe=explore``: tokens in the run folder, a page of them, on wandb too; other probes keep tokens where that is cheap."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sdprobe.reports.__main__ import main
from sdprobe.runs import tracking
from sdprobe.runs.cli import UserError
from sdprobe.runs.measurement import Measurement
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.io import read_arrays, write_arrays, write_json
from tools.offline import Offline, parts

SMALL = ["backbone=tiny", "block=[mid,up_1]", "images.size=128", "images.limit=20", "logger=none", "device=cpu"]
COMPARED = ["mitigation=[standardize,outlier_tokens]", "timestep=[50,261]"]


def content(page: Path) -> Any:
    """What a page gives its script."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.S)[1])  # type: ignore[index]


def test_a_run_leaves_a_page_with_every_variant_and_sends_it_to_wandb(launch, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run = launch("probe=explore", "logger=wandb", *COMPARED, figures=True)
    page = folder / "explorer.html"
    found = content(page)
    grids = {(grid["layer"], grid["label"], grid["level"], grid["weights"]) for grid in found["grids"]}
    assert grids == {
        (layer, label, level, weights)
        for layer in ("mid", "up_1") for label in ("", "standardize", "outlier_tokens") for level in (50, 261)
        for weights in ("trained", "random")
    }  # fmt: skip
    assert len(found["images"]) == 4 and all(image["picture"] for image in found["images"]) and not found["leftOut"]
    assert page.stat().st_size < 10e6 and "http" not in re.sub(r"http-equiv", "", page.read_text())
    errors = {key: value for key, value in run.metrics.items() if "similarity_error" in key and "seeds" not in key}
    assert len(errors) == 2 * len(run.layers) and max(errors.values()) < 0.01
    assert "largest error" in (folder / "report.txt").read_text()

    [part] = parts(folder)
    [logged] = [record for record in Offline.read(part).history if "explorer.path" in record]
    assert logged["explorer._type"] == "html-file"
    assert (part / "files" / logged["explorer.path"]).read_text() == page.read_text()

    again = launch("probe=explore", *COMPARED, "report.pictures=false", folder="again", figures=True)
    without = content(tmp_path / "again" / "explorer.html")
    assert not any(image["picture"] for image in without["images"]) and len(without["grids"]) == len(grids)
    first, second = (read_arrays(place / "tokens.npz") for place in (folder, again.folder))
    assert "pictures" in first and "pictures" not in second
    assert all(np.array_equal(first[name], second[name]) for name in second)


def test_pairs_have_keypoints_and_few_photographs_need_no_split(launch, tmp_path: Path) -> None:
    launch("probe=explore", "images=scene_pairs", "images.limit=48", "twins=0", "images.size=64", figures=True)
    found = content(tmp_path / "run" / "explorer.html")
    assert found["keypoints"] and all(0 <= place < 4 for row in found["keypoints"] for place in row["pair"])
    assert all(0 <= place <= 1 for row in found["keypoints"] for place in row["points"])
    assert all(0 < reach < 0.2 for row in found["keypoints"] for reach in row["reach"])
    few = launch("probe=explore", "images=constant", "images.limit=3", "twins=0", "images.size=64", folder="few", figures=True)
    assert few.meta["images"] == {"fit": 0, "test": 3}
    with pytest.raises(UserError, match="Expected at least 10 photographs where a mitigation is fitted, but got 3"):
        launch("probe=explore", "images.limit=3", "mitigation=standardize", folder="none")


@pytest.mark.slow
def test_statistics_keep_tokens_of_two_images_unless_told_not_to(launch, configure, tmp_path, capsys, monkeypatch) -> None:
    given = ["probe=statistics", "images.limit=70", "images.size=192", "block=up_1", "twins=0"]
    run = launch(*given)
    assert "tokens.npz" in run.files and not (tmp_path / "run" / "explorer.html").exists()
    capsys.readouterr()
    main(["explore", str(tmp_path / "run"), "--layers", "up_*", "--images", "1"])
    page = tmp_path / "run" / "explorer.html"
    assert capsys.readouterr().out.strip() == str(page)
    found = content(page)
    assert [grid["layer"] for grid in found["grids"]] == ["up_1"] and len(found["images"]) == 1
    assert found["leftOut"] == ["random weights"]

    assert Measurement(configure(*given)).probe.kept.plan.images == 2
    assert Measurement(configure(*given, "report.explorer=false")).probe.kept is None
    monkeypatch.setattr("sdprobe.runs.sweep.active", lambda: True)
    assert Measurement(configure(*given)).probe.kept is None, "a job of a sweep"
    (tmp_path / "run" / "tokens.npz").unlink()
    refused(capsys, tmp_path / "run", "to have kept tokens.*Use python train.py probe=explore")


def refused(capsys: Any, folder: Path, message: str, *options: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["explore", str(folder), *options])
    assert caught.value.code == 1
    assert re.search(message, capsys.readouterr().err)


def test_what_is_no_run_with_tokens_is_refused_in_a_sentence(launch, tmp_path: Path, capsys) -> None:
    launch("probe=explore", "twins=0", "images.size=64", "images.limit=2")
    folder = tmp_path / "run"
    refused(capsys, folder, "Expected --layers to name stored layers \\(mid, up_1\\), but got 'down'", "--layers", "down")
    refused(capsys, folder, "Expected --images to be from 1 to 2, .* but got 9", "--images", "9")
    refused(
        capsys,
        folder,
        "Expected --output to be a file that can be written, .*No such file",
        "-o",
        str(tmp_path / "no" / "page.html"),
    )
    refused(capsys, tmp_path, f"Use one of the runs below it, such as '{folder}'")
    refused(capsys, tmp_path / "nothing", "has none. Correct the path")
    metrics = (folder / "metrics.json").read_text()
    record = json.loads(metrics)
    write_json(folder / "metrics.json", record | {"meta": record["meta"] | {"complete": False}})
    refused(capsys, folder, "Expected RUN to be a finished run")
    (folder / "metrics.json").write_text(metrics)
    (folder / "metrics.json").write_text('{"meta": {}}')
    refused(capsys, folder, "Expected .*metrics.json to be intact, but got 'it lacks meta.complete'")
    (folder / "metrics.json").write_text(metrics)
    refused(capsys, folder, "Expected --output to be a file that can be written, .*\\(Is a directory\\)", "-o", str(tmp_path))
    content = (folder / "tokens.npz").read_bytes()
    (folder / "tokens.npz").write_bytes(content[:-50] + bytes(50))
    refused(capsys, folder, "Expected .*tokens.npz to be intact, but got 'checksum mismatch'")
    (folder / "tokens.npz").write_bytes(content)
    write_json(folder / "metrics.json", {**record, "meta": {**record["meta"], "files": {}}})  # as of an older version
    tokens = read_arrays(folder / "tokens.npz")
    for name, array, reason in (
        ("names", tokens["names"][:1], "names has another shape"),
        ("pictures", tokens["pictures"][..., 0], "it lacks pictures as a page needs it"),
        ("trained/mid/scale", tokens["trained/mid/scale"] * np.nan, "trained/mid/scale is not finite"),
        ("trained/mid/codes", tokens["trained/mid/codes"] * 0.5, "it lacks trained/mid/codes as a page needs it"),
        ("other/mid/codes", tokens["trained/mid/codes"], "it has the network other"),
    ):
        write_arrays(folder / "tokens.npz", tokens | {name: array})
        refused(capsys, folder, f"Expected .*tokens.npz to be intact, but got '{reason}'")
    assert not (folder / "explorer.html").exists() and not list(folder.glob(".*.tmp"))


def test_a_page_too_large_for_a_panel_is_a_file_of_the_run(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tracking, "LARGEST_PANEL", 10)
    page = tmp_path / "explorer.html"
    page.write_text("<p>a page of more than ten bytes</p>")
    identity = tracking.Identity("a name", "a group", (), {})
    logger = tracking.wandb_logger(identity, str(tmp_path))
    tracking._show_page(logger.experiment, page)
    tracking.finish(logger)
    [part] = parts(tmp_path)
    assert (part / "files" / "explorer.html").read_text() == page.read_text()


def test_a_page_with_still_pictures_of_large_grids_keeps_its_size() -> None:
    import sdprobe

    generator = torch.Generator().manual_seed(0)
    grids = {f"layer_{number}": torch.randn(2, 8, 64, 64, generator=generator) for number in range(12)}
    page = sdprobe.explore(grids, torch.rand(2, 3, 256, 256, generator=generator), megabytes=3).page
    assert 2 < len(page.encode()) / 1e6 <= 3


def test_a_notebook_shows_the_page_in_a_frame_and_saves_it(tmp_path: Path) -> None:
    import sdprobe

    sd = sdprobe.FrozenSD.from_pretrained("tiny")
    pictures = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    explorer = sdprobe.explore(sd, pictures, "mid", timestep=[50, 261], names=["</script><b>", '" onload="'])
    saved = explorer.save(tmp_path / "page.html")
    assert saved.read_text() == explorer.page
    shown = explorer._repr_html_()
    assert shown.startswith("<iframe") and shown.count("<") == 2 and shown.count('"') == 8, "names cannot leave the attribute"
    assert [image["name"] for image in content(saved)["images"]] == ["</script><b>", '" onload="']
    assert {grid["level"] for grid in content(saved)["grids"]} == {50, 261}
    strange = sdprobe.explore({"mid": torch.rand(2, 4, 2, 2)}, pictures, names=["not UTF-8 \udce9", "\u202egnp.\u2028"])
    assert [image["name"] for image in content(strange.save(saved))["images"]] == ["not UTF-8 \ufffd", "\ufffdgnp.\ufffd"]
    with pytest.raises(InputError, match="Expected images of one size, but got 128×128 and 64×64"):
        sdprobe.explore(sd, [torch.rand(3, 128, 128), torch.rand(3, 64, 64)], "mid")
    with pytest.raises(InputError, match="Expected grids of 2 images, but got 3"):
        sdprobe.explore({"mid": torch.rand(3, 4, 2, 2)}, pictures)

"""What wandb and TensorBoard are given, read back from their files; a tracker that fails costs no run."""

import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from wandb.errors import CommError

from sdprobe.backbones.architectures import meta_unet, preset_config
from sdprobe.backbones.layers import layer_table
from sdprobe.reports.run import Run
from sdprobe.runs import configuration, tracking
from sdprobe.runs.arguments import as_overrides
from sdprobe.tokens.keys import select
from sdprobe.utilities.errors import InputError
from tests.reports.fabricated import fabricated
from tools.offline import Offline, parts

SMALL = [
    "images.size=128", "images.limit=12", "probe.solver=closed_form", "logger=wandb", "device=cpu", "twins=0",
]  # fmt: skip
TINY = ("backbone=tiny", "block=[mid,up_0]")
IDENTITY = tracking.Identity("a name", "a group", ("probe=position",), {"probe": "position", "settings": {"seed": 0}})


# ---------------------------------------------------------------- what a run sends


def test_a_run_is_read_back_from_its_files(launch, tmp_path: Path, caplog) -> None:
    caplog.set_level(logging.INFO)
    given = ["logger.tags=[mine]", "logger.notes=a note", "logger.job_type=trial"]
    run = launch(*TINY, "twins=1", "mitigation=standardize", *given, figures=True)
    [part] = parts(tmp_path / "run")
    read = Offline.read(part)

    assert read.run["display_name"] == "position · tiny · mid+up_0 · standardize · t50"
    assert read.run["run_group"] == "position · scenes · default"
    assert {"mine", "probe=position", "layer=mid", "layer=up_0", "mitigation=standardize"} <= set(read.run["tags"])
    assert (read.run["notes"], read.run["job_type"]) == ("a note", "trial")
    assert read.config["settings"]["probe"]["solver"] == "closed_form"
    assert read.config["block"] == "mid+up_0" and read.config["seed"] == 0

    axes = {record.get("glob_name"): record.get("step_metric") for record in read.of("metric")}
    assert axes["layers/*"] == "layers/depth" and axes["val/*"] == "trainer/global_step"
    assert [row["name"] for row in read.layers] == run.layers
    for row in read.layers:
        assert row["binned_accuracy"] == run.value("test", row["name"], "binned_accuracy")
        for null in ("chance", "shuffled_labels", "random_weights"):
            assert row[f"binned_accuracy/{null}"] == run.value(null, row["name"], "binned_accuracy")
        gain = row["binned_accuracy"] - row["binned_accuracy/random_weights"]
        assert row["binned_accuracy/gain_over_random_weights"] == pytest.approx(gain)
        assert row["timestep"] == 50

    assert len(read.table) == len(select(run.metrics, statistic=""))
    [cell] = [row for row in read.table if [row[name] for name in ("condition", "layer", "metric", "group")]
              == ["test", "mid", "cell_accuracy", "corner"]]  # fmt: skip
    assert (cell["value"], cell["mitigation"], cell["timestep"]) == (run.value("test", "mid", "cell_accuracy", "corner"),
                                                                     "standardize", 50)  # fmt: skip

    assert len(read.summary) <= 20, sorted(read.summary)
    layer = read.summary["layer"]
    assert read.summary["layer_is"] == "most readable at, on validation images, of 2 layers"
    assert read.summary["value"] == run.value("test", layer, "binned_accuracy")
    assert read.summary["null"] == run.value("chance", layer, "binned_accuracy")
    assert next(read.of("config"))["update"]["provenance"]["config_hash"] == run.meta["config_hash"]

    lines = "".join(record["line"] for record in read.of("output_logger"))
    assert "random weights (seed 1)" in lines and not list(read.of("output_raw")) and "━" not in lines
    names = sorted(path.name.split("_")[0] for path in (part / "files" / "media" / "images").rglob("*.png"))
    assert len(names) == len(list((tmp_path / "run").glob("*.png"))), "every figure once"
    assert f"upload with: wandb sync '{part.parent}'" in caplog.text


def test_networks_of_any_depth_share_the_axis(begin, tmp_path: Path) -> None:
    run = fabricated("position", ["conv_in", "mid", "conv_out"])
    networks = {name: list(layer_table(meta_unet(preset_config(name)))) for name in ("tiny", "demo")}
    read = {}
    for name, network in networks.items():
        logger = begin(name, WANDB_MODE="offline")
        tracking.log_results(logger, run, network, [])
        tracking.finish(logger)
        read[name] = Offline.read(parts(tmp_path / name)[0])
        last, mid = len(network) - 1, network.index("mid")
        assert [row["index"] for row in read[name].layers] == [0, mid, last]
        assert [row["depth"] for row in read[name].layers] == [0, mid / last, 1]
    tiny, demo = ([record.get("step_metric") for record in each.of("metric")] for each in read.values())
    assert tiny == demo and "layers/depth" in tiny
    assert len(networks["tiny"]) != len(networks["demo"])


def test_a_run_that_is_resumed_goes_on_under_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for resume in (None, str(tmp_path)):
        logger = tracking.wandb_logger(IDENTITY, str(tmp_path), resume=resume)
        logger.log_metrics({"train/loss": 1.0, "val/mid/loss/all": 1.0, "val/up_0/loss/all": 2.0}, 7)
        tracking.finish(logger)
        time.sleep(1.1 if resume is None else 0)  # wandb names its folders by the second
    first, second = map(Offline.read, parts(tmp_path))
    assert first.run["run_id"] == second.run["run_id"] == (tmp_path / "wandb" / "run_id").read_text()
    assert max(row["_step"] for row in first.history) < min(row["_step"] for row in second.history), "wandb sync appends"
    assert first.history[0]["val/loss"] == 1.5, "the mean over layers"
    assert first.history[0]["trainer/global_step"] == 7
    assert not any(name.startswith(("train", "val", "part")) for name in second.summary)
    other = tracking.wandb_logger(IDENTITY, str(tmp_path))
    assert other.experiment.id != first.run["run_id"], "another run in the same folder"
    tracking.finish(other)


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["backbone=sd15", "block=[mid,up_1]", "mitigation=leace"], "position · sd15 · mid+up_1 · leace · t50"),
        (["mitigation=[standardize,leace]"], "position · demo · mid · standardize+leace · t50"),
        (["mitigation=[standardize,leace]", "datamodule.compare=true"],
         "position · demo · mid · standardize+leace compared · t50"),
        (["backbone=local", "backbone.path=/weights/mine", "timestep=10"], "position · local mine · mid · t10"),
        (["backbone.weights=random"], "position · demo random · mid · t50"),
        (["experiment=controls", "control=trained"], "controls · demo · mid+up_0+up_1 · trained · t50"),
    ],
)  # fmt: skip
def test_a_name_tells_runs_apart(configure, overrides: list[str], name: str) -> None:
    assert tracking.identity(configure(*overrides)).name == name


def test_groups_and_tags_hold_what_belongs_together(configure, tmp_path: Path, monkeypatch) -> None:
    raw, mitigated = (tracking.identity(configure(f"mitigation={name}")) for name in ("none", "[standardize,leace]"))
    assert raw.group == mitigated.group and raw.name != mitigated.name
    assert tracking.identity(configure("images=folder", f"images.root={tmp_path}")).group != raw.group
    assert {"mitigation=standardize", "mitigation=leace"} <= set(mitigated.tags)
    assert "mitigation=none" in raw.tags
    monkeypatch.setattr(tracking.sweep, "name", lambda: "2026-01-31-12-00-00")
    job = tracking.identity(configure("timestep=10"))
    assert "sweep=2026-01-31-12-00-00" in job.tags and job.group == raw.group


# ---------------------------------------------------------------- what goes wrong


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A logger that is finished after the test; ``environment`` in place of the tests' own."""
    begun = []

    def make(folder: str = ".", **environment: str) -> Any:
        for name in ("WANDB_MODE", "WANDB_API_KEY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        (tmp_path / folder).mkdir(exist_ok=True)
        begun.append(tracking.wandb_logger(IDENTITY, str(tmp_path / folder)))
        return begun[-1]

    yield make
    for logger in begun:
        tracking.finish(logger)


def service() -> int:
    """wandb's process below this one."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rsplit(")", 1)[1].split()[1])
            named_so = b"wandb-core" in stat.with_name("cmdline").read_bytes()
        except OSError:  # it ended meanwhile
            continue
        if parent == os.getpid() and named_so:
            return int(stat.parent.name)
    raise AssertionError("wandb's service is no child of this process")


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds wandb's process in /proc")
def test_a_kill_leaves_the_configuration_and_costs_a_warning(begin, tmp_path: Path, caplog) -> None:
    logger = begin(WANDB_MODE="offline")
    [part] = parts(tmp_path)
    [file] = part.glob("*.wandb")
    deadline = time.monotonic() + 5
    while file.stat().st_size < 1000 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "Tracking failed" not in caplog.text
    os.kill(service(), signal.SIGKILL)
    read = Offline.read(part)
    assert read.config["probe"] == "position" and read.config["settings"] == {"seed": 0}
    deadline = time.monotonic() + 30
    while "Tracking failed" not in caplog.text and time.monotonic() < deadline:
        logger.log_metrics({"train/loss": 1.0}, 1)
        time.sleep(0.05)
    tracking.log_results(logger, Run({}, {}, {}), ["mid"], [])
    tracking.finish(logger)
    assert "Tracking failed" in caplog.text
    with pytest.raises(ConnectionError):  # the next test gets a service of its own
        tracking.wandb.teardown()


def test_an_unreachable_server_turns_the_run_offline(begin, monkeypatch: pytest.MonkeyPatch) -> None:
    real, modes = tracking.wandb.init, []

    def init(mode: str, **named: object) -> object:
        modes.append(mode)
        if mode == "online":
            raise CommError("no route to host")
        return real(mode=mode, **named)

    monkeypatch.setattr(tracking.wandb, "login", lambda prompt: True)
    monkeypatch.setattr(tracking.wandb, "init", init)
    assert begin().experiment.offline
    assert modes == ["online", "offline"]


def test_a_key_that_is_none_turns_the_run_offline(begin, caplog) -> None:
    assert begin(WANDB_API_KEY="no key").experiment.offline
    assert "wandb cannot be used online" in caplog.text and "The run is logged offline" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("answers", [False, True])
def test_a_dead_or_slow_server_turns_the_run_offline(begin, answers: bool) -> None:
    """One refuses connections, the other takes them and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        if not answers:
            server.close()
        started = time.monotonic()
        assert begin(WANDB_API_KEY="0" * 40, WANDB_BASE_URL=f"http://127.0.0.1:{port}").experiment.offline
        assert time.monotonic() - started < 2 * tracking.PATIENCE


def test_a_full_disk_leaves_a_run_without_a_tracker(begin, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    def full(**_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tracking.wandb, "init", full)
    assert begin(WANDB_MODE="offline") is None
    assert "wandb cannot start a run (OSError: [Errno 28] No space left on device). The run is not tracked." in caplog.text


def test_the_mode_of_the_environment_wins(begin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking.wandb, "login", lambda prompt: pytest.fail("nobody asks for a key"))
    assert begin(WANDB_MODE="disabled").experiment.disabled


def test_a_misspelt_mode_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "ofline")
    with pytest.raises(InputError, match="WANDB_MODE to be one of online, offline, disabled, shared, but got 'ofline'"):
        tracking.wandb_logger(IDENTITY, str(tmp_path))


@pytest.mark.parametrize("project", ["a/b", "a" * 129])
def test_a_project_that_wandb_refuses_is_refused_before_anything_is_imported(project: str) -> None:
    with pytest.raises(InputError, match=r"^Expected logger\.project to be at most 128 characters without / .* Choose another"):
        configuration.check(as_overrides([f"logger.project={project}"]))


# ---------------------------------------------------------------- TensorBoard


def test_without_its_package_tensorboard_is_refused_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configuration, "_installed", lambda module: False)
    with pytest.raises(InputError, match=r"got 'tensorboard', which needs the extra of that name\. Install it: pip install"):
        configuration.check(["logger=tensorboard"])


def test_tensorboard_has_curves_over_layers_and_figures(launch, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = launch(*TINY, "logger=tensorboard", figures=True)
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    for point, layer in zip(events.Scalars("layers/binned_accuracy"), run.layers, strict=True):
        assert point.value == pytest.approx(run.value("test", layer, "binned_accuracy"))
    assert {"accuracy_over_layers", "predicted_against_true"} <= set(events.Tags()["images"])
    assert not [name for name in events.Tags()["scalars"] if name.startswith(("test/", "val/")) and name.count("/") > 1]

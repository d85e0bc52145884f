"""Training of the demo model in miniature: it learns, and stopping it changes nothing."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file

from sdprobe.backbones.embedded import DEMO
from sdprobe.scenes import CATEGORIES
from sdprobe.scenes.composition import compose, main_category
from sdprobe.scenes.materials import Material
from sdprobe.scenes.truth import render
from sdprobe.utilities.io import read_state, write_state
from tools.demo import autoencoder, depth, diffusion, networks, train
from tools.demo.captions import caption, colour, parts
from tools.demo.latents import Latents, Painters, Pool, shards
from tools.demo.parts import names, part_map
from tools.demo.portraits import portrait
from tools.demo.states import log_line
from tools.demo.text import text_encoder

pytestmark = pytest.mark.slow  # minutes of training, for a recipe that nothing else imports

SMALL = [
    "autoencoder.widths=[8,8,16,16]",
    "autoencoder.steps=3",
    "autoencoder.scenes.count=2",
    "autoencoder.scenes.sizes=[64]",
    "autoencoder.batch=2",
    "unet.block_out_channels=[16,16,16,16]",
    "unet.text_width=16",
    "unet.text_layers=1",
    "diffusion.pictures={portraits: {seed: 2, counts: {64: 3}}, scenes: {seed: 1, counts: {64: 3, 128: 2}}}",
    "diffusion.stages=[{samples: 4, batch: 2, views: [{kind: portraits, size: 64, window: 8}]},"
    "{samples: 4, batch: 2, views: [{kind: scenes, size: 64, window: 8}, {kind: scenes, size: 128, window: 8}]}]",
    "diffusion.warmup=1",
    "save_every=0",
    "devices=1",
    "painters=0",
]
CUT = "{up_0: [0, 1, 2], up_2: [0]}"
CUTTING = f"diffusion.stages=[{{samples: 4, batch: 2, rate: 0.01, cut: {CUT}, clean: 0.1, decay: true, "
CUTTING += "views: [{kind: portraits, size: 64, window: 8}]}]"


def run(folder: Path, *changes: str) -> dict[str, torch.Tensor]:
    train.main([*SMALL, f"work={folder / 'work'}", f"folder={folder / 'model'}", *changes])
    return load_file(folder / "model" / "unet" / "diffusion_pytorch_model.safetensors")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    return run(tmp_path_factory.mktemp("uninterrupted"))


@pytest.mark.parametrize("steps", [1, 3])
def test_a_stopped_run_goes_on_to_the_same_weights(
    steps: int, uninterrupted: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = diffusion.batch, []

    def stopping(*arguments: object) -> object:
        calls.append(1)
        if len(calls) > steps:
            raise KeyboardInterrupt
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(diffusion, "batch", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert not (tmp_path / "model").exists()
    monkeypatch.setattr(diffusion, "batch", original)
    resumed = run(tmp_path)
    assert all(torch.equal(resumed[name], value) for name, value in uninterrupted.items())


def test_pictures_that_are_drawn_beside_training_are_the_same(uninterrupted: dict[str, torch.Tensor], tmp_path: Path) -> None:
    beside = run(tmp_path, "painters=1")
    assert all(torch.equal(beside[name], value) for name, value in uninterrupted.items())


def test_a_stage_cuts_skip_connections_for_good(tmp_path: Path) -> None:
    run(tmp_path / "first")
    run(tmp_path, f"start={tmp_path / 'first' / 'model'}", CUTTING)
    before, after = (
        UNet2DConditionModel.from_pretrained(tmp_path / name, subfolder="unet") for name in ("first/model", "model")
    )
    skips = OmegaConf.create(CUT)
    assert not depth.is_cut(before, skips) and depth.is_cut(after, skips)
    assert not depth.is_cut(after, {"up_2": [1]}), "only these"
    trained = after.up_blocks[0].resnets[0].conv_shortcut.weight[:, :16, 0, 0]
    assert 0 < (trained - torch.eye(16)).abs().max() < 0.1, "it began as the identity and was trained"


def test_a_transformer_is_trained_saved_and_sampled_by_diffusers_alone(tmp_path: Path) -> None:
    folder, stage = tmp_path / "model", "{samples: 4, batch: 2, views: [{kind: portraits, size: 64, window: 8}]}"
    options = ["recipe=dit", f"vae={DEMO}", "painters=0", f"work={tmp_path / 'work'}", f"folder={folder}", "diffusion.warmup=1"]
    options.append("dit={heads: 2, head_width: 8, blocks: 2, aligned: 0, text_width: 16, text_layers: 1}")
    options.append("diffusion.pictures={portraits: {seed: 2, counts: {64: 3}}, scenes: {seed: 1, counts: {}}}")
    train.main([*options, f"diffusion.stages=[{stage}]"])
    pipe = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    assert type(pipe).__name__ == "PixArtAlphaPipeline"
    pipe.set_progress_bar_config(disable=True)

    def drawn(prompt: str) -> np.ndarray:
        generator = torch.Generator().manual_seed(0)
        return pipe(
            prompt, num_inference_steps=2, height=64, width=64,
            use_resolution_binning=False, generator=generator, output_type="np",
        ).images[0]  # fmt: skip

    bird = drawn("a bird")
    assert (
        bird.shape == (64, 64, 3) and np.array_equal(bird, drawn("a bird")) and not np.array_equal(bird, drawn("a red house"))
    )
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    before = load_file(weights)
    train.main([*options, f"diffusion.stages=[{stage}, {stage}]"])
    assert any(not torch.equal(before[name], value) for name, value in load_file(weights).items()), "it went on"


def test_a_finished_run_only_writes_the_folder_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(tmp_path)
    monkeypatch.setattr(diffusion, "losses", None)  # training again would fail
    monkeypatch.setattr(autoencoder, "loss", None)
    again = run(tmp_path)
    assert all(torch.equal(again[name], value) for name, value in first.items())


def test_training_goes_on_from_a_finished_folder(tmp_path: Path) -> None:
    first = run(tmp_path / "first")
    stages = "diffusion.stages=[{samples: 2, batch: 2, rate: 0.0, views: [{kind: portraits, size: 64, window: 8}]}]"
    again = [f"start={tmp_path / 'first' / 'model'}", f"work={tmp_path / 'work'}", f"folder={tmp_path / 'second'}", stages]
    train.main([*SMALL, *again, "diffusion.weight_decay=0"])
    second = load_file(tmp_path / "second" / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(second[name], value) for name, value in first.items()), "a step of rate 0 changes nothing"
    assert not (tmp_path / "work" / "autoencoder.pt").exists(), "the autoencoder is the folder's"


def test_an_untrained_autoencoder_shows_a_thumbnail() -> None:
    vae = autoencoder.build([16, 32, 64, 128])
    images = autoencoder.pictures(3, 2, 128).float() / 127.5 - 1
    with torch.no_grad():
        shown = vae.decode(vae.encode(images).latent_dist.mean).sample
    cells = torch.nn.functional.avg_pool2d(images, 8).repeat_interleave(8, -1).repeat_interleave(8, -2)
    assert (shown - cells).abs().mean() < 0.06
    # grey would be off by the pictures' own spread of colour
    assert (shown - cells).abs().mean() < 0.3 * (cells.mean(1, keepdim=True) - cells).abs().mean() + 0.03


def test_the_diffusion_loss_falls_on_one_image() -> None:
    torch.manual_seed(0)
    widths = [16, 16, 16, 16]
    config = OmegaConf.create({"block_out_channels": widths, "attention_heads": 2, "text_width": 16, "text_layers": 1})
    words = train.words(10002)
    model = networks.UNet(config, words)
    latents = torch.randn(1, 4, 8, 8).repeat(4, 1, 1, 1)
    tokens = words(["a bird"] * 4, padding="max_length", return_tensors="pt").input_ids
    where = torch.randint(len(names()), (1, 8, 8)).expand(4, -1, -1)
    optimiser, errors = torch.optim.Adam(model.parameters(), 3e-3), []
    for step in range(60):
        noise, timesteps = diffusion.corruption(latents.shape, torch.Generator().manual_seed(step % 4))
        parts = diffusion.losses(model, diffusion.scheduler(), latents, tokens, where, noise, timesteps)
        optimiser.zero_grad()
        (parts[0] + 0.1 * parts[1] + 0.1 * parts[2]).backward()
        optimiser.step()
        errors.append([part.item() for part in parts])
    first, last = (np.mean(part, 0) for part in (errors[:4], errors[-4:]))
    assert (last < first * [0.5, 0.8, 0.8]).all()


def test_part_maps_are_those_of_the_rendered_scene() -> None:
    for index in range(8):
        scene, found = render(compose(5, index), 64), part_map(compose(5, index), 64)
        for number in found.unique().tolist():
            name = names()[number]
            rendered = [
                k
                for k, known in enumerate(scene.part_names)
                if known == name or (name == "occluder" and known.startswith(name))
            ]
            assert np.array_equal(found.numpy() == number, np.isin(scene.part_mask, rendered)), name


def test_batches_cut_latents_and_parts_at_the_same_place() -> None:
    places = torch.arange(256).view(1, 16, 16)
    data = Latents(places[:, None].expand(-1, 4, -1, -1).half(), [["a bird"] * 4], places.to(torch.uint8))
    latents, _, parts_cut = diffusion.batch(data, 6, 5, 0.0, torch.Generator().manual_seed(0))
    assert torch.equal(latents[:, 0].long(), parts_cut) and len(parts_cut[:, 0, 0].unique()) > 1


def test_the_schedule_is_stable_diffusions() -> None:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    assert torch.allclose(diffusion.scheduler().alphas_cumprod, torch.cumprod(1 - betas, 0))


def test_captions_name_the_main_object_and_repeat() -> None:
    for index in range(16):
        composition = compose(5, index)
        texts = [caption(composition, torch.Generator().manual_seed(index)) for _ in range(2)]
        assert texts[0] == texts[1]
        assert composition.objects[0].figure.category in texts[0]


@pytest.mark.parametrize(
    ("rgb", "name"),
    [((200, 30, 30), "red"), ((20, 20, 25), "black"), ((235, 235, 230), "white"), ((130, 128, 125), "grey"),
     ((40, 160, 60), "green"), ((50, 70, 200), "blue"), ((110, 70, 30), "brown"), ((240, 140, 30), "orange")],
)  # fmt: skip
def test_colours_have_plain_names(rgb: tuple[int, int, int], name: str) -> None:
    assert colour(Material(Image.new("L", (4, 4), 7), bytes(rgb) * 256)) == name


def test_captions_say_what_is_there_half_of_the_time() -> None:
    for index in range(8):
        composition = portrait(5, index)
        main = composition.objects[0]
        texts = [caption(composition, torch.Generator().manual_seed(seed)) for seed in range(400)]
        said = {
            f"{colour(main.materials[0])} {main.figure.category}",
            "facing left" if main.flipped else "facing right",
            f"on {colour(composition.backdrop.base)} {composition.backdrop.kind}",
            " with ",
        }
        for words in said:
            assert 150 < sum(words in text for text in texts) < 250, words
        assert not any(("facing right" if main.flipped else "facing left") in text for text in texts)
        for text in texts:
            named = text.split(" with ")[1].split(" on ")[0].split(" and ") if " with " in text else []
            assert set(named) <= set(parts(main)) and len(named) <= 2


def test_parts_are_named_with_the_colour_they_wear() -> None:
    bird = next(c.objects[0] for c in map(partial(portrait, 5), range(8)) if c.objects[0].figure.category == "bird")
    second, third = (colour(bird.materials[slot]) for slot in (1, 2))
    assert {f"{second} wing", f"{second} tail", f"{third} leg", f"{third} beak"} <= set(parts(bird))
    assert not any(part.endswith(("body", "head")) for part in parts(bird)), "these wear the object's own colour"


def test_portraits_show_the_whole_object_alone_and_large() -> None:
    for index in range(24):
        composition = portrait(3, index)
        assert [layer.figure.category for layer in composition.objects] == [main_category(3, index)]
        x0, y0, x1, y1 = composition.objects[0].figure.extent
        assert min(x0, y0) > -1e-9 and max(x1, y1) < 1 + 1e-9
        assert 0.55 - 1e-9 < max(x1 - x0, y1 - y0) < 0.95 + 1e-9


def test_sentences_differ_before_training() -> None:
    """CLIP's own initial word vectors are so short that all sentences would be almost equal."""
    words = train.words(10002)
    torch.manual_seed(0)
    encoder = text_encoder(words, 64, 2)
    tokens = words(["a photo of a bird", "a photo of a house"], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        bird, house = encoder(tokens).last_hidden_state[:, 5]  # start, a, photo, of, a, the name
    assert (bird - house).norm() > 0.5 * bird.norm()


def test_category_names_are_single_tokens_and_any_text_can_be_spelled() -> None:
    words = train.words(10002)
    for name in CATEGORIES:
        assert len(words(name).input_ids) == 3, name  # start, the name, end
    spelled = words("Zürich 7!", add_special_tokens=False).input_ids
    assert words.decode(spelled).replace(" ", "") == "zürich7!"


def test_latents_are_made_once_and_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = autoencoder.build([8, 8, 16, 16])
    painters = Painters(vae, 0)
    parts = shards("portraits", 1, 3, 64, painters.model, tmp_path)
    first = Pool(painters, parts, 0).at(0, 0.0)
    monkeypatch.setattr(type(vae), "encode", None)
    again = Pool(painters, parts, 0).at(0, 0.0)
    assert torch.equal(first.values, again.values) and torch.equal(first.parts, again.parts)
    assert first.captions == again.captions
    assert first.values.shape == (3, 4, 8, 8) and first.parts.shape == (3, 8, 8)


def test_pictures_become_more_until_half_of_their_first_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.demo.latents.SHARD", 2)
    painters = Painters(autoencoder.build([8, 8, 16, 16]), 0)
    parts = shards("portraits", 1, 7, 64, painters.model, tmp_path)
    sizes = [len(Pool(painters, parts, 1).at(stage, share).captions) for stage, share in ((1, 0), (1, 0.2), (1, 0.5), (2, 0))]
    assert sizes == [2, 4, 7, 7]
    growing = Pool(painters, parts, 0)
    few, all_ = growing.at(0, 0.1), growing.at(0, 0.6)
    assert torch.equal(all_.values[:2], few.values) and all_.captions[:2] == few.captions
    whole = Pool(painters, shards("portraits", 1, 7, 64, painters.model, tmp_path), 0).at(1, 0.0)
    assert torch.equal(all_.values, whole.values)


def test_states_survive_an_interrupted_write(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    write_state(path, {"step": 1})
    with pytest.raises(TypeError, match="pickle"):
        write_state(path, {"step": 2, "weights": torch.ones(1000), "generator": (n for n in "cannot be saved")})
    assert read_state(path) == {"step": 1} and list(tmp_path.iterdir()) == [path]
    for step in (1, 2):
        log_line(tmp_path / "log.csv", step=step, loss=0.5)
    assert (tmp_path / "log.csv").read_text().split() == ["step,loss", "1,0.5", "2,0.5"]


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(SystemExit, match=r"Expected options of tools/demo/config\.yaml"):
        train.main(["no_such_option=1"])
    with pytest.raises(SystemExit, match=r"Expected recipe to be one of config, dit, but got 'unet'"):
        train.main(["recipe=unet"])

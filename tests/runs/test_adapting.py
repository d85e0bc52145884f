"""What commands mean for a family of networks, before torch is imported: layers, controls and refusals."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sdprobe.backbones.published import transformers
from sdprobe.runs import adapting, cli, configuration
from sdprobe.utilities.errors import InputError
from tests.backbones.tiny_transformers import network


def test_layers_of_u_nets_are_replaced_where_none_are_named() -> None:
    assert adapting.adapted(["backbone=flux_dev"]) == (["block=stages"], ["block=stages, because mid is of U-Nets."])
    for words in (["backbone=flux_dev", "block=block_3"], [], ["backbone=sd15"], ["backbone=flux_dev", "sweep=layers"]):
        assert adapting.adapted(words) == ([], [])
    assert adapting.adapted(["-m", "backbone=sd15,flux_dev"])[0] == ["block=stages"]
    assert adapting.adapted(["-m", "backbone=sd15,sd21"]) == adapting.adapted(["-m", "backbone=sd15,owner/name"]) == ([], [])
    words = adapting.adapted(["experiment=mitigations", "backbone=sd3"])[0]
    assert words == ["block=stages", "~mitigation.padding_swap"]
    cfg = configuration.check(["experiment=mitigations", "backbone=sd3", *words])
    assert cfg is not None and "padding_swap" not in cfg.mitigation and len(cfg.mitigation) > 10


@pytest.mark.parametrize(
    ("backbone", "kept", "gone"),
    [
        ("flux_dev", ["position_zero", "random_zero_2", "vae_sample", "trained"], ["circular", "random_circular", "no_vae"]),
        ("pixart_sigma", ["position_permuted", "no_vae", "random_zero"], ["replicate", "reflect"]),
        ("sana", ["circular", "random_circular_1", "reflect"], ["position_zero", "random_zero", "vae_sample", "no_vae"]),
        (
            "demo",
            ["circular", "no_vae", "vae_sample", "random_circular_2"],
            ["position_zero", "random_zero", "position_shifted"],
        ),
    ],
)
def test_controls_without_meaning_are_left_out_with_a_reason(backbone: str, kept: list[str], gone: list[str]) -> None:
    words, sentences = adapting.adapted(["experiment=controls", f"backbone={backbone}"])
    [controls] = [word.partition("=")[2].split(",") for word in words if word.startswith("control=")]
    assert set(kept) <= set(controls) and not set(gone) & set(controls)
    assert all(any(name in sentence and "Left out: " in sentence for sentence in sentences) for name in gone)
    # a command that names controls keeps them
    words, _ = adapting.adapted(["experiment=controls", f"backbone={backbone}", "control=trained,circular"])
    assert not any(word.startswith("control=") for word in words)


def test_u_nets_keep_their_controls() -> None:
    [word], _ = adapting.adapted(["experiment=controls"])
    seeds = ("", "_1", "_2")
    assert word.partition("=")[2].split(",") == [
        "trained", "random_0", "random_1", "random_2", "shuffled", "replicate", "reflect", "circular", "shared", "rolled",
        "noiseless", "shared_261", "flipped", "crops", "texture", "periodic", "constant", "vae_sample", "vae_unit", "no_vae",
        *(f"random_periodic{seed}" for seed in seeds), *(f"random_circular{seed}" for seed in seeds),
    ]  # fmt: skip


REFUSED = {
    "backbone=sd3 backbone.padding=circular": r"padding=zeros for SD3.*, which has no convolutions that pad.*position=zero",
    "backbone=sana backbone.position=zero": r"position=stored for Sana.*padding=circular",
    "backbone=demo backbone.position=permuted": r"position=stored for UNet2DConditionModel, which has no position embedding",
    "backbone=flux_dev probe=role": r"a U-Net for probe=role, .* but got FluxTransformer2DModel",
    "backbone=dit_xl datamodule.inside=true mitigation=position_mean": r"a U-Net for datamodule.inside=true",
    "backbone=sd3 mitigation=padding_swap": r"convolutions that pad for mitigation=padding_swap, but got SD3",
    "backbone=lumina2 images=texture_latents": r"4 channels and 8 pixels per cell for images=texture_latents, .* Lumina2",
    "backbone=sana backbone.posterior=sample": r"posterior=mode for Sana",
    "backbone=dit_xl backbone.text=none": r"classes in place of text",
    "backbone=sd3 backbone.text=none prompt=cat": r"an empty prompt with text=none, which encodes none, but got 'cat'",
    "backbone=flux_dev backbone.precision=fp16": r"precision bf16 or fp32 for FluxTransformer2DModel",
    "backbone=local backbone.path=stabilityai/stable-diffusion-3.5-large block=mid": r"a layer of SD3Transformer2DModel",
    "backbone=sd3 block=mid": r"block to be a layer of SD3.*such as patch, block_12 .* but got 'mid'",
    "backbone=sd3 block=loos2025": r"but got 'loos2025'",
    "backbone=sd15 block=block_3": r"Expected block to be a layer, .* got 'block_3'",
    "backbone=sd3 block=[]": r"got an empty list. Use block=block_0,",
    "backbone.path=/nowhere block=mi": r"got 'mi'",
}


@pytest.mark.parametrize("command", REFUSED)
def test_what_a_family_cannot_do_is_refused(command: str) -> None:
    with pytest.raises(InputError, match=REFUSED[command]) as caught:
        configuration.check(command.split())
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "lumina2")) for name in transformers()]
)
def test_names_of_blocks_pass_for_every_transformer(name: str) -> None:
    blocks = "[patch,block_12,block_28_norm,'block_*',all,stages,inside,latent,noisy_latent,'single_transformer_blocks[9]']"
    configuration.check([f"backbone={name}", f"block={blocks}".replace("[9]", ".9")])


def test_a_folder_that_does_not_exist_is_of_no_family() -> None:
    configuration.check(["backbone=local", "backbone.path=/no/such/folder", "backbone.position=zero"])


def test_a_folder_is_of_the_family_of_its_transformer(tmp_path: Path) -> None:
    network("sana").save_config(tmp_path / "transformer")
    words = ["backbone=local", f"backbone.path={tmp_path}"]
    assert adapting.adapted(words)[0] == ["block=stages"]
    with pytest.raises(InputError, match="position=stored for Sana"):
        configuration.check([*words, "backbone.position=zero", "block=all"])
    network("sana", interpolation_scale=1.0).save_config(tmp_path / "transformer")  # for images of 2048 pixels
    configuration.check([*words, "backbone.position=zero", "block=all"])


@pytest.mark.slow
def test_a_command_says_what_it_reads(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    words = cli.prepare(["backbone=dit_xl", "images.limit=20"])
    assert "block=stages" in words
    assert "block=stages, because mid is of U-Nets.\nProbe position, backbone dit_xl" in capsys.readouterr().err


def test_settings_that_transformers_brought_leave_hashes_as_they_were(configure: Callable[..., object]) -> None:
    from sdprobe.runs.record import result_settings

    plain, other = (result_settings(configure(*words)) for words in ((), ("backbone.position=zero",)))  # type: ignore[arg-type]
    assert not {"position", "text"} & plain["backbone"].keys() and other["backbone"]["position"] == "zero"


SMALL: list[str] = []

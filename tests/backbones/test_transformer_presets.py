"""Published diffusion transformers without weights: the command that lists layers, and the table of docs/transformers.md."""

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from sdprobe.backbones.__main__ import main
from sdprobe.backbones.architectures import meta_transformer
from sdprobe.backbones.capabilities import KINDS, UNET, Capabilities, check_edits, check_options, check_prompt_cache, left_out
from sdprobe.backbones.families import FAMILIES
from sdprobe.backbones.positions import kind_of
from sdprobe.backbones.published import transformers
from sdprobe.backbones.transformer import FrozenTransformer
from sdprobe.runs.groups import options
from sdprobe.utilities.errors import InputError
from tests.backbones.tiny_transformers import network

PAGE = Path(__file__).parents[2] / "docs" / "transformers.md"
# blocks, channels and billions of parameters, as the authors state them
PUBLISHED = {
    "pixart_alpha": (28, 1152, 0.6), "pixart_sigma": (28, 1152, 0.6), "sd3": (24, 1536, 2.0), "sd35_medium": (24, 1536, 2.5),
    "sd35_large": (38, 2432, 8.1), "flux_dev": (57, 3072, 12), "flux_schnell": (57, 3072, 12), "dit_xl": (28, 1152, 0.68),
    "sana": (20, 2240, 1.6), "lumina2": (28, 2304, 2.6),
}  # fmt: skip


@cache
def made_of(name: str) -> FrozenTransformer:
    """A published network without weights."""
    return FrozenTransformer(meta_transformer(name))


def overview() -> list[str]:
    """The table of the page."""
    lines = [
        "| name | pipeline | blocks | channels | parameters | pixels per token | noise | position | text |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, entry in transformers().items():
        made = made_of(name)
        pipelines = made.family.pipelines
        pipeline = pipelines[name == "pixart_sigma"]
        noise = "flow" if made.family.flow else "DDPM"
        kind = {"none": "zero padding"}.get(kind_of(made.network, made.family), kind_of(made.network, made.family))
        cells = [
            f"`{name}`", f"`{pipeline}`", len(made.layers) - 1, made.channels, f"{made.stored / 1e9:.1f} · 10⁹",
            made.pixels_per_cell * made.patch, noise, kind, "; ".join(entry["text"]),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def test_the_table_of_the_page_is_that_of_the_code() -> None:
    [found] = re.findall(r"<!-- families -->\n(.*?)<!-- /families -->", PAGE.read_text(), flags=re.S)
    assert found.splitlines() == overview(), "\n".join(overview())


def can(kind: Capabilities, check: Callable[[Capabilities], object]) -> str:
    """``yes``, or ``–`` where the check refuses."""
    try:
        return "–" if check(kind) else "yes"
    except InputError:
        return "–"


def option(**options: str) -> Callable[[Capabilities], None]:
    return lambda kind: check_options(kind, **options)


def control(name: str) -> Callable[[Capabilities], object]:
    return lambda kind: left_out(kind, [name])


def abilities() -> list[str]:
    """The table of what each family can do, from the checks that commands make."""
    probes = [name for name in options("probe") if name != "role"]
    controls = list(dict.fromkeys(re.sub(r"_\d+$", "", name) for name in options("control")))
    always = [name for name in controls if not any(left_out(kind, [name]) for kind in KINDS.values())]
    rows: dict[str, Callable[[Capabilities], object]] = {
        f"`probe=` {', '.join(probes)}": lambda kind: None,
        "`probe=role`, `datamodule.inside=true`": lambda kind: check_edits(kind, "it"),
        "`backbone.weights=random`, `shuffled`": lambda kind: None,
        "`backbone.padding`, `mitigation=padding_swap`": option(padding="circular"),
        "`backbone.position=zero`, `permuted`, `shifted`": option(position="zero"),
        "`backbone.posterior=sample`": option(posterior="sample"),
        "`backbone.text=none`": option(text="none"),
        "`backbone.precision=fp16`": option(precision="fp16"),
        "`backbone.prompt_cache=true`": lambda kind: check_prompt_cache("it", prompt=kind.prompt),
        "`prompt=` text": lambda kind: kind.prompt != "text",
        "folder without T5": lambda kind: not kind.optional_text,
        "`images=texture_latents`": lambda kind: not kind.latents,
        f"`control=` {', '.join(always)}": lambda kind: None,
        **{f"`control={name}`": control(name) for name in controls if name not in always},
    }
    lines = [f"| | {' | '.join(kind.name for kind in KINDS.values())} |", "|---|" + "---|" * len(KINDS)]
    return lines + [f"| {name} | {' | '.join(can(kind, check) for kind in KINDS.values())} |" for name, check in rows.items()]


def test_the_table_of_capabilities_is_that_of_the_code() -> None:
    [found] = re.findall(r"<!-- capabilities -->\n(.*?)<!-- /capabilities -->", PAGE.read_text(), flags=re.S)
    assert found.splitlines() == abilities(), "\n".join(abilities())
    assert {kind.network for kind in KINDS.values()} == {UNET, *(family.network for family in FAMILIES)}
    assert all(
        bool(kind.optional_text) == any(each.optional for each in FAMILIES if each.network == kind.network)
        for kind in KINDS.values()
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_those_that_the_authors_publish(name: str) -> None:
    blocks, width, billions = PUBLISHED[name]
    made = made_of(name)
    assert (len(made.layers) - 1, made.channels) == (blocks, width)
    # diffusers gives every block of DiT embeddings of noise level and class of its own
    assert abs(made.stored / 1e9 / billions - 1) < (0.12 if name == "dit_xl" else 0.05)


@pytest.mark.parametrize("name", ["flux_dev", "sana"])
def test_the_command_lists_layers_memory_and_licence(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    main([name, "--inside"])
    out = capsys.readouterr().out
    entry = transformers()[name]
    assert entry["licence"] in out and entry["repository"] in out
    assert "GB in bf16" in out
    if name == "flux_dev":
        assert "flux_dev at 1024 px: 58 layers, 57 inputs of attention" in out and "23.8 GB in bf16" in out
        line = next(line for line in out.splitlines() if " block_28_norm " in line)
        assert all(text in line for text in ("single_transformer_blocks[9].attn (input)", "64×64", "3072", "k=28"))
        assert not any("k=" in line for line in out.splitlines() if " block_18_norm " in line)
    else:
        assert "32×32" in out and "DiTF" not in out and "none but the border" in out


def test_a_folder_is_listed_and_wrong_sizes_and_classes_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network("sd3").save_config(tmp_path / "transformer")
    main([str(tmp_path), "--size", "256"])
    assert "at 256 px: 5 layers" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--size", "250"])
    assert "Expected size to be a positive multiple of 16, but got 250" in capsys.readouterr().err
    (tmp_path / "transformer" / "config.json").write_text('{"_class_name": "WanTransformer3DModel"}')
    with pytest.raises(SystemExit):
        main([str(tmp_path)])
    assert "to be one of DiTTransformer2DModel, " in capsys.readouterr().err
    (tmp_path / "transformer" / "config.json").write_text('{"_class_name": "SD3Transformer2DModel", "num_layers": "x"}')
    with pytest.raises(SystemExit):
        main([str(tmp_path)])
    assert "Expected config.json to describe a SD3Transformer2DModel, but got: 'str' object" in capsys.readouterr().err


def test_presets_are_of_the_families_and_state_their_sources() -> None:
    assert {made_of(name).family for name in transformers()} == set(FAMILIES)
    for entry in transformers().values():
        assert entry["source"].startswith("defaults of the class in diffusers 0.42.1") and "licence" in entry["source"]
        named = entry["source"] + "as many heads as layers: num_layers, num_attention_heads, caption_projection_dim"
        assert all(setting in named for setting in entry["config"])

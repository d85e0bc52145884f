"""What is installed from a wheel: one package, complete, and quick to import."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "python.md")
BLOCKS = [text for path in DOCUMENTS for text in re.findall(r"^```python\n(.*?)^```", path.read_text(), re.S | re.M)]
EXAMPLES = [text for text in BLOCKS if "RUN_FOLDER" not in text]  # runs need the checkout
# appended to what runs: everything of this project was imported from the installed package
INSTALLED = """
import sys
mine = ("sdprobe", "probes", "datamodules", "tools", "train", "configs")
found = {name: module.__file__ for name, module in sys.modules.items() if name.split(".")[0] in mine}
assert found and all(name.split(".")[0] == "sdprobe" and file.startswith(sys.argv[1]) for name, file in found.items()), found
"""


def python(code: str, *arguments: str, cwd: Path | None = None, path: Path | None = None) -> str:
    """What a fresh interpreter prints for this code."""
    environment = os.environ | ({"PYTHONPATH": str(path)} if path else {})
    answer = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def test_importing_the_package_loads_no_network_library() -> None:
    heavy = ("torch", "numpy", "diffusers", "transformers", "omegaconf")
    assert python(f"import sys, sdprobe; print(sorted({{*{heavy}}} & set(sys.modules)))").strip() == "[]"


def test_public_names_are_there_and_others_are_refused() -> None:
    import sdprobe
    from sdprobe import FrozenSD, mitigations, position

    assert FrozenSD.__name__ == "FrozenSD" and mitigations.Leace and {"FrozenSD", "mitigations"} <= set(dir(sdprobe))
    assert position.__name__ == "position" and set(sdprobe.__all__) <= set(dir(sdprobe))
    with pytest.raises(AttributeError, match="'sdprobe' has no attribute 'FrozenSDX'"):
        _ = sdprobe.FrozenSDX


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what a wheel of this checkout installs, and nothing else."""
    folder = tmp_path_factory.mktemp("wheel")

    def pip(*arguments: str) -> None:
        options = ("--quiet", "--no-deps", "--disable-pip-version-check")
        subprocess.run([sys.executable, "-m", "pip", *arguments, *options], check=True)

    pip("wheel", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT))
    [wheel] = folder.glob("*.whl")
    pip("install", "--target", str(folder / "site"), str(wheel))
    return folder


@pytest.mark.slow
def test_a_wheel_holds_one_package_with_weights_presets_and_types(installed: Path) -> None:
    [wheel] = installed.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"sdprobe"}
    files = {
        "py.typed", "backbones/presets.yaml", "backbones/architectures.json", "reports/loos2025.json",
        "assets/demo/unet/diffusion_pytorch_model.safetensors", "assets/demo/tokenizer/vocab.json",
        "assets/demo_dit/transformer/diffusion_pytorch_model.safetensors",
    }  # fmt: skip
    assert {f"sdprobe/{name}" for name in files} <= set(names)


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda text: text.splitlines()[-1][:40])
def test_the_readmes_examples_run_from_a_wheel_away_from_the_checkout(example: str, installed: Path, tmp_path: Path) -> None:
    printed = python(example + INSTALLED, str(installed), cwd=tmp_path, path=installed / "site")
    assert re.search(r"[(\[](2, 128, 4, 4|2, 2, 64, 8, 8|8, 64, 8, 8)[)\]]|95 % intervals over \d+ ", printed)


def test_there_are_seven_examples() -> None:
    assert len(EXAMPLES) == 7

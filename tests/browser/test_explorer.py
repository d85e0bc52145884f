"""The explorer's page in a real browser: it shows what torch computes, obeys keys and addresses, and runs no name."""

from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from sdprobe.mitigations import PositionMean
from sdprobe.reports.explorer import page
from sdprobe.tokens.batch import GridBatch
from sdprobe.tokens.groups import token_groups
from sdprobe.tokens.kept import KeptTokens, Plan
from tests.planted import position_code

pytestmark = pytest.mark.browser
HOSTILE = ("<script>window.injected = 1</script>", '"\'><img src=x onerror="window.injected = 1">')
LAYERS = {"mid": (24, 4), "up_1": (24, 16)}  # channels, side


class Shown(NamedTuple):
    """A page, and the grids that it shows."""

    path: Path
    grids: dict[str, Tensor]
    random: dict[str, Tensor]
    tokens: dict[str, np.ndarray]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    """Three images whose tokens are a planted position grid and noise, the grid removed by a mitigation, and random ones."""
    generator = torch.Generator().manual_seed(0)
    grids, random = {}, {}
    for layer, (channels, side) in LAYERS.items():
        code = position_code(channels, side, side, 3 * channels**0.5, generator).float()
        noise = torch.randn(67, channels, side, side, generator=generator)
        noise[:3, :, 0, 0] *= 30
        grids[layer] = code + noise[:3]
        grids[f"{layer}__position_mean"] = PositionMean().fit(code + noise[3:]).transform(grids[layer])
        for name in (layer, f"{layer}__position_mean"):
            random[name] = torch.randn(3, channels, side, side, generator=generator)
    path = tmp_path_factory.mktemp("page") / "explorer.html"
    tokens = kept_tokens({"trained": grids, "random": random}, [*HOSTILE, "third"])
    path.write_text(page(tokens, "a network", timesteps=[50]))
    return Shown(path, grids, random, tokens)


def kept_tokens(networks: dict[str, dict[str, Tensor]], names: list[str]) -> dict[str, np.ndarray]:
    """What a page shows of grids of three images."""
    shapes: dict[str, tuple[int, int, int]] = {name: grid.shape[1:] for name, grid in networks["trained"].items()}  # type: ignore[misc]
    plan = Plan.of(shapes, 3, 2, networks)
    tokens = {"names": np.array(names), "pictures": np.zeros((3, 8, 8, 3), np.uint8)}
    for network, found in networks.items():
        kept = KeptTokens(plan, network)
        masks = {name: token_groups(grid) for name, grid in found.items()}
        kept.take(GridBatch(found, masks, torch.arange(3), torch.arange(3)))
        tokens |= {name: tensor.numpy() for name, tensor in kept.arrays.items()}
    return tokens


def similarities(grid: Tensor, token: tuple[int, int], image: int, other: int, centred: bool, kind: str) -> Tensor:
    """A token's similarity to all tokens of another image, as torch computes it."""
    grid = grid - grid.mean((2, 3), keepdim=True) if centred else grid
    one, all_ = grid[image, :, token[0], token[1]], grid[other].flatten(1).T
    if kind == "distance":
        return (all_ - one).norm(dim=1)
    return all_ @ one if kind == "dot" else normalize(all_, dim=1) @ normalize(one, dim=0)


def values(browser: Any, layer: str, side: str) -> Tensor:
    return torch.tensor(browser.execute_script("return explorer.values(...arguments)", layer, side))


def stated(browser: Any) -> dict[str, list[float]]:
    """What the page says of its largest errors: layer, mitigation and weights → cosine, dot product, distance."""
    script = "return [...document.querySelectorAll('#exactness tr')].slice(1).map(r => [...r.cells].map(c => c.textContent))"
    return {row[0]: [*map(float, row[2:])] for row in browser.execute_script(script)}


def choose(browser: Any, name: str, option: str) -> None:
    from selenium.webdriver.support.ui import Select

    Select(browser.find_element("id", f"choose-{name}")).select_by_visible_text(option)
    frame(browser)


def frame(browser: Any) -> None:
    """Wait for the next picture."""
    browser.execute_async_script("const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(done))")


def hover(browser: Any, panel: Any, row: int, col: int, side: int) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    box = panel.rect
    x, y = ((place + 0.5) / side - 0.5 for place in (col, row))
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", panel)
    ActionChains(browser, duration=0).move_to_element_with_offset(panel, x * box["width"], y * box["height"]).perform()
    frame(browser)


def maps(browser: Any, layer: str) -> list[Any]:
    place = [heading.text for heading in browser.find_elements("css selector", ".layer h2")].index(layer)
    return browser.find_elements("css selector", ".layer")[place].find_elements("css selector", ".map")


def numbers(browser: Any) -> dict[str, dict[str, str]]:
    """Column → row → text of the table of numbers."""
    head = [cell.text for cell in browser.find_elements("css selector", "#numbers thead th")]
    script = (
        "return [...document.querySelectorAll('#numbers tbody tr')].map(row => [...row.cells].map(cell => cell.textContent))"
    )
    rows = browser.execute_script(script)
    return {name: {row[0]: row[1 + place] for row in rows} for place, name in enumerate(head)}


@pytest.mark.parametrize(("kind", "place"), [("cosine similarity", 0), ("dot product", 1), ("distance", 2)])
@pytest.mark.parametrize("centred", [True, False])
def test_hovering_shows_what_torch_computes(show, shown: Shown, kind: str, place: int, centred: bool) -> None:
    browser = show(shown.path, f"#image=1&second=2&centred={int(centred)}")
    choose(browser, "show", kind)
    for layer, (row, col) in {"mid": (2, 1), "up_1": (5, 9)}.items():
        side = LAYERS[layer][1]
        hover(browser, maps(browser, layer)[0], row, col, side)
        bound = stated(browser)[f"{layer}, trained"][place]
        for panel, other in (("a", 1), ("b", 2)):
            expected = similarities(shown.grids[layer], (row, col), 1, other, centred, kind.split()[0])
            torch.testing.assert_close(values(browser, layer, panel), expected, rtol=0, atol=bound)
        for coarse in (name for name in LAYERS if LAYERS[name][1] < side):  # the token at the same relative position
            at = (row * LAYERS[coarse][1] // side, col * LAYERS[coarse][1] // side)
            expected = similarities(shown.grids[coarse], at, 1, 2, centred, kind.split()[0])
            bound = stated(browser)[f"{coarse}, trained"][place]
            torch.testing.assert_close(values(browser, coarse, "b"), expected, rtol=0, atol=bound)


def test_numbers_under_the_pointer(show, shown: Shown) -> None:
    browser = show(shown.path, "#image=0&second=1&layer=up_1&row=0&col=0")
    grid = shown.grids["up_1"]
    token = numbers(browser)["token"]
    norms = grid[0].norm(dim=0)
    logs = norms.log().flatten()
    deviation = 1.4826 * (logs - logs.median()).abs().median()
    assert (token["row"], token["column"], token["picture"]) == ("0", "0", "first")
    assert token["group"] == "corner, high norm"
    assert float(token["norm"]) == pytest.approx(norms[0, 0].item(), rel=1e-3)
    assert float(token["z of the norm"]) == pytest.approx(((logs[0] - logs.median()) / deviation).item(), abs=2e-3)
    browser.find_element("id", "hold").click()
    hover(browser, maps(browser, "up_1")[1], 7, 3, 16)
    pointer = numbers(browser)["pointer"]
    expected = similarities(grid, (0, 0), 0, 1, True, "cosine").view(16, 16)[7, 3].item()
    assert (pointer["row"], pointer["column"], pointer["group"]) == ("7", "3", "interior")
    assert float(pointer["cosine similarity"].replace("−", "-")) == pytest.approx(expected, abs=1e-3)


def test_arrow_keys_move_by_a_token_of_the_layer_and_stop_at_the_border(show, shown: Shown) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    browser = show(shown.path, "#layer=up_1&row=1&col=14")
    press = lambda *keys: (ActionChains(browser, duration=0).send_keys(*keys).perform(), frame(browser))  # noqa: E731
    place = lambda: tuple(numbers(browser)["token"][name] for name in ("row", "column"))  # noqa: E731
    press(Keys.ARROW_UP, Keys.ARROW_RIGHT)
    assert place() == ("0", "15")
    press(Keys.ARROW_UP, Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
    assert place() == ("0", "14")
    ActionChains(browser, duration=0).key_down(Keys.SHIFT).send_keys(Keys.ARROW_DOWN).key_up(Keys.SHIFT).perform()
    frame(browser)
    assert place() == ("0", "14") and numbers(browser)["pointer"]["row"] == "1"


def test_an_address_names_what_is_shown(show, shown: Shown) -> None:
    address = "#image=2&second=0&layer=mid&row=3&col=1&show=distance&centred=0&mitigation=position_mean&weights=random"
    browser = show(shown.path, address)
    expected = similarities(shown.random["mid__position_mean"], (3, 1), 2, 0, False, "distance")
    bound = stated(browser)["mid, position_mean, random"][2]
    torch.testing.assert_close(values(browser, "mid", "b"), expected, rtol=0, atol=bound)
    choose(browser, "weights", "trained")
    browser.implicitly_wait(2)
    browser.execute_async_script("setTimeout(arguments[0], 600)")  # the address follows when nothing has moved for a moment
    assert "weights=trained" in browser.current_url and "row=3" in browser.current_url
    again = show(shown.path, "#" + browser.current_url.split("#")[1])
    assert numbers(again)["token"]["row"] == "3"
    broken = show(shown.path, "#image=99&layer=nothing&row=-1&col=x&show=constructor&timestep=1e9")
    assert len(values(broken, "mid", "a")) == 16


def test_every_switch_shows_what_torch_computes(show, tmp_path: Path) -> None:
    """Two noise levels, two mitigations and two networks, on a grid of one token and on one with more channels than tokens."""
    generator = torch.Generator().manual_seed(0)
    layers = {"one": (8, 1), "wide": (700, 4)}
    labels, levels, networks = ("", "leace", "standardize"), (50, 261), ("trained", "random")
    grids = {
        network: {
            f"{layer}__t{level}{'__' * bool(label)}{label}": torch.randn(3, channels, side, side, generator=generator) + 0.5
            for layer, (channels, side) in layers.items() for level in levels for label in labels
        }
        for network in networks
    }  # fmt: skip
    path = tmp_path / "explorer.html"
    path.write_text(page(kept_tokens(grids, ["a", "b", "c"]), "a network", timesteps=levels))
    browser = show(path)
    bounds = stated(browser)
    script = (
        "Object.assign(explorer.state, arguments[0]); explorer.render(); return arguments[1].map(l => explorer.values(l, 'b'))"
    )
    for network, label, level, centred, (place, kind) in product(
        networks, labels, levels, (True, False), enumerate(("cosine", "dot", "distance"))
    ):
        chosen = {"weights": network, "label": label, "level": level, "centred": centred, "show": kind}
        state = chosen | {"second": 2, "u": 0.3, "v": 0.6}
        for layer, found in zip(layers, browser.execute_script(script, state, list(layers)), strict=True):
            side = layers[layer][1]
            grid = grids[network][f"{layer}__t{level}{'__' * bool(label)}{label}"]
            expected = similarities(grid, (int(0.6 * side), int(0.3 * side)), 0, 2, centred, kind)
            bound = bounds[", ".join(filter(None, [layer, label, f"timestep {level}", network]))][place]
            torch.testing.assert_close(torch.tensor(found).float(), expected, rtol=0, atol=bound)


def test_an_address_of_what_was_left_out_shows_what_is_nearest_to_it(show, shown: Shown, tmp_path: Path) -> None:
    """Left out are random weights behind the mitigation, and at one layer. A control keeps what was chosen last."""
    left_out = ("random/mid__position_mean/", "random/up_1/", "random/up_1__position_mean/")
    path = tmp_path / "explorer.html"
    path.write_text(page({name: array for name, array in shown.tokens.items() if not name.startswith(left_out)}, "a network"))
    browser = show(path, "#weights=random&mitigation=position_mean&layer=up_1&row=3&col=2&image=0&second=1")
    state = lambda: browser.execute_script("const s = explorer.state; return [s.weights, s.label, s.layer]")  # noqa: E731
    assert state() == ["random", "", "mid"] and numbers(browser)["token"]["row"] == "3"
    expected = similarities(shown.random["mid"], (3, 2), 0, 1, True, "cosine")
    torch.testing.assert_close(values(browser, "mid", "b"), expected, rtol=0, atol=stated(browser)["mid, random"][0])
    choose(browser, "weights", "trained")
    choose(browser, "label", "position_mean")
    assert state() == ["trained", "position_mean", "mid"]
    browser.execute_async_script("setTimeout(arguments[0], 600)")
    assert "mitigation=position_mean" in browser.current_url


def test_a_page_states_the_error_of_what_it_shows(show, shown: Shown) -> None:
    browser = show(shown.path)
    worst = lambda place: max(stated(browser)[f"{layer}, trained"][place] for layer in LAYERS)  # noqa: E731
    for place, kind in enumerate(("cosine similarity", "dot product", "distance")):
        choose(browser, "show", kind)
        assert float(browser.find_element("id", "off").text.split()[-2]) == worst(place)
    choose(browser, "show", "norm")
    assert not browser.find_element("id", "off").text and "norm" not in list(numbers(browser)["token"])[6:]


def test_a_mitigation_shows_a_planted_position_grid_flat(show, shown: Shown) -> None:
    browser = show(shown.path, "#image=1&second=2&layer=up_1&row=8&col=8")
    contrast = {}
    for mitigation in ("none", "position_mean"):
        choose(browser, "label", mitigation)
        found = values(browser, "up_1", "b").view(16, 16)
        line = torch.zeros(16, 16, dtype=torch.bool)
        line[8], line[:, 8] = True, True
        contrast[mitigation] = (found[line].mean() - found[~line].mean()).item()
    assert contrast["none"] > 0.3 and abs(contrast["position_mean"]) < 0.1, "tokens of one row or column are alike"


def colours(panel: Any, side: int) -> np.ndarray:
    """(side, side, 3) colours in the middle of each token, in a picture of a panel as the browser shows it."""
    with Image.open(BytesIO(panel.screenshot_as_png)) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    height, width = pixels.shape[:2]
    middle = np.arange(side) + 0.5
    return pixels[(middle * height / side).astype(int)[:, None], (middle * width / side).astype(int)[None]]


def test_the_picture_shows_a_planted_grid(show, shown: Shown) -> None:
    browser = show(shown.path, "#image=1&second=2&layer=up_1&row=8&col=8")
    panel = maps(browser, "up_1")[1]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", panel)
    browser.execute_script("document.querySelectorAll('.map i').forEach(mark => mark.style.visibility = 'hidden')")
    line = np.zeros((16, 16), dtype=bool)
    line[8], line[:, 8] = True, True
    green = {}
    for mitigation in ("none", "position_mean"):
        choose(browser, "label", mitigation)
        found = values(browser, "up_1", "b").view(16, 16).numpy()
        seen = colours(panel, 16)
        expected = np.array(colormaps["viridis"]((found + 1) / 2))[..., :3] * 255
        assert np.abs(seen - expected).max() <= 4, "every token has the colour of its value"  # 256 colours, rounded
        green[mitigation] = seen[line][:, 1].mean() - seen[~line][:, 1].mean()  # viridis: the greener, the larger
    assert green["none"] > 20 and abs(green["position_mean"]) < 10


def test_a_narrow_page_neither_overflows_nor_has_tiny_text(show, shown: Shown) -> None:
    browser = show(shown.path)
    size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        browser.get(f"{shown.path.as_uri()}?narrow#layer=up_1&row=8&col=8")
        frame(browser)
        assert browser.execute_script("return [innerWidth, document.documentElement.scrollWidth]") == [390, 390]
        wide = browser.execute_script(
            "return [...document.querySelectorAll('main *')].filter(e => !e.closest('details') && "
            "e.getBoundingClientRect().width && e.getBoundingClientRect().right > 390.5).map(e => e.outerHTML)"
        )
        assert not wide
        sizes = "[...document.querySelectorAll('main *')].map(e => parseFloat(getComputedStyle(e).fontSize))"
        assert browser.execute_script(f"return Math.min(...{sizes})") >= 12
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_names_stay_text_and_every_control_has_one(show, shown: Shown) -> None:
    browser = show(shown.path)
    assert browser.execute_script("return window.injected") is None
    assert browser.find_element("id", "name-a").text == HOSTILE[0]
    assert browser.find_element("id", "name-b").text == HOSTILE[1]
    controls = browser.find_elements("css selector", "select, input, button, summary, [tabindex]")
    assert len(controls) > 12
    assert all(control.accessible_name for control in controls), [control.get_attribute("outerHTML") for control in controls]
    reached = browser.execute_script(
        "return [...document.querySelectorAll('select, input, button')].every(e => e.tabIndex === 0)"
    )
    assert reached
    assert all(canvas.accessible_name for canvas in browser.find_elements("css selector", "[role=img]"))


def test_buttons_copy_and_save(show, shown: Shown, tmp_path: Path) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    browser = show(shown.path, "#layer=mid&row=0&col=0")
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    browser.execute_script("navigator.clipboard.writeText = (text) => { window.copied = text; return Promise.resolve(); }")
    browser.find_element("id", "copy").click()
    lines = [line.split("\t") for line in browser.execute_script("return window.copied").splitlines()]
    assert lines[0][:4] == ["layer", "token", "picture", "row"]
    assert {line[0] for line in lines[1:]} == set(LAYERS) and {len(line) for line in lines} == {9}
    browser.find_element("id", "save").click()
    saved = WebDriverWait(browser, 20).until(lambda _: next(tmp_path.glob("*.png"), None))
    assert saved.read_bytes().startswith(b"\x89PNG")


def test_without_javascript_there_are_still_pictures(show, shown: Shown) -> None:
    browser = show(shown.path)
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(shown.path.as_uri())
        assert "JavaScript" in browser.find_element("css selector", "noscript p").text
        assert len(browser.find_elements("css selector", ".stills img")) == 2 * 2 * len(LAYERS)
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})

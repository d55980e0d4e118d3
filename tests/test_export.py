"""The page of a network: what it computes, in a browser, against the notebook's formulas."""

import base64
import json
import math
import os
import re
import shutil

import notebook
import numpy as np
import pytest
import torch

from makemore_pl import MLP, Vocabulary
from makemore_pl.checkpoints import newest, read
from makemore_pl.cli import Trainer
from makemore_pl.export import as_page

LETTERS = "abcdefghijklmnopqrstuvwxyz"
HAN = "".join(map(chr, range(0x4E00, 0x4E00 + 2000)))
ODD = ["St. Gallen", "名前", "o'Neil", 'a"b', "</script><b>", "🙂👍", "Zoë {x}", "\u200bz", "<!--", "Łódź\u0301"]
SHOWN = {" ": "␣", "\u200b": "U+200B", "\u0301": "◌\u0301"}


def some_model(vocabulary=LETTERS, noise=0.3, **sizes):
    """A network that prefers some characters to others, as a trained one does."""
    model = MLP(vocabulary, **sizes)
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, noise, generator=g)
    return model


MODEL = some_model()
ODD_MODEL = some_model(Vocabulary.from_words(ODD).characters, block_size=4, embedding_dim=2, hidden_size=20)


def by_hand(model, context, temperature=1.0):
    """The notebook's probabilities (V,) of what comes after a text: of the end, then of each character."""
    X = [0] * model.block_size + [model.vocabulary.stoi[character] for character in context]
    p = notebook.probabilities(model.state_dict(), torch.tensor([X[-model.block_size :]]))[0] ** (1 / temperature)
    return (p / p.sum()).numpy()


def letters_by_hand(model, word):
    """The probability of each letter and of the end, after what stands before it."""
    targets = [*map(model.vocabulary.stoi.get, word), 0]
    return [by_hand(model, word[:i])[y] for i, y in enumerate(targets)]


def test_export_writes_one_small_file_that_holds_the_network(default_fit, call, monkeypatch, tmp_path):
    monkeypatch.chdir(default_fit[0])
    path = tmp_path / "page.html"
    status, out, err = call("export", "--output", path)
    size = path.stat().st_size
    assert (status, out) == (0, "")
    assert err == f"checkpoint: lightning_logs/version_0/checkpoints/best.ckpt\n{path}: {size:,} bytes\n"
    assert size < 300_000
    data = json.loads(re.search('id="model">(.*)</script>', path.read_text(encoding="utf-8"))[1])
    weights, saved = np.frombuffer(base64.b64decode(data["weights"]), "<f4"), read(newest())["state_dict"]
    assert np.array_equal(weights, torch.cat([saved[name].flatten() for name in ("C", "W1", "b1", "W2", "b2")]))


def test_a_network_of_ones_own_is_refused(tmp_path):
    class Deeper(MLP):
        def hidden(self, X):
            return super().hidden(X).tanh()

    with pytest.raises(ValueError, match="the page computes MLP's own network, and Deeper has another"):
        Trainer(accelerator="cpu", logger=False).export(Deeper(), tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


# In a browser.


@pytest.fixture(scope="module")
def chromium():
    """A browser without a window: a selenium driver."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install 'makemore_pl[dev]'")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    chromedriver = shutil.which("chromedriver")
    if not chromium or not chromedriver:
        pytest.skip("needs Chromium and its driver on the PATH (Debian: apt install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    flags = ["headless=new", "disable-gpu", "disable-dev-shm-usage", "disable-background-networking", "no-proxy-server"]
    flags += ["window-size=1280,900", "force-prefers-reduced-motion"]  # nothing is measured while it moves
    flags += ["no-sandbox"] * (os.name == "posix" and os.geteuid() == 0)  # for root Chromium has none
    for flag in flags:
        options.add_argument(f"--{flag}")
    # With the path of the driver given, selenium looks for none and downloads nothing.
    driver = webdriver.Chrome(options, webdriver.ChromeService(chromedriver))
    yield driver
    driver.quit()


@pytest.fixture
def visit(chromium, tmp_path):
    """Opens the page of a model. Any error, also a request, which the page forbids itself, is in the browser's log."""

    def open_page(model):
        page = tmp_path / "playground.html"
        page.write_bytes(as_page(model))
        chromium.get(page.as_uri())
        return chromium

    yield open_page
    assert chromium.get_log("browser") == []


def find(browser, selector):
    return browser.find_element("css selector", selector)


def texts(browser, selector):
    every = "Array.from(document.querySelectorAll(arguments[0]), (node) => node.textContent)"
    return browser.execute_script(f"return {every}", selector)


def shares(browser, part):
    """The percentages in a part of the page as numbers, by label."""
    figures = [float(text.strip("<%")) / 100 for text in texts(browser, f"{part} .percent")]
    return list(zip(texts(browser, f"{part} .letter"), figures, strict=True))


def put(browser, text):
    """As typing does; the driver cannot type what lies outside of the basic plane."""
    field = "const field = document.getElementById('name');"
    browser.execute_script(f"{field} field.value = arguments[0]; field.dispatchEvent(new Event('input'))", text)


def value(browser):
    return find(browser, "#name").get_property("value")


@pytest.mark.browser
def test_the_page_computes_what_the_model_does_and_shows_any_alphabet(visit):
    for network, words in [(MODEL, ["e", "em", "emma", "zzzzzz", "anneliese"]), (ODD_MODEL, ODD)]:
        browser = visit(network)
        for word in words:
            for context in ("", word[:1], word):
                found = browser.execute_script("return playground.probabilities(arguments[0])", context)
                np.testing.assert_allclose(found, by_hand(network, context), rtol=0, atol=1e-12)
            put(browser, word)
            assert texts(browser, "#score .letter") == [*(SHOWN.get(c, c) for c in word), "end"]


@pytest.mark.browser
@pytest.mark.parametrize(("characters", "others"), [(LETTERS, []), (HAN, ["1,971 others"])], ids=["latin", "han"])
def test_bars_show_the_likeliest_the_end_and_the_others(characters, others, visit):
    model = some_model(characters, noise=1, embedding_dim=4, hidden_size=10)
    bars, expected = dict(shares(visit(model), "#bars")), by_hand(model, "")
    likeliest = [i for i in np.argsort(-expected) if i][:29]
    assert [label for label in bars if label in characters] == [characters[i - 1] for i in likeliest]
    assert bars.keys() - set(characters) == {"end of name", *others}
    for label, i in [("end of name", 0), *((characters[i - 1], i) for i in likeliest)]:
        assert bars[label] == pytest.approx(expected[i], abs=0.0005 + 1e-9)
    assert sum(bars.values()) == pytest.approx(1, abs=0.0005 * len(bars))


@pytest.mark.browser
def test_what_is_typed_is_scored_letter_by_letter_and_a_bar_adds_its_letter(visit):
    browser = visit(MODEL)
    find(browser, "#name").send_keys("emma")
    letters, figures = zip(*shares(browser, "#score"), strict=True)
    expected = letters_by_hand(MODEL, "emma")
    assert letters == (*"emma", "end")
    assert figures == pytest.approx(expected, abs=0.0005 + 1e-9)
    total = -sum(map(math.log, expected))
    assert f"{total:.2f}. Perplexity: {math.exp(total / 5):.2f}," in texts(browser, "#total")[0]
    find(browser, "#bars button:not(.end)").click()
    assert value(browser) == "emma" + LETTERS[by_hand(MODEL, "emma")[1:].argmax()]


@pytest.mark.browser
def test_twenty_names_are_drawn_that_may_begin_with_what_is_typed(visit):
    browser = visit(MODEL)
    names = texts(browser, "#names button")
    assert len(names) == 20
    assert all(re.fullmatch("[a-z]{1,100}", name) for name in names)
    put(browser, "mar")
    find(browser, "#go-on").click()
    find(browser, "#draw").click()
    assert all(name.startswith("mar") for name in texts(browser, "#names button"))


@pytest.mark.browser
@pytest.mark.parametrize(("start", "temperature"), [("", 1.7), ("fa", 0.6)])
def test_names_are_drawn_as_often_as_the_notebook_says(start, temperature, visit):
    model = some_model("abcdef", noise=1, embedding_dim=2, hidden_size=10)
    n = 10_000
    names = visit(model).execute_script("return playground.sample(...arguments)", n, temperature, start)
    expected = by_hand(model, start, temperature)
    expected[0] *= start != ""  # no empty names
    for character, p in zip(["", *"abcdef"], expected / expected.sum(), strict=True):
        found = sum(name[len(start) : len(start) + 1] == character for name in names) / n
        assert abs(found - p) <= 6 * math.sqrt(p * (1 - p) / n), character


@pytest.mark.browser
def test_capitals_and_unknown_characters_are_answered(visit):
    browser = visit(MODEL)
    message = find(browser, "#message")
    put(browser, "Zoe")
    assert message.text == "Taken as “zoe”: the list has no capitals."
    put(browser, "Zoë")
    assert "Sorry: “ë” is not among the 26 characters" in message.text
    find(browser, "#message button").click()
    assert (value(browser), message.text) == ("zoe", "")


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 905, 925])  # a phone; on both sides of two columns
def test_the_page_fits_a_phone(width, visit):
    browser = visit(MODEL)
    put(browser, "maximilianaalexandrina" * 3)
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

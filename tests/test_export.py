"""The page of a network: what it computes, in a browser, against the notebook's formulas."""

import base64
import json
import math
import re

import notebook
import numpy as np
import pytest
import torch

from makemore_pl import MLP, Vocabulary
from makemore_pl.cli import Trainer
from makemore_pl.export import as_page
from makemore_pl.pictures.alphabet import kind

ODD = ["St. Gallen", "名前", "o'Neil", 'a"b', "</script><b>", "🙂👍", "Zoë {x}", "\u200bz", "<!--", "Łódź\u0301"]


def some_model(vocabulary="abcdefghijklmnopqrstuvwxyz", noise=0.3, **sizes):
    """A network that prefers some characters to others, as a trained one does."""
    model = MLP(vocabulary, **sizes)
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, noise, generator=g)
    return model


@pytest.fixture
def model():
    return some_model()


@pytest.fixture
def odd():
    return some_model(Vocabulary.from_words(ODD).characters, block_size=4, embedding_dim=2, hidden_size=20)


def by_hand(model, context, temperature=1.0):
    """The notebook's probabilities (V,) of what comes after a text: of the end, then of each character."""
    X = [0] * model.block_size + [model.vocabulary.stoi[character] for character in context]
    p = notebook.probabilities(model.state_dict(), torch.tensor([X[-model.block_size :]]))[0] ** (1 / temperature)
    return (p / p.sum()).numpy()


def total_by_hand(model, word):
    """Its log-probability: the logarithms of what comes after each of its beginnings."""
    after = zip(range(len(word) + 1), [*map(model.vocabulary.stoi.get, word), 0], strict=True)
    return sum(math.log(by_hand(model, word[:i])[y]) for i, y in after)


def test_the_page_is_one_small_file_that_holds_the_weights(default_fit, odd, call, monkeypatch, tmp_path):
    monkeypatch.chdir(default_fit[0])
    path = tmp_path / "page.html"
    path.write_text("older")
    status, out, err = call("export", "--output", path)
    size = path.stat().st_size
    assert (status, out) == (0, "")
    assert err == f"checkpoint: lightning_logs/version_0/checkpoints/best.ckpt\n{path}: {size:,} bytes\n"
    assert size < 300_000

    page = as_page(odd).decode()
    assert "content=\"default-src 'none';" in page
    assert set(re.findall(r"https?://[^'\" ]*", page)) == {"http://www.w3.org/2000/svg"}
    (text,) = re.findall(r'<script type="application/json" id="model">(.*)</script>\n<script type="module">', page)
    assert (text.isascii(), "<" in text) == (True, False)
    data = json.loads(text)
    assert data["vocabulary"] == odd.vocabulary.characters
    weights = np.frombuffer(base64.b64decode(data["weights"]), "<f4")
    assert np.array_equal(weights, torch.cat([odd.state_dict()[n].flatten() for n in ("C", "W1", "b1", "W2", "b2")]))


def test_a_network_of_ones_own_is_refused(tmp_path):
    class Deeper(MLP):
        def hidden(self, X):
            return super().hidden(X).tanh()

    with pytest.raises(ValueError, match="the page computes the network of MLP, and Deeper has another one"):
        Trainer(accelerator="cpu", logger=False).export(Deeper(), tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


# In a browser.


@pytest.fixture
def visit(browser, tmp_path):
    """Opens the page of a model and gives the browser; in the end, it must have been quiet and alone."""
    page = tmp_path / "playground.html"
    browser.get("about:blank")  # it begins with a page of its own
    for log in ("browser", "performance"):
        browser.get_log(log)

    def open_page(model):
        page.write_bytes(as_page(model))
        browser.get(page.as_uri())
        return browser

    yield open_page
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert page.as_uri() in asked
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def find(browser, selector):
    return browser.find_elements("css selector", selector)


def texts(browser, selector):
    every = "Array.from(document.querySelectorAll(arguments[0]), (node) => node.textContent)"
    return browser.execute_script(f"return {every}", selector)


def put(browser, text):
    """As typing does; the driver cannot type what lies outside of the basic plane."""
    field = "const field = document.getElementById('name');"
    browser.execute_script(f"{field} field.value = arguments[0]; field.dispatchEvent(new Event('input'))", text)


def value(browser):
    return find(browser, "#name")[0].get_property("value")


def shares(browser):
    """The percentages next to the bars, as numbers, by label."""
    figures = [float(text.strip("<%")) / 100 for text in texts(browser, "#bars .percent")]
    return dict(zip(texts(browser, "#bars .letter"), figures, strict=True))


@pytest.mark.browser
def test_the_page_computes_what_the_model_does_in_any_alphabet(model, odd, visit):
    for network, words in [(model, ["e", "em", "emma", "zzzzzz", "anneliese"]), (odd, ODD)]:
        browser = visit(network)
        for word in words:
            for context in ("", word[:1], word):
                found = browser.execute_script("return playground.probabilities(arguments[0])", context)
                np.testing.assert_allclose(found, by_hand(network, context), rtol=0, atol=1e-12)
            found = browser.execute_script("return playground.score(arguments[0])", word)
            total = total_by_hand(network, word)
            assert found["logProbability"] == pytest.approx(total, abs=1e-9)
            assert found["perplexity"] == pytest.approx(math.exp(-total / (len(word) + 1)))
            assert len(found["probabilities"]) == len(word) + 1  # by code points, as Python counts


@pytest.mark.browser
def test_one_types_sees_bars_and_extends_the_name(model, visit):
    from selenium.webdriver.common.keys import Keys

    browser = visit(model)
    labels = ["end of name", *"abcdefghijklmnopqrstuvwxyz"]
    find(browser, "#name")[0].send_keys("em")
    expected = by_hand(model, "em")
    order = np.argsort(-expected)
    assert texts(browser, "#bars .letter") == [labels[i] for i in order]
    assert list(shares(browser).values()) == pytest.approx(expected[order], abs=0.0005 + 1e-9)
    widths = [bar.size["width"] for bar in find(browser, "#bars .track i")]
    assert widths[1] / widths[0] == pytest.approx(expected[order[1]] / expected[order[0]], abs=0.02)
    likeliest = next(labels[i] for i in order if i)
    find(browser, "#bars button:not(.end)")[0].click()
    assert value(browser) == "em" + likeliest
    assert texts(browser, "#context span") == texts(browser, "#map .seen text") == ["e", "m", likeliest]
    find(browser, "#bars .bar.end")[0].click()
    assert "is finished" in find(browser, "#message")[0].text
    browser.switch_to.active_element.send_keys("o")  # the next name takes its place
    assert value(browser) == "o"
    # The keyboard alone does the same: past the button that clears are the bars.
    find(browser, "#name")[0].send_keys(Keys.TAB, Keys.TAB)
    down = [i for i, token in enumerate(np.argsort(-by_hand(model, "o"))) if token][2]
    browser.switch_to.active_element.send_keys(*[Keys.ARROW_DOWN] * down, Keys.ENTER)
    assert value(browser) == "o" + labels[np.argsort(-by_hand(model, "o"))[down]]


@pytest.mark.browser
def test_a_name_is_scored_letter_by_letter(model, visit):
    browser = visit(model)
    put(browser, "emma")
    assert texts(browser, "#score .letter") == [*"emma", "end"]
    figures = [float(text.strip("<%")) / 100 for text in texts(browser, "#score .percent")]
    expected = [by_hand(model, "emma"[:i])[y] for i, y in enumerate([5, 13, 13, 1, 0])]
    assert figures == pytest.approx(expected, abs=0.0005 + 1e-9)
    total = total_by_hand(model, "emma")
    assert f"{-total:.2f}. Perplexity: {math.exp(-total / 5):.2f}," in texts(browser, "#total")[0]


@pytest.mark.browser
def test_twenty_names_are_drawn_and_the_slider_tempers_them(model, visit):
    from selenium.webdriver.common.keys import Keys

    browser = visit(model)
    names = texts(browser, "#names button")
    assert len(names) == 20
    assert all(re.fullmatch("[a-z]{1,100}", name) for name in names)
    frames = "const [done] = arguments; requestAnimationFrame(() => requestAnimationFrame(() => done()))"
    for keys, degrees, same in [([Keys.HOME], "0.20", False), ([Keys.END, *[Keys.ARROW_LEFT] * 20], "1.00", True)]:
        find(browser, "#temperature")[0].send_keys(*keys)
        browser.execute_async_script(frames)
        assert texts(browser, "#degrees") == [degrees]
        assert (texts(browser, "#names button") == names) == same  # the same dice
    find(browser, "#names button")[7].click()
    assert value(browser) == names[7]
    put(browser, "mar")
    find(browser, "#go-on")[0].click()
    find(browser, "#draw")[0].click()
    assert all(name.startswith("mar") for name in texts(browser, "#names button"))


@pytest.mark.browser
@pytest.mark.parametrize(("start", "temperature"), [("", 1), ("fa", 0.6), ("", 1.7)])
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
def test_capitals_and_unknown_characters_are_answered(model, visit):
    browser = visit(model)
    message = find(browser, "#message")[0]
    put(browser, "Zoe")
    assert message.text == "Taken as “zoe”: the list has no capitals."
    assert texts(browser, "#score .letter") == [*"zoe", "end"]
    put(browser, "Zoë")
    assert "Sorry: “ë” is not among the 26 characters" in message.text
    assert not find(browser, "#bars")[0].is_displayed()
    find(browser, "#message button")[0].click()
    assert (value(browser), message.text) == ("zoe", "")


@pytest.mark.browser
def test_any_alphabet_is_shown_and_can_do_no_harm(odd, visit):
    browser = visit(odd)
    shown = {" ": "␣", "\u200b": "U+200B", "\u0301": "◌\u0301"}
    for word in ODD:
        put(browser, word)
        assert texts(browser, "#score .letter") == [*(shown.get(c, c) for c in word), "end"]
    marks = dict(zip(texts(browser, "#map g text"), find(browser, "#map g"), strict=True))
    assert marks.keys() == {".", *(shown.get(c, c) for c in odd.vocabulary.characters)}
    for letter in "aoeëŁ名":
        assert marks[letter].get_dom_attribute("class").split()[0] == kind(letter)
    assert len(find(browser, "script")) == 2
    assert find(browser, "main b") == []


@pytest.mark.browser
def test_a_large_alphabet_shows_the_likeliest_the_end_and_the_others(visit):
    han = "".join(map(chr, range(0x4E00, 0x4E00 + 2000)))
    model = some_model(han, embedding_dim=4, hidden_size=10, noise=1)
    shown, expected = shares(visit(model)), by_hand(model, "")
    *labels, others = shown
    assert (len(labels), others) == (30, "1,971 others")
    assert [label for label in labels if label in han] == [han[i - 1] for i in np.argsort(-expected) if i][:29]
    assert shown[others] == pytest.approx(1 - expected[0] - np.sort(expected[1:])[-29:].sum(), abs=0.0005 + 1e-9)


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 905, 925])
def test_the_page_fits_a_phone(width, model, visit):
    browser = visit(model)
    put(browser, "maximilianaalexandrina" * 3)
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

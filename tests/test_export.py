import base64
import errno
import json
import logging
import math
import os
import re
import stat
import sys

import notebook
import numpy as np
import pytest
import torch
from conftest import ROOT

from makemore_pl import MLP, Vocabulary
from makemore_pl.commands.export import export
from makemore_pl.pictures.alphabet import kind

ODD = ["St. Gallen", "名前", "o'Neil", 'a"b', "</script><b>", "🙂👍", "Zoë {x}", "\u200bz", "<!--", "Łódź\u0301"]
HAN = "".join(map(chr, range(0x4E00, 0x4E00 + 2000)))


def some_model(vocabulary="abcdefghijklmnopqrstuvwxyz", noise=0.3, **sizes):
    """A network that prefers some characters to others, as a trained one does."""
    model = MLP(vocabulary, **sizes)
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, noise, generator=g)
    return model


@pytest.fixture(scope="module")
def model():
    return some_model()


@pytest.fixture(scope="module")
def odd():
    return some_model(Vocabulary.from_words(ODD).characters, block_size=4, embedding_dim=2, hidden_size=20)


def by_hand(model, context, temperature=1.0):
    """The notebook's probabilities (V,) of what comes after a text: of the end, then of each character."""
    X = [0] * model.block_size + [model.vocabulary.characters.index(character) + 1 for character in context]
    p = notebook.probabilities(model.state_dict(), torch.tensor([X[-model.block_size :]]))[0] ** (1 / temperature)
    return (p / p.sum()).numpy()


def total_by_hand(model, word):
    stoi = {character: i for i, character in enumerate(model.vocabulary.characters, start=1)}
    X, Y = notebook.build_dataset([word], stoi, model.block_size)
    return -notebook.negative_log_likelihood(model.state_dict(), X, Y).item() * len(Y)


@pytest.mark.parametrize("name", ["model.pt", "model", "model.html.gz"])
def test_another_kind_of_file_is_refused(model, tmp_path, name):
    with pytest.raises(
        ValueError, match=re.escape(f"{name}: expected a name that ends in .html, .onnx, .safetensors, .ckpt")
    ):
        export(model, tmp_path / name)


def test_a_missing_folder_is_named(model, tmp_path):
    with pytest.raises(ValueError, match=f"there is no folder {tmp_path}/nowhere"):
        export(model, tmp_path / "nowhere" / "playground.html")


def test_a_folder_in_the_way_is_named_and_nothing_is_left(model, tmp_path):
    (tmp_path / "a.html").mkdir()
    with pytest.raises(ValueError, match=r"a\.html: cannot be written \(Is a directory\)"):
        export(model, tmp_path / "a.html")
    assert [path.name for path in tmp_path.iterdir()] == ["a.html"]


def test_a_full_disk_leaves_the_file_that_was_there(model, tmp_path, monkeypatch):
    output = tmp_path / "playground.html"
    output.write_text("older")

    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)  # the last thing that may fail before the file takes its place
    with pytest.raises(ValueError, match=r"playground\.html: cannot be written \(No space left on device\)"):
        export(model, output)
    assert output.read_text() == "older"
    assert list(tmp_path.iterdir()) == [output]


def test_an_exported_file_replaces_another_and_has_the_usual_rights(model, tmp_path):
    (tmp_path / "usual").touch()
    output = tmp_path / "playground.html"
    output.write_text("older")
    export(model, str(output))
    assert output.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert stat.S_IMODE(output.stat().st_mode) == stat.S_IMODE((tmp_path / "usual").stat().st_mode)


@pytest.mark.parametrize(("suffix", "package"), [("onnx", "onnxscript"), ("onnx", "onnx"), ("safetensors",) * 2])
def test_a_missing_package_is_named_with_its_cure(model, tmp_path, monkeypatch, suffix, package):
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"needs .*{package}.*: pip install 'makemore_pl\[export\]'"):
        export(model, tmp_path / f"model.{suffix}")
    assert not list(tmp_path.iterdir())


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    model = some_model()
    model.W1.data[0, 0] = math.nan
    with pytest.raises(ValueError, match="not all finite"):
        export(model, tmp_path / "playground.html")


def test_safetensors_hold_the_five_tensors_and_what_they_mean(odd, tmp_path):
    safetensors = pytest.importorskip("safetensors", reason="needs safetensors: pip install 'makemore_pl[export]'")
    export(odd, tmp_path / "model.safetensors")
    with safetensors.safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert set(file.keys()) == {"C", "W1", "b1", "W2", "b2"}
        for name, tensor in odd.state_dict().items():
            assert torch.equal(file.get_tensor(name), tensor)
        characters = "".join(sorted(set("".join(ODD))))
        sizes = {"block_size": "4", "embedding_dim": "2", "hidden_size": "20"}
        assert file.metadata() == {"vocabulary": characters} | sizes


@pytest.mark.parametrize(
    ("characters", "block_size", "hidden_size"),
    [("abcdefghijklmnopqrstuvwxyz", 3, 200), (HAN, 5, 30)],
    ids=["26 characters", "2,000 characters"],
)
def test_onnx_gives_the_probabilities_of_the_notebook(
    characters, block_size, hidden_size, tmp_path, capfd, caplog, recwarn
):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason=f"needs {package}: pip install 'makemore_pl[export]'")
    runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'makemore_pl[dev]'")
    model = some_model(characters, block_size=block_size, hidden_size=hidden_size).double()
    recwarn.clear()
    export(model, tmp_path / "model.onnx")
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert not recwarn.list
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]

    session = runtime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (X,), (logits,) = session.get_inputs(), session.get_outputs()
    V = len(characters) + 1
    assert (X.name, X.type, X.shape[1:]) == ("X", "tensor(int64)", [block_size])
    assert (logits.name, logits.type, logits.shape[1:]) == ("logits", "tensor(float)", [V])
    sizes = {"block_size": str(block_size), "embedding_dim": "10", "hidden_size": str(hidden_size)}
    assert session.get_modelmeta().custom_metadata_map == {"vocabulary": characters} | sizes
    for B in (1, 7):
        contexts = torch.randint(V, (B, block_size), generator=torch.Generator().manual_seed(B))
        (found,) = session.run(["logits"], {"X": contexts.numpy()})
        expected = notebook.probabilities(model.state_dict(), contexts)
        np.testing.assert_allclose(torch.softmax(torch.from_numpy(found), 1), expected, rtol=0, atol=1e-5)
        np.testing.assert_allclose(found, model(contexts).detach(), rtol=0, atol=1e-5)


def test_the_page_is_one_small_file_that_holds_the_weights(odd, tmp_path):
    export(MLP(), tmp_path / "default.html")
    assert (tmp_path / "default.html").stat().st_size < 300_000
    export(odd, tmp_path / "odd.html")
    page = (tmp_path / "odd.html").read_text(encoding="utf-8")
    assert re.search(r"content=\"default-src 'none';", page)
    (text,) = re.findall(r'<script type="application/json" id="model">(.*)</script>\n<script type="module">', page)
    assert text.isascii()
    assert "<" not in text
    data = json.loads(text)
    assert data["vocabulary"] == "".join(sorted(set("".join(ODD))))
    weights = np.frombuffer(base64.b64decode(data["weights"]), "<f4")
    tensors = odd.state_dict()
    assert np.array_equal(weights, np.concatenate([tensors[n].flatten() for n in ("C", "W1", "b1", "W2", "b2")]))


# ----------------------------------------------------------------------------------------------------------------------
# In a browser.

CALM = {"features": [{"name": "prefers-reduced-motion", "value": "reduce"}]}


@pytest.fixture
def visit(browser, tmp_path):
    """Exports a model, opens the page and gives the browser; in the end, it must have been quiet and alone."""
    browser.get("about:blank")
    for log in ("browser", "performance"):
        browser.get_log(log)
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", device(1280))
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", CALM)  # nothing is measured while it moves

    def open_page(model):
        export(model, tmp_path / "playground.html")
        browser.get((tmp_path / "playground.html").as_uri())
        return browser

    yield open_page
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert (tmp_path / "playground.html").as_uri() in asked
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def device(width):
    return {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}


def find(browser, selector):
    return browser.find_elements("css selector", selector)


def texts(browser, selector):
    return browser.execute_script(
        "return Array.from(document.querySelectorAll(arguments[0]), (node) => node.textContent)", selector
    )


def put(browser, text):
    """As typing does; the driver cannot type what lies outside of the basic plane."""
    script = """
        const field = document.getElementById("name");
        field.value = arguments[0];
        field.dispatchEvent(new Event("input"));
    """
    browser.execute_script(script, text)


def value(browser):
    return find(browser, "#name")[0].get_property("value")


def shares(browser):
    """The percentages next to the bars, as numbers, by label."""
    figures = [float(text.strip("<%")) / 100 for text in texts(browser, "#bars .percent")]
    return dict(zip(texts(browser, "#bars .letter"), figures, strict=True))


@pytest.mark.browser
def test_the_page_computes_what_the_model_does(model, visit):
    browser = visit(model)
    for context in ["", "e", "em", "emma", "zzzzzz", "qx"]:
        found = browser.execute_script("return playground.probabilities(arguments[0])", context)
        np.testing.assert_allclose(found, by_hand(model, context), rtol=0, atol=1e-12)
        start = ([0] * 3 + model.vocabulary.encode(context))[-3:]
        own = torch.softmax(model(torch.tensor([start])), 1)[0].detach()
        np.testing.assert_allclose(found, own, rtol=0, atol=1e-5)
    for word in ["emma", "x", "anneliese"]:
        found = browser.execute_script("return playground.score(arguments[0])", word)
        expected = total_by_hand(model, word)
        assert found["logProbability"] == pytest.approx(expected, abs=1e-9)
        assert found["perplexity"] == pytest.approx(math.exp(-expected / (len(word) + 1)))
        assert len(found["probabilities"]) == len(word) + 1


@pytest.mark.browser
def test_one_types_sees_bars_and_extends_the_name(model, visit):
    browser = visit(model)
    labels = ["end of name", *"abcdefghijklmnopqrstuvwxyz"]
    find(browser, "#name")[0].send_keys("em")
    expected = by_hand(model, "em")
    order = np.argsort(-expected)
    assert texts(browser, "#bars .letter") == [labels[i] for i in order]
    assert list(shares(browser).values()) == pytest.approx(expected[order], abs=0.0005 + 1e-9)
    widths = [bar.size["width"] for bar in find(browser, "#bars .track i")]
    assert widths[1] / widths[0] == pytest.approx(expected[order[1]] / expected[order[0]], abs=0.02)

    letters = [labels[i] for i in order if i]
    find(browser, f"#bars .bar:nth-child({1 + list(order).index(labels.index(letters[4]))})")[0].click()
    assert value(browser) == "em" + letters[4]
    assert texts(browser, "#context span") == ["e", "m", letters[4]]
    assert texts(browser, "#map .seen text") == ["e", "m", letters[4]]
    find(browser, "#bars .bar.end")[0].click()
    assert "is finished" in find(browser, "#message")[0].text
    browser.switch_to.active_element.send_keys("o")  # the next name takes its place
    assert value(browser) == "o"
    find(browser, "#clear")[0].click()
    assert value(browser) == ""
    assert texts(browser, "#context span") == [".", ".", "."]


@pytest.mark.browser
def test_the_keyboard_does_it_all(model, visit):
    from selenium.webdriver.common.keys import Keys

    browser = visit(model)
    field = find(browser, "#name")[0]
    field.send_keys("ab", Keys.TAB, Keys.TAB)  # past the button that clears
    labels = ["end of name", *"abcdefghijklmnopqrstuvwxyz"]

    def focused():
        return browser.execute_script("return document.activeElement.querySelector('.letter').textContent")

    order = np.argsort(-by_hand(model, "ab"))
    assert focused() == labels[order[0]]
    browser.switch_to.active_element.send_keys(Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_UP)
    assert focused() == labels[order[1]]
    outline = "return getComputedStyle(document.activeElement).outlineStyle"
    assert browser.execute_script(outline) == "solid"
    browser.switch_to.active_element.send_keys(Keys.END)
    assert focused() == labels[order[-1]]
    browser.switch_to.active_element.send_keys(Keys.HOME)
    down = [i for i, token in enumerate(order) if token][2]
    browser.switch_to.active_element.send_keys(*[Keys.ARROW_DOWN] * down, Keys.ENTER)
    name = "ab" + labels[order[down]]
    assert value(browser) == name
    assert focused() == labels[by_hand(model, name).argmax()]
    browser.switch_to.active_element.send_keys(Keys.TAB)
    assert browser.switch_to.active_element.get_property("id") == "draw"
    before = texts(browser, "#names button")
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert texts(browser, "#names button") != before


@pytest.mark.browser
def test_the_twenty_names_are_one_stop_of_the_tab_key(model, visit):
    from selenium.webdriver.common.keys import Keys

    browser = visit(model)
    names = find(browser, "#names button")
    columns = sum(name.location["y"] == names[0].location["y"] for name in names)
    assert columns > 1
    focused = "return Array.from(document.querySelectorAll('#names button')).indexOf(document.activeElement)"
    find(browser, "#go-on")[0].send_keys(Keys.TAB)
    places = [browser.execute_script(focused)]
    for key in ("RIGHT", "DOWN", "DOWN", "LEFT", "UP", "UP"):
        browser.switch_to.active_element.send_keys(getattr(Keys, f"ARROW_{key}"))
        places.append(browser.execute_script(focused))
    assert places == [0, 1, 1 + columns, 1 + 2 * columns, 2 * columns, columns, 0]
    for key, place in ((Keys.END, 19), (Keys.ARROW_DOWN, 19), (Keys.ARROW_RIGHT, 19), (Keys.HOME, 0)):
        browser.switch_to.active_element.send_keys(key)
        assert browser.execute_script(focused) == place
    browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT, Keys.TAB)
    assert browser.execute_script(focused) == -1  # past all of them
    browser.switch_to.active_element.send_keys(Keys.SHIFT, Keys.TAB)
    assert browser.execute_script(focused) == 1
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert value(browser) == names[1].text


@pytest.mark.browser
def test_a_percentage_is_written_in_one_way(visit):
    model = some_model("abcdef", noise=0)
    shares = [0.0000999, 0.00994, 0.00996, 0.01, 0.0104, 0.5]
    model.b2.data = torch.tensor([1 - sum(shares), *shares]).log()
    browser = visit(model)
    figures = dict(zip(texts(browser, "#bars .letter"), texts(browser, "#bars .percent"), strict=True))
    assert [figures[letter] for letter in "abcdef"] == ["<0.01%", "0.99%", "1.0%", "1.0%", "1.0%", "50.0%"]


@pytest.mark.browser
def test_letters_have_the_kinds_of_the_other_pictures(visit):
    characters = "".join(sorted("aeyäñłßæøAÉ1-'名καθέςάЯяйыёьўքաეკא한あ"))
    browser = visit(some_model(characters, embedding_dim=2, hidden_size=4))
    marks = {g.find_element("css selector", "text").text: g.get_dom_attribute("class") for g in find(browser, "#map g")}
    assert {x: marks[x].split()[0] for x in characters} == {x: kind(x) for x in characters}


@pytest.mark.browser
def test_a_name_is_scored_letter_by_letter(model, visit):
    browser = visit(model)
    find(browser, "#name")[0].send_keys("emma")
    assert texts(browser, "#score .letter") == [*"emma", "end"]
    figures = [float(text.strip("<%")) / 100 for text in texts(browser, "#score .percent")]
    expected = [by_hand(model, "emma"[:i])[[5, 13, 13, 1, 0][i]] for i in range(5)]
    assert figures == pytest.approx(expected, abs=0.0005 + 1e-9)
    total = total_by_hand(model, "emma")
    said = find(browser, "#total")[0].text
    assert f"\N{MINUS SIGN}{-total:.2f}. Perplexity: {math.exp(-total / 5):.2f}," in said


@pytest.mark.browser
def test_twenty_names_are_drawn_and_the_slider_tempers_them(model, visit):
    from selenium.webdriver.common.keys import Keys

    browser = visit(model)
    names = texts(browser, "#names button")
    assert len(names) == 20
    assert all(re.fullmatch("[a-z]{1,100}", name) for name in names)
    slider = find(browser, "#temperature")[0]
    settle = "const [done] = arguments; requestAnimationFrame(() => requestAnimationFrame(() => done()))"

    def move(*keys):
        slider.send_keys(*keys)
        browser.execute_async_script(settle)
        return texts(browser, "#degrees"), texts(browser, "#names button")

    degrees, cold = move(Keys.HOME)
    assert degrees == ["0.20"]
    assert cold != names
    degrees, hot = move(Keys.END)
    assert degrees == ["2.00"]
    assert hot not in (names, cold)
    assert move(*[Keys.ARROW_LEFT] * 20) == (["1.00"], names)  # the same dice
    find(browser, "#names button")[7].click()
    assert value(browser) == names[7]
    assert "".join(texts(browser, "#score .letter")) == names[7] + "end"
    find(browser, "#clear")[0].click()
    find(browser, "#name")[0].send_keys("mar")
    find(browser, "#go-on")[0].click()
    find(browser, "#draw")[0].click()
    assert all(name.startswith("mar") for name in texts(browser, "#names button"))


@pytest.mark.browser
def test_names_are_drawn_as_often_as_the_notebook_says(visit):
    model = some_model("abcdef", noise=1, embedding_dim=2, hidden_size=10)
    model.b2.data[0] = 2  # short names
    browser = visit(model)
    n = 10_000
    for start, temperature in [("", 1), ("fa", 0.6), ("", 1.7)]:
        names = browser.execute_script("return playground.sample(...arguments)", n, temperature, start)
        expected = by_hand(model, start, temperature)
        if not start:
            expected[0] = 0  # no empty names
            expected /= expected.sum()
        place = len(start)
        for character, p in zip(["", *"abcdef"], expected, strict=True):
            found = sum(name[place : place + 1] == character for name in names) / n
            assert abs(found - p) <= 6 * math.sqrt(p * (1 - p) / n), (start, temperature, character)


@pytest.mark.browser
def test_a_character_outside_the_alphabet_is_answered_politely(model, visit):
    browser = visit(model)
    find(browser, "#name")[0].send_keys("Zoë")
    message = find(browser, "#message")[0]
    assert "Sorry: “ë” is not among the 26 characters" in message.text
    assert not find(browser, "#bars")[0].is_displayed()
    assert texts(browser, "#score li") == []
    (button,) = find(browser, "#message button")
    assert button.text == "Take “zoe”"
    button.click()
    assert value(browser) == "zoe"
    assert message.text == ""
    assert find(browser, "#bars")[0].is_displayed()
    put(browser, "ñoë")
    assert "Sorry: “ñ”, “ë” are not among the 26 characters" in message.text
    refused = "try { playground.probabilities('Ë') } catch (error) { return error.message }"
    assert "ë is not among the 26 characters" in browser.execute_script(refused)


@pytest.mark.browser
def test_capitals_are_taken_as_the_list_has_them(model, visit):
    browser = visit(model)
    find(browser, "#name")[0].send_keys("Zoe")
    message = find(browser, "#message")[0]
    assert message.text == "Taken as “zoe”: the list has no capitals."
    assert texts(browser, "#score .letter") == ["z", "o", "e", "end"]
    scores = browser.execute_script("return ['Zoe', 'zoe'].map((name) => playground.score(name).logProbability)")
    assert scores[0] == scores[1] == pytest.approx(total_by_hand(model, "zoe"), abs=1e-9)
    find(browser, "#name")[0].clear()
    find(browser, "#name")[0].send_keys("zoe")
    assert message.text == ""
    browser = visit(some_model("ABab"))
    find(browser, "#name")[0].send_keys("Ab")
    assert find(browser, "#message")[0].text == ""


@pytest.mark.browser
def test_any_alphabet_is_shown_and_can_do_no_harm(odd, visit):
    browser = visit(odd)
    for word in ODD:
        found = browser.execute_script("return playground.score(arguments[0])", word)
        assert found["logProbability"] == pytest.approx(total_by_hand(odd, word), abs=1e-9)
        assert len(found["probabilities"]) == len(word) + 1  # by code points, as Python counts
        for context in (word, word[:1]):
            found = browser.execute_script("return playground.probabilities(arguments[0])", context)
            np.testing.assert_allclose(found, by_hand(odd, context), rtol=0, atol=1e-12)
    shown = {" ": "␣", "\u200b": "U+200B", "\u0301": "◌\u0301"}
    for word in ODD:
        put(browser, word)
        assert texts(browser, "#score .letter") == [*(shown.get(c, c) for c in word), "end"]
        assert texts(browser, "#message") == [""]
    signs = [shown.get(c, c) for c in odd.vocabulary.characters]
    assert sorted(texts(browser, "#map text")) == sorted([".", *signs])
    assert sorted(texts(browser, "#map title")) == sorted(["end of name", *signs])
    kinds = {g.find_element("css selector", "text").text: g.get_dom_attribute("class") for g in find(browser, "#map g")}
    assert (kinds["a"], kinds["ë"], kinds["N"], kinds["名"], kinds["<"]) == (
        *("vowel", "vowel", "consonant"),
        *("other", "other"),
    )
    assert len(find(browser, "script")) == 2
    assert find(browser, "main b") == []
    put(browser, "🙂")
    likeliest = by_hand(odd, "🙂")[1:].argmax()
    next(bar for bar in find(browser, "#bars button") if "end" not in bar.get_dom_attribute("class")).click()
    assert value(browser) == "🙂" + odd.vocabulary.characters[likeliest]


@pytest.mark.browser
def test_a_large_alphabet_shows_the_likeliest_the_end_and_the_others(visit):
    model = some_model(HAN, embedding_dim=4, hidden_size=10, noise=1)
    browser = visit(model)
    expected = by_hand(model, "")
    shown = shares(browser)
    labels = list(shown)
    assert len(labels) == 31
    assert labels[-1] == "1,971 others"
    assert "end of name" in labels
    likeliest = [HAN[i - 1] for i in np.argsort(-expected) if i][:29]
    assert [label for label in labels[:-1] if label != "end of name"] == likeliest
    assert shown[labels[-1]] == pytest.approx(1 - expected[0] - np.sort(expected[1:])[-29:].sum(), abs=0.0005 + 1e-9)
    assert len(find(browser, "#bars button")) == 30
    assert len(find(browser, "#map g")) == 2001


@pytest.mark.browser
def test_the_map_of_a_large_alphabet_shows_the_most_frequent(visit):
    model = some_model(HAN, embedding_dim=4, hidden_size=10, noise=1)
    with torch.no_grad():
        model.b2[7] = 9.0
    browser = visit(model)
    places = browser.execute_script("""
        return [...document.querySelectorAll("#map text")]
            .filter((text) => getComputedStyle(text).visibility !== "hidden")
            .map((text) => [text.textContent, ["x", "y", "font-size"].map((name) => Number(text.getAttribute(name)))]);
    """)
    shown = dict(places)
    assert {".", HAN[6]} < set(shown)
    assert 50 < len(shown) < 1000
    boxes = list(shown.values())
    covers = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if all(abs(a[k] - b[k]) < a[2] for k in (0, 1))]
    assert not covers
    hidden = next(character for character in HAN if character not in shown)
    find(browser, "#name")[0].send_keys(hidden)  # the network looks at it now
    assert hidden in texts(browser, "#map .seen text")


@pytest.mark.browser
def test_the_page_fits_the_dark_a_phone_and_who_wants_no_motion(model, visit):
    browser = visit(model)
    luminance = """
        const [r, g, b] = getComputedStyle(document.body)[arguments[0]].match(/\\d+/g).map((x) => x / 255);
        return 0.21 * r + 0.72 * g + 0.07 * b;
    """
    for scheme, (paper, ink) in {"light": (0.95, 0.15), "dark": (0.1, 0.9)}.items():
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        assert browser.execute_script(luminance, "backgroundColor") == pytest.approx(paper, abs=0.06)
        assert browser.execute_script(luminance, "color") == pytest.approx(ink, abs=0.06)
    moves = "return getComputedStyle(document.querySelector('.track i')).transitionProperty"
    assert browser.execute_script(moves) == "width"
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", CALM)
    assert browser.execute_script(moves) == "none"
    find(browser, "#name")[0].send_keys("maximilianaalexandrina" * 3)
    for width, columns in ((390, 1), (905, 1), (925, 2), (1280, 2)):
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", device(width))
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        places = [find(browser, selector)[0].location for selector in ("#names", "#bars", "#map")]
        names, bars, chart = (place["y"] for place in places)
        # On a phone the few names come before the many bars.
        assert (names < bars < chart) if columns == 1 else (places[1]["x"] < places[0]["x"] == places[2]["x"])


@pytest.mark.browser
def test_the_page_may_not_connect_to_anything(model, visit):
    browser = visit(model)
    script = """
        const [done] = arguments;
        document.addEventListener("securitypolicyviolation", (event) => done(event.effectiveDirective));
        fetch("http://127.0.0.1:9/").catch(() => {});
    """
    assert browser.execute_async_script(script) == "connect-src"
    assert "Content Security Policy" in browser.get_log("browser")[0]["message"]  # not what the page itself did


def test_the_template_names_no_other_place():
    template = (ROOT / "makemore_pl/pictures/playground.html").read_text(encoding="utf-8")
    assert set(re.findall(r"https?://[^'\" ]*", template)) == {"http://www.w3.org/2000/svg"}
    assert template.count("{{model}}") == 1

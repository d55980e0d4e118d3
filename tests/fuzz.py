"""Feeds the parsers a million inputs, each led by the code that those before it reached: `python tests/fuzz.py`.

It needs atheris (pip install atheris), which has wheels for Linux; without it there is a line and nothing else. Within
two minutes it ends with the counts and exit status 0, or with the input that was not answered and another status.
"""

import io
import os
import re
import subprocess
import sys
import time
import zipfile
from collections import Counter
from importlib.util import find_spec

SECONDS = 110
"""In all."""

RUNS = {"wordlist": 850_000, "vocabulary": 100_000, "windows": 35_000, "sampling": 5_000, "checkpoint": 10_000}
"""Inputs for each parser: the cheap ones take most."""

LENGTH = {"checkpoint": 300, "sampling": 60}
"""The most bytes of an input, where it is not 200."""


def targets():
    """The functions that take an input: each refuses it with a ValueError of one line, or keeps its promise."""
    import torch

    from makemore_pl import MLP, Sampler, Vocabulary, sampling, windows, wordlist
    from makemore_pl import checkpoint as reader

    def wordlist_(data):
        form = ("NFC", "none")[data.ConsumeIntInRange(0, 1)]
        longest = data.ConsumeIntInRange(1, 50)
        raw = data.ConsumeBytes(200) or b"\n"
        words = wordlist.split_piece(raw, data.ConsumeBool(), form, longest, Counter())
        for word in words:
            assert word == word.strip() != ""
            assert not any(character < " " or character == "\x7f" for character in word)

    def vocabulary(data):
        words = [word for word in data.ConsumeUnicode(100).split(" ") if word]
        characters = Vocabulary.from_words(words).characters if data.ConsumeBool() else data.ConsumeUnicode(10)
        known = Vocabulary(characters)
        assert known.decode_words(known.encode_words(words)) == words

    def windows_(data):
        words = [word for word in data.ConsumeUnicode(60).split(" ") if word]
        known = Vocabulary.from_words(words)
        T = data.ConsumeIntInRange(-1, 9)
        X, Y = windows.build_windows(words, known, T)
        counts = windows.count_windows(X, Y, len(known))
        assert int(counts.n.sum()) == len(Y) == sum(len(word) + 1 for word in words)
        assert len(counts) == len(set(map(tuple, X.tolist())))

    model = MLP("ab", 2, 2, 2)

    def sampling_(data):
        options = {
            "num_names": data.ConsumeIntInRange(-1, 3),
            "temperature": data.ConsumeFloat(),
            "top_k": data.ConsumeInt(20) if data.ConsumeBool() else None,
            "top_p": data.ConsumeProbability() if data.ConsumeBool() else data.ConsumeFloat(),
            "min_length": data.ConsumeIntInRange(-1, 9),
            "max_length": data.ConsumeIntInRange(-1, 9),
            "seed": data.ConsumeInt(12),
            "unique": data.ConsumeBool(),
            "prompt": data.ConsumeUnicode(4),
        }
        names = list(sampling.Draw(Sampler(**options), model, model.vocabulary, 2).names())
        assert len(names) == options["num_names"]
        assert all(options["min_length"] <= len(name) <= options["max_length"] for name in names)

    file = io.BytesIO()
    torch.save({"state_dict": dict(model.state_dict()), "hyper_parameters": dict(model.hparams), "callbacks": {}}, file)
    whole = file.getvalue()
    with zipfile.ZipFile(file) as archive:
        records = {record.filename: archive.read(record) for record in archive.infolist()}

    def checkpoint(data):
        """Bytes replaced in the file, or in its pickle, with all checksums right."""
        deep = data.ConsumeIntInRange(0, 3) > 0
        name = next(iter(records)) if data.ConsumeIntInRange(0, 3) else data.PickValueInList(list(records))
        old = records[name] if deep else whole
        start, size = data.ConsumeIntInRange(0, len(old)), data.ConsumeIntInRange(0, 20)
        new = old[:start] + data.ConsumeBytes(200) + old[start + size :]
        if deep:
            out = io.BytesIO()
            with zipfile.ZipFile(out, "w") as archive:
                for other, content in records.items():
                    archive.writestr(other, new if other == name else content)
            new = out.getvalue()
        loaded = reader.unpack(new, "x.ckpt")
        reader.check("x.ckpt", loaded)

    return dict(zip(RUNS, (wordlist_, vocabulary, windows_, sampling_, checkpoint), strict=True))


def fuzz(name, seconds):
    """Fuzzes one parser in this process, which ends with it."""
    import atheris

    with atheris.instrument_imports(include=["makemore_pl"]):
        target = targets()[name]

    def once(raw):
        try:
            target(atheris.FuzzedDataProvider(raw))
        except ValueError as error:
            assert "\n" not in str(error) and not isinstance(error, UnicodeError)
        except sys.modules["makemore_pl.wordlist"].Mistake as mistake:
            assert "\n" not in str(mistake)

    options = {"runs": RUNS[name], "max_total_time": seconds, "max_len": LENGTH.get(name, 200), "rss_limit_mb": 4096}
    options |= {"timeout": 20, "seed": 1, "artifact_prefix": f"fuzz-{name}-", "verbosity": 1}
    atheris.Setup([sys.argv[0], *(f"-{key}={value}" for key, value in options.items())], once)
    atheris.Fuzz()


def main():
    """Fuzzes one parser after the other, each in a process of its own."""
    if find_spec("atheris") is None:
        print("fuzz: skipped, it needs atheris (pip install atheris)")
        return
    if len(sys.argv) == 3:
        fuzz(sys.argv[1], int(sys.argv[2]))
    end, total = time.monotonic() + SECONDS, 0
    for place, name in enumerate(reversed(RUNS)):
        # What one leaves of its share of the time, the next ones have; the cheapest comes last.
        seconds = max(1, int((end - time.monotonic()) / (len(RUNS) - place)))
        command = [sys.executable, __file__, name, str(seconds)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")
        runs = re.search(r"Done (\d+) (?:runs )?in", done.stderr)
        if done.returncode or not runs:
            print(done.stdout + done.stderr, file=sys.stderr)
            sys.exit(f"fuzz: {name}: an input was not answered")
        total += int(runs[1])
        print(f"fuzz: {name}: {int(runs[1]):,} inputs answered", flush=True)
    print(f"fuzz: {total:,} inputs, no exception")


if __name__ == "__main__":
    main()

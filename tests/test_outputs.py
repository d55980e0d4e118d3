"""Loggers, callbacks and profilers of a config write on this machine, and over no file that is there."""

import http.server
import re
import threading
from pathlib import Path

import pytest
import torch
import yaml

FEW = ["--data.num_words", 60, "--trainer.max_steps", 2, "--model.hidden_size", 8]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def requests():
    """A server on this machine: its address, and the requests that it has had."""
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.path)
            self.send_error(404)

        do_HEAD = do_PUT = do_POST = do_GET

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}", seen
    server.shutdown()


def config(folder, kind, **options):
    """Writes a config with one object of a class of Lightning's, and returns the flags that name it."""
    name, class_path = kind.split()
    spec = {"class_path": class_path, "init_args": options}
    flags = {"trainer": {name: [spec] if name == "callbacks" else spec}}
    (folder / "own.yaml").write_text(yaml.safe_dump(flags))
    return ["--config", "own.yaml"]


@pytest.mark.parametrize("scheme", ["http", "ftp", "s3"])
@pytest.mark.parametrize(
    ("kind", "option", "more"),
    [
        ("logger CSVLogger", "save_dir", {}),
        ("logger TensorBoardLogger", "save_dir", {}),
        ("logger TensorBoardLogger", "sub_dir", {"save_dir": "logs"}),
        ("logger makemore_pl.durable.checkpoints.RunFolder", "save_dir", {}),
        ("callbacks ModelCheckpoint", "dirpath", {}),
        ("callbacks OnExceptionCheckpoint", "dirpath", {}),
        ("profiler SimpleProfiler", "dirpath", {"filename": "x"}),
        ("profiler AdvancedProfiler", "dirpath", {"filename": "x"}),
    ],
)
def test_addresses_are_refused_wherever_a_class_takes_a_path(kind, option, more, scheme, folder, call, requests):
    address, seen = requests
    url = f"{scheme}://{address}/x"
    for command in ("fit", "lr_find") if scheme == "http" else ("fit",):
        status, out, err = call(command, *config(folder, kind, **{option: url}, **more), *FEW)
        assert (status, out) == (2, "")
        flag = f"--trainer.{kind.split()[0]}.{option}"
        assert err == f"error: {flag} {url}: is a URL; name a folder, or --trust the module of a logger that needs it\n"
    assert seen == []
    assert list(folder.iterdir()) == [folder / "own.yaml"]


def test_addresses_are_refused_on_the_command_line_too(folder, call):
    url = "http://127.0.0.1:1/x"
    for flags in (["--trainer.default_root_dir", url], ["--trainer.profiler", "SimpleProfiler"]):
        flags += ["--trainer.profiler.dirpath", url] if "SimpleProfiler" in flags else []
        status, _, err = call("fit", *flags, *FEW)
        assert (status, err) == (
            2,
            f"error: {flags[-2]} {url}: is a URL; name a folder, or --trust the module of a logger that needs it\n",
        )


SERVICE = """
from lightning.pytorch.loggers import Logger

class Service(Logger):
    name, version, save_dir = "service", "a", "runs"

    def __init__(self, address: str):
        super().__init__()
        open("address", "w").write(address)

    def log_metrics(self, metrics, step=None): pass
    def log_hyperparams(self, *args, **kwargs): pass
"""


def test_a_logger_of_a_service_needs_trust(folder, call, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    (folder / "service.py").write_text(SERVICE)
    flags = config(folder, "logger service.Service", address="https://example.invalid")
    status, _, err = call("fit", *flags, *FEW)
    assert (status, "add --trust service\n" in err) == (2, True)
    status, _, err = call("fit", *flags, "--trust", "service", *FEW)
    assert status == 0, err
    assert Path("address").read_text() == "https://example.invalid"
    # The recipe is in the folder of the run, not in one that several runs share.
    assert Path("runs/service/a/config.yaml").exists()
    assert not Path("runs/config.yaml").exists()

    status, _, err = call("fit", *config(folder, "logger MLFlowLogger", tracking_uri="http://127.0.0.1:1"), *FEW)
    assert status == 2
    assert err.endswith("configs may not import it; if you trust it, add --trust lightning.pytorch.loggers\n")


@pytest.mark.parametrize(
    ("what", "kind", "options", "victim"),
    [
        ("fit", "logger CSVLogger", {"save_dir": "there", "name": "a", "version": "b"}, "there/a/b/metrics.csv"),
        ("validate", "logger CSVLogger", {"save_dir": "there", "name": "", "version": ""}, "there/metrics.csv"),
        ("fit", "logger CSVLogger", {"save_dir": "there", "name": "", "version": 3}, "there/version_3/config.yaml"),
        ("fit", "logger TensorBoardLogger", {"save_dir": ".", "name": "", "version": "there"}, "there/config.yaml"),
        ("fit", "callbacks OnExceptionCheckpoint", {"dirpath": "there", "filename": "a"}, "there/a.ckpt"),
        (
            "fit",
            "callbacks ModelCheckpoint",
            {"dirpath": "there", "filename": "a", "enable_version_counter": False},
            "there/a.ckpt",
        ),
        ("fit", "profiler SimpleProfiler", {"dirpath": "there", "filename": "a"}, "there/fit-a.txt"),
        ("test", "profiler SimpleProfiler", {"dirpath": "there", "filename": "a"}, "there/test-a.txt"),
        ("fit", "profiler AdvancedProfiler", {"dirpath": "there", "dump_stats": True}, "there/fit-run.prof"),
        ("fit", "profiler PyTorchProfiler", {"dirpath": "there", "filename": "a"}, "there/fit-a-1.pt.trace.json"),
    ],
)
def test_no_file_is_written_over(what, kind, options, victim, folder, default_fit, call):
    path = folder / victim
    path.parent.mkdir(parents=True)
    path.write_text("somebody's")
    more = FEW if what == "fit" else ["--ckpt_path", default_fit[0] / "lightning_logs/version_0/checkpoints/best.ckpt"]
    before = sorted(folder.rglob("*"))
    status, out, err = call(what, *config(folder, kind, **options), *more)
    assert (status, out) == (2, "")
    where = re.escape(victim.removeprefix("there"))
    assert re.search(f"^error: .*there{where}: exists, and this run would write over it; move it, or use", err, re.M)
    assert path.read_text() == "somebody's"
    assert sorted(folder.rglob("*")) == sorted([*before, folder / "own.yaml"])


def test_checkpoints_of_ones_own_are_resumed_in_their_folder(folder, call):
    own = config(folder, "callbacks ModelCheckpoint", dirpath="mine", filename="a", enable_version_counter=False)
    assert call("fit", *own, *FEW)[0] == 0
    status, _, err = call("fit", *own, *FEW)
    assert (status, "mine/a.ckpt: exists" in err) == (2, True)
    status, _, err = call("fit", *own, "--ckpt_path", "last", "--trainer.max_steps", 4)
    assert status == 0, err
    assert torch.load("mine/a.ckpt", weights_only=True)["global_step"] == 4

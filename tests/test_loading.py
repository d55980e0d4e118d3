"""No code in a checkpoint or a config runs, and no checkpoint takes more memory than it has bytes."""

import copy
import io
import itertools
import os
import pickle
import re
import socket
import sys
import zipfile

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jsonargparse._common import parsing_settings
from lightning.pytorch import Trainer

from makemore_pl import MLP, NamesDataModule, wordlist
from makemore_pl.checkpoint import BrokenCheckpointError, check, load
from makemore_pl.commands import cli
from makemore_pl.commands.resume import require_resumable
from makemore_pl.durable.checkpoints import RunCheckpoint

QUICK = ["--data.num_words", 50, "--trainer.max_steps", 2, "--model.hidden_size", 8]


class Canary:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # as `python -m makemore_pl` has it
    return tmp_path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """What Lightning would save of a small model."""
    torch.manual_seed(1)
    model = MLP("ab", 2, 3, 4)
    hparams = {"path": None, "num_words": 50}
    return {
        "state_dict": model.state_dict(),
        "hyper_parameters": dict(model.hparams),
        "datamodule_hyper_parameters": hparams,
        "global_step": 1,
        "pytorch-lightning_version": "2.6.6",
    }


def rewritten(content, change):
    """A zip archive with some records changed."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
        for record in old.infolist():
            change(new, record.filename, old.read(record))
    return out.getvalue()


def saved(value, **options):
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


HOSTILE = {
    "zip": lambda checkpoint, canary: saved(checkpoint | {"more": canary}),
    "legacy": lambda checkpoint, canary: saved(checkpoint | {"more": canary}, _use_new_zipfile_serialization=False),
    "pickle": lambda checkpoint, canary: pickle.dumps(checkpoint | {"more": canary}),
    "weights": lambda checkpoint, canary: saved(checkpoint | {"state_dict": {"C": canary}}),
    "instantiator": lambda checkpoint, canary: with_hparams(
        checkpoint, _instantiator="os.mkdir", path=str(canary.path)
    ),
    "class of a module": lambda checkpoint, canary: with_hparams(checkpoint, _class_path="evil.Evil"),
    "class path": lambda checkpoint, canary: with_hparams(checkpoint, class_path="evil.Evil", init_args="x"),
    "class inside": lambda checkpoint, canary: with_hparams(checkpoint, lr={"class_path": "evil.Evil"}),
    "class of data": lambda checkpoint, canary: saved(
        checkpoint | {"datamodule_hyper_parameters": {"path": {"class_path": "evil.Evil"}}}
    ),
    "script": lambda checkpoint, canary: scripted(),
}


def with_hparams(checkpoint, **more):
    return saved(checkpoint | {"hyper_parameters": checkpoint["hyper_parameters"] | more})


def scripted():
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), file)
    return file.getvalue()


def write_evil(folder):
    """A module beside the user's files that acts as soon as it is imported."""
    (folder / "evil.py").write_text(
        f"import os; os.mkdir({str(folder / 'canary')!r})\n"
        "from lightning.pytorch import Callback\nclass Evil(Callback): pass\ndef run(*_): pass\n"
    )


COMMANDS = [
    ["fit", *QUICK],
    ["validate"],
    ["test"],
    ["predict"],
    ["export", "--output", "x.html"],
]


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.filterwarnings("ignore")
def test_no_code_runs_from_a_checkpoint(kind, folder, checkpoint, call, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    write_evil(folder)
    (folder / "x.ckpt").write_bytes(HOSTILE[kind](checkpoint, Canary(folder / "canary")))
    before = sorted(folder.iterdir())
    for command in COMMANDS:
        status, out, err = call(*command, "--ckpt_path", "x.ckpt")
        assert (status, out) == (2, ""), (command, out, err)
        assert err.startswith("error: x.ckpt: "), command
        assert err.count("\n") == 1
    status, out, err = call("fit", *QUICK, "--data.smoothing", 1, "--data.teacher", "x.ckpt")
    assert (status, out) == (2, "")
    assert err.splitlines()[-1].startswith(f"error: {folder / 'x.ckpt'}: ")
    for made, path in itertools.product((MLP, NamesDataModule), ("x.ckpt", folder / "x.ckpt")):
        with pytest.raises(ValueError, match=r"x.ckpt: "):
            made.load_from_checkpoint(path)
    assert sorted(folder.iterdir()) == before


@pytest.fixture
def slurm(monkeypatch):
    """One task of a job."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    for name, value in {
        "JOB_ID": 17,
        "NTASKS": 1,
        "NTASKS_PER_NODE": 1,
        "NNODES": 1,
        "PROCID": 0,
        "LOCALID": 0,
    }.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    monkeypatch.setenv("SLURM_NODEID", "0")


MODES = [[], ["--trainer.enable_checkpointing", "false"], ["--trainer.fast_dev_run", "true"]]


@pytest.mark.parametrize("mode", MODES)
def test_no_code_runs_from_a_checkpoint_that_lightning_finds(mode, folder, checkpoint, call, slurm):
    model = MLP(hidden_size=8)
    torch.save(checkpoint | {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}, "x.ckpt")
    (folder / "hpc_ckpt_1.ckpt").write_bytes(HOSTILE["zip"](checkpoint, Canary(folder / "canary")))
    for command in [*COMMANDS, ["lr_find", *QUICK[:2], "--num_steps", 3]]:
        path = [] if command[0] in ("fit", "lr_find") else ["--ckpt_path", "x.ckpt"]
        status, _, err = call(*command, *path, *(mode if command[0] != "export" else []))
        assert status == 0, (command, err)
        assert not (folder / "canary").exists()
        if command[0] != "lr_find":
            assert "not used: hpc_ckpt_1.ckpt, saved when a job was requeued" in err
    for more in (["--trainer.logger", "false"], ["--config", "own.yaml"]):
        (folder / "own.yaml").write_text("trainer: {logger: {class_path: CSVLogger, init_args: {save_dir: own}}}")
        status, _, err = call("fit", *QUICK, *more, *mode)
        if "--trainer.fast_dev_run" not in mode:
            assert status == 2
            message = f"error: {folder / 'hpc_ckpt_1.ckpt'}: Lightning would resume from this"
            assert err.splitlines()[-1].startswith(message)
        assert not (folder / "canary").exists()


@pytest.mark.parametrize("mode", MODES)
def test_no_code_runs_from_what_an_exception_left(mode, folder, checkpoint, call, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    hostile = HOSTILE["zip"](checkpoint, Canary(folder / "canary"))
    (folder / "on_exception.ckpt").write_bytes(hostile)
    (folder / "x.yaml").write_text(
        "trainer: {callbacks: [{class_path: OnExceptionCheckpoint, init_args: {dirpath: .}}]}"
    )
    status, _, err = call("fit", "--config", "x.yaml", *QUICK, *mode)
    assert status == 2
    if "--trainer.enable_checkpointing" not in mode:  # which Lightning refuses by itself
        assert err.endswith(
            "error: on_exception.ckpt: exists, and this run would write over it; move it, or use another name\n"
        )
    assert not (folder / "canary").exists()
    assert (folder / "on_exception.ckpt").read_bytes() == hostile


def test_under_slurm_the_requested_checkpoint_is_used(folder, call, slurm, monkeypatch):
    """A genuine checkpoint of a requeued job replaces no other."""
    assert call("fit", *QUICK)[0] == 0
    best = "lightning_logs/version_0/checkpoints/best.ckpt"
    names = call("predict", "--ckpt_path", best)[1]
    assert call("fit", *QUICK, "--model.seed", 5, "--trainer.max_steps", 4)[0] == 0
    (folder / "lightning_logs/version_1/checkpoints/last.ckpt").rename("hpc_ckpt_3.ckpt")
    status, out, err = call("predict", "--ckpt_path", best)
    assert (status, out) == (0, names), err
    status, _, err = call("fit", *QUICK)
    assert (status, "resuming" in err) == (0, False), err
    assert load("lightning_logs/version_2/checkpoints/last.ckpt")["global_step"] == 2
    status, _, err = call("fit", *QUICK, "--ckpt_path", "hpc_ckpt_3.ckpt", "--trainer.max_steps", 6)
    assert status == 0, err
    assert "resuming hpc_ckpt_3.ckpt, step 4\n" in err
    assert "not used" not in err


def test_the_canary_sings(folder, checkpoint):
    """What the tests rely on: read as pickles, these files act."""
    for kind in ("zip", "legacy"):
        (folder / "x.ckpt").write_bytes(HOSTILE[kind](checkpoint, Canary(folder / kind)))
        torch.load("x.ckpt", weights_only=False)
        assert (folder / kind).exists()


@pytest.mark.parametrize("scheme", ["http", "https", "ftp", "s3", "simplecache::http"])
def test_nothing_is_fetched(scheme, folder, call, monkeypatch):
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *name, **_: asked.append(name))
    monkeypatch.setattr(socket.socket, "connect", lambda _, name: asked.append(name))
    url = f"{scheme}://127.0.0.1:1/x"
    for command in COMMANDS if scheme == "http" else COMMANDS[:1]:
        status, out, err = call(*command, "--ckpt_path", url)
        assert (status, out) == (2, "")
        assert err == f"error: {url}: is a URL, and nothing is downloaded; download it and name the file\n"
    with pytest.raises(ValueError, match="nothing is downloaded"):
        MLP.load_from_checkpoint(url)
    url += "//y"  # quoted as it was typed
    assert call("fit", "--trainer.max_steps", 1, "--pictures", "false")[0] == 0
    for done, *flags in [
        ("download", "fit", "--config", url),
        ("download", "fit", "--data.path", url),
        ("download", "predict", "--sample.score", url),
        ("upload", "predict", "--sample.output", url),
        ("upload", "export", "--output", url + ".html"),
    ]:
        status, out, err = call(*flags)
        assert (status, out) == (2, "")
        assert f"error: {flags[-1]}: is a URL, and nothing is {done}ed; " in err
    assert asked == []


LAMBDA = "trainer: {callbacks: {class_path: lightning.pytorch.callbacks.LambdaCallback, init_args: {setup: %s}}}"


@pytest.mark.parametrize(
    "config",
    [
        "trainer: {callbacks: {class_path: evil.Evil}}",
        "trainer: {callbacks: [{class_path: evil.Evil}]}",
        "trainer: {callbacks: evil.Evil}",
        "trainer: {logger: {class_path: os.mkdir, init_args: {path: canary}}}",
        "trainer: {logger: {class_path: subprocess.Popen, init_args: {args: [mkdir, canary]}}}",
        "trainer: {plugins: [{class_path: torch.utils.collect_env.run, init_args: {command: mkdir canary}}]}",
        "trainer: {strategy: {class_path: lightning.pytorch.cli.LightningCLI}}",
        "trainer: {profiler: {class_path: lightning.pytorch.profilers.PyTorchProfiler, init_args: "
        "{schedule: {class_path: evil.Evil}}}}",
        LAMBDA % "evil.run",
        LAMBDA % "os.mkdir",
        LAMBDA % "torch.hub.load",
        LAMBDA % "makemore_pl.commands.cli.os.mkdir",
        LAMBDA % "lightning.pytorch.callbacks.model_checkpoint.shutil.rmtree",
        LAMBDA % "{class_path: torch.jit.CompilationUnit, init_args: {lang: x}}",
        "trainer: {logger: {class_path: lightning.pytorch.loggers.TensorBoardLogger, init_args: {save_dir: x, "
        "dict_kwargs: {class_path: evil.Evil}}}}",
        "model: {class_path: evil.Evil}",
        "data: {class_path: evil.Evil}",
        "class_path: evil.Evil",
        "model: {lr: !!python/object/apply:os.mkdir [canary]}",
        "!!python/object/apply:os.mkdir [canary]",
        "model: !!python/name:evil.run",
        "model: !!python/module:evil",
        "trust: evil\ntrainer: {callbacks: {class_path: evil.Evil}}",
    ],
)
@pytest.mark.parametrize("command", ["fit", "lr_find", "predict"])
def test_no_code_runs_from_a_config(config, command, folder, checkpoint, call):
    write_evil(folder)
    (folder / "x.yaml").write_text(config)
    torch.save(checkpoint, folder / "x.ckpt")
    before = sorted(folder.iterdir())
    more = [] if command == "lr_find" else ["--ckpt_path", "x.ckpt"]
    status, out, err = call(command, "--config", "x.yaml", *more)
    assert (status, out) == (2, ""), err
    assert (err[:7], err.count("\n")) == ("error: ", 1), err
    assert sorted(folder.iterdir()) == before


def test_a_module_that_the_command_line_trusts_may_be_named(folder, call, monkeypatch):
    monkeypatch.setitem(parsing_settings, "import_path_verdicts", parsing_settings["import_path_verdicts"])
    (folder / "mine.py").write_text(
        "from lightning.pytorch import Callback\n"
        "class Mine(Callback):\n    def on_fit_end(self, *_): print('mine was here')\n"
    )
    (folder / "mine.yaml").write_text("trainer: {callbacks: {class_path: mine.Mine}}")
    status, _, err = call("fit", "--config", "mine.yaml", *QUICK)
    assert status == 2
    assert err == "error: mine.Mine: configs may not import it; if you trust it, add --trust mine\n"
    status, out, err = call("fit", "--config", "mine.yaml", "--trust", "mine", *QUICK)
    assert status == 0, err
    assert out.startswith("mine was here\n")


# Nine lists, each ten times the one before: 400 bytes for a thousand million numbers.
UNFOLDING = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10))


# From 6.0.4 on, PyYAML has a limit of its own to brackets, and reads them ahead of ours.
TOO_DEEP = "more than a hundred nested lists or groups|exceeded maximum nesting depth"


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ("a0: &a0 [1]\n" + UNFOLDING + "trainer: {callbacks: *a9}", r"aliases \(\*name\) are not supported"),
        ("trainer: {callbacks: &a [*a]}", r"aliases \(\*name\) are not supported"),
        ("trainer: {callbacks: " + "[" * 100_000 + "]" * 100_000, TOO_DEEP),
        ("{" * 100_000 + "}" * 100_000, TOO_DEEP),
        ("- " * 100_000, "more than a hundred nested lists or groups"),
        ("trainer: {callbacks: " + "[" * 90 + "]" * 90 + "}", r"trainer\.callbacks"),
        ("model: \x00", ""),
        ("\x9b", ""),
        ("- 1", ""),
        ("model: {lr: 1", ""),
    ],
)
def test_a_config_that_is_none_is_refused_soon(config, what, folder, call):
    (folder / "x.yaml").write_text(config, encoding="utf-8")
    status, out, err = call("fit", "--config", "x.yaml", *QUICK)
    assert (status, out, err.count("\n")) == (2, "", 1), err
    assert re.search(what, err)
    assert len(err) < 1000


@pytest.mark.parametrize(
    ("hparams", "tensor"),
    [
        ({"embedding_dim": 10**9}, {}),
        ({"embedding_dim": 10**9}, {"C": torch.zeros(1).expand(3, 10**9), "W1": torch.zeros(1).expand(2 * 10**9, 4)}),
        ({"embedding_dim": 10**9}, {"C": torch.zeros(3, 10**9, device="meta")}),
        ({}, {"C": torch.zeros(3, 3).to_sparse()}),
        ({}, {"C": "a string"}),
        ({"hidden_size": 0, "block_size": 10**12}, {"W1": torch.zeros(3 * 10**12, 0)}),
        ({"hidden_size": 4.0}, {}),
        ({"hidden_size": True}, {}),
        ({"vocabulary": ["a", "b"]}, {}),
        ({"vocabulary": None}, {}),
        ({"block_size": "2"}, {}),
        ({"seed": 10**40}, {}),
        ({"lr": -1.0}, {}),
        ({}, {"b1": torch.tensor([1.0, float("nan"), 1.0, 1.0])}),
    ],
)
def test_what_a_checkpoint_claims_takes_no_memory(hparams, tensor, folder, checkpoint, call, monkeypatch):
    """Sizes are checked first, and the error is one line."""
    hostile = checkpoint | {
        "hyper_parameters": checkpoint["hyper_parameters"] | hparams,
        "state_dict": dict(checkpoint["state_dict"]) | tensor,
    }
    torch.save(hostile, "x.ckpt")
    assert (folder / "x.ckpt").stat().st_size < 10_000
    taken = []
    randn = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *size, **options: taken.append(size) or randn(*size, **options))
    for command in (["predict"], ["fit", *QUICK]):
        status, out, err = call(*command, "--ckpt_path", "x.ckpt")
        assert (status, out, err.count("\n")) == (2, "", 1), err
        assert err.startswith("error: ")
    with pytest.raises(ValueError, match=r"[a-z]"):
        MLP.load_from_checkpoint("x.ckpt")
    assert taken == []


def packed(content):
    """With its records compressed, ten thousand zeros to a few bytes."""
    return rewritten(content, lambda new, name, data: new.writestr(name, data, zipfile.ZIP_DEFLATED))


def claiming(content):
    """With a pickle that says of a storage that it has 2**30 numbers; it has 6."""
    numbers, claimed = b"K\x06t", b"J\x00\x00\x00\x40t"

    def change(new, name, data):
        if name.endswith("data.pkl"):
            assert numbers in data
            data = data.replace(numbers, claimed, 1)
        new.writestr(name, data)

    return rewritten(content, change)


def overlapping(content):
    """With a second entry of the directory for the bytes of the first."""

    def change(new, name, data):
        new.writestr(name, data)
        if name.endswith("data.pkl"):
            for number in range(20):
                twin = copy.copy(new.filelist[-1])
                twin.filename = f"archive/{number}"
                new.filelist.append(twin)

    return rewritten(content, change)


@pytest.mark.parametrize("disguise", [packed, claiming, overlapping])
def test_a_file_that_would_unpack_to_more_is_refused(disguise, folder, checkpoint):
    (folder / "x.ckpt").write_bytes(disguise(saved(checkpoint | {"C": torch.zeros(6)})))
    with pytest.raises(BrokenCheckpointError):
        load("x.ckpt")


class Called:
    """Calls something when it is unpickled."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def appended(content):
    """Behind another beginning, where torch.load looks for a pickle of old."""
    return pickle.dumps(bytearray(10)) + content


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Called(bytearray, 2**20), "bytearray"),
        (Called(torch.Tensor, 2**20), "torch.* Tensor"),
        (Called(torch.UntypedStorage, 2**20), "UntypedStorage"),
        (Called(torch.Size, (1, 2)), "torch Size"),
        (torch.zeros(3).to_sparse(), "_rebuild_sparse_tensor"),
        (torch.zeros(3, device="meta"), "_rebuild_meta_tensor_no_storage"),
        (torch.zeros(3).to(torch.float8_e5m2), "_rebuild_tensor_v3"),
        (lambda: torch.quantize_per_tensor(torch.zeros(3), 1.0, 0, torch.qint8), "_rebuild_qtensor"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_nothing_is_called_that_takes_memory(value, name, folder, checkpoint, monkeypatch):
    value = value() if callable(value) else value
    (folder / "x.ckpt").write_bytes(saved(checkpoint | {"more": value}))
    assert (folder / "x.ckpt").stat().st_size < 10_000
    torch.load("x.ckpt", weights_only=True)  # which lets it pass
    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", None)
        with pytest.raises(BrokenCheckpointError, match=f"x.ckpt: not a checkpoint of makemore_pl: it calls '.*{name}"):
            load("x.ckpt")
    (folder / "x.ckpt").write_bytes(appended(saved(checkpoint)))
    with pytest.raises(BrokenCheckpointError, match="it does not begin as a zip archive"):
        load("x.ckpt")


def test_what_is_too_large_is_not_read(folder):
    (folder / "x.ckpt").touch()
    os.truncate("x.ckpt", 2**42)
    with pytest.raises(ValueError, match=r"^x.ckpt: reading it would take 1.23e\+04 GB of memory"):
        load("x.ckpt")
    with pytest.raises(ValueError, match=r"^/dev/zero: not a checkpoint, but a folder or a device; name a file$"):
        load("/dev/zero")


@pytest.mark.parametrize("path", ["run/../../../precious.txt", "run/x/../../precious.txt", "other/../precious.txt"])
@pytest.mark.parametrize("key", ["best_model_path", "kth_best_model_path", "last_model_path", "best_k_models"])
def test_a_checkpoint_has_no_file_removed_outside_of_its_folder(key, path, checkpoint):
    state = {"dirpath": "run", key: {path: 2.0} if key == "best_k_models" else path}
    with pytest.raises(ValueError, match="it names a file outside its folder"):
        check("x.ckpt", checkpoint | {"callbacks": {"ModelCheckpoint": state}})
    for folder in ("run", "../run", "../a/../run"):
        state = {"dirpath": folder, "best_model_path": f"{folder}/best.ckpt", "last_model_path": "other/last.ckpt"}
        check("x.ckpt", checkpoint | {"callbacks": {"ModelCheckpoint": state}})


@pytest.mark.parametrize(
    ("group", "name", "value"),
    [
        ("hyper_parameters", "more", 1),
        ("hyper_parameters", 7, 1),
        ("hyper_parameters", "lr", "fast"),
        ("hyper_parameters", "seed", 1.5),
        ("hyper_parameters", "schedule", "bogus"),
        ("hyper_parameters", "optimizer", "bogus"),
        ("hyper_parameters", "init", 1),
        ("datamodule_hyper_parameters", "more", 1),
        ("datamodule_hyper_parameters", "num_words", "many"),
        ("datamodule_hyper_parameters", None, None),
        ("datamodule_hyper_parameters", None, "text"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_hyperparameters_that_make_nothing_are_the_files_mistake(group, name, value, folder, checkpoint, call):
    found = value if name is None else checkpoint[group] | {name: value}
    torch.save(checkpoint | {group: found}, "x.ckpt")
    status, out, err = call("predict", "--ckpt_path", "x.ckpt")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: x.ckpt: ")
    assert "--config" not in err
    if name != "num_words":  # of which a list is made later
        with pytest.raises(ValueError, match=r"^x\.ckpt: [^\n]+$"):
            (MLP if group == "hyper_parameters" else NamesDataModule).load_from_checkpoint("x.ckpt")


@pytest.mark.parametrize("change", [lambda _: [1], lambda found: found | {"datamodule_hyper_parameters": "text"}])
def test_what_is_averaged_is_looked_at_too(change, folder, checkpoint, call):
    torch.save(checkpoint, "whole.ckpt")
    torch.save(change(checkpoint), "x.ckpt")
    average = "--ckpt_path", "whole.ckpt", "--average", "[x.ckpt]", "--output", "both.ckpt"
    status, out, err = call("export", *average)
    assert (status, out) == (2, "")
    assert err.splitlines()[-1].startswith("error: x.ckpt: not a checkpoint of makemore_pl")
    assert not (folder / "both.ckpt").exists()


def test_the_data_of_a_checkpoint_are_made_again(folder, checkpoint):
    torch.save(checkpoint, "x.ckpt")
    assert NamesDataModule.load_from_checkpoint("x.ckpt").hparams["num_words"] == 50
    assert NamesDataModule.load_from_checkpoint("x.ckpt", num_words=7).hparams["num_words"] == 7
    with pytest.raises(ValueError, match="weights_only is False"):
        NamesDataModule.load_from_checkpoint("x.ckpt", weights_only=False)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just(torch.zeros(2)),
    lambda value: st.lists(value, max_size=3) | st.dictionaries(st.text(max_size=3) | st.integers(), value, max_size=3),
    max_leaves=5,
)


@given(
    st.dictionaries(
        st.sampled_from(["state_dict", "hyper_parameters", "datamodule_hyper_parameters", "callbacks"]), VALUES
    ),
    st.dictionaries(st.sampled_from(["vocabulary", "block_size", "embedding_dim", "hidden_size", "_x"]), VALUES),
    st.dictionaries(st.sampled_from(["C", "W1", "b1", "W2", "b2", "more"]), VALUES),
)
def test_whatever_a_checkpoint_holds_is_answered(checkpoint, top, hparams, tensors):
    hostile = checkpoint | top
    if not top.keys() & {"state_dict", "hyper_parameters"}:
        hostile["hyper_parameters"] = checkpoint["hyper_parameters"] | hparams
        hostile["state_dict"] = dict(checkpoint["state_dict"]) | tensors
    try:
        check("x.ckpt", hostile)
    except ValueError as error:
        assert re.fullmatch(r"x\.ckpt: [^\n]+", str(error))
    else:
        MLP(**hostile["hyper_parameters"]).load_state_dict(hostile["state_dict"])


@pytest.mark.parametrize("name", ["\x1b[2J", "a\nb", "é\x9b", "x" * 10**5])
@pytest.mark.parametrize("place", ["state_dict", "hyper_parameters", "datamodule_hyper_parameters", "init"])
def test_what_a_checkpoint_holds_reaches_no_terminal_as_it_is(place, name, checkpoint, call, folder):
    if place == "init":
        hostile = checkpoint | {"hyper_parameters": checkpoint["hyper_parameters"] | {"init": name}}
    else:
        hostile = checkpoint | {place: dict(checkpoint[place]) | {name: [1]}}
    torch.save(hostile, folder / "x.ckpt")
    status, out, err = call("predict", "--ckpt_path", "x.ckpt")
    assert (status, out) == (2, "")
    line, rest = err.split("\n", 1)
    assert line.startswith("error: x.ckpt: ")
    assert line.isprintable()
    assert (len(line) <= 2000, rest) == (True, "")
    with pytest.raises(ValueError, match=r"^x\.ckpt: [ -~]{,300}$"):
        (NamesDataModule if place.startswith("data") else MLP).load_from_checkpoint("x.ckpt")


@pytest.mark.parametrize(
    ("command", "character"),
    [("predict", character) for character in "\n\x1b\t\0\x7f\x85\x9b\u2028\u202e\u2066\ud800"]
    + [(command, "\x1b") for command in ("validate", "test", "fit", "export")],
)
def test_a_vocabulary_that_no_list_has_reaches_no_terminal(command, character, checkpoint, call, folder):
    hparams = checkpoint["hyper_parameters"] | {"vocabulary": "".join(sorted("a" + character))}
    torch.save(checkpoint | {"hyper_parameters": hparams}, folder / "x.ckpt")
    flags = {"export": ["--output", "y.html"]}.get(command, [])
    status, out, err = call(command, "--ckpt_path", "x.ckpt", *flags)
    assert (status, out) == (2, "")
    assert err.startswith(f"error: x.ckpt: not a checkpoint of makemore_pl: its vocabulary has U+{ord(character):04X}")
    assert err.endswith(", which no list may have\n")
    assert err[:-1].isprintable()


@pytest.mark.skipif(os.name == "nt", reason="needs named pipes")
@pytest.mark.parametrize("kind", ["pipe", "link"])
@pytest.mark.parametrize("command", [["validate"], ["test"], ["fit"], ["predict", "--sample.format", "csv"]])
def test_a_list_that_became_a_named_pipe_is_not_waited_for(command, kind, checkpoint, call, folder, monkeypatch):
    """Those that use no list do without it; the others say so within five seconds, here less."""
    monkeypatch.setattr(wordlist, "PATIENCE", 0.1)
    os.mkfifo(folder / "pipe")
    (folder / "link").symlink_to("pipe")
    hparams = {"path": str(folder / kind), "num_words": 50}
    torch.save(checkpoint | {"datamodule_hyper_parameters": hparams}, folder / "x.ckpt")
    assert call("predict", "--ckpt_path", "x.ckpt")[0] == 0
    assert call("export", "--ckpt_path", "x.ckpt", "--output", "x.html")[0] == 0
    start = ["fit", "--data.path", folder / kind] if command == ["fit"] else [*command, "--ckpt_path", "x.ckpt"]
    status, out, err = call(*start)
    assert (status, out) == (2, "")
    assert f"error: {folder / kind}: nothing came through this pipe in 0.1 seconds" in err.splitlines()[-1]
    status, out, err = call("predict", "--ckpt_path", "x.ckpt", "--sample.score", kind)
    assert (status, out) == (2, "")
    assert err == f"error: {kind}: nothing came through this pipe in 0.1 seconds; start what writes to it first\n"


@pytest.mark.parametrize("path", ["-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"])
def test_a_checkpoint_cannot_read_from_stdin(path, checkpoint):
    with pytest.raises(
        ValueError, match=r"x.ckpt: not a checkpoint of makemore_pl: path is not a valid hyperparameter"
    ):
        check("x.ckpt", checkpoint | {"datamodule_hyper_parameters": {"path": path}})


@pytest.mark.parametrize(
    ("command", "name", "value"),
    [("predict", "W1", 1e39), ("predict", "b2", -1e39), ("predict", "W1", 3e38), ("predict", "W2", 1.7e38)]
    + [(command, "C", 1e300) for command in ("predict", "validate", "test", "fit", "export")],
)
def test_weights_that_32_bits_cannot_compute_with_are_one_line(command, name, value, checkpoint, call, folder):
    tensors = {key: tensor.double() for key, tensor in checkpoint["state_dict"].items()}
    tensors[name] = torch.full_like(tensors[name], value)
    torch.save(checkpoint | {"state_dict": tensors}, folder / "x.ckpt")
    flags = {"export": ["--output", "y.html"]}.get(command, [])
    status, out, err = call(command, "--ckpt_path", "x.ckpt", *flags)
    assert (status, out) == (2, "")
    finite = abs(value) < torch.finfo(torch.float32).max
    what = "weights too large for 32 bits" if finite else "not all weights are finite numbers"
    assert err == f"error: x.ckpt: {what}: that training failed; try a smaller --model.lr\n"


def test_weights_are_refused_only_if_a_logit_may_be_no_number(checkpoint):
    """The largest weights that pass give finite logits."""
    state = {name: torch.full_like(tensor, 1e18) for name, tensor in checkpoint["state_dict"].items()}
    check("x.ckpt", checkpoint | {"state_dict": state})
    model = MLP(**checkpoint["hyper_parameters"])
    model.load_state_dict(state)
    assert model(torch.tensor([[0, 1], [2, 2]])).isfinite().all()


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(4, dtype=torch.int64),
        torch.zeros(4, dtype=torch.float8_e5m2),
        torch.zeros(4).to_sparse(),
        lambda: torch.quantize_per_tensor(torch.zeros(4), 1.0, 0, torch.qint8),
        lambda: torch.nested.nested_tensor([torch.zeros(2)]),
        lambda: torch.nested.nested_tensor([torch.zeros(2)], layout=torch.jagged),
        torch.zeros(2).expand(4, 2)[:, 0],
        None,
        "C",
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_tensor_of_another_kind_is_refused(value, checkpoint):
    value = value() if callable(value) else value
    hostile = checkpoint | {"state_dict": dict(checkpoint["state_dict"]) | {"b1": value}}
    with pytest.raises(ValueError, match=r"^x\.ckpt: (not a checkpoint|this checkpoint is inconsistent)[^\n]+$"):
        check("x.ckpt", hostile)


# What a training resumes from.


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    """A checkpoint to resume from, the model, and the Trainer that would resume it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("unfinished"))
        patch.setattr(sys, "argv", ["makemore_pl", "fit", *map(str, QUICK)])
        cli.main()
        found = load("lightning_logs/version_0/checkpoints/best.ckpt")
        model = MLP.load_from_checkpoint("lightning_logs/version_0/checkpoints/best.ckpt")
    checkpoints = [RunCheckpoint("best", monitor="val/loss"), RunCheckpoint("last")]
    trainer = Trainer(accelerator="cpu", logger=False, callbacks=checkpoints, max_steps=3)
    return {name: value for name, value in found.items() if name != "sealed"}, model, trainer


STATE = ("optimizer_states", 0, "state")
SCHEDULE = ("lr_schedulers", 0)
GROUP = ("optimizer_states", 0, "param_groups", 0)
FIT_LOOP = ("loops", "fit_loop")
BEST = ("callbacks", "RunCheckpoint best")
SKEWED = torch.zeros(270)[269:].expand(27, 10)  # in its storage there is room for it, but not behind its beginning


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (STATE + (0, "exp_avg"), torch.zeros(2, 2)),
        (STATE + (0, "exp_avg"), torch.zeros(27, 10, dtype=torch.int64)),
        (STATE + (0, "exp_avg"), SKEWED),
        (STATE + (4, "exp_avg_sq"), torch.zeros(26)),
        (STATE + (1, "step"), torch.zeros(2)),
        (STATE + (1, "step"), 1),
        (STATE + (1,), {}),
        (STATE + (1,), None),
        (STATE + (5,), {}),
        (STATE + ("0",), {}),
        (STATE, []),
        (GROUP + ("params",), [0, 1]),
        (GROUP + ("params",), [4, 3, 2, 1, 0]),
        (GROUP + ("amsgrad",), True),
        (GROUP + ("foreach",), True),
        (GROUP + ("betas",), torch.zeros(2)),
        (GROUP + ("lr",), "fast"),
        (GROUP, {}),
        (("optimizer_states",), []),
        (("optimizer_states",), None),
        (GROUP + ("initial_lr",), None),
        (("callbacks", "KeepMetrics"), None),
        (("callbacks", "KeepMetrics", "val/loss"), torch.zeros(1)),
        (("loops",), None),
        (FIT_LOOP, {}),
        (FIT_LOOP + ("epoch_progress", "current", "processed"), "1"),
        (FIT_LOOP + ("epoch_progress", "current", "processed"), -1),
        (FIT_LOOP + ("epoch_progress", "current", "processed"), 10**40),
        (FIT_LOOP + ("epoch_loop.batch_progress", "is_last_batch"), None),
        (FIT_LOOP + ("state_dict",), None),
        (FIT_LOOP + ("state_dict", "combined_loader"), [{"step": "x"}]),
        (("callbacks",), []),
        (BEST, {"dirpath": "a", "best_k_models": 5}),
        (BEST + ("best_k_models",), 5),
        (BEST + ("best_k_models", "best.ckpt"), torch.zeros(2)),
        (BEST + ("best_model_score",), torch.zeros(2)),
        (BEST + ("kth_value",), None),
        (BEST + ("best_model_path",), None),
        (("global_step",), -1),
        (("lr_schedulers",), None),
        (("lr_schedulers",), []),
        (SCHEDULE + ("last_epoch",), 10**6),
        (SCHEDULE + ("base_lrs",), ["fast"]),
        (SCHEDULE + ("base_lrs",), [0.1, 0.1]),
        (SCHEDULE + ("_last_lr",), torch.zeros(1)),
        (SCHEDULE + ("lr_lambdas",), [{"step": "x"}]),
        (SCHEDULE + ("step",), "not a method"),
        (("pytorch-lightning_version",), "1.5.0"),
        (("pytorch-lightning_version",), None),
    ],
)
def test_a_training_resumes_only_from_the_form_of_its_own_state(place, value, unfinished):
    whole, model, trainer = unfinished
    check("x.ckpt", whole)
    require_resumable("x.ckpt", whole, model, trainer)
    hostile = copy.deepcopy(whole)
    inner, (*way, last) = hostile, place
    for key in way:
        inner = inner[key]
    inner[last] = value
    message = r"x\.ckpt: not a checkpoint to resume from: its (.+) is not what this training would save"
    with pytest.raises(ValueError, match=f"^{message}$") as error:
        require_resumable("x.ckpt", hostile, model, trainer)
    named = re.fullmatch(message, str(error.value))[1]
    changed = ".".join(map(str, place))
    assert changed.startswith(named) or named.startswith(changed)


@pytest.mark.parametrize("name", ["global_step", "loops", "callbacks", "lr_schedulers", "pytorch-lightning_version"])
def test_a_training_misses_nothing(name, unfinished):
    whole, model, trainer = unfinished
    del (hostile := dict(whole))[name]
    with pytest.raises(ValueError, match=r"^x.ckpt: not a checkpoint to resume from: its "):
        require_resumable("x.ckpt", hostile, model, trainer)


def test_no_step_is_taken_with_moments_of_other_shapes(unfinished, folder, call):
    """Torch would write beyond them."""
    torch.save(unfinished[0], "whole.ckpt")
    hostile = copy.deepcopy(unfinished[0])
    hostile["optimizer_states"][0]["state"][0]["exp_avg"] = torch.zeros(2, 2)
    torch.save(hostile, "x.ckpt")
    before = sorted(folder.iterdir())
    more = *QUICK[:2], "--trainer.max_steps", 6
    status, out, err = call("fit", "--ckpt_path", "x.ckpt", *more)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(
        "error: x.ckpt: not a checkpoint to resume from: its optimizer_states.0.state.0.exp_avg is not "
    )
    assert sorted(folder.iterdir()) == before
    assert call("fit", "--ckpt_path", "whole.ckpt", *more)[0] == 0


@pytest.mark.parametrize("betas", ["x", None, (2.0, -1.0)])
def test_a_requested_momentum_replaces_that_of_the_checkpoint(betas, unfinished, folder, call):
    hostile = copy.deepcopy(unfinished[0])
    hostile["optimizer_states"][0]["param_groups"][0]["betas"] = betas
    torch.save(hostile, "x.ckpt")
    status, _, err = call("fit", "--ckpt_path", "x.ckpt", *QUICK[:2], "--trainer.max_steps", 6, "--model.momentum", 0.7)
    assert status == 0, err
    (group,) = load("lightning_logs/version_0/checkpoints/last.ckpt")["optimizer_states"][0]["param_groups"]
    assert group["betas"] == pytest.approx((0.7, 0.9))


@given(st.data())
def test_whatever_the_bytes_are_it_is_a_checkpoint_or_broken(checkpoint, tmp_path_factory, data):
    """Bytes of a checkpoint are replaced, omitted and repeated: only the one that was written loads."""
    content = saved(checkpoint)
    start, size = data.draw(st.integers(0, len(content))), data.draw(st.integers(0, 64))
    broken = content[:start] + data.draw(st.binary(max_size=64)) + content[start + size :]
    path = tmp_path_factory.getbasetemp() / "broken.ckpt"
    path.write_bytes(broken)
    try:
        loaded = load(path)
        check(path, loaded)
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        for name, tensor in checkpoint["state_dict"].items():
            assert torch.equal(loaded["state_dict"][name], tensor)

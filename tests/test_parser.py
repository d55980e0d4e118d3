import pytest

from makemore_pl import terminal
from makemore_pl.commands.messages import did_you_mean, explain
from makemore_pl.terminal import command_line

FLAGS = ["-h", "--help", "--config", "--model.lr", "--model.block_size", "--data.block_size", "--data.batch_size"]
FLAGS += ["--data.path", "--trainer.max_steps", "--trainer.max_epochs", "--sample.num_names", "--num_steps"]
FLAGS += ["--model.embedding_dim", "--model.hidden_size", "--trainer.accelerator"]


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("--lr", "--model.lr"),
        ("--modle.lr", "--model.lr"),
        ("--model.block-size", "--model.block_size"),
        ("--block_size", "--model.block_size or --data.block_size"),
        ("--trainer.max_step=3", "--trainer.max_steps"),
        ("--max_step", "--trainer.max_steps"),
        ("--data.pth", "--data.path"),
        ("--sample.num_name", "--sample.num_names"),
        ("--conifg", "--config"),
        ("--hlep", "--help"),
        # Other programs' names, those of makemore.py among them.
        ("--epochs", "--trainer.max_epochs"),
        ("--learning-rate", "--model.lr"),
        ("-i", "--data.path"),
        ("--input-file", "--data.path"),
        ("--n-embd", "--model.embedding_dim"),
        ("--n-hidden", "--model.hidden_size"),
        ("--trainer.gpus", "--trainer.accelerator gpu"),
        ("--batch-size", "--data.batch_size"),
    ],
)
def test_near_flags_are_proposed(word, meant):
    found = did_you_mean(word, FLAGS)
    assert found.startswith(": did you mean ")
    assert set(found.removeprefix(": did you mean ").rstrip("?").split(" or ")) == set(meant.split(" or "))


@pytest.mark.parametrize("word", ["--model.nonsense", "--colour", "-x"])
def test_nothing_is_proposed_where_nothing_is_near(word):
    assert did_you_mean(word, FLAGS) == ""


@pytest.mark.parametrize(
    ("message", "plain"),
    [
        ("unrecognized arguments: --colour red", "unknown flag --colour; --help lists them"),
        ("unrecognized arguments: list.txt more", "unexpected list.txt: every value follows a flag; --help lists them"),
        (
            "Parser key \"model.lr\": Expected a <class 'float'>. Got value: fast",
            "--model.lr fast: expected a number",
        ),
        (
            'Parser key "trainer.logger": Does not validate against any of the Union subtypes Subtypes: [...] Errors:\n'
            "  - Expected a <class 'collections.abc.Iterable'>\n  - Expected a <class 'bool'>\n"
            "  - Expected a <class 'NoneType'>\nGiven value type: <class 'str'>\nGiven value: foo",
            "--trainer.logger foo: expected a list, true or false or null",
        ),
        ("something\n  new", "something new"),
        ("unrecognized arguments: --epochs 5", "unknown flag --epochs: did you mean --trainer.max_epochs?"),
        ("argument subcommand: invalid choice: 'train' (choose from fit)", "unknown command train: did you mean fit?"),
        (
            "argument subcommand: invalid choice: 'sample' (choose from fit)",
            "unknown command sample: did you mean predict?",
        ),
    ],
)
def test_messages_become_plain(message, plain):
    assert explain(message, FLAGS) == plain


def test_commands_are_quoted_for_the_shell_at_hand(monkeypatch):
    words = ["predict", "--ckpt_path", "my out/it's.ckpt"]
    assert command_line(*words) == """predict --ckpt_path 'my out/it'"'"'s.ckpt'"""
    monkeypatch.setattr(terminal.os, "name", "nt")
    assert command_line(*words, 'a"b') == """predict --ckpt_path "my out/it's.ckpt" a\\"b"""

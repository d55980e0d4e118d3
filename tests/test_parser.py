import pytest

from makemore_pl.parser import did_you_mean, explain

FLAGS = ["-h", "--help", "--config", "--model.lr", "--model.block_size", "--data.block_size", "--data.batch_size"]
FLAGS += ["--data.path", "--trainer.max_steps", "--trainer.max_epochs", "--sample.num_names", "--num_steps"]


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
        ("argument --data.path: expected one argument", "--data.path: expected a value after it"),
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
        ("Parser key \"model\": Unable to load config 'foo' - more", "--model foo: no such file"),
        (
            "argument -c/--config: expected one argument",
            "--config: expected a YAML file or a recipe: deep, hidden, lecture, notebook, quick, smoothed, split, wide",
        ),
        (
            "argument model.vocabulary --> data.vocabulary: str | None is not callable",
            "--data.vocabulary: the checkpoint has its own; leave the flag out",
        ),
        (
            "Subcommand 'lr_find' does not accept option 'compile'",
            "--config: lr_find has no compile; take it out of the file, which is of another command",
        ),
        (
            "You selected an invalid strategy name: `strategy='dpp'`. It must be",
            "--trainer.strategy dpp: expected auto, ddp, ddp_spawn, fsdp or another of Lightning's",
        ),
        ("Unexpected config: a", "--config: not a recipe in YAML (Unexpected config: a)"),
        ("something\n  new", "something new"),
    ],
)
def test_messages_become_plain(message, plain):
    assert explain(message, FLAGS) == plain

import re
import shutil

import notebook
import pytest
import torch

from makemore_pl import MLP
from makemore_pl.commands.ensemble import average


def networks(*sizes, **others):
    return [
        MLP("abc", 3, embedding_dim=E, hidden_size=H, init="lecture", seed=seed, **others)
        for seed, (E, H) in enumerate(sizes)
    ]


@pytest.mark.parametrize("sizes", [[(2, 5)], [(2, 5), (2, 5)], [(4, 3), (1, 7), (2, 2)]])
def test_its_logits_are_the_mean_of_theirs(sizes):
    """By the notebook's formula: the geometric mean of the probabilities, made to sum to 1."""
    models = networks(*sizes)
    X = torch.cartesian_prod(*[torch.arange(4)] * 3)
    logs = torch.stack([notebook.probabilities(dict(model.named_parameters()), X).log() for model in models])
    expected = torch.softmax(logs.mean(0), dim=1)
    whole = average(models)
    torch.testing.assert_close(notebook.probabilities(dict(whole.named_parameters()), X), expected)
    assert {name: tuple(tensor.shape) for name, tensor in whole.state_dict().items()} == {
        "C": (4, sum(E for E, _ in sizes)),
        "W1": (3 * sum(E for E, _ in sizes), sum(H for _, H in sizes)),
        "b1": (sum(H for _, H in sizes),),
        "W2": (sum(H for _, H in sizes), 4),
        "b2": (4,),
    }


def test_networks_that_have_no_average_are_refused():
    with pytest.raises(ValueError, match="one network or more"):
        average([])
    with pytest.raises(ValueError, match="different block_size have no average: 2, 3"):
        average([MLP("abc", 3), MLP("abc", 2)])
    with pytest.raises(ValueError, match="different vocabulary have no average: 'abc', 'abd'"):
        average([MLP("abc", 3), MLP("abd", 3)])


@pytest.mark.parametrize("twin", ["same", "copy", "weights"])
def test_a_network_is_not_averaged_with_itself(twin, tmp_path, call, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick = ["--data.num_words", 50, "--trainer.max_steps", 2, "--pictures", "false", "--model.hidden_size", 8]
    assert call("fit", *quick)[0] == 0
    first = "lightning_logs/version_0/checkpoints/best.ckpt"
    if twin == "copy":
        shutil.copy(first, "twin.ckpt")
    if twin == "weights":
        assert call("export", "--ckpt_path", first, "--output", "twin.ckpt")[0] == 0
    second = first if twin == "same" else "twin.ckpt"
    status, _, err = call("export", "--ckpt_path", first, "--average", f"[{second}]", "--output", "both.ckpt")
    assert status == 2
    message = "checkpoints 1 and 2 of the average have the same weights: name different networks"
    assert err.splitlines()[-1] == f"error: {message}"
    assert not (tmp_path / "both.ckpt").exists()


def test_the_average_takes_the_runs_before_by_name(tmp_path, call, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick = ["--data.num_words", 50, "--trainer.max_steps", 2, "--pictures", "false", "--model.hidden_size", 8]
    for seed in (1, 2, 3):
        assert call("fit", *quick, "--model.seed", seed)[0] == 0
    paths = [f"lightning_logs/version_{run}/checkpoints/{name}.ckpt" for run in range(3) for name in ("best", "last")]
    networks = {path: MLP.load_from_checkpoint(path) for path in paths}

    def averaged(*flags):
        status, _, err = call("export", "--output", "some.ckpt", *flags)
        assert status == 0, err
        return MLP.load_from_checkpoint("some.ckpt").state_dict()

    def assert_average(found, *expected):
        expected = average([networks[f"lightning_logs/{path}.ckpt"] for path in expected]).state_dict()
        torch.testing.assert_close(found, expected, rtol=0, atol=0)

    run = "version_{}/checkpoints/{}".format
    assert_average(averaged("--average", "[best]"), run(2, "best"), run(1, "best"))
    three = averaged("--ckpt_path", "last", "--average", "[last, best]")
    assert_average(three, run(2, "last"), run(1, "last"), run(0, "best"))
    # Runs that are named by their path are not taken again.
    first, second = (f"lightning_logs/{run(number, 'best')}.ckpt" for number in (0, 1))
    assert_average(averaged("--ckpt_path", first, "--average", "[best]"), run(0, "best"), run(2, "best"))
    three = averaged("--average", f"[{second}, best]")
    assert_average(three, run(2, "best"), run(1, "best"), run(0, "best"))

    status, _, err = call("export", "--average", "[best, best, best]", "--output", "none.ckpt")
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith("error: best: found no other run than that of ")
    assert err.endswith("; train another (python -m makemore_pl fit --model.seed 1), or name a file\n")
    assert not (tmp_path / "none.ckpt").exists()


def test_a_checkpoint_of_the_average_is_tested_like_any(tmp_path, call, monkeypatch, names):
    monkeypatch.chdir(tmp_path)
    quick = ["--data.num_words", 300, "--trainer.max_steps", 30, "--pictures", "false", "--model.hidden_size", 20]
    for seed in (1, 2):
        status, _, err = call("fit", *quick, "--model.seed", seed)
        assert status == 0, err
    first, second = (f"lightning_logs/version_{run}/checkpoints/best.ckpt" for run in (0, 1))
    status, _, err = call("export", "--ckpt_path", first, "--average", f"[{second}]", "--output", "both.ckpt")
    assert status == 0, err
    status, out, err = call("test", "--ckpt_path", "both.ckpt")
    assert status == 0, err
    parts = [torch.load(path, weights_only=True)["state_dict"] for path in (first, second)]
    _, _, words = notebook.split(names[:300])
    X, Y = notebook.build_dataset(words, notebook.stoi(names))
    p = torch.softmax(torch.stack([notebook.probabilities(part, X).log() for part in parts]).mean(0), dim=1)
    loss = -p[torch.arange(len(Y)), Y].log().mean().item()
    assert float(re.search(r"(?m)^network +([\d.]+)", out)[1]) == pytest.approx(loss, abs=1e-4)
    assert call("predict", "--ckpt_path", "both.ckpt", "--sample.num_names", 3)[0] == 0
    status, _, err = call("fit", "--ckpt_path", "both.ckpt")
    assert status == 2
    assert err == "error: both.ckpt: this checkpoint has no optimizer state to resume with\n"

    # Words that one of them was trained on would pass for unseen ones.
    status, _, err = call("fit", *quick, "--data.split_seed", 7)
    other = "lightning_logs/version_2/checkpoints/best.ckpt"
    status, _, err = call("export", "--ckpt_path", first, "--average", f"[{other}]", "--output", "wrong.ckpt")
    assert status == 2
    why = "trained on other words: its split_seed is 7, not 42; average networks trained on the same words"
    assert err.endswith(f"error: {other}: {why}\n")
    assert not (tmp_path / "wrong.ckpt").exists()

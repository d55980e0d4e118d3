import hashlib


def test_names_are_those_of_the_notebook(names):
    assert len(names) == 32033
    assert names[:8] == ["emma", "olivia", "ava", "isabella", "sophia", "charlotte", "mia", "amelia"]
    digest = hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()
    assert digest == "a9709ebc7a567f82800674afbc0e06c5f37b266b339e78de606f7a8023d4b118"
    assert sum(len(name) + 1 for name in names) == 228146


def test_names_are_in_the_order_that_the_split_and_all_figures_rest_on(names):
    digest = hashlib.sha256("".join(f"{name}\n" for name in names).encode()).hexdigest()  # of the file
    assert digest == "3a83b1b3f3b9535eeb070f19ae678c29d83558ede501a863b19b82c4807450d2"

"""Refuses flags that Lightning accepts and fails on later, before a folder is made."""

import os

import torch
from jsonargparse import Namespace


def refuse_numbers(trainer: Namespace) -> None:
    """Refuses numbers outside of their range.

    Raises:
        ValueError: if there is one; it names the flag and the range.
    """
    expected = {
        **dict.fromkeys(["num_nodes", "accumulate_grad_batches", "check_val_every_n_epoch"], "1 or more"),
        **dict.fromkeys(["devices", "max_steps", "max_epochs"], "1 or more, or -1 for no limit"),
        **dict.fromkeys(["log_every_n_steps", "gradient_clip_val"], "0 or more"),
        **dict.fromkeys(["limit_val_batches", "limit_test_batches"], "0 or more"),
        **dict.fromkeys(["val_check_interval", "limit_train_batches", "limit_predict_batches"], "more than 0"),
    }
    for name, range_ in expected.items():
        value = trainer[name]
        try:
            number = float(value)
        except (TypeError, ValueError):
            continue  # omitted, or a word, a list, a time
        if not number >= range_.startswith("1") or (number == 0 and range_ == "more than 0"):
            if number == -1 and "-1" in range_:
                continue
            raise ValueError(f"--trainer.{name} {value}: expected {range_}")
        if isinstance(value, float) and number > 1 and name.startswith(("limit_", "val_")):
            raise ValueError(f"--trainer.{name} {value}: expected a share up to 1, or a whole number")
    processes, most = str(trainer.devices), max(64, os.cpu_count() or 1)
    if processes.isdecimal() and int(processes) > most:
        raise ValueError(f"--trainer.devices {processes}: expected at most {most}, each a process of this machine")


def refuse_precision(precision: object, device: torch.device) -> None:
    """Refuses a precision that the device does not have: Lightning would take another one, or torch fail later.

    Raises:
        ValueError: if so; it names a precision that the device has.
    """
    precision = {"16": "16-mixed", "bf16": "bf16-mixed", "64": "64-true"}.get(str(precision), str(precision))
    if precision == "16-mixed" and device.type == "cpu":
        raise ValueError("--trainer.precision 16-mixed needs a GPU; bf16-mixed is the equivalent on a CPU")
    if precision == "64-true" and device.type == "mps":
        raise ValueError("--trainer.precision 64-true: Apple's GPUs have no 64 bits; add --trainer.accelerator cpu")
    if precision.startswith("bf16") and device.type == "cuda" and not torch.cuda.is_bf16_supported(False):
        raise ValueError(f"--trainer.precision {precision}: this GPU has no bfloat16; use 16-mixed or 32-true")

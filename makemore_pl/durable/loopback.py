"""Processes of one machine talk to each other on its loopback interface, which other machines cannot reach."""

import os
import socket
from typing import Any

from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Trainer
from torch.distributed import TCPStore  # type: ignore[attr-defined]

AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"
"""The environment variable by which torch's processes only connect to a store, as those of torchrun do."""


class LocalStore:
    """The store through which the processes that Lightning launches find each other.

    Torch would have it listen on all interfaces; this one listens on 127.0.0.1. Torch's own settings are left alone
    where the user gives an address, where another program launches the processes, and on several machines.
    """

    def __init__(self) -> None:
        self.store: TCPStore | None = None

    def start(self, trainer: Trainer) -> None:
        """Starts it before the processes are launched, and selects the interface of gloo's connections."""
        self.stop()  # an earlier run of this process left its keys there
        if trainer.num_nodes > 1 or trainer.world_size == 1:
            return
        names = {name for _, name in socket.if_nameindex()} & {"lo", "lo0"} if os.name == "posix" else set()
        for name in names:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        environment: Any = getattr(trainer.strategy, "cluster_environment", None)
        launches = type(environment) is LightningEnvironment and not environment.creates_processes_externally
        if not launches or {"MASTER_ADDR", "MASTER_PORT", AGENT_STORE} & os.environ.keys():
            return
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            self.store = TCPStore(
                "127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=server.detach()
            )
        os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), AGENT_STORE: "True"})

    def stop(self) -> None:
        """Stops it after the run."""
        if self.store is not None:
            self.store = None
            for name in ("MASTER_ADDR", "MASTER_PORT", AGENT_STORE):
                os.environ.pop(name, None)

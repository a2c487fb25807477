"""Meta-training on two processes takes the same outer steps as on one."""

import os
import socket
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from meta_toys import tiny_trainer
from safetensors.torch import load_file, save_file

from nfopt.meta.workers import AccelerateWorkers, OneProcess


def _rank(rank: int, port: int, folder: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    torch.set_num_threads(1)
    workers = AccelerateWorkers(Accelerator(cpu=True))
    assert (workers.rank, workers.count) == (rank, 2)
    trainer = tiny_trainer(folder, workers)
    trainer.run(stop_after=2)
    trainer = tiny_trainer(folder, workers)
    trainer.run()
    save_file({"theta": trainer.outer.theta}, folder / f"theta-{rank}.safetensors")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_take_the_same_outer_steps_as_one(tmp_path: Path) -> None:
    one = tiny_trainer(tmp_path / "one", OneProcess())
    one.run()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "two").mkdir()
    torch.multiprocessing.spawn(_rank, (port, tmp_path / "two"), nprocs=2)
    for rank in range(2):
        theta = load_file(tmp_path / "two" / f"theta-{rank}.safetensors")["theta"]
        assert torch.equal(theta, one.outer.theta)


def test_one_process_waits_for_nobody_and_adds_nothing() -> None:
    rows = torch.randn(3, 5)
    workers = OneProcess()
    workers.wait()
    assert torch.equal(workers.total(rows), rows)
    assert (workers.rank, workers.count) == (0, 1)

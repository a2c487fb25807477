"""One thread per test process, and the folder of the real data sets where there is one."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is marked slow or stress unless -m names it; skip what needs data that are not there."""
    folder = os.environ.get("NFOPT_DATA")
    if not folder or not Path(folder).is_dir():
        skip = pytest.mark.skip(reason="NFOPT_DATA names no folder with the data sets")
        for item in items:
            if "data" in item.keywords:
                item.add_marker(skip)
    for kind in ("slow", "stress"):
        if kind not in config.getoption("-m"):
            left_out = [item for item in items if kind in item.keywords]
            items[:] = [item for item in items if kind not in item.keywords]
            config.hook.pytest_deselected(items=left_out)

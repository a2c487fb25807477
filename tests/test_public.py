"""The package's public names."""

import subprocess
import sys

import nfopt


def test_every_public_name_is_there_and_no_other() -> None:
    for name in nfopt.__all__:
        assert getattr(nfopt, name) is not None
    assert dir(nfopt) == sorted(nfopt.__all__)
    assert not hasattr(nfopt, "NFOptimiser")


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, nfopt; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""`python -m nfopt`: the command line, for launchers of several processes that want a module."""

from nfopt.cli import main

main()

"""`python -m adaptc`."""

from adaptc.cli import main

main()

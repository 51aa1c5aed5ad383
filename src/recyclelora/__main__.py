"""`python -m recyclelora`."""

from recyclelora.cli import main

main()

"""`python -m budgettune` is the command line."""

from budgettune.cli import main

main()

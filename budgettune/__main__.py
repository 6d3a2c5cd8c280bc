"""`python -m budgettune` is the command line."""

from budgettune.cli import main

if __name__ == "__main__":
    main()

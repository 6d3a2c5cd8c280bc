"""`python -m budgettune` is the command line."""

from budgettune.cli.main import main

if __name__ == "__main__":
    main()

"""What only a GPU can show, measured in one command: see `__main__`."""

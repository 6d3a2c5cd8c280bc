"""The study file: read, checked, written, and everything that is refused before a trial runs."""

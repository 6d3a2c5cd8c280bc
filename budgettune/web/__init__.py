"""Answers over HTTP: the documents of `--format json`, and pages that follow their studies."""

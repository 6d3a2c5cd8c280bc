"""What benchmarks share: made studies, recorded tables, a local PostgreSQL server, baselines."""

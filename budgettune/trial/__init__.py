"""A trial while it runs: its clock and its length, what it keeps to go on from, and a trial of your own code."""

"""The box that trials run on: what it is, what would spoil its timings, and whether something did."""

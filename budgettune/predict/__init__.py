"""Models of time and accuracy, and what follows from them; never torch (the probe aside)."""

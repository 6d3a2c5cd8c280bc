"""Workers on a cluster: an engine starts, places and restarts them, and the database alone coordinates."""

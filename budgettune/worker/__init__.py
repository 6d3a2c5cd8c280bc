"""Programs that turn open trials into records: the loop, its watchdog, its spool, its children."""

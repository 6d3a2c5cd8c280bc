"""A study on the tables: which slots need a trial, who has them, how it stands, what its front is."""

"""What a study says of runs that never ran: their time, their accuracy, which to train, where to search. No torch."""

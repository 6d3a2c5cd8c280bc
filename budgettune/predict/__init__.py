"""What a study answers for runs that never ran: their time, their accuracy, and which of them to train. No torch."""

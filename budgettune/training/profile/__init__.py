"""`budgettune profile`: what a step costs, why, and what would make it cheaper."""

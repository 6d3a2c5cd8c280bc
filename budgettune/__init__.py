"""BudgetTune: I have T seconds of training time. What should I train, and how sure are you?"""

"""What can be tried: stages, plans, strategies, the space they are drawn from, and where the result must run.

Data only: nothing here trains, measures or searches, and neither torch nor Ray is imported.
"""

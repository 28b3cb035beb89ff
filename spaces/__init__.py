"""What can be tried: stages, plans, strategies, the space they are drawn from, and where the result must run.

Data only: nothing here trains, measures or searches, and neither torch nor Ray is imported.
"""

# A plan is read back from JSON by its stages' kinds, so every method must be known wherever plans are.
from spaces import catalogue as catalogue

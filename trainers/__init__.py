"""How a plan is carried out: data, models, losses, training, deployment, measurement.

Importing this package imports nothing heavy; Ray is imported in ``ray_train`` alone.
"""

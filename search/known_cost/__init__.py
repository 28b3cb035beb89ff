"""The ``known_cost`` sampler: of each plan everything is known beforehand but its quality, so only that is modelled.

``features`` turns settings into vectors, ``gaussian_process`` and ``surrogate`` predict from these, ``gain`` says how
much hypervolume a plan is expected to add, ``candidates`` makes the plans that are weighed, ``sampler`` picks one.
"""

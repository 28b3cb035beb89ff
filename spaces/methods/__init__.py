"""The methods: a file each, with its stage's settings, its parameters, and the strategies that are built from it."""

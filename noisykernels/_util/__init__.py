"""Small helpers that belong to no subject; knows of nothing else of the package."""

"""The oracle: noise and sums from their definitions in numpy, slow and plain; must not know the rest of the package."""

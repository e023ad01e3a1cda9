"""The command line; everything it does is also a function of another package."""

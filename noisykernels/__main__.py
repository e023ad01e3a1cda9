"""`python -m noisykernels`: see `cli`."""

from noisykernels.cli.program import program

if __name__ == "__main__":
    program()

"""The Monte Carlo engine: evaluates requests here, in workers or out of a store; knows of no study's question."""

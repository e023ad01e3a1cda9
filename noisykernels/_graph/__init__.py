"""A recorded model as a graph of operations, and what is known of them; knows of no study."""

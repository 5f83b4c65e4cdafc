"""The networks: the contract (base.py), the zoo, and a room for each family of methods."""

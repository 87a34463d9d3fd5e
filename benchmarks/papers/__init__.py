"""The papers' own tables, ready to run where a user has the weights and the data."""

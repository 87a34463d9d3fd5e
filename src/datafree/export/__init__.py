"""Files that are really smaller and really faster, and the proof that they compute what the graph computes."""

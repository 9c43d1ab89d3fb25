"""One file a layout of pairs on disk, and `read`, which finds out which layout it is."""

"""The score of a whole data set, from parts that merge exactly."""

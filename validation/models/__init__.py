"""Models with the places where ops can be mounted: load, mount an op set, sample."""

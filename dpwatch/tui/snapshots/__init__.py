"""Which moment of which run is on the screen."""

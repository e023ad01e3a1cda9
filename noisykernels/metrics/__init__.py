"""What is measured of a prediction; knows of no noise and no model."""

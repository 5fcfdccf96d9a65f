"""Compiles a train step for devices that are not here, and says whether it fits and how fast it can be at best."""

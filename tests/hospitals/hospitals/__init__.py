"""The app of the deployment test."""

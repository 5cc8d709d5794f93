"""Verifiers, Bradley-Terry reward models and the reward service."""

__version__ = "0.1.0"

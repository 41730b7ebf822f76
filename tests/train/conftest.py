"""Hypothesis without limits on time: how long an example takes, depends on what else the machine does."""

from hypothesis import HealthCheck, settings

settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

"""What ``tests/cluster`` needs."""

from tests.cluster.conftest import pytest_collection_modifyitems

__all__ = ["pytest_collection_modifyitems"]

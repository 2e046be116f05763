"""Fixtures shared by both environments, and skips for tests of the other one."""

import importlib.util

import pytest

import tiny


def pytest_collection_modifyitems(items):
    for item in items:
        for framework in ("axolotl", "llamafactory"):
            if item.get_closest_marker(framework) and not importlib.util.find_spec(framework):
                item.add_marker(pytest.mark.skip(reason=f"{framework} is in the other environment"))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    return tiny.build(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def ragged(tmp_path_factory):
    return tiny.write_alpaca(tmp_path_factory.mktemp("ragged"), ragged=True)


@pytest.fixture(scope="session")
def even(tmp_path_factory):
    return tiny.write_alpaca(tmp_path_factory.mktemp("even"), ragged=False)

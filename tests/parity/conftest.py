import pytest


@pytest.fixture(scope="session")
def zoo(tmp_path_factory):
    reference = pytest.importorskip("tests.parity.reference")
    return reference.Zoo(tmp_path_factory.mktemp("zoo"))

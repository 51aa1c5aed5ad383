"""Every check that takes `method` runs for both methods; one that takes `kind` runs for every kind of model."""

import pytest
import transformers

from conformance.methods import METHODS, Method
from conformance.models import KINDS, Kind

# The tiny models have the layer names of transformers 5, which `make test-lowest` does not install.
collect_ignore_glob = ["test_*.py"] if transformers.__version__.startswith("4.") else []


@pytest.fixture(params=METHODS, ids=str)
def method(request: pytest.FixtureRequest) -> Method:
    return request.param


@pytest.fixture(params=KINDS.values(), ids=str)
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param

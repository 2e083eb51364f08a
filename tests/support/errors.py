"""How requests are refused, as boto3 tells it."""

import pytest
from botocore.exceptions import ClientError


def code(error) -> str:
    """The code of the error that `pytest.raises` has caught."""
    return error.value.response["Error"]["Code"]


def refused(expected: str, operation, **parameters) -> None:
    """Calls an operation, which must answer with the error of this code."""
    with pytest.raises(ClientError) as error:
        operation(**parameters)
    assert code(error) == expected, error.value

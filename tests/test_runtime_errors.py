"""The error family: codes are a contract, so they are written down here a second time."""

from __future__ import annotations

import pytest

from runtime import errors

EXPECTED = {
    "InvalidArgument": 10,
    "StepsUnavailable": 11,
    "BufferTooSmall": 13,
    "AudioNotFound": 20,
    "AudioUnreadable": 21,
    "AudioSilent": 22,
    "AudioTooShort": 23,
    "AudioNonFinite": 24,
    "BundleNotFound": 30,
    "BundleInvalid": 31,
    "BundleTampered": 32,
    "BundleVersion": 33,
    "BackendMissing": 40,
    "DeviceUnavailable": 41,
    "BackendFailed": 42,
    "NotPrepared": 43,
    "DeviceOutOfMemory": 44,
    "OutputUnwritable": 50,
    "ConfigInvalid": 60,
    "CorpusInvalid": 61,
    "CheckpointInvalid": 62,
    "TrainingDiverged": 63,
    "ParityFailed": 70,
    "Closed": 80,
    "Cancelled": 81,
    "TimedOut": 82,
    "Slower": 90,
    "NotJudged": 91,
    "GateMissed": 71,
}


def test_codes_never_change():
    assert EXPECTED == errors.CODES


def test_registry_holds_every_error_of_the_module():
    defined = {
        name: value.code
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.S2FError) and value is not errors.S2FError
    }
    assert defined == errors.CODES


def test_codes_are_unique_and_fit_an_exit_status():
    codes = [error.code for error in errors.ALL_ERRORS]
    assert len(set(codes)) == len(codes)
    assert all(2 < code < 126 for code in codes)


@pytest.mark.parametrize("error", errors.ALL_ERRORS)
def test_error_keeps_its_message_and_says_when_it_arises(error):
    assert str(error("what, where, what to do")) == "what, where, what to do"
    assert error.__doc__
    with pytest.raises(errors.S2FError):
        raise error("x")

"""The library's messages are silenced for a while, not for ever."""

import warnings

from transformers.utils import logging

from lushan.backbones.quiet import quiet_transformers


def test_library_is_silent_inside_and_as_before_outside() -> None:
    before = logging.get_verbosity()  # warnings are shown
    with quiet_transformers():
        assert logging.get_verbosity() > before
        warnings.warn("inside", UserWarning, stacklevel=1)  # would be an error outside
    assert logging.get_verbosity() == before

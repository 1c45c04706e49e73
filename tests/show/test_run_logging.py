"""What a run does to logging while it lasts, and that it leaves no trace."""

import logging
import warnings

import pytest

from bitgen.show.monitor import Monitor


def test_other_libraries_are_quiet_but_their_errors_show(tmp_path, capsys):
    monitor = Monitor(tmp_path)
    logging.getLogger("transformers.modeling_utils").warning("some weights are new")
    logging.getLogger("somelibrary").info("chatter")
    logging.getLogger("transformers.modeling_utils").error("broken")
    logging.getLogger("somelibrary").warning("careful")
    monitor.close()
    shown = capsys.readouterr().err
    assert "some weights" not in shown and "chatter" not in shown
    assert "ERROR: broken" in shown and "WARNING: careful" in shown


def test_close_puts_logging_back(tmp_path):
    root = logging.getLogger()
    before = (list(root.handlers), root.level, logging.getLogger("bitgen").level)
    monitor = Monitor(tmp_path)
    assert list(root.handlers) != before[0]
    monitor.close()
    monitor.close()
    assert (list(root.handlers), root.level, logging.getLogger("bitgen").level) == before


def test_python_warnings_are_left_to_python(tmp_path):
    monitor = Monitor(tmp_path)
    with pytest.warns(UserWarning, match="still seen"):
        warnings.warn("still seen", stacklevel=1)
    monitor.close()

"""What the unit tests share: the model of the maps can be imported, and its asserts say what they compared."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
pytest.register_assert_rewrite("mapmodel")

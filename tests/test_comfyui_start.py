"""What a user meets before the first prompt: a quiet start, every node, its help, its names."""


import pytest
from comfyui_server import PACK

pytestmark = pytest.mark.comfyui


def test_nothing_from_our_pack_is_warned_about_as_it_starts(comfyui):
    assert PACK in comfyui.log()

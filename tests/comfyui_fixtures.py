"""Fixtures of the tests marked `comfyui`: one server for the whole session, and a browser for each file.

COMFYUI=oldest tests the oldest release that we support, COMFYUI_PATH a checkout of your own.
A machine that lacks ComfyUI or Chromium fails these tests and is told how to get them.
"""

import os
from collections.abc import Iterator

import pytest
from comfyui_page import Page, open_browser
from comfyui_server import ComfyUI
from comfyui_source import RELEASES


@pytest.fixture(scope="session")
def comfyui_release() -> str:
    release = os.environ.get("COMFYUI", "newest")
    if release not in RELEASES:
        pytest.fail(f"COMFYUI is {release!r}; choose from {', '.join(RELEASES)}")
    return release


@pytest.fixture(scope="session")
def comfyui(tmp_path_factory, comfyui_release) -> Iterator[ComfyUI]:
    """The session's server."""
    with ComfyUI(tmp_path_factory.mktemp("comfyui"), comfyui_release) as server:
        yield server


@pytest.fixture(scope="module")
def comfyui_browser():
    browser = open_browser()
    yield browser
    browser.quit()


@pytest.fixture
def comfyui_page(comfyui, comfyui_browser) -> Page:
    """The server's page, freshly opened on an empty graph."""
    return Page(comfyui_browser, comfyui).open()

"""What ComfyUI and its registry read of pyproject.toml, by ComfyUI's own parser."""

import json
import os
import subprocess
import sys

import pytest
from comfyui_source import RELEASES, ROOT

pytestmark = pytest.mark.comfyui

ASK = """
import json, sys
from comfy_config.config_parser import extract_node_configuration
found = extract_node_configuration(sys.argv[1])
print(json.dumps(found.model_dump()))
"""


def test_the_registry_finds_what_it_needs(comfyui):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(comfyui.source), *sys.path])}
    command = [sys.executable, "-c", ASK, str(comfyui.pack)]
    found = json.loads(subprocess.run(command, env=environment, check=True, stdout=-1).stdout)
    project, comfy = found["project"], found["tool_comfy"]
    assert project["name"] == "tastemaker" and project["license"]["text"] == "Apache-2.0"
    assert project["supported_comfyui_version"] == f">={RELEASES['oldest'].comfyui}"
    assert project["supported_os"] == ["OS Independent"]
    assert comfy["publisher_id"] and comfy["display_name"] == "Tastemaker"
    # ComfyUI-Manager installs the one, pip the other.
    required = (ROOT / "requirements.txt").read_text(encoding="utf-8").split()
    assert required == project["dependencies"]

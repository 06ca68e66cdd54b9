"""The pack's workflows, for ComfyUI's template browser."""

from __future__ import annotations

from pathlib import Path

# Not resolved: the page asks under the folder's name in custom_nodes/, which may be a link.
PACK = Path(__file__).parents[1]


def serve_workflows() -> None:
    """Where the page looks for them; needs a running server, so not at import.

    ComfyUI serves one folder only of those that may hold a pack's workflows, and examples/ comes
    before workflows/. What is registered earlier wins.
    """
    from server import PromptServer

    router = PromptServer.instance.app.router
    router.add_static(f"/api/workflow_templates/{PACK.name}", PACK / "workflows")

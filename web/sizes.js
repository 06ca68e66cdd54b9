// Our nodes keep the size that they were saved with. ComfyUI's page shrinks a node to its least
// height when it restores a menu that brings widgets of its own, and previews then turn tiny.

import { app } from "../../scripts/app.js";

app.registerExtension({
  name: "tastemaker.sizes",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!nodeData.name.startsWith("Tastemaker")) return;
    const { onConfigure } = nodeType.prototype;
    nodeType.prototype.onConfigure = function (saved) {
      onConfigure?.apply(this, arguments);
      const least = this.computeSize();
      if (saved.size) this.setSize([0, 1].map((i) => Math.max(saved.size[i], least[i])));
    };
  },
});

// Sizes that fit: of new nodes, and of those in a workflow that is opened.

import { app } from "../../scripts/app.js";

const WIDTH = 400; // pixels: templates of names are read whole, and previews are worth a look
const OTHERS = { TastemakerLoadScorer: 300, TastemakerEnsembleScorers: 300 };
const ROOM = { TastemakerQualityTag: 50 }; // more height than the least, for five labels

function atLeast(node, [width, height]) {
  const least = node.computeSize();
  node.setSize([Math.max(width, least[0]), Math.max(height, least[1])]);
}

app.registerExtension({
  name: "tastemaker.sizes",

  nodeCreated(node) {
    const kind = node.comfyClass;
    if (!kind?.startsWith("Tastemaker")) return;
    atLeast(node, [OTHERS[kind] ?? WIDTH, node.computeSize()[1] + (ROOM[kind] ?? 0)]);
  },

  // ComfyUI's page shrinks a node to its least height when it restores a menu that brings widgets of
  // its own; previews then turn tiny.
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!nodeData.name.startsWith("Tastemaker")) return;
    const { onConfigure } = nodeType.prototype;
    nodeType.prototype.onConfigure = function (saved) {
      onConfigure?.apply(this, arguments);
      if (saved.size) atLeast(this, [0, 1].map((i) => saved.size[i]));
    };
  },
});

// Score Gate: buttons that reset its record, and take that back.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const NODE = "TastemakerScoreGate";

// POST /tastemaker/gate/<action> for a record; how many scores it answers. Throws what went wrong.
async function ask(action, record) {
  const body = JSON.stringify({ record });
  const answer = await api.fetchApi(`/tastemaker/gate/${action}`, { method: "POST", body });
  const { scores, error } = await answer.json();
  if (error) throw new Error(error);
  return scores;
}

function tell(severity, detail) {
  app.extensionManager.toast.add({ severity, summary: "Score Gate", detail, life: 6000 });
}

async function reset(record) {
  const count = await ask("count", record);
  const confirmed = await app.extensionManager.dialog.confirm({
    title: "Reset the record?",
    message: `"${record}" holds ${count} scores. The gate begins anew and warms up again. They are set aside: "undo reset" brings them back.`,
  });
  if (!confirmed) return;
  await ask("reset", record);
  tell("success", `"${record}" begins anew; ${count} scores are set aside.`);
}

async function undoReset(record) {
  const count = await ask("undo_reset", record);
  tell("success", `"${record}" holds ${count} scores again.`);
}

function addButton(node, label, tooltip, act) {
  const press = async () => {
    const record = node.widgets.find((widget) => widget.name === "record");
    try {
      await act(record.value.trim());
    } catch (error) {
      tell("error", error.message);
    }
  };
  const button = node.addWidget("button", label, null, press, { serialize: false });
  button.serialize = false;
  button.tooltip = tooltip;
}

app.registerExtension({
  name: "tastemaker.gate",
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    addButton(node, "reset record", "Begin the record anew; can be undone.", reset);
    addButton(node, "undo reset", "Bring back the record as it was before its last reset.", undoReset);
  },
});

// The page opens on a blank graph, and `window.opened` says when it has: its own first graph may come
// late, over what a test has made, and then complains that its models are missing.
import { app } from "../../scripts/app.js";

const BLANK = {
    last_node_id: 0,
    last_link_id: 0,
    nodes: [],
    links: [],
    groups: [],
    config: {},
    extra: {},
    version: 0.4,
};

app.registerExtension({
    name: "probe.blank",
    init() {
        const load = app.loadGraphData;
        app.loadGraphData = async function (graph = BLANK, ...rest) {
            await load.call(this, graph, ...rest);
            window.opened = true;
        };
    },
});

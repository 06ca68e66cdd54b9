// What tests/comfyui_page.py asks of the page. Evaluated in front of each question.

function complaints() {
    const seen = "[role=dialog], [role=alertdialog], [role=alert], .p-toast-message, .p-dialog, " +
        ".comfy-modal, [data-testid=error-overlay]";
    const found = [...document.querySelectorAll(seen)].filter(e => e.checkVisibility());
    const outer = found.filter(e => !found.some(o => o !== e && o.contains(e)));
    const texts = outer.map(e => e.innerText.replace(/\s+/g, " ").trim()).filter(t => t);
    for (const node of app.graph.nodes)
        if (node.has_errors || !LiteGraph.registered_node_types[node.type])
            texts.push(`${node.title} (${node.type}): marked as an error`);
    return texts;
}

function nodes() {
    return app.graph.nodes.map(node => {
        const [x, y, w, h] = node.getBounding(new Float32Array(4));
        return {id: String(node.id), type: node.type, title: node.title, x, y, w, h};
    });
}

// The graph at a scale, its origin at x, y in the window.
function place(scale, x, y) {
    const box = app.canvas.canvas.getBoundingClientRect();
    app.canvas.ds.scale = scale;
    app.canvas.ds.offset[0] = (x - box.left) / scale;
    app.canvas.ds.offset[1] = (y - box.top) / scale;
    app.canvas.setDirty(true, true);
}

function alone(type) {
    app.graph.clear();
    const node = LiteGraph.createNode(type);
    app.graph.add(node);
    app.canvas.deselectAll();
    app.canvas.centerOnNode(node);
    app.canvas.selectNode(node);
}

function cutOff() {
    const found = drawnTexts().filter(text => /(…|[.]{3})$/.test(text));
    for (const node of app.graph.nodes) {
        const [w, h] = node.computeSize();
        if (node.size[0] < w - 1 || node.size[1] < h - 1) found.push(`${node.title}: too small`);
        for (const {element} of node.widgets || []) found.push(...hidden(element, node));
    }
    for (const box of document.querySelectorAll("[data-node-id]"))
        found.push(...hidden(box, app.graph.getNodeById(box.dataset.nodeId)));
    return found;
}

// "title: text" of everything that the canvas draws with its nodes.
function drawnTexts() {
    const texts = [], view = app.canvas, paint = CanvasRenderingContext2D.prototype;
    const {fillText} = paint, {drawNode} = view;
    let title = "";
    view.drawNode = function (node) {
        title = node.title;
        return drawNode.apply(this, arguments);
    };
    paint.fillText = function (text) {
        // An ellipsis may be drawn by itself, after the text that it ends.
        if (text === "…" && texts.length) texts.push(texts.pop() + text);
        else texts.push(`${title}: ${text}`);
        return fillText.apply(this, arguments);
    };
    try {
        view.draw(true, true);
    } finally {
        paint.fillText = fillText;
        view.drawNode = drawNode;
    }
    return texts;
}

// Texts in the page's own elements that would have to be scrolled, or end in an ellipsis.
function hidden(outer, node) {
    if (!outer?.checkVisibility?.()) return [];
    const elements = [outer, ...outer.querySelectorAll("*")].filter(e => e.checkVisibility());
    return elements.filter(e => {
        const {overflowY, textOverflow} = getComputedStyle(e);
        const box = e.tagName === "TEXTAREA" || /auto|scroll/.test(overflowY);
        const low = box && e.scrollHeight > e.clientHeight + 2;
        const narrow = textOverflow === "ellipsis" && e.scrollWidth > e.clientWidth + 1;
        return low || narrow;
    }).map(e => `${node?.title}: ${(e.value ?? e.innerText ?? "").trim()}`.slice(0, 60));
}

// What the page knows of a node that shows no picture: was it told of one, and did it draw the node?
function pictureless(id) {
    const node = app.graph.getNodeById(id), view = app.canvas;
    return JSON.stringify({
        told: app.nodeOutputs[id],
        asked: node.images,
        heard: [app.api.clientId, app.api.socket?.readyState],
        drawn: view.visible_nodes?.includes(node),
        node: [...node.pos, ...node.size],
        view: [...view.visible_area],
        page: [document.visibilityState, LiteGraph.vueNodesMode],
    });
}

// The page of all instances.

import { alert, cardOf, emptyState, h, label, setText, table, button } from "./dom.js";
import { bar, sparkline } from "./chart.js";
import * as format from "./format.js";

const value = (one, of) => one.properties ? of(one) : "–";

const columns = [
    { id: "name", title: "Instance", make: one => {
        const link = h("a", { href: "#/" + encodeURIComponent(one.name) }, one.name);
        return link;
    } },
    { id: "state", title: "State", make: () => {
        const state = label();
        const element = h("span", {}, state);
        element.update = one => {
            const failing = one.properties?.BackendState === "failing";
            state.update(failing && one.state === "running" ? "backend fails" : one.state, failing ? "red" : undefined);
        };
        return element;
    } },
    { id: "connections", title: "Connections", make: () => {
        const text = h("span", { class: "number" });
        const used = bar();
        const element = h("div", { class: "used" }, text, used);
        element.update = one => {
            setText(text, value(one, i => `${i.properties.NConnections} of ${i.properties.ConnectionsMax}`));
            used.hidden = !one.properties;
            if (one.properties)
                used.update(one.properties.NConnections, one.properties.ConnectionsMax, "connections of " + one.name);
        };
        return element;
    } },
    { id: "accepted", title: "Accepted", right: true, text: one => value(one, i => format.perSecond(i.rates.accepted)) },
    { id: "turned", title: "Turned away", right: true, text: one => value(one, i => format.perSecond(i.rates.refused + i.rates.failed)) },
    { id: "bytes", title: "To backend / clients", make: () => {
        const text = h("span", { class: "number" });
        const chart = sparkline("blue");
        const element = h("div", { class: "used" }, text, chart);
        element.update = one => {
            setText(text, value(one, i => `${format.rate(i.rates.toBackend)} / ${format.rate(i.rates.toClient)}`));
            chart.classList.toggle("hidden", !one.properties);
            if (one.properties) {
                const both = one.history.toBackend.map((n, i) => n + one.history.toClient[i]);
                chart.update(both, "bytes a second in the last two minutes, up to " + format.rate(Math.max(0, ...both)));
            }
        };
        return element;
    } },
    { id: "target", title: "Backend", make: () => {
        const target = h("span", {});
        const error = h("span", { class: "error" });
        const element = h("div", { class: "used" }, target, error);
        element.update = one => {
            setText(target, value(one, i => i.properties.Target));
            const failing = one.properties?.BackendState === "failing";
            error.hidden = !failing;
            setText(error, failing ? one.properties.BackendLastError : "");
        };
        return element;
    } },
];

export function listPage(bus) {
    const instances = table("Stream proxies", columns, { keyOf: one => one.name + (one.properties === undefined) });
    const trouble = h("div", {});
    const none = emptyState("No stream proxies",
                            h("p", {}, "No instance of proxyd runs on this machine, and none waits for a client. An administrator sets one up in one line:"),
                            h("pre", { class: "command" }, "proxyctl create web --listen=8080 127.0.0.1:3000"));
    const waiting = h("p", { class: "waiting" }, "Looking for stream proxies…");
    const content = cardOf("h1", "Stream proxies", instances);
    const element = h("div", { class: "stack" }, trouble, waiting, content, none);
    let known = false;
    element.update = () => {
        const list = bus.list();
        known ||= list.length > 0 || element.dataset.asked === "yes";
        waiting.hidden = known || bus.problem !== null;
        content.hidden = list.length === 0;
        none.hidden = !known || list.length > 0 || bus.problem !== null;
        if (bus.problem !== null && !trouble.hasChildNodes())
            trouble.replaceChildren(alert("danger", "The system bus does not answer", bus.problem, button("Try again", "link", () => bus.reopen())));
        if (bus.problem === null)
            trouble.replaceChildren();
        instances.update(list);
    };
    element.asked = () => { element.dataset.asked = "yes" };
    return element;
}

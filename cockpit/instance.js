/* global cockpit */
// The page of one instance.

import { alert, button, card, emptyState, h, label, setText, table } from "./dom.js";
import { ask, checkbox, explain, field } from "./dialog.js";
import { bar, sparkline } from "./chart.js";
import { isRefused } from "./bus.js";
import * as format from "./format.js";

const perPage = 50;

// Above manyConnections, the list is fetched every manyTime (ms) instead of with each refresh: it is many calls.
const manyConnections = 2000;
const manyTime = 10000;

function facts(...pairs) {
    const values = {};
    const list = h("dl", { class: "pf-v6-c-description-list pf-m-horizontal pf-m-compact" }, ...pairs.map(([id, title]) => {
        values[id] = h("dd", { class: "pf-v6-c-description-list__description" });
        return h("div", { class: "pf-v6-c-description-list__group" },
                 h("dt", { class: "pf-v6-c-description-list__term" }, h("span", { class: "pf-v6-c-description-list__text" }, title)), values[id]);
    }));
    list.update = texts => Object.entries(texts).forEach(([id, text]) => setText(values[id], text));
    return list;
}

function reasons(counts) {
    const words = Object.entries(counts ?? {}).filter(([, n]) => n > 0).sort((a, b) => b[1] - a[1]).map(([reason, n]) => `${n.toLocaleString("en")} ${reason}`);
    return words.length ? ` (${words.join(", ")})` : "";
}

export function instancePage(bus, name) {
    let filter = "";
    let order = { by: "rate", descending: true };
    let page = 0;
    let connections = [];
    let denied = null; // why the connections are not shown
    let fetching = false;
    let fetched = 0;
    let drainedFrom = 0; // connections when the drain was first seen
    let logOf = null;

    const current = () => bus.instances.get([...bus.instances.keys()].find(key => bus.instances.get(key).name === name));

    // Heading and actions.
    const state = label();
    const drain = button("Drain", "secondary", () => askDrain());
    const resume = button("Resume", "secondary", () => ask({
        title: `Resume ${name}?`, action: "Resume", body: [h("p", {}, "It accepts clients again, first of all those that wait.")],
        act: () => act("Resume", ""),
    }));
    const limits = button("Limits", "secondary", () => askLimits());
    const heading = h("div", { class: "heading" },
                      h("nav", { "aria-label": "Breadcrumb" }, h("a", { href: "#/" }, "Stream proxies"), " / "),
                      h("h1", { class: "pf-v6-c-title pf-m-2xl" }, name), state, h("div", { class: "actions" }, drain, resume, limits));

    // A drain that is under way.
    const drainText = h("p", {});
    const drainBar = bar();
    const draining = card("Drain", drainText, drainBar);

    // Overview.
    const overview = facts(["target", "Backend"], ["backend", "Backend state"], ["error", "Last error"], ["listen", "Listens on"], ["connections", "Connections"],
                           ["accepted", "Accepted"], ["refused", "Turned away"], ["failed", "Without a backend"], ["idle", "Exits when idle"], ["since", "Since"]);
    const used = bar();
    const charts = [["connections", "Connections", "green", n => n.toString()], ["toBackend", "To the backend", "blue", format.rate], ["toClient", "To clients", "purple", format.rate]]
        .map(([series, title, colour, write]) => {
            const chart = sparkline(colour);
            const text = h("span", { class: "number" });
            const element = h("div", { class: "chart" }, h("span", {}, title), text, chart);
            element.update = instance => {
                const values = instance.history[series];
                setText(text, values.length ? write(values[values.length - 1]) : "");
                chart.update(values, `${title} in the last two minutes, up to ${write(Math.max(0, ...values))}`);
            };
            return element;
        });

    // Connections.
    const sortKey = {
        id: c => c.id, client: c => c.client, state: c => c.state, age: c => c["age-usec"], idle: c => c["idle-usec"],
        toBackend: c => c.toBackend, toClient: c => c.toClient, rate: c => c.rate,
    };
    const connectionTable = table(`Connections of ${name}`, [
        { id: "id", title: "ID", right: true, sort: true, text: c => c.id.toString() },
        { id: "client", title: "Client", sort: true, text: c => c.proxy ? `${c.client} by ${c.proxy}` : c.client },
        { id: "state", title: "State", sort: true, text: c => c.state },
        { id: "age", title: "Age", right: true, sort: true, text: c => format.span(c["age-usec"]) },
        { id: "idle", title: "Idle", right: true, sort: true, text: c => format.span(c["idle-usec"]) },
        { id: "toBackend", title: "To backend", right: true, sort: true, text: c => format.bytes(c.toBackend) },
        { id: "toClient", title: "To client", right: true, sort: true, text: c => format.bytes(c.toClient) },
        { id: "rate", title: "Rate", right: true, sort: true, text: c => format.rate(c.rate) },
        { id: "close", title: "", make: c => button("Close", "link pf-m-inline", () => askClose(c), { "aria-label": `Close connection ${c.id} of ${c.client}` }) },
    ], {
        keyOf: c => c.id,
        sorted: by => {
            order = { by, descending: order.by === by ? !order.descending : !["client", "state", "id"].includes(by) };
            update();
        },
    });
    const search = h("input", { type: "search", placeholder: "Filter by client, backend or state", "aria-label": "Filter connections",
                                input: () => { filter = search.value.trim().toLowerCase(); page = 0; update() } });
    const count = h("span", { role: "status" });
    const closeShown = button("Close these", "secondary", () => askCloseShown());
    const back = button("‹", "plain", () => { page--; update() }, { "aria-label": "Previous page" });
    const next = button("›", "plain", () => { page++; update() }, { "aria-label": "Next page" });
    const tools = h("div", { class: "tools" }, h("span", { class: "pf-v6-c-form-control" }, search), count, closeShown, h("span", { class: "pages" }, back, next));
    const refusal = h("div", {});
    const nobody = h("p", { class: "waiting" }, "No client is connected.");
    const list = card("Connections", refusal, tools, connectionTable, nobody);

    // Log.
    const log = h("pre", { class: "log", tabindex: "0", "aria-label": `Log of ${name}` });
    const logCard = card("Log", log);

    const gone = h("div", {});
    const parts = h("div", { class: "stack" }, draining, h("div", { class: "side" }, card("Overview", overview, used), card("Last two minutes", ...charts)), list, logCard);
    const element = h("div", { class: "stack" }, heading, gone, parts);

    // act calls a method of the instance, and looks what came of it.
    async function act(method, types, ...args) {
        const instance = current();
        if (!instance)
            throw new Error("It has ended meanwhile.");
        await instance.call(method, types, ...args);
        await bus.refresh();
        await fetchConnections(true);
    }

    function askClose(c) {
        ask({
            title: `Close the connection of ${c.client}?`, action: "Close connection", danger: true,
            body: [h("p", {}, "Both its ends are reset at once. What is on its way is lost.")],
            act: () => act("CloseConnection", "t", c.id).catch(error => { if (!/NoSuchConnection/.test(error.name)) throw error }),
        });
    }

    function askCloseShown() {
        const chosen = shown();
        ask({
            title: `Close ${format.plural(chosen.length, "connection")}?`, action: "Close connections", danger: true,
            body: [h("p", {}, filter ? `Those that match “${filter}”. ` : "All of them. ", "Both ends of each are reset at once. What is on its way is lost.")],
            act: async () => {
                if (!filter)
                    return act("CloseConnections", "a{sv}", {});
                const instance = current();
                for (const c of chosen)
                    await instance.call("CloseConnection", "t", c.id).catch(error => { if (!/NoSuchConnection/.test(error.name)) throw error });
                await fetchConnections(true);
            },
        });
    }

    function askDrain() {
        const timeout = h("input", { type: "text", value: "30s" });
        const refuse = checkbox("drain-refuse", "Turn newcomers away instead of letting them wait");
        ask({
            title: `Drain ${name}?`, action: "Drain", danger: true,
            body: [h("p", {}, "It accepts no more clients, and the connections there are may finish. Resume ends the drain."),
                   field("drain-timeout", "Reset what is left after", timeout, "A time such as 30s or 5min; infinity for never."), refuse.element],
            act: () => {
                const usec = format.parseSpan(timeout.value);
                if (usec === null)
                    throw new Error(`“${timeout.value}” is not a time such as 30s, 5min or infinity.`);
                return act("Drain", "tu", format.isNever(usec) ? 0 : usec, refuse.input.checked ? 2 : 0);
            },
        });
    }

    function askLimits() {
        const { ConnectionsMax, ExitIdleTimeUSec } = current().properties;
        const most = h("input", { type: "number", min: "1", max: "4294967295", required: true, value: ConnectionsMax });
        const idle = h("input", { type: "text", required: true, value: format.span(ExitIdleTimeUSec) });
        ask({
            title: `Limits of ${name}`, action: "Set", body: [
                field("limit-connections", "Connections at most", most, "More clients are turned away. Connections there are stay."),
                field("limit-idle", "Exit when idle for", idle, "A time such as 10min; infinity for never."),
                h("p", {}, "This holds until the process ends. ", h("code", {}, `proxyctl set ${name} --permanent`), " writes it to the settings.")],
            act: async () => {
                const usec = format.parseSpan(idle.value);
                if (usec === null)
                    throw new Error(`“${idle.value}” is not a time such as 30s, 5min or infinity.`);
                if (Number(most.value) !== ConnectionsMax)
                    await act("SetConnectionsMax", "u", Number(most.value));
                if (idle.value.trim() !== format.span(ExitIdleTimeUSec))
                    await act("SetExitIdleTime", "t", usec);
            },
        });
    }

    async function fetchConnections(now = false) {
        const instance = current();
        const many = connections.length > manyConnections;
        if (!instance?.properties || fetching || (denied && !now) || (many && !now && performance.now() - fetched < manyTime))
            return;
        fetching = true;
        try {
            const all = await instance.connections();
            const at = performance.now();
            const former = new Map(connections.map(c => [c.id, c]));
            for (const c of all) {
                const before = former.get(c.id);
                c.rate = before ? Math.max(0, c.toBackend + c.toClient - before.toBackend - before.toClient) / Math.max(0.1, (at - fetched) / 1000) : 0;
            }
            connections = all;
            fetched = at;
            denied = null;
        } catch (error) {
            connections = [];
            denied = error;
        }
        fetching = false;
        update();
    }

    function shown() {
        const key = sortKey[order.by];
        const sign = order.descending ? -1 : 1;
        return connections
            .filter(c => !filter || [c.client, c.backend, c.state, c.proxy ?? ""].some(text => text.toLowerCase().includes(filter)))
            .sort((a, b) => sign * (typeof key(a) === "string" ? key(a).localeCompare(key(b)) : key(a) - key(b)) || a.id - b.id);
    }

    function follow(unit) {
        if (!unit || logOf)
            return;
        log.textContent = "";
        const lines = [];
        logOf = cockpit.spawn(["journalctl", "--unit=" + unit, "--lines=50", "--follow", "--output=short", "--no-pager", "--quiet"],
                              { superuser: "try", err: "out" });
        logOf.stream(text => {
            lines.push(...text.split("\n").filter(line => line));
            lines.splice(0, lines.length - 200);
            const atEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 4;
            setText(log, lines.join("\n"));
            if (atEnd)
                log.scrollTop = log.scrollHeight;
        });
        setTimeout(() => lines.length === 0 && log.textContent === "" &&
            setText(log, "Nothing to read: administrators, and users in the groups adm and systemd-journal, may read the log."), 3000);
        logOf.fail(error => lines.length === 0 && setText(log, "The log cannot be read: " + explain(error)));
    }

    function updateConnections() {
        refusal.replaceChildren();
        if (denied) {
            const title = isRefused(denied) ? "Connections are shown to administrators" : "The connections could not be listed";
            refusal.replaceChildren(alert("info", title, explain(denied), button("Try again", "link", () => fetchConnections(true))));
        }
        tools.hidden = connectionTable.hidden = denied !== null || connections.length === 0;
        nobody.hidden = denied !== null || connections.length > 0;
        const chosen = shown();
        const pages = Math.max(1, Math.ceil(chosen.length / perPage));
        page = Math.min(Math.max(page, 0), pages - 1);
        setText(count, `${format.plural(chosen.length, "connection")}${filter ? " match" : ""}${pages > 1 ? `, page ${page + 1} of ${pages}` : ""}`);
        back.disabled = page === 0;
        next.disabled = page === pages - 1;
        closeShown.disabled = chosen.length === 0;
        setText(closeShown.firstChild, filter ? "Close these" : "Close all");
        connectionTable.update(chosen.slice(page * perPage, (page + 1) * perPage), order);
    }

    function update() {
        const instance = current();
        const p = instance?.properties;
        parts.hidden = !p;
        for (const action of [drain, resume, limits])
            action.hidden = true;
        if (!p) {
            const socket = bus.find(name);
            state.update(socket?.state ?? "gone");
            const text = socket?.state === "listening"
                ? "It listens, and its first client starts it."
                : socket?.unit ? `Its socket is ${socket.state}. To start it: systemctl enable --now ${socket.unit}` : "No instance has this name, or it has ended.";
            if (instance)
                gone.replaceChildren(alert("warning", `${name} does not answer`, "It is on the bus and has not answered yet."));
            else
                gone.replaceChildren(emptyState(`${name} is not running`, h("p", {}, text)));
            return;
        }
        gone.replaceChildren();
        if (instance.silent)
            gone.replaceChildren(alert("warning", `${name} does not answer`, "What is shown is what it said last."));
        const failing = p.BackendState === "failing";
        state.update(failing && instance.state === "running" ? "backend fails" : instance.state, failing ? "red" : undefined);
        const drains = p.State === "draining" || p.State === "drained";
        drain.hidden = p.State !== "running";
        resume.hidden = !drains;
        limits.hidden = p.State === "exiting";
        draining.hidden = !drains;
        drainedFrom = drains ? Math.max(drainedFrom, p.NConnections, 1) : 0;
        if (drains) {
            const left = p.DrainDeadline > 0 ? Math.max(0, p.DrainDeadline - Date.now() * 1000) : 0;
            setText(drainText, p.State === "drained" ? "Drained: no connection is left, and newcomers wait."
                : `${format.plural(p.NConnections, "connection")} left` + (left > 0 ? `, to be reset in ${format.span(left)}.` : "."));
            drainBar.update(drainedFrom - p.NConnections, drainedFrom, "connections that have ended");
        }
        const n = value => value.toLocaleString("en");
        overview.update({
            target: p.Target,
            backend: p.BackendState + (p.BackendLastReachedTimestamp ? `, reached ${format.when(p.BackendLastReachedTimestamp)} in ${format.span(p.BackendLastConnectUSec)}` : ""),
            error: p.BackendLastError ? `${p.BackendLastError}, ${format.when(p.BackendLastErrorTimestamp)}` : "none",
            listen: p.ListenAddresses.join(", ") || "nothing",
            connections: `${n(p.NConnections)} of ${n(p.ConnectionsMax)}` + (p.NConnectionsPeak ? `, ${n(p.NConnectionsPeak)} at most so far` : "") + (p.NBacklog ? `; ${n(p.NBacklog)} wait` : ""),
            accepted: `${n(p.NAccepted)}, ${format.perSecond(instance.rates.accepted)}`,
            refused: n(p.NRefused) + reasons(p.RefusalReasons),
            failed: n(p.NFailed) + reasons(p.FailureReasons),
            idle: format.isNever(p.ExitIdleTimeUSec) ? "never" : "after " + format.span(p.ExitIdleTimeUSec),
            since: `${format.when(p.StartTimestamp)}, version ${p.Version}, process ${p.ProcessID}`,
        });
        used.update(p.NConnections, p.ConnectionsMax, "connections in use");
        charts.forEach(chart => chart.update(instance));
        updateConnections();
        logCard.hidden = !p.Unit;
        follow(p.Unit);
    }

    element.update = () => {
        update();
        fetchConnections();
    };
    element.retry = () => { denied = null };
    element.leave = () => logOf?.close();
    return element;
}

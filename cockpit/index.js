/* global cockpit */
// The Cockpit page of proxyd: #/ has all instances, #/NAME one of them.

import "./theme.js";
import { Bus } from "./bus.js";
import { instancePage } from "./instance.js";
import { listPage } from "./list.js";

// interval (ms) is the time between two looks at the counters. States, limits and numbers of connections come as signals.
const interval = 2000;

const main = document.getElementById("page");
let shown = null;

const bus = new Bus(() => shown?.update());

function show() {
    const [name] = cockpit.location.path;
    shown?.leave?.();
    shown = name ? instancePage(bus, name) : listPage(bus);
    document.title = name ? `${name} – Stream proxies` : "Stream proxies";
    main.replaceChildren(shown);
    shown.update();
}

async function refresh() {
    if (document.hidden)
        return;
    await bus.refresh();
    shown.asked?.();
    shown.update();
}

cockpit.addEventListener("locationchanged", show);
show();
refresh();
setInterval(refresh, interval);
document.addEventListener("visibilitychange", refresh);

// Other rights: other connections, and what was refused is tried again.
const permission = cockpit.permission({ admin: true });
let allowed = permission.allowed;
permission.addEventListener("changed", () => {
    if (allowed !== null && allowed !== permission.allowed) {
        shown.retry?.();
        bus.reopen();
    }
    allowed = permission.allowed;
});

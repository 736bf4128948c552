/* global cockpit */
// The instances on the system bus, and what they tell. A page gives refresh() its time; signals come in between.

import { samples } from "./chart.js";

const base = "org.example.SocketProxy1";
const path = "/org/example/SocketProxy1";
const propertiesInterface = "org.freedesktop.DBus.Properties";

// answerTime (ms) is how long an instance may take before it is shown as silent.
const answerTime = 5000;

// nameOf undoes the escaping of bus names, in which _39 is the byte 0x39. A name that the escaping would not have made is as it is.
function nameOf(busName) {
    const label = busName.slice(base.length + 1);
    if (!/^(?:[A-Za-z0-9-]|_[0-9a-f]{2})+$/.test(label))
        return label;
    try {
        return decodeURIComponent(label.replaceAll("_", "%"));
    } catch {
        return label; // no UTF-8
    }
}

// plain takes the variants out of a dictionary.
export function plain(dictionary) {
    return Object.fromEntries(Object.entries(dictionary).map(([key, variant]) => [key, variant.v]));
}

// Refused says that a call was refused for want of rights.
export const isRefused = error => /AccessDenied|InteractiveAuthorizationRequired|NotAuthorized/.test(error.name ?? "");

export class Instance {
    constructor(busName, changed) {
        this.busName = busName;
        this.name = nameOf(busName);
        this.properties = null; // until the first answer
        this.silent = false;
        this.rates = { accepted: 0, refused: 0, failed: 0, toBackend: 0, toClient: 0 };
        this.history = { connections: [], toBackend: [], toClient: [] };
        this.asked = 0;
        this.at = 0;
        this.client = cockpit.dbus(busName, { bus: "system", superuser: "try" });
        this.client.subscribe({ path, interface: propertiesInterface, member: "PropertiesChanged" }, (_path, _interface, _signal, [of, now]) => {
            if (of === base && this.properties) {
                Object.assign(this.properties, plain(now));
                changed();
            }
        });
    }

    close() {
        this.client.close();
    }

    call(method, types, ...args) {
        return this.client.call(path, base, method, args, { type: types });
    }

    // refresh asks for all properties, unless the last question is still open.
    async refresh() {
        if (this.asked) {
            this.silent = Date.now() - this.asked > answerTime;
            return;
        }
        this.asked = Date.now();
        try {
            const [all] = await this.client.call(path, propertiesInterface, "GetAll", [base], { type: "s" });
            this.take(plain(all));
            this.silent = false;
        } catch (error) {
            this.silent = true;
        } finally {
            this.asked = 0;
        }
    }

    take(now) {
        const at = performance.now();
        const former = this.properties;
        if (former && former.ProcessID === now.ProcessID && former.StartTimestamp === now.StartTimestamp) {
            const seconds = Math.max(0.1, (at - this.at) / 1000);
            const per = property => Math.max(0, now[property] - former[property]) / seconds;
            this.rates = {
                accepted: per("NAccepted"), refused: per("NRefused"), failed: per("NFailed"),
                toBackend: per("BytesToBackend"), toClient: per("BytesToClient"),
            };
            for (const [series, value] of [["connections", now.NConnections], ["toBackend", this.rates.toBackend], ["toClient", this.rates.toClient]]) {
                this.history[series].push(value);
                this.history[series].splice(0, this.history[series].length - samples);
            }
        }
        this.at = at;
        this.properties = now;
    }

    get state() {
        if (this.silent)
            return "silent";
        return this.properties ? this.properties.State : "…";
    }

    // connections are all of them, page by page. A page is one call.
    async connections() {
        const all = [];
        for (let after = 0; ;) {
            const [page] = await this.call("ListConnections", "a{sv}tu", {}, after, 0);
            for (const [id, state, client, backend, since, toBackend, toClient, more] of page)
                all.push({ id, state, client, backend, since, toBackend, toClient, ...plain(more) });
            if (page.length === 0)
                return all;
            after = page[page.length - 1][0];
        }
    }
}

export class Bus {
    constructor(changed) {
        this.changed = changed;
        this.instances = new Map(); // by the name on the bus
        this.sockets = []; // those of instances without a process
        this.problem = null; // why there is no bus
        this.open();
    }

    open() {
        this.problem = null;
        this.daemon = cockpit.dbus("org.freedesktop.DBus", { bus: "system" });
        this.systemd = cockpit.dbus("org.freedesktop.systemd1", { bus: "system", superuser: "try" });
        this.daemon.addEventListener("close", (_event, options) => {
            this.problem = options.message || options.problem || "closed";
            this.changed();
        });
        this.daemon.subscribe({ path: "/org/freedesktop/DBus", interface: "org.freedesktop.DBus", member: "NameOwnerChanged" },
                              (_path, _interface, _signal, [name]) => name.startsWith(base + ".") && this.refresh());
    }

    // reopen connects anew: with other rights, or after the bus was gone.
    reopen() {
        for (const instance of this.instances.values())
            instance.close();
        this.instances.clear();
        this.daemon.close();
        this.systemd.close();
        this.open();
        this.refresh();
    }

    async refresh() {
        let names;
        try {
            [names] = await this.daemon.call("/org/freedesktop/DBus", "org.freedesktop.DBus", "ListNames", []);
        } catch (error) {
            this.problem = error.message || error.problem;
            this.changed();
            return;
        }
        const now = new Set(names.filter(name => name.startsWith(base + ".")));
        for (const [name, instance] of this.instances) {
            if (!now.has(name)) {
                instance.close();
                this.instances.delete(name);
            }
        }
        for (const name of now) {
            if (!this.instances.has(name))
                this.instances.set(name, new Instance(name, this.changed));
        }
        const answers = [...this.instances.values()].map(instance => instance.refresh());
        await Promise.race([Promise.all([...answers, this.findSockets()]), new Promise(resolve => setTimeout(resolve, 1000))]);
        this.changed();
    }

    // findSockets asks systemd for the instances that wait for their first client, or have failed.
    async findSockets() {
        try {
            const [units] = await this.systemd.call("/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager", "ListUnitsByPatterns",
                                                    [[], ["proxyd@*.socket"]], { type: "asas" });
            this.sockets = units.map(([unit, , , active, sub]) => ({
                unit, name: unit.slice("proxyd@".length, -".socket".length),
                state: active === "failed" ? "failed" : active !== "active" ? "stopped" : sub === "running" ? "starting" : "listening",
            }));
        } catch (error) {
            this.sockets = []; // no service manager on the bus
        }
    }

    // list is everything to show: instances that run, and sockets without one.
    list() {
        const running = [...this.instances.values()];
        const units = new Set(running.map(instance => instance.properties?.Unit));
        const waiting = this.sockets.filter(socket => !units.has(socket.unit.replace(/socket$/, "service")));
        return [...running, ...waiting].sort((a, b) => a.name.localeCompare(b.name));
    }

    find(name) {
        return this.list().find(one => one.name === name);
    }
}

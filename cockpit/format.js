// Numbers for people, as proxyctl writes them.

// isNever finds the interface's infinity: all time spans from never on. Cockpit makes doubles of its numbers, and before version
// 300 or so it made negative ones of the largest.
const never = 9223372036854775;
export const isNever = usec => usec > never || usec < 0;

export function bytes(n) {
    const units = ["B", "K", "M", "G", "T", "P", "E"];
    let unit = 0;
    while (n >= 1024 && unit < units.length - 1) {
        n /= 1024;
        unit++;
    }
    return (unit === 0 || n >= 100 ? Math.round(n).toString() : n.toFixed(1)) + units[unit];
}

export const rate = n => bytes(n) + "/s";

export function perSecond(n) {
    return (n >= 100 || n === 0 ? Math.round(n).toString() : n.toFixed(1)) + "/s";
}

// span is a time span in the two largest units that it has.
export function span(usec) {
    if (isNever(usec))
        return "infinity";
    if (usec < 1000)
        return Math.round(usec) + "us";
    if (usec < 1e6)
        return Math.round(usec / 1000) + "ms";
    let seconds = Math.floor(usec / 1e6);
    const parts = [];
    for (const [name, length] of [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]]) {
        const n = Math.floor(seconds / length);
        seconds -= n * length;
        if (n > 0)
            parts.push(n + name);
    }
    return parts.slice(0, 2).join(" ") || "0s";
}

// parseSpan reads what span writes, and seconds without a unit. It returns microseconds, or null for anything else.
export function parseSpan(text) {
    text = text.trim();
    if (text === "infinity")
        return 1e16;
    const units = { us: 1, ms: 1e3, s: 1e6, "": 1e6, min: 60e6, m: 60e6, h: 3600e6, d: 86400e6 };
    if (!/^(\d+(\.\d+)?\s*[a-z]*\s*)+$/.test(text))
        return null;
    let usec = 0;
    for (const [, number, unit] of text.matchAll(/(\d+(?:\.\d+)?)\s*([a-z]*)/g)) {
        if (!(unit in units))
            return null;
        usec += Number(number) * units[unit];
    }
    return Math.round(usec);
}

export function plural(n, noun) {
    return `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;
}

export function when(usec) {
    return usec === 0 ? "never" : new Date(usec / 1000).toLocaleString();
}

import { h } from "./dom.js";

// samples is how many values a chart shows: two minutes, at one in two seconds.
export const samples = 60;

// sparkline is a small chart of one series. What it shows is said in words too, for those who do not see it.
export function sparkline(colour) {
    const line = h("svg:polyline", { fill: "none", class: `line-${colour}` });
    const area = h("svg:polygon", { class: `area-${colour}` });
    const element = h("svg:svg", { class: "sparkline", viewBox: "0 0 120 24", preserveAspectRatio: "none", role: "img" }, area, line);
    element.update = (values, title) => {
        element.setAttribute("aria-label", title);
        const top = Math.max(1, ...values);
        const points = values.map((value, i) => `${120 - 2 * (values.length - 1 - i)},${(23 - 22 * value / top).toFixed(1)}`);
        line.setAttribute("points", points.join(" "));
        area.setAttribute("points", points.length ? `${points[0].split(",")[0]},24 ${points.join(" ")} 120,24` : "");
    };
    return element;
}

// bar shows how much of a limit is in use.
export function bar() {
    const indicator = h("div", { class: "pf-v6-c-progress__indicator" });
    const track = h("div", { class: "pf-v6-c-progress__bar", role: "progressbar", "aria-valuemin": "0" }, indicator);
    const element = h("div", { class: "pf-v6-c-progress pf-m-sm pf-m-singleline bar" }, track);
    element.update = (value, max, name) => {
        const part = max > 0 ? Math.min(1, value / max) : 0;
        indicator.style.width = `${(100 * part).toFixed(1)}%`;
        for (const [attribute, number] of [["aria-valuenow", value], ["aria-valuemax", max], ["aria-label", name]])
            track.setAttribute(attribute, number);
        element.classList.toggle("pf-m-danger", part >= 0.95);
        element.classList.toggle("pf-m-warning", part >= 0.8 && part < 0.95);
    };
    return element;
}

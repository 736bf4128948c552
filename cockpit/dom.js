// Elements without a framework. A page makes its elements once and updates them: the focus and the selection stay where they are.

// h makes an element. Attributes that are functions are listeners, false ones are left out; children are elements or text.
export function h(tag, attributes = {}, ...children) {
    const element = tag.includes(":")
        ? document.createElementNS("http://www.w3.org/2000/svg", tag.slice(4))
        : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
        if (typeof value === "function")
            element.addEventListener(name, value);
        else if (value !== false && value !== undefined && value !== null)
            element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.filter(child => child !== null && child !== undefined && child !== false));
    return element;
}

// setText changes a text where it differs: a screen reader says nothing of what stays.
export function setText(element, text) {
    if (element.textContent !== text)
        element.textContent = text;
}

// keyed keeps one child of parent for each item, in their order. make returns an element with a method update(item).
export function keyed(parent, items, keyOf, make) {
    const former = parent.byKey ?? new Map();
    const now = new Map();
    let place = parent.firstChild;
    for (const item of items) {
        const key = keyOf(item);
        const child = former.get(key) ?? make(item);
        child.update(item);
        now.set(key, child);
        if (child === place)
            place = place.nextSibling;
        else
            parent.insertBefore(child, place);
    }
    for (const [key, child] of former) {
        if (!now.has(key))
            child.remove();
    }
    parent.byKey = now;
}

export function button(text, kind, click, attributes = {}) {
    return h("button", { type: "button", class: `pf-v6-c-button pf-m-${kind}`, click, ...attributes },
             h("span", { class: "pf-v6-c-button__text" }, text));
}

const colours = { running: "green", listening: "blue", draining: "orange", drained: "orange", exiting: "orange", failed: "red", silent: "red" };

// label shows a state: by its word, and by a colour for those who see it.
export function label() {
    const text = h("span", { class: "pf-v6-c-label__text" });
    const element = h("span", { class: "pf-v6-c-label" }, h("span", { class: "pf-v6-c-label__content" }, text));
    element.update = (word, colour = colours[word] ?? "grey") => {
        setText(text, word);
        element.className = `pf-v6-c-label pf-m-filled pf-m-${colour}`;
    };
    return element;
}

// alert tells of trouble, in words that say what would help. The heading is read out at once.
export function alert(kind, title, text, ...actions) {
    return h("div", { class: `pf-v6-c-alert pf-m-inline pf-m-${kind}`, role: "alert" },
             h("p", { class: "pf-v6-c-alert__title" }, title),
             text && h("div", { class: "pf-v6-c-alert__description" }, h("p", {}, text)),
             actions.length > 0 && h("div", { class: "pf-v6-c-alert__action-group" }, ...actions));
}

export function emptyState(title, ...body) {
    return h("div", { class: "pf-v6-c-empty-state" },
             h("div", { class: "pf-v6-c-empty-state__content" },
               h("div", { class: "pf-v6-c-empty-state__header" },
                 h("div", { class: "pf-v6-c-empty-state__title" }, h("h1", { class: "pf-v6-c-empty-state__title-text" }, title))),
               h("div", { class: "pf-v6-c-empty-state__body" }, ...body)));
}

export function card(title, ...body) {
    return cardOf("h2", title, ...body);
}

export function cardOf(rank, title, ...body) {
    return h("section", { class: "pf-v6-c-card" },
             h("div", { class: "pf-v6-c-card__title" }, h(rank, { class: "pf-v6-c-card__title-text" }, title)),
             h("div", { class: "pf-v6-c-card__body" }, ...body));
}

// table makes one whose columns are {id, title, text, right, sort}; on a narrow screen each cell has its title beside it. Where
// sorted is given, a click on a title sorts by it.
export function table(caption, columns, { rowOf, keyOf, sorted }) {
    const body = h("tbody", { class: "pf-v6-c-table__tbody", role: "rowgroup" });
    const heads = columns.map(column => {
        const plain = !column.sort || !sorted;
        const content = plain
            ? column.title
            : h("button", { type: "button", class: "pf-v6-c-table__button", click: () => sorted(column.id) },
                h("span", { class: "pf-v6-c-table__button-content" }, h("span", { class: "pf-v6-c-table__text" }, column.title),
                  h("span", { class: "pf-v6-c-table__sort-indicator", "aria-hidden": "true" })));
        return h("th", { class: "pf-v6-c-table__th" + (plain ? "" : " pf-v6-c-table__sort") + (column.right ? " right" : ""), role: "columnheader", scope: "col" }, content);
    });
    const element = h("table", { class: "pf-v6-c-table pf-m-grid-md pf-m-compact", role: "grid", "aria-label": caption },
                      h("thead", { class: "pf-v6-c-table__thead" }, h("tr", { class: "pf-v6-c-table__tr", role: "row" }, ...heads)), body);
    element.update = (items, order) => {
        columns.forEach((column, i) => {
            if (!order || !column.sort)
                return;
            const is = column.id === order.by;
            heads[i].setAttribute("aria-sort", is ? (order.descending ? "descending" : "ascending") : "none");
            const mark = heads[i].querySelector(".pf-v6-c-table__sort-indicator");
            if (mark)
                setText(mark, is ? (order.descending ? "▼" : "▲") : "");
        });
        keyed(body, items, keyOf, item => {
            const cells = columns.map(column => h("td", { class: "pf-v6-c-table__td" + (column.right ? " right" : ""), role: "cell", "data-label": column.title }));
            const contents = columns.map((column, i) => {
                const content = column.make?.(item);
                if (content)
                    cells[i].append(content);
                return content;
            });
            const row = h("tr", { class: "pf-v6-c-table__tr", role: "row", ...rowOf?.(item) }, ...cells);
            row.update = now => columns.forEach((column, i) => {
                if (contents[i])
                    contents[i].update?.(now);
                else
                    setText(cells[i], column.text(now));
            });
            return row;
        });
    };
    return element;
}

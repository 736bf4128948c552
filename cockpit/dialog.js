// Dialogs: a question before something is done, and what went wrong where it was asked.

import { alert, button, h } from "./dom.js";
import { isRefused } from "./bus.js";

// explain says why a call failed, and what would help.
export function explain(error) {
    if (isRefused(error))
        return "You have no right to do this. Turn on administrative access at the top of the page, or ask an administrator.";
    return error.message || error.problem || String(error);
}

// field is an input with its label, and a hint below.
export function field(id, title, input, hint) {
    input.id = id;
    input.setAttribute("aria-describedby", hint ? id + "-hint" : "");
    return h("div", { class: "pf-v6-c-form__group" },
             h("div", { class: "pf-v6-c-form__group-label" }, h("label", { class: "pf-v6-c-form__label", for: id }, h("span", { class: "pf-v6-c-form__label-text" }, title))),
             h("div", { class: "pf-v6-c-form__group-control" }, h("span", { class: "pf-v6-c-form-control" }, input),
               hint && h("div", { class: "pf-v6-c-form__helper-text", id: id + "-hint" }, hint)));
}

export function checkbox(id, title) {
    const input = h("input", { type: "checkbox", class: "pf-v6-c-check__input", id });
    return { input, element: h("div", { class: "pf-v6-c-check" }, input, h("label", { class: "pf-v6-c-check__label", for: id }, title)) };
}

// ask shows a dialog. act does what it is for and may fail; then the dialog stays, and says why. Escape and Cancel do nothing.
export function ask({ title, body = [], action, danger = false, act }) {
    const trouble = h("div", {});
    const confirm = button(action, danger ? "danger" : "primary", () => {}, { type: "submit" });
    const form = h("form", { class: "pf-v6-c-form", method: "dialog" }, trouble, ...body,
                   h("div", { class: "dialog-actions" }, confirm, button("Cancel", "link", () => dialog.close())));
    const dialog = h("dialog", { class: "pf-v6-c-modal-box pf-m-sm", "aria-labelledby": "dialog-title", close: () => dialog.remove() },
                     h("header", { class: "pf-v6-c-modal-box__header" }, h("h1", { class: "pf-v6-c-modal-box__title", id: "dialog-title" }, title)),
                     h("div", { class: "pf-v6-c-modal-box__body" }, form));
    form.addEventListener("submit", async event => {
        event.preventDefault();
        confirm.disabled = true;
        try {
            await act();
            dialog.close();
        } catch (error) {
            trouble.replaceChildren(alert("danger", "That did not work", explain(error)));
            confirm.disabled = false;
        }
    });
    document.getElementById("dialog").replaceChildren(dialog);
    dialog.showModal();
    (form.querySelector("input") ?? confirm).focus();
}

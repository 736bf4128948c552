// The theme that is chosen in Cockpit's menu, or else in the browser. Cockpit tells its pages through the local storage.

const dark = window.matchMedia("(prefers-color-scheme: dark)");

function follow() {
    const style = localStorage.getItem("shell:style") ?? "auto";
    const isDark = style === "dark" || (style === "auto" && dark.matches);
    document.documentElement.classList.toggle("pf-v6-theme-dark", isDark);
}

dark.addEventListener("change", follow);
window.addEventListener("storage", event => event.key === "shell:style" && follow());
window.addEventListener("cockpit-style", event => {
    if (event instanceof CustomEvent)
        localStorage.setItem("shell:style", event.detail.style);
    follow();
});
follow();

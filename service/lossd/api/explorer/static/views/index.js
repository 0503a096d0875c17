/**
 * All views: address, title, and the module that renders each. Views with `nav` are in the bar, in this order; `under`
 * names the entry of the bar that is marked for a view at another address; `needs` is requested with the module.
 * A module exports `async function render(root, context)`; see the README.
 */
export const VIEWS = [
  { path: "/losses", title: "Losses", nav: true, needs: ["losses"], load: () => import("./losses.js") },
  { path: "/losses/:name", title: "Loss", needs: ["losses", "plots"], load: () => import("./loss.js") },
  { path: "/try", title: "Try it", nav: true, needs: ["losses"], load: () => import("./try.js") },
  {
    path: "/landscape",
    title: "Landscape",
    nav: true,
    needs: ["losses", "plots"],
    load: () => import("./landscape.js"),
  },
  { path: "/runs", title: "Runs", nav: true, load: () => import("./runs.js") },
  { path: "/runs/:name", title: "Run", load: () => import("./run.js") },
  { path: "/compare", title: "Compare runs", under: "/runs", load: () => import("./compare.js") },
  { path: "/service", title: "Service", nav: true, load: () => import("./service.js") },
];

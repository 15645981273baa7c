// The live view of a pool. Its data are the kernel's; ages and the curve are drawn here, and
// whether the kernel is still there is found out here.

const SECONDS_SHOWN = 60;
const NUMBERS = new Set(["pid", "for", "done", "memory"]);

/** States of a kernel, as JupyterLab names them, after which this widget has none any more. */
const GONE = new Set(["restarting", "autorestarting", "terminating", "dead"]);

/** Class that ipywidgets gives to a view whose model has no kernel. */
const DISCONNECTED = "jupyter-widgets-disconnected";

/** Updates of a working pool that may be missing before the page says that it hears nothing. */
const BEATS = 3;

/** Make an element; texts are set as text, never as html. */
function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

function duration(seconds) {
  for (const [unit, size] of [["d", 86400], ["h", 3600], ["min", 60]]) {
    if (seconds >= 2 * size) return `${Math.round(seconds / size)} ${unit}`;
  }
  return `${Math.max(0, Math.round(seconds))} s`;
}

function memory(mebibytes) {
  if (mebibytes === null) return "";
  return mebibytes < 1024 ? `${mebibytes} MiB` : `${(mebibytes / 1024).toFixed(1)} GiB`;
}

function curve(rates) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  const line = document.createElementNS(space, "polyline");
  const top = Math.max(1, ...rates);
  const points = rates.map((rate, second) => `${second},${21 - (20 * rate) / top}`);
  svg.setAttribute("viewBox", `0 0 ${SECONDS_SHOWN - 1} 22`);
  svg.setAttribute("preserveAspectRatio", "none");
  line.setAttribute("points", points.join(" "));
  svg.append(line);
  return svg;
}

const RARE = [
  ["cancelled", "cancelled"],
  ["retried", "retried"],
  ["died", "workers died"],
  ["recycled", "workers replaced"],
];

function tile(name, value) {
  return make("div", "snakepit-tile", make("b", "", value), make("span", "", name));
}

function tiles(view, rates) {
  const { stats } = view;
  const rare = RARE.filter(([name]) => stats[name]);
  const mebibytes = view.workers.reduce((sum, worker) => sum + (worker.mebibytes ?? 0), 0);
  return make(
    "div",
    "snakepit-tiles",
    tile("running", stats.running.toLocaleString()),
    tile("waiting", stats.queued.toLocaleString()),
    tile("calls/s", view.rate.toLocaleString()),
    make("div", "snakepit-tile", curve(rates), make("span", "", "last minute")),
    tile("done", view.done.toLocaleString()),
    tile("failed", view.failed.toLocaleString()),
    ...rare.map(([name, label]) => tile(label, stats[name].toLocaleString())),
    tile("memory", memory(mebibytes)),
  );
}

function state(worker) {
  const element = make("span", "snakepit-state", worker.state);
  element.dataset.state = worker.tainted ? "tainted" : worker.state;
  if (worker.tainted) {
    element.append(", tainted");
    element.title = worker.tainted;
  }
  return element;
}

function table(view, now) {
  const cell = (tag, column, content) =>
    make(tag, NUMBERS.has(column) ? "snakepit-number" : "", content);
  const rows = view.workers.map((worker) => {
    const cells = {
      worker: worker.name,
      pid: worker.pid === null ? "" : String(worker.pid),
      state: state(worker),
      for: duration(now - worker.since),
      done: worker.done.toLocaleString(),
      memory: memory(worker.mebibytes),
      device: worker.device,
      running: worker.running,
      session: worker.session,
    };
    return make("tr", "", ...view.headings.map((column) => cell("td", column, cells[column])));
  });
  const headings = view.headings.map((column) => cell("th", column, column));
  return make(
    "table",
    "",
    make("thead", "", make("tr", "", ...headings)),
    make("tbody", "", ...rows),
  );
}

function ends(view, now) {
  const lines = view.ends.map((end) =>
    make(
      "div",
      "snakepit-end",
      make("span", "", end.name),
      make("span", "snakepit-quiet", `${duration(now - end.at)} ago`),
      make("span", end.died ? "snakepit-died" : "", end.story),
    ),
  );
  return make("div", "snakepit-ends", ...lines);
}

function title(view) {
  return make(
    "div",
    "snakepit-title",
    `pool ${view.name} `,
    make("span", "snakepit-quiet", view.about),
  );
}

/** Format a time of day, with the date if that is not today's. */
function clock(milliseconds) {
  const time = new Date(milliseconds);
  const isToday = time.toDateString() === new Date().toDateString();
  return isToday ? time.toLocaleTimeString() : time.toLocaleString();
}

/** Say since when, and why, the figures are old; null while they are not. */
function staleness(view, link) {
  const at = 1000 * view.at;
  if (link.gone) return { at: link.goneAt ?? at, why: "the kernel of this dashboard is gone" };
  if (!view.is_open) return { at, why: `the pool is closed: ${view.problem}` };
  if (link.lostAt) return { at: link.lostAt, why: "there is no connection to the kernel" };
  const isWorking = view.stats.queued + view.stats.running > 0;
  const isSilent = Date.now() - link.heardAt > 1000 * BEATS * view.beat;
  if (isWorking && link.isSeen && isSilent) {
    return { at: link.heardAt, why: "nothing has been heard from the kernel" };
  }
  return null;
}

function notice(stale, hasFigures) {
  const figures = hasFigures ? "; these are the last figures" : "";
  const element = make("div", "snakepit-notice", `${stale.why} (${clock(stale.at)})${figures}`);
  element.setAttribute("role", "status");
  return element;
}

function draw(view, link, rates) {
  const stale = staleness(view, link);
  const now = (stale ? stale.at : Date.now()) / 1000;
  const hasFigures = view.is_open || view.workers.length > 0;
  const figures = make("div", stale ? "snakepit-old" : "");
  if (hasFigures) figures.append(tiles(view, rates), table(view, now));
  figures.append(ends(view, now));
  if (view.sessions) figures.append(make("div", "snakepit-quiet", `sessions: ${view.sessions}`));
  if (view.beside) figures.append(make("div", "snakepit-quiet", view.beside));
  const parts = [title(view), figures];
  if (stale) parts.splice(1, 0, notice(stale, hasFigures));
  if (view.problem && !stale) parts.push(make("div", "snakepit-problem", view.problem));
  return make("div", "snakepit-pool snakepit-dashboard", ...parts);
}

/** Note what JupyterLab tells of a model's kernel; return a function that ends that. */
function followKernel(model, link) {
  const kernel = model.widget_manager?.kernel;
  if (!kernel?.statusChanged?.connect) return () => {}; // not JupyterLab, or no kernel
  const onStatus = (_, status) => {
    if (GONE.has(status)) link.end(Date.now());
  };
  const onConnection = (_, status) => link.setLost(status !== "connected");
  const onDisposed = () => link.end(Date.now());
  kernel.statusChanged.connect(onStatus);
  kernel.connectionStatusChanged?.connect(onConnection);
  kernel.disposed?.connect(onDisposed);
  return () => {
    kernel.statusChanged.disconnect(onStatus);
    kernel.connectionStatusChanged?.disconnect(onConnection);
    kernel.disposed?.disconnect(onDisposed);
  };
}

/** What is known of the connection of a model to its kernel, and whom to tell of news. */
class Link {
  constructor() {
    this.gone = false; // for ever: a kernel that starts again does not know this model
    this.goneAt = null; // unknown if it was so from the beginning
    this.lostAt = null; // until the connection is there again
    this.heardAt = Date.now();
    this.seen = new Set(); // the views that are on the screen
    this.redraws = new Set();
  }

  get isSeen() {
    return this.seen.size > 0;
  }

  end(at) {
    if (this.gone) return;
    this.gone = true;
    this.goneAt = at;
    this.redraw();
  }

  setLost(isLost) {
    if (isLost === (this.lostAt !== null)) return;
    this.lostAt = isLost ? Date.now() : null;
    this.redraw();
  }

  hear() {
    this.heardAt = Date.now();
    this.redraw();
  }

  see(model, view, isSeen) {
    const wasSeen = this.isSeen;
    if (isSeen) this.seen.add(view);
    else this.seen.delete(view);
    if (this.isSeen && !wasSeen) this.heardAt = Date.now(); // nothing was sent meanwhile
    if (!this.gone && model.get("shown") !== this.isSeen) {
      model.set("shown", this.isSeen);
      model.save_changes();
    }
  }

  redraw() {
    for (const redraw of this.redraws) redraw();
  }
}

export default () => {
  const link = new Link();

  return {
    initialize({ model }) {
      const hear = () => link.hear();
      model.on("change:view", hear);
      const leave = followKernel(model, link);
      return () => {
        model.off("change:view", hear);
        leave();
      };
    },

    render({ model, el }) {
      const rates = Array(SECONDS_SHOWN).fill(0);
      const redraw = () => el.replaceChildren(draw(model.get("view"), link, rates));
      const tick = () => {
        const view = model.get("view");
        if (!link.seen.has(el) || !view.is_open || link.gone) return;
        if (!staleness(view, link)) {
          rates.push(view.rate);
          rates.shift();
        }
        redraw();
      };
      const look = () => link.see(model, el, !document.hidden && isOnScreen);
      let isOnScreen = true;
      const observer = new IntersectionObserver((entries) => {
        isOnScreen = entries[entries.length - 1].isIntersecting;
        look();
      });
      const checkLink = (at) => {
        if (el.closest(`.${DISCONNECTED}`)) link.end(at);
      };
      const classes = new MutationObserver(() => checkLink(Date.now()));
      const timer = setInterval(tick, 1000);
      document.addEventListener("visibilitychange", look);
      link.redraws.add(redraw);
      checkLink(null);
      redraw();
      observer.observe(el);
      classes.observe(el, { attributeFilter: ["class"] });
      return () => {
        clearInterval(timer);
        observer.disconnect();
        classes.disconnect();
        document.removeEventListener("visibilitychange", look);
        link.redraws.delete(redraw);
        link.see(model, el, false);
      };
    },
  };
};

// The live view of a pool. Its data are the kernel's; ages and the curve are drawn here.

const SECONDS_SHOWN = 60;
const NUMBERS = new Set(["pid", "calls", "memory"]);

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

function tile(name, value) {
  return make("div", "snakepit-tile", make("b", "", value), make("span", "", name));
}

function tiles(view, rates) {
  const { stats } = view;
  const rare = ["cancelled", "retried", "died", "recycled"].filter((name) => stats[name]);
  const mebibytes = view.workers.reduce((sum, worker) => sum + (worker.mebibytes ?? 0), 0);
  return make(
    "div",
    "snakepit-tiles",
    tile("queued", stats.queued.toLocaleString()),
    tile("running", stats.running.toLocaleString()),
    tile("calls/s", view.rate.toLocaleString()),
    make("div", "snakepit-tile", curve(rates), make("span", "", "last minute")),
    tile("calls", stats.submitted.toLocaleString()),
    tile("failed", view.failed.toLocaleString()),
    ...rare.map((name) => tile(name, stats[name].toLocaleString())),
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
      since: duration(now - worker.since),
      calls: worker.calls.toLocaleString(),
      memory: memory(worker.mebibytes),
      device: worker.device,
      running: worker.running,
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
  const about = view.is_open ? view.about : "closed";
  return make(
    "div",
    "snakepit-title",
    `pool ${view.name} `,
    make("span", "snakepit-quiet", about),
  );
}

function draw(view, rates) {
  const now = Date.now() / 1000;
  const parts = [title(view), tiles(view, rates)];
  if (view.is_open) parts.push(table(view, now));
  parts.push(ends(view, now));
  if (view.sessions) parts.push(make("div", "snakepit-quiet", `sessions: ${view.sessions}`));
  if (view.beside) parts.push(make("div", "snakepit-quiet", view.beside));
  if (view.problem && view.is_open) parts.push(make("div", "snakepit-problem", view.problem));
  return make("div", "snakepit-pool snakepit-dashboard", ...parts);
}

export default () => {
  const seen = new Set(); // the views of this model that are on the screen

  function see(model, view, isSeen) {
    if (isSeen) seen.add(view);
    else seen.delete(view);
    if (model.get("shown") !== seen.size > 0) {
      model.set("shown", seen.size > 0);
      model.save_changes();
    }
  }

  return {
    render({ model, el }) {
      const rates = Array(SECONDS_SHOWN).fill(0);
      const redraw = () => el.replaceChildren(draw(model.get("view"), rates));
      const tick = () => {
        if (!seen.has(el) || !model.get("view").is_open) return;
        rates.push(model.get("view").rate);
        rates.shift();
        redraw();
      };
      const look = () => see(model, el, !document.hidden && isOnScreen);
      let isOnScreen = true;
      const observer = new IntersectionObserver((entries) => {
        isOnScreen = entries[entries.length - 1].isIntersecting;
        look();
      });
      const timer = setInterval(tick, 1000);
      document.addEventListener("visibilitychange", look);
      model.on("change:view", redraw);
      redraw();
      observer.observe(el);
      return () => {
        clearInterval(timer);
        observer.disconnect();
        document.removeEventListener("visibilitychange", look);
        model.off("change:view", redraw);
        see(model, el, false);
      };
    },
  };
};

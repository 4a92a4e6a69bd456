// Draws the figures. The library comes from the server's cache; until it is there, the tables speak.
const PROBE_MS = 1000;
/** A figure is fetched and drawn anew at most this often. */
const REDRAW_MS = 3000;

let library = null;

/** The chart library, once the server has built it; rejects with the server's reason when it cannot. */
async function loadLibrary() {
  for (;;) {
    const response = await fetch("/assets/charts.json");
    const { state, src, message } = await response.json();
    if (state === "ready") return (await import(src)).vegaEmbed;
    if (state === "failed") throw new Error(message);
    await new Promise((resolve) => setTimeout(resolve, PROBE_MS));
  }
}

/** Vega's config from the page's own tokens. */
function themeConfig() {
  const probe = document.body.appendChild(document.createElement("span"));
  // light-dark() in a token is resolved only where a property uses it
  const token = (name) => {
    probe.style.color = `var(${name})`;
    return getComputedStyle(probe).color;
  };
  const font = getComputedStyle(probe).fontFamily;
  const text = { labelColor: token("--muted"), titleColor: token("--text"), labelFont: font, titleFont: font };
  const axis = {
    ...text,
    domainColor: token("--line"),
    gridColor: token("--line"),
    tickColor: token("--line"),
    labelFontSize: 11,
    titleFontSize: 11,
    titleFontWeight: 500,
  };
  const category = [1, 2, 3, 4, 5, 6, 7].map((n) => token(`--series-${n}`));
  const config = {
    background: "transparent",
    font,
    axis,
    header: { ...text, labelColor: token("--text"), labelFontSize: 12, labelFontWeight: 600 },
    legend: { ...text, labelFontSize: 11, titleFontSize: 11, titleFontWeight: 500, symbolStrokeColor: token("--muted") },
    view: { stroke: token("--line") },
    text: { color: token("--muted"), font },
    point: { color: token("--muted") },
    range: { category },
  };
  probe.remove();
  return config;
}

class FigureView {
  #element;
  #result = null;
  #spec = undefined;
  #version;
  #tableVersion;
  #wanted = false;
  #busy = false;
  #last = 0;

  constructor(element) {
    this.#element = element;
    this.#tableVersion = element.dataset.version;
    this.#part("details").addEventListener("toggle", () => this.#refreshTable());
  }

  #part(selector) {
    return this.#element.querySelector(selector);
  }

  /** Fetches and draws anew when the page says that the rows changed. */
  want(version) {
    if (version === this.#version) return;
    this.#version = version;
    this.#wanted = true;
    if (!this.#busy) this.#run();
  }

  async #run() {
    this.#busy = true;
    while (this.#wanted) {
      const wait = this.#last + REDRAW_MS - performance.now();
      if (this.#last && wait > 0) await new Promise((resolve) => setTimeout(resolve, wait));
      this.#wanted = false;
      this.#last = performance.now();
      try {
        await this.#fetch();
      } catch {
        this.#version = undefined; // the server is away: the next update of the page tries again
      }
    }
    this.#busy = false;
  }

  async #fetch() {
    const response = await fetch(`${this.#element.dataset.src}.json`);
    if (!response.ok) throw new Error(`${response.status} for ${this.#element.dataset.figure}`);
    const figure = await response.json();
    this.#part("[data-caption]").textContent = figure.caption;
    this.#part("[data-chart]").setAttribute("aria-label", figure.alt);
    this.#spec = figure.spec && { spec: figure.spec, renderer: figure.renderer };
    await this.draw();
    await this.#refreshTable();
  }

  /** Draws the spec at hand in the present theme. */
  async draw() {
    const chart = this.#part("[data-chart]");
    const note = this.#part("[data-note]");
    if (!this.#spec) {
      this.#result?.finalize();
      this.#result = null;
      chart.replaceChildren();
      note.hidden = true;
      return;
    }
    note.hidden = this.#result !== null;
    let embed;
    try {
      library ??= loadLibrary();
      embed = await library;
    } catch (error) {
      note.hidden = false;
      note.textContent = `Charts cannot be drawn (${error.message}); the table has the numbers.`;
      return;
    }
    // drawn beside the old chart and swapped, so that nothing jumps
    const canvas = document.createElement("div");
    const result = await embed(canvas, this.#spec.spec, {
      actions: false,
      ast: true,
      config: themeConfig(),
      defaultStyle: false,
      mode: "vega-lite",
      renderer: this.#spec.renderer,
      tooltip: { disableDefaultStyle: true, theme: "custom" },
    });
    this.#result?.finalize();
    this.#result = result;
    chart.replaceChildren(canvas);
    chart.dataset.drawn = String(Number(chart.dataset.drawn ?? 0) + 1);
    note.hidden = true;
  }

  async #refreshTable() {
    if (!this.#part("details").open || this.#version === undefined || this.#tableVersion === this.#version) return;
    const version = this.#version;
    const response = await fetch(`${this.#element.dataset.src}.html`);
    if (!response.ok) return;
    const parsed = new DOMParser().parseFromString(await response.text(), "text/html");
    this.#part("[data-table]").replaceChildren(...parsed.body.children);
    this.#tableVersion = version;
  }
}

/** Draws every figure below the root; `check()` draws anew those whose version on the page has changed. */
export function startCharts(root) {
  const views = new Map([...root.querySelectorAll("[data-figure]")].map((el) => [el.dataset.figure, new FigureView(el)]));
  const check = () => {
    const versions = document.getElementById("figure-versions")?.dataset ?? {};
    for (const [name, view] of views) view.want(versions[name]);
  };
  check();
  document.addEventListener("bitbudget:theme", () => {
    for (const view of views.values()) view.draw();
  });
  return { check };
}

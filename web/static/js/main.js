// Wires the page: times, live regions, charts, and the badge that says how fresh they are.
import { startActions } from "./actions.js";
import { startCharts } from "./charts.js";
import { followEvents } from "./events.js";
import { LiveRegion } from "./live.js";
import { localiseTimes } from "./times.js";

/** The badge in the header: live, connecting, or stale since when. */
function showStream({ state, since }) {
  const badge = document.getElementById("stream");
  const words = {
    live: "live",
    connecting: "connecting",
    stale: `stale since ${new Date(since).toLocaleTimeString()}`,
  };
  if (badge.dataset.state === state && state !== "stale") return;
  badge.dataset.state = state;
  document.getElementById("stream-text").textContent = words[state];
}

const main = document.getElementById("main");
localiseTimes(document);
const charts = startCharts(document);

if (main.dataset.live) {
  const region = new LiveRegion(document.getElementById("live"), main.dataset.live, () => charts.check());
  const { study, job } = main.dataset;
  startActions(document, () => region.refresh());
  followEvents({
    after: Number(main.dataset.lastEvent),
    onEvent: (event) => {
      if (study && event.study_id !== study) return;
      if (job && event.job_id !== job) return;
      region.refresh();
    },
    onJoin: () => region.refresh(),
    onStatus: showStream,
  });
  // workers come and go without a job event
  setInterval(() => document.visibilityState === "visible" && region.refresh(), 15_000);
} else {
  document.getElementById("stream").hidden = true;
}
